"""One page over several runs: which settings gave which loss, the curves together, the samples side by side.

What lives here: finding what varied, the grid, the overlay. What does not: running a sweep. The one idea: the reader
wants the winner and how sure it is a winner, so the best is marked everywhere and every run stays in the table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ludus.base.errors import RunError
from ludus.base.files import atomic_write
from ludus.evaluation.report import words
from ludus.evaluation.report.charts import Series, heat, line_chart
from ludus.evaluation.report.curves import loss_series
from ludus.evaluation.report.markup import NOTHING, Markup, document, element, row, section, table
from ludus.evaluation.report.reading import Run, number, read_run

TONES = "abcdef"
MOST_NAMED = 4  # settings that vary, to name a run by them
# What differs between two runs by itself, and never explains a loss.
NEVER_VARIED = ("name", "run", "folder", "output", "path")


@dataclass(frozen=True)
class Entry:
    """A run of the sweep: what makes it different (a setting's short name to its value), and where its loss ended."""

    run: Run
    varied: dict[str, Any]
    curve: list[tuple[float, float]]
    unit: str
    measured: str

    @property
    def final(self) -> float:
        """Return the last finite loss, infinity when there is none."""
        return next((y for _, y in reversed(self.curve) if math.isfinite(y)), math.inf)

    @property
    def label(self) -> str:
        """Name the run by what varied, in short; by its folder where that is more than one reads."""
        short = [f"{name} {_short(value)}" for name, value in self.varied.items()]
        return ", ".join(short) if 0 < len(short) <= MOST_NAMED else self.run.folder.name

    @property
    def tag(self) -> str:
        """Name the run at the end of its curve."""
        return " · ".join(map(_short, self.varied.values())) if len(self.varied) <= MOST_NAMED else self.label


def write_comparison(folders: Sequence[Path], target: Path, title: str) -> Path:
    """Write the page that compares runs to the file `target` and return its path. Raises RunError for no runs."""
    if not folders:
        raise RunError("there are no runs to compare; give at least one run folder")
    runs = [read_run(Path(folder)) for folder in folders]
    names = _varied(runs)
    entries = sorted((_entry(run, names) for run in runs), key=lambda entry: entry.final)
    page = document(
        f"{title} · ludus",
        _opening(title, entries),
        _grid(entries, list(names)),
        _overlay(entries),
        _ranking(entries, list(names)),
        _samples(entries),
    )
    atomic_write(Path(target), page)
    return Path(target)


def _varied(runs: list[Run]) -> dict[str, str]:
    """Return the settings that differ and were set by somebody, by short name, those with the most values first."""
    values: dict[str, set[str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        set_by_somebody = any(not run.origins.get(key, "default").startswith(("default", "derived")) for run in runs)
        if set_by_somebody and key.rpartition(".")[2] not in NEVER_VARIED:
            values[key] = {str(run.settings.get(key)) for run in runs}
    keys = sorted((key for key, seen in values.items() if len(seen) > 1), key=lambda key: -len(values[key]))
    short = [key.rpartition(".")[2].replace("_", " ") for key in keys]
    return {name if short.count(name) == 1 else key: key for name, key in zip(short, keys, strict=True)}


def _entry(run: Run, names: dict[str, str]) -> Entry:
    varied = {name: run.settings.get(key) for name, key in names.items()}
    for records in reversed(list(run.metrics.values())):
        series, unit = loss_series(records)
        for one in reversed(series):
            if any(math.isfinite(y) for _, y in one.points):
                return Entry(run, varied, list(one.points), unit, one.name)
    return Entry(run, varied, [], "", "")


def _opening(title: str, entries: list[Entry]) -> Markup:
    best = entries[0]
    seconds = sum(number(m.get("wall_seconds")) or 0.0 for entry in entries for m in entry.run.manifests.values())
    facts = [element("b", title), element("span", words.plural(len(entries), "run"))]
    facts += [element("span", words.duration(seconds))] if seconds else []
    if math.isfinite(best.final):
        figure = element("b", words.figure(best.final, 4))
        sentence = element("p", f"Best: {best.label}, with ", figure, f" {best.unit}.", class_="headline")
    else:
        sentence = element("p", "No run has a loss yet.", class_="headline")
    lost = [entry.run.folder.name for entry in entries if not math.isfinite(entry.final)]
    warning = element("p", f"Without a finite loss: {', '.join(lost)}.", class_="warning") if lost else None
    return element("div", element("h1", facts, class_="name"), sentence, warning, class_="opening")


def _grid(entries: list[Entry], names: list[str]) -> Markup:
    """Lay final losses out by the two settings that took the most values; a cell shows the best of its runs."""
    if not names or not math.isfinite(entries[0].final):
        return NOTHING
    down, across = names[0], names[1] if len(names) > 1 else ""
    rows_, columns = _axis(entries, down), _axis(entries, across) if across else [None]
    finals = [entry.final for entry in entries if math.isfinite(entry.final)]
    low, high = min(finals), max(finals)
    rows = []
    for value in rows_:
        cells = []
        for other in columns:
            inside = [e for e in entries if e.varied[down] == value and (not across or e.varied[across] == other)]
            cells.append(_cell(inside, low, high))
        rows.append(row(_short(value), *cells))
    head = [
        f"{down} ↓" + (f" · {across} →" if across else ""),
        *(_short(column) if across else entries[0].unit for column in columns),
    ]
    note = (
        f"Final {entries[0].measured} loss in {entries[0].unit}; stronger colour is lower, the frame marks the lowest."
    )
    note += f" Of {len(names)} varied settings the two with the most values." if len(names) > 2 else ""
    return section("Final loss", note, table(head, rows, class_="kinds"))


def _cell(inside: list[Entry], low: float, high: float) -> Markup:
    best = min((entry.final for entry in inside), default=math.inf)
    if not inside:
        return heat(None)
    if not math.isfinite(best):
        return element("td", "not finite", class_="heat none")
    shade = (high - best) / (high - low) if high > low else 0.5
    cell = heat(0.04 + 0.92 * shade, words.figure(best, 4))
    return Markup(cell.replace('class="heat', 'class="heat best', 1)) if best == low else cell


def _overlay(entries: list[Entry]) -> Markup:
    """Draw the losses together: up to six in colours, more of them grey with the best in colour."""
    drawn = [entry for entry in entries if len(entry.curve) > 1]
    if not drawn:
        return NOTHING
    many = len(drawn) > len(TONES)
    middle = max(x for entry in drawn for x, _ in entry.curve) / 2
    charts = []
    for title, start in (("Loss", -math.inf), ("The second half, closer", middle)):
        series = [
            Series(
                entry.label,
                [point for point in entry.curve if point[0] >= start],
                ("faint" if index else "a") if many else TONES[index],
                labelled=not (many and index),
                short=entry.tag,
            )
            for index, entry in enumerate(drawn)
        ]
        # The best is drawn last, so that it lies on top.
        charts.append(line_chart(title, series[::-1], unit=drawn[0].unit, nearest=many, tall=True))
    note = "In colour: the best. Point at a curve to see which it is." if many else "Point at a curve to read it."
    return section("Curves", note, *charts)


def _ranking(entries: list[Entry], names: list[str]) -> Markup:
    rows, scored = [], any(entry.run.scores for entry in entries)
    for entry in entries:
        seconds = sum(number(m.get("wall_seconds")) or 0.0 for m in entry.run.manifests.values())
        tokens = sum(number(m.get("tokens")) or 0.0 for m in entry.run.manifests.values())
        final = words.figure(entry.final, 4) if math.isfinite(entry.final) else "–"
        accuracy = [words.percent(number(entry.run.scores[-1].get("accuracy"))) if entry.run.scores else "–"]
        cells = [
            *map(_short, entry.varied.values()),
            final,
            *(accuracy if scored else []),
            words.amount(tokens),
            words.duration(seconds),
        ]
        rows.append(row(entry.run.folder.name, *cells, class_="own" if entry is entries[0] else None))
    head = ["Run", *names, "Final loss", *(["Right answers"] if scored else []), "Tokens", "Time"]
    return section("All runs", "Best first.", table(head, rows, class_="numbers"))


def _samples(entries: list[Entry]) -> Markup:
    """Set what the best runs wrote for the same prompt beside each other."""
    written: dict[str, list[tuple[Entry, str]]] = {}
    for entry in entries[:6]:
        last = list(entry.run.samples.values())[-1] if entry.run.samples else []
        newest = {str(record.get("prompt", "")): str(record.get("text", "")) for record in last}
        for prompt, text in newest.items():
            written.setdefault(prompt, []).append((entry, text))
    cards = []
    for prompt, texts in list(written.items())[:4]:
        columns = [
            element("div", element("h4", entry.label), element("p", element("bdi", text[:400])), class_="plain")
            for entry, text in texts
        ]
        header = element("header", element("p", element("bdi", prompt or "(no prompt)"), class_="prompt"))
        cards.append(element("article", header, element("div", columns, class_="columns thirds"), class_="answers"))
    note = f"The last sample of the {min(6, len(entries))} best runs, the first 400 characters."
    return section("Samples", note, *cards) if cards else NOTHING


def _axis(entries: list[Entry], name: str) -> list[Any]:
    """Return a setting's values in order: numbers by size, words by the alphabet."""

    def order(value: Any) -> tuple[int, float, str]:
        size = number(value)
        return (0, size, "") if size is not None else (1, 0.0, str(value))

    return [value for _, value in sorted({order(entry.varied[name]): entry.varied[name] for entry in entries}.items())]


def _short(value: Any) -> str:
    size = number(value)
    return words.figure(size, 6).rstrip("0").rstrip(".") if isinstance(value, float) and size else str(value)
