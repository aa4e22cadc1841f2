"""Fine-tuning steps of ludus beside those of peft with transformers and of TRL, and from a command to the first step.

    python benchmarks/finetuning.py                          every comparison, five rounds; about ten minutes
    python benchmarks/finetuning.py --only lora dora --rounds 3
    taskset -c 1 python benchmarks/finetuning.py             where the machine is not quiet

A Llama of 8 layers, 256 wide (688 inside), vocabulary 8192, untied: 10.5M parameters; 8 rows of 256 tokens, one thread.
A step is forward, backward, clipping and optimizer; that of ludus runs in its loop, with its guard. Each variant lives
in a process of its own, whose peak memory is its own, and both sides of a comparison take turns, step by step. Times
are CPU time, so a busy machine hurts both alike. Targets are those that the project has set itself.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import measuring
from quickstart import markdown, spread

CHILD = Path(__file__).with_name("finetuning_variants.py")
WARM_UP = 2  # steps


class Comparison(NamedTuple):
    """What is compared: our variant, the other, and how much of the other's time ours should take at most."""

    ours: str
    other: str
    target: float | None


COMPARISONS = {
    "lora": Comparison("ludus lora", "peft lora", 0.85),
    "lora-bfloat16": Comparison("ludus lora bfloat16", "peft lora bfloat16", 0.8),
    "lora-trl": Comparison("ludus lora", "trl lora", 0.6),
    "dora": Comparison("ludus dora", "ludus lora", 1.15),
    "dora-bfloat16": Comparison("ludus dora bfloat16", "ludus lora bfloat16", 1.15),
    "dora-peft": Comparison("ludus dora", "peft dora", None),
    "qlora": Comparison("ludus qlora", "ludus lora", 1.1),
    "qlora-bitsandbytes": Comparison("ludus qlora bitsandbytes", "ludus lora", 1.05),
    "half": Comparison("ludus half", "trl half", 0.58),
    "start": Comparison("ludus start", "trl start", None),
}
NEEDED = {"peft": ["peft", "transformers"], "trl": ["trl", "peft", "transformers"], "bitsandbytes": ["bitsandbytes"]}
START_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each variant, after two to warm up")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rows = [["", "ours", "the other", "ours, CPU ms", "the other's", "ratio", "target", "ours, peak MB", "the other's"]]
    left_out = []
    for name in arguments.only:
        asked = COMPARISONS[name]
        missing = lacking(asked)
        if missing:
            left_out.append(f"- {name} was left out: {', '.join(missing)} is not installed")
            continue
        print(f"  {name}", file=sys.stderr, flush=True)
        rows.append(line(name, asked, arguments.rounds, arguments.threads))
    notes = [
        "Medians, least and most in brackets; the ratio is the median of those of the rounds. `start` is what a "
        f"process has spent when its first optimizer step ends; the target is {START_SECONDS:g} s.",
        *left_out,
    ]
    measuring.write("finetuning", "Fine-tuning steps", [markdown(rows), "\n".join(notes)], arguments.threads)


def lacking(asked: Comparison) -> list[str]:
    """Return the packages that a comparison needs and that are not installed."""
    words = f"{asked.ours} {asked.other}".split()
    wanted = [package for word in words for package in NEEDED.get(word, [])]
    return sorted({package for package in wanted if importlib.util.find_spec(package) is None})


def line(name: str, asked: Comparison, rounds: int, threads: int) -> list[str]:
    """Measure a comparison and return its row of the table."""
    if name == "start":
        found = [[started(each, threads) for each in (asked.ours, asked.other)] for _ in range(min(rounds, 3))]
        target = f"{START_SECONDS * 1000:.0f} ms"
    else:
        with variant(asked.ours, threads) as ours, variant(asked.other, threads) as other:
            found = [[step(each) for each in (ours, other)] for _ in range(rounds + WARM_UP)][WARM_UP:]
        target = "" if asked.target is None else f"{asked.target:.2f}"
    times = [[pair[side]["seconds"] * 1000 for pair in found] for side in (0, 1)]
    peaks = [max(pair[side]["peak"] for pair in found) / 1e6 for side in (0, 1)]
    ratio = median(ours / other for ours, other in zip(*times, strict=True))
    told = [spread(each, ".0f") for each in times]
    return [name, asked.ours, asked.other, *told, f"{ratio:.3f}", target, *(f"{peak:.0f}" for peak in peaks)]


@contextmanager
def variant(name: str, threads: int) -> Iterator[subprocess.Popen]:
    """Start the process of a variant, ready to step, and end it."""
    with subprocess.Popen(
        [sys.executable, str(CHILD), *name.split()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=surroundings(threads),
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def step(process: subprocess.Popen) -> dict[str, Any]:
    """Let a variant take one step; return its CPU seconds, and the peak memory of its process so far."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def started(name: str, threads: int) -> dict[str, Any]:
    """Start a process that takes one step of a small model, and return what it has spent by then."""
    with variant(name, threads) as process:
        return step(process)


def answer(process: subprocess.Popen) -> dict[str, Any]:
    """Return the next pair of figures that a variant prints, whatever else its libraries print."""
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.startswith("step "):
            _, seconds, peak = printed.split()
            return {"seconds": float(seconds), "peak": int(peak)}
    sys.exit(f"a variant ended with exit code {process.wait()} before it had taken its steps: {process.args}")


def surroundings(threads: int) -> dict[str, str]:
    """Return the environment of a variant: its threads, no progress bars, no network."""
    root = str(Path(__file__).resolve().parent.parent)
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "LUDUS_QUIET": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }


if __name__ == "__main__":
    main()
