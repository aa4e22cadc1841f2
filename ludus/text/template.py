"""The chat template as a string, and the sandbox that renders it.

The template is data, stored with the tokenizer, so that every server renders what training saw. A template that came
with someone else's model is untrusted: it runs in Jinja's immutable sandbox, with a cap on its size, and with no clock
and no access to objects. What the rendered words become as tokens is decided in `chat.py`.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ludus.base.errors import DataError

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIALS = (PAD, BOS, *(f"<|{role}|>" for role in ROLES), END)

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
NEEDED = {TEMPLATE: SPECIALS, ENDOFTEXT_TEMPLATE: (PAD, *(f"<|{role}|>" for role in ROLES), ENDOFTEXT)}

_LARGEST_CHARACTERS = 65_536


def render_text(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    generation_prompt: bool,
    tokens: Mapping[str, str],
) -> str:
    """Render messages to text; `tokens` holds names such as `bos_token`. Raises `DataError` if the template fails."""
    try:
        return _compiled(template).render(messages=messages, add_generation_prompt=generation_prompt, **tokens)
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template cannot render this conversation: {error}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"the chat template fails on this conversation: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > _LARGEST_CHARACTERS:
        raise DataError(f"the chat template has {len(template)} characters; at most {_LARGEST_CHARACTERS} are accepted")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template is not valid Jinja: {error}") from None


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
