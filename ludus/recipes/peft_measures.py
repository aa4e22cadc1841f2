"""What is measured of one trained adapter: time, memory, the loss on what was held out, and whether it can be merged.

What lives here: measures of a model or of this process. What does not: training, or text. The one idea: memory is both
measured, as what the process took, and counted byte by byte, because only the count is the same everywhere.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ludus.adapters.certificate import merge_certificate
from ludus.adapters.surgery import is_adapted
from ludus.base.errors import ConfigError
from ludus.data.pairs import Example
from ludus.evaluation.likelihood import likelihoods, total
from ludus.learning.loop import Metrics, Run
from ludus.model.transformer import Transformer

SHORT = 32  # tokens of an answer that can be asked to be exact
FEW = 5  # short answers, of which a share would say nothing
WHOLE = "nothing to merge"
CHECKED = 4  # examples whose logits a merge is checked on
SECONDS_BETWEEN_LINES = 0.2
Say = Callable[[dict[str, Any]], None]


def trainable(model: Transformer) -> int:
    """Count the parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def certificate(model: Transformer, examples: Sequence[Example]) -> dict[str, Any]:
    """Merge adapters, in place, and return the largest difference of a logit, or why they cannot be merged."""
    if not is_adapted(model):
        return {"largest": None, "reason": WHOLE}
    length = min(len(tokens) for tokens, _ in examples[:CHECKED])
    rows = torch.stack([torch.from_numpy(tokens[:length]) for tokens, _ in examples[:CHECKED]])
    try:
        found = merge_certificate(model, rows.to(model.embed_tokens.weight.device))
    except ConfigError as problem:
        return {"largest": None, "reason": str(problem)}
    return {"largest": found["largest_difference"], "relative": found["relative_difference"], "reason": None}


class Clock:
    """A hook: seconds of a step, on the processors and on the wall. The first step, which warms up, is left out."""

    def __init__(self, seed: int, tell: Say) -> None:
        self.seed, self.tell, self.loss = seed, tell, math.nan
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)
        self._steps, self._said = 0, 0.0

    def __call__(self, run: Run, metrics: Metrics) -> None:
        """Take the time after a step."""
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        self._last = time.process_time(), time.perf_counter()
        self._first = self._first or self._last
        self._steps, self.loss = run.step, metrics["loss"]
        if self._last[1] - self._said > SECONDS_BETWEEN_LINES:
            self._said = self._last[1]
            self.tell({"step": run.step, "seed": self.seed, "loss": finite(float(self.loss))})

    def seconds(self) -> dict[str, float | None]:
        """Return the means; None for a single step."""
        if self._first is None or self._steps < 2:
            return {"cpu_seconds": None, "wall_seconds": None}
        cpu, wall = ((last - first) / (self._steps - 1) for first, last in zip(self._first, self._last, strict=True))
        return {"cpu_seconds": cpu, "wall_seconds": wall}


def quality(model: Transformer, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the loss a token of the good answers, and how many of the short ones come out exactly."""
    found = likelihoods(model, examples)
    whole = total(found)
    short = [each for each in found if each.tokens <= SHORT]
    return {
        "loss": finite(whole.nats / whole.tokens),
        "held_out_tokens": whole.tokens,
        "held_out_examples": len(found),
        "exact": sum(each.exact for each in short) / len(short) if len(short) >= FEW else None,
        "short_answers": len(short),
    }


def gradient_bytes(model: Transformer) -> int:
    """Count the bytes of all gradients, when each trainable weight has one."""
    return sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)


def state_bytes(state: dict[str, dict[str, Tensor]]) -> int:
    """Count the bytes of an optimizer's state."""
    return sum(value.numel() * value.element_size() for item in state.values() for value in item.values())


def finite(value: Any) -> Any:
    """Return a value, None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def forget_peak() -> None:
    """Begin anew to look for the most memory; only Linux can on a processor."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(start: int) -> int:
    """Return the most memory since the last look: of the GPU, or where there is none resident, less what was before."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return max(0, memory_status("VmHWM") - start)


def memory_status(name: str) -> int:
    """Return bytes of this process by Linux' name for them; elsewhere the most that was ever resident."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
