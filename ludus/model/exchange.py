"""Models on disk in Hugging Face's layouts, so that transformers and vLLM load them unchanged wherever they can.

A folder is written whole or not at all, and read only if ludus can run it exactly: what it cannot do is refused by
name. Which layout a model gets, and how it names weights, is data in `ludus.model.families`; a model that no family
fits lies in ludus' own, and `notice` says why. Weights are copied once on their way in or out, a part at a time:
`ludus.model.stored` knows the files, `ludus.model.filling` the way into a model.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ludus.base.errors import CheckpointError, TokenizerMismatch
from ludus.base.files import CHECKSUMS, folder_in_progress, read_json, sha256_file, write_json
from ludus.model import llama2c
from ludus.model.architecture import Architecture
from ludus.model.card import card
from ludus.model.families import architecture_of, config_of, layout_for, layout_of, to_blame
from ludus.model.filling import Filling, Made, lasting
from ludus.model.inherited import Inherited, generation_of, inherited_by, keep
from ludus.model.layout import Layout, Place
from ludus.model.stored import Entry, tensors_of, write
from ludus.model.transformer import Transformer
from ludus.text.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES, PICKLES_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_SHARD_BYTES = 5e9


def save(
    model: Transformer,
    folder: Path | str,
    tokenizer: Tokenizer | None = None,
    extra: Mapping[str, Any] | None = None,
    *,
    max_shard_bytes: float = MAX_SHARD_BYTES,
) -> None:
    """Write a model, its tokenizer and a model card, replacing the folder in one step.

    `extra` holds facts about its making (run, stage, data); they are shown on the card and kept in `config.json`.
    Weights of more than `max_shard_bytes` are written as several files and an index.

    Raises:
        TokenizerMismatch: the tokenizer has more tokens than the model.
        CheckpointError: the model has weights that Llama has not, such as an adapter that was not merged.
        DiskFull: there is no room; what was at `folder` before is untouched.
    """
    if tokenizer is not None and tokenizer.vocabulary_size > model.shape.vocabulary:
        raise TokenizerMismatch(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, the model {model.shape.vocabulary}; "
            "save the model with the tokenizer it was trained with"
        )
    weights = _weights(model)
    handed_on = inherited_by(model)
    layout = layout_for(model.shape, handed_on.model_type)
    places = layout.places(weights)
    config = config_of(model.shape, model.embed_tokens.weight.dtype, tokenizer, extra or {}, handed_on)
    size = sum(tensor.numel() for tensor in weights.values() if isinstance(tensor, nn.Parameter))
    about = {"parameters": size, "notice": notice(model.shape), "family": layout.name}
    text = card(Path(folder).name, model.shape, tokenizer, extra or {}, **about)
    with folder_in_progress(folder) as temp:
        _write_shards(temp, [_entry(place, weights) for place in places], max_shard_bytes)
        write_json(temp / "config.json", config)
        write_json(temp / "generation_config.json", generation_of(config, handed_on))
        if tokenizer is not None:
            tokenizer.save(temp)
        (temp / "README.md").write_text(text, "utf-8")


def load(
    folder: Path | str,
    dtype: torch.dtype | None = torch.float32,
    *,
    device: torch.device | str = "cpu",
    linear: Made | None = None,
) -> Transformer:
    """Read a model from a folder that ludus or transformers wrote, or from a file of llama2.c's.

    Weights come in `dtype`, None being the one they were stored in, onto `device`. What `linear` makes of the name and
    the layer, once all of a linear layer of the blocks is there, takes that layer's place. No more is in memory at any
    time than what was made so far and the weights of one place in a file.

    Raises:
        CheckpointError: there is no model, a damaged one, or one that ludus cannot run exactly.
    """
    folder = Path(folder)
    if folder.is_file():
        return _load_file(folder, dtype, device, linear)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no model: it has no config.json; give the folder a model was saved to")
    _verify(folder)
    config = read_json(folder / "config.json", CheckpointError)
    layout, shape = layout_of(config, folder), architecture_of(config, folder)
    filling = Filling(_empty(shape), dtype, device, linear)
    places = {place.foreign: place for place in layout.places(filling.wanted)}
    for place, tensor in _read(folder, places, layout):
        filling.take(folder, place, tensor)
    missing = [place.foreign for place in places.values() if place.sources[0] not in filling.filled]
    if missing:
        raise CheckpointError(f"{folder} lacks the weight {missing[0]} that its config.json asks for")
    return keep(filling.finish(), Inherited.of(config, folder))


def notice(shape: Architecture) -> str | None:
    """Say that transformers cannot load such a model, and which settings are to blame; None if it can."""
    if layout_for(shape).loads_elsewhere:
        return None
    return (
        f"transformers and vLLM cannot load this model: no family of theirs has {', '.join(to_blame(shape))}; "
        "it is written in ludus' own layout, which ludus loads"
    )


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Read the tokenizer that was saved with a model."""
    return Tokenizer.load(folder)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, marked as PyTorch's; a full disk is an OSError, as with any other file."""
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as problem:  # it reports the disk's refusals as text
        code = re.search(r"os error (\d+)", str(problem))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def _empty(shape: Architecture) -> Transformer:
    with torch.device("meta"):
        return Transformer(shape)


