"""The tokenizer: text or bytes to token ids and back.

A thin wrapper around a Hugging Face `tokenizer.json`, whatever format the vocabulary came in. Its one idea: encoding
runs on a copy of the vocabulary that has no special tokens at all, so no text, whatever it says, can become one; only
the chat template may, through `encode_template`. Loading adds no token; `with_template` does, and says which.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers

from ludus.base.errors import DataError
from ludus.base.files import atomic_write, sha256_text, write_json
from ludus.text import vocabularies
from ludus.text.alphabet import ESCAPE, escapes_spaces, special_tokens, token_table, vocabulary, writes_all_bytes
from ludus.text.encoder import Encoder
from ludus.text.ranks import FLAGS
from ludus.text.roles import Roles, configuration_of, roles_of
from ludus.text.template import BOS, END, PAD, TEMPLATE

_INVALID = re.compile("([\udc80-\udcff]+)")
_INVALID_OR_ESCAPE = re.compile(f"([\udc80-\udcff{ESCAPE}]+)")
_BRACKETED = re.compile(r"<.+>|\[.+\]")
# What of another tokenizer's configuration is not ours to pass on: classes and code, and what is written anew.
_LEFT_OUT = (
    "auto_map",
    "tokenizer_class",
    "tokenizer_file",
    "vocab_file",
    "name_or_path",
    "backend",
    "is_local",
    "ludus",
)


class Tokenizer:
    """A vocabulary with special tokens and, mostly, a chat template.

    Attributes: `hash` is the sha256 of `tokenizer.json`; `vocabulary_size` counts ids, special and unused ones
    included; `template` is Jinja source, None where there is none; `special_ids` are the tokens no text becomes;
    `added` names the tokens that `with_template` added, and `ancestors` are the hashes of what they were added to;
    `lossless` tells whether decoding gives back every text and all bytes.
    """

    def __init__(
        self,
        definition: str,
        *,
        name: str = "",
        bos: str = BOS,
        pad: str = PAD,
        end: str = END,
        template: str | None = TEMPLATE,
        roles: Roles | None = None,
    ) -> None:
        self.definition = definition
        content = json.loads(definition)
        roles = roles or Roles({"bos_token": bos, "eos_token": end, "pad_token": pad}, template=template, closes=end)
        self._roles, self.template = roles, roles.template
        _mark(content, roles)
        self._table = token_table(content)
        self.special_ids: dict[str, int] = special_tokens(content)
        self._ids = vocabulary(content) | {token["content"]: token["id"] for token in content["added_tokens"]}
        self.hash = sha256_text(definition)
        self.name = name or f"tokenizer-{self.hash[:8]}"
        self.added: tuple[str, ...] = ()
        self.ancestors: tuple[str, ...] = ()
        self._encoder = Encoder(content)
        complete = writes_all_bytes(self._table)
        self.lossless = complete and self._encoder.keeps_text
        self._apart = _INVALID_OR_ESCAPE if escapes_spaces(content) and self.lossless else _INVALID
        self._byte_ids = {entry[0]: index for index, entry in reversed(list(enumerate(self._table))) if len(entry) == 1}
        self._writes_bytes = complete
        self.vocabulary_size = len(self._table)
        self._dtype = np.uint16 if self.vocabulary_size <= 2**16 else np.uint32
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special_pattern = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        )

    @property
    def end_token(self) -> str:
        """Return the token that closes a turn and stops generation. Raises `DataError` if the vocabulary has none."""
        if self._roles.end is None:
            raise DataError(f"{self.name} names no token that ends a text; give eos_token in tokenizer_config.json")
        return self._roles.end

    @property
    def bos_token(self) -> str:
        """Return the token that begins a text: the one that ends it, where there is no other."""
        return self._roles.token("bos_token") or self._roles.token("eos_token") or self.end_token

    @property
    def pad_token(self) -> str:
        """Return the token that fills rows up: the one that ends a text, where there is no other."""
        return self._roles.token("pad_token") or self._roles.token("eos_token") or self.end_token

    @property
    def end(self) -> int:
        """Return the id of `end_token`."""
        return self._id(self.end_token)

    @property
    def bos(self) -> int:
        """Return the id of `bos_token`."""
        return self._id(self.bos_token)

    @property
    def pad(self) -> int:
        """Return the id of `pad_token`."""
        return self._id(self.pad_token)

    @property
    def ends(self) -> tuple[int, ...]:
        """Return the ids at which generation stops, `end` first: chat models have several."""
        return tuple(self._id(token) for token in self._roles.ends)

    def _id(self, token: str) -> int:
        if token not in self._ids:
            raise DataError(f"{self.name} has no token {token}; add it by `with_template`, or name another")
        return self._ids[token]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer from its folder, with the template and the special tokens named there, or from a file alone.

        Formats: `tokenizer.json`; SentencePiece's or Llama 3's `tokenizer.model`; `*.tiktoken`; `vocab.json` with
        `merges.txt` (`encoder.json` with `vocab.bpe`); llama2.c's `tok*.bin`, also by the model file it lies beside.
        No token is ever added: without a chat template, `template` is None. Raises `DataError`.
        """
        path = Path(path).expanduser()
        file = vocabularies.file_of(path)
        try:
            configuration = configuration_of(path) if path.is_dir() else {}
            definition, named = vocabularies.definition_of(file, configuration)
            content = json.loads(definition)
            roles = roles_of(configuration, special_tokens(content), vocabulary(content), named)
            loaded = cls(definition, name=path.name if path.is_dir() else path.parent.name, roles=roles)
        except FileNotFoundError as error:
            raise DataError(f"no tokenizer at {error.filename or file}; give {vocabularies.EXPECTED}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{file} is not a tokenizer that can be read: {reason}") from None
        loaded.ancestors = tuple((configuration.get("ludus") or {}).get("extends", ()))
        return loaded

    def with_template(
        self,
        template: str,
        *,
        tokens: Sequence[str] = (),
        end: str | None = None,
        bos: str | None = None,
        pad: str | None = None,
    ) -> "Tokenizer":
        """Return a tokenizer with this chat template, and with those special tokens added that it lacks.

        `added` names them; a model must grow by them before it can be trained. What ended a text still stops
        generation, after `end`.
        """
        wanted = dict.fromkeys([*tokens, *(token for token in (bos, end, pad) if token)])
        missing = [token for token in wanted if token not in self.special_ids]
        definition = _with_specials(self.definition, missing) if missing else self.definition
        given = {"bos_token": bos, "eos_token": end, "pad_token": pad}
        named = self._roles.named | {name: token for name, token in given.items() if token}
        roles = replace(self._roles, named=named, stops=self._roles.ends, template=template, closes=end)
        dressed = Tokenizer(definition, name=self.name, roles=roles)
        moved = [token for token, index in self._ids.items() if dressed._ids.get(token) != index]
        if moved:
            raise DataError(f"tokens cannot be added to {self.name}: it leaves ids out, and {moved[0]!r} would move")
        dressed.added = tuple(token for token in missing if token not in self._ids)
        changed = (self.hash,) if dressed.hash != self.hash else ()
        dressed.ancestors = (*self.ancestors, *changed)
        return dressed

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the chat template, as transformers reads them.

        The template stands in a file of its own, where transformers 5 looks for it, and in the configuration for older
        readers. What another tokenizer's configuration said is kept, but for its class.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "tokenizer.json", self.definition)
        kept = {key: value for key, value in self._roles.configuration.items() if key not in _LEFT_OUT}
        configuration: dict[str, Any] = {
            **kept,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self._roles.named,
            "clean_up_tokenization_spaces": kept.get("clean_up_tokenization_spaces", False),
        }
        if self.template is not None:
            atomic_write(folder / "chat_template.jinja", self.template)
            configuration["chat_template"] = self.template
        own = {"extends": list(self.ancestors), "ends": list(self._roles.ends[1:])}
        if any(own.values()):
            configuration["ludus"] = own
        write_json(folder / "tokenizer_config.json", configuration)

    def encode(self, text: str | bytes, *, beginning: bool = True) -> list[int]:
        """Return the ids of text, or of any bytes, valid UTF-8 or not. Never yields a special token.

        SentencePiece's space is put before a `beginning` alone. A `▁` in the text, which SentencePiece takes for a
        space, is written in bytes where the vocabulary has them.
        """
        if isinstance(text, str):
            if self._apart is _INVALID or ESCAPE not in text:
                try:
                    return self._encoder.encode(text, beginning=beginning)
                except TypeError:  # a lone surrogate, which UTF-8 cannot hold
                    pass
            text = text.encode("utf-8", "surrogatepass")
        if not self._writes_bytes:
            return self._encoder.encode(text.decode("utf-8", "replace"), beginning=beginning)
        pieces = self._apart.split(text.decode("utf-8", "surrogateescape"))
        ids: list[int] = []
        if beginning and text and not pieces[0]:
            ids += self._encoder.opening
        for index, piece in enumerate(pieces):
            if index % 2:
                ids += (self._byte_ids[byte] for byte in piece.encode("utf-8", "surrogateescape"))
            elif piece:
                ids += self._encoder.encode(piece, beginning=beginning and index == 0)
        return ids

    def encode_batch(self, texts: Iterable[str | bytes], *, beginning: bool = True) -> list[np.ndarray]:
        """Encode many texts as `encode` does, on all cores; arrays of uint16, or of uint32 where ids need it."""
        texts = list(texts)
        if self._encoder.characters is not None:
            return [self._by_character(text) for text in texts]
        try:
            if self._apart is not _INVALID and any(ESCAPE in text for text in texts):  # type: ignore[operator]
                raise TypeError("some are written in bytes")
            rows: Iterable[Sequence[int]] = self._encoder.batch(texts, beginning=beginning)  # type: ignore[arg-type]
        except TypeError:  # bytes or lone surrogates among them
            rows = (self.encode(text, beginning=beginning) for text in texts)
        return [np.array(row, self._dtype) for row in rows]

    def _by_character(self, text: str | bytes) -> np.ndarray:
        """Encode by looking up every character at once; a text with others goes the long way."""
        characters = self._encoder.characters
        assert characters is not None
        if isinstance(text, str) and text.isascii():
            ids = characters[np.frombuffer(text.encode(), np.uint8)]
        else:
            try:
                places = np.frombuffer(text.encode("utf-32-le"), np.uint32)  # type: ignore[union-attr]
            except (AttributeError, UnicodeEncodeError):  # bytes, or a lone surrogate
                return np.array(self.encode(text), self._dtype)
            ids = characters[np.minimum(places, len(characters) - 1)]
        return np.array(self.encode(text), self._dtype) if (ids < 0).any() else ids.astype(self._dtype)

    def encode_template(self, text: str, *, beginning: bool = False) -> list[int]:
        """Encode the words of a chat template, in which special tokens do count. Never give it a user's text.

        Words after a special token are a beginning where the vocabulary says so, as in SentencePiece's; words at the
        start only if `beginning`.
        """
        if self._special_pattern is None:
            return self.encode(text, beginning=beginning)
        ids: list[int] = []
        for index, piece in enumerate(self._special_pattern.split(text)):
            begins = self._encoder.again if index else beginning
            ids += [self.special_ids[piece]] if index % 2 else self.encode(piece, beginning=begins)
        return ids

    def decode(self, ids: Iterable[int], *, beginning: bool = True) -> str:
        """Return the text of ids; special tokens are left out, bytes that are no UTF-8 become U+FFFD.

        `beginning` says that the ids begin a text, whose first space SentencePiece put there: it is left out. Pass
        False for ids that go on after others.
        """
        return self.decode_bytes(ids, beginning=beginning).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, beginning: bool = True) -> bytes:
        """Return the exact bytes of ids, as `decode` does their text."""
        wanted = [int(index) for index in ids]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self._table):
            raise DataError(
                f"token ids go from {min(wanted)} to {max(wanted)}; this vocabulary has 0..{len(self._table) - 1}"
            )
        found = b"".join([self._table[index] for index in wanted])
        return found.removeprefix(b" ") if beginning and self._encoder.prefix else found

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token as they stand, its space included: for text that is decoded as it is drawn.

        Nothing for a special token, or an id that only pads the model's vocabulary. Of a text that follows the
        beginning token alone, the first piece's space is SentencePiece's, to be left out.
        """
        return self._table[token] if token < len(self._table) else b""

    def token_bytes(self) -> np.ndarray:
        """Return the number of bytes each token stands for, by id; 0 for special tokens."""
        return np.array([len(entry) for entry in self._table], np.int64)


def _mark(content: dict[str, Any], roles: Roles) -> None:
    """Call those words special that a configuration names as such, though `tokenizer.json` does not."""
    words, there = vocabulary(content), {token["content"] for token in content["added_tokens"]}
    for token in dict.fromkeys([*roles.named.values(), *roles.derived.values(), *roles.stops]):
        if token in words and token not in there and _BRACKETED.fullmatch(token):
            content["added_tokens"].append({"id": words[token], "content": token} | FLAGS)


def _with_specials(definition: str, missing: Sequence[str]) -> str:
    try:
        full = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the rust side raises bare Exception
        raise ValueError(str(error)) from None
    full.add_special_tokens(list(missing))
    return full.to_str(pretty=True)
