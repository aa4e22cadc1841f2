"""Named spots over a logarithmic axis, each with its interval, as inline SVG that stretches and words that do not.

What lives here: the axes, the spots and where their names go. What does not: what the figures mean. The one idea: many
spots share a place on the axis, so they stand a little apart and their names are moved until none covers another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ludus.evaluation.report import words
from ludus.evaluation.report.charts import BOX, ticks
from ludus.evaluation.report.markup import Markup, element

APART, WIDE, TALL = 16.0, 118.0, 46.0  # between spots at one place; room of a name: all in units of the box
MARGIN = 0.08
Measure = Callable[[float], float]
STYLE = Markup("""
.plot { margin: 0; }
.plot figcaption { font-size: 13.5px; margin-bottom: 14px; }
.plot figcaption span { margin-left: 8px; color: var(--soft); font-size: 12.5px; }
.plot .field { position: relative; height: 330px; min-width: 560px; margin: 6px 24px 46px 52px; }
.plot .field { border-bottom: 1px solid var(--soft); }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke: currentColor; stroke-width: 1.6; }
.plot .grid { stroke: var(--rule); stroke-width: 1; } .plot .base { stroke: var(--soft); stroke-dasharray: 5 4; }
.plot .lead { stroke: var(--rule); stroke-width: 1; } .plot .spot { stroke-width: 9; stroke-linecap: round; }
.plot .field > span { position: absolute; font-size: 12px; line-height: 1; white-space: nowrap; }
.plot .y { right: 100%; margin-right: 9px; transform: translateY(-50%); color: var(--soft); }
.plot .x { top: 100%; margin-top: 9px; transform: translateX(-50%); color: var(--soft); }
.plot .name { transform: translateY(-50%); margin-left: 8px; }
.plot .basename { right: 0; transform: translateY(-130%); color: var(--soft); }
.plot .axis { top: 100%; right: 0; margin-top: 28px; color: var(--soft); }
""")


@dataclass(frozen=True)
class Spot:
    """A figure `y` at `x`, which is positive, with its interval where there is one."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tone: str = "a"


@dataclass(frozen=True)
class _Placed:
    spot: Spot
    x: float
    y: float
    top: float  # of its name
    left: float


def scatter(
    title: str, spots: Sequence[Spot], *, unit: str = "", horizontal: str = "", base: tuple[str, float] | None = None
) -> Markup | None:
    """Draw spots, and a dashed line at `base` (its name and value); None without any spot that is finite."""
    spots = [spot for spot in spots if math.isfinite(spot.y) and spot.x > 0]
    if not spots:
        return None
    low, high = _reach([spot.y for spot in spots] + ([base[1]] if base else []), spots)
    left, right = _powers([spot.x for spot in spots])
    marks = ticks(low, high, 5)

    def tall(value: float) -> float:
        return (high - min(high, max(low, value))) / (high - low) * BOX

    def wide(value: float) -> float:
        return (math.log10(value) - left) / (right - left) * BOX

    placed = _placed(spots, wide, tall)
    paths = [element("path", class_="grid", d="".join(f"M0 {tall(mark):.1f}H{BOX}" for mark in marks))]
    if base:
        paths.append(element("path", class_="base", d=f"M0 {tall(base[1]):.1f}H{BOX}"))
    for each in placed:
        paths += _drawn(each, tall)
    drawing = element(
        "svg", paths, viewBox=f"0 0 {BOX} {BOX}", preserveAspectRatio="none", role="img", aria_label=title
    )
    decades = range(math.ceil(left - 1e-9), math.floor(right + 1e-9) + 1)
    labels = [
        *(_label("y", _written(mark, marks), top=tall(mark)) for mark in marks),
        *(_label("x", words.amount(10.0**power), left=wide(10.0**power)) for power in decades),
        *(_label(f"name {each.spot.tone}", each.spot.name, left=each.left, top=each.top) for each in placed),
        element("span", horizontal, class_="axis"),
    ]
    if base:
        labels.append(_label("basename", f"{base[0]} {_written(base[1], marks, 1)}", top=tall(base[1])))
    caption = element("figcaption", element("b", title), element("span", unit) if unit else None)
    field = element("div", element("div", drawing, labels, class_="field"), class_="scroll")
    return element("figure", element("style", STYLE), caption, field, class_="plot")


