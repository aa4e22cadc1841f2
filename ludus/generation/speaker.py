"""A model one can talk with: the weights, the tokenizer that belongs to them, and where they came from.

What lives here: one model, or one adapter on its base. Several adapters on one base are in `voices.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ludus.adapters.files import recorded
from ludus.adapters.opening import base_of, open_model
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
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # that an adapter may bring


@dataclass(frozen=True)
class Speaker:
    """A model with its tokenizer; `stage` is what made it, empty where the model does not say.

    A `borrowed` chat template is not the model's own: it has none, so nothing says that it was taught to answer.
    """

    model: Transformer
    tokenizer: Tokenizer
    folder: Path
    stage: str = ""
    borrowed: bool = False

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        dtype: torch.dtype | None = torch.float32,
        quantise: str | None = None,
        base: Path | str | None = None,
    ) -> "Speaker":
        """Load what `path` names: a model's folder, a stage's, a run's, an adapter's, a file, or a name on the hub.

        `dtype` is that of the weights, None as they are stored. `quantise` is none, nf4 or int8 for the linear layers;
        without it, as they were while an adapter learned. `base` is where an adapter's base lies now.

        Raises:
            RunError: nothing there is a model.
            CheckpointError: the model is damaged, or none that ludus can run.
            TokenizerMismatch: the tokenizer beside it is not its own.
        """
        folder = find(path).folder
        under = base_of(folder, base).folder if (folder / ADAPTER).is_file() else None
        own = tokenizer_of(folder, under)
        model = open_model(folder, dtype=dtype, quantise=quantise or "as-trained", base=under)
        return cls.of(model, own, folder)

    @classmethod
    def of(cls, model: Transformer, own: Tokenizer, folder: Path) -> "Speaker":
        """Return a model that is loaded, with the template to talk with it. Raises TokenizerMismatch."""
        tokenizer = choose(own)
        if tokenizer.vocabulary_size > model.shape.vocabulary:
            raise TokenizerMismatch(
                f"{folder} has a tokenizer of {tokenizer.vocabulary_size} tokens and a model of "
                f"{model.shape.vocabulary}; put the model's own tokenizer (with its chat template) beside it"
            )
        return cls(model.eval(), tokenizer, folder, facts(folder).get("stage", ""), own.template is None)

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


def tokenizer_of(folder: Path, base: Path | None = None) -> Tokenizer:
    """Load the tokenizer of a model, or that beside an adapter, else that of its `base`.

    Raises:
        TokenizerMismatch: it is not the one that the model was trained with.
    """
    if base is not None and not any((folder / name).is_file() for name in TOKENIZERS):
        folder = base
    own = Tokenizer.load(folder)
    require_same(own, bound_to(folder), model=str(folder))
    return own


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
