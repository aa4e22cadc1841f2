"""A model one can talk with: the weights, the tokenizer that belongs to them, and where they came from."""

from dataclasses import dataclass
from pathlib import Path

from ludus.base.errors import CheckpointError, TokenizerMismatch
from ludus.base.files import read_json
from ludus.model import exchange
from ludus.model.transformer import Transformer
from ludus.runs.folder import find_model
from ludus.text.template import SPECIALS
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
        folder = find_model(path)
        model, tokenizer = exchange.load(folder), Tokenizer.load(folder)
        if tokenizer.vocabulary_size > model.shape.vocabulary:
            raise TokenizerMismatch(
                f"{folder} has a tokenizer of {tokenizer.vocabulary_size} tokens and a model of "
                f"{model.shape.vocabulary}; put the model's own tokenizer (with its chat template) beside it"
            )
        return cls(model.eval(), tokenizer, folder, facts(folder).get("stage", ""))

    @property
    def context(self) -> int:
        """Return how many tokens the model sees at once."""
        return self.model.shape.context

    @property
    def stops(self) -> frozenset[int]:
        """Return the tokens that end an answer: the end of a turn, and any that would begin another."""
        tokenizer = self.tokenizer
        turns = (index for token, index in tokenizer.special_ids.items() if token in SPECIALS)
        return frozenset([tokenizer.end, tokenizer.bos, *turns])

    @property
    def only_continues(self) -> bool:
        """Tell whether the model was only pretrained, and so never taught to answer."""
        return self.stage == BASE_STAGE


def facts(folder: Path) -> dict[str, str]:
    """Return what a model's `config.json` says about its making, as text; nothing for a model of other software."""
    config = read_json(folder / "config.json", CheckpointError)
    ours = config.get("ludus") if isinstance(config, dict) else None
    found = ours.get("facts") if isinstance(ours, dict) else None
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
