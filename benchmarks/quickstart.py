"""The quickstart over several seeds: what each stage costs on this machine, and what it reaches.

    python benchmarks/quickstart.py                          three seeds, in fresh folders under runs/
    python benchmarks/quickstart.py --seeds 5 preset=smoke   another seed, other settings
    python benchmarks/quickstart.py --report runs/bench-A    nothing is run; the folders there are read

Every figure is read from what the runs left behind: the manifests of their stages and evaluation/results.json. Each
seed runs in a process of its own, one after the other.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from ludus.base.files import atomic_write, read_json, write_json
from ludus.runs.manifest import Manifest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FACTS = "benchmark.json"  # in each run's folder: what the manifests do not hold


def main() -> int:
    """Run or read, then print the figures and write them down."""
    arguments = parse()
    now = datetime.now()
    folder = arguments.report or arguments.folder or Path("runs") / f"bench-{now:%Y%m%dT%H%M%S}"
    if not arguments.report:
        for seed in arguments.seeds:
            code = run(seed, folder / f"bench-{seed}", arguments.settings)
            if code:
                print(f"seed {seed} ended with exit code {code}; nothing is reported", file=sys.stderr)
                return code
    runs = sorted(path.parent.parent for path in folder.glob("*/evaluation/results.json"))
    if not runs:
        print(f"{folder} holds no finished run: no */evaluation/results.json in it", file=sys.stderr)
        return 2
    text = report([read(run) for run in runs], f"{now:%Y-%m-%d}")
    print(text)
    target = arguments.to or unused(RESULTS / f"quickstart-{now:%Y-%m-%d}.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, text)
    print(f"written to {target}")
    return 0


def parse() -> argparse.Namespace:
    """Read the command line; what is no flag is a setting of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run for each (default: 0 1 2)")
    parser.add_argument("--folder", type=Path, help="where the runs go; each must be new (default: runs/bench-TIME)")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="read the runs in FOLDER, run nothing")
    parser.add_argument("--to", type=Path, help="write here (default: benchmarks/results/quickstart-DATE.md)")
    arguments, settings = parser.parse_known_args()
    strange = [word for word in settings if "=" not in word]
    if strange:
        parser.error(f"{strange[0]} is neither a flag nor a setting (key=value)")
    arguments.settings = settings
    return arguments


def run(seed: int, folder: Path, settings: Sequence[str]) -> int:
    """Run the quickstart in a new folder, as a person would, and keep what only we see; return its exit code."""
    if folder.exists():
        print(f"{folder} exists; a benchmark starts from nothing: give another --folder", file=sys.stderr)
        return 2
    words = ["run", "quickstart", f"seed={seed}", f"name=bench-{seed}", *settings, "--folder", str(folder)]
    facts = {"command": " ".join(["ludus", *words]), "commit": commit(), "machine": machine()}
    print(f"== {facts['command']}", flush=True)
    begun = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "ludus.cli.main", *words], check=False).returncode
    if not code:
        write_json(folder / FACTS, facts | {"wall_seconds": round(time.monotonic() - begun, 1)})
    return code


def read(folder: Path) -> dict[str, Any]:
    """Return what one run left behind."""
    names = read_json(folder / "run.json")["stages"]
    facts = folder / FACTS
    return {
        "name": folder.name,
        "stages": {name: Manifest.read(folder / name) for name in names if (folder / name / "manifest.json").is_file()},
        "results": read_json(folder / "evaluation" / "results.json"),
        "facts": read_json(facts) if facts.is_file() else {},
    }


def report(runs: Sequence[dict[str, Any]], date: str) -> str:
    """Write everything down as Markdown."""
    facts = runs[0]["facts"]
    environment = next(iter(runs[0]["stages"].values())).environment
    walls = [run["facts"].get("wall_seconds") or wall_of(run) for run in runs]
    parts = [
        f"# Quickstart, {date}",
        "\n".join(
            [
                f"- machine: {facts.get('machine', environment['platform'])}",
                f"- software: ludus {environment['ludus']}, Python {environment['python']}, "
                f"torch {environment['torch']}, threads: {environment['threads']}",
                f"- commit: {facts.get('commit', 'not recorded')}",
                *(f"- {run['name']}: `{run['facts'].get('command', 'command not recorded')}`" for run in runs),
                f"- whole command, start to end: median {median(walls):.0f} s "
                f"({', '.join(f'{wall:.0f}' for wall in walls)})",
            ]
        ),
        f"## Cost\n\nMedian over {len(runs)} runs, least and most in brackets.\n\n{cost(runs)}",
        f"## Accuracy\n\n{runs[0]['results']['questions']:,} held-out questions, greedy answers, 95 % Wilson "
        f"intervals, in percent.\n\n{table(runs, accuracy, median_of('accuracy', 100, '.1f'))}",
        "## Against the model before\n\nPoints on the same questions, 95 % Tango intervals.\n\n"
        + table(runs, verdict, count_verdicts),
        "## Share of concise answers, in percent\n\n" + table(runs, concise, median_of("concise_share", 100, ".0f")),
        "## Bits per byte of validation text\n\n" + table(runs, bits, median_of("bits_per_byte", 1, ".3f")),
    ]
    return "\n\n".join(parts) + "\n"


