"""A row of preferences of every customary form becomes two conversations that share their beginning.

The prompt is given (`prompt`, `chosen`, `rejected`), or is what both conversations begin with, or stands within a
transcript (`\\n\\nHuman: ... \\n\\nAssistant: ...`), or comes as OpenAI writes it (`input`, `preferred_output`,
`non_preferred_output`).
"""

import re
from collections.abc import Mapping
from typing import Any

from ludus.base.errors import DataError
from ludus.text.formats import Conversation, Record, Unusable, asked, checked

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def convert(record: Record) -> tuple[str, tuple[Conversation, Conversation]]:
    """Return a row's form and its (chosen, rejected). Raises `DataError`, of which `Unusable` is one."""
    form, chosen, rejected = _parts(record)
    pair = checked(chosen), checked(rejected)
    if pair[0] == pair[1]:
        raise Unusable("prefers an answer to itself")
    for messages in pair:
        if messages[-1]["role"] != "assistant":
            raise Unusable("ends without an answer")
    if pair[0][:-1] != pair[1][:-1] and not _common(*pair):
        raise Unusable("compares answers to different prompts")
    return form, pair


def _parts(record: Record) -> tuple[str, Any, Any]:
    if "preferred_output" in record and "non_preferred_output" in record:
        given = record.get("input")
        prompt = given.get("messages") if isinstance(given, Mapping) else given
        return "openai", asked(prompt, record["preferred_output"]), asked(prompt, record["non_preferred_output"])
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if record.get("prompt") is None and chosen is not None and rejected is not None:
        if isinstance(chosen, list) and isinstance(rejected, list):
            return "implicit prompt", chosen, rejected
        if (
            isinstance(chosen, str)
            and isinstance(rejected, str)
            and _is_transcript(chosen)
            and _is_transcript(rejected)
        ):
            return "transcript", _turns(chosen), _turns(rejected)
    missing = [key for key in ("prompt", "chosen", "rejected") if record.get(key) is None]
    if missing:
        raise DataError(f"a preference needs prompt, chosen and rejected; {missing[0]} is missing")
    prompt = record["prompt"]
    if isinstance(prompt, str) and _is_transcript(prompt):
        prompt = [turn for turn in _turns(prompt) if turn["content"] or turn["role"] != "assistant"]
    whole = [_is_whole(prompt, answer) for answer in (chosen, rejected)]
    first, second = (
        answer if is_whole else asked(prompt, answer)
        for answer, is_whole in zip((chosen, rejected), whole, strict=True)
    )
    return "explicit prompt", first, second


def _is_whole(prompt: Any, answer: Any) -> bool:
    """Tell whether an answer in messages repeats the prompt before it, as UltraFeedback's do."""
    if not isinstance(answer, list) or not answer or not all(isinstance(each, Mapping) for each in answer):
        return False
    if isinstance(prompt, str):
        return any(each.get("role") == "user" and each.get("content") == prompt for each in answer[:-1])
    return isinstance(prompt, list) and len(answer) > len(prompt) and answer[: len(prompt)] == prompt


def _is_transcript(text: str) -> bool:
    return _TURN.match(text) is not None


def _turns(text: str) -> list[dict[str, str]]:
    parts = _TURN.split(text)
    spoken = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": _SPEAKERS[speaker], "content": content.strip()} for speaker, content in spoken]


def _common(first: Conversation, second: Conversation) -> int:
    """Count the messages with which both begin."""
    same = [a == b for a, b in zip(first, second, strict=False)]
    return same.index(False) if False in same else len(same)
