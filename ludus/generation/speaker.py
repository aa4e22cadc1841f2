"""A model one can talk with: the weights, the tokenizer that belongs to them, and where they came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ludus.adapters.files import recorded
from ludus.adapters.opening import open_model
from ludus.adapters.virtual import room
from ludus.base.errors import CheckpointError, TokenizerMismatch
from ludus.base.files import read_json
from ludus.model.hub import ADAPTER, find
from ludus.model.transformer import Transformer
from ludus.text.binding import require_same
from ludus.text.template import SPECIALS
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer

BASE_STAGE = "pretrain"


@dataclass(frozen=True)
class Speaker:
    """A model with its tokenizer; `stage` is what made it, empty where the model does not say."""

    model: Transformer
    tokenizer: Tokenizer
    folder: Path
    stage: str = ""

    @classmethod
    def load(cls, path: Path | str) -> "Speaker":
        """Load what `path` names: a model's folder, a stage's, or a run's.

        Raises:
            RunError: nothing there is a model.
            CheckpointError: the model is damaged, or none that ludus can run.
            TokenizerMismatch: the tokenizer beside it is not its own.
        """
        folder = find(path).folder
        own = Tokenizer.load(folder)
        require_same(own, bound_to(folder), model=str(folder))
        model, tokenizer = open_model(folder, quantise="as-trained"), choose(own)
        if tokenizer.vocabulary_size > model.shape.vocabulary:
            raise TokenizerMismatch(
                f"{folder} has a tokenizer of {tokenizer.vocabulary_size} tokens and a model of "
                f"{model.shape.vocabulary}; put the model's own tokenizer (with its chat template) beside it"
            )
        return cls(model.eval(), tokenizer, folder, facts(folder).get("stage", ""))

    @property
    def context(self) -> int:
        """Return how many tokens the model sees at once."""
        return room(self.model)

    @property
    def stops(self) -> frozenset[int]:
        """Return the tokens that end an answer: the end of a turn, and any that would begin another."""
        tokenizer = self.tokenizer
        turns = (index for token, index in tokenizer.special_ids.items() if token in SPECIALS)
        return frozenset([*tokenizer.ends, tokenizer.bos, *turns])

    @property
    def only_continues(self) -> bool:
        """Tell whether the model was only pretrained, and so never taught to answer."""
        return self.stage == BASE_STAGE


def facts(folder: Path) -> dict[str, str]:
    """Return what a model or an adapter says about its making, as text; nothing for one of other software."""
    if (folder / ADAPTER).is_file():
        found: Any = recorded(folder)
        return {key: str(found[key]) for key in ("run", "stage", "steps") if key in found}
    found = _ours(folder).get("facts")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def bound_to(folder: Path) -> str | None:
    """Return the hash of the tokenizer that a model was trained with; None where it does not say."""
    found = _ours(folder).get("tokenizer")
    return found if isinstance(found, str) else None


def _ours(folder: Path) -> dict[str, Any]:
    """Return what ludus wrote into a model's `config.json`; an adapter and a bare file of weights have none."""
    if not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json", CheckpointError)
    ours = config.get("ludus") if isinstance(config, dict) else None
    return ours if isinstance(ours, dict) else {}
