"""What the run was made from: the corpus account, the tokenizer beside others, and every setting with its origin.

What lives here: those three sections and the list of files that could not be read. What does not: training and
scores. The one idea: nothing is silent, so every dropped document has a reason and every setting says who set it.
"""

from typing import Any

from ludus.evaluation.report import words
from ludus.evaluation.report.charts import score_bar
from ludus.evaluation.report.markup import NOTHING, Markup, element, fold, join, row, section, table
from ludus.evaluation.report.reading import Run, number


def corpus(run: Run) -> Markup:
    """Account for the text: read, dropped by reason, kept, and how it was split."""
    report = run.corpus
    read = _counts(report.get("read"))
    if not read:
        return NOTHING
    reasons = report.get("dropped")
    counted = (
        (str(reason), _counts(count)) for reason, count in (reasons if isinstance(reasons, dict) else {}).items()
    )
    dropped = sorted(((reason, count) for reason, count in counted if count), key=lambda pair: -pair[1][1])
    rows = [_account("Read", read, read[1], "total")]
    rows += [_account(f"− {reason.replace('_', ' ')}", counts, read[1], "drop") for reason, counts in dropped]
    kept = _counts(report.get("kept"))
    rows += [_account("Kept", kept, read[1], "total")] if kept else []
    for key, name in (("train", "for training"), ("validation", "held out for validation")):
        counts = _counts(report.get(key))
        rows += [_account(name, counts, read[1], "part")] if counts else []
    raw = report.get("notes")
    notes = [element("p", str(note), class_="quiet") for note in (raw if isinstance(raw, list) else [])]
    head = ["", "Documents", "Characters", "Share of characters"]
    return section("Corpus", _sum_up(read, kept), table(head, rows, class_="numbers account"), notes)


def tokenizer(run: Run) -> Markup:
    """Set the tokenizer beside others on the same held-out text."""
    rows_ = [entry for entry in run.tokenizers if number(entry.get("bytes_per_token"))]
    if not rows_:
        return NOTHING
    most = max(float(entry["bytes_per_token"]) for entry in rows_)
    rows = []
    for index, entry in enumerate(rows_):
        density = float(entry["bytes_per_token"])
        cell = element("td", f"{density:.2f}", score_bar(density / most), class_="with-bar")
        sizes = [words.whole(number(entry.get(key))) for key in ("vocabulary", "tokens")]
        rows.append(row(str(entry.get("name", "")), *sizes, cell, class_=None if index else "own"))
    note = "All on the same held-out text. More bytes per token mean more text in the same number of steps."
    head = ["Tokenizer", "Vocabulary", "Tokens needed", "Bytes per token"]
    return section("Tokenizer", note, table(head, rows, class_="numbers"))


def recipe(run: Run) -> Markup:
    """List every setting with its origin; the ones somebody chose come first and unfolded."""
    if not run.settings:
        return NOTHING
    chosen = [key for key in run.settings if not _origin(run, key).startswith(("default", "derived"))]
    rest = [key for key in run.settings if key not in chosen]
    content = [_settings(run, chosen) if chosen else element("p", "Every setting has its default.")]
    if rest:
        derived = sum(_origin(run, key).startswith("derived") for key in rest)
        text = f"{words.plural(len(rest), 'more setting')}: {derived} derived, {len(rest) - derived} at their default"
        content.append(fold(text, _settings(run, rest)))
    note = "Every value and who set it. The same values give the same run."
    return section("Recipe", note, *content)


def unread(run: Run) -> Markup:
    """List what could not be read, so that a gap in the page is no secret."""
    if not run.problems:
        return NOTHING
    return section("Left out", "Files that could not be read.", element("ul", [element("li", p) for p in run.problems]))


def _counts(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, dict):
        return None
    return number(value.get("documents")) or 0.0, number(value.get("characters")) or 0.0


def _account(name: str, counts: tuple[float, float] | None, whole: float, kind: str) -> Markup:
    documents, characters = counts or (0.0, 0.0)
    share = characters / whole if whole else 0.0
    bar = element("td", words.percent(share), score_bar(min(1.0, share)), class_="with-bar")
    return row(name, words.whole(documents), words.whole(characters), bar, class_=kind)


def _sum_up(read: tuple[float, float], kept: tuple[float, float] | None) -> str:
    if not kept or not read[1]:
        return ""
    return f"{words.percent(kept[1] / read[1])} of what was read is in the corpus; the rest is accounted for by reason."


def _settings(run: Run, keys: list[str]) -> Markup:
    rows = [
        row(
            element("th", element("code", key), scope="row"),
            element("td", element("code", _value(run.settings[key]))),
            element("td", _origin(run, key), class_="origin"),
        )
        for key in keys
    ]
    return table(["Setting", "Value", "Set by"], rows, class_="settings")


def _origin(run: Run, key: str) -> str:
    """Return who set a key; a whole table may have one origin."""
    while key not in run.origins and "." in key:
        key = key.rpartition(".")[0]
    return run.origins.get(key, "default")


def _value(value: Any) -> Markup:
    if isinstance(value, bool) or value is None:
        return join({True: "true", False: "false", None: "none"}[value])
    return join(str(value))
