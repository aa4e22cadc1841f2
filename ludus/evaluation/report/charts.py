"""Line charts as inline SVG that stretches, with their words as HTML that does not.

What lives here: down-sampling, ticks, the chart, the accuracy bar. What does not: which curves a report shows.
The one idea: the drawing is in a box of 1000 by 1000 that fills any width without distorting strokes, and every
label is ordinary text placed by percent beside it, so a chart reads the same on a telephone, a desk and paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ludus.evaluation.report import words
from ludus.evaluation.report.markup import Markup, element

BOX = 1000
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve. `smooth` draws the raw values faintly behind a moving average; `dots` marks each value."""

    name: str
    points: Sequence[Point]
    tone: str = "a"
    smooth: bool = False
    dots: bool = False
    labelled: bool = True
    short: str = ""  # what stands at its end when the name is too long for the margin


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    share: bool = False,
    nearest: bool = False,
    tall: bool = False,
    horizontal: str = "step",
) -> Markup | None:
    """Draw curves over the step; None when there is nothing to draw.

    `share` fixes the axis to 0 to 100 %; `nearest` makes the pointer pick one curve of many. Values that are not
    finite cannot be drawn: they are counted under the chart.
    """
    shown = [(one, finite) for one in series if (finite := [p for p in one.points if math.isfinite(p[1])])]
    if not shown:
        return None
    everything = [point for _, points in shown for point in points]
    left, right = _span([x for x, _ in everything])
    low, high = _reach([y for _, y in everything], share)
    horizontal_ticks, vertical_ticks = ticks(left, right, 4, whole=True), ticks(low, high, 5)
    write, exact = _writers(vertical_ticks, share)

    def place(point: Point) -> Point:
        return (point[0] - left) / (right - left) * BOX, (high - point[1]) / (high - low) * BOX

    grid = "".join(f"M0 {place((left, tick))[1]:.1f}H{BOX}" for tick in vertical_ticks)
    paths = [element("path", class_="grid", d=grid)]
    for one, points in shown:
        paths += _curve(one, points, place)
    drawing = element(
        "svg", paths, viewBox=f"0 0 {BOX} {BOX}", preserveAspectRatio="none", role="img", aria_label=title
    )
    # A curve is named where its strong line ends, so a smoothed one by its average.
    ends = [(one, _average(one, points)[-1]) for one, points in shown if one.labelled]
    labels = [
        *(_label("y", write(tick), top=place((left, tick))[1]) for tick in vertical_ticks),
        *(_label("x", _count(tick), left=place((tick, low))[0]) for tick in horizontal_ticks),
        *_ends([(one, place(last)[1], exact(last[1])) for one, last in ends]),
    ]
    frame = element(
        "div",
        drawing,
        labels,
        class_=" ".join(["frame", *(["tall"] if tall else []), *(["single"] if len(ends) < 2 else [])]),
        data_x=f"{left!r} {right!r}",
        data_y=f"{low!r} {high!r}",
        data_over=horizontal,
        data_share=share,
        data_nearest=nearest,
    )
    lost = sum(len(one.points) for one in series) - len(everything)
    note = element("p", f"{words.plural(lost, 'value')} not finite and not drawn", class_="bad") if lost else None
    caption = element("figcaption", element("b", title), element("span", unit) if unit else None)
    return element("figure", caption, frame, note, class_="chart")


