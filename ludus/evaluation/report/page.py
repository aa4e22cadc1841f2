"""The report of a run: `report.html`, one file that opens from disk and says everything in the order one asks.

What lives here: the order of the sections. What does not: any of them. The one idea: outcome, evidence, how it went,
what it was made from, what next.
"""

from pathlib import Path

from ludus.base.files import atomic_write
from ludus.evaluation.report import advice, curves, outcome, scores, sources, tuning
from ludus.evaluation.report.markup import document
from ludus.evaluation.report.reading import Run, read_run


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Missing stages and files are left out; damaged ones are listed. Raises RunError when the folder is not a run.
    """
    run = read_run(Path(run_folder))
    target = run.folder / "report.html"
    atomic_write(target, render(run))
    return target


def render(run: Run) -> str:
    """Return the report's HTML. The same run always gives the same text."""
    return document(
        outcome.title(run),
        outcome.opening(run),
        scores.evaluation(run),
        tuning.comparison(run),
        tuning.adapters(run),
        curves.training(run),
        curves.samples(run),
        scores.answers(run),
        sources.corpus(run),
        sources.tokenizer(run),
        outcome.costs(run),
        sources.recipe(run),
        advice.advice(run),
        outcome.chatting(run),
        sources.unread(run),
    )
