from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from ludus.base.errors import CheckpointError, NetworkError, RunError
from ludus.model.exchange import load, save
from ludus.model.hub import Found, find, origin, wanted_files

NAME, SHA = "some/model-1B", "c0ffee" * 6 + "beef"
CLUTTER = ["README.md", "original/consolidated.00.pth", "consolidated.safetensors", "model.onnx", "modeling_evil.py"]


class FakeHub:
    """A hub with one model, and a cache that is empty at first; it remembers what was fetched."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache, self.fetched, self.asked = folder, cache, [], 0
        self.problem: Exception | None = None
        self.refuses_files: Exception | None = None

    def model_info(self, name: str, *, revision: str | None) -> SimpleNamespace:
        self.asked += 1
        if self.problem:
            raise self.problem
        assert (name, revision) in ((NAME, None), (NAME, "v2"), (NAME, SHA))
        return SimpleNamespace(
            sha=SHA, siblings=[SimpleNamespace(rfilename=name) for name in [*CLUTTER, *self.names()]]
        )

    def names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None,
        allow_patterns: list[str] | None = None,
        local_files_only: bool = False,
    ) -> str:
        place = self.cache / SHA
        if local_files_only:
            if not place.is_dir() or revision not in (None, "main", "v2", SHA):
                raise errors.LocalEntryNotFoundError("not in the cache")
            return str(place)
        assert (name, revision) == (NAME, SHA)
        if self.refuses_files:
            raise self.refuses_files
        place.mkdir(parents=True, exist_ok=True)
        for file in self.names():
            if any(fnmatch(file, pattern) for pattern in allow_patterns or ["*"]):
                self.fetched.append(file)
                (place / file).write_bytes((self.folder / file).read_bytes())
        return str(place)


@pytest.fixture
def hub(tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    save(tiny(), tmp_path / "there", max_shard_bytes=20_000)
    (tmp_path / "here").mkdir()
    fake = FakeHub(tmp_path / "there", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.chdir(tmp_path / "here")
    return fake


def refused(kind: type[Exception], status: int, says: str = "No.") -> Exception:
    response = httpx.Response(status, request=httpx.Request("GET", f"https://huggingface.co/{NAME}"))
    return kind(says, response=response)


def test_a_name_is_fetched_at_the_commit_that_is_told_and_nothing_else_of_it(hub: FakeHub, tiny):
    found = find(NAME)
    assert found == Found(hub.cache / SHA, NAME, SHA)
    assert load(found.folder).shape == tiny().shape
    weights = {name for name in hub.names() if name.endswith(".safetensors")}
    assert len(weights) > 2
    assert set(hub.fetched) == weights | {"config.json", "generation_config.json", "model.safetensors.index.json"}
    assert find(f"{NAME}@v2").revision == find(NAME, revision="v2").revision == SHA


def test_a_pinned_commit_in_the_cache_needs_no_network(hub: FakeHub):
    find(NAME)
    hub.problem = errors.OfflineModeIsEnabled("offline")
    asked = hub.asked
    assert find(f"{NAME}@{SHA}") == Found(hub.cache / SHA, NAME, SHA)
    assert hub.asked == asked
    assert find(NAME) == Found(hub.cache / SHA, NAME, SHA)
    next((hub.cache / SHA).glob("model-*")).unlink()  # a fetch that was cut short
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE keeps from looking further"):
        find(NAME)


def test_what_is_here_wins(hub: FakeHub, tiny, tmp_path):
    save(tiny(), Path("some") / "model-1B")
    assert find(NAME) == Found(Path(NAME), NAME, None)
    (Path("some") / "tuned").mkdir()
    (Path("some") / "tuned" / "adapter_config.json").write_text("{}")
    assert find("some/tuned").folder == Path("some/tuned")
    Path("stories.bin").write_bytes(b"story")
    assert find("stories.bin").folder == Path("stories.bin")
    assert hub.asked == 0


@pytest.mark.parametrize(
    ("problem", "kind", "says"),
    [
        (errors.OfflineModeIsEnabled("offline"), NetworkError, r"HF_HUB_OFFLINE .* unset it, or fetch it where"),
        (
            httpx.ConnectError("Name or service not known"),
            NetworkError,
            r"could not be fetched \(Name or .*hf download",
        ),
        (refused(errors.HfHubHTTPError, 503), NetworkError, "could not be fetched"),
        (refused(errors.GatedRepoError, 403), CheckpointError, "is gated: accept its licence at .* `hf auth login`"),
        (refused(errors.RevisionNotFoundError, 404), CheckpointError, "has no revision v9; https.*commits/main"),
        (refused(errors.RepositoryNotFoundError, 401), CheckpointError, "neither a path here nor a model on the hub"),
    ],
)
def test_each_refusal_is_one_line_that_says_what_to_do(hub: FakeHub, problem: Exception, kind: type, says: str):
    hub.problem = problem
    with pytest.raises(kind, match=says) as caught:
        find(NAME, revision="v9")
    assert "\n" not in str(caught.value)
    assert NAME in str(caught.value)


def test_a_licence_that_was_not_accepted_shows_when_files_are_asked_for(hub: FakeHub):
    hub.refuses_files = refused(errors.GatedRepoError, 401)
    with pytest.raises(CheckpointError, match="is gated"):
        find(NAME)


def test_what_lies_here_under_almost_that_name_is_pointed_at(hub: FakeHub, tiny):
    hub.problem = refused(errors.RepositoryNotFoundError, 404)
    save(tiny(), Path("runs") / "demo")
    with pytest.raises(CheckpointError, match=r"did you mean runs/demo\?"):
        find("runs/dmeo")
    with pytest.raises(RunError, match=r"rusn does not exist \(did you mean runs\?\); a name on the hub is OWNER/NAME"):
        find("rusn")
    with pytest.raises(RunError, match=r"runs/demo/far does not exist$"):
        find("runs/demo/far")
    Path("empty").mkdir()
    with pytest.raises(RunError, match="holds no model yet"):
        find("empty")


def test_a_repository_without_a_model_is_said(hub: FakeHub):
    (hub.folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds no model that ludus reads"):
        find(NAME)


def test_pickles_are_fetched_only_where_there_is_nothing_else():
    pickles = ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]
    assert wanted_files(["config.json", *pickles, *CLUTTER]) == ["config.json", *pickles]
    assert wanted_files(["config.json", *pickles, "model.safetensors"]) == ["config.json", "model.safetensors"]
    assert wanted_files(["adapter_config.json", "adapter_model.safetensors", "training_args.bin"]) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_what_lies_in_the_cache_is_known_by_its_name_and_commit(tmp_path):
    commit = "a1" * 20
    place = tmp_path / "hub" / "models--two-words--a--b" / "snapshots" / commit
    assert origin(place) == origin(place / "config.json") == f"two-words/a--b@{commit}"
    assert origin(tmp_path / "models--x") is None
