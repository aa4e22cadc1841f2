"""What a tokenizer's special tokens are for: which begins a text, which end it, which closes a turn.

A folder says so in up to four files, which are all read; where none does, the names of well-known tokens do. The one
that closes a turn is what the chat template puts after an answer, whatever else may end a text.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.text.template import BOS, END, ENDOFTEXT, ENDOFTEXT_TEMPLATE, NEEDED, PAD, TEMPLATE, render_text

NAMES = ("bos_token", "eos_token", "pad_token")
# Tokens that begin and end a text, by their names, the most telling first.
_PAIRS = (
    (BOS, END),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|startoftext|>", ENDOFTEXT),
    (ENDOFTEXT, ENDOFTEXT),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("", "</s>"),
    ("", "<|end_of_text|>"),
)
_ANSWER = "\ue000answer\ue001"


@dataclass(frozen=True)
class Roles:
    """The special tokens by what they are for, the chat template, and the configuration they were read from.

    `named` holds `bos_token`, `eos_token` and `pad_token` as they were given, `stops` what else ends a text, and
    `specials` the tokens that may close a turn; `closes` is the one that does, where that is known already.
    """

    named: dict[str, str] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    template: str | None = None
    specials: tuple[str, ...] = ()
    closes: str | None = None
    configuration: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def end(self) -> str | None:
        """Return the token that closes a turn, else the one that ends a text. Renders the template, once."""
        closing = self.closes or (_closing(self.template, self.specials, self.named) if self.template else None)
        return closing or self.named.get("eos_token")

    @property
    def ends(self) -> tuple[str, ...]:
        """Return all tokens that end a text, `end` first."""
        every = (self.end, self.named.get("eos_token"), *self.stops)
        return tuple(dict.fromkeys(token for token in every if token))


def configuration_of(folder: Path) -> dict[str, Any]:
    """Read what lies beside a tokenizer: its configuration, its template, and the ids that a model stops at."""
    found = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    found["added_tokens"] = _json(folder / "added_tokens.json")
    found["ids"] = _json(folder / "config.json") | _json(folder / "generation_config.json")
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        found["chat_template"] = jinja.read_text(encoding="utf-8")
    return found


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON that can be read: {error}") from None
    return {key: value for key, value in content.items() if value is not None} if isinstance(content, dict) else {}


def roles_of(
    configuration: Mapping[str, Any], specials: Mapping[str, int], words: Mapping[str, int], format_: Mapping[str, str]
) -> Roles:
    """Decide what tokens are for. `specials` and `words` are the vocabulary's, `format_` what its format names."""
    everything = dict(words) | dict(specials)
    by_id = {index: token for token, index in everything.items()}
    ids = configuration.get("ids") or {}
    named = {name: token for name in NAMES if (token := _text(configuration.get(name))) in everything}
    stops = [by_id[index] for index in _listed(ids.get("eos_token_id")) if index in by_id]
    for name in NAMES:
        given = [by_id[index] for index in _listed(ids.get(f"{name}_id")) if index in by_id]
        fallback = format_.get(name) or (given[0] if given else _well_known(name, specials))
        if name not in named and fallback:
            named[name] = fallback
    template = _template(configuration) or _own_template(configuration, specials)
    closing = (*specials, *(token for token in (named.get("eos_token"),) if token and token not in specials))
    kept = {key: value for key, value in configuration.items() if key not in ("ids", "added_tokens", "chat_template")}
    closes = named.get("eos_token") if template in NEEDED else None  # ours close turns with that
    return Roles(named, tuple(stops), template, closing, closes, kept)


def _listed(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _well_known(name: str, specials: Mapping[str, int]) -> str | None:
    if name == "pad_token":
        return PAD if PAD in specials else None
    for first, last in _PAIRS:
        if last in specials and (not first or first in specials):
            return (first or None) if name == "bos_token" else last
    return None


def _template(configuration: Mapping[str, Any]) -> str | None:
    found = configuration.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None


def _own_template(configuration: Mapping[str, Any], specials: Collection[str]) -> str | None:
    """Return our template for a vocabulary that was made here, which its tokens tell, if no file says anything."""
    if configuration.get("tokenizer_class") or configuration.get("eos_token"):
        return None
    own = (TEMPLATE, ENDOFTEXT_TEMPLATE)
    return next((template for template in own if set(NEEDED[template]) <= set(specials)), None)


def _closing(template: str, specials: Collection[str], named: Mapping[str, str]) -> str | None:
    """Return the special token that a template puts after an answer; None if it puts none, or cannot be rendered."""
    from ludus.text.templates import OURS  # which needs the tokenizer, and so this

    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    names = {name: named.get(name, "") for name in NAMES}
    try:
        text = render_text(template, messages, generation_prompt=False, tokens=names, trusted=template in OURS)
    except DataError:
        return None
    after = text.partition(_ANSWER)[2]
    found = [(after.find(token), -len(token), token) for token in specials if token in after]
    return min(found)[2] if found else None
