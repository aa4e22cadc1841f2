"""A template's words around the contents, for one sequence of roles: rendered once with markers, and kept.

Each marker stands for a content, with a rare space on either side of it. Where the space is gone the template strips
its contents, so theirs are stripped here as well: what it would have rendered is what becomes tokens. No content
reaches the template's logic. What the words become as tokens and what is learned of them is decided in `chat.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ludus.base.errors import DataError
from ludus.text.template import render_text

_SPACES = ("\u2003", "\u2002", "\u2004", "\u2005")  # Python's and Jinja's strip() take them for spaces


@dataclass(frozen=True, slots=True)
class Words:
    """The texts around the contents, one more than there are contents, and which sides of each content are stripped."""

    texts: tuple[str, ...]
    strips: tuple[tuple[bool, bool], ...]


def stripped(content: str, sides: tuple[bool, bool]) -> str:
    """Return a content as the template shows it: as it is, or without spaces at its left or right end."""
    left, right = sides
    if left and right:
        return content.strip()
    return content.lstrip() if left else content.rstrip() if right else content


def words_of(
    template: str, roles: Sequence[str], *, generation_prompt: bool, tokens: Mapping[str, str], trusted: bool
) -> Words:
    """Render markers in place of contents and return what stands around them.

    Raises `DataError` if the template fails, or leaves a content out, repeats it or changes their order.
    """
    markers, space = _markers(template, len(roles))
    messages = [{"role": role, "content": space + marker + space} for role, marker in zip(roles, markers, strict=True)]
    text = render_text(template, messages, generation_prompt=generation_prompt, tokens=tokens, trusted=trusted)
    places = [text.find(marker) for marker in markers]
    if any(text.count(marker) != 1 for marker in markers) or any(a > b for a, b in pairwise(places)):
        raise DataError(
            f"the chat template does not show every message once and in order (roles {', '.join(roles)}); "
            "mend chat_template.jinja, or choose another with --template"
        )
    texts, strips = [], []
    for marker in markers:
        before, text = text.split(marker, 1)
        strips.append((not before.endswith(space), not text.startswith(space)))
        texts.append(before.removesuffix(space))
        text = text.removeprefix(space)
    return Words((*texts, text), tuple(strips))


def _markers(template: str, count: int) -> tuple[list[str], str]:
    """Return texts and a space that do not occur in the template; contents are never in the same string."""
    stem = "content"
    while stem in template:
        stem += "*"
    space = next((each for each in _SPACES if each not in template), _SPACES[0])
    return [f"\ue000{stem}{index}\ue001" for index in range(count)], space
