"""Exercises: questions with checkable answers, some of them about the corpus, split so that none is ever seen twice."""

from ludus.base.console import say
from ludus.base.files import folder_in_progress
from ludus.corpus.build import read
from ludus.corpus.exercises.build import build, facts_of
from ludus.recipes.place import Made, Place, Stage
from ludus.runs.manifest import Manifest


def make(place: Place, manifest: Manifest) -> Made:
    """Generate the exercises of the run."""
    recipe = place.recipe
    facts = facts_of(document.metadata for document in read(place.corpus, "train"))
    with folder_in_progress(place.exercises) as folder:
        report = build(recipe.exercises, folder, facts, seed=recipe.seed)
    for split in ("train", "held_out"):
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in report[split]["by_kind"].items())
        say(f"  {split.replace('_', ' ')}: {report[split]['exercises']:,} ({kinds})")
    counts = {"questions": sum(split["exercises"] for split in report.values())}
    return Made({"questions": place.exercises}, summary=counts)


STAGE = Stage(
    name="exercises",
    settings=lambda recipe: {"exercises": recipe.exercises.model_dump(mode="json"), "seed": recipe.seed},
    inputs=lambda place: {"documents": place.corpus},
    needs=lambda place: ["corpus"],
    make=make,
)
