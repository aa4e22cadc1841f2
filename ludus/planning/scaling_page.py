"""A law of scale as a page: the runs, the curves fitted to them, and what was foretold.

What lives here: the page. What does not: the fit, and how a chart is drawn. The one idea: a reader sees at once whether
the curves go through the points, which is what the trust in a prediction rests on.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ludus.base.errors import MissingExtra, RunError
from ludus.base.files import atomic_write
from ludus.evaluation.report import to_png, words
from ludus.evaluation.report.charts import Series, line_chart
from ludus.evaluation.report.markup import Markup, document, element, row, section, table
from ludus.planning.scaling_law import NAMES, Law, Point

PAGE, PICTURE = "scaling.html", "scaling.png"
TONES = "abcdef"
CURVE_POINTS = 40


def write(
    folder: Path,
    title: str,
    law: Law,
    points: Sequence[Point],
    names: Sequence[str],
    prediction: Mapping[str, Any] | None,
) -> list[Path]:
    """Write the page, and its picture where a browser is installed; return what was written."""
    page = folder / PAGE
    atomic_write(page, render(title, law, points, names, prediction))
    written = [page]
    with suppress(MissingExtra, RunError, OSError):
        written.append(to_png(page, folder / PICTURE, seconds=20))
    return written


def render(
    title: str, law: Law, points: Sequence[Point], names: Sequence[str], prediction: Mapping[str, Any] | None
) -> str:
    """Return the page's HTML."""
    constants = ", ".join(f"{name} {words.figure(law.constants[name])}" for name in NAMES)
    opening = element(
        "div",
        element("h1", f"{title}: the law of scale"),
        element("p", "L(N, D) = E + A / N^alpha + B / D^beta with ", element("b", constants), class_="headline"),
        element("p", foretold(prediction)) if prediction else None,
        class_="opening",
    )
    return document(
        f"{title} · scaling", opening, _curves(law, points, prediction), _constants(law), _runs(law, points, names)
    )


def foretold(prediction: Mapping[str, Any]) -> str:
    """Say a prediction in a sentence."""
    return (
        f"{words.amount(prediction['parameters'])} parameters on {words.amount(prediction['tokens'])} tokens: "
        f"a loss of {prediction['loss']:.4f} nats a token, between {prediction['low']:.4f} and "
        f"{prediction['high']:.4f} in {prediction['share']:.0%} of runs"
    )


def _curves(law: Law, points: Sequence[Point], prediction: Mapping[str, Any] | None) -> Markup:
    sizes = sorted({point.parameters for point in points})
    ends = [point.tokens for point in points] + ([prediction["tokens"]] if prediction else [])
    low, high = math.log10(min(ends)), math.log10(max(ends))
    places = [low + (high - low) * step / CURVE_POINTS for step in range(CURVE_POINTS + 1)]
    series = []
    shown = sizes + ([float(prediction["parameters"])] if prediction else [])
    for number, size in enumerate(shown):
        tone, name = TONES[number % len(TONES)], f"{words.amount(size)} parameters"
        curve = [(place, law.loss(size, 10**place)) for place in places]
        series.append(Series(f"{name}, by the law", curve, tone, short=words.amount(size)))
        measured = [(math.log10(point.tokens), point.loss) for point in points if point.parameters == size]
        if measured:
            series.append(Series(f"{name}, measured", sorted(measured), tone, dots=True, labelled=False))
    chart = line_chart(
        "Loss over tokens",
        series,
        unit="nats a token; log10 of tokens",
        nearest=True,
        tall=True,
        horizontal="log10 of tokens",
    )
    return section("Curves and runs", "Each size of model has its colour; dots are runs, lines the law.", chart)


def _constants(law: Law) -> Markup:
    rows = [
        row(name, words.figure(law.constants[name], 4), f"{words.figure(low, 4)} to {words.figure(high, 4)}")
        for name, (low, high) in law.intervals().items()
    ]
    note = f"Intervals of 90 %, by bootstrap. The runs lie {law.scatter:.2%} off the law."
    return section("Constants", note, table(["constant", "value", "interval"], rows))


def _runs(law: Law, points: Sequence[Point], names: Sequence[str]) -> Markup:
    rows = [
        row(
            name,
            words.whole(point.parameters),
            words.whole(point.tokens),
            f"{point.loss:.4f}",
            f"{law.loss(point.parameters, point.tokens):.4f}",
            f"{point.loss / law.loss(point.parameters, point.tokens) - 1:+.2%}",
        )
        for name, point in zip(names, points, strict=True)
    ]
    return section("Runs", None, table(["run", "parameters", "tokens", "loss", "by the law", "off"], rows))
