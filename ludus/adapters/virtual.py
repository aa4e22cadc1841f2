"""Virtual tokens: what prefix and prompt tuning share. They stand before every text, and nothing else is trained.

To the model they are a document 0 that every text of a row sees and counts on from: packed documents, a shared prompt,
left padding and the KV cache work as they do without. Their hidden states are cut off, so objectives and the engine
never meet them. Not here: what they are made of (`prefix`, `prompt`) and where files lie (`files`). Virtual tokens
change the text a model has read, not its weights: they are not the identity at step 0, and there is nothing to merge.
"""

import functools
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ludus.base.errors import CheckpointError, ConfigError
from ludus.model.architecture import Architecture
from ludus.model.sight import Cache, Sight
from ludus.model.transformer import Transformer

UNMERGEABLE = "virtual tokens are no change of any weight, so they cannot be merged; keep the adapter beside its model"
PROMPT = ("ludus.adapters.prompt", "Prompt")
HOMES = {"PREFIX_TUNING": ("ludus.adapters.prefix", "Prefix"), "PROMPT_TUNING": PROMPT, "P_TUNING": PROMPT}
Where = Mapping[str, Any]  # positions, documents, shared, cache: the keywords of `Transformer.hidden`


class Coat:
    """What is put over a transformer's class from outside: `put_on`, `take_off`. A copy of the model wears it too.

    Of several, the one with the least `place` is outermost, whichever was put on first.
    """

    place: int


