"""Llama and its relatives on disk (Mistral, Qwen 2, Qwen 3): `config.json` and weight names, in both directions.

Weights have the same names in all of them, which are ours under `model.`. What is written is understood by transformers
4 and 5 and by vLLM: both spellings of the rotary settings and of the dtype. What is read is refused by name unless this
transformer computes exactly the same.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ludus.base.errors import CheckpointError
from ludus.model.architecture import Architecture, RopeScaling
from ludus.model.layout import SIZES, Config, Layout, Place, refuse, sizes

REQUIRED = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
ROTARY = frozenset({"rope_theta", "rope_scaling", "kv_heads", "head_dim"})
# Our name -> theirs, by kind; `attention_factor` is said only where it is not the kind's own.
STRETCHING = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low_frequency_factor": "low_freq_factor",
        "high_frequency_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}
UNDERSTOOD = "ludus runs SiLU, whole rotary heads, unquantised weights, and linear, llama3 and yarn scaling"
ONLY: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "partial_rotary_factor": (1.0,)}
# What it means that a config is silent, where that is not what it means for Llama.
MISTRAL_MEANS = {"sliding_window": 4096, "num_key_value_heads": 8}
QWEN_MEANS = {"sliding_window": 4096, "num_key_value_heads": 32, "max_window_layers": 28}
FULL, SLIDING = "full_attention", "sliding_attention"


def foreign_name(name: str) -> str:
    """Return the name of a weight or a layer in Hugging Face's layout: the trunk is called `model` there."""
    return name if name.split(".")[0] == "lm_head" else f"model.{name}"


def places(names: Iterable[str]) -> list[Place]:
    """Give each weight its own place."""
    return [Place(foreign_name(name), (name,)) for name in names]


def _written(shape: Architecture) -> dict[str, Any]:
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling is not None:
        rotary = {
            "rope_type": shape.rope_scaling.kind,
            "rope_theta": shape.rope_theta,
            **_stretching(shape.rope_scaling),
        }
    return {
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
        "rope_parameters": rotary,
        **({"rope_scaling": rotary} if shape.rope_scaling is not None else {}),
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.tied,
    }


def _stretching(scaling: RopeScaling) -> dict[str, float]:
    said = {theirs: getattr(scaling, ours) for ours, theirs in STRETCHING[scaling.kind].items()}
    return {name: value for name, value in said.items() if value is not None}


