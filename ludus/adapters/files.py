"""Adapters on disk in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, loadable by PEFT unchanged.

Names are those of the model in Hugging Face's layout. What PEFT can say and ludus cannot compute is refused by name.
What only ludus knows of an adapter lies beside it in `ludus.json`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ludus.adapters import virtual
from ludus.adapters.identity import KEY, weight_hashes
from ludus.adapters.initialise import as_saved
from ludus.adapters.peft_config import VIRTUAL, config_of, makers, saved_whole
from ludus.adapters.peft_names import homes, places, weight_places
from ludus.adapters.quantised import Quantised
from ludus.adapters.surgery import Adapter, adapters, dense_weight, linears, put
from ludus.adapters.vera import Vera
from ludus.adapters.whole import EMBEDDING, HEAD, Whole, whole, wholes
from ludus.base.errors import CheckpointError, ConfigError
from ludus.base.files import CHECKSUMS, folder_in_progress, read_json, verify_folder, write_json
from ludus.model.exchange import write_tensors
from ludus.model.resize import resize
from ludus.model.transformer import Transformer
from ludus.text.tokenizer import Tokenizer

CONFIG, WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "ludus.json"
PREFIX = "base_model.model."


class Slot(NamedTuple):
    """A tensor of a file: its name and shape there, and our tensors in it, one after the other, or turned over."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Tensor, ...]
    transposed: bool = False

    def value(self) -> Tensor:
        """Return what lies in the file."""
        whole = torch.cat([piece.detach() for piece in self.pieces])
        return (whole.T if self.transposed else whole).reshape(self.shape)

    def fill(self, value: Tensor) -> None:
        """Take our tensors out of what lies in the file."""
        whole = (value.T if self.transposed else value).reshape(-1, *self.pieces[0].shape[1:])
        for piece, part in zip(self.pieces, whole.split([len(piece) for piece in self.pieces]), strict=True):
            piece.copy_(part)


