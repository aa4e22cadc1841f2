"""Training speed and memory at GPT-2 124M, 4 x 512 tokens, bfloat16: ludus beside transformers and a plain loop.

    python benchmarks/throughput.py               three rounds, all processors; 3 to 5 minutes
    python benchmarks/throughput.py --threads 1   one thread, where the machine is not quiet: read the CPU columns

A step is forward, backward, clipping and optimizer. Variants take turns, each in a process of its own, which measures
the ceiling (a 2048 x 2048 x 2048 product) beside its steps, and whose peak memory is its own.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import measuring
import plain
import torch
from measuring import GPT2
from quickstart import markdown, spread

ROWS, CONTEXT = 4, 512
VARIANTS = ["plain", "transformers", "ludus"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="one seed each")
    parser.add_argument("--steps", type=int, default=2, help="measured steps in a round, after one to warm up")
    parser.add_argument("--threads", type=int, default=measuring.allowed_threads())
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--choices", action="store_true", help="also measure what ludus would choose here; a minute")
    parser.add_argument("--child", choices=[*VARIANTS, "choices"], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(child(arguments)))
        return
    words = ["--steps", str(arguments.steps), "--threads", str(arguments.threads), "--precision", arguments.precision]

    def run(variant: str, seed: int) -> dict[str, Any]:
        print(f"  round {seed}: {variant}", flush=True)
        here = [*words, "--child", variant, "--seed", str(seed)]
        return measuring.in_a_child(__file__, *here, threads=arguments.threads)

    found = {variant: [] for variant in arguments.variants}
    for seed in range(arguments.rounds):
        for variant in arguments.variants:
            found[variant].append(run(variant, seed))
    parts = [table(found), ratios(found)]
    if arguments.choices:
        parts.append("## What is chosen here\n\n" + "\n".join(f"- {line}" for line in run("choices", 0)["lines"]))
    measuring.write("throughput", f"GPT-2 124M, {ROWS} x {CONTEXT}, {arguments.precision}", parts, arguments.threads)


def child(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one variant in this process."""
    torch.manual_seed(arguments.seed)
    precision = getattr(torch, arguments.precision)
    tokens = torch.randint(GPT2.vocabulary, (ROWS, CONTEXT + 1))
    if arguments.child == "choices":
        return {"lines": choices(tokens, precision)}
    step = {"plain": plain_step, "transformers": transformers_step, "ludus": ludus_step}[arguments.child](
        tokens, precision
    )
    first = step()
    measuring.settle()
    before = measuring.ceiling(precision)
    times = [measuring.clock(step) for _ in range(arguments.steps)]
    return {
        "wall": [wall for wall, _ in times],
        "cpu": [processor for _, processor in times],
        "ceiling": [max(pair) for pair in zip(before, measuring.ceiling(precision), strict=True)],
        "peak": measuring.peak_bytes(),
        "loss": first,
    }


def plain_step(tokens: torch.Tensor, precision: torch.dtype) -> Callable[[], float]:
    """Return a step of the plain loop."""
    settings = plain.Settings(precision=precision)
    model = plain.GPT(plain.GPT2)
    update = plain.stepper(model, plain.optimizer_of(model, settings), settings)
    return lambda: float(update(tokens[:, :-1], tokens[:, 1:]))


def transformers_step(tokens: torch.Tensor, precision: torch.dtype) -> Callable[[], float]:
    """Return a step of transformers' GPT-2 with PyTorch's AdamW, as its examples write it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    narrow = torch.autocast("cpu", dtype=precision) if precision != torch.float32 else contextlib.nullcontext()
    inputs = tokens[:, :-1].contiguous()

    def step() -> float:
        with narrow:
            loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def ludus_step(tokens: torch.Tensor, precision: torch.dtype) -> Callable[[], float]:
    """Return a step of ludus's own loop, with its guard and its hooks' means."""
    from ludus.data.batch import Batch
    from ludus.learning.loop import Run, train
    from ludus.learning.objectives.next_token import next_token
    from ludus.model.transformer import build
    from ludus.optim import groups
    from ludus.optim.settings import AdamWSettings
    from ludus.parallel import mesh

    model = build(GPT2, seed=0, initial="gpt2")
    model.precision = precision
    optimizer = groups.build(model.named_parameters(), AdamWSettings(), precision=precision)
    source = Repeated(Batch(tokens=tokens, weights=torch.ones(ROWS, CONTEXT), weight=float(ROWS * CONTEXT)))
    run = Run(Path(), model, optimizer, lambda step: 1.0, source)
    losses: list[float] = []

    def step() -> float:
        hooks = [lambda run, means: losses.append(float(means["loss"]))]
        train(run, next_token, steps=run.step + 1, mesh=mesh.current(), hooks=hooks)
        return losses[-1]

    return step


class Repeated:
    """A source that gives the same batch for ever."""

    def __init__(self, batch: Any) -> None:
        self.batch, self.tokens = batch, 0

    def __iter__(self) -> "Repeated":
        return self

    def __next__(self) -> Any:
        self.tokens += self.batch.tokens.numel()
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokens = state["tokens"]


def choices(tokens: torch.Tensor, precision: torch.dtype) -> list[str]:
    """Return what ludus measures before a long run of this shape, line by line."""
    from ludus.data.batch import Batch
    from ludus.learning import autotune
    from ludus.learning.objectives.next_token import next_token
    from ludus.model.transformer import build

    model = build(GPT2, seed=0, initial="gpt2")
    model.precision = precision
    batch = Batch(tokens=tokens, weights=torch.ones(ROWS, CONTEXT), weight=float(ROWS * CONTEXT))
    found = autotune.choose(model, next_token, batch, steps_planned=10_000, cache=None)
    return [str(found), *found.reasons]


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return a row of medians for each variant, least and most in brackets."""
    operations = measuring.step_operations(GPT2, ROWS * CONTEXT, CONTEXT)
    heading = ["wall s a step", "tokens/s", "ceiling GFLOP/s", "% of it", "CPU s a step", "a CPU second", "% of it"]
    rows = [["variant", *heading, "peak GB"]]
    for variant, rounds in found.items():
        walls = [wall for each in rounds for wall in each["wall"]]
        shares = [
            [100 * operations / seconds / each["ceiling"][place] for each in rounds for seconds in each[name]]
            for place, name in enumerate(("wall", "cpu"))
        ]
        rows.append(
            [
                variant,
                spread(walls, ".2f"),
                spread([ROWS * CONTEXT / wall for wall in walls], ".0f"),
                spread([each["ceiling"][0] / 1e9 for each in rounds], ".0f"),
                spread(shares[0], ".0f"),
                spread([processor for each in rounds for processor in each["cpu"]], ".2f"),
                spread([each["ceiling"][1] / 1e9 for each in rounds], ".0f"),
                spread(shares[1], ".0f"),
                spread([each["peak"] / 1e9 for each in rounds], ".2f"),
            ]
        )
    return markdown(rows)


def ratios(found: dict[str, list[dict[str, Any]]]) -> str:
    """Say how ludus compares with each of the others, by medians."""
    if "ludus" not in found:
        return ""

    def middle(variant: str, name: str) -> float:
        values = [each[name] for each in found[variant]]
        return median([item for value in values for item in (value if isinstance(value, list) else [value])])

    lines = [
        f"- against {other}: {middle(other, 'wall') / middle('ludus', 'wall'):.2f} times the tokens a second "
        f"({middle(other, 'cpu') / middle('ludus', 'cpu'):.2f} by CPU time), "
        f"{middle('ludus', 'peak') / middle(other, 'peak'):.2f} of the peak memory"
        for other in found
        if other != "ludus"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
