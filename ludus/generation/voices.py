"""One model that speaks with several voices: bare, or with one of the adapters that stand ready on it.

What lives here: which adapter speaks, with which tokenizer and template. What does not: how adapters change places,
which is `ludus.adapters.switching`. The one idea: the base is in memory once, whoever speaks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ludus.adapters.files import recorded
from ludus.adapters.identity import refuse_another
from ludus.adapters.opening import base_of, newest_adapter, open_model
from ludus.adapters.switching import Shelf
from ludus.base.errors import ConfigError, RunError
from ludus.generation.speaker import Speaker, tokenizer_of
from ludus.model.hub import ADAPTER, find, origin
from ludus.model.resize import resize
from ludus.runs.manifest import MANIFEST

OFF = "off"


@dataclass
class Voices:
    """The voices of a model: `bare` is that without an adapter, `adapted` are those with one, by name.

    `notes` is what a person should know about how they were loaded.
    """

    shelf: Shelf
    bare: Speaker
    adapted: dict[str, Speaker] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def current(self) -> Speaker:
        """Return who speaks."""
        return self.bare if self.shelf.current is None else self.adapted[self.shelf.current]

    def use(self, name: str | None) -> Speaker:
        """Let an adapter speak, or with None the bare model. Raises ConfigError for an unknown name."""
        self.shelf.use(name)
        return self.current

    @classmethod
    def load(
        cls,
        path: Path | str,
        adapters: Sequence[str] = (),
        *,
        dtype: torch.dtype | None = torch.float32,
        quantise: str | None = None,
        base: Path | str | None = None,
    ) -> "Voices":
        """Load a model and adapters for it, each a place or `NAME=PLACE`; the first of them speaks.

        If `path` is an adapter's itself, its base is loaded, or what lies at `base`, and that adapter is the first.
        Without `quantise` the base is as it was while the adapters learned.

        Raises:
            ConfigError: two adapters have one name, or they do not go together.
            CheckpointError: an adapter is for another model.
            RunError: there is no model or adapter at a place.
        """
        folder = find(path).folder
        wanted: dict[str, Path] = {}
        if (folder / ADAPTER).is_file():
            wanted[name_of(folder)], folder = folder, base_of(folder, base).folder
        elif base is not None:
            raise ConfigError(f"--base is where an adapter's base lies, and {path} is a model; leave --base out")
        for text in adapters:
            name, place = named(text)
            if name in wanted:
                raise ConfigError(f"two adapters are called {name}; name one otherwise: --adapter OTHER={place}")
            wanted[name] = place
        for place in wanted.values():
            refuse_another(place, recorded(place), folder)
        like = None if quantise else agreed(wanted)
        model = open_model(folder, dtype=dtype, quantise=quantise or "as-trained", like=like)
        known = [int(recorded(place).get("vocabulary") or 0) for place in wanted.values()]
        resize(model, max([model.shape.vocabulary, *known]))
        voices = cls(Shelf(model), Speaker.of(model, tokenizer_of(folder), folder))
        for name, place in wanted.items():
            voices.shelf.add(name, place)
            voices.adapted[name] = Speaker.of(model, tokenizer_of(place, folder), place)
        voices.notes = remarks(wanted, quantise, like)
        voices.use(next(iter(wanted), None))
        return voices


def named(text: str) -> tuple[str, Path]:
    """Return the name and the folder of an adapter given as `NAME=PLACE` or as a place: a folder, a run, or on the hub.

    Raises:
        ConfigError: the name is none that could be called.
        RunError: there is no adapter at the place.
    """
    name, equals, place = text.partition("=")
    if not equals or Path(text).expanduser().exists():
        name, place = "", text
    folder = newest_adapter(place) if Path(place).expanduser().exists() else find(place).folder
    if not (folder / ADAPTER).is_file():
        raise RunError(f"{place} is a model and no adapter; give the folder that an adapter was saved to, or its run")
    name = name or name_of(folder)
    if name == OFF or not name.strip() or any(letter.isspace() for letter in name):
        raise ConfigError(
            f"an adapter cannot be called '{name}': give one word other than {OFF}, as --adapter NAME={place}"
        )
    return name, folder


def name_of(folder: Path) -> str:
    """Return what an adapter is called: by its run and stage, by its name on the hub, or by its folder."""
    path = folder.resolve()
    if hub := origin(path):
        return hub.partition("@")[0]
    inner = path.name in ("adapter", "model") and (path.parent / MANIFEST).is_file()
    return f"{path.parent.parent.name}-{path.parent.name}" if inner else path.name.replace(" ", "-")


def agreed(adapters: Mapping[str, Path]) -> Path | None:
    """Return an adapter whose base was quantised as those of all that say it were; None where they differ."""
    said = {name: quantisation(place) for name, place in adapters.items()}
    if len({found for found in said.values() if found}) != 1:
        return None
    return next(place for name, place in adapters.items() if said[name])


def quantisation(adapter: Path) -> tuple[str, ...]:
    """Return what an adapter's base was quantised to while it learned, and which layers; nothing if it does not say."""
    said = recorded(adapter)
    return (said["quantise"], *said.get("quantised_layers", ())) if "quantise" in said else ()


def remarks(adapters: Mapping[str, Path], quantise: str | None, like: Path | None) -> list[str]:
    """Say how the base was loaded where nobody asked for it."""
    if quantise or not adapters:
        return []
    if like is not None:
        kind = quantisation(like)[0]
        return [] if kind == "none" else [f"the base is in {kind}, as it was while the adapter learned"]
    found = {name: kept for name, place in adapters.items() if (kept := quantisation(place))}
    kinds = [f"{name} on a {'whole' if kept[0] == 'none' else kept[0]} base" for name, kept in found.items()]
    return (
        [f"{', '.join(kinds)} while they learned; it is whole now, --quantise nf4 or int8 makes it small"]
        if kinds
        else []
    )
