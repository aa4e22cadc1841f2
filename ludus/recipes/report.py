"""The report: one page, opened from disk, about everything the run did."""

from ludus.evaluation.report import write_report
from ludus.recipes.place import Made, Place, Stage
from ludus.runs.manifest import Manifest


def make(place: Place, manifest: Manifest) -> Made:
    """Write `report.html`."""
    return Made({"page": write_report(place.folder)})


STAGE = Stage(name="report", settings=lambda recipe: {}, inputs=lambda place: {}, needs=lambda place: [], make=make)
