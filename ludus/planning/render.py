"""A plan as text for a terminal.

What lives here: the table of a plan and the reasoning of a start. What does not: any figure. The one idea: the answers
one looks for first (does it fit, how long, how much) stand first and in a line each.
"""

import textwrap
from collections.abc import Iterable, Mapping

from ludus.model.cost import flops_per_token, parameters
from ludus.planning import chinchilla, spending
from ludus.planning.plan import Plan
from ludus.planning.start import Start

WIDTH = 110


def plan(found: Plan) -> str:
    """Return the plan, section by section."""
    work = found.work
    fits = found.memory.total <= found.device.memory_bytes
    lines = [
        f"on {found.device.name}: {seconds(found.duration.total)}, {gigabytes(found.memory.total)} of "
        f"{gigabytes(found.device.memory_bytes)}" + ("" if fits else ": IT DOES NOT FIT"),
        *([f"  cost: about ${found.cost:,.2f} at ${found.device.price:g} an hour"] if found.device.price else []),
        "",
        *section("model", _model(found)),
        *section("tokens", _tokens(found)),
        *section(f"memory at the peak, in the {found.memory.moment} ({found.memory.how})", _memory(found)),
        *section(f"time ({found.duration.how})", _time(found)),
    ]
    fit = found.fit
    lines += [
        f"largest micro-batch: {fit.rows} rows of {work.context} tokens: {gigabytes(fit.fixed_bytes)} + rows x "
        f"{fit.row_bytes / 1e6:.1f} MB, in 92 % of {gigabytes(found.device.memory_bytes)}; the recipe has {work.rows}"
    ]
    if found.memory.merging and found.memory.moment != spending.MERGING:
        where = "of the processor's memory" if found.device.kind == "gpu" else "too"
        lines.append(
            f"merging the adapter at the end takes {gigabytes(found.memory.merging)} {where}; sft.merge=false leaves "
            "the adapter alone, which needs none"
        )
    if found.advice:
        lines += [
            "",
            "it does not fit; change, in this order:",
            *(f"  {n}. {a}" for n, a in enumerate(found.advice, 1)),
        ]
    return "\n".join(lines)


def start(found: Start) -> str:
    """Return the advice on how to start, with its reasons."""
    lines = [f"advice: {found.verdict}", *wrapped(found.how, "  "), "", "because"]
    for number, reason in enumerate(found.reasons, 1):
        lines += wrapped(reason, f"  {number}. ")
    return "\n".join(lines)


def section(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    """Lay out a heading with rows of a name and what stands behind it."""
    rows = list(rows)
    wide = max((len(name) for name, _ in rows), default=0)
    return [title, *(line for name, said in rows for line in wrapped(said, f"  {name:<{wide}}  ")), ""]


def wrapped(text: str, first: str) -> list[str]:
    """Wrap a text behind its first words."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first)) or [first.rstrip()]


def _model(found: Plan) -> list[tuple[str, str]]:
    work = found.work
    rows = [(name.replace("_", " "), f"{count:>14,}") for name, count in parameters(work.shape).items() if count]
    per_token = flops_per_token(work.shape, work.context)
    return [
        *rows,
        ("parameters", f"{work.parameters:>14,}"),
        *([("trained", f"{found.trained:>14,} ({found.trained / work.parameters:.2%})")] if work.adapter else []),
        ("operations", f"{per_token / 1e6:,.1f} M a token, {work.flops:.2e} in all, {work.precision} products"),
        ("vocabulary", f"{found.text.vocabulary:,} ({found.text.vocabulary_origin})"),
    ]


def _tokens(found: Plan) -> list[tuple[str, str]]:
    work, text = found.work, found.text
    batch = f"{work.steps:,} steps of {work.tokens_per_step:,}"
    rows = [("trained on", f"{work.tokens:,}: {batch} ({work.accumulate} x {work.rows} rows of {work.context})")]
    available = f"{text.tokens:,} ({text.tokens_origin})" if text.tokens else f"not known ({text.tokens_origin})"
    rows.append(("available", available))
    if found.epochs is not None:
        rows.append(("repetition", chinchilla.epochs_verdict(found.epochs)))
    if found.stage != "pretrain":
        return rows
    return [*rows, ("ratio", chinchilla.verdict(work.parameters, work.tokens))]


def _memory(found: Plan) -> list[tuple[str, str]]:
    return [*_sorted(found.memory.parts), ("in all", f"{found.memory.total / 1e6:>10,.0f} MB")]


def _sorted(parts: Mapping[str, int]) -> list[tuple[str, str]]:
    shown = sorted(((name, size) for name, size in parts.items() if size >= 500_000), key=lambda part: -part[1])
    return [(name, f"{size / 1e6:>10,.0f} MB") for name, size in shown]


def _time(found: Plan) -> list[tuple[str, str]]:
    spent = found.duration
    rate = found.work.tokens_per_step / spent.step_seconds
    rows = [(name, f"{seconds(value):>10}") for name, value in spent.parts.items() if value >= 0.05]
    return [*rows, ("a step", f"{spent.step_seconds * 1e3:,.1f} ms, {rate:,.0f} tokens/s")]


def seconds(value: float) -> str:
    """Write a time in the unit that suits it."""
    for limit, unit, name in ((172_800, 86_400, "days"), (7_200, 3_600, "h"), (120, 60, "min")):
        if value >= limit:
            return f"{value / unit:,.1f} {name}"
    return f"{value:.1f} s"


def gigabytes(size: float) -> str:
    """Write bytes in gigabytes."""
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"
