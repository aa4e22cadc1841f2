"""HTML that cannot be injected into: text becomes markup only by going through here, and is escaped on the way.

What lives here: elements, escaping, and the skeleton of a page with its security policy. What does not: what the
pages say. The one idea: a plain `str` is text and is escaped; only `Markup` is taken as it is, and only `element`
makes it, so a model's output has no road to becoming a tag.
"""

import html
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
VOID = {"br", "meta"}
# A control character is shown by its picture. A lone surrogate cannot be written, and an override of the writing
# direction would turn the words after it round: both become the replacement mark.
CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
CONTROLS |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)
CONTROLS |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)

Child: TypeAlias = "str | int | Iterable[Child] | None"


class Markup(str):
    """Finished HTML, safe to place; made by `element`, never from somebody's text."""

    __slots__ = ()


NOTHING = Markup("")


def escape(text: str) -> Markup:
    """Make text harmless in an element and in a quoted attribute, and visible where it was a control character."""
    return text if isinstance(text, Markup) else Markup(html.escape(text.translate(CONTROLS), quote=True))


def join(*children: Child) -> Markup:
    """Concatenate children: text is escaped, markup kept, None left out, iterables taken in order."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            parts.append(escape(child))
        elif isinstance(child, int):
            parts.append(str(child))
        else:
            parts.append(join(*child))
    return Markup("".join(parts))


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Build one element; `class_` means class, `data_x` data-x, True a bare attribute, None or False none at all."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>" + ("" if name in VOID else f"{join(*children)}</{name}>"))


def table(head: Iterable[Child], rows: Iterable[Markup], **attributes: str | None) -> Markup:
    """Build a table that scrolls sideways by itself when the page is narrow."""
    cells = [cell if isinstance(cell, Markup) and cell.startswith("<th") else element("th", cell) for cell in head]
    body = element("table", element("thead", element("tr", cells)), element("tbody", rows), **attributes)
    return element("div", body, class_="scroll", tabindex="0")


def row(*cells: Child, **attributes: str | None) -> Markup:
    """Build a table row; a cell that is not yet a <td> or <th> becomes one, the first of them a heading."""
    finished = []
    for index, cell in enumerate(cells):
        done = isinstance(cell, Markup) and cell.startswith(("<td", "<th"))
        finished.append(cell if done else element("td", cell) if index else element("th", cell, scope="row"))
    return element("tr", finished, **attributes)


def fold(summary: Child, *content: Child, opened: bool = False) -> Markup:
    """Hide content behind a line that opens it."""
    return element("details", element("summary", summary), element("div", content), open=opened)


def section(title: str, note: Child, *content: Child) -> Markup:
    """Build a section of the page: a heading with a note in the margin, the content beside it."""
    margin = element("header", element("h2", title), element("p", note) if note else None)
    return element("section", margin, element("div", content, class_="content"))


def document(title: str, *content: Child) -> str:
    """Wrap content as one self-contained page: inline style and script, and a policy that forbids everything else."""
    here = Path(__file__)
    # The style and the script are ours, written in this folder; they hold no `</`, which a test watches.
    style, script = (Markup(here.with_name(name).read_text("utf-8")) for name in ("page.css", "page.js"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", style),
    )
    body = element("body", element("main", content), element("script", script))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"
