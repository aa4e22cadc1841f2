"""Corpus: read documents, clean them, drop copies, split them, and account for everything."""

from pathlib import Path
from typing import Any

from ludus.base.console import say
from ludus.base.files import folder_in_progress, write_json
from ludus.corpus.build import build
from ludus.corpus.settings import CorpusSettings
from ludus.corpus.sources import paths_of
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.schema import Recipe
from ludus.runs.manifest import Manifest


def make(place: Place, manifest: Manifest) -> Made:
    """Build the corpus."""
    with folder_in_progress(place.corpus) as folder:
        report = build(place.recipe.corpus, folder, place.recipe.seed, domains(place.recipe))
    write_json(place.stage("corpus") / "report.json", report)
    _tell(report)
    return Made({"documents": place.corpus}, summary={"read": report["read"], "kept": report["kept"]})


def domains(recipe: Recipe) -> dict[str, CorpusSettings]:
    """Return how each domain of the recipe's mixture is read: as the corpus is, from a place of its own."""
    mixture = getattr(recipe.data, "mixture", {})
    return {
        name: recipe.corpus.model_copy(
            update={
                "path": domain.path,
                "hub": domain.hub,
                "url": None,
                "sha256": None,
                "source": recipe.corpus.source or name,
            }
        )
        for name, domain in mixture.items()
    }


def _tell(report: dict[str, Any]) -> None:
    read, sources = report["read"], ", ".join(report["sources"])
    say(f"  read {read['documents']:,} documents ({read['characters']:,} characters) from {sources}")
    for note in report["notes"]:
        say(f"  {note}")
    for reason, lost in report["dropped"].items():
        say(f"  dropped as {reason}: {lost['documents']:,} documents, {lost['characters']:,} characters")
    for kind, count in report["skipped_files"].items():
        say(f"  passed over: {count:,} of kind {kind}")
    if report["broken_characters"]:
        broken, files = sum(report["broken_characters"].values()), len(report["broken_characters"])
        say(f"  {broken:,} characters in {files:,} files are no UTF-8 and were read as U+FFFD")
    for split in ("train", "validation"):
        say(f"  {split}: {report[split]['documents']:,} documents, {report[split]['characters']:,} characters")
    for name, sides in report.get("domains", {}).items():
        counts = ", ".join(f"{count['characters']:,} characters of {side}" for side, count in sides.items())
        say(f"  {name}: {counts}")
    say(f"  {report['split']}")


def inputs(place: Place) -> dict[str, Path]:
    """Return the files the corpus is read from, so that a change of theirs is noticed."""
    read = domains(place.recipe).values() or [place.recipe.corpus]
    paths = list(dict.fromkeys(path for settings in read for path in paths_of(settings)))
    return {"source" if len(paths) == 1 else f"source {path}": path for path in paths}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the outcome; the weights of a mixture do not."""
    where = {name: {"path": each.path, "hub": each.hub} for name, each in domains(recipe).items()}
    return {"corpus": recipe.corpus.model_dump(mode="json"), "seed": recipe.seed} | (
        {"domains": where} if where else {}
    )


STAGE = Stage(name="corpus", settings=settings_of, inputs=inputs, needs=lambda place: [], make=make)
