"""The tokenizer: text or bytes to token ids and back, without loss.

A thin wrapper around a Hugging Face `tokenizer.json`. Its one idea: encoding runs on a copy of the vocabulary that has
no special tokens at all, so no text, whatever it says, can become one; only the chat template may, through
`encode_template`. Training a vocabulary lives in `train.py`, rendering conversations in `chat.py`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers

from ludus.base.errors import DataError
from ludus.base.files import atomic_write, sha256_text, write_json
from ludus.text import ranks
from ludus.text.alphabet import token_table
from ludus.text.template import BOS, END, ENDOFTEXT, ENDOFTEXT_TEMPLATE, NEEDED, PAD, TEMPLATE

_INVALID = re.compile("([\udc80-\udcff]+)")


class Tokenizer:
    """A lossless vocabulary with special tokens and a chat template.

    Attributes: `bos`, `pad` and `end` are token ids (`end` closes a turn and stops generation); `hash` is the sha256 of
    `tokenizer.json`; `vocabulary_size` counts ids, special and unused ones included; `template` is Jinja source.
    """

    def __init__(
        self,
        definition: str,
        *,
        name: str = "",
        bos: str = BOS,
        pad: str = PAD,
        end: str = END,
        template: str = TEMPLATE,
    ) -> None:
        wanted = [*NEEDED.get(template, ()), bos, pad, end]
        self.definition = _with_specials(definition, wanted)
        content = json.loads(self.definition)
        self.special_ids: dict[str, int] = {token["content"]: token["id"] for token in content["added_tokens"]}
        self.bos_token, self.pad_token, self.end_token = bos, pad, end
        self.bos, self.pad, self.end = (self.special_ids[token] for token in (bos, pad, end))
        self.template = template
        self.hash = sha256_text(self.definition)
        self.name = name or f"tokenizer-{self.hash[:8]}"
        self._table = token_table(content)
        self._byte_ids = {entry[0]: index for index, entry in reversed(list(enumerate(self._table))) if len(entry) == 1}
        self.vocabulary_size = len(self._table)
        self._dtype = np.uint16 if self.vocabulary_size <= 2**16 else np.uint32
        self._plain = _without_specials(content)
        self._characters = _characters(content)
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a folder with `tokenizer.json` (and its configuration and template, if there), or such a file alone.

        GPT-2's rank file (`*.tiktoken`) is read too. Where there is no template ours is used, and its tokens; a
        vocabulary that has `<|endoftext|>` begins and ends documents and turns with that.
        """
        path = Path(path).expanduser()
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            ranked = file.suffix == ".tiktoken"
            definition = ranks.definition(ranks.read_ranks(file)) if ranked else file.read_text(encoding="utf-8")
            configuration = (_configuration(path) if path.is_dir() else {}) or _endoftext(definition)
            return cls(definition, name=path.name if path.is_dir() else path.parent.name, **configuration)
        except FileNotFoundError:
            raise DataError(f"no tokenizer at {file}; give a tokenizer.json or a folder that holds one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{file} is not a tokenizer.json that can be read: {reason}") from None

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, as transformers reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "tokenizer.json", self.definition)
        atomic_write(folder / "chat_template.jinja", self.template)
        configuration = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.end_token,
            "pad_token": self.pad_token,
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", configuration)

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of text, or of any bytes, valid UTF-8 or not. Never yields a special token."""
        if isinstance(text, str):
            try:
                return self._plain.encode(text, add_special_tokens=False).ids
            except TypeError:  # a lone surrogate, which UTF-8 cannot hold
                text = text.encode("utf-8", "surrogatepass")
        pieces = _INVALID.split(text.decode("utf-8", "surrogateescape"))
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                ids += (self._byte_ids[byte] for byte in piece.encode("utf-8", "surrogateescape"))
            elif piece:
                ids += self._plain.encode(piece, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[np.ndarray]:
        """Encode many texts on all cores; arrays of uint16, or of uint32 when the vocabulary needs it."""
        texts = list(texts)
        if self._characters is not None:
            return [self._by_character(text) for text in texts]
        try:
            encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
            rows: Iterable[Sequence[int]] = (encoding.ids for encoding in encodings)
        except TypeError:  # bytes or lone surrogates among them
            rows = map(self.encode, texts)
        return [np.array(row, self._dtype) for row in rows]

    def _by_character(self, text: str | bytes) -> np.ndarray:
        """Encode by looking up every character at once; a text with others goes the long way."""
        assert self._characters is not None
        if isinstance(text, str) and text.isascii():
            ids = self._characters[np.frombuffer(text.encode(), np.uint8)]
        else:
            try:
                places = np.frombuffer(text.encode("utf-32-le"), np.uint32)  # type: ignore[union-attr]
            except (AttributeError, UnicodeEncodeError):  # bytes, or a lone surrogate
                return np.array(self.encode(text), self._dtype)
            ids = self._characters[np.minimum(places, len(self._characters) - 1)]
        return np.array(self.encode(text), self._dtype) if (ids < 0).any() else ids.astype(self._dtype)

    def encode_template(self, text: str) -> list[int]:
        """Encode the words of a chat template, in which special tokens do count. Never give it a user's text."""
        ids: list[int] = []
        for index, piece in enumerate(self._special_pattern.split(text)):
            ids += [self.special_ids[piece]] if index % 2 else self.encode(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes of ids; special tokens are left out."""
        wanted = [int(index) for index in ids]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self._table):
            raise DataError(
                f"token ids go from {min(wanted)} to {max(wanted)}; this vocabulary has 0..{len(self._table) - 1}"
            )
        return b"".join([self._table[index] for index in wanted])

    def token_bytes(self) -> np.ndarray:
        """Return the number of bytes each token stands for, by id; 0 for special tokens."""
        return np.array([len(entry) for entry in self._table], np.int64)


def _endoftext(definition: str) -> dict[str, str]:
    """Return what a vocabulary with one token for beginnings and ends goes with; nothing for any other."""
    content = json.loads(definition)
    present = {token["content"] for token in content["added_tokens"]}
    if ENDOFTEXT not in present or present & {BOS, END}:
        return {}
    return {"bos": ENDOFTEXT, "end": ENDOFTEXT, "template": ENDOFTEXT_TEMPLATE}


def _with_specials(definition: str, wanted: Sequence[str]) -> str:
    present = {token["content"] for token in json.loads(definition)["added_tokens"]}
    if present.issuperset(wanted):
        return definition
    try:
        full = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the rust side raises bare Exception
        raise ValueError(str(error)) from None
    full.add_special_tokens([token for token in wanted if token not in present])
    return full.to_str(pretty=True)


def _without_specials(content: dict[str, Any]) -> tokenizers.Tokenizer:
    """Build the encoder: no added tokens in it, nothing cut, nothing padded."""
    added = {token["content"] for token in content["added_tokens"]}
    model = content["model"]
    words = {token: index for token, index in model["vocab"].items() if token not in added}
    plain = content | {
        "model": model | {"vocab": words},
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the rust side raises bare Exception
        raise ValueError(str(error)) from None


def _characters(content: dict[str, Any]) -> np.ndarray | None:
    """Return token ids by character, -1 for those without one, for a vocabulary that has nothing else."""
    model = content["model"]
    if model.get("merges") or not model.get("byte_fallback") or model.get("ignore_merges") or content["pre_tokenizer"]:
        return None
    added = {token["content"] for token in content["added_tokens"]}
    ids = {ord(token): index for token, index in model["vocab"].items() if len(token) == 1 and token not in added}
    table = np.full(max(256, max(ids, default=0) + 2), -1, np.int64)  # the last place is for all characters beyond
    table[list(ids)] = list(ids.values())
    return table


def _configuration(folder: Path) -> dict[str, str]:
    """Read a folder's template and the special tokens it goes with; without a template ours is used, and its tokens."""
    file, jinja = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    template = jinja.read_text(encoding="utf-8") if jinja.exists() else content.get("chat_template")
    if not isinstance(template, str):
        return {}
    found = {"template": template}
    for ours, theirs in (("bos", "bos_token"), ("pad", "pad_token"), ("end", "eos_token")):
        token = content.get(theirs)
        if token:
            found[ours] = token["content"] if isinstance(token, dict) else token
    return found
