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

from ludus.adapters import int8, kernels, nf4
from ludus.adapters.apply import apply
from ludus.adapters.files import CONFIG
from ludus.adapters.quantised import Quantised, quantise_model
from ludus.adapters.settings import AdapterSettings, AnyAdapter, NoAdapter
from ludus.adapters.whole import Whole
from ludus.base.errors import CheckpointError, ConfigError
from ludus.base.files import read_json
from ludus.model import hub, llama2c
from ludus.model.architecture import Architecture
from ludus.model.families import architecture_of
from ludus.model.settings import architecture, named_size
from ludus.model.transformer import Transformer
from ludus.planning.text import Text, bytes_per_token
from ludus.planning.work import Work, averages, precision_of, times
from ludus.text.settings import TokenizerSettings

FROZEN, QUANTISED, ADAPTER = "frozen weights", "frozen weights, quantised", "adapter"
SETTINGS: TypeAdapter[AnyAdapter] = TypeAdapter(AdapterSettings)


def tuning(recipe: Any, base: Path | None, *, native_bfloat16: bool | None = None, on_gpu: bool = False) -> Work:
    """Return the work of a recipe's supervised fine-tuning of the model at `base`, or of the shape the recipe names.

    Raises:
        ConfigError: neither is given.
    """
    settings, data = recipe.sft, recipe.data
    whole = isinstance(settings.adapter, NoAdapter)
    return Work(
        shape=shape_of(recipe, base),
        rows=settings.rows,
        context=data.context,
        accumulate=settings.accumulate,
        steps=settings.steps,
        precision=precision_of(recipe.precision, native_bfloat16),
        optimizer=settings.optimizer,
        packed=settings.packing,
        recompute=settings.recompute,
        averages=averages(settings.average),
        checkpoints=times(settings.steps, settings.checkpoint_every),
        adapter="" if whole else json.dumps(settings.adapter.model_dump(mode="json"), sort_keys=True),
        quantise=settings.quantise,
        weights=settings.weights,
        on_gpu=on_gpu,
    )


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
    if (base / CONFIG).is_file():
        return _shape_at(hub.find(read_json(base / CONFIG, CheckpointError).get("base_model_name_or_path", "")).folder)
    if llama2c.is_one(base):
        return llama2c.architecture(base)
    return architecture_of(read_json(base / "config.json", CheckpointError), base)


def text_of(recipe: Any, vocabulary: int) -> Text:
    """Return what can be known of the conversations before they are read: about as many tokens as their bytes say."""
    named = recipe.sft.data
    files = [Path(each).expanduser() for each in ([named] if isinstance(named, str) else named or [])]
    origin = "of the model"
    if not files or not all(file.is_file() for file in files):
        return Text(vocabulary, origin, None, "the data is not on this machine", packed=recipe.sft.packing)
    size = sum(file.stat().st_size for file in files)
    ratio = bytes_per_token(vocabulary)
    said = f"estimated from {size / 1e6:,.1f} MB at {ratio:.2g} bytes a token"
    return Text(vocabulary, origin, round(size / ratio), said, size, packed=recipe.sft.packing)


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
