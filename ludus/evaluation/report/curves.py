"""How training went: the curves of each stage, and what the model wrote on the way.

What lives here: which metrics of a stage are drawn together, and the samples. What does not: drawing. The one idea: a
stage is recognised by the metrics it left, so a new algorithm gets its charts without being named here.
"""

from dataclasses import dataclass
from typing import Any

from ludus.evaluation.report import words
from ludus.evaluation.report.charts import Series, line_chart
from ludus.evaluation.report.markup import NOTHING, Markup, element, fold, join, row, section, table
from ludus.evaluation.report.reading import TITLES, Run, column, number


@dataclass(frozen=True)
class Panel:
    """A chart to draw when its metrics are there: metric name to the name of its curve."""

    title: str
    curves: dict[str, str]
    unit: str = ""
    share: bool = False


ROLES = ("matrix", "embedding", "table", "head", "scalar")
PANELS = [
    Panel("Reward", {"reward": "reward"}, "mean of each step's answers"),
    Panel("Log-probability", {"chosen_logp": "chosen", "rejected_logp": "rejected"}, "nats, whole answer"),
    Panel("Preferred the chosen answer", {"accuracy": "accuracy"}, share=True),
    Panel("Margin", {"margin": "margin"}, "chosen less rejected, times beta"),
    Panel("Answer length", {"length": "length"}, "tokens"),
    Panel("Entropy", {"entropy": "entropy"}, "nats per token"),
    Panel("Distance from the start", {"kl": "KL"}, "nats per token"),
    Panel("Groups that teach nothing", {"zero_variance": "groups"}, "all answers equally good", share=True),
    Panel("Clipped", {"clipped": "clipped"}, "share of tokens", share=True),
    Panel("Gradient norm", {"gradient_norm": "norm"}, "before clipping"),
    Panel("Learning rate", {f"learning_rate_{role}": role for role in ROLES}, "by role"),
    Panel("Update over weights", {f"update_ratio_{role}": role for role in ROLES}, "length of the update, by role"),
    Panel("Speed", {"tokens_per_second": "tokens"}, "tokens a second"),
    Panel("Operations used", {"flops_utilisation": "of the best this machine multiplies"}, share=True),
    Panel("Waiting for data", {"waiting": "of the step"}, share=True),
]


def training(run: Run) -> Markup:
    """Draw each stage's curves."""
    stages = [_stage(run, stage, records) for stage, records in run.metrics.items()]
    note = "Faint: every step. Strong: moving average. Dots: measured on held-out text. Thinning keeps each spike."
    return section("Training", note, *stages) if any(stages) else NOTHING


def samples(run: Run) -> Markup:
    """Show what each stage's checkpoints wrote, folded away unless it is all there is to read."""
    folds = [
        fold(_summary(stage, records), _by_prompt(records), opened=not run.answers)
        for stage, records in run.samples.items()
    ]
    note = "The same prompt continued by the model as training went on."
    return section("Samples on the way", note, *folds) if folds else NOTHING


def loss_series(records: list[dict[str, Any]]) -> tuple[list[Series], str]:
    """Return training and validation loss in bits per byte where the text's bytes are known, else in nats per token."""
    trained, held_out = column(records, "loss"), column(records, "validation_loss")
    factor = _bits_per_nat(records)
    unit = "bits per byte" if factor else _unit(records)
    series = [
        Series("train", [(x, y * (factor or 1.0)) for x, y in trained], "a", smooth=True),
        Series("validation", [(x, y * (factor or 1.0)) for x, y in held_out], "b", dots=len(held_out) <= 60),
    ]
    return [one for one in series if one.points], unit


def _stage(run: Run, stage: str, records: list[dict[str, Any]]) -> Markup | None:
    series, unit = loss_series(records)
    loss = line_chart("Loss", series, unit=unit)
    charts = []
    for panel in PANELS:
        curves = [
            Series(name, column(records, metric), tone, smooth=True)
            for (metric, name), tone in zip(panel.curves.items(), "abcde", strict=False)
        ]
        charts.append(line_chart(panel.title, curves, unit=panel.unit, share=panel.share))
    # Where a reward is climbed the loss says little, so it comes last; everywhere else it is the first thing to see.
    ordered = [*charts, loss] if column(records, "reward") else [loss, *charts]
    drawn = [chart for chart in ordered if chart]
    if not drawn:
        return None
    last = records[-1]
    steps, tokens = number(last.get("step")), number(last.get("tokens"))
    facts = [
        f"{words.whole(steps)} steps" if steps is not None else "",
        f"{words.amount(tokens)} tokens" if tokens else "",
    ]
    heading = element("h3", run.name(stage), element("small", " · ".join(fact for fact in facts if fact)))
    grid = element("div", drawn, class_="charts many" if len(drawn) > 4 else "charts")
    return join(heading, grid, _events(run.events.get(stage, [])))


def _events(records: list[dict[str, Any]]) -> Markup | None:
    """List what went wrong on the way: skipped updates, rollbacks, with their likely cause and what to change."""
    if not records:
        return None
    columns = ("step", "kind", "cause", "advice")
    rows = [row(*(str(record.get(name, "")) for name in columns)) for record in _evenly(records, 20)]
    title = f"{words.plural(len(records), 'event')} on the way"
    return fold(element("b", title), [table(["step", "what", "likely cause", "what to change"], rows)])


def _unit(records: list[dict[str, Any]]) -> str:
    """Say what the loss is a mean of; stages of preference and reward are told by their metrics."""
    if column(records, "chosen_logp") or column(records, "margin"):
        return "nats per pair"
    return "" if column(records, "reward") else "nats per token"


def _bits_per_nat(records: list[dict[str, Any]]) -> float | None:
    """Return what turns a loss per token into bits per byte, when both were measured on the same text throughout."""
    ratios = [
        bits / loss
        for record in records
        if (bits := number(record.get("bits_per_byte"))) and (loss := number(record.get("validation_loss")))
    ]
    same = bool(ratios) and max(ratios) < 1.01 * min(ratios)
    return ratios[-1] if same else None


def _summary(stage: str, records: list[dict[str, Any]]) -> Markup:
    checkpoints = len({str(record.get("step")) for record in records})
    facts = f"{words.plural(len(records), 'sample')} at {words.plural(checkpoints, 'checkpoint')}"
    return join(element("b", TITLES.get(stage, stage)), f" {facts}")


def _by_prompt(records: list[dict[str, Any]]) -> list[Markup]:
    prompts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        prompts.setdefault(str(record.get("prompt", "")), []).append(record)
    return [
        element(
            "div",
            element("p", element("bdi", prompt or "(no prompt)"), class_="prompt"),
            element("dl", [_sample(record) for record in _evenly(series, 8)]),
            element("p", f"{len(series) - 8} more in samples.jsonl", class_="quiet") if len(series) > 8 else None,
            class_="samples",
        )
        for prompt, series in prompts.items()
    ]


def _sample(record: dict[str, Any]) -> Markup:
    step = number(record.get("step"))
    text = str(record.get("text", ""))
    cut = f"{text[:600]} … [{len(text) - 600:,} more characters]" if len(text) > 600 else text
    return join(element("dt", f"step {words.whole(step)}"), element("dd", element("bdi", cut)))


def _evenly(items: list[Any], count: int) -> list[Any]:
    """Take `count` items at even distances, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
