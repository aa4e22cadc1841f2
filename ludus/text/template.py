"""The chat template as a string, and how it is rendered.

The template is data, stored with the tokenizer, so that every server renders what training saw. A template that came
with someone else's model is untrusted: besides Jinja's immutable sandbox (`rendering.py`) it has caps on its size, its
time and its memory (`sandbox.py`). Its clock stands still, since a date that moves on would make serving another
rendering than training. What the rendered words become as tokens is decided in `chat.py`.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ludus.base.errors import ConfigError

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
SPEAKERS = ("system", "user", "assistant")  # of our own template
ROLES = (*SPEAKERS, "developer", "tool")  # whether a template shows the last two is for it to say
SPECIALS = (PAD, BOS, *(f"<|{role}|>" for role in SPEAKERS), END)

TEMPLATE = """\
{{- '<|bos|>' -}}
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('unknown role ' ~ message.role) -}}
    {%- endif -%}
    {{- '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""

# A vocabulary such as GPT-2's has one token that both begins and ends a document; it ends a turn too.
ENDOFTEXT = "<|endoftext|>"
ENDOFTEXT_TEMPLATE = TEMPLATE.replace(BOS, ENDOFTEXT).replace(END, ENDOFTEXT)
# Our templates, with the tokens that each of them needs.
NEEDED = {TEMPLATE: SPECIALS, ENDOFTEXT_TEMPLATE: (PAD, *(f"<|{role}|>" for role in SPEAKERS), ENDOFTEXT)}

CLOCK = "2024-07-26"  # the day that Llama 3's templates fall back on
DATE = "LUDUS_CHAT_DATE"


def today() -> datetime:
    """Return the day that templates are told: a fixed one, unless LUDUS_CHAT_DATE=YYYY-MM-DD says another."""
    given = os.environ.get(DATE) or CLOCK
    try:
        return datetime.fromisoformat(given)
    except ValueError:
        raise ConfigError(f"{DATE}={given} is no date; it must be like {CLOCK}") from None


def render_text(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool,
    tokens: Mapping[str, str],
    trusted: bool = False,
) -> str:
    """Render messages to text; `tokens` holds names such as `bos_token`. Raises `DataError` if the template fails.

    A template that is not `trusted` is rendered in a process apart, which has little time and memory.
    """
    variables: dict[str, Any] = {"messages": list(messages), "tools": None, "documents": None, **tokens}
    variables["add_generation_prompt"] = generation_prompt
    if trusted:
        from ludus.text import rendering

        return rendering.render(template, variables, now=today())
    from ludus.text import sandbox

    return sandbox.render(template, variables, now=today())
