"""Time to nanoGPT's loss: `ludus run shakespeare` beside a plain loop with nanoGPT's architecture, in one run.

    python benchmarks/shakespeare.py --text shakespeare.txt                     three seeds of each preset, about 8 min
    python benchmarks/shakespeare.py --text shakespeare.txt --presets small     one preset

The plain loop (`plain.py`) makes 2,000 iterations of 12 x 64 characters; its loss is the target. Every loss is read
once, on the whole validation tenth in blocks of 64 characters one after another. The time of a loop is that of its
steps, as nanoGPT's is without its evaluations; the time of a command is everything, imports and report as well. A
preset's steps and rates were chosen on the tail of the training text, never on this validation text.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import allowed_threads, write
from torch import Tensor

from ludus.model import exchange
from ludus.text.tokenizer import Tokenizer

CONTEXT = 64
LAPS = ("data_seconds", "gradient_seconds", "update_seconds")
ROOT = Path(__file__).resolve().parent.parent


def command(words: list[str], threads: int) -> tuple[str, float, float]:
    """Run a command of this Python; return what it printed, its wall seconds and its CPU seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LUDUS_QUIET": "1", "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    found = subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if found.returncode:
        sys.exit(f"{' '.join(words)} ended with exit code {found.returncode}")
    return found.stdout, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@torch.inference_mode()
def validate(folder: Path, text: str) -> float:
    """Return the mean loss of a model over all whole blocks of the last tenth of a text, one after another."""
    model, tokenizer = exchange.load(folder), Tokenizer.load(folder)
    tokens = torch.tensor(tokenizer.encode(text[int(0.9 * len(text)) :]))
    blocks = (len(tokens) - 1) // CONTEXT
    inputs, targets = (tokens[shift : shift + blocks * CONTEXT].view(blocks, CONTEXT) for shift in (0, 1))
    sums = 0.0
    for some, following in zip(inputs.split(64), targets.split(64), strict=True):
        logps: Tensor = model.eval()(some).log_softmax(-1)
        sums -= float(logps.gather(-1, following[..., None]).sum())
    return sums / (blocks * CONTEXT)


def ludus(preset: str, seed: int, text: Path, threads: int) -> dict[str, Any]:
    """Run a preset as a user would and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "ludus", "run", "shakespeare", f"preset={preset}", f"corpus.path={text}", f"seed={seed}"]
        _, wall, processor = command([*words, f"threads={threads}", "--folder", folder], threads)
        lines = [json.loads(line) for line in (Path(folder) / "pretrain" / "metrics.jsonl").read_text().splitlines()]
        return {
            "steps": len(lines),
            "loop": sum(line[lap] for line in lines for lap in LAPS),
            "wall": wall,
            "cpu": processor,
            "loss": validate(Path(folder) / "pretrain" / "model", text.read_text("utf-8")),
        }


def plain(text: Path, threads: int) -> dict[str, Any]:
    """Run the plain loop and measure it."""
    said, wall, processor = command(["benchmarks/plain.py", "--text", str(text)], threads)
    words = said.split()
    return {
        "steps": 2000,
        "loop": float(words[words.index("iteration,") + 1]),
        "wall": wall,
        "cpu": processor,
        "loss": float(said.splitlines()[1].split()[0]),
    }


def table(peer: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> str:
    """Lay the runs out, each beside the peer."""
    lines = [
        "| run | steps | loss | loop s | peer's / this | command s | peer's / this | command CPU s |",
        "|" + "---|" * 8,
    ]
    rows = [("plain loop", peer)]
    for preset, runs in found.items():
        rows += [(f"{preset}, seed {seed}", run) for seed, run in enumerate(runs)]
        middle = {name: median(run[name] for run in runs) for name in runs[0]}
        rows += [(f"**{preset}, median**", middle)]
    for name, run in rows:
        ratios = peer["loop"] / run["loop"], peer["wall"] / run["wall"]
        lines.append(
            f"| {name} | {run['steps']:.0f} | {run['loss']:.4f} | {run['loop']:.2f} | {ratios[0]:.1f} "
            f"| {run['wall']:.1f} | {ratios[1]:.1f} | {run['cpu']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="tiny Shakespeare; its last tenth is the validation")
    parser.add_argument("--presets", default="small,llama,long")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=allowed_threads())
    arguments = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(arguments.threads)
    text = arguments.text.resolve()
    peer = plain(text, arguments.threads)
    found = {
        preset: [ludus(preset, seed, text, arguments.threads) for seed in range(arguments.seeds)]
        for preset in arguments.presets.split(",")
    }
    write("shakespeare", "Time to nanoGPT's loss", [table(peer, found)], arguments.threads)


if __name__ == "__main__":
    main()
