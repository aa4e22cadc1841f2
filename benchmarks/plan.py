"""Hold `ludus plan` against what happened: memory and time of training, each run in a fresh process.

    python benchmarks/plan.py                   # pretraining, all configurations, on a quiet machine: some ten minutes
    python benchmarks/plan.py --only 0 3 7      # some of them
    python benchmarks/plan.py --tuning          # fine-tuning instead: adapters, on quantised weights and others
    python benchmarks/plan.py --threads 1

For each configuration a plan is made in one process and the real stage, `pretrain` or `sft`, runs in another: its peak
resident memory and its wall time, as its manifest has them, against the plan's. Corpus and tokenizer are made once
before; so are the models to tune, with weights at random. Writes benchmarks/results/plan-DATE.md, or
plan-tuning-DATE.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    "character": ["tokenizer.kind=character"],
    "bpe-4096": ["tokenizer.vocabulary=4096"],
    "bpe-16384": ["tokenizer.vocabulary=16384"],
}
COMMON = [
    "pretrain.validation_rows=16",
    "pretrain.sample_tokens=20",
    "stages=[corpus, tokenizer, pretrain]",
]
# (text, settings): families, sizes of 0.5 to 60 M parameters, contexts of 64 to 1024, precisions and optimizers.
CONFIGURATIONS = (
    ("character", "model.family=llama model.depth=4 model.width=128 data.context=64 rows=24 steps=60"),
    (
        "character",
        "model.family=gpt2 model.depth=4 model.width=128 data.context=64 rows=12 steps=100 optimizer.kind=adamw",
    ),
    ("character", "model.family=modern model.depth=3 model.width=96 data.context=128 rows=32 steps=60"),
    ("bpe-4096", "model.family=llama model.depth=4 model.width=256 data.context=128 rows=32 steps=20"),
    (
        "bpe-4096",
        "model.family=llama model.depth=4 model.width=256 data.context=128 rows=32 steps=12 precision=float32 "
        "optimizer.kind=adamw",
    ),
    ("bpe-4096", "model.family=modern model.depth=5 model.width=256 data.context=256 rows=8 steps=20"),
    (
        "bpe-4096",
        "model.family=gpt2 model.depth=6 model.width=384 data.context=256 rows=8 steps=12 optimizer.kind=adamw",
    ),
    ("bpe-4096", "model.family=llama model.depth=6 model.width=384 data.context=256 rows=4 accumulate=2 steps=10"),
    (
        "bpe-16384",
        "model.family=llama model.depth=8 model.width=512 data.context=512 rows=4 steps=8 optimizer.kind=adamw",
    ),
    (
        "bpe-16384",
        "model.family=gpt2 model.depth=6 model.width=512 data.context=512 rows=2 steps=8 precision=float32 "
        "optimizer.kind=adamw",
    ),
    ("bpe-16384", "model.family=modern model.depth=6 model.width=512 data.context=1024 rows=2 steps=6"),
    ("bpe-16384", "model.family=llama model.depth=8 model.width=640 data.context=1024 rows=1 steps=6"),
    ("bpe-16384", "model.family=llama model.depth=8 model.width=640 data.context=256 rows=4 steps=8"),
)
# (model, settings): twins of QLoRA, LoRA, DoRA and full fine-tuning of larger models. All are Llamas.
TUNINGS = (
    ("width=256 depth=8", "adapter.kind=lora quantise=nf4 weights=bfloat16 recompute=true rows=4 context=256"),
    ("width=384 depth=12", "adapter.kind=lora quantise=nf4 weights=bfloat16 recompute=true rows=2 context=512"),
    ("width=512 depth=12", "adapter.kind=lora adapter.rank=16 quantise=nf4 rows=2 context=256 accumulate=2"),
    ("width=640 depth=8", "adapter.kind=lora adapter.rank=16 quantise=int8 recompute=true rows=2 context=256"),
    ("width=512 depth=16", "adapter.kind=lora weights=bfloat16 rows=1 context=512 merge=false"),
    ("width=640 depth=8", "adapter.kind=lora rows=4 context=128 precision=float32"),
    ("width=384 depth=8", "adapter.kind=dora quantise=nf4 rows=2 context=256"),
    ("width=640 depth=16", "adapter.kind=lora quantise=nf4 weights=bfloat16 recompute=true rows=1 context=128"),
    ("width=384 depth=8", "rows=4 context=256 optimizer.kind=adamw"),
    ("width=640 depth=8", "rows=1 context=256 optimizer.kind=adamw recompute=true"),
)
CONVERSATIONS = 1500


def main() -> int:
    """Run the configurations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of configurations")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary folder)")
    parser.add_argument("--tuning", action="store_true", help="fine-tune, instead of pretraining")
    parser.add_argument("--to", type=Path, help="where the table goes")
    given = parser.parse_args()
    name = f"plan-{'tuning-' if given.tuning else ''}{date.today()}.md"
    to = given.to or ROOT / "benchmarks" / "results" / name
    folder = given.folder or Path(tempfile.mkdtemp(prefix="ludus-plan-"))
    found = []
    for number in given.only or range(len(TUNINGS if given.tuning else CONFIGURATIONS)):
        found.append((tune if given.tuning else compare)(number, folder, given.threads))
        print(row(found[-1]), flush=True)
    text = report(found, given.threads, "--tuning " if given.tuning else "")
    print(text)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    if given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def compare(number: int, folder: Path, threads: int) -> dict[str, Any]:
    """Plan one configuration, run it, and return both."""
    text, settings = CONFIGURATIONS[number]
    prepared = prepare(text, folder, threads)
    run = folder / f"run-{number}"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(prepared, run, ignore=shutil.ignore_patterns("run.json", "recipe.json", "replaced"))
    # A checkpoint and a sample in the middle and at the end, as a run of many more steps has them seldom.
    half = int(re.findall(r"steps=(\d+)", settings)[-1]) // 2
    saves = f"pretrain.checkpoint_every={half}"
    words = ["quickstart", f"name={text}", f"threads={threads}", *TEXTS[text], *COMMON, *settings.split(), saves]
    plan = json.loads(ludus(["plan", *words, "--json", "--folder", str(run)], threads))
    ludus(["pretrain", *words, "--folder", str(run)], threads)
    return held_against(plan, run / "pretrain", settings)


