"""Adapters on disk in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, loadable by PEFT unchanged.

Names are those of the model in Hugging Face's layout. What PEFT can say and ludus cannot compute is refused by name.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ludus.adapters.lora import Lora, lora
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import adapters
from ludus.base.errors import CheckpointError, ConfigError
from ludus.base.files import CHECKSUMS, folder_in_progress, read_json, verify_folder, write_json
from ludus.model.exchange import write_tensors
from ludus.model.llama import foreign_name
from ludus.model.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = ("lora_A.weight", "lora_B.weight")
# Fields of an adapter_config.json that are read, or that do not change what is computed; any other must be off.
READ = "peft_type r lora_alpha lora_dropout target_modules"
HARMLESS = (
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config inference_mode init_lora_weights "
    "loftq_config megatron_core peft_version qalora_group_size revision runtime_config task_type"
)


def save(model: Transformer, folder: Path | str, *, base: str = "") -> None:
    """Write the adapters of a model, replacing the folder in one step; `base` is where the model under them lies."""
    found = {name: adapter for name, adapter in adapters(model) if isinstance(adapter, Lora)}
    if not found:
        raise ValueError("the model has no adapter to save")
    first = next(iter(found.values()))
    rank = first.lora_A.out_features
    alpha = first.scale * rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": first.dropout.p,
        "target_modules": sorted({foreign_name(name) for name in found}),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    with folder_in_progress(folder) as temp:
        write_json(temp / CONFIG, config)
        write_tensors(_tensors(found), temp / WEIGHTS)


def load(model: Transformer, folder: Path | str) -> Transformer:
    """Put the adapters of a folder, ludus' or PEFT's, on a model, in place.

    Raises:
        CheckpointError: the folder holds no adapter, a damaged one, one of another kind, or one for another model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: it has no {CONFIG}; give the folder an adapter was saved to")
    if (folder / CHECKSUMS).is_file():
        verify_folder(folder)
    settings = _settings(read_json(folder / CONFIG, CheckpointError), folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {problem}; save the adapter again") from None
    try:
        lora(model, settings, seed=0)
    except ConfigError as problem:
        raise CheckpointError(f"{folder} does not fit this model: {problem}") from None
    _fill({name: adapter for name, adapter in adapters(model) if isinstance(adapter, Lora)}, tensors, folder)
    return model


def _tensors(found: dict[str, Lora]) -> dict[str, Tensor]:
    return {
        f"{PREFIX}{foreign_name(name)}.{part}": adapter.get_parameter(part)
        for name, adapter in found.items()
        for part in PARTS
    }


def _fill(found: dict[str, Lora], tensors: dict[str, Tensor], folder: Path) -> None:
    places = _tensors(found)
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_base(name, tensor, found)}
    strangers = sorted(tensors.keys() ^ places.keys())
    if strangers:
        where = "lacks" if strangers[0] in places else "holds, and the model has no place for,"
        raise CheckpointError(f"{folder} {where} {strangers[0]}; is the adapter one of this model?")
    for name, place in places.items():
        if place.shape != tensors[name].shape:
            raise CheckpointError(
                f"{folder} has {name} of shape {tuple(tensors[name].shape)}, this model needs {tuple(place.shape)}; "
                "put the adapter on the model it was trained on"
            )
        with torch.no_grad():
            place.copy_(tensors[name])


def _is_base(name: str, tensor: Tensor, found: dict[str, Lora]) -> bool:
    """Tell whether a tensor is the frozen weight under an adapter, which PEFT saves along with that of a head."""
    bases = {f"{PREFIX}{foreign_name(layer)}.base_layer.weight": adapter.base for layer, adapter in found.items()}
    return name in bases and torch.equal(tensor, bases[name].weight)


def _settings(config: dict[str, Any], folder: Path) -> LoraSettings:
    kind, targets = config.get("peft_type"), config.get("target_modules")
    if kind != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of kind {kind}; ludus reads LORA only")
    known = f"{READ} {HARMLESS}".split()
    asked = [f"{key}={value}" for key, value in config.items() if key not in known and value and value != "none"]
    if asked:
        raise CheckpointError(f"{folder} asks for {', '.join(sorted(asked))}; ludus computes plain LoRA only")
    if isinstance(targets, str):
        raise CheckpointError(f"{folder} names its layers by the pattern {targets}; ludus needs a list of names")
    try:
        return LoraSettings(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=[target.removeprefix("model.") for target in targets or ()],
            dropout=config.get("lora_dropout", 0.0),
        )
    except (KeyError, ValueError) as problem:
        said = str(problem).splitlines()
        raise CheckpointError(f"{folder / CONFIG} cannot be used: {' '.join(said[-3:-1]) or said[0]}") from None
