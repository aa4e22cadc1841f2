"""How much text there is, in bytes and tokens, before any of it has been read for training.

What lives here: counting what is on disk, and estimating the rest from it. What does not: reading documents. The one
idea: every figure comes with how it was found, since an estimate must not pass for a count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ludus.base.files import read_json
from ludus.corpus.download import cache_folder
from ludus.model.settings import named_size
from ludus.planning.devices import between

# Bytes of English text in a token of a BPE vocabulary of that size; code has about a fifth less. Approximate.
BYTES_PER_TOKEN = ((262, 1.0), (512, 1.7), (1024, 2.2), (4096, 3.1), (16384, 3.9), (50257, 4.4), (131072, 4.7))
COMPRESSED = {".parquet": 2.2, ".gz": 3.0, ".zst": 3.2}  # bytes of text in a byte of such a file, about
KINDS = (".txt", ".md", ".jsonl", ".parquet", ".gz", ".zst")
OWN_DOCUMENTATION_BYTES = 9_000_000  # of a Python 3.11 with its library's source
SPECIALS_AND_BYTES = 262  # tokens that every vocabulary has before it learns any
ENGLISH_CHARACTERS = 65  # distinct ones in a plain English text
READ_BYTES = 4_000_000


@dataclass(frozen=True)
class Text:
    """What is known of a recipe's text: its vocabulary, its tokens, and where both figures are from.

    `tokens` is None where nothing tells; `held_out` are the validation's. `examples` are conversations.
    """

    vocabulary: int
    vocabulary_origin: str
    tokens: int | None
    tokens_origin: str
    num_bytes: int | None = None
    held_out: int | None = None
    packed: bool = True
    examples: int | None = None

    def validation_rows(self, context: int) -> int:
        """Return about how many rows the validation text fills."""
        return 1 << 30 if self.held_out is None else max(1, -(-self.held_out // (context + 1)))


def of_recipe(recipe: Any, folder: Path, num_bytes: int | None = None) -> Text:
    """Find out what can be known of a recipe's text: from what `folder` holds already, else from its source.

    `num_bytes` stands for text that is not here yet.
    """
    built = _built(folder)
    vocabulary, origin = _vocabulary(recipe, folder)
    if built and num_bytes is None:
        return Text(vocabulary, origin, built["tokens"], "counted", built["bytes"], built["held_out"], built["packed"])
    found, where, packed = (num_bytes, "as given", True) if num_bytes else _source(recipe)
    if found is None:
        return Text(vocabulary, origin, None, where, packed=packed)
    ratio = 1.0 if recipe.tokenizer.kind == "character" else bytes_per_token(vocabulary)
    tokens = round(found / ratio)
    held_out = round(tokens * recipe.corpus.validation_fraction)
    said = f"estimated from {found / 1e6:,.1f} MB ({where}) at {ratio:.2g} bytes a token"
    return Text(vocabulary, origin, tokens - held_out, said, found, held_out, packed)


def bytes_per_token(vocabulary: int) -> float:
    """Estimate the bytes of English text that a token of a BPE vocabulary stands for, between 1 and about 5."""
    return between(BYTES_PER_TOKEN, vocabulary)


def _built(folder: Path) -> dict[str, Any] | None:
    """Return what the token shards of a run say, if they are there."""
    tokens = folder / "tokenizer" / "tokens"
    parts = {name: tokens / name / "tokens.json" for name in ("train", "validation")}
    if not all(file.is_file() for file in parts.values()):
        return None
    train, validation = (read_json(file) for file in parts.values())
    mean = train["tokens"] / max(1, train.get("documents", 1))
    return {
        "tokens": train["tokens"],
        "bytes": train["bytes"],
        "held_out": validation["tokens"],
        "packed": mean < 100_000,  # a few long documents are cut into rows of their own
    }


def _vocabulary(recipe: Any, folder: Path) -> tuple[int, str]:
    settings = recipe.tokenizer
    for place in (folder / "tokenizer" / "tokenizer", settings.path and Path(settings.path).expanduser()):
        if place and place.exists():
            from ludus.text.tokenizer import Tokenizer
            from ludus.text.train import with_own_template

            return with_own_template(Tokenizer.load(place)).vocabulary_size, f"of {place}"
    published = named_size(recipe.model.family, recipe.model.size)
    if settings.path and published and published.vocabulary:  # of the hub, and not on this machine yet
        return published.vocabulary, f"as model.size={recipe.model.size} was published with"
    if settings.kind == "bpe":
        return settings.vocabulary, "tokenizer.vocabulary"
    characters = _characters(_corpus_path(recipe))
    if characters:
        return SPECIALS_AND_BYTES + characters, f"{characters} characters in the text, and one for each byte"
    return SPECIALS_AND_BYTES + ENGLISH_CHARACTERS, "as for plain English characters, and one for each byte"


def _corpus_path(recipe: Any) -> Path | None:
    """Return where the text lies, or would lie once it is downloaded."""
    path = recipe.corpus.path or getattr(recipe.data, "path", None)
    if isinstance(path, str):
        return Path(path).expanduser()
    if recipe.corpus.url:
        import hashlib

        folder = cache_folder() / "downloads" / hashlib.sha256(recipe.corpus.url.encode()).hexdigest()[:16]
        return next((file for file in folder.glob("*") if file.is_file()), None) if folder.is_dir() else None
    return None


def _source(recipe: Any) -> tuple[int | None, str, bool]:
    """Return the bytes of text at a recipe's source, how they were found, and whether it is many documents."""
    path = _corpus_path(recipe)
    if path is not None and path.exists():
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        return *size_of(files), not (path.is_file() and path.suffix in (".txt", ".md"))
    if path is not None:
        return None, f"{path} is not here", True
    if recipe.corpus.url:
        return None, f"not downloaded yet: {recipe.corpus.url}", not recipe.corpus.url.endswith((".txt", ".md"))
    named = [name for name in ("hub", "path", "mixture") if getattr(recipe.data, name, None)]
    if named:
        return None, f"data.{named[0]} is not on this machine", True
    return OWN_DOCUMENTATION_BYTES, "the documentation of this Python, about", True


def size_of(files: Iterable[Path]) -> tuple[int, str]:
    """Return about how many bytes of text files hold, and from what that was told."""
    sizes = {file: file.stat().st_size for file in files if file.suffix.lower() in KINDS}
    total = sum(size * COMPRESSED.get(file.suffix.lower(), 1.0) for file, size in sizes.items())
    squeezed = any(file.suffix.lower() in COMPRESSED for file in sizes)
    return round(total), f"{len(sizes)} files" + (", some compressed" if squeezed else "")


def _characters(path: Path | None) -> int:
    """Count the distinct characters at the beginning of a text; 0 where there is none to read."""
    if path is None or not path.exists():
        return 0
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md"))
    found: set[str] = set()
    left = READ_BYTES
    for file in files:
        if left <= 0 or file.suffix not in (".txt", ".md"):
            break
        with file.open("rb") as opened:
            content = opened.read(left)
        left -= len(content)
        found.update(content.decode("utf-8", "ignore"))
    return len(found)