def save(
    model: Transformer,
    folder: Path | str,
    *,
    base: str = "",
    base_revision: str | None = None,
    tokenizer: Tokenizer | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapter of a model, of any kind, replacing the folder in one step.

    `base` is where the model under it lies, `base_revision` the commit of a model from the hub. `facts` about its
    making go into `ludus.json`, beside the size of the vocabulary, how the base was quantised, and its hash.

    Raises:
        ConfigError: the layout of this family has no place for the adapter.
    """
    found = {name: as_saved(adapter) for name, adapter in adapters(model)}
    if virtual.virtual_of(model) is not None:
        named = {"base_model_name_or_path": base, "revision": base_revision}
        config, tensors = {**virtual.config(model), **named}, virtual.tensors(model)
    elif found:
        also = [home.foreign for home in homes(model.shape, wholes(model))]
        config = config_of(model, found, also, base, base_revision)
        tensors = {slot.name: slot.value() for slot in (*_adapter_slots(model, found), *_whole_slots(model))}
    else:
        raise ValueError("the model has no adapter to save")
    with folder_in_progress(folder) as temp:
        write_json(temp / CONFIG, config)
        write_tensors(tensors, temp / WEIGHTS)
        write_json(temp / FACTS, {**_facts(model, base), **(facts or {})})
        if tokenizer is not None:
            tokenizer.save(temp)


def load(model: Transformer, folder: Path | str) -> Transformer:
    """Put the adapter of a folder, ludus' or PEFT's, on a model, in place.

    Raises:
        CheckpointError: the folder holds no adapter, a damaged one, one that ludus cannot compute, or one for another
            model.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {problem}; save the adapter again") from None
    _make_room(model, tensors, folder)
    if config.get("peft_type") in VIRTUAL:
        return virtual.load(model, config, tensors)
    put(model, makers(model, config, folder))
    found = dict(adapters(model))
    slots = _adapter_slots(model, found)
    if config.get("save_projection") is False:
        slots = [slot for slot in slots if not slot.name.startswith("base_model.vera_")]
    extra = tensors.keys() - {slot.name for slot in slots}
    tensors = _without_bases(model, tensors, extra, config, folder)
    _put_whole(model, tensors, config, folder)
    _fill([*slots, *_whole_slots(model)], tensors, folder)
    return model


def _facts(model: Transformer, base: str) -> dict[str, Any]:
    place = Path(base)
    known = {KEY: weight_hashes(place)} if base and place.exists() else {}
    return {"vocabulary": model.shape.vocabulary, **quantised_as(model), **known}


def quantised_as(model: Transformer) -> dict[str, Any]:
    """Say what the frozen layers are quantised to (nf4, int8 or none), and which of the blocks' where not all are."""
    layers = {name: layer for name, layer in linears(model).items() if name.startswith("layers.")}
    kinds = {name: layer.kind for name, layer in layers.items() if isinstance(layer, Quantised)}
    if not kinds:
        return {"quantise": "none"}
    some = {} if len(kinds) == len(layers) else {"quantised_layers": sorted(kinds)}
    return {"quantise": next(iter(kinds.values())), **some}


def read_config(folder: Path) -> dict[str, Any]:
    """Return what `adapter_config.json` says, once the folder is whole.

    Raises:
        CheckpointError: the folder holds no adapter, or a damaged one.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: it has no {CONFIG}; give the folder an adapter was saved to")
    if (folder / CHECKSUMS).is_file():
        verify_folder(folder)
    config = read_json(folder / CONFIG, CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} is no adapter's config: it is a {type(config).__name__}")
    return config


def recorded(folder: Path) -> dict[str, Any]:
    """Return what ludus wrote beside an adapter; nothing for one of other software."""
    said = read_json(folder / FACTS, CheckpointError) if (folder / FACTS).is_file() else {}
    return said if isinstance(said, dict) else {}


def _make_room(model: Transformer, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Give the model the tokens that it got before the adapter was trained."""
    ends = [place.foreign for place in places(model.shape, [f"{EMBEDDING}.weight", f"{HEAD}.weight"])]
    rows = [len(tensors[PREFIX + name]) for name in ends if PREFIX + name in tensors]
    size = max([model.shape.vocabulary, int(recorded(folder).get("vocabulary") or 0), *rows])
    resize(model, size)


def _adapter_slots(model: Transformer, found: Mapping[str, Adapter]) -> list[Slot]:
    slots = []
    layers = linears(model)
    for home in homes(model.shape, found):
        here = [found.get(source) for source in home.sources]
        first = next(adapter for adapter in here if adapter is not None)
        if len({adapter.parts() for adapter in here if adapter is not None}) > 1:
            raise ConfigError(f"{home.foreign} is one matrix on disk, and its layers are adapted in different ways")
        for part in first.parts():
            own = first.get_parameter(part.attribute)
            pieces = [own]
            if part.rows:
                every = zip(home.sources, here, strict=True)
                pieces = [
                    _unchanged(part.suffix, layers[source].out_features, dense_weight(layers[source]), own)  # type: ignore[arg-type]
                    if adapter is None
                    else adapter.get_parameter(part.attribute)
                    for source, adapter in every
                ]
            elif None in here and part.suffix == "ia3_l":
                raise ConfigError(
                    f"{home.foreign} is one matrix on disk, whose inputs are scaled together; target all layers in it"
                )
            slots.append(
                Slot(f"{PREFIX}{home.foreign}.{part.suffix}", _shape(part.suffix, part.rows, pieces), tuple(pieces))
            )
    projection = next((adapter.projection for adapter in found.values() if isinstance(adapter, Vera)), None)
    if projection is not None:
        pair = {"A": projection.A, "B": projection.B}
        slots += [Slot(f"base_model.vera_{name}", tuple(value.shape), (value,)) for name, value in pair.items()]
    return slots


def _unchanged(suffix: str, outputs: int, weight: Tensor, like: Tensor) -> Tensor:
    """Return the rows of a part with which a layer stays as it is."""
    if suffix == "lora_magnitude_vector":
        return torch.linalg.vector_norm(weight, dim=1).to(like)
    return like.new_full((outputs, *like.shape[1:]), 1.0 if suffix == "ia3_l" else 0.0)


def _shape(suffix: str, rows: bool, pieces: Sequence[Tensor]) -> tuple[int, ...]:
    size = sum(len(piece) for piece in pieces)
    if suffix == "ia3_l":
        return (size, 1) if rows else (1, size)
    return (size, *pieces[0].shape[1:])


def _whole_slots(model: Transformer) -> list[Slot]:
    """Return where the modules that are trained whole lie: under their plain names."""
    learned = wholes(model)
    names = [f"{name}.{leaf}" for name, module in learned.items() for leaf, _ in module.copy.named_parameters()]
    slots = []
    for place in places(model.shape, names):
        pieces = tuple(_weight(model, learned, source) for source in place.sources)
        shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
        slots.append(Slot(PREFIX + place.foreign, shape[::-1] if place.transposed else shape, pieces, place.transposed))
    return slots


def _weight(model: Transformer, learned: Mapping[str, Whole], name: str) -> Tensor:
    module, _, leaf = name.rpartition(".")
    return learned[module].copy.get_parameter(leaf) if module in learned else model.get_parameter(name)


def _without_bases(
    model: Transformer, tensors: Mapping[str, Tensor], extra: Iterable[str], config: Mapping[str, Any], folder: Path
) -> dict[str, Tensor]:
    """Leave out the frozen weights that PEFT saves along with an adapter of a head or an embedding."""
    found = dict(tensors)
    kept = saved_whole(config, weight_places(model.shape), folder)
    frozen = {f"{PREFIX}{name}": module for name, module in _plain_weights(model).items()}
    for name in extra:
        plain = name.replace(".base_layer.", ".")
        is_base = plain in frozen and torch.equal(tensors[name].to(frozen[plain]), frozen[plain])
        if is_base and plain.removeprefix(PREFIX).rpartition(".")[0] not in kept:
            del found[name]
    return found


def _plain_weights(model: Transformer) -> dict[str, Tensor]:
    """Return the weights of embedding and head, as they were before any surgery, by their foreign names."""
    modules = {name: model.get_submodule(name) for name in (EMBEDDING, HEAD)}
    plain = {name: module.base if isinstance(module, Adapter) else module for name, module in modules.items()}
    found = {f"{name}.{leaf}": weight for name, module in plain.items() for leaf, weight in module.named_parameters()}
    return {place.foreign: found[place.sources[0]] for place in places(model.shape, found)}


def _put_whole(model: Transformer, tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Make room for the modules that the file holds whole."""
    every = weight_places(model.shape)
    wanted = saved_whole(config, every, folder)
    held = {place.foreign: place for place in every if PREFIX + place.foreign in tensors}
    wanted |= {name.rpartition(".")[0] for name in held}
    names = [
        source.rpartition(".")[0]
        for place in every
        if place.foreign.rpartition(".")[0] in wanted
        for source in place.sources
    ]
    if not names:
        return
    ends = [
        tensors.get(f"{PREFIX}{place.foreign}")
        for place in every
        if place.sources[0] in (f"{EMBEDDING}.weight", f"{HEAD}.weight")
    ]
    same = len(ends) == 2 and ends[0] is not None and ends[1] is not None and torch.equal(ends[0], ends[1])
    try:
        whole(model, list(dict.fromkeys(names)), shared=same)
    except ConfigError as problem:
        raise CheckpointError(f"{folder} does not fit this model: {problem}") from None


def _fill(slots: Sequence[Slot], tensors: Mapping[str, Tensor], folder: Path) -> None:
    known = {slot.name: slot for slot in slots}
    strangers = sorted(tensors.keys() ^ known.keys())
    if strangers:
        where = "lacks" if strangers[0] in known else "holds, and the model has no place for,"
        raise CheckpointError(f"{folder} {where} {strangers[0]}; is the adapter one of this model?")
    for name, slot in known.items():
        if slot.shape != tuple(tensors[name].shape):
            raise CheckpointError(
                f"{folder} has {name} of shape {tuple(tensors[name].shape)}, this model needs {slot.shape}; "
                "put the adapter on the model it was trained on"
            )
    with torch.no_grad():
        for name, slot in known.items():
            slot.fill(tensors[name])
