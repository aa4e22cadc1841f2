"""A model by its path or by its name on the Hugging Face hub, pinned to the commit it was fetched at.

What is on disk wins. Of a name on the hub only what ludus reads is fetched: the configuration, the tokenizer, and
weights as safetensors, or as pickles where there is nothing else. The hub keeps them in its own cache, where they are
found without a network, too.
"""

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from ludus.base.errors import CheckpointError, LudusError, NetworkError, RunError, nearest
from ludus.base.files import read_json
from ludus.runs.folder import find_model

NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
ADAPTER = "adapter_config.json"
DESCRIPTION = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"),
    *("tokenizer.model", "*.tiktoken", ADAPTER, "adapter_model.safetensors"),
]
SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")


class Found(NamedTuple):
    """Where a model lies, the name it was asked for by, and the commit of the hub; None for one on disk."""

    folder: Path
    name: str
    revision: str | None = None


def find(name: str | Path, *, revision: str | None = None) -> Found:
    """Return the model of a path (a folder, a run, a file of llama2.c's, an adapter) or of `OWNER/NAME[@REVISION]`.

    Raises:
        RunError: there is nothing at a path.
        CheckpointError: the hub refuses the name or the revision, or has no model under it.
        NetworkError: the hub cannot be reached, and the model is not in its cache.
    """
    path = Path(name).expanduser()
    if path.exists():
        return Found(path if (path / ADAPTER).is_file() else find_model(path), str(name))
    match = NAME.fullmatch(str(name))
    if not match:
        raise _no_such_path(path)
    wanted, revision = match[1], match[2] or revision
    cached = _cached(wanted, revision) if revision and COMMIT.fullmatch(revision) else None
    folder, commit = (cached, revision) if cached else _fetched(wanted, revision)
    return Found(folder, wanted, commit)


def origin(path: Path | str) -> str | None:
    """Return `OWNER/NAME@COMMIT` of what lies in the hub's cache; None for what lies elsewhere."""
    found = IN_CACHE.search(Path(path).as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else None


def wanted_files(names: list[str]) -> list[str]:
    """Choose what to fetch out of the files of a repository: pickles only where there are no safetensors."""
    top = [name for name in names if "/" not in name]

    def of(patterns: list[str]) -> list[str]:
        return [name for name in top if any(fnmatch(name, pattern) for pattern in patterns)]

    return of(DESCRIPTION) + (of(SAFETENSORS) or of(PICKLES))


def _fetched(name: str, revision: str | None) -> tuple[Path, str]:
    import huggingface_hub

    def description() -> Any:
        return huggingface_hub.HfApi().model_info(name, revision=revision)

    try:
        about = _asking(name, revision, description)
    except NetworkError:
        if (cached := _cached(name, revision)) is not None:
            return cached, cached.name
        raise
    files = wanted_files(sorted(each.rfilename for each in about.siblings or ()))
    if not {"config.json", ADAPTER} & set(files):
        raise CheckpointError(f"{name} on the hub holds no model that ludus reads: it has no config.json; name another")

    def download() -> str:
        exactly = [re.sub(r"([*?[])", r"[\1]", file) for file in files]
        return huggingface_hub.snapshot_download(name, revision=about.sha, allow_patterns=exactly)

    return Path(_asking(name, revision, download)), about.sha


def _cached(name: str, revision: str | None) -> Path | None:
    """Return what the hub's cache holds of a model, where none of it is missing."""
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # of several libraries, by version; whatever it is, there is nothing to use
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Tell whether a fetch got to its end: a description, and every file of weights."""
    if (folder / ADAPTER).is_file():
        return (folder / "adapter_model.safetensors").is_file()
    if not (folder / "config.json").is_file():
        return False
    for whole, index in (SAFETENSORS[:2], PICKLES[:2]):
        if (folder / whole).is_file():
            return True
        if (folder / index).is_file():
            shards = read_json(folder / index, CheckpointError)["weight_map"].values()
            return all((folder / shard).is_file() for shard in shards)
    return False


def _asking(name: str, revision: str | None, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as problem:  # of several libraries, by version: refusals of the hub, and of the network below it
        raise _refusal(problem, name, revision) from None


def _refusal(problem: Exception, name: str, revision: str | None) -> LudusError:
    """Say in one line why the hub gave nothing, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{name}"
    if isinstance(problem, errors.GatedRepoError):
        return CheckpointError(
            f"{name} is gated: accept its licence at {page}, then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return CheckpointError(f"{name} has no revision {revision}; {page}/commits/main shows those it has")
    if isinstance(problem, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{name} is neither a path here nor a model on the hub that you may read{_near(Path(name))}; look for its "
            f"name at {page}, or, if it is private, log in with `hf auth login`"
        )
    by_hand = f"fetch it where there is a network with `hf download {name} --local-dir FOLDER` and give that folder"
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return NetworkError(
            f"{name} is neither a path here{_near(Path(name))} nor in the hub's cache, and HF_HUB_OFFLINE keeps from "
            f"looking further; unset it, or {by_hand}"
        )
    reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__).rstrip(".")
    return NetworkError(f"{name} is no path here{_near(Path(name))} and could not be fetched ({reason}); {by_hand}")


def _near(path: Path) -> str:
    """Return a hint at what lies beside a path that is not there and is named almost like it."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    return f" (did you mean {path.parent / near}?)" if near else ""


def _no_such_path(path: Path) -> LudusError:
    hub = "" if "/" in str(path) else "; a name on the hub is OWNER/NAME, as openai-community/gpt2"
    return RunError(f"{path} does not exist{_near(path)}{hub}")
