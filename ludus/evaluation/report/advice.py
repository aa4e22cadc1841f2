"""What to try next: rules that read the run's own figures, each ending in a command.

What lives here: the rules and their thresholds. What does not: any wish of the author that no figure supports. The one
idea: a rule speaks only when a number says so, names that number, and changes only a setting this recipe has.
"""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ludus.evaluation.report import words
from ludus.evaluation.report.markup import NOTHING, Markup, element, section
from ludus.evaluation.report.reading import CONTROL, TITLES, Run, column, number

MOST = 5


@dataclass(frozen=True)
class Advice:
    """One finding with its figure, why it matters, and the command that acts on it. Higher `weight` comes first."""

    finding: str
    reason: str
    command: str
    weight: float


def advise(run: Run) -> list[Advice]:
    """Return what the figures suggest, the most useful first."""
    found = [advice for rule in RULES for advice in rule(run)]
    return sorted(found, key=lambda advice: -advice.weight)[:MOST]


def advice(run: Run) -> Markup:
    """Lay the suggestions out, each with its command."""
    items = [
        element("li", element("b", one.finding), element("p", one.reason), element("code", one.command))
        for one in advise(run)
    ]
    note = "Read off this run's figures. A finished stage whose settings stay the same is not run again."
    return section("What to try next", note, element("ol", items, class_="advice")) if items else NOTHING


def _not_finite(run: Run) -> Iterator[Advice]:
    for stage, records in run.metrics.items():
        bad = [x for x, y in column(records, "loss") if not math.isfinite(y)]
        change = _scale(run, f"{stage}.learning_rate", 0.5)
        if bad and change:
            finding = f"{TITLES.get(stage, stage)}: the loss was not finite at {words.plural(len(bad), 'step')}"
            yield Advice(finding, "Smaller steps keep it in range.", _command(run, change), 10)


def _degraded(run: Run) -> Iterator[Advice]:
    for result in run.scores:
        comparison, stage = result.get("comparison"), str(result.get("stage"))
        if not isinstance(comparison, dict) or comparison.get("verdict") != "degraded":
            continue
        change = _scale(run, f"{stage}.learning_rate", 0.5) or _scale(run, f"{stage}.steps", 0.5)
        if change:
            lost = words.points(number(comparison.get("difference")) or 0.0)
            finding = f"{run.label(stage)} made the model worse: {lost} points"
            yield Advice(finding, "A gentler stage keeps what was there.", _command(run, change), 9)


