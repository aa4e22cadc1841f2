"""Models on disk in Hugging Face's layouts, so that transformers and vLLM load them unchanged wherever they can.

A folder is written whole or not at all, and read only if ludus can run it exactly: what it cannot do is refused by
name. Which layout a model gets, and how it names weights, is data in `ludus.model.families`; a model that no family
fits lies in ludus' own, and `notice` says why. Weights travel as safetensors, never as pickles.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ludus.base.errors import CheckpointError, TokenizerMismatch
from ludus.base.files import CHECKSUMS, folder_in_progress, read_json, sha256_file, write_json
from ludus.model.architecture import Architecture
from ludus.model.card import card
from ludus.model.families import architecture_of, config_of, layout_for, layout_of, to_blame
from ludus.model.layout import Layout, Place
from ludus.model.transformer import Transformer
from ludus.text.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def save(
    model: Transformer, folder: Path | str, tokenizer: Tokenizer | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a model, its tokenizer and a model card, replacing the folder in one step.

    `extra` holds facts about its making (run, stage, data); they are shown on the card and kept in `config.json`.

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
    tensors = {place.foreign: _outward(place, weights) for place in layout_for(model.shape).places(weights)}
    config = config_of(model.shape, model.embed_tokens.weight.dtype, tokenizer, extra or {})
    size = sum(tensor.numel() for tensor in weights.values() if isinstance(tensor, nn.Parameter))
    text = card(Path(folder).name, model.shape, tokenizer, extra or {}, parameters=size, notice=notice(model.shape))
    with folder_in_progress(folder) as temp:
        write_tensors(tensors, temp / WEIGHTS)
        write_json(temp / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(temp / "generation_config.json", ids)
        if tokenizer is not None:
            tokenizer.save(temp)
        (temp / "README.md").write_text(text, "utf-8")


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a model from a folder that ludus or transformers wrote, on the CPU, with weights in `dtype`.

    Raises:
        CheckpointError: the folder holds no model, a damaged one, or one that ludus cannot run exactly.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no model: it has no config.json; give the folder a model was saved to")
    _verify(folder)
    config = read_json(folder / "config.json", CheckpointError)
    layout, shape = layout_of(config, folder), architecture_of(config, folder)
    with torch.device("meta"):
        model = Transformer(shape)
    wanted = _lasting(model)
    places = {place.foreign: place for place in layout.places(wanted)}
    found: dict[str, Tensor] = {}
    for place, tensor in _read(folder, places, layout):
        found |= _inward(folder, place, tensor, wanted, dtype)
    missing = [place.foreign for place in places.values() if place.sources[0] not in found]
    if missing:
        raise CheckpointError(f"{folder} lacks the weight {missing[0]} that its config.json asks for")
    model.load_state_dict(found, strict=False, assign=True)  # what is tied is not among what was found
    if shape.tied:
        model.lm_head.weight = model.embed_tokens.weight
    return _with_empty_counters(model).requires_grad_(True)


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


def _weights(model: Transformer) -> Mapping[str, Tensor]:
    """Return what of a model is saved, once it is sure that all of it belongs to the architecture."""
    with torch.device("meta"):
        names = Transformer(model.shape).state_dict().keys()
    found = _lasting(model)
    others = [name for name in found if name not in names]
    if others:
        raise CheckpointError(
            f"the model has weights that a checkpoint has no place for ({others[0]}, {len(others)} in all); "
            "merge its adapter first, or save the adapter alone"
        )
    return found


def _lasting(model: Transformer) -> Mapping[str, Tensor]:
    """Return weights and lasting buffers, a tied head left out."""
    tensors = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if not (model.shape.tied and name == "lm_head.weight")}


def _outward(place: Place, weights: Mapping[str, Tensor]) -> Tensor:
    """Return what lies at a place of a file."""
    tensor = weights[place.sources[0]].detach()
    if len(place.sources) > 1:
        tensor = torch.cat([weights[name].detach() for name in place.sources])
    return tensor.T if place.transposed else tensor


def _inward(
    folder: Path, place: Place, tensor: Tensor, wanted: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the weights that lie at a place, each a copy of its own; lasting buffers keep the dtype they ask for."""
    shapes = [wanted[name].shape for name in place.sources]
    asked = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
    if tensor.shape != (asked[::-1] if place.transposed else asked):
        raise CheckpointError(
            f"{folder} has {place.foreign} of shape {tuple(tensor.shape)}, its config.json asks for "
            f"{asked[::-1] if place.transposed else asked}"
        )
    tensor = tensor.T if place.transposed else tensor
    pieces = tensor.split([shape[0] for shape in shapes]) if len(shapes) > 1 else [tensor]
    # Copies: on mapped memory, results would depend on where in the file a weight lies.
    return {
        name: piece.to(dtype if isinstance(wanted[name], nn.Parameter) else wanted[name].dtype, copy=True).contiguous()
        for name, piece in zip(place.sources, pieces, strict=True)
    }


def _with_empty_counters(model: Transformer) -> Transformer:
    """Give memory to the buffers that no file holds: they count from zero."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.zeros_like(buffer, device="cpu"))
    return model


def _read(folder: Path, places: Mapping[str, Place], layout: Layout) -> Iterator[tuple[Place, Tensor]]:
    """Yield the wanted tensors of a folder through a memory map; refuse any that would be left over."""
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a handle is no mapping
                    place = places.get(name) or places.get(layout.prefix + name)
                    if place is not None:
                        yield place, tensors.get_tensor(name)
                    elif not re.search(layout.ignored, name) and name != "lm_head.weight":
                        kind = "a bias" if name.endswith(".bias") else "a weight"
                        raise CheckpointError(f"{file} holds {name}, {kind} that ludus has no place for")
        except (SafetensorError, OSError) as problem:
            raise CheckpointError(f"{file} cannot be read: {problem}; restore it or save the model again") from None


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX, CheckpointError).get("weight_map", {})
        return [folder / name for name in sorted(set(places.values()))]
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
    advice = f"{pickles[0].name} is a pickle, which ludus never opens; convert it to safetensors" if pickles else ""
    raise CheckpointError(f"{folder} has no {WEIGHTS}; {advice or 'save the model again'}")


def _verify(folder: Path) -> None:
    """Check what a model is made of against the folder's checksums; a model card or a template may be edited."""
    if not (folder / CHECKSUMS).is_file():
        return  # not written by ludus
    sums = read_json(folder / CHECKSUMS, CheckpointError)
    for name, recorded in sums.items() if isinstance(sums, dict) else ():
        path = folder / name
        counts = name in ("config.json", "tokenizer.json") or path.suffix == ".safetensors"
        if counts and path.is_file() and sha256_file(path) != recorded:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one recorded when it was written; save the model again, "
                f"or delete {CHECKSUMS} if the file was changed on purpose"
            )
