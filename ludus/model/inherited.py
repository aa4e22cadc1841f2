"""What a model's files say beyond its architecture and is handed on when it is saved again.

Other software goes by it: the tokens that end a text, which may be several, how to sample by default, and settings that
change no logit. A model keeps it beside its weights, in an attribute of its own, since none of it is computed with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ludus.base.errors import CheckpointError
from ludus.base.files import read_json
from ludus.model.layout import Config

ATTRIBUTE = "inherited"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
HANDED_ON = ("initializer_range", "pretraining_tp")
OF_A_VERSION = ("transformers_version", "_from_model_config")


@dataclass(frozen=True)
class Inherited:
    """`ids` are token ids, `settings` what is kept of `config.json`, `generation` is `generation_config.json`."""

    model_type: str | None = None
    ids: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, folder: Path) -> "Inherited":
        """Read what a model's folder hands on."""
        file = folder / "generation_config.json"
        generation = read_json(file, CheckpointError) if file.is_file() else {}
        generation = generation if isinstance(generation, dict) else {}
        said = {name: generation.get(name, config.get(name)) for name in IDS}
        return cls(
            config.get("model_type"),
            {name: config.get(name) if said[name] is None else said[name] for name in IDS},
            {name: config[name] for name in HANDED_ON if config.get(name) is not None},
            {name: value for name, value in generation.items() if name not in (*IDS, *OF_A_VERSION)},
        )

    def token_ids(self, own: Mapping[str, int | list[int] | None]) -> dict[str, Any]:
        """Return the ids to write: a tokenizer's own, else those inherited; several ends stay several, ours first."""
        found = {name: self.ids.get(name) if own[name] is None else own[name] for name in IDS}
        theirs, ours = self.ids.get("eos_token_id"), own["eos_token_id"]
        if isinstance(theirs, list) and ours is not None:
            ours = ours if isinstance(ours, list) else [ours]
            first, second = (theirs, ours) if ours[0] in theirs else (ours, theirs)
            found["eos_token_id"] = [*first, *(end for end in second if end not in first)]
        return found


def keep(model: Any, what: Inherited) -> Any:
    """Lay what is inherited beside a model's weights, and return the model."""
    vars(model)[ATTRIBUTE] = what
    return model


def inherited_by(model: Any) -> Inherited:
    """Return what a model was given to hand on; nothing where it was made here."""
    return vars(model).get(ATTRIBUTE) or Inherited()


def generation_of(config: Mapping[str, Any], inherited: Inherited) -> dict[str, Any]:
    """Return `generation_config.json` for a model of that `config.json`."""
    return {**{name: config[name] for name in IDS}, **inherited.generation}
