"""Llama's `config.json` and weight names, in both directions.

What is written is understood by transformers 4 and 5 and by vLLM: both spellings of the rotary base and of the dtype.
What is read is refused by name unless this transformer computes exactly the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ludus.base.errors import CheckpointError
from ludus.model.settings import Architecture
from ludus.text.tokenizer import Tokenizer

NAME = "LlamaForCausalLM"
REQUIRED = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
# Field of a config -> the one value ludus can run; a field that is missing or null means that value too.
ONLY = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "partial_rotary_factor": 1.0}
UNDERSTOOD = "ludus runs plain Llama: no biases, SiLU, unscaled rotary positions, no quantisation"


def foreign_name(name: str) -> str:
    """Return the name of a weight or a layer in Hugging Face's layout: the trunk is called `model` there."""
    return name if name.split(".")[0] == "lm_head" else f"model.{name}"


def config_of(
    shape: Architecture, dtype: torch.dtype, tokenizer: Tokenizer | None, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `config.json`; what only ludus knows goes under the key `ludus`."""
    width = str(dtype).removeprefix("torch.")
    ids = (None, None, None) if tokenizer is None else (tokenizer.bos, tokenizer.end, tokenizer.pad)
    return {
        "architectures": [NAME],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.tied,
        "use_cache": True,
        "bos_token_id": ids[0],
        "eos_token_id": ids[1],
        "pad_token_id": ids[2],
        "torch_dtype": width,
        "dtype": width,
        "ludus": {"dropout": shape.dropout, **({"facts": dict(extra)} if extra else {})},
    }


def architecture_of(config: Any, folder: Path) -> Architecture:
    """Read an architecture out of a `config.json`.

    Raises:
        CheckpointError: it is no Llama, lacks a size, or asks for something ludus does not compute.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{folder / 'config.json'} is no model's config: it is a {type(config).__name__}")
    name = (config.get("architectures") or [config.get("model_type", "nothing it names")])[0]
    if name not in (NAME, "llama"):
        raise CheckpointError(f"{folder} holds {name}; ludus reads {NAME} only")
    _refuse(config, folder)
    missing = [foreign for foreign in REQUIRED.values() if not isinstance(config.get(foreign), int)]
    if missing:
        raise CheckpointError(f"{folder / 'config.json'} does not say its {', '.join(missing)}")
    sizes = {ours: config[foreign] for ours, foreign in REQUIRED.items()}
    return Architecture(
        **sizes,
        kv_heads=config.get("num_key_value_heads") or sizes["heads"],
        head_dim=config.get("head_dim") or sizes["width"] // sizes["heads"],
        context=config.get("max_position_embeddings", 2048),
        rope_theta=float(_rotary(config).get("rope_theta") or config.get("rope_theta") or 10_000.0),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
        dropout=(config.get("ludus") or {}).get("dropout", 0.0),
    )


def _refuse(config: Mapping[str, Any], folder: Path) -> None:
    kind = _rotary(config).get("rope_type") or _rotary(config).get("type") or "default"
    asked = {"rope_scaling": kind} if kind != "default" else {}
    asked |= {key: value for key, value in {**config, **_rotary(config)}.items() if value != ONLY.get(key, value)}
    if config.get("quantization_config"):
        asked["quantization_config"] = config["quantization_config"].get("quant_method", "some")
    wrong = [f"{key}={value}" for key, value in asked.items() if value is not None]
    if wrong:
        raise CheckpointError(f"{folder} asks for {', '.join(wrong)}; {UNDERSTOOD}")


def _rotary(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the rotary settings in the new spelling or the old one."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}
