"""The work of fine-tuning as plain figures, and the model it trains: frozen weights, perhaps in four bits, an adapter.

What lives here: reading a tuning stage into `Work`, and dressing a model as that stage does, without drawing or
quantising anything. What does not: counting. The one idea: a plan goes through the very layers that will train.
"""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ludus.adapters import int8, kernels, nf4, opening
from ludus.adapters.apply import apply
from ludus.adapters.files import CONFIG
from ludus.adapters.quantised import Quantised, quantise_model
from ludus.adapters.settings import AdapterSettings, AnyAdapter, NoAdapter, PrefixSettings, PromptSettings
from ludus.adapters.whole import Whole
from ludus.base.errors import CheckpointError, ConfigError
from ludus.base.files import read_json
from ludus.model import llama2c
from ludus.model.architecture import Architecture
from ludus.model.families import architecture_of
from ludus.model.settings import architecture, named_size
from ludus.model.transformer import Transformer
from ludus.planning.text import READ_BYTES, Text, bytes_per_token
from ludus.planning.work import Work, averages, precision_of, times
from ludus.text.settings import TokenizerSettings
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer

FROZEN, QUANTISED, ADAPTER = "frozen weights", "frozen weights, quantised", "adapter"
SAMPLED = 4  # beginnings of examples that are gone on with at every sample
UNMERGEABLE = (NoAdapter, PrefixSettings, PromptSettings)
SETTINGS: TypeAdapter[AnyAdapter] = TypeAdapter(AdapterSettings)


def tuning(recipe: Any, base: Path | None, *, native_bfloat16: bool | None = None, on_gpu: bool = False) -> Work:
    """Return the work of a recipe's supervised fine-tuning of the model at `base`, or of the shape the recipe names.

    Raises:
        ConfigError: neither is given.
    """
    settings, data = recipe.sft, recipe.data
    shape = shape_of(recipe, base)
    text = text_of(recipe, shape.vocabulary)
    adapter = _with_added(settings.adapter, settings.template, base)
    held_out = text.validation_rows(data.context) if text.held_out else 0
    return Work(
        shape=shape,
        rows=settings.rows,
        context=data.context,
        accumulate=settings.accumulate,
        steps=_steps(recipe, text),
        precision=precision_of(recipe.precision, native_bfloat16),
        optimizer=settings.optimizer,
        packed=settings.packing,
        recompute=settings.recompute,
        averages=averages(settings.average),
        validation_rows=held_out,
        validation_examples=_held_out(settings, text),
        validations=times(settings.steps, settings.validate_every) if held_out else 0,
        samples=times(settings.steps, settings.sample_every),
        sample_prompts=SAMPLED,
        sample_tokens=recipe.evaluate.max_new_tokens,
        checkpoints=times(settings.steps, settings.checkpoint_every),
        adapter="" if isinstance(adapter, NoAdapter) else json.dumps(adapter.model_dump(mode="json"), sort_keys=True),
        quantise=settings.quantise,
        weights=settings.weights,
        beside=settings.replay or 0,
        uneven=True,
        merge=settings.merge and not isinstance(adapter, UNMERGEABLE),
        on_gpu=on_gpu,
    )


def _held_out(settings: Any, text: Text) -> int:
    """Return about how many examples are held out."""
    return round((text.examples or 0) * settings.validation_share / (1 - settings.validation_share))


def _steps(recipe: Any, text: Text) -> int:
    """Return the steps that the epochs asked for will take, about; those of the settings where nothing tells."""
    settings = recipe.sft
    if settings.epochs is None or not text.tokens or not text.examples:
        return settings.steps
    rows = text.tokens / recipe.data.context if settings.packing else text.examples
    return max(1, round(settings.epochs * rows / (settings.rows * settings.accumulate)))


def _with_added(adapter: AnyAdapter, template: str, base: Path | None) -> AnyAdapter:
    """Return the adapter with what it trains besides: all rows of tokens, where the template needs some of its own."""
    alone = isinstance(adapter, UNMERGEABLE)
    if alone or base is None or template in ("auto", "own", "plain", "alpaca") or not hasattr(adapter, "also"):
        return adapter
    model = _under(base)
    if not choose(Tokenizer.load(model), template).added:
        return adapter
    return adapter.model_copy(update={"also": sorted({*adapter.also, "embed_tokens", "lm_head"})})  # type: ignore[union-attr]


def shape_of(recipe: Any, base: Path | None) -> Architecture:
    """Return the architecture that is tuned: that of the model brought, or of the size the recipe names."""
    if base is not None:
        return _shape_at(base)
    size = named_size(recipe.model.family, recipe.model.size)
    if size is None:
        raise ConfigError(
            "the plan of a fine-tuning needs a model: model=FOLDER, model=NAME of the hub, or a shape such as "
            "model.family=llama model.size=8B"
        )
    vocabulary = size.vocabulary or TokenizerSettings().vocabulary
    return architecture(recipe.model, vocabulary=vocabulary, context=recipe.data.context)


def _shape_at(base: Path) -> Architecture:
    """Read an architecture, without the weights: of a model, or of the base under an adapter."""
    base = _under(base)
    if llama2c.is_one(base):
        return llama2c.architecture(base)
    return architecture_of(read_json(base / "config.json", CheckpointError), base)


def _under(path: Path) -> Path:
    """Return the model that a path means: itself, or the base under an adapter."""
    return opening.base_of(path).folder if (path / CONFIG).is_file() else path


