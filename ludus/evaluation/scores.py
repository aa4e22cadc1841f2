"""From answers to scores: accuracy with its interval, by kind, and each model against the one before it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ludus.evaluation.questions import Answer
from ludus.evaluation.statistics import compare, wilson


def score(stage: str, answers: Sequence[Answer], *, bits_per_byte: float | None, label: str = "") -> dict[str, Any]:
    """Summarise one model's answers."""
    by_kind: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_kind[answer.kind].append(answer)
    return {
        "stage": stage,
        "label": label or stage,
        **_accuracy(answers),
        "by_kind": {kind: _accuracy(group) | {"questions": len(group)} for kind, group in by_kind.items()},
        "bits_per_byte": bits_per_byte,
        "concise_share": sum(answer.style == "concise" for answer in answers) / len(answers),
        "truncated": sum(answer.truncated for answer in answers) / len(answers),
        "mean_tokens": sum(answer.tokens for answer in answers) / len(answers),
        "comparison": None,
    }


def against(earlier: str, before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Any]:
    """Compare two models on the same questions."""
    found = compare([answer.correct for answer in before], [answer.correct for answer in after])
    return {
        "with": earlier,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "verdict": found.verdict,
    }


def _accuracy(answers: Sequence[Answer]) -> dict[str, float]:
    correct = sum(answer.correct for answer in answers)
    low, high = wilson(correct, len(answers))
    return {"accuracy": correct / len(answers), "low": low, "high": high}