class Virtual(nn.Module):
    """Tokens before every text; what is learned of each is a row of `weight`, in float32 whatever the model is in."""

    peft_type: str

    def __init__(self, weight: Float[Tensor, "virtual channels"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float())

    @property
    def count(self) -> int:
        """How many tokens there are."""
        return len(self.weight)

    @staticmethod
    def channels(shape: Architecture) -> int:
        """Return how many numbers of each token are saved, for a model of a shape."""
        raise NotImplementedError

    def table(self) -> Float[Tensor, "virtual channels"]:
        """Return what is saved of each token, in float32, with its graph."""
        return self.weight

    def hidden(self, model: Transformer, tokens: Int[Tensor, "batch time"], where: Where) -> Tensor:
        """Return the hidden states of `tokens`, which follow the virtual ones or what a cache holds of both."""
        raise NotImplementedError

    def config(self, shape: Architecture) -> dict[str, Any]:
        """Return what PEFT's `adapter_config.json` says of these tokens."""
        raise NotImplementedError


class Preceded(Coat):
    """A transformer with virtual tokens before every text."""

    place = 1  # it runs the layers itself, so it is innermost
    virtual: Virtual
    shape: Architecture

    def hidden(
        self,
        tokens: Int[Tensor, "batch time"],
        *,
        positions: Int[Tensor, "batch time"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        shared: bool = False,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch time channels"]:
        """Return the hidden states of the real tokens; the keywords are `Transformer.hidden`'s.

        Explicit `positions` are those of the text alone, from 0; the virtual tokens come before them. Once a text has
        outgrown the context, and in layers with a window, virtual tokens go out of sight like any other early token.

        Raises:
            ConfigError: the tokens and the virtual ones are more than the positions that the model has learned.
        """
        count, time = self.virtual.count, tokens.shape[1]
        if cache is None and self.shape.position == "learned" and time > (most := room(self)):  # type: ignore[arg-type]
            raise ConfigError(
                f"{time} tokens in a row after {count} virtual ones, and the model has learned {self.shape.context} "
                f"positions; give it rows of at most {most} (data.context), or set adapter.tokens lower"
            )
        positions = None if positions is None else positions + count
        where = {"positions": positions, "documents": documents, "shared": shared, "cache": cache}
        return self.virtual.hidden(self, tokens, where)  # type: ignore[arg-type]


class TextSight(Sight):
    """Attention sees the virtual tokens; what looks a few tokens back (convolutions, n-grams) sees the text alone."""

    def __init__(self, whole: Sight, count: int, documents: Tensor | None, shared: bool, time: int) -> None:
        vars(self).update(vars(whole))
        self.whole, self.documents, self.shared = whole, documents, shared and documents is not None
        self.standing = (whole.standing[:, -time:] - count).clamp(min=0)
        self.span = self.time = time

    def mask(self, form: str, window: int | None, dtype: torch.dtype) -> Any:
        """Return who sees whom, virtual tokens among them."""
        return self.whole.mask(form, window, dtype)


def preceding(
    documents: Int[Tensor, "batch time"] | None, count: int, *, shared: bool
) -> Int[Tensor, "batch whole"] | None:
    """Number the documents of rows with `count` virtual tokens before them: those are, or join, a shared document 0."""
    if documents is None:
        return None
    numbers = documents if shared else torch.where(documents >= 0, documents + 1, documents)
    return torch.cat((numbers.new_zeros(len(numbers), count), numbers), dim=1)


def limit_reach(sight: Sight, context: int | None, count: int) -> None:
    """Let a whole context of text see its virtual tokens, which do not count against how far layers look back.

    `context` is None where the texts are all there: only a cache that has outgrown the context limits anything.
    """
    sight.reach = context + count if context is not None and sight.span > context + count else None


def sources(cache: Cache, count: int, time: int) -> Int[Tensor, "batch whole"] | None:
    """Say for each place of an empty cache which of (virtual tokens, tokens) belongs there; None: that very order.

    Virtual tokens lie right before each row's first real token, after its padding, so that the cache's own count of
    documents and positions, its selection of rows and its growth hold for them as well.
    """
    documents = cache.documents(count + time)
    if documents is None:
        return None
    standing = cache.standing(count + time)
    if bool((standing[:, -1] < count).any()):
        raise ValueError("a row has no token yet: give an empty cache at least the first real token of every row")
    index = torch.arange(count + time, device=standing.device)
    return torch.where(documents < 0, index + count, torch.where(standing < count, standing, index))


def placed(virtual: Tensor, real: Tensor, source: Tensor | None) -> Tensor:
    """Put (..., virtual, channels) before (batch, ..., time, channels) or where `sources` says, in `real`'s dtype."""
    whole = torch.cat((virtual.to(real.dtype).expand(len(real), *virtual.shape), real), dim=-2)
    if source is None:
        return whole
    index = source.view(len(source), *[1] * (whole.dim() - 3), -1, 1)
    return whole.gather(-2, index.expand_as(whole))


def reserve(cache: Cache, count: int) -> None:
    """Make room for virtual tokens in a cache that was made for the text alone."""
    widen = getattr(cache, "reserve", None)
    if widen is not None:
        widen(count)


def through(model: Transformer, embedded: Tensor, sight: Sight) -> Tensor:
    """Run all layers, as `Transformer.hidden` does."""
    x = embedded
    for block in model.layers:
        x = block(x, embedded, sight)
    return x


def precede(model: Transformer, virtual: Virtual) -> Transformer:
    """Freeze a model and put virtual tokens before all that it reads, in place."""
    check_room(model, virtual.count)
    model.requires_grad_(False)
    device = model.embed_tokens.weight.device
    virtual = virtual if virtual.weight.device == device else virtual.to(device)
    model.virtual = virtual.train(model.training)
    return put_on(model, Preceded)


def check_room(model: Transformer, count: int) -> None:
    """Make sure that a model can take so many virtual tokens.

    Raises:
        ConfigError: they leave none of the positions that it has learned.
        ValueError: it has virtual tokens already.
    """
    if virtual_of(model) is not None:
        raise ValueError("the model has virtual tokens already; remove them first")
    if model.shape.position == "learned" and count >= model.shape.context:
        raise ConfigError(
            f"{count} virtual tokens leave no room in the {model.shape.context} positions that the model has learned; "
            "set adapter.tokens lower"
        )


def room(model: Transformer) -> int:
    """Return how many tokens of text fit into a model's context: virtual tokens take up positions that were learned."""
    virtual = virtual_of(model)
    taken = virtual.count if virtual is not None and model.shape.position == "learned" else 0
    return model.shape.context - taken


def virtual_of(model: nn.Module) -> Virtual | None:
    """Return a model's virtual tokens, None where it has none."""
    return model.virtual if isinstance(model, Preceded) else None


def remove(model: Transformer) -> Transformer:
    """Take the virtual tokens off, in place: the model is exactly its base, still frozen.

    A copy that shares its modules with the original, as `copy.copy` makes, may be given: the original keeps them.
    """
    if isinstance(model, Preceded):
        model._modules = {name: module for name, module in model._modules.items() if name != "virtual"}  # type: ignore[assignment]
        take_off(model, Preceded)
    return model


def config(model: Transformer) -> dict[str, Any]:
    """Return PEFT's `adapter_config.json` for a model's virtual tokens; the base's name is left to the caller."""
    virtual = _wanted(model)
    fixed = {"task_type": "CAUSAL_LM", "num_virtual_tokens": virtual.count, "num_transformer_submodules": 1}
    return {"peft_type": virtual.peft_type, **fixed, "inference_mode": True, **virtual.config(model.shape)}


@torch.no_grad()
def tensors(model: Transformer) -> dict[str, Tensor]:
    """Return what PEFT's `adapter_model.safetensors` holds of them; a network they are made by is folded."""
    return {"prompt_embeddings": _wanted(model).table().detach().clone()}


def load(model: Transformer, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Transformer:
    """Put the virtual tokens of an adapter's files on a model, in place.

    Raises:
        CheckpointError: they are of another kind, damaged, or for another model.
    """
    kind = config.get("peft_type")
    if kind not in HOMES:
        raise CheckpointError(f"an adapter of kind {kind} has no virtual tokens; known are {', '.join(HOMES)}")
    if config.get("num_transformer_submodules") not in (None, 1):
        raise CheckpointError("the adapter is for a model of an encoder and a decoder; ludus has decoders only")
    table = tensors.get("prompt_embeddings")
    if table is None or len(tensors) != 1:
        found = ", ".join(sorted(tensors)) or "nothing"
        raise CheckpointError(f"the adapter should hold prompt_embeddings alone, and holds {found}; save it again")
    module, name = HOMES[kind]
    make: type[Virtual] = getattr(import_module(module), name)
    count, channels = config.get("num_virtual_tokens", len(table)), make.channels(model.shape)
    if tuple(table.shape) != (count, channels):
        raise CheckpointError(
            f"the adapter's virtual tokens are {tuple(table.shape)}, and this model takes {(count, channels)}: "
            "it was trained on another model"
        )
    try:
        return precede(model, make(table.detach().clone()))
    except ConfigError as problem:
        raise CheckpointError(f"the adapter does not fit this model: {problem}") from None


def put_on(model: Transformer, coat: type[Coat]) -> Transformer:
    """Put a coat on, in place; the others that a model wears stay."""
    model.__class__ = _dressed(*sorted({coat, *_worn(model)}, key=lambda each: each.place))
    return model


def take_off(model: Transformer, coat: type[Coat]) -> Transformer:
    """Take a coat off, in place; the others stay."""
    model.__class__ = _dressed(*(each for each in _worn(model) if each is not coat))
    return model


def _worn(model: Transformer) -> tuple[type[Coat], ...]:
    return tuple(kind for kind in type(model).__mro__ if Coat in kind.__bases__)


@functools.cache
def _dressed(*coats: type[Coat]) -> type[Transformer]:
    if not coats:
        return Transformer
    return type("".join(coat.__name__ for coat in coats) + "Transformer", (*coats, Transformer), {})


def _wanted(model: Transformer) -> Virtual:
    virtual = virtual_of(model)
    if virtual is None:
        raise ValueError("the model has no virtual tokens")
    return virtual