def cost(runs: Sequence[dict[str, Any]]) -> str:
    """Return the table of what each stage cost."""
    rows = [["stage", "wall s", "CPU s", "peak GB", "tokens"]]
    for name in runs[0]["stages"]:
        made = [run["stages"][name] for run in runs if name in run["stages"]]
        rows.append(
            [
                name,
                spread([each.wall_seconds for each in made], ".1f"),
                spread([each.cpu_seconds for each in made], ".1f"),
                spread([each.peak_memory_bytes / 1e9 for each in made], ".2f"),
                spread([each.tokens for each in made], ",.0f"),
            ]
        )
    all_stages = [list(run["stages"].values()) for run in runs]
    rows.append(
        [
            "all",
            spread([sum(each.wall_seconds for each in stages) for stages in all_stages], ".1f"),
            spread([sum(each.cpu_seconds for each in stages) for stages in all_stages], ".1f"),
            spread([max(each.peak_memory_bytes for each in stages) / 1e9 for stages in all_stages], ".2f"),
            "",
        ]
    )
    return markdown(rows)


def table(runs: Sequence[dict[str, Any]], cell: Callable[[dict], str], summary: Callable[[Sequence[dict]], str]) -> str:
    """Return a table with a row for each model, a column for each run, and what they come to."""
    rows = [["model", *(run["name"] for run in runs), "median"]]
    for place, first in enumerate(runs[0]["results"]["stages"]):
        found = [run["results"]["stages"][place] for run in runs]
        rows.append([first["label"], *map(cell, found), summary(found)])
    return markdown(rows)


def accuracy(result: dict) -> str:
    """Write an accuracy with its interval."""
    return f"{100 * result['accuracy']:.1f} ({100 * result['low']:.1f} .. {100 * result['high']:.1f})"


def verdict(result: dict) -> str:
    """Write how a model compares with the one before it."""
    found = result["comparison"]
    if not found:
        return ""
    points = f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} .. {100 * found['high']:+.1f})"
    return f"{found['verdict']} {points} on {found['with']}"


def count_verdicts(results: Sequence[dict]) -> str:
    """Count the runs in which a stage improved on the one before."""
    found = [result["comparison"] for result in results if result["comparison"]]
    improved = sum(each["verdict"] == "improved" for each in found)
    points = f"{100 * median(each['difference'] for each in found):+.1f}; " if found else ""
    return f"{points}improved in {improved} of {len(found)}" if found else ""


def concise(result: dict) -> str:
    """Write the share of answers that stop once they have answered."""
    return f"{100 * result['concise_share']:.0f}"


def bits(result: dict) -> str:
    """Write how well the model still predicts text."""
    return f"{result['bits_per_byte']:.3f}"


def median_of(name: str, scale: float, form: str) -> Callable[[Sequence[dict]], str]:
    """Return a summary: the median of a figure."""
    return lambda results: f"{scale * median(result[name] for result in results):{form}}"


def spread(values: Sequence[float], form: str) -> str:
    """Write a median with the least and the most."""
    if len(set(values)) == 1:
        return f"{values[0]:{form}}"
    return f"{median(values):{form}} ({min(values):{form}} .. {max(values):{form}})"


def wall_of(run: dict[str, Any]) -> float:
    """Add up the stages, where the whole was not measured."""
    return sum(each.wall_seconds for each in run["stages"].values())


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the first of them the heading, as a table."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def unused(path: Path) -> Path:
    """Return the path, numbered where a benchmark of that day is there already."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def commit() -> str:
    """Return the commit of the code, and say if the tree differs from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty= with uncommitted changes", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def machine() -> str:
    """Describe the processor, how much of it we may use, and the memory."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{processor()}, {allowed} of {os.cpu_count()} processors, {memory:.0f} GB, {platform.system()}"


def processor() -> str:
    """Name the processor as the system does."""
    lines: Iterable[str] = ()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except json.JSONDecodeError as problem:
        sys.exit(f"a run holds a broken file: {problem}")