def _placed(spots: Sequence[Spot], wide: Measure, tall: Measure) -> list[_Placed]:
    """Move spots at one place apart sideways; their names stand beside them in the order of their height."""
    found: list[_Placed] = []
    taken: list[tuple[float, float]] = []
    groups: dict[int, list[Spot]] = {}
    for spot in sorted(spots, key=lambda each: each.x):
        groups.setdefault(round(wide(spot.x) / (2 * APART)), []).append(spot)
    for group in groups.values():
        ordered = sorted(group, key=lambda each: -each.y)
        centre = sum(wide(each.x) for each in group) / len(group)
        shifts = [(index - (len(group) - 1) / 2) * APART for index in range(len(group))]
        right = centre + shifts[-1]
        near = [top for across, top in taken if abs(right - across) < WIDE]
        tops = _stacked([tall(each.y) for each in ordered], near)
        taken += [(right, top) for top in tops]
        for each, shift, top in zip(ordered, shifts, tops, strict=True):
            found.append(_Placed(each, centre + shift, tall(each.y), top, right))
    return found


def _stacked(heights: Sequence[float], near: Sequence[float]) -> list[float]:
    """Return heights for names, in order and apart, as a stack that covers none of the names `near` it."""
    tops: list[float] = []
    for height in heights:
        tops.append(max(height, tops[-1] + TALL) if tops else height)
    lifted = sum(top - height for top, height in zip(tops, heights, strict=True)) / len(tops)
    highest = max(0.0, BOX - TALL / 2 - (tops[-1] - tops[0]))
    for number in range(200):
        start = tops[0] - lifted + (number + 1) // 2 * (TALL / 4) * (1 if number % 2 else -1)
        moved = [top - tops[0] + start for top in tops]
        if 0 <= start <= highest and all(abs(top - other) >= TALL for top in moved for other in near):
            return moved
    return tops


def _drawn(each: _Placed, tall: Measure) -> list[Markup]:
    spot, paths = each.spot, []
    if abs(each.top - each.y) > 4 or each.left - each.x > 4:
        paths.append(element("path", class_="lead", d=f"M{each.x:.1f} {each.y:.1f}L{each.left + 7:.1f} {each.top:.1f}"))
    if spot.low is not None and spot.high is not None:
        bar = f"M{each.x:.1f} {tall(spot.low):.1f}V{tall(spot.high):.1f}"
        paths.append(element("path", class_=f"bar {spot.tone}", d=bar))
    paths.append(element("path", class_=f"spot {spot.tone}", d=f"M{each.x:.1f} {each.y:.1f}h0"))
    return paths


def _reach(values: Sequence[float], spots: Sequence[Spot]) -> tuple[float, float]:
    """Return the vertical range: all figures, and as much of the intervals as does not hide them."""
    low, high = min(values), max(values)
    room = (high - low) or abs(high) * 0.1 or 1.0
    ends = [end for spot in spots for end in (spot.low, spot.high) if end is not None and math.isfinite(end)]
    low, high = max([low - room / 2, min([low, *ends])]), min([high + room / 2, max([high, *ends])])
    return low - MARGIN * room, high + MARGIN * room


def _powers(values: Sequence[float]) -> tuple[float, float]:
    """Return the horizontal range in powers of ten, with room on the right for names."""
    left, right = math.log10(min(values)), math.log10(max(values))
    span = max(right - left, 1.0)
    return left - 0.08 * span, right + 0.2 * span


def _written(value: float, marks: Sequence[float], more: int = 0) -> str:
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    places = min(8, max(0, -math.floor(math.log10(step) + 1e-9))) + more
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", words.MINUS)


def _label(kind: str, text: str, **at: float) -> Markup:
    return element("span", text, class_=kind, style=";".join(f"{side}:{value / BOX:.1%}" for side, value in at.items()))
