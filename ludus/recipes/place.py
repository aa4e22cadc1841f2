"""Where a run's artefacts lie, and what a stage is: a name, what it needs, what decides it, and how it is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ludus.recipes.schema import Recipe
from ludus.runs.manifest import Manifest

TRAINED = ("pretrain", "sft", "dpo", "grpo")


@dataclass(frozen=True)
class Place:
    """One run: its recipe, its folder, where each value came from, and values given that nothing uses."""

    recipe: Recipe
    folder: Path
    origins: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.folder / name

    def model(self, stage: str) -> Path:
        """Return where a stage leaves its model."""
        return self.folder / stage / "model"

    @property
    def corpus(self) -> Path:
        """The clean documents."""
        return self.folder / "corpus" / "documents"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer."""
        return self.folder / "tokenizer" / "tokenizer"

    @property
    def tokens(self) -> Path:
        """The corpus as token shards, `train` and `validation`."""
        return self.folder / "tokenizer" / "tokens"

    @property
    def exercises(self) -> Path:
        """The exercises, `train.jsonl` and `held_out.jsonl`."""
        return self.folder / "exercises" / "questions"

    def before(self, stage: str) -> str:
        """Name the trained stage that comes before `stage` in this recipe; pretraining where it leaves one out."""
        earlier = self._earlier(stage)
        return earlier[-1] if earlier else "pretrain"

    def brought(self, stage: str) -> str | None:
        """Return the model that a person named for a stage to start from; None where a stage before it makes one."""
        chosen = getattr(self.recipe, stage).base
        return chosen or (None if self._earlier(stage) else self.recipe.model.base)

    def base(self, stage: str) -> Path:
        """Return the model a stage starts from: the one that was brought, else that of the stage before."""
        named = self.brought(stage)
        return _found(named) if named else self.model(self.before(stage))

    def _earlier(self, stage: str) -> list[str]:
        """Return the trained stages before one; a model that was brought stands for pretraining."""
        earlier = [name for name in TRAINED[: TRAINED.index(stage)] if name in self.recipe.stages]
        return [name for name in earlier if name != "pretrain" or not self.recipe.model.base]


@lru_cache
def _found(name: str) -> Path:
    """Return the folder of a model, downloaded if it has to be; once, so that a run has one revision of it."""
    from ludus.model.hub import find

    return find(name).folder


@dataclass(frozen=True)
class Made:
    """What a stage leaves behind, by name, and figures worth keeping."""

    outputs: Mapping[str, Path]
    tokens: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A link of the chain. `inputs` are artefacts by name; `needs` the stages that make them."""

    name: str
    settings: Callable[[Recipe], Mapping[str, Any]]
    inputs: Callable[[Place], Mapping[str, Path]]
    needs: Callable[[Place], list[str]]
    make: Callable[[Place, Manifest], Made]
