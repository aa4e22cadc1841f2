"""GPT-2 124M on one CUDA GPU, 1,024 tokens of context, bfloat16: ludus beside a plain compiled loop.

    python benchmarks/gpu.py              speed, peak memory and exact resume; 2 to 4 minutes, most of it compiling
    python benchmarks/gpu.py --rows 32    other micro-batches

Without a GPU it says so and ends. Utilisation is a step's operations over those of the fastest bfloat16 product
measured in the same process. Exact resume: six steps in deterministic mode, and the last three again from the middle.
"""

import argparse
import copy
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic

import measuring
import plain
import torch
from measuring import GPT2
from quickstart import markdown
from throughput import Repeated

CONTEXT, DEVICE = 1024, "cuda"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="measured, after five to warm up")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of writing a report")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing is measured", file=sys.stderr)
        return 0
    torch.manual_seed(0)
    tokens = torch.randint(GPT2.vocabulary, (arguments.rows, CONTEXT + 1), device=DEVICE)
    peak = measuring.ceiling(torch.bfloat16, "cuda", size=8192, repeats=20)[0]
    makers: dict[str, Callable[[torch.Tensor], Callable[[], Any]]] = {
        "plain, compiled": plain_step,
        "ludus": lambda tokens: ludus_step(tokens)[1],
        "ludus, compiled": lambda tokens: ludus_step(tokens, compiled=True)[1],
    }
    found = {name: measured(make, tokens, arguments.steps) for name, make in makers.items()}
    facts = {"device": torch.cuda.get_device_name(), "ceiling": peak, "rows": arguments.rows, "resume": resume(tokens)}
    if arguments.json:
        print(json.dumps(facts | {"variants": found}))
        return 0
    operations = measuring.step_operations(GPT2, arguments.rows * CONTEXT, CONTEXT)
    rows = [["variant", "ms a step", "tokens/s", "% of the ceiling", "peak GB", "last loss"]]
    for name, (seconds, memory, loss) in found.items():
        share = f"{100 * operations / seconds / peak:.1f}"
        speed = f"{arguments.rows * CONTEXT / seconds:,.0f}"
        rows.append([name, f"{1000 * seconds:.1f}", speed, share, f"{memory / 1e9:.2f}", f"{loss:.4f}"])
    about = (
        f"{facts['device']}, ceiling {peak / 1e12:.0f} TFLOP/s; exact resume in deterministic mode: {facts['resume']}"
    )
    measuring.write("gpu", f"GPT-2 124M, {arguments.rows} x {CONTEXT}, bfloat16, CUDA", [about, markdown(rows)], 1)
    return 0


def measured(
    make: Callable[[torch.Tensor], Callable[[], Any]], tokens: torch.Tensor, steps: int
) -> tuple[float, int, float]:
    """Return the median seconds of a step, the peak bytes and the last loss of one variant."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = make(tokens)
    for _ in range(5):
        step()
    seconds = median(measuring.clock(step, DEVICE)[0] for _ in range(steps))
    return seconds, torch.cuda.max_memory_allocated(), float(step())


def plain_step(tokens: torch.Tensor) -> Callable[[], Any]:
    """Return a step of the plain loop, compiled and with the fused optimizer."""
    settings = plain.Settings(precision=torch.bfloat16, fused=True, rate=6e-4)
    model = plain.GPT(plain.GPT2).to(DEVICE)
    optimizer = plain.optimizer_of(model, settings)
    update = plain.stepper(torch.compile(model), optimizer, settings)  # type: ignore[arg-type]
    return lambda: update(tokens[:, :-1], tokens[:, 1:])


def ludus_step(tokens: torch.Tensor, *, compiled: bool = False) -> tuple[Any, Callable[[], Any]]:
    """Return a run, and what makes a step of it."""
    from ludus.data.batch import Batch
    from ludus.learning import autotune
    from ludus.learning.guard import Guard
    from ludus.learning.loop import Run, train
    from ludus.learning.objectives.next_token import next_token
    from ludus.model.transformer import build
    from ludus.optim import groups
    from ludus.optim.settings import AdamWSettings
    from ludus.parallel import mesh

    model = build(GPT2, seed=0, initial="gpt2").to(DEVICE)
    model.precision = torch.bfloat16
    autotune.apply(autotune.RULES | {"compile": compiled}, model)
    weights = torch.ones(len(tokens), CONTEXT, device=DEVICE)
    source = Repeated(Batch(tokens=tokens, weights=weights, weight=float(weights.numel())))
    settings = AdamWSettings(learning_rate=6e-4)
    optimizer = groups.build(model.named_parameters(), settings, precision=torch.bfloat16)
    run = Run(Path(), model, optimizer, lambda step: 1.0, source, guard=Guard(device=DEVICE))
    losses: list[Any] = []

    def step() -> Any:
        hooks = [lambda run, means: losses.append(means["loss"])]
        train(run, next_token, steps=run.step + 1, mesh=mesh.current(), hooks=hooks)
        return losses[-1]

    return run, step


def resume(tokens: torch.Tensor) -> str:
    """Say whether the second half of a run, taken up from a copy of its state, has the same losses to the bit."""
    torch.use_deterministic_algorithms(True)
    try:
        run, step = ludus_step(tokens[:4])
        for _ in range(3):
            step()
        state = copy.deepcopy(run.state_dict())
        straight = [float(step()) for _ in range(3)]
        again, step = ludus_step(tokens[:4])
        again.load_state_dict(state)
        return "yes" if [float(step()) for _ in range(3)] == straight else "NO"
    except RuntimeError as problem:
        return f"not possible ({str(problem).splitlines()[0][:100]})"
    finally:
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    sys.exit(main())
