"""How long a training step waits for a checkpoint: written beside the training, and written at once.

    python benchmarks/checkpoints.py [--steps 12] [--folder FOLDER]

For each size a model is trained on noise, a checkpoint after every other step, on one thread. The stall is what the
call that saves takes, once its buffers are there; the first save, which makes them, is shown apart, as are the steps
that run while a checkpoint is being written. CPU time is that of the training thread: on a busy machine it is what
counts. The guard's judgement, which is made every step, is timed as well.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from ludus.data.batch import Batch
from ludus.learning import checkpoints
from ludus.learning.guard import Guard
from ludus.learning.loop import Run
from ludus.learning.objectives.next_token import next_token
from ludus.learning.saver import Saver
from ludus.model.settings import Architecture
from ludus.model.transformer import build
from ludus.optim import groups
from ludus.optim.schedules import constant
from ludus.optim.settings import AdamWSettings

SIZES = {  # width, hidden, layers, heads, vocabulary, rows, context
    "0.8M": (128, 344, 4, 4, 65, 12, 64),
    "30M": (512, 1024, 8, 8, 8192, 4, 256),
}


class Noise:
    """The same batch of random tokens, again and again."""

    def __init__(self, rows: int, context: int, vocabulary: int) -> None:
        self.tokens = 0
        tokens = torch.randint(vocabulary, (rows, context), generator=torch.Generator().manual_seed(0))
        self.batch = Batch(tokens, torch.ones(rows, context - 1), float(rows * (context - 1)))

    def state_dict(self) -> dict:
        return {"tokens": self.tokens}


def training(size: str) -> tuple[Run, Noise]:
    """Make a model of a size, its optimizer and its batch."""
    width, hidden, layers, heads, vocabulary, rows, context = SIZES[size]
    shape = Architecture(
        vocabulary=vocabulary, layers=layers, width=width, heads=heads, kv_heads=heads, head_dim=width // heads,
        hidden=hidden, context=context,
    )  # fmt: skip
    model, source = build(shape, seed=0), Noise(rows, context, vocabulary)
    optimizer = groups.build(model.named_parameters(), AdamWSettings())
    return Run(Path(), model, optimizer, constant(), source), source  # type: ignore[arg-type]


def step(run: Run, batch: Batch) -> None:
    """Take one step."""
    run.optimizer.zero_grad()
    (next_token(run.model, batch)["loss"] / batch.weight).backward()
    run.optimizer.step()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that work takes, by the clock and of this thread's CPU time."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - cpu


def measure(size: str, steps: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Return seconds, wall and CPU: of a step, of one beside a write, of saving, of writing at once."""
    run, source = training(size)

    def train() -> None:
        step(run, source.batch)

    for _ in range(3):
        train()
    found: dict[str, list[tuple[float, float]]] = {"step": [], "stall": [], "beside": []}
    with Saver(folder / size) as saver:
        for number in range(1, steps + 1):
            found["step"].append(timed(train))
            found["stall"].append(timed(lambda number=number: saver.save(number, run.state_dict())))
            found["beside"].append(timed(train))
            saver.wait()
    first = found["stall"].pop(0)
    medians = {name: tuple(map(statistics.median, zip(*values, strict=True))) for name, values in found.items()}
    at_once = timed(lambda: checkpoints.save(folder / size, steps + 1, run.state_dict()))
    return medians | {"first": first, "at once": at_once}  # type: ignore[return-value]


def judgement(count: int = 4000) -> tuple[float, float]:
    """Return the median and the mean seconds of the guard's judgement and the reading of its verdict."""
    guard, loss, norm, spent = Guard(), torch.tensor(2.0), torch.tensor(0.5), []
    for _ in range(count):
        spent.append(timed(lambda: (guard.judge(loss, norm), guard.verdict()))[1])
    return statistics.median(spent), statistics.fmean(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where to write, to measure that disk")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("Wall (CPU) time; the training thread's alone.\n")
    print("| model | step | stall | stall / step | first stall | a step beside a write | written at once |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found = measure(size, given.steps, Path(folder))
        show = {name: f"{wall * 1000:.1f} ({cpu * 1000:.1f}) ms" for name, (wall, cpu) in found.items()}
        wall, cpu = (stall / step for stall, step in zip(found["stall"], found["step"], strict=True))
        cells = [size, show["step"], show["stall"], f"{wall:.1%} ({cpu:.1%})"]
        print("|", " | ".join([*cells, show["first"], show["beside"], show["at once"]]), "|", flush=True)
    median, mean = judgement()
    print(f"\nThe guard's judgement: {median * 1e6:.0f} µs of CPU (median), {mean * 1e6:.0f} µs (mean).")
    print(f"Load of the machine: {os.getloadavg()[0]:.1f}; PyTorch {torch.__version__}, one thread.")


if __name__ == "__main__":
    main()
