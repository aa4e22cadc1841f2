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

    `named` holds `bos_token`, `eos_token` and `pad_token` as they were given, `derived` those that the model's ids or
    the format say instead; `stops` are what else ends a text, `specials` the tokens that may close a turn, and `closes`
    is the one that does, where that is known already.
    """

    named: dict[str, str] = field(default_factory=dict)
    derived: dict[str, str] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    template: str | None = None
    specials: tuple[str, ...] = ()
    closes: str | None = None
    configuration: dict[str, Any] = field(default_factory=dict)

    def token(self, name: str) -> str | None:
        """Return the token of a name such as `bos_token`; None where nothing says one."""
        return self.named.get(name) or self.derived.get(name)

    @cached_property
    def end(self) -> str | None:
        """Return the token that closes a turn, else the one that ends a text. Renders the template, once."""
        if self.closes or not self.template:
            return self.closes or self.token("eos_token")
        names = {name: self.token(name) or "" for name in NAMES}
        return _closing(self.template, self.specials, names) or self.token("eos_token")

    @property
    def ends(self) -> tuple[str, ...]:
        """Return all tokens that end a text, `end` first."""
        every = (self.end, self.token("eos_token"), *self.stops)
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
    stops += [token for token in (configuration.get("ludus") or {}).get("ends", ()) if token in everything]
    derived: dict[str, str] = {}
    for name in NAMES:
        given = [by_id[index] for index in _listed(ids.get(f"{name}_id")) if index in by_id]
        found = format_.get(name) or (given[0] if given else None) or (None if named else _well_known(name, specials))
        if name not in named and found:
            derived[name] = found
    if not named:  # nobody said anything, so what is known is said from now on
        named, derived = derived, {}
    template = _template(configuration) or _own_template(configuration, specials)
    eos = named.get("eos_token") or derived.get("eos_token")
    closing = (*specials, eos) if eos and eos not in specials else tuple(specials)
    kept = {key: value for key, value in configuration.items() if key not in ("ids", "added_tokens", "chat_template")}
    closes = eos if template in NEEDED else None  # ours close turns with that
    return Roles(named, derived, tuple(stops), template, closing, closes, kept)


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
    try:
        text = render_text(template, messages, generation_prompt=False, tokens=named, trusted=template in OURS)
    except DataError:
        return None
    after = text.partition(_ANSWER)[2]
    found = [(after.find(token), -len(token), token) for token in specials if token in after]
    return min(found)[2] if found else None