def text_of(recipe: Any, vocabulary: int) -> Text:
    """Return what can be known of the conversations before they are read: about as many tokens as their bytes say."""
    settings = recipe.sft
    named = settings.data
    files = [Path(each).expanduser() for each in ([named] if isinstance(named, str) else named or [])]
    origin = "of the model"
    if not files or not all(file.is_file() for file in files):
        said = "the data is not on this machine" if files else "no data is named"
        if settings.epochs is not None:
            said += f"; sft.steps={settings.steps:,} stand for sft.epochs={settings.epochs:g}"
        return Text(vocabulary, origin, None, said, packed=settings.packing)
    size = sum(file.stat().st_size for file in files)
    tokens, examples = round(size / bytes_per_token(vocabulary)), sum(map(_lines, files))
    share = 0.0 if settings.validation else settings.validation_share
    said = f"estimated from {size / 1e6:,.1f} MB at {bytes_per_token(vocabulary):.2g} bytes a token"
    learned, held_out = round(tokens * (1 - share)), round(tokens * share)
    return Text(vocabulary, origin, learned, said, size, held_out, settings.packing, round(examples * (1 - share)))


def _lines(file: Path) -> int:
    """Return about how many lines a file has, by those at its beginning; one for each example, in JSONL."""
    with file.open("rb") as opened:
        start = opened.read(READ_BYTES)
    return max(1, round(start.count(b"\n") * file.stat().st_size / max(1, len(start))))


def prepared(model: Transformer, work: Work, *, drawn: bool = True) -> Transformer:
    """Make of a model what the work trains, in place; one that was not `drawn` is not quantised, it takes the room."""
    if not work.adapter:
        return model
    if work.weights != "float32" and drawn:
        model.to(getattr(torch, work.weights))
    for parameter in model.parameters():
        if parameter.dim() < 2:  # norms and biases are kept in float32
            parameter.data = parameter.data.float()
    if work.quantise != "none":
        _quantise(model, work.quantise, drawn)
    settings = SETTINGS.validate_json(work.adapter)
    if hasattr(settings, "initialise"):
        settings = settings.model_copy(update={"initialise": "zero"})  # the others take as much room
    return apply(model, settings, seed=0)


def blank(work: Work) -> Transformer:
    """Return the model that the work trains, in the dtypes it is kept in, without content."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, work.weights))
    try:
        model = Transformer(work.shape)
    finally:
        torch.set_default_dtype(before)
    model.precision = getattr(torch, work.precision)
    return prepared(model, work, drawn=False)


def label(model: Transformer, work: Work) -> dict[Tensor, str]:
    """Name what each standing tensor of a model is."""
    if not work.adapter:
        return {}
    found = {each: ADAPTER if each.requires_grad else FROZEN for each in model.parameters()}
    inside = [layer for layer in model.modules() if isinstance(layer, Quantised)]
    return found | {tensor: QUANTISED for layer in inside for tensor in layer.buffers()}


@contextlib.contextmanager
def room_alone(on_gpu: bool) -> Iterator[None]:
    """Give quantised weights the room to be turned back in, without going through it piece by piece."""
    before, piece = kernels.decode, nf4.PIECE if on_gpu else nf4.PIECES["cpu"]

    def decode(code: nf4.Nf4 | int8.Int8, shape: tuple[int, int], dtype: torch.dtype, kernel: str) -> Tensor:
        if isinstance(code, int8.Int8):
            return before(code, shape, dtype, "torch")
        count = shape[0] * shape[1]
        scales = code.scales.float()
        found = torch.empty(count, dtype=dtype, device=scales.device)
        beside = min(count, piece)
        torch.empty(beside if dtype == torch.float32 else 3 * beside, dtype=torch.int16)  # indices, and one piece wide
        return found.view(shape)

    def beside(self: Whole, base: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base, self.copy = base.requires_grad_(False), _twin(base)

    init = Whole.__init__
    kernels.decode = decode  # type: ignore[assignment]
    Whole.__init__ = beside  # type: ignore[method-assign]
    try:
        yield
    finally:
        kernels.decode = before
        Whole.__init__ = init  # type: ignore[method-assign]


def _twin(module: nn.Module) -> nn.Module:
    """Return a copy of a module with weights of its own, in float32; to copy what has no content takes a content."""
    twin = copy.copy(module)
    twin._parameters = {
        name: None if one is None else nn.Parameter(torch.empty_like(one, dtype=torch.float32))
        for name, one in module._parameters.items()
    }
    twin._modules = {name: None if one is None else _twin(one) for name, one in module._modules.items()}
    return twin


def _quantise(model: Transformer, kind: str, drawn: bool) -> None:
    if drawn:
        quantise_model(model, kind)  # type: ignore[arg-type]
        return
    for owner in list(model.layers.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear:
                shape = (child.out_features, child.in_features)
                setattr(owner, name, Quantised(_room(kind, *shape), shape, child.bias, "torch"))


def _room(kind: str, rows: int, columns: int) -> nf4.Nf4 | int8.Int8:
    count = rows * columns
    if kind == "int8":
        return int8.Int8(torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows))
    scales = -(-count // nf4.BLOCK)
    packed, coarse = torch.empty((count + 1) // 2, dtype=torch.uint8), torch.empty(-(-scales // nf4.SCALES))
    return nf4.Nf4(packed, torch.empty(scales, dtype=torch.uint8), coarse, torch.empty(()))