def _load_file(file: Path, dtype: torch.dtype | None, device: torch.device | str, linear: Made | None) -> Transformer:
    if not llama2c.is_one(file):
        raise CheckpointError(
            f"{file} is no model by itself; give the folder that holds it and its config.json, or a .bin of llama2.c"
        )
    shape = llama2c.architecture(file)
    filling = Filling(_empty(shape), dtype, device, linear)
    for name, tensor in llama2c.tensors_of(file, shape):
        filling.take(file, Place(name, (name,)), tensor)
    return filling.finish()


def _weights(model: Transformer) -> Mapping[str, Tensor]:
    """Return what of a model is saved, once it is sure that all of it belongs to the architecture."""
    names = _empty(model.shape).state_dict().keys()
    found = lasting(model)
    others = [name for name in found if name not in names]
    if others:
        raise CheckpointError(
            f"the model has weights that a checkpoint has no place for ({others[0]}, {len(others)} in all); "
            "merge its adapter first, or save the adapter alone"
        )
    return found


def _entry(place: Place, weights: Mapping[str, Tensor]) -> Entry:
    sources = [weights[name] for name in place.sources]
    shape = (sum(len(each) for each in sources), *sources[0].shape[1:]) if sources[0].dim() else ()
    return Entry(
        place.foreign, sources[0].dtype, shape[::-1] if place.transposed else shape, partial(_outward, place, weights)
    )


def _outward(place: Place, weights: Mapping[str, Tensor]) -> Tensor:
    """Return what lies at a place of a file."""
    tensor = weights[place.sources[0]].detach()
    if len(place.sources) > 1:
        tensor = torch.cat([weights[name].detach() for name in place.sources])
    return tensor.T if place.transposed else tensor


def _write_shards(folder: Path, entries: list[Entry], max_shard_bytes: float) -> None:
    """Write one file, or as many as keep each under the limit; a tensor is never cut."""
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(each.size_bytes for each in shards[-1]) + entry.size_bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        write(folder / WEIGHTS, entries)
        return
    where = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / name, shard)
        where |= {entry.name: name for entry in shard}
    total = {
        "total_size": sum(entry.size_bytes for entry in entries),
        "total_parameters": sum(entry.numel for entry in entries),
    }
    write_json(folder / INDEX, {"metadata": total, "weight_map": where})


def _read(folder: Path, places: Mapping[str, Place], layout: Layout) -> Iterator[tuple[Place, Tensor]]:
    """Yield the wanted tensors of a folder through a memory map; refuse any that would be left over."""
    for file in _files(folder):
        for name, tensor in tensors_of(file):
            place = places.get(name) or places.get(layout.prefix + name)
            if place is not None:
                yield place, tensor
            elif not re.search(layout.ignored, name) and name != "lm_head.weight":
                kind = "a bias" if name.endswith(".bias") else "a weight"
                raise CheckpointError(f"{file} holds {name}, {kind} that ludus has no place for")


def _files(folder: Path) -> list[Path]:
    for whole, index in ((WEIGHTS, INDEX), (PICKLES, PICKLES_INDEX)):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _indexed(folder / index)
    others = sorted(path for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf"))
    advice = f"{others[0].name} is not opened: ludus reads safetensors and {PICKLES}; convert it" if others else ""
    raise CheckpointError(f"{folder} has no {WEIGHTS}; {advice or 'save the model again'}")


def _indexed(index: Path) -> list[Path]:
    content = read_json(index, CheckpointError)
    places = content.get("weight_map") if isinstance(content, dict) else None
    names = sorted(set(places.values())) if isinstance(places, dict) and places else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names no files of this folder under `weight_map`; restore it")
    return [index.parent / name for name in names]


def _verify(folder: Path) -> None:
    """Check what a model is made of against the folder's checksums; a model card or a template may be edited."""
    if not (folder / CHECKSUMS).is_file():
        return  # not written by ludus
    sums = read_json(folder / CHECKSUMS, CheckpointError)
    for name, recorded in sums.items() if isinstance(sums, dict) else ():
        path = folder / name
        counts = name in ("config.json", "tokenizer.json", INDEX) or path.suffix == ".safetensors"
        if counts and path.is_file() and sha256_file(path) != recorded:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one recorded when it was written; save the model again, "
                f"or delete {CHECKSUMS} if the file was changed on purpose"
            )
