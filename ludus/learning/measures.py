"""Hooks that measure how training goes, beyond what the objective says: rates, speed, memory.

They add to the metrics; writing those down is another hook's business. Each costs microseconds.
"""

import resource
import sys

import torch

from ludus.learning.loop import Hook, Metrics, Run

STEP = ("data", "gradient", "update")  # the laps of the loop that are the step itself
# Metrics that tell of the machine and not of the run: those of a resumed run are others.
OF_THE_MACHINE = frozenset(f"{name}_seconds" for name in (*STEP, "hooks", "waited")) | {
    "seconds",
    "waiting",
    "tokens_per_second",
    "flops_utilisation",
    "memory_bytes",
}
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of what the kernel reports


def rates(run: Run, metrics: Metrics) -> None:
    """Add the learning rate of each role: `learning_rate_matrix`, `learning_rate_embedding`, ..."""
    metrics |= {f"learning_rate_{role}": rate for role, rate in run.optimizer.rates().items()}


def memory(run: Run, metrics: Metrics) -> None:
    """Add `memory_bytes`, the most that was held so far: on the GPU that trains, else by this process."""
    metrics["memory_bytes"] = float(peak_memory(run.model.embed_tokens.weight.device))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far on a device, or by this process where the device is the processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def speed(*, flops_per_token: float, peak_flops: float | None) -> Hook:
    """Add where the step's time went (`data_seconds`, `gradient_seconds`, `update_seconds`; `hooks_seconds` of the step
    before), `tokens_per_second`, `waiting` and `flops_utilisation`.

    `waiting` is the share of the step spent waiting for data. Utilisation is that of the model's own operations
    (PaLM, arXiv 2204.02311 appendix B) against `peak_flops` a second, what this machine multiplies at best; recomputed
    operations do not count, and nothing is said where no peak is known.
    """
    before = -1

    def hook(run: Run, metrics: Metrics) -> None:
        nonlocal before
        laps, tokens = run.clock.take(), run.source.tokens
        seconds = max(sum(laps.get(f"{name}_seconds", 0.0) for name in STEP), 1e-9)
        metrics |= laps | {"waiting": laps.get("data_seconds", 0.0) / seconds}
        if before >= 0:
            metrics["tokens_per_second"] = (tokens - before) / seconds
            if peak_flops:
                metrics["flops_utilisation"] = metrics["tokens_per_second"] * flops_per_token / peak_flops
        before = tokens

    return hook


def update_ratio(run: Run, every: int) -> Hook:
    """Add `update_ratio_ROLE` at each `every`-th step: the length of the update over that of the weights before it.

    About 1e-3 is usual for AdamW at its peak; far more is a rate too high, far less one too low. `run` stands where
    training begins or goes on.
    """

    def ask(step: int) -> None:
        if (step + 1) % every == 0:
            run.optimizer.measure()

    def hook(run: Run, metrics: Metrics) -> None:
        if run.step % every == 0:
            metrics |= {f"update_ratio_{role}": ratio for role, ratio in run.optimizer.update_ratio().items()}
        ask(run.step)

    ask(run.step)
    return hook
