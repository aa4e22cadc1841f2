"""What the loop adds to the bare model, loss and optimizer, and how long it waits for data.

    python benchmarks/overhead.py              0.8M parameters, 12 x 64 tokens; about a minute
    python benchmarks/overhead.py --threads 1  where the machine is not quiet: read the CPU column

The loop runs as a stage runs it: guard, clipping, log, progress. Both take turns over the same batches in blocks of
steps, from the same weights. Waiting is what `next(source)` takes at 4 x 512 tokens from shards on disk, against a step
of GPT-2 124M at the machine's ceiling, which no real step reaches.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import measuring
import numpy as np
import torch
from measuring import GPT2
from quickstart import markdown
from throughput import Repeated

from ludus.base.console import Meter, quiet
from ludus.data import shards, sources
from ludus.data.batch import Batch
from ludus.data.prefetch import Prefetch
from ludus.learning import hooks
from ludus.learning.loop import Objective, Run, train
from ludus.learning.objectives.next_token import next_token
from ludus.model.architecture import Architecture
from ludus.model.transformer import Transformer, build
from ludus.optim import groups
from ludus.optim.settings import AdamWSettings
from ludus.parallel import mesh
from ludus.runs.metrics import MetricsLog

SMALL = Architecture(65, 4, 128, 4, 4, 32, 512, 64, activation="gelu_tanh", tied=True)
ROWS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40, help="in a block")
    parser.add_argument("--threads", type=int, default=measuring.allowed_threads())
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    precision = getattr(torch, arguments.precision)
    total = 2 * (arguments.blocks + 1) * arguments.steps
    with tempfile.TemporaryDirectory() as folder, quiet(), Meter("the loop", total) as meter:
        rows = [["", "wall ms a step", "CPU ms a step"]]
        for label, objective in (("", next_token), ("loss of nothing: ", of_nothing)):
            steppers = {
                f"{label}bare": bare(objective, precision),
                f"{label}the loop": looped(objective, precision, Path(folder), meter),
            }
            rows += taking_turns(steppers, arguments.blocks, arguments.steps)
        waiting = data(Path(folder))
    measuring.write("overhead", "What the loop adds, 0.8M parameters", [markdown(rows), waiting], arguments.threads)


def taking_turns(steppers: dict[str, Callable[[int], None]], blocks: int, count: int) -> list[list[str]]:
    """Return a row for each of two ways to make steps, and one for what the second adds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steppers}
    for block in range(blocks + 1):
        for name, steps in steppers.items():
            found = measuring.clock(lambda steps=steps: steps(count))
            if block:  # the first warms up
                times[name].append((1000 * found[0] / count, 1000 * found[1] / count))
    rows = [
        [name, *(f"{median(pair[place] for pair in pairs):.2f}" for place in (0, 1))] for name, pairs in times.items()
    ]
    added = [median(b[place] - a[place] for a, b in zip(*times.values(), strict=True)) for place in (0, 1)]
    return [*rows, ["added, median of the differences", *(f"{value:+.2f}" for value in added)]]


def of_nothing(model: Transformer, batch: Batch) -> dict[str, torch.Tensor]:
    """Return a loss that costs next to nothing, so that what the loop adds stands out of the noise."""
    return {"loss": torch.stack([parameter.flatten()[0] for parameter in model.parameters()]).sum()}


def bare(objective: Objective, precision: torch.dtype) -> Callable[[int], None]:
    """Return what runs so many steps of model, loss and optimizer, and nothing else."""
    model, batch = parts(precision)
    optimizer = groups.build(model.named_parameters(), AdamWSettings(), precision=precision)

    def steps(count: int) -> None:
        for _ in range(count):
            (objective(model, batch)["loss"] / batch.weight).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def looped(objective: Objective, precision: torch.dtype, folder: Path, meter: Meter) -> Callable[[int], None]:
    """Return what runs so many steps as a stage does."""
    model, batch = parts(precision)
    optimizer = groups.build(model.named_parameters(), AdamWSettings(), precision=precision)
    run = Run(folder, model, optimizer, lambda step: 1.0, Repeated(batch))
    after = [hooks.finite, hooks.log(MetricsLog(folder / "metrics.jsonl")), hooks.progress(meter)]

    def steps(count: int) -> None:
        train(run, objective, steps=run.step + count, mesh=mesh.current(), hooks=after)

    return steps


def parts(precision: torch.dtype) -> tuple[Transformer, Batch]:
    """Return a small model and a batch."""
    model = build(SMALL, seed=0, initial="gpt2")
    model.precision = precision
    tokens = torch.randint(SMALL.vocabulary, (ROWS, SMALL.context + 1), generator=torch.Generator().manual_seed(0))
    return model, Batch(tokens=tokens, weights=torch.ones(ROWS, SMALL.context), weight=float(ROWS * SMALL.context))


def data(folder: Path) -> str:
    """Say what waiting for packed rows costs at 124M, with and without reading ahead."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(50, 2000, 500)
    documents = (draw.integers(1, GPT2.vocabulary, size).astype(np.uint16) for size in sizes)
    shards.write(
        folder / "tokens",
        documents,
        vocabulary=GPT2.vocabulary,
        tokenizer_hash="benchmark",
        num_bytes=4 * int(sizes.sum()),
    )
    found = shards.read(folder / "tokens", tokenizer_hash="benchmark")
    operations = measuring.step_operations(GPT2, 4 * 512, 512)
    best = operations / measuring.ceiling(torch.bfloat16)[0]
    lines = []
    for label, wrap in (("directly", lambda source: source), ("read ahead", lambda source: Prefetch(source, ahead=2))):
        source = wrap(sources.pretraining(found, context=512, rows=4, pad_token=0, seed=0))
        next(source)
        seconds = median(measuring.clock(lambda source=source: next(source))[0] for _ in range(50))
        lines.append(f"- {label}: {1000 * seconds:.2f} ms, {seconds / best:.2%} of a step of {best:.2f} s")
    return "## A batch of 4 x 512 tokens\n\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
