"""How many rows to compute at a time: the largest micro-batch that fits, and how to split a batch without changing it.

What lives here: the search, and the choice for a recipe. What does not: counting memory. The one idea: the gradient
does not depend on how a batch is split, so memory alone decides the split.
"""

from collections.abc import Callable
from typing import NamedTuple

from ludus.base.errors import ConfigError
from ludus.planning.work import Work

MARGIN = 0.92  # of the memory is used: the plan is good to a tenth
MOST_ROWS = 1 << 20
CHECKED = 32  # times the rows one started from: further out the line is trusted


class Fit(NamedTuple):
    """The most rows that fit, and the line they were found on: bytes without any rows, and bytes for each row."""

    rows: int
    fixed_bytes: int
    row_bytes: int


class Choice(NamedTuple):
    """Rows of a micro-batch, micro-batches of a step, and why."""

    rows: int
    accumulate: int
    reason: str


def largest(work: Work, limit_bytes: int, total: Callable[[Work], int]) -> Fit:
    """Find the most rows whose `total` bytes fit into a limit, on the line through two row counts; 0 when none do."""
    first, second = work.with_(rows=max(1, work.rows)), work.with_(rows=2 * max(1, work.rows))
    low, high = total(first), total(second)
    row_bytes = max(1, (high - low) // (second.rows - first.rows))
    fixed = low - row_bytes * first.rows
    rows = min(MOST_ROWS, max(0, (limit_bytes - fixed) // row_bytes))
    near = first.rows // 8 < abs(rows - first.rows) < CHECKED * first.rows
    if rows and near and total(work.with_(rows=rows)) > limit_bytes:
        rows -= 1 + rows // 16  # the line bends a little where another moment becomes the peak
    return Fit(rows, fixed, row_bytes)


def split(batch_rows: int, most_rows: int) -> tuple[int, int]:
    """Return the rows of a micro-batch and how many make the batch: as few as fit, all alike.

    Raises ConfigError when not even one row fits.
    """
    if most_rows < 1:
        raise ConfigError("not even one row fits into memory; set a shorter data.context or a smaller model.depth")
    for parts in range(-(-batch_rows // most_rows), batch_rows + 1):
        if batch_rows % parts == 0:
            return batch_rows // parts, parts
    return 1, batch_rows


def choose_rows(
    work: Work, *, memory_bytes: int, total: Callable[[Work], int], batch_rows: int | None = None
) -> Choice:
    """Choose rows and accumulation for a batch of `batch_rows` rows (by default the work's) within a memory.

    `total` gives the bytes a work takes at its peak, as `lambda work: spending.memory(work, device).total` does.
    Raises ConfigError when not even one row fits.
    """
    wanted = batch_rows or work.rows * work.accumulate
    limit = round(MARGIN * memory_bytes)
    fit = largest(work.with_(rows=min(wanted, work.rows), accumulate=1), limit, total)
    if fit.rows >= wanted:
        return Choice(wanted, 1, f"all {wanted} rows of a step fit at once: {_line(fit, limit)}")
    # Once a step has several micro-batches, gradients lie beside the activations.
    fit = largest(work.with_(rows=max(1, min(fit.rows, work.rows)), accumulate=2), limit, total)
    rows, parts = split(wanted, fit.rows)
    return Choice(rows, parts, f"{wanted} rows a step as {parts} times {rows}: {_line(fit, limit)}")


def _line(fit: Fit, limit: int) -> str:
    return (
        f"{fit.fixed_bytes / 1e9:.2f} GB + {fit.row_bytes / 1e6:.1f} MB a row, {limit / 1e9:.1f} GB may be used, "
        f"so at most {fit.rows} rows"
    )