def _still_falling(run: Run) -> Iterator[Advice]:
    for stage in ("pretrain", "sft"):
        held_out = _finite(run, stage, "validation_loss")
        change = _scale(run, f"{stage}.steps", 2)
        if len(held_out) < 4 or not change:
            continue
        quarter = held_out[-max(2, len(held_out) // 4) :]
        fall = (quarter[0][1] - quarter[-1][1]) / abs(quarter[0][1] or 1.0)
        if fall > 0.01:
            finding = (
                f"{TITLES[stage]} was still learning: validation loss fell {words.percent(fall)} in its last quarter"
            )
            reason = "Twice the steps cost twice the time of this stage."
            yield Advice(finding, reason, _command(run, change), 7)


def _overfitted(run: Run) -> Iterator[Advice]:
    for stage in ("pretrain", "sft", "reward"):
        held_out = _finite(run, stage, "validation_loss")
        if len(held_out) < 4:
            continue
        (best_step, best), (last_step, last) = min(held_out, key=lambda p: p[1]), held_out[-1]
        key = _key(run, f"{stage}.steps")
        if key and last > 1.01 * best and best_step < 0.9 * last_step:
            finding = f"{TITLES[stage]} went on too long: validation loss was lowest at step {words.whole(best_step)}"
            rise = f"{words.figure(best)} to {words.figure(last)}"
            reason = f"It rose from {rise} afterwards. Stop there, or give it more text."
            yield Advice(finding, reason, _command(run, f"{key}={max(1, round(best_step))}"), 8)


def _weak_kind(run: Run) -> Iterator[Advice]:
    last = run.scores[-1] if run.scores else {}
    kinds = last.get("by_kind")
    overall = number(last.get("low"))
    if not isinstance(kinds, dict) or overall is None:
        return
    highs = {str(kind): number(entry.get("high")) for kind, entry in kinds.items() if isinstance(entry, dict)}
    weak = {kind: high for kind, high in highs.items() if high is not None and high < overall}
    stage = str(last.get("stage"))
    change = _scale(run, "exercises.count", 2) or _scale(run, f"{stage}.steps", 2) or _scale(run, "sft.steps", 2)
    if weak and change:
        kind = min(weak, key=lambda name: weak[name])
        share = words.percent(number(kinds[kind].get("accuracy")))
        finding = f"The weakest kind of question is “{kind.replace('_', ' ')}”: {share} right"
        whole = words.percent(number(last.get("accuracy")))
        reason = f"It lies clearly below the whole ({whole}). More practice helps most here."
        yield Advice(finding, reason, _command(run, change), 6)


def _runs_on(run: Run) -> Iterator[Advice]:
    """Find answers that did not come to an end: cut off by the limit, or rambling."""
    stage = str(run.scores[-1].get("stage")) if run.scores else ""
    answers = run.answers.get(stage, [])
    if not answers:
        return
    cut = fmean(answer.get("truncated") is True for answer in answers)
    rambling = fmean(answer.get("style") == "rambling" for answer in answers)
    limit = _scale(run, "evaluate.max_new_tokens", 2) or _scale(run, "evaluate.max_tokens", 2)
    if cut > 0.05 and limit:
        finding = f"{words.percent(cut)} of the last answers were cut off by the limit on their length"
        yield Advice(finding, "A right answer may lie behind the cut.", _command(run, limit), 6.5)
    elif rambling > 0.15 and (change := _scale(run, "sft.steps", 2)):
        finding = f"{words.percent(rambling)} of the last answers ramble"
        reason = "Longer fine-tuning teaches where an answer ends."
        yield Advice(finding, reason, _command(run, change), 5.5)


def _idle_groups(run: Run) -> Iterator[Advice]:
    for stage, records in run.metrics.items():
        shares = _tail(column(records, "zero_variance"))
        change = next((c for name in ("group_size", "group") if (c := _scale(run, f"{stage}.{name}", 2))), None)
        if shares and fmean(shares) > 0.5 and change:
            finding = f"{words.percent(fmean(shares))} of the groups in {run.label(stage)} taught nothing"
            reason = (
                "All their answers were equally good, so there was nothing to prefer. Larger groups differ more often."
            )
            yield Advice(finding, reason, _command(run, change), 5)


def _collapsed(run: Run) -> Iterator[Advice]:
    for stage, records in run.metrics.items():
        entropy = [y for _, y in column(records, "entropy") if math.isfinite(y)]
        change = _scale(run, f"{stage}.learning_rate", 0.5)
        if len(entropy) >= 8 and change and fmean(entropy[-3:]) < 0.1 * fmean(entropy[:3]):
            left = words.figure(fmean(entropy[-3:]))
            finding = f"{run.label(stage)} stopped exploring: entropy fell to {left} nats per token"
            yield Advice(finding, "Smaller steps keep several answers alive.", _command(run, change), 4.5)


def _control_as_good(run: Run) -> Iterator[Advice]:
    by_stage = {str(result.get("stage")): number(result.get("accuracy")) for result in run.results}
    control, preferred = by_stage.get(CONTROL), by_stage.get("dpo")
    change = _scale(run, "dpo.steps", 2)
    if control is not None and preferred is not None and control >= preferred and change:
        finding = (
            f"Imitating the chosen answers did as well as DPO: {words.percent(control)} and {words.percent(preferred)}"
        )
        yield Advice(finding, "The preferences have not yet paid for themselves.", _command(run, change), 4)


def _few_questions(run: Run) -> Iterator[Advice]:
    last = run.scores[-1] if run.scores else {}
    low, high = number(last.get("low")), number(last.get("high"))
    change = _scale(run, "evaluate.questions", 4)
    if low is not None and high is not None and high - low > 0.12 and change:
        finding = f"The last score is only known to lie between {words.percent(low)} and {words.percent(high)}"
        reason = "Four times the questions halve the interval, and take no training."
        yield Advice(finding, reason, _command(run, change), 3)


def _larger(run: Run) -> Iterator[Advice]:
    depth = number(run.settings.get("model.depth"))
    if depth and run.metrics:
        larger = math.ceil(depth * 1.5)
        reason = "Width, batch and learning rate follow from the depth; expect several times the time."
        finding = f"A larger model: {larger:.0f} layers instead of {depth:.0f}"
        yield Advice(finding, reason, _command(run, f"model.depth={larger}"), 1)


RULES = (
    _not_finite,
    _degraded,
    _overfitted,
    _still_falling,
    _weak_kind,
    _runs_on,
    _idle_groups,
    _collapsed,
    _control_as_good,
    _few_questions,
    _larger,
)


def _command(run: Run, change: str) -> str:
    return f"ludus run {shlex.quote(run.recipe or 'quickstart')} {shlex.quote(change)}"


def _key(run: Run, key: str) -> str | None:
    """Return the key if this recipe has it; a run without a recipe gets the benefit of the doubt."""
    return key if key in run.settings or not run.settings else None


def _scale(run: Run, key: str, factor: float) -> str | None:
    """Return the override that multiplies a numeric setting, or None when this recipe does not have it."""
    value = number(run.settings.get(key))
    if not value:
        return None
    scaled: Any = value * factor
    text = f"{max(1, round(scaled))}" if isinstance(run.settings[key], int) else f"{scaled:.3g}"
    return f"{key}={text}"


def _finite(run: Run, stage: str, name: str) -> list[tuple[float, float]]:
    return [(x, y) for x, y in column(run.metrics.get(stage, []), name) if math.isfinite(y)]


def _tail(points: list[tuple[float, float]]) -> list[float]:
    """Return the values of the last quarter."""
    values = [y for _, y in points if math.isfinite(y)]
    return values[-max(1, len(values) // 4) :] if values else []
