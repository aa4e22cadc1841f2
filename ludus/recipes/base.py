"""What a tuning stage starts from: a model somebody made, the tokenizer and template that belong to it, an adapter.

The model's own tokenizer is never swapped. A template may need special tokens that it lacks; then the model gets rows
for them, and learns those rows even under an adapter.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ludus.adapters.apply import apply
from ludus.adapters.opening import open_model
from ludus.adapters.quantised import held, quantise
from ludus.adapters.settings import AnyAdapter, NoAdapter, PrefixSettings, PromptSettings
from ludus.adapters.surgery import is_adapted, linears, switched_off
from ludus.adapters.virtual import room, virtual_of
from ludus.adapters.whole import put_module
from ludus.base.console import say
from ludus.base.errors import ConfigError, TokenizerMismatch
from ludus.base.seeds import derive_seed
from ludus.generation.speaker import bound_to
from ludus.learning import device, precision
from ludus.model.resize import resize
from ludus.model.transformer import Transformer
from ludus.recipes.place import Place
from ludus.text.binding import require_same
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer

VOCABULARY = ("embed_tokens", "lm_head")  # where a model has rows for its tokens
ALIKE = 0.99  # cosine of two rows that nothing told apart


def load_base(place: Place, stage: str) -> tuple[Transformer, Tokenizer, Path]:
    """Load the model a stage starts from, with its tokenizer and the template it will be tuned with.

    Raises:
        TokenizerMismatch: the tokenizer has tokens that the model does not know.
    """
    settings, folder = getattr(place.recipe, stage), place.base(stage)
    where = device.place(place.recipe.device).device
    model = open_model(
        folder,
        dtype=_kept_in(place, settings.weights, where),
        device=where,
        quantise="none" if starts_quantised(settings.adapter) else settings.quantise,
    )
    own = Tokenizer.load(folder)
    require_same(own, bound_to(folder), model=str(folder))
    tokenizer = choose(own, settings.template)
    _widen_vectors(model)
    _look_at_context(place, model, folder)
    if own.vocabulary_size > model.shape.vocabulary:
        raise TokenizerMismatch(
            f"{folder}: its tokenizer has {own.vocabulary_size} tokens, its model {model.shape.vocabulary}; "
            f"start {stage} from a model saved with the tokenizer it was trained with"
        )
    if tokenizer.vocabulary_size > model.shape.vocabulary:
        old = model.shape.vocabulary
        resize(model, tokenizer.vocabulary_size)
        say(
            f"  the template {settings.template} adds {len(tokenizer.added)} tokens ({', '.join(tokenizer.added)}): "
            f"embedding and head grow from {old:,} to {model.shape.vocabulary:,} rows, the new ones the mean of the old"
        )
    elif tokenizer.added:
        say(
            f"  the template {settings.template} adds {len(tokenizer.added)} tokens ({', '.join(tokenizer.added)}), "
            f"whose rows the model has: its {model.shape.vocabulary:,} are more than the tokenizer needed"
        )
    return model, tokenizer, folder


def adapted(place: Place, model: Transformer, settings: Any, tokenizer: Tokenizer) -> Transformer:
    """Put the adapter of a stage's settings on a model, in place, and say what trains.

    An adapter that the model came with, unmerged, goes on learning where none is asked for.

    Raises:
        ConfigError: the model came with an adapter, and another is asked for.
    """
    adapter: AnyAdapter = settings.adapter
    if isinstance(adapter, NoAdapter):
        if is_adapted(model):
            say("  the model to start from is an unmerged adapter on its base: it goes on learning, nothing else does")
        return model
    if is_adapted(model):
        way = "start from its base" if virtual_of(model) is not None else "merge that one first with ludus merge"
        raise ConfigError(
            f"the model to start from is an adapter on its base, and one adapter at a time can learn; {way}, or go on "
            "with it: adapter.kind=none"
        )
    if tokenizer.added and not isinstance(adapter, PrefixSettings | PromptSettings):
        adapter = adapter.model_copy(update={"also": sorted({*adapter.also, *VOCABULARY})})
        say(f"  {' and '.join(VOCABULARY)} are trained whole, since tokens were added")
    elif not {*VOCABULARY} & {*getattr(adapter, "also", ())}:
        look_at_end(model, tokenizer, virtual=isinstance(adapter, PrefixSettings | PromptSettings))
    words = tokenizer.encode(adapter.text) if isinstance(adapter, PromptSettings) and adapter.text else None
    model = apply(model, adapter, seed=derive_seed(place.recipe.seed, "adapter"), tokens=words)
    if settings.quantise != "none" and starts_quantised(adapter):
        quantise_rest(model, settings.quantise)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    every = weights_of(model)
    say(f"  {adapter.kind}: {trained:,} parameters are trained, {trained / every:.2%} of {every:,}")
    return model


def _kept_in(place: Place, weights: str, where: torch.device) -> torch.dtype:
    """Return the dtype of frozen weights: as set, unless matrix products are float32, which takes both sides in it."""
    policy = precision.policy(place.recipe.precision, where)
    if policy.dtype == torch.float32 and weights != "float32":
        say(f"  frozen weights are kept in float32 instead of {weights}, since matrix products are ({policy.reason})")
        return torch.float32
    return getattr(torch, weights)


def _look_at_context(place: Place, model: Transformer, folder: Path) -> None:
    """Refuse rows longer than the positions that a model has learned; say so where it was made for shorter ones."""
    asked, seen = place.recipe.data.context, room(model)
    if asked > seen and model.shape.position == "learned":
        raise ConfigError(
            f"data.context={asked}, and {folder} has learned {seen} positions; set data.context={seen} or less"
        )
    if asked > seen:
        say(f"  data.context={asked} is more than the {seen} tokens that the model was made for")


def look_at_end(model: Transformer, tokenizer: Tokenizer, *, virtual: bool = False) -> None:
    """Warn where the model never learned the token that ends a turn: no adapter on its layers can tell it from others.

    A token that pretraining never saw is pushed down with all others like it, so that their rows end up the same.
    Beside `virtual` tokens nothing is trained whole.
    """
    weight = model.lm_head.weight.detach().float()
    likeness = torch.nn.functional.cosine_similarity(weight, weight[tokenizer.end], dim=-1)
    alike = int((likeness > ALIKE).sum()) - 1
    if alike > 0:
        way = "take another kind of adapter, with also=" if virtual else "set adapter.also="
        say(
            f"  warning: the model never learned {tokenizer.end_token}, which ends a turn: its row is that of "
            f"{alike:,} other tokens, so answers will not end; {way}[embed_tokens, lm_head]"
        )


def weights_of(model: Transformer) -> int:
    """Count the weights of a model, quantised ones included."""
    return sum(one.numel() for one in model.parameters()) + held(model).weights


def _widen_vectors(model: Transformer) -> None:
    """Keep norms and biases in float32, which is exact and takes no room: they are worked out in it."""
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data = parameter.data.float()


def starts_quantised(adapter: AnyAdapter) -> bool:
    """Tell whether an adapter quantises the weights under it by itself, to start from what that lost (LoftQ)."""
    return getattr(adapter, "initialise", "zero") == "loftq"


def quantise_rest(model: Transformer, kind: str) -> None:
    """Quantise the linear layers of the blocks that no adapter stands on, in place."""
    for name, layer in linears(model).items():
        if name.startswith("layers.") and model.get_submodule(name) is layer and type(layer) is nn.Linear:
            put_module(model, name, quantise(layer, kind))  # type: ignore[arg-type]


def reference_of(model: Transformer, settings: Any) -> Transformer:
    """Return the frozen model that an objective compares with while `model` trains: where the stage starts from.

    Past a fresh adapter it is a view, which costs no memory; else a copy of what trains, and the rest is shared.
    """
    start = before_training(model, settings)
    if start is not model:
        return start
    still = [one for one in (*model.parameters(), *model.buffers()) if not one.requires_grad]
    return copy.deepcopy(model, {id(one): one for one in still}).requires_grad_(False)


def before_training(model: Transformer, settings: Any) -> Transformer:
    """Return the model that a stage starts from, before a step was made: `model` itself, or a view past its adapter.

    Fresh adapters change nothing, and virtual tokens drawn at random are nothing to stay near. The model itself is
    meant where its adapter made up for quantising it (LoftQ), came with it, or is none.
    """
    fresh = is_adapted(model) and not isinstance(settings.adapter, NoAdapter)
    return switched_off(model) if fresh and not starts_quantised(settings.adapter) else model
