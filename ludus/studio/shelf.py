"""The models that can be talked with: those of the runs, by `RUN/STAGE`, and one that was named. One is loaded."""

from pathlib import Path

from ludus.base.errors import RunError, nearest
from ludus.generation.speaker import Speaker
from ludus.model.hub import find, origin
from ludus.studio.runs import describes, scan


class Shelf:
    """Models by name. The first name is the one that answers when none is asked for."""

    def __init__(self, folder: Path, chosen: Path | str | None = None) -> None:
        self.folder, self.chosen = folder, chosen
        self._loaded: tuple[Path, int, Speaker] | None = None
        if chosen is not None:
            found = find(chosen)  # better to know now than at the first question
            self.chosen = found.folder if found.revision else chosen

    def names(self) -> dict[str, Path]:
        """Return every model's folder by its name: the one that was named first, then the newest run's last stage."""
        found = {
            f"{run.name}/{stage}": path for run in scan(self.folder) for stage, path in reversed(run.models.items())
        }
        if self.chosen is None:
            return found
        chosen = find(self.chosen).folder
        known = next((name for name, path in found.items() if path.resolve() == chosen.resolve()), None)
        hub = (origin(chosen) or "").partition("@")[0]
        return {known or hub or chosen.resolve().name: chosen} | found

    def find(self, name: str) -> tuple[str, Path]:
        """Return a model's full name and folder; a run's name means its last stage. Raises RunError for none."""
        names = self.names()
        if not names:
            raise RunError(f"there is no model in {self.folder} yet; train one, as with `ludus run quickstart`")
        full = next((full for full in names if name in ("", full) or full.rpartition("/")[0] == name), None)
        if full is None:
            near = nearest(name, names)
            raise RunError(f"there is no model {name}" + (f"; did you mean {near}?" if near else ""))
        return full, names[full]

    def load(self, path: Path) -> Speaker:
        """Return the model in a folder, loaded anew only if it is another than the last or has changed."""
        written = describes(path).stat().st_mtime_ns
        if self._loaded is None or self._loaded[:2] != (path, written):
            self._loaded = (path, written, Speaker.load(path))
        return self._loaded[2]
