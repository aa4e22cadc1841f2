"""What the evaluation found: accuracy with its interval, what each stage changed, and the answers themselves.

What lives here: the table of scores, the map of kinds of question, the same prompts answered by each stage. What does
not: computing a score. The one idea: no accuracy without its interval, no difference without its verdict, and shown
answers are spread evenly over the questions, never picked by how good they look.
"""

from typing import Any

from ludus.evaluation.report import words
from ludus.evaluation.report.charts import heat, score_bar
from ludus.evaluation.report.markup import NOTHING, Markup, element, fold, row, section, table
from ludus.evaluation.report.reading import CONTROL, Run, number

SHOWN, HIDDEN, LONGEST = 6, 18, 240
MARKS = {"improved": "▲", "degraded": "▼", "within noise": "≈"}


def evaluation(run: Run) -> Markup:
    """Tabulate the stages: accuracy with its 95 % interval, the paired verdict, bits per byte, manner."""
    if not run.results:
        return NOTHING
    optional = {"bits_per_byte": "Bits per byte", "concise_share": "Concise", "mean_tokens": "Tokens per answer"}
    present = {key: name for key, name in optional.items() if any(number(r.get(key)) is not None for r in run.results)}
    rows = [_score_row(run, result, present) for result in run.results]
    asked = f"{words.plural(run.questions, 'question')} held out from training. " if run.questions else ""
    note = (
        f"{asked}The whisker is the 95 % interval (Wilson). A change compares both models on the same questions, "
        "in percentage points with its paired 95 % interval (Tango); it is noise when the interval holds 0."
    )
    head = ["After", "Right answers", "Change", *present.values()]
    return section("Evaluation", note, table(head, rows, class_="scores"), _kinds(run))


def answers(run: Run) -> Markup:
    """Show the same prompts as each stage answered them, side by side."""
    stages = [str(s.get("stage")) for s in run.scores if str(s.get("stage")) in run.answers] or [
        stage for stage in run.answers if stage != CONTROL
    ]
    if not stages:
        return NOTHING
    by_id = {stage: {str(answer.get("id")): answer for answer in run.answers[stage]} for stage in stages}
    common = [key for key in by_id[stages[0]] if all(key in by_id[stage] for stage in stages)]
    common.sort(key=lambda key: (str(by_id[stages[0]][key].get("kind")), key))
    cards = [_card(run, key, by_id) for key in _spread(common, SHOWN + HIDDEN)]
    if not cards:
        return NOTHING
    first = _spread(cards, SHOWN)
    rest = [card for card in cards if card not in first]
    more = fold(f"{len(rest)} more of {words.plural(len(common), 'question')}", rest) if rest else None
    note = "The same held-out questions, answered by each stage. Taken at even distances over all kinds, not chosen."
    return section("Before and after", note, first, more)


def _score_row(run: Run, result: dict[str, Any], optional: dict[str, str]) -> Markup:
    accuracy, low, high = (number(result.get(key)) for key in ("accuracy", "low", "high"))
    interval = f"{100 * low:.0f}–{100 * high:.0f}" if low is not None and high is not None else ""
    value = element(
        "td",
        element("b", words.percent(accuracy)),
        element("small", interval),
        score_bar(accuracy, low, high) if accuracy is not None else None,
        class_="accuracy",
    )
    writers = {"bits_per_byte": words.figure, "concise_share": words.percent, "mean_tokens": lambda v: f"{v:.0f}"}
    cells = [
        element("td", writers[key](found) if (found := number(result.get(key))) is not None else "–", data_label=name)
        for key, name in optional.items()
    ]
    control = result.get("stage") == CONTROL
    name = element("th", run.label(str(result.get("stage"))), element("small", "control") if control else None)
    return row(name, value, _change(run, result), *cells, class_="control" if control else None)


def _change(run: Run, result: dict[str, Any]) -> Markup:
    comparison = result.get("comparison")
    if not isinstance(comparison, dict) or number(comparison.get("difference")) is None:
        return element("td", element("small", "starting point"), class_="change")
    verdict = str(comparison.get("verdict"))
    low, high = number(comparison.get("low")), number(comparison.get("high"))
    interval = f"{words.points(low)} to {words.points(high)}" if low is not None and high is not None else ""
    return element(
        "td",
        element("span", f"{MARKS.get(verdict, '')} {verdict}", class_=f"chip {verdict.split()[0]}"),
        element("b", words.points(float(comparison["difference"]))),
        element("small", f"{interval} against {run.label(str(comparison.get('with')))}"),
        class_="change",
    )


def _kinds(run: Run) -> Markup:
    """Map accuracy by kind of question and stage."""
    named = [(result, result.get("by_kind")) for result in run.results]
    maps = [(result, kinds) for result, kinds in named if isinstance(kinds, dict) and kinds]
    kinds = sorted({str(kind) for _, by_kind in maps for kind in by_kind})
    if not kinds:
        return NOTHING
    rows = []
    for kind in kinds:
        entries = [by_kind.get(kind) for _, by_kind in maps]
        asked = next((number(entry.get("questions")) for entry in entries if isinstance(entry, dict)), None)
        cells = [heat(number(entry.get("accuracy")) if isinstance(entry, dict) else None) for entry in entries]
        label = element("th", kind.replace("_", " "), element("small", f"{asked:.0f}") if asked else None, scope="row")
        rows.append(row(label, *cells))
    head = ["Kind of question", *(run.label(str(result.get("stage"))) for result, _ in maps)]
    return table(head, rows, class_="kinds")


def _card(run: Run, key: str, by_id: dict[str, dict[str, dict[str, Any]]]) -> Markup:
    question = next(iter(by_id.values()))[key]
    expected = element("span", "expected ", element("b", str(question.get("answer", ""))), class_="expected")
    prompt = element("p", element("bdi", _cut(str(question.get("prompt", "")))), class_="prompt")
    columns = [_answer(run.label(stage), answered[key]) for stage, answered in by_id.items()]
    header = element("header", element("span", str(question.get("kind", "")), class_="kind"), prompt, expected)
    return element("article", header, element("div", columns, class_="columns"), class_="answers")


def _answer(label: str, answer: dict[str, Any]) -> Markup:
    right = answer.get("correct") is True
    mark = element("span", "✓" if right else "✗", class_="mark", title="right" if right else "wrong")
    said = str(answer.get("response", ""))
    text = element("bdi", _cut(said.strip())) if said.strip() else element("em", "said nothing")
    return element("div", element("h4", mark, label), element("p", text), class_="right" if right else "wrong")


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST].rstrip()} … [{len(text) - LONGEST:,} more characters]"


def _spread(items: list[Any], count: int) -> list[Any]:
    """Take `count` items at even distances."""
    if len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]
