"""A data set of the Hugging Face hub, file by file, at a revision that is written down.

Files are fetched as they are reached and kept in the hub's own cache, so a limit saves the download too. Which files
make up a subset is read from the data set's card; where the card is silent, a subset is a folder.
"""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from ludus.base.errors import ConfigError, DataError, LudusError, NetworkError, nearest
from ludus.corpus.document import Document, Reading
from ludus.corpus.files import documents_of
from ludus.corpus.readers import Way, kind_of
from ludus.corpus.settings import CorpusSettings

_ADDRESS = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w./-]+))?(?:@([\w./-]+))?")
_SHOWN = 12


class Address(NamedTuple):
    """Which data set, which part of it, and at which revision."""

    name: str
    subset: str | None
    revision: str | None


def address(text: str) -> Address:
    """Read `NAME:SUBSET@REVISION`, the last two left out or not. Raises `ConfigError` for anything else."""
    match = _ADDRESS.fullmatch(text)
    if not match:
        raise ConfigError(
            f"corpus.hub is {text!r}; it must be OWNER/NAME, OWNER/NAME:SUBSET or OWNER/NAME:SUBSET@REVISION, "
            "as HuggingFaceFW/fineweb-edu:sample-10BT"
        )
    return Address(*match.groups())


def hub_documents(settings: CorpusSettings, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a data set in the order of its files' names.

    Raises `NetworkError` when the hub cannot be reached, `DataError` when it refuses or lacks what was asked for.
    """
    wanted = address(settings.hub or "")
    about = _about(wanted)
    files = files_of(about, wanted, settings.hub_files)
    way, read = Way(settings.text_column, reading), 0
    try:
        for file in files:
            path = _fetched(wanted, file, about.sha)
            read += 1
            yield from documents_of(
                path, file, settings.source or wanted.name, settings.licence or _licence(about), way
            )
    finally:
        subset = f":{wanted.subset}" if wanted.subset else ""
        reading.notes.append(f"{read} of {len(files)} files of {wanted.name}{subset} at revision {about.sha}")


def files_of(about: Any, wanted: Address, pattern: str) -> list[str]:
    """Return the files of the subset that fit the pattern. Raises `DataError` where there is none."""
    names = sorted(each.rfilename for each in about.siblings or ())
    subsets = _subsets(about)
    chosen = wanted.subset or ("default" if "default" in subsets else next(iter(subsets), None))
    if wanted.subset is None and len(subsets) > 1 and "default" not in subsets:
        raise DataError(f"{wanted.name} has several subsets; name one: {_some(list(subsets), wanted.name)}")
    if chosen in subsets:
        inside = [name for name in names if any(fnmatch(name, part) for part in subsets[chosen])]
    elif chosen is not None:
        inside = [name for name in names if chosen in name.split("/")[:-1]]
        if not inside:
            near = nearest(chosen, subsets)
            hint = f"did you mean {wanted.name}:{near}? " if near else ""
            raise DataError(f"{wanted.name} has no subset {chosen}; {hint}there are: {_some(list(subsets))}")
    else:
        inside = names
    found = [name for name in inside if fnmatch(name, pattern) and kind_of(name)]
    if not found:
        raise DataError(
            f"{wanted.name} has no file like corpus.hub_files={pattern} that can be read; it has: {_some(inside)}"
        )
    return found


def _subsets(about: Any) -> dict[str, list[str]]:
    """Return the patterns of the training files of each subset, as the data set's card gives them."""
    card = about.card_data
    configs = (card.to_dict() if hasattr(card, "to_dict") else card or {}).get("configs") or []
    return {each["config_name"]: _patterns(each.get("data_files")) for each in configs if "config_name" in each}


def _patterns(files: Any) -> list[str]:
    if isinstance(files, str):
        return [files]
    splits = [each for each in files or () if isinstance(each, dict)]
    training = [each for each in splits if each.get("split") == "train"] or splits
    paths: list[Any] = [each.get("path") for each in training] or list(files or ())
    return [path for each in paths for path in (each if isinstance(each, list) else [each])]


def _some(names: Sequence[str], of: str = "") -> str:
    shown = [f"{of}:{name}" if of else name for name in names[:_SHOWN]]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join(shown + more) or "none"


def _licence(about: Any) -> str:
    card = about.card_data
    licence = (card.to_dict() if hasattr(card, "to_dict") else card or {}).get("license") or ""
    return ", ".join(licence) if isinstance(licence, list) else str(licence)


def _about(wanted: Address) -> Any:
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(wanted.name, revision=wanted.revision)
    except Exception as problem:  # of several libraries, by version: refusals of the hub, and of the network below it
        raise refusal(problem, f"data set {wanted.name}", f"datasets/{wanted.name}", "corpus.path=FOLDER") from None


def _fetched(wanted: Address, file: str, revision: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(wanted.name, file, repo_type="dataset", revision=revision))
    except Exception as problem:
        what = f"{file} of data set {wanted.name}"
        raise refusal(problem, what, f"datasets/{wanted.name}", "corpus.path=FOLDER") from None


def refusal(problem: Exception, what: str, page: str, instead: str) -> LudusError:
    """Say in one line why the hub gave nothing, and what to do: `instead` is the setting for a file had by hand."""
    from huggingface_hub import errors

    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    if isinstance(problem, LudusError):
        return problem
    if isinstance(problem, errors.GatedRepoError):
        return DataError(
            f"{what} is gated: accept its conditions at https://huggingface.co/{page}, then log in with "
            f"`hf auth login` or set HF_TOKEN; or download it by hand and set {instead}"
        )
    if isinstance(problem, errors.RepositoryNotFoundError):
        return DataError(f"{what} is not on the hub, or is private: look for its name at https://huggingface.co/{page}")
    if isinstance(problem, errors.RevisionNotFoundError):
        return DataError(
            f"{what} has no such revision; leave out what stands after @, or see its page for those it has"
        )
    return NetworkError(
        f"{what} could not be fetched ({reason.rstrip('.')}); download it by hand from https://huggingface.co/{page} "
        f"and set {instead}"
    )
