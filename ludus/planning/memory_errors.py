"""Out of memory, said as a suggestion: which settings to change, in the order worth trying.

What lives here: recognising that memory ran out, and the advice. What does not: choosing for the user. The one idea:
first what costs nothing but time (smaller micro-batches, recomputation), last what changes the model.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ludus.adapters.settings import LoraSettings
from ludus.base.errors import LudusError
from ludus.planning.micro_batch import Fit, split
from ludus.planning.work import Work, halvings

SIGNS = ("can't allocate memory", "cannot allocate memory", "defaultcpuallocator", "out of memory", "not enough memory")
SHORT = 128  # tokens of context that are not halved any more


class OutOfMemory(LudusError):
    """Memory ran out; the message names the settings to change."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a processor or on a GPU."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    said = str(problem).lower()
    return isinstance(problem, RuntimeError | OSError) and any(sign in said for sign in SIGNS)


@contextmanager
def advising(
    stage: str, rows: int, accumulate: int, suggest: Callable[[], Sequence[str]] | None = None
) -> Iterator[None]:
    """Turn running out of memory inside the block into OutOfMemory with what to change.

    `suggest` may add a plan's own suggestions; it is asked only when memory has run out.
    """
    try:
        yield
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        said = list(suggest()) if suggest else []
        advice = said or steps(stage, rows, accumulate)
        raise OutOfMemory(
            f"memory ran out in {stage} with {stage}.rows={rows}; what was saved is kept. Try, in this order: "
            + "; ".join(advice)
        ) from None


def steps(stage: str, rows: int, accumulate: int) -> list[str]:
    """Return what to change when nothing is known but the settings."""
    smaller = next((half for half in halvings(rows) if half < rows), None)
    first = []
    if smaller:
        first = [f"{stage}.rows={smaller} {stage}.accumulate={accumulate * -(-rows // smaller)} (the same gradient)"]
    return [*first, f"{stage}.recompute=true", "a shorter data.context", "a smaller model.depth"]


def advice(
    work: Work, fit: Fit, limit_bytes: int, total: Callable[[Work], int], *, stage: str = "pretrain"
) -> list[str]:
    """Return what to change so that a work fits into a limit, in order, with what each would take; none if it fits."""
    if total(work) <= limit_bytes:
        return []
    found: list[str] = []
    if work.merge and total(work.with_(merge=False)) < total(work):
        found.append(
            f"{stage}.merge=false: {_told(work.with_(merge=False), total, limit_bytes)}; the adapter alone is left"
        )
    wanted = work.rows * work.accumulate
    if fit.rows >= 1 if stage == "pretrain" else work.rows > 1 and fit.rows < work.rows:
        rows, parts = split(wanted, max(1, fit.rows))
        needed = total(work.with_(rows=rows, accumulate=parts))
        found.append(f"{stage}.rows={rows} {stage}.accumulate={parts}: the same gradient in {_gb(needed)}")
    lean = work.with_(rows=1, accumulate=2, recompute=True)
    if not work.recompute:
        needed = total(work.with_(recompute=True))
        verdict = "fits" if needed <= limit_bytes else "not enough alone"
        found.append(f"{stage}.recompute=true: {_gb(needed)}, about a third more time ({verdict})")
    if stage != "pretrain":
        return found + _tuning(lean, limit_bytes, total, stage)
    found.append("the loss is computed in chunks already, so the logits are not what to save on")
    smallest = total(lean)
    if smallest > limit_bytes:
        found.append(
            "fine-tune with an adapter instead (sft.adapter.kind=lora), with a quantised base where it is large: "
            "no gradients and moments of the base"
        )
        found.append(f"a smaller model.depth: even one row with recomputation takes {_gb(smallest)}")
        found.append(_sharded(smallest, limit_bytes))
    return found


def _tuning(work: Work, limit_bytes: int, total: Callable[[Work], int], stage: str) -> list[str]:
    """Return what to change about a tuning, each on top of what comes before it: one row, recomputed, to begin with."""
    found = []
    for change, said in _changes(work, stage):
        if total(work) <= limit_bytes:
            return found
        changed = work.with_(**change)
        found.append(f"{said}: {_told(changed, total, limit_bytes)}")
        work = changed
    smallest = total(work)
    if smallest > limit_bytes:
        found.append(f"a smaller model: with all of that even one row of {work.context} tokens takes {_gb(smallest)}")
        found.append(_sharded(smallest, limit_bytes))
    return found


def _changes(work: Work, stage: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield what saves memory in a tuning, by how little it changes what is learned, and how it is asked for."""
    adapter = work.adapter or json.dumps(LoraSettings(rank=16).model_dump(mode="json"), sort_keys=True)
    if not work.adapter:
        yield {"adapter": adapter}, f"{stage}.adapter.kind=lora {stage}.adapter.rank=16"
    if work.weights != "bfloat16":
        yield {"weights": "bfloat16"}, f"{stage}.weights=bfloat16"
    if work.quantise != "nf4":
        yield {"quantise": "nf4"}, f"{stage}.quantise=nf4"
    if getattr(work.optimizer, "state", "") == "float32":
        eight = work.optimizer.model_copy(update={"state": "8bit"})
        yield {"optimizer": eight}, f"{stage}.optimizer.state=8bit"
    if work.context > SHORT:
        yield {"context": work.context // 2}, f"data.context={work.context // 2}"


def _told(work: Work, total: Callable[[Work], int], limit_bytes: int) -> str:
    needed = total(work)
    return f"{_gb(needed)} ({'fits' if needed <= limit_bytes else 'not enough yet'})"


def _sharded(smallest: int, limit_bytes: int) -> str:
    return f"shard the model over {-(-smallest // max(1, limit_bytes)) + 1} or more such devices"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
