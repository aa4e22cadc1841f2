"""What became of a model that was brought: how it was adapted, and what it says and knows before and after.

What lives here: the adapter with the proof of its merge, and the sum of the comparison with a link to its page. What
does not: the answers side by side, which are that page. The one idea: what was gained stands next to what was lost.
"""

from typing import Any

from ludus.evaluation.report import words
from ludus.evaluation.report.markup import NOTHING, Markup, element, row, section, table
from ludus.evaluation.report.reading import Run, number

PAGE = "compare/comparison/compare.html"
MARKS = {"forgotten": ("▼ forgotten", "degraded"), "improved": ("▲ improved", "improved")}
NARROW = {"nf4": "4-bit (nf4)", "int8": "8-bit (int8)"}


def adapters(run: Run) -> Markup:
    """Tabulate the adapters: kind, what of the model learned, how the rest was kept, and what merging changed."""
    rows = []
    for stage, manifest in run.manifests.items():
        found = _table(_table(manifest.get("summary")).get("adapter"))
        if not found:
            continue
        learned, every = number(found.get("trained")), number(found.get("parameters"))
        share = f" ({100 * learned / every:.2f}{words.SPACE}%)" if learned and every else ""
        quantised = str(found.get("quantise", "none"))
        cells = [
            str(found.get("kind", "")),
            f"{words.amount(learned)}{share}",
            "whole" if quantised == "none" else NARROW.get(quantised, quantised),
            _merge(run.certificates.get(stage, {})),
        ]
        rows.append(row(element("th", run.name(stage), scope="row"), *cells))
    if not rows:
        return NOTHING
    note = (
        "The weights of the model stay as they are; only the adapter learns. A merge is compared with the adapter on "
        "random tokens, logit by logit."
    )
    head = ["Stage", "Kind", "Parameters that learn", "Linear layers under it", "Merged"]
    return section("Adapter", note, table(head, rows))


def comparison(run: Run) -> Markup:
    """Set the model before tuning beside that after it: its manner, good answers, and general text."""
    found = _table(run.manifests.get("compare", {}).get("summary"))
    before, after = _table(found.get("before")), _table(found.get("after"))
    if not before or not after:
        return NOTHING
    forgetting, reference = _table(found.get("forgetting")), _table(found.get("reference"))
    rows = [
        _change("Perplexity of good answers", before, after, "reference_perplexity", words.figure, _nats(reference)),
        _change("Bits per byte, general text", before, after, "bits_per_byte", _bits, _forgotten(forgetting)),
        _change("Answers that end by themselves", before, after, "stopped", words.percent, ""),
        _change("Tokens per answer", before, after, "mean_tokens", words.figure, ""),
        _change("Repeated runs of tokens", before, after, "repetition", words.percent, ""),
    ]
    note = (
        f"{words.plural(number(found.get('prompts')) or 0, 'held-out prompt')}, the same for both. The intervals hold "
        "95 %. General text has nothing to do with the tuning: more bits mean that something was lost."
    )
    page = run.folder / PAGE
    link = element("p", element("a", "Both models' answers, side by side", href=PAGE)) if page.is_file() else None
    return section("Comparison", note, table(["", "Before", "After", "Change"], [each for each in rows if each]), link)


def perplexities(run: Run) -> tuple[float, float] | None:
    """Return the perplexity of good answers before and after the tuning, where they were measured."""
    found = _table(run.manifests.get("compare", {}).get("summary"))
    values = [number(_table(found.get(side)).get("reference_perplexity")) for side in ("before", "after")]
    return (values[0], values[1]) if values[0] is not None and values[1] is not None else None


def lost(run: Run) -> str:
    """Say so in a sentence if the tuned model forgot more than noise explains; else return nothing."""
    change = _table(_table(run.manifests.get("compare", {}).get("summary")).get("forgetting"))
    difference = number(change.get("difference"))
    if change.get("verdict") != "forgotten" or difference is None:
        return ""
    return f"General text costs {difference:+.3f} bits per byte after the tuning: the model has forgotten something."


def _merge(found: dict[str, Any]) -> Markup | str:
    largest, agreement = number(found.get("largest_difference")), number(found.get("argmax_agreement"))
    if largest is None:
        return "no"
    same = "" if agreement is None else f", {words.percent(agreement)} the same likeliest token"
    return f"logits within {words.figure(largest, 2)} in {found.get('dtype', 'float32')}{same}"


def _change(
    name: str, before: dict[str, Any], after: dict[str, Any], key: str, write: Any, change: Markup | str
) -> Markup | None:
    values = [number(side.get(key)) for side in (before, after)]
    return None if None in values else row(name, *(write(value) for value in values), element("td", change))


def _nats(reference: dict[str, Any]) -> str:
    difference = number(reference.get("difference"))
    return "" if difference is None else f"{difference:+.3f} nats a token{_interval(reference, 3)}"


def _forgotten(change: dict[str, Any]) -> Markup | str:
    difference = number(change.get("difference"))
    if difference is None:
        return ""
    mark, tone = MARKS.get(str(change.get("verdict")), ("≈ within noise", "within"))
    chip = element("span", mark, class_=f"chip {tone}")
    return element("span", f"{difference:+.4f}{_interval(change, 4)} ", chip)


def _interval(change: dict[str, Any], digits: int) -> str:
    low, high = number(change.get("low")), number(change.get("high"))
    return "" if low is None or high is None else f" ({low:+.{digits}f} to {high:+.{digits}f})"


def _bits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
