"""What the speed benchmarks share: the ceiling of a machine, clocks, children with memory of their own, the report."""

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from quickstart import RESULTS, commit, machine, unused

from ludus.base.files import atomic_write
from ludus.model.architecture import Architecture

GPT2 = Architecture(
    vocabulary=50257,
    layers=12,
    width=768,
    heads=12,
    kv_heads=12,
    head_dim=64,
    hidden=3072,
    context=1024,
    tied=True,
    norm="layer",
    norm_bias=False,
    position="learned",
    activation="gelu_tanh",
)


def ceiling(precision: torch.dtype, device: str = "cpu", size: int = 2048, repeats: int = 8) -> tuple[float, float]:
    """Return the operations a wall and a CPU second of the fastest of some square matrix products."""
    left, right = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
    times = [clock(lambda: left @ right, device) for _ in range(repeats)]
    wall, processor = (min(each) for each in zip(*times, strict=True))
    return 2 * size**3 / wall, 2 * size**3 / max(processor, 1e-9)


def clock(work: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Return the wall and the CPU seconds of some work."""
    if device != "cpu":
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def step_operations(shape: Architecture, tokens: int, context: int) -> float:
    """Count a training step's operations as nanoGPT does: 6 N + 12 L C T a token, N with one embedding."""
    matrices = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.hidden)
    multiplied = matrices + shape.vocabulary * shape.width
    return tokens * (6 * multiplied + 12 * shape.layers * shape.width * context)


def peak_bytes() -> int:
    """Return the largest memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_child(script: str, *words: str, threads: int) -> dict[str, Any]:
    """Run a benchmark script in a process of its own and return the JSON object it prints last."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LUDUS_QUIET": "1", "HF_HUB_OFFLINE": "1"}
    root = Path(script).resolve().parent.parent
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
    found = subprocess.run(
        [sys.executable, script, *words], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if found.returncode:
        sys.exit(f"{Path(script).name} {' '.join(words)} ended with exit code {found.returncode}")
    return json.loads(found.stdout.splitlines()[-1])


def allowed_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(name: str, title: str, parts: Sequence[str], threads: int) -> None:
    """Print the report and write it to benchmarks/results/NAME-DATE.md."""
    now = datetime.now()
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    facts = [
        f"- machine: {machine()}, load of the last minutes {load}",
        f"- software: Python {sys.version.split()[0]}, torch {torch.__version__}, threads: {threads}",
        f"- commit: {commit()}",
        f"- command: `python benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`",
    ]
    text = "\n\n".join([f"# {title}, {now:%Y-%m-%d}", "\n".join(facts), *parts]) + "\n"
    print(text)
    target = unused(RESULTS / f"{name}-{now:%Y-%m-%d}.md")
    atomic_write(target, text)
    print(f"written to {target}", file=sys.stderr)


def settle() -> None:
    """Collect what is no longer used, so that one variant does not pay for another."""
    gc.collect()