def downsample(points: Sequence[Point], buckets: int = 250) -> list[Point]:
    """Thin a curve to at most four points a bucket (first, lowest, highest, last), so that no spike is ever lost."""
    if len(points) <= 4 * buckets:
        return list(points)
    kept: list[Point] = []
    for index in range(buckets):
        start, stop = index * len(points) // buckets, (index + 1) * len(points) // buckets
        inside = range(start, stop)
        chosen = {start, stop - 1, min(inside, key=lambda i: points[i][1]), max(inside, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(chosen)]
    return kept


def smoothed(points: Sequence[Point], span: float = 0.03) -> list[Point]:
    """Average a curve over a window about each point, `span` of its length wide, so that the average does not lag.

    The window shrinks towards the first point, which stays, and is cut off at the last, which becomes an average.
    """
    half = max(1, round(span * len(points) / 2))
    totals = [0.0, *accumulate(y for _, y in points)]
    averages = []
    for index, (x, _) in enumerate(points):
        start, stop = index - min(half, index), min(len(points), index + min(half, index) + 1)
        averages.append((x, (totals[stop] - totals[start]) / (stop - start)))
    return averages


def ticks(low: float, high: float, about: int = 4, *, whole: bool = False) -> list[float]:
    """Return round values (1, 2 or 5 times a power of ten) inside the range, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.8 * rough)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def score_bar(value: float, low: float | None = None, high: float | None = None) -> Markup:
    """Draw a share as a bar from 0 to 100 %, with its interval as a whisker when there is one."""
    whisker = None
    if low is not None and high is not None:
        start, end = _within(low), max(_within(low), _within(high))
        whisker = element("i", style=f"left:{start:.1%};width:{end - start:.1%}")
    return element(
        "span", element("b", style=f"width:{_within(value):.1%}"), whisker, class_="score", aria_hidden="true"
    )


def heat(value: float | None, text: str | None = None) -> Markup:
    """Build a table cell shaded by a share of 0 to 1."""
    if value is None:
        return element("td", "–", class_="heat none")
    strong = " strong" if value > 0.82 else ""
    return element("td", text or words.percent(value), class_=f"heat{strong}", style=f"--share:{_within(value):.3f}")


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def _average(one: Series, points: list[Point]) -> list[Point]:
    """Return what is drawn strongly: the moving average of a long smooth curve, else the curve."""
    return smoothed(points) if one.smooth and len(points) >= 40 else points


def _curve(one: Series, points: list[Point], place: Callable[[Point], Point]) -> list[Markup]:
    thin, strong = downsample(points), _average(one, points)
    averaged = strong is not points
    kind = "raw" if averaged else "line"
    paths = [element("path", class_=f"{kind} {one.tone}", d=_path(thin, place), data_name=one.name)]
    if averaged:
        paths.append(element("path", class_=f"line {one.tone}", d=_path(downsample(strong), place)))
    if one.dots or len(points) == 1:
        spots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in map(place, thin))
        paths.append(element("path", class_=f"dots {one.tone}", d=spots))
    return paths


def _path(points: Sequence[Point], place: Callable[[Point], Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, points))


def _ends(ends: list[tuple[Series, float, str]]) -> list[Markup]:
    """Write each curve's name and last value at its right end, moved apart where they would touch."""
    ordered = sorted(ends, key=lambda end: end[1])
    gap = min(105.0, BOX / max(1, len(ordered)))
    tops: list[float] = []
    for _, top, _ in ordered:
        tops.append(max(top, tops[-1] + gap) if tops else max(top, 0.0))
    for index in range(len(tops) - 1, -1, -1):
        tops[index] = min(tops[index], BOX - gap * (len(tops) - 1 - index))
    return [
        element(
            "span",
            f"{one.short or one.name} " if one.short or len(ordered) > 1 else None,
            element("b", value),
            class_=f"end {one.tone}",
            style=f"top:{top / BOX:.1%}",
        )
        for (one, _, value), top in zip(ordered, tops, strict=True)
    ]


def _label(kind: str, text: str, **at: float) -> Markup:
    return element("span", text, class_=kind, style=";".join(f"{side}:{value / BOX:.1%}" for side, value in at.items()))


def _span(values: list[float]) -> Point:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _reach(values: list[float], share: bool) -> Point:
    """Return the vertical range: all of 0 to 100 % for a share that uses it, else the values and a margin."""
    low, high = min(values), max(values)
    if share and high > 0.4 and low >= 0:
        return 0.0, max(1.0, high)
    margin = 0.06 * (high - low) or max(1e-9, 0.1 * abs(high)) or 1.0
    # A quantity that is never negative is not shown as if it could be.
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _writers(marks: list[float], share: bool) -> tuple[Callable[[float], str], Callable[[float], str]]:
    """Return how to write the axis (as many decimals as its steps need) and a value (one more)."""
    if share:
        return words.percent, words.percent
    if max(map(abs, marks), default=0.0) >= 10_000:
        return words.amount, words.amount
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    places = min(8, max(0, -math.floor(math.log10(step) + 1e-9)))

    def write(value: float, more: int = 0) -> str:
        text = f"{value:.{places + more}f}"
        return text.lstrip("-") if float(text) == 0 else text.replace("-", words.MINUS)

    # One decimal more than the axis tells 1.33 from 1.37; an axis in whole ones below ten needs two.
    more = 2 if places == 0 and max(map(abs, marks), default=0.0) < 10 else 1
    return write, lambda value: write(value, more)


def _count(value: float) -> str:
    return words.amount(value) if value >= 10_000 else f"{value:,.0f}"