def tune(number: int, folder: Path, threads: int) -> dict[str, Any]:
    """Plan one fine-tuning, run it, and return both."""
    words, settings = TUNINGS[number]
    base, run = brought(words, folder), folder / f"tuning-{number}"
    shutil.rmtree(run, ignore_errors=True)
    told = [each if each.startswith("precision=") else f"sft.{each}" for each in settings.split()]
    told = [each.replace("sft.context=", "data.context=") for each in told]
    ours = [f"model={base}", f"data={folder / 'conversations.jsonl'}", f"threads={threads}", "sft.steps=6", *told]
    plan = json.loads(ludus(["plan", *ours, "stages=[sft]", "--json", "--folder", str(run)], threads))
    ludus(["sft", *ours, "stages=[sft]", "--folder", str(run)], threads)
    return held_against(plan, run / "sft", f"{words} {settings}")


def brought(words: str, folder: Path) -> Path:
    """Make a model to be tuned, with a tokenizer, and conversations; once each."""
    sys.path.insert(0, str(ROOT))
    from ludus.model import exchange
    from ludus.model.settings import ModelSettings, architecture
    from ludus.model.transformer import build
    from ludus.text.settings import TokenizerSettings
    from ludus.text.tokenizer import Tokenizer
    from ludus.text.train import train

    place, tokens = folder / words.replace(" ", "-"), folder / "tokenizer"
    texts = [file.read_text(errors="ignore") for file in sorted(Path(os.__file__).parent.glob("*.py"))]
    if not tokens.is_dir():
        train(texts, TokenizerSettings(vocabulary=8192)).save(tokens)
        lines = [line.strip() for text in texts for line in text.splitlines() if len(line) > 40]
        chats = [
            {
                "messages": [
                    {"role": "user", "content": f"Go on: {line}"},
                    {"role": "assistant", "content": " ".join(on)},
                ]
            }
            for line, *on in (lines[at : at + 8] for at in range(0, 8 * CONVERSATIONS, 8))
        ]
        (folder / "conversations.jsonl").write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    tokenizer = Tokenizer.load(tokens)
    if not place.is_dir():
        told = dict(word.split("=") for word in words.split())
        settings = ModelSettings.model_validate({name: int(value) for name, value in told.items()})
        shape = architecture(settings, vocabulary=tokenizer.vocabulary_size, context=1024)
        exchange.save(build(shape, seed=0), place, tokenizer, {})
    return place


