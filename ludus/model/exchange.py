"""Models on disk in Hugging Face's layout for Llama, so that transformers and vLLM load them unchanged.

A folder is written whole or not at all, and read only if ludus can run it exactly: what it cannot do (other
architectures, stretched positions, biases) is refused by name. Weights travel as safetensors, never as pickles.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ludus.base.errors import CheckpointError, TokenizerMismatch
from ludus.base.files import CHECKSUMS, folder_in_progress, read_json, sha256_file, write_json
from ludus.model.card import card
from ludus.model.llama import architecture_of, config_of, foreign_name
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
    tensors = {foreign_name(name): tensor for name, tensor in _weights(model).items()}
    config = config_of(model.shape, model.embed_tokens.weight.dtype, tokenizer, extra or {})
    with folder_in_progress(folder) as temp:
        write_tensors(tensors, temp / WEIGHTS)
        write_json(temp / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(temp / "generation_config.json", ids)
        if tokenizer is not None:
            tokenizer.save(temp)
        (temp / "README.md").write_text(card(Path(folder).name, model.shape, tokenizer, extra or {}), "utf-8")


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a model from a folder that ludus or transformers wrote, on the CPU, with weights in `dtype`.

    Raises:
        CheckpointError: the folder holds no model, a damaged one, or one that ludus cannot run exactly.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no model: it has no config.json; give the folder a model was saved to")
    _verify(folder)
    shape = architecture_of(read_json(folder / "config.json", CheckpointError), folder)
    with torch.device("meta"):
        model = Transformer(shape)
    wanted = {foreign_name(name): name for name in _weights(model)}
    found = {wanted[name]: tensor for name, tensor in _read(folder, wanted, dtype)}
    _check_shapes(folder, _weights(model), found)
    model.load_state_dict(found, strict=False, assign=True)  # what is tied is not among what was found
    if shape.tied:
        model.lm_head.weight = model.embed_tokens.weight
    return model.requires_grad_(True)


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
    """Return the weights that are Llama's, a tied head left out."""
    with torch.device("meta"):
        names = dict(Transformer(model.shape).named_parameters())
    tensors = dict(model.named_parameters())
    others = [name for name in tensors if name not in names]
    if others:
        raise CheckpointError(
            f"the model has weights that a Llama checkpoint has no place for ({others[0]}, {len(others)} in all); "
            "merge its adapter first, or save the adapter alone"
        )
    return tensors


def _read(folder: Path, wanted: Mapping[str, str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the wanted tensors of a folder through a memory map; refuse any that would be left over."""
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a handle is no mapping
                    if name in wanted:
                        # A copy of its own: on mapped memory, results would depend on where in the file a weight lies.
                        yield name, tensors.get_tensor(name).to(dtype, copy=True)
                    elif not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight":
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


def _check_shapes(folder: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        if name not in found:
            raise CheckpointError(f"{folder} lacks the weight {foreign_name(name)} that its config.json asks for")
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder} has {foreign_name(name)} of shape {tuple(found[name].shape)}, "
                f"its config.json asks for {tuple(tensor.shape)}"
            )


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
