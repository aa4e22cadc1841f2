"""What the bench of adapters found, kind by kind: means over seeds with intervals, as a table and as CSV.

What lives here: summing up. What does not: trying, and the page. The one idea: three seeds are few, so an interval is
Student's and is wide; two kinds whose intervals overlap have not been told apart.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, stdev
from typing import Any

from ludus.evaluation.report import words

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the normal one is corrected.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
CSV = [
    "name",
    "kind",
    "quantise",
    "seed",
    "rate",
    "trainable",
    "loss",
    "exact",
    "train_loss",
    "bits_per_byte",
    "forgotten",
    "forgotten_low",
    "forgotten_high",
    "peak_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "cpu_seconds",
    "wall_seconds",
    "merge_largest",
    "merge_reason",
]
ENOUGH = 3  # seeds, below which a claim that two kinds are alike would only say that little was tried
HEAD = (
    "kind",
    "rate",
    "trainable",
    "share",
    "loss",
    "exact",
    "forgotten",
    "peak",
    "grad+opt",
    "cpu/step",
    "wall/step",
    "merge",
)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; `low` and `high` bound it with 95 % confidence and are None for one seed."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Return half the width of the interval."""
        return None if self.high is None else self.high - self.value


@dataclass(frozen=True)
class Row:
    """One variant over its seeds; None stands for what could not be measured."""

    name: str
    quantise: str
    seeds: int
    rate: float
    rate_reason: str
    trainable: int
    share: float
    loss: Mean | None
    exact: Mean | None
    forgotten: Mean | None
    peak_bytes: int
    adapter_bytes: int
    cpu_seconds: float | None
    wall_seconds: float | None
    merge: float | None
    merge_reason: str | None
    diverged: int = 0
    losses: dict[int, float] = field(default_factory=dict)  # by seed


def mean(values: Sequence[float]) -> Mean:
    """Return the mean with Student's interval, 95 %."""
    centre = fmean(values)
    if len(values) < 2:
        return Mean(centre)
    freedom = len(values) - 1
    half = _student(freedom) * stdev(values) / math.sqrt(len(values))
    return Mean(centre, centre - half, centre + half)


def rows(content: Mapping[str, Any]) -> list[Row]:
    """Return a row for each variant that has a finished run, in the order they were asked for."""
    parameters = {each["quantise"]: each["parameters"] for each in content["bases"]}
    names = dict.fromkeys(each["name"] for each in content["runs"])
    return [_row([each for each in content["runs"] if each["name"] == name], parameters["none"]) for name in names]


def as_good(found: Sequence[Row], best: Row) -> list[Row]:
    """Return the rows that cannot be told from the best: seed by seed, the interval of what they are worse holds 0."""
    alike = [best]
    for each in found:
        worse = [loss - best.losses[seed] for seed, loss in each.losses.items() if seed in best.losses]
        difference = mean(worse) if len(worse) >= ENOUGH else None
        if each is not best and difference and difference.low is not None and difference.low <= 0:
            alike.append(each)
    return alike


def table(content: Mapping[str, Any]) -> list[str]:
    """Lay the rows out as lines of text, the models as they are first."""
    lines: list[list[str]] = [list(HEAD)]
    for base in content["bases"]:
        untrained = ["-"] * len(HEAD)
        untrained[0], untrained[4] = base["name"], figure(base["loss"], 4)
        untrained[5] = "-" if base["exact"] is None else words.percent(base["exact"])
        lines.append(untrained)
    for each in rows(content):
        forgotten = "-" if each.forgotten is None else with_interval(each.forgotten, 4, signed=True)
        lines.append(
            [
                each.name,
                f"{each.rate:g}",
                f"{each.trainable:,}",
                f"{100 * each.share:.3g} %",
                "diverged" if each.loss is None else with_interval(each.loss, 4),
                "-" if each.exact is None else words.percent(each.exact.value),
                forgotten,
                words.size(each.peak_bytes),
                words.size(each.adapter_bytes),
                milliseconds(each.cpu_seconds),
                milliseconds(each.wall_seconds),
                merging(each),
            ]
        )
    return _aligned(lines) + [f"{name} failed: {reason}" for name, reason in content["failed"].items()]


def as_csv(content: Mapping[str, Any]) -> str:
    """Return a line for each run."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for each in content["runs"]:
        change = each["forgetting"] or {}
        found = {
            f"forgotten{end}": change.get(name)
            for end, name in (("", "difference"), ("_low", "low"), ("_high", "high"))
        }
        merge = {"merge_largest": each["merge"]["largest"], "merge_reason": each["merge"]["reason"]}
        writer.writerow(each | found | merge)
    return out.getvalue()


def merging(each: Row) -> str:
    """Say what came of merging."""
    if each.merge is not None:
        return f"{each.merge:.1e} apart"
    return "nothing to merge" if each.merge_reason == "nothing to merge" else "cannot be merged"


def with_interval(found: Mean, places: int, *, signed: bool = False) -> str:
    """Write a mean as 1.2345 ±0.0123."""
    value = f"{found.value:+.{places}f}" if signed else f"{found.value:.{places}f}"
    return value if found.half is None else f"{value} ±{found.half:.{places}f}"


def figure(value: float | None, places: int) -> str:
    """Write a number that may be missing."""
    return "-" if value is None else f"{value:.{places}f}"


def milliseconds(seconds: float | None) -> str:
    """Write the time of a step."""
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def _row(runs: Sequence[Mapping[str, Any]], parameters: int) -> Row:
    first = runs[0]
    changes = [each["forgetting"] for each in runs if each["forgetting"]]
    known = [change["difference"] for change in changes if change["difference"] is not None]
    forgotten = mean(known) if known else None
    if len(known) == 1:  # one seed: the interval over documents
        forgotten = Mean(known[0], changes[0]["low"], changes[0]["high"])
    losses = [each["loss"] for each in runs if each["loss"] is not None]
    largest = [each["merge"]["largest"] for each in runs if each["merge"]["largest"] is not None]
    return Row(
        name=first["name"],
        quantise=first["quantise"],
        seeds=len(runs),
        rate=first["rate"],
        rate_reason=first["rate_reason"],
        trainable=first["trainable"],
        share=first["trainable"] / parameters,
        loss=mean(losses) if losses else None,
        exact=_mean_of(runs, "exact"),
        forgotten=forgotten,
        peak_bytes=min(each["peak_bytes"] for each in runs),  # above it lies what the allocator kept from other seeds
        adapter_bytes=first["gradient_bytes"] + first["optimizer_bytes"],
        cpu_seconds=_least(runs, "cpu_seconds"),
        wall_seconds=_least(runs, "wall_seconds"),
        merge=max(largest) if largest else None,
        merge_reason=first["merge"]["reason"],
        diverged=len(runs) - len(losses),
        losses={each["seed"]: each["loss"] for each in runs if each["loss"] is not None},
    )


def _mean_of(runs: Sequence[Mapping[str, Any]], name: str) -> Mean | None:
    values = [each[name] for each in runs if each[name] is not None]
    return mean(values) if values else None


def _least(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the least time: whatever else the machine does only adds."""
    return min((each[name] for each in runs if each[name] is not None), default=None)


def _student(freedom: int) -> float:
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            [f"{line[0]:<{widths[0]}}", *(f"{word:>{wide}}" for word, wide in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