def held_against(plan: dict[str, Any], stage: Path, settings: str) -> dict[str, Any]:
    """Return what was planned beside what a stage's manifest and log say."""
    manifest = json.loads((stage / "manifest.json").read_text())
    logged = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {
        "settings": settings,
        "parameters": plan["parameters"]["total"],
        "memory": (plan["memory"]["total"], manifest["peak_memory_bytes"]),
        "time": (plan["time"]["total"] - plan["time"]["parts"]["start"], manifest["wall_seconds"]),
        "step": (plan["time"]["step_seconds"], step_seconds(logged)),
        "cpu": manifest["cpu_seconds"],
    }


def prepare(text: str, folder: Path, threads: int) -> Path:
    """Make corpus and tokenizer once for all configurations of a text."""
    place = folder / text
    if not (place / "tokenizer" / "tokens").is_dir():
        words = ["tokenizer", "quickstart", f"name={text}", f"threads={threads}", *TEXTS[text], *COMMON]
        ludus([*words, "--folder", str(place)], threads)
    return place


def step_seconds(logged: Sequence[dict[str, Any]]) -> float:
    """Return the median time between log lines, of the later half: without the start, validations fall out."""
    times = [record["seconds"] for record in logged]
    return median([after - before for before, after in pairwise(times)][len(times) // 2 :] or times)


def ludus(words: Sequence[str], threads: int) -> str:
    """Run one command in a fresh process and return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LUDUS_QUIET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "ludus", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"ludus {' '.join(words)} failed:\n{done.stdout[-500:]}\n{done.stderr[-500:]}")
    return done.stdout


def off(pair: tuple[float, float]) -> float:
    """Return how far a plan is off what was measured, as a share."""
    return pair[0] / pair[1] - 1


def row(one: dict[str, Any]) -> str:
    """Write a configuration as a line of the table."""
    memory, time, step = one["memory"], one["time"], one["step"]
    return (
        f"| {one['settings']} | {one['parameters'] / 1e6:.1f} | {memory[0] / 1e6:,.0f} | {memory[1] / 1e6:,.0f} | "
        f"{off(memory):+.1%} | {time[0]:.1f} | {time[1]:.1f} | {off(time):+.1%} | {step[0] * 1e3:.0f} | "
        f"{step[1] * 1e3:.0f} | {off(step):+.1%} | {one['cpu']:.1f} |"
    )


def report(found: Sequence[dict[str, Any]], threads: int, flag: str) -> str:
    """Write everything down as Markdown."""
    near = sum(abs(off(one["memory"])) <= 0.1 for one in found)
    soon = sum(abs(off(one["time"])) <= 0.2 for one in found)
    head = (
        "| settings | M parameters | MB planned | MB measured | off | s planned | s measured | off | "
        "ms a step planned | measured | off | CPU s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    return (
        f"# Plan against measured, {date.today()}\n\n"
        f"Command: `python benchmarks/plan.py {flag}--threads {threads}`. Memory is the peak resident memory of "
        "the process that ran the stage, time the stage's wall time, both from its manifest; a step is the median of "
        f"the later half.\n\nMemory within 10 %: {near} of {len(found)}. Time within 20 %: {soon} of {len(found)}.\n\n"
        f"{head}\n" + "\n".join(map(row, found)) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