def _read(config: Config, folder: Path, *, context: int = 2048, **switches: Any) -> Architecture:
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if several := [name for name, value in rotary.items() if isinstance(value, Mapping)]:
        raise CheckpointError(f"{folder} asks for rope_parameters of its own for {several[0]}; {UNDERSTOOD}")
    refuse({**config, **rotary}, folder, ONLY, UNDERSTOOD)
    found = sizes(config, folder, REQUIRED)
    return Architecture(
        **found,
        kv_heads=config.get("num_key_value_heads") or found["heads"],
        head_dim=config.get("head_dim") or found["width"] // found["heads"],
        context=config.get("max_position_embeddings", context),
        rope_theta=float(rotary.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_scaling=_scaling(rotary, config, folder),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
        **switches,
    )


def _scaling(rotary: Mapping[str, Any], config: Config, folder: Path) -> RopeScaling | None:
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if kind == "default":
        return None
    bad = [name for name in ("mscale", "mscale_all_dim") if rotary.get(name)]
    bad += ["truncate=False"] if rotary.get("truncate") is False else []
    if kind not in STRETCHING or bad:
        raise CheckpointError(f"{folder} asks for rope_scaling={kind}{', '.join(['', *bad])}; {UNDERSTOOD}")
    said = {ours: rotary[theirs] for ours, theirs in STRETCHING[kind].items() if rotary.get(theirs) is not None}
    if "factor" not in said:
        raise CheckpointError(f"{folder / 'config.json'} asks for rope_scaling={kind} and does not say its factor")
    if "original_context" in STRETCHING[kind]:
        said.setdefault("original_context", config.get("max_position_embeddings", 2048))
    return RopeScaling(kind=kind, **said)  # type: ignore[arg-type]


def _temperature(shape: Architecture) -> list[str]:
    scaling = shape.rope_scaling
    tempered = scaling is not None and scaling.kind != "yarn" and scaling.attention_factor is not None
    return ["rope_scaling.attention_factor"] if tempered else []


def _llama(shape: Architecture) -> dict[str, Any]:
    return _written(shape) | {"attention_bias": shape.attention_bias, "mlp_bias": shape.mlp_bias}


def _read_llama(config: Config, folder: Path) -> Architecture:
    bias = bool(config.get("attention_bias"))
    return _read(config, folder, attention_bias=bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias")))


def _even_bias(shape: Architecture) -> list[str]:
    uneven = shape.attention_bias != shape.output_bias
    return _temperature(shape) + ([f"output_bias={shape.output_bias}"] if uneven else [])


def _mistral(shape: Architecture) -> dict[str, Any]:
    return _written(shape) | {"sliding_window": shape.window(0)}


def _read_mistral(config: Config, folder: Path) -> Architecture:
    said = {**MISTRAL_MEANS, **config}
    window = said["sliding_window"]
    windows = (window,) * said.get("num_hidden_layers", 0) if window else ()
    return _read(said, folder, context=131_072, windows=windows)


def _one_window(shape: Architecture) -> list[str]:
    return _temperature(shape) + ([f"windows={shape.windows}"] if len(set(shape.windows)) > 1 else [])


def _qwen(shape: Architecture) -> dict[str, Any]:
    width = max((window or 0 for window in shape.windows), default=0)
    kinds = [SLIDING if shape.window(layer) else FULL for layer in range(shape.layers)]
    sliding = {"use_sliding_window": bool(width), "sliding_window": width or None, "layer_types": kinds}
    return _written(shape) | sliding | {"max_window_layers": kinds.count(FULL)}


def _qwen_windows(config: Config, folder: Path) -> tuple[int | None, ...]:
    window, layers = config.get("sliding_window"), config.get("num_hidden_layers", 0)
    if not config.get("use_sliding_window") or not window:
        return ()
    first = config["max_window_layers"]
    kinds = config.get("layer_types") or [SLIDING if layer >= first else FULL for layer in range(layers)]
    if strange := sorted(set(kinds) - {FULL, SLIDING}):
        raise CheckpointError(f"{folder} asks for layer_types={strange[0]}; ludus runs {FULL} and {SLIDING}")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _windows_of_one_size(shape: Architecture) -> list[str]:
    several = len({window for window in shape.windows if window}) > 1
    return _temperature(shape) + ([f"windows={shape.windows}"] if several else [])


def _qwen2_misfits(shape: Architecture) -> list[str]:
    uneven = shape.heads * shape.head_dim != shape.width
    return _windows_of_one_size(shape) + ([f"head_dim={shape.head_dim}"] if uneven else [])


def _qwen3(shape: Architecture) -> dict[str, Any]:
    return _qwen(shape) | {"attention_bias": shape.attention_bias}


def _read_qwen3(config: Config, folder: Path) -> Architecture:
    said = {"head_dim": 128, **QWEN_MEANS, **config}
    bias, windows = bool(said.get("attention_bias")), _qwen_windows(said, folder)
    switches: dict[str, Any] = {"attention_bias": bias, "output_bias": bias, "windows": windows, "qk_norm": "rms"}
    return _read(said, folder, context=32_768, **switches)


def _read_qwen2(config: Config, folder: Path) -> Architecture:
    said = {**QWEN_MEANS, **config}
    return _read(said, folder, context=32_768, attention_bias=True, windows=_qwen_windows(said, folder))


LLAMA = Layout(
    "LlamaForCausalLM",
    "llama",
    SIZES | ROTARY | {"attention_bias", "output_bias", "mlp_bias"},
    {},
    _llama,
    _read_llama,
    places,
    _even_bias,
)
MISTRAL = Layout(
    "MistralForCausalLM", "mistral", SIZES | ROTARY | {"windows"}, {}, _mistral, _read_mistral, places, _one_window
)
QWEN2 = Layout(
    "Qwen2ForCausalLM",
    "qwen2",
    SIZES | ROTARY | {"windows"},
    {"attention_bias": True},
    _qwen,
    _read_qwen2,
    places,
    _qwen2_misfits,
)
QWEN3 = Layout(
    "Qwen3ForCausalLM",
    "qwen3",
    SIZES | ROTARY | {"windows", "attention_bias", "output_bias"},
    {"qk_norm": "rms"},
    _qwen3,
    _read_qwen3,
    places,
    lambda shape: _windows_of_one_size(shape) + _even_bias(shape),
)
