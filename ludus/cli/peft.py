"""`ludus peft bench`: every kind of adapter on the same data, steps and budget, as a table, a page and files."""

from collections.abc import Sequence
from pathlib import Path

from ludus.base.console import say
from ludus.base.errors import ConfigError, nearest
from ludus.cli.options import Given, Option, Usage, read

KINDS = "full,lora,qlora,rslora,pissa,lora+,dora,vera,loha,ia3,prefix,prompt"
USAGE = Usage(
    "peft bench",
    "Train every kind of adapter, and all weights, on the same data for the same steps, and compare",
    (
        ("MODEL", "a model's folder, a run's, a llama2.c file, or a name on the hub"),
        ("DATA", "conversations, in any format that fine-tuning reads"),
    ),
    2,
    (
        Option("--kinds", "which, separated by commas", str, "A,B,...", KINDS),
        Option("--steps", "optimizer steps of each", int, "N", 60, 2),
        Option("--rows", "packed rows of a step", int, "N", 2, 1),
        Option("--context", "tokens of a row; without it, as many as the model sees, at most 512", int, "N", None, 8),
        Option("--seeds", "runs of each kind", int, "N", 3, 1),
        Option("--rank", "of the kinds that have one; VeRA has its own", int, "N", 8, 1),
        Option("--quantise", "how the base is held: none, nf4, int8, or several of them", str, "A,B,...", "none"),
        Option("--learning-rates", "instead of the defaults by kind and size", str, "KIND=RATE,..."),
        Option("--text", "general text to measure forgetting on, instead of Python's documentation", str, "PATH"),
        Option("--bytes", "at most so much of it", int, "N", 30_000, 1),
        Option("--held-out", "share of the examples that are kept from training", float, "X", 0.15, 0.001, 0.9),
        Option("--precision", "of matrix products", str, "P", "float32", choices=("float32", "bfloat16", "auto")),
        Option("--device", "where to compute", str, "D", "auto", choices=("auto", "cpu", "cuda", "mps")),
        Option("--threads", "processor threads; without it, as many as PyTorch takes", int, "N", None, 1),
        Option(
            "--output", "folder of bench.json, bench.csv and bench.html; what is there is not run again", str, "DIR"
        ),
    ),
    "ludus peft bench stories260K.bin instructions.jsonl --threads 1",
)
VERBS = ("bench",)
BASES = ("none", "nf4", "int8")
LONGEST = 512  # tokens of a row, where nobody says


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    if not argv or argv[0] in ("--help", "-h"):
        argv = ["bench", "--help"]
    if argv[0] not in VERBS:
        near = nearest(argv[0], VERBS)
        raise ConfigError(f"ludus peft knows no {argv[0]}; " + (f"did you mean {near}?" if near else "there is bench"))
    given = read(USAGE, argv[1:])
    return 0 if given is None else bench(given)


def bench(given: Given) -> int:
    """Run the bench; return 2 where a kind failed."""
    rates = learning_rates(given["learning-rates"])
    quantise = words(given["quantise"])
    for base in quantise:
        if base not in BASES:
            raise ConfigError(f"--quantise {base}: known are {', '.join(BASES)}")
    from ludus.base.files import atomic_write
    from ludus.recipes import peft_bench, peft_page, peft_results
    from ludus.recipes.brought import context_of

    model, data = given.words
    output = Path(given["output"] or Path("runs") / f"peft-{Path(model).stem}")
    asked = peft_bench.Bench(
        model,
        data,
        output,
        kinds=words(given["kinds"]),
        quantise=quantise,
        rates=rates,
        **{name: given[name] for name in ("steps", "rows", "seeds", "rank", "text", "bytes", "precision")},
        **{name: given[name] for name in ("device", "threads")},
        context=given["context"] or min(LONGEST, context_of(model)),
        held_out=given["held-out"],
    )
    content = peft_bench.run(asked)
    atomic_write(output / "bench.csv", peft_results.as_csv(content))
    atomic_write(output / "bench.html", peft_page.render(content))
    say("\n" + "\n".join(peft_results.table(content)))
    say(f"\nsee: {(output / 'bench.html').resolve().as_uri()}")
    return 2 if content["failed"] else 0


def words(text: str) -> list[str]:
    """Split at commas."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def learning_rates(text: str | None) -> dict[str, float]:
    """Read rates by kind. Raises ConfigError for what is none."""
    found = {}
    for word in words(text or ""):
        kind, equals, rate = word.partition("=")
        try:
            value = float(rate)
        except ValueError:
            value = 0.0
        if not equals or not 0 < value < float("inf"):
            raise ConfigError(f"--learning-rates {word}: expected KIND=RATE, as in lora=2e-4,vera=4e-3")
        found[kind] = value
    return found
