from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import errors

from ludus.base.errors import ConfigError, DataError, NetworkError
from ludus.corpus.build import build
from ludus.corpus.document import Reading
from ludus.corpus.hub import Address, address
from ludus.corpus.settings import CorpusSettings
from ludus.corpus.sources import documents

NAME, SHA = "some/fineweb", "c0ffee" * 6
CONFIGS = [
    {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
    {"config_name": "sample-10BT", "data_files": [{"split": "train", "path": ["sample/10BT/*"]}]},
]
FILES = ["README.md", *(f"data/{dump}/{part:03d}.parquet" for dump in ("a", "b") for part in (0, 1))]
FILES += [f"sample/10BT/{part:03d}.parquet" for part in (2, 0, 1)]


class FakeHub:
    """A hub in a folder: answers as the real one, and remembers what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched, self.problem = folder, [], None
        self.card = SimpleNamespace(to_dict=lambda: {"license": "odc-by", "configs": CONFIGS})
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            rows = [{"text": f"{name} says number {row} at some length", "url": f"https://a/{row}"} for row in range(3)]
            if name.endswith(".parquet"):
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)

    def dataset_info(self, name: str, *, revision: str | None) -> SimpleNamespace:
        if self.problem:
            raise self.problem
        assert name == NAME
        siblings = [SimpleNamespace(rfilename=file) for file in FILES]
        return SimpleNamespace(sha=revision or SHA, siblings=siblings, card_data=self.card)

    def download(self, name: str, file: str, *, repo_type: str, revision: str) -> str:
        assert (name, repo_type) == (NAME, "dataset")
        self.fetched.append((file, revision))
        return str(self.folder / file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    return fake


def found(**settings) -> tuple[list, Reading]:
    reading = Reading()
    return list(documents(CorpusSettings(**{"hub": NAME, **settings}), reading)), reading


def test_a_subset_is_read_file_by_file_in_order_at_a_revision_that_is_written_down(hub: FakeHub):
    read, reading = found(hub=f"{NAME}:sample-10BT")
    assert [name for name, _ in hub.fetched] == [f"sample/10BT/{part:03d}.parquet" for part in range(3)]
    assert {revision for _, revision in hub.fetched} == {SHA}
    assert len(read) == 9
    assert (read[0].id, read[0].source, read[0].licence) == ("sample/10BT/000.parquet:1", NAME, "odc-by")
    assert reading.notes == [f"3 of 3 files of {NAME}:sample-10BT at revision {SHA}"]


def test_without_a_subset_the_default_is_read_and_a_revision_is_kept(hub: FakeHub):
    read, _ = found(hub=f"{NAME}@v1.0", hub_files="data/b/*.parquet")
    assert hub.fetched == [("data/b/000.parquet", "v1.0"), ("data/b/001.parquet", "v1.0")]
    assert len(read) == 6


def test_a_limit_saves_the_download_of_what_comes_after(hub: FakeHub):
    read, reading = found(limit_documents=4)
    assert (len(read), len(hub.fetched)) == (4, 2)
    assert reading.notes[0] == "stopped after 4 documents (corpus.limit_documents)"
    assert reading.notes[1].startswith("2 of 4 files")
    size = len(read[0].text)
    read, reading = found(limit_bytes=size + 1)
    assert len(read) == 2
    assert reading.notes[0] == f"stopped after {2 * size:,} bytes of text (corpus.limit_bytes)"


def test_a_card_that_is_silent_leaves_folders_as_subsets(hub: FakeHub):
    hub.card = None
    assert len(found(hub=f"{NAME}:10BT")[0]) == 9
    assert len(found()[0]) == 21


def test_a_corpus_of_the_hub_says_what_it_was_made_from(hub: FakeHub, tmp_path: Path):
    (tmp_path / "corpus").mkdir()
    report = build(CorpusSettings(hub=f"{NAME}:sample-10BT", near_duplicates=False), tmp_path / "corpus", seed=0)
    assert report["notes"] == [f"3 of 3 files of {NAME}:sample-10BT at revision {SHA}"]
    assert report["licences"] == ["odc-by"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"hub": f"{NAME}:sample-10B"},
            r"no subset sample-10B; did you mean some/fineweb:sample-10BT\? there are: default",
        ),
        ({"hub_files": "*.zst"}, r"no file like corpus\.hub_files=\*\.zst that can be read; it has: data/a/000"),
        ({"text_column": "txt"}, r"no column `txt` \(it has: text, url; set corpus\.text_column=text for another\)"),
    ],
)
def test_what_a_data_set_lacks_is_one_line_that_names_what_it_has(hub: FakeHub, settings: dict, says: str):
    with pytest.raises(DataError, match=says) as caught:
        found(**settings)
    assert "\n" not in str(caught.value)


def answer(kind: Callable[..., Exception], status: int) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co")
    return kind("It says no.\n\nIn many lines.", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("problem", "kind", "says"),
    [
        (
            answer(errors.GatedRepoError, 403),
            DataError,
            "is gated: accept its conditions.*HF_TOKEN.*corpus.path=FOLDER",
        ),
        (answer(errors.RepositoryNotFoundError, 404), DataError, "is not on the hub, or is private"),
        (answer(errors.RevisionNotFoundError, 404), DataError, "no such revision"),
        (httpx.ConnectError("no route"), NetworkError, r"could not be fetched \(no route\).*set corpus\.path=FOLDER"),
        (errors.OfflineModeIsEnabled("offline"), NetworkError, r"by hand.*set corpus\.path=FOLDER"),
        (OSError("disk"), NetworkError, r"\(disk\)"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(hub: FakeHub, problem: Exception, kind: type, says: str):
    hub.problem = problem
    with pytest.raises(kind, match=says) as caught:
        found()
    assert "\n" not in str(caught.value)


def test_an_address_names_a_data_set_its_subset_and_a_revision():
    assert address("a/b") == Address("a/b", None, None)
    assert address("a/b:c-1@main") == Address("a/b", "c-1", "main")
    for wrong in ("fineweb", "a/b:", "a/b/c", ""):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            address(wrong)
