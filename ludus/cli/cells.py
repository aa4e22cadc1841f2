"""Running the cells of a sweep one after the other: shared stages, a line for each, and the comparison at the end."""

import shutil
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ludus.base.config import Resolved
from ludus.base.console import duration, say
from ludus.base.errors import DiskFull, LudusError
from ludus.base.files import make_folder, read_json
from ludus.cli.current import is_current, unfinished, wanted_fingerprint
from ludus.evaluation.report import write_comparison
from ludus.learning.interruption import Interrupted
from ludus.recipes import chain
from ludus.recipes.evaluate import FOLDER as EVALUATION
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe
from ludus.runs import metrics
from ludus.runs.folder import hold
from ludus.runs.manifest import Manifest

VERB, LOG, PAGE = "run", "output.log", "comparison.html"
CONTROL = "dpo-control"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, and the command that would make it alone."""

    name: str
    folder: Path
    resolved: Resolved[Recipe]
    command: list[str]

    @property
    def place(self) -> Place:
        """Return where the run lies."""
        return Place(self.resolved.settings, self.folder, self.resolved.origins)


def run(cells: Sequence[Cell], folder: Path, axes: Sequence[str]) -> int:
    """Run every cell, print the table and write the page. Return 2 if a cell failed; the others are run anyway."""
    say(f"ludus sweep: {len(cells)} runs in {folder}")
    failed: list[str] = []
    with hold(folder):
        clock, made = time.monotonic(), 0
        for number, cell in enumerate(cells, 1):
            title = f"[{number}/{len(cells)}] {cell.name}"
            try:
                fresh = make(cell, [other for other in cells if other is not cell], title)
                made += fresh
            except DiskFull:
                raise
            except LudusError as error:
                failed.append(cell.name)
                say(f"{title}: failed: {error}")
                continue
            except (Interrupted, KeyboardInterrupt) as stopped:
                say(f"\n{str(stopped) or 'stopped; what was finished is kept'}\nrepeat the command to go on")
                return getattr(stopped, "code", 130)
            state = "" if fresh else "up to date, "
            say(f"{title}: {state}{outcome(cell)}{time_left(time.monotonic() - clock, made, len(cells) - number)}")
        done = [cell for cell in cells if cell.name not in failed]
        conclude(done, folder, axes)
    if failed:
        say(f"failed, and not in the comparison: {', '.join(failed)}")
    return 2 if failed else 0


def make(cell: Cell, others: Sequence[Cell], title: str) -> bool:
    """Bring a cell up to date; what its stages print goes to a file there. Return False if it was so already."""
    make_folder(cell.folder)
    shared = share(cell, others)
    if not unfinished(cell.place, VERB):
        return False
    say(f"{title}: running" + (f", {', '.join(shared)} shared" if shared else ""))
    torch.set_num_threads(cell.resolved.settings.threads or 1)
    with (cell.folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log):
        chain.run(cell.place, VERB, command=cell.command)
    return True


def share(cell: Cell, others: Sequence[Cell]) -> list[str]:
    """Copy stages that another cell has made of the very same settings and inputs; return their names."""
    shared = []
    for name in unfinished(cell.place, VERB):
        wanted, target = wanted_fingerprint(cell.place, name), cell.place.stage(name)
        if wanted is None or target.exists():
            break
        source = next((other.place.stage(name) for other in others if whole(other.place.stage(name), wanted)), None)
        if source is None:
            break
        # The hidden name is one that the run folder's next holder sweeps away, if this process dies while copying.
        temp = target.with_name(f".{name}.shared.partial")
        shutil.rmtree(temp, ignore_errors=True)
        shutil.copytree(source, temp)
        temp.rename(target)
        shared.append(name)
    return shared


def whole(stage: Path, wanted: str) -> bool:
    """Tell whether a stage's folder is the finished stage that is wanted, with all that it made within."""
    if not is_current(stage, wanted):
        return False
    return not any(made["path"].startswith("..") for made in Manifest.read(stage).outputs.values())


def time_left(elapsed: float, made: int, left: int) -> str:
    """Say how long the cells that are left will take, if as long as those that were made."""
    return f"; about {duration(elapsed / made * left)} left" if made and left else ""


def outcome(cell: Cell) -> str:
    """Return what a run came to, in words."""
    found = figures(cell)
    parts = [f"validation loss {found['loss']:.4f}" if found["loss"] is not None else ""]
    parts += [f"accuracy {found['accuracy']:.1%}" if found["accuracy"] is not None else ""]
    return ", ".join([part for part in parts if part] + [duration(found["seconds"])])


def figures(cell: Cell) -> dict[str, Any]:
    """Return the last validation loss, its bits per byte, the accuracy and the time of a run; None for what is not."""
    records = metrics.read(cell.place.stage("pretrain") / "metrics.jsonl")
    last = next((record for record in reversed(records) if "validation_loss" in record), {})
    results = cell.folder / EVALUATION / "results.json"
    stages = read_json(results)["stages"] if results.is_file() else []
    stages = [stage for stage in stages if stage["stage"] != CONTROL]
    manifests = [Manifest.read(file.parent) for file in cell.folder.glob("*/manifest.json")]
    return {
        "loss": last.get("validation_loss"),
        "bits": last.get("bits_per_byte"),
        "accuracy": stages[-1]["accuracy"] if stages else None,
        "seconds": sum(manifest.wall_seconds for manifest in manifests),
    }


def conclude(cells: Sequence[Cell], folder: Path, axes: Sequence[str]) -> None:
    """Print the table, the best run first, and write the page."""
    if not cells:
        return
    say("\n" + "\n".join(table(cells, axes)))
    page = write_comparison([cell.folder for cell in cells], folder / PAGE, folder.name)
    say(f"\ncompare them:  {page.resolve().as_uri()}")


def table(cells: Sequence[Cell], axes: Sequence[str]) -> list[str]:
    """Lay the runs out: what varied, and what came of it. Bits per byte compare across vocabularies, losses do not."""
    found = sorted(((figures(cell), cell) for cell in cells), key=lambda pair: rank(pair[0]))
    head = [*axes, "loss (nats/token)", "bits/byte", "accuracy", "time"]
    rows = [
        [
            *(written(cell, axis) for axis in axes),
            "-" if each["loss"] is None else f"{each['loss']:.4f}",
            "-" if each["bits"] is None else f"{each['bits']:.4f}",
            "-" if each["accuracy"] is None else f"{each['accuracy']:.1%}",
            duration(each["seconds"]),
        ]
        for each, cell in found
    ]
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    return ["  ".join(f"{word:>{width}}" for word, width in zip(line, widths, strict=True)) for line in [head, *rows]]


def rank(found: dict[str, Any]) -> tuple[float, float]:
    """Order runs: by bits per byte, and by accuracy where those are the same."""
    bits = found["bits"] if found["bits"] is not None else found["loss"]
    return (float("inf") if bits is None or bits != bits else bits, -(found["accuracy"] or 0.0))


def written(cell: Cell, axis: str) -> str:
    """Return the value of a swept setting as it was given."""
    return next(word.partition("=")[2] for word in cell.command if word.partition("=")[0] == axis)
