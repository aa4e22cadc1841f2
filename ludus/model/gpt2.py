"""GPT-2 and GPT-J on disk: `config.json` and weight names, in both directions.

GPT-2 keeps queries, keys and values in one matrix, and its matrices turned over (inputs x outputs). Files of both may
hold masks as buffers, which say nothing, and GPT-2's may leave out the prefix `transformer.`.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ludus.base.errors import CheckpointError
from ludus.model.architecture import Architecture
from ludus.model.layout import SIZES, Config, Layout, Place, refuse, sizes

REQUIRED = {
    "vocabulary": "vocab_size",
    "layers": "n_layer",
    "width": "n_embd",
    "heads": "n_head",
    "context": "n_positions",
}
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"}
WRITTEN = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}
ONLY: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "activation_function": tuple(ACTIVATIONS),
}
UNDERSTOOD = f"ludus runs {', '.join(ACTIVATIONS)} and attention scaled by the head's size alone, no quantisation"
NORMED = {"norm": "layer", "mlp_bias": True}
GPT2_SWITCHES = NORMED | {"position": "learned", "attention_bias": True, "output_bias": True}
GPTJ_SWITCHES = NORMED | {"position": "rope_interleaved", "parallel": True, "head_bias": True}
# The parts of a block, by the end of our names.
GPT2_PARTS = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.q_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
GPTJ_PARTS = {
    "input_layernorm": "ln_1",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.out_proj",
    "mlp.up_proj": "mlp.fc_in",
    "mlp.down_proj": "mlp.fc_out",
}
OUTSIDE = {"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f"}


def gpt2_places(names: Iterable[str]) -> list[Place]:
    """Return where GPT-2 keeps weights: three projections in one, matrices turned over."""
    found = []
    for name in names:
        if name.split(".")[-2] in ("k_proj", "v_proj"):
            continue  # beside the queries
        sources = tuple(name.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj"))
        turned = "_proj" in name and name.endswith("weight")
        found.append(Place(_named(name, GPT2_PARTS), sources if "q_proj" in name else (name,), turned))
    return found


def gptj_places(names: Iterable[str]) -> list[Place]:
    """Return where GPT-J keeps weights: each on its own."""
    return [Place(_named(name, GPTJ_PARTS), (name,)) for name in names]


def _named(name: str, parts: dict[str, str]) -> str:
    if name.startswith("lm_head"):
        return name
    module, leaf = name.rsplit(".", 1)
    if not module.startswith("layers."):
        return f"transformer.{OUTSIDE[module]}.{leaf}"
    _, layer, part = module.split(".", 2)
    return f"transformer.h.{layer}.{parts[part]}.{leaf}"


def _written(shape: Architecture) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": shape.hidden,
        "activation_function": WRITTEN[shape.activation],
        "layer_norm_epsilon": shape.norm_epsilon,
        "resid_pdrop": shape.dropout,
        "embd_pdrop": shape.dropout,
        "attn_pdrop": shape.dropout,
        "tie_word_embeddings": shape.tied,
    }


def _written_gptj(shape: Architecture) -> dict[str, Any]:
    return _written(shape) | {"rotary_dim": shape.rotary_dims}


def _read(switches: dict[str, Any], tied: bool, config: Config, folder: Path) -> Architecture:
    refuse(config, folder, ONLY, UNDERSTOOD)
    found = sizes(config, folder, REQUIRED)
    if found["width"] % found["heads"]:
        raise CheckpointError(f"{folder} has {found['heads']} heads, which do not divide its {found['width']} channels")
    return Architecture(
        **found,
        kv_heads=found["heads"],
        head_dim=found["width"] // found["heads"],
        hidden=config.get("n_inner") or 4 * found["width"],
        activation=ACTIVATIONS[config.get("activation_function") or "gelu_new"],  # type: ignore[arg-type]
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        tied=tied if config.get("tie_word_embeddings") is None else config["tie_word_embeddings"],
        dropout=config.get("resid_pdrop", 0.1 if tied else 0.0),
        **switches,
    )


def _read_gptj(config: Config, folder: Path) -> Architecture:
    turning = config.get("rotary_dim", 64)  # what it means to leave it out
    return _read(GPTJ_SWITCHES | {"rotary_dims": turning or 0}, False, config, folder)


def _whole_heads(shape: Architecture) -> list[str]:
    found = [] if shape.heads * shape.head_dim == shape.width else [f"head_dim={shape.head_dim}"]
    found += [] if shape.kv_heads == shape.heads else [f"kv_heads={shape.kv_heads}"]
    return found + ([] if shape.activation in WRITTEN else [f"activation={shape.activation}"])


FREE = SIZES | {"activation", "kv_heads", "head_dim"}
MASKS = r"\.attn\.(bias|masked_bias|embed_positions)$"
GPT2 = Layout(
    "GPT2LMHeadModel",
    "gpt2",
    FREE,
    GPT2_SWITCHES,
    _written,
    partial(_read, GPT2_SWITCHES, True),
    gpt2_places,
    _whole_heads,
    MASKS,
    "transformer.",
)
GPTJ = Layout(
    "GPTJForCausalLM",
    "gptj",
    FREE | {"rotary_dims"},
    GPTJ_SWITCHES,
    _written_gptj,
    _read_gptj,
    gptj_places,
    _whole_heads,
    MASKS,
    "transformer.",
)
