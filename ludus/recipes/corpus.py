"""Corpus: read documents, clean them, drop copies, split them, and account for everything."""

from pathlib import Path

from ludus.base.console import say
from ludus.base.files import folder_in_progress, write_json
from ludus.corpus.build import build
from ludus.corpus.sources import paths_of
from ludus.recipes.place import Made, Place, Stage
from ludus.runs.manifest import Manifest


def make(place: Place, manifest: Manifest) -> Made:
    """Build the corpus."""
    with folder_in_progress(place.corpus) as folder:
        report = build(place.recipe.corpus, folder, place.recipe.seed)
    write_json(place.stage("corpus") / "report.json", report)
    read, kept = report["read"], report["kept"]
    sources = ", ".join(report["sources"])
    say(f"  read {read['documents']:,} documents ({read['characters']:,} characters) from {sources}")
    for reason, lost in report["dropped"].items():
        say(f"  dropped as {reason}: {lost['documents']:,} documents, {lost['characters']:,} characters")
    for kind, count in report["skipped_files"].items():
        say(f"  passed over: {count:,} of kind {kind}")
    for split in ("train", "validation"):
        say(f"  {split}: {report[split]['documents']:,} documents, {report[split]['characters']:,} characters")
    say(f"  {report['split']}")
    return Made({"documents": place.corpus}, summary={"read": read, "kept": kept})


def inputs(place: Place) -> dict[str, Path]:
    """Return the files the corpus is read from, so that a change of theirs is noticed."""
    paths = paths_of(place.recipe.corpus)
    return {"source" if len(paths) == 1 else f"source {path}": path for path in paths}


STAGE = Stage(
    name="corpus",
    settings=lambda recipe: {"corpus": recipe.corpus.model_dump(mode="json"), "seed": recipe.seed},
    inputs=inputs,
    needs=lambda place: [],
    make=make,
)
