"""What of a run is up to date already, asked without making anything; and what it was that made it."""

from pathlib import Path

from ludus.base.config import Resolved, load_resolved
from ludus.base.errors import RunError, nearest
from ludus.base.files import read_json
from ludus.cli.verbs import STAGE, VERBS
from ludus.recipes import chain
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe
from ludus.runs.artefacts import artefact
from ludus.runs.manifest import MANIFEST, Manifest, fingerprint


def read_run(folder: Path) -> tuple[Resolved[Recipe], str]:
    """Return the recipe of a run and the verb it was made with. Raises RunError if the folder is no run."""
    if not (folder / "recipe.json").is_file():
        raise RunError(f"{folder} {why_no_run(folder)}")
    head = read_json(folder / "run.json", RunError)
    verb = head.get("verb", "run") if isinstance(head, dict) else None
    if verb not in VERBS or VERBS[verb].module != STAGE:
        raise RunError(f"{folder / 'run.json'} says the run was made with the verb {verb!r}, which makes no stages")
    return load_resolved(Recipe, folder / "recipe.json"), verb


def why_no_run(folder: Path) -> str:
    """Say why a folder is no run, and which may be meant."""
    if not folder.exists():
        runs = [path.parent for path in folder.parent.glob("*/recipe.json")]
        near = nearest(folder.name, [run.name for run in runs])
        return "does not exist" + (f"; did you mean {folder.parent / near}?" if near else "")
    above = next((parent for parent in folder.resolve().parents if (parent / "recipe.json").is_file()), None)
    return "is not a run, it has no recipe.json" + (f"; did you mean {above}?" if above else "; name a folder in runs/")


def unfinished(place: Place, verb: str) -> list[str]:
    """Return those stages of a verb that would be made, in order; the report, made each time, does not count."""
    names = [name for name in chain.chosen(place, verb) if name not in chain.ALWAYS]
    for number, name in enumerate(names):
        wanted = wanted_fingerprint(place, name)
        if wanted is None or not is_current(place.stage(name), wanted):
            return names[number:]  # whatever comes after is made from it
    return []


def wanted_fingerprint(place: Place, name: str) -> str | None:
    """Return the fingerprint a stage would have if it were made now, None while its inputs are not there."""
    stage, folder = chain.STAGES[name], place.stage(name)
    try:
        inputs = {key: artefact(path, folder) for key, path in stage.inputs(place).items()}
    except RunError:
        return None
    return fingerprint(name, stage.settings(place.recipe), inputs)


def is_current(folder: Path, wanted: str) -> bool:
    """Tell whether a stage's folder holds the finished stage of a fingerprint."""
    return (folder / MANIFEST).is_file() and Manifest.read(folder).is_current(wanted)
