"""Jinja as chat templates expect it: the sandbox, its filters, and the names that templates may call.

Templates of other models call `strftime_now` and `raise_exception`, filter with `tojson`, mark what the assistant says
with `{% generation %}` and leave loops with `break`. Immutable sandbox: no access to objects, nothing can be changed.
What bounds a hostile template's time and memory is `sandbox.py`; which words become which tokens is `chat.py`.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ludus.base.errors import DataError

LARGEST_TEMPLATE = 65_536  # characters
LARGEST_OUTPUT = 4_000_000  # characters; contents are not among them, only markers in their place


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: says what the assistant speaks; it renders what it holds."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Take the tag away and keep what it holds."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, variables: Mapping[str, Any], *, now: datetime) -> str:
    """Render a template at a given moment. Raises `DataError` if it fails or if its words are too many."""
    try:
        compiled = _compiled(template)
        parts, size = [], 0
        for part in compiled.generate({**variables, "strftime_now": now.strftime}):
            parts.append(part)
            size += len(part)
            if size > LARGEST_OUTPUT:
                raise DataError(f"the chat template renders over {LARGEST_OUTPUT:,} characters; mend or replace it")
        return "".join(parts)
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template cannot render this conversation: {_line(error)}") from None
    except MemoryError:
        raise DataError("the chat template wants more memory than a template may have; mend or replace it") from None
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        says = f"the chat template fails on this conversation: {type(error).__name__}: {_line(error)}"
        raise DataError(says) from None


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > LARGEST_TEMPLATE:
        raise DataError(f"the chat template has {len(template)} characters; at most {LARGEST_TEMPLATE} are accepted")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template)
    except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
        raise DataError(f"the chat template is not valid Jinja: {_line(error)}") from None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
