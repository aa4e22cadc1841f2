"""The page of `ludus inspect`: examples token by token with their loss mask, and what was found in the data.

Everything that comes from the data goes through `markup`, which escapes it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ludus.evaluation.report.markup import Markup, document, element, row, section, table
from ludus.text.conversations import told

if TYPE_CHECKING:
    from ludus.cli.inspect import Inspection
    from ludus.text.contract import Span

STYLE = Markup("""
.tokens { font: 13.5px/1.75 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0 0;
  padding: 16px 18px; border: 1px solid var(--rule); border-radius: 8px; background: var(--card); }
.tokens span { border-radius: 3px; padding: 1.5px 0; color: var(--soft); }
.tokens span:nth-child(odd) { background: var(--wash); }
.tokens .learned { color: var(--ink); background: color-mix(in srgb, var(--good) 20%, transparent); }
.tokens .learned:nth-child(odd) { background: color-mix(in srgb, var(--good) 34%, transparent); }
.tokens .special { font-weight: 600; color: var(--d); }
.tokens .ends { opacity: .5; background: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0; font-size: 13px; color: var(--soft); }
.legend .tokens { display: inline; padding: 0; border: 0; margin: 0 6px 0 0; background: none; line-height: 1.4; }
.holds { color: var(--good); font-weight: 600; } .broken { color: var(--bad); font-weight: 600; }
.lines { margin: 0; padding: 0; list-style: none; } .lines li { padding: 5px 0; border-bottom: 1px solid var(--rule); }
.lines li:last-child { border: 0; }
.lines .fatal { color: var(--bad); font-weight: 600; }
.bars td, .bars th { padding: 3px 12px; border: 0; white-space: nowrap; font-weight: 400; }
.bars tbody th { padding-left: 0; }
.bars tr td:last-child { width: 100%; }
.bars i { display: block; height: 9px; min-width: 2px; border-radius: 2px; background: var(--a); }
.bars .beyond i { background: var(--bad); }
""")


def page(found: "Inspection") -> str:
    """Return the page as HTML."""
    return document(
        f"{found.source} · ludus inspect",
        element("style", STYLE),
        _opening(found),
        section(
            "Examples", "each token; what is coloured is learned", _legend(), [_example(*one) for one in found.examples]
        ),
        section("Contract", "what training renders is what serving renders", _contract(found)),
        section("Findings", "in the whole of the data", _lines(found.findings.lines)),
        section("Lengths", "tokens of an example", _bars(found)),
    )


def _opening(found: "Inspection") -> Markup:
    read = found.read
    facts = [*found.facts]
    facts += [f"left out: {told(read.left_out)}"] if read.left_out else []
    facts += [f"columns that are not read: {', '.join(read.unread)}"] if read.unread else []
    share = found.findings.learned / found.findings.tokens if found.findings.tokens else 0.0
    return element(
        "header",
        element("p", element("b", found.source), element("span", f"for {found.model}"), class_="name"),
        element(
            "h1",
            element("b", f"{len(read.chats):,}"),
            f" examples read as {read.format}; ",
            element("b", f"{share:.0%}"),
            f" of {found.findings.tokens:,} tokens are learned",
            class_="headline",
        ),
        [element("p", fact, class_="quiet") for fact in facts],
        class_="opening",
    )


def _legend() -> Markup:
    def sample(text: str, *names: str) -> Markup:
        return element("span", element("span", text, class_=" ".join(names)), class_="tokens")

    return element(
        "p",
        element("span", sample("words", "learned"), "learned"),
        element("span", sample("words"), "seen, not learned"),
        element("span", sample("<|end|>", "special"), "a special token"),
        class_="legend",
    )


def _example(place: str, spans: Sequence["Span"]) -> Markup:
    learnt = sum(span.learned for span in spans)
    heading = element("h3", place, element("small", f"{len(spans):,} tokens, {learnt:,} learned"))
    return element("article", heading, element("div", [_token(span) for span in spans], class_="tokens"))


def _token(span: "Span") -> Markup:
    names = [name for name, yes in (("learned", span.learned), ("special", span.special)) if yes]
    parts = span.text.split("\n")
    text: list[Markup | str] = [parts[0]]
    for part in parts[1:]:
        text += [element("span", "↵", class_="ends"), "\n", part]
    return element("span", text, class_=" ".join(names) or None, title=f"token {span.token}")


def _contract(found: "Inspection") -> list[Markup]:
    from ludus.cli.inspect import contract_line

    contract = found.contract
    state = element("p", contract_line(contract), class_="broken" if contract.errors else "holds")
    items = [element("li", error, class_="fatal") for error in contract.errors]
    items += [element("li", warning) for warning in contract.warnings]
    return [state, element("ul", items, class_="lines")] if items else [state]


def _lines(lines: Sequence[str]) -> Markup:
    return element(
        "ul", [element("li", line, class_="fatal" if "FATAL" in line else None) for line in lines], class_="lines"
    )


def _bars(found: "Inspection") -> Markup:
    bins = found.findings.bins
    most = max((count for _, _, count in bins), default=1)
    rows = [
        row(
            f"{low:,} to {high:,}",
            f"{count:,}",
            element("td", element("i", style=f"width:{100 * count / most:.1f}%") if count else None),
            class_="beyond" if low > found.findings.context + 1 else None,
        )
        for low, high, count in bins
    ]
    return table(("tokens", "examples", ""), rows, class_="bars")
