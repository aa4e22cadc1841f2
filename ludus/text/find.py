"""Where a tokenizer that was named lies: a file, a folder, or a repository of the Hugging Face hub."""

import re
from contextlib import suppress
from pathlib import Path

from ludus.corpus.hub import refusal

_KNOWN = {"gpt2": "openai-community/gpt2"}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_BESIDE = ("tokenizer_config.json", "chat_template.jinja")


def repository(named: str) -> str | None:
    """Return the hub's repository that a name stands for; None for what is, or looks like, a path."""
    path = Path(named).expanduser()
    if path.exists():
        return None
    if named in _KNOWN:
        return _KNOWN[named]
    looks_like_path = path.suffix in (".json", ".tiktoken") or (path.parent != Path() and path.parent.is_dir())
    return named if _REPOSITORY.fullmatch(named) and not looks_like_path else None


def find(named: str) -> Path:
    """Return the file or folder of a tokenizer, fetching it where the name is one of the hub.

    Raises `NetworkError` when the hub cannot be reached, `DataError` when it refuses or lacks it.
    """
    name = repository(named)
    if name is None:
        return Path(named).expanduser()
    import huggingface_hub
    from huggingface_hub import errors

    try:
        file = Path(huggingface_hub.hf_hub_download(name, "tokenizer.json"))
        for other in _BESIDE:
            with suppress(errors.EntryNotFoundError):  # not every repository has them
                huggingface_hub.hf_hub_download(name, other)
    except Exception as problem:  # of several libraries, by version
        raise refusal(problem, f"the tokenizer of {name}", name, "tokenizer.path=FILE") from None
    return file.parent
