"""The logits of other people's models, of random small weights, are ours when their weights are put under our names."""

import re

import pytest
import torch
import transformers
from torch import Tensor

from ludus.model.architecture import Architecture, RopeScaling
from ludus.model.transformer import Transformer

pytestmark = pytest.mark.oracle
SIZES = {"vocabulary": 61, "layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 48}
THEIR_SIZES = {
    "vocab_size": 61,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GPT = {"vocab_size": 61, "n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64, "n_inner": 48}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}

RENAMED = [
    (r"^(model|transformer)\.", ""),
    (r"^h\.", "layers."),
    (r"^wte\.", "embed_tokens."),
    (r"^wpe\.", "embed_positions."),
    (r"^ln_f\.", "norm."),
    (r"\.ln_1\.", ".input_layernorm."),
    (r"\.ln_2\.", ".post_attention_layernorm."),
    (r"\.attn\.(c_proj|out_proj)\.", ".self_attn.o_proj."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.(c_fc|fc_in)\.", ".mlp.up_proj."),
    (r"\.mlp\.(c_proj|fc_out)\.", ".mlp.down_proj."),
]


def renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put weights under our names, GPT-2's transposed and its three projections apart."""
    found = {}
    for foreign, tensor in theirs.items():
        name = foreign
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    for joint in [name for name in found if "c_attn" in name]:
        parts = found.pop(joint).chunk(3, dim=-1)
        found |= {joint.replace("c_attn", f"{kind}_proj"): part for kind, part in zip("qkv", parts, strict=True)}
    return found


def gpt2() -> tuple:
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT))
    shape = SIZES | {"kv_heads": 4, "norm": "layer", "position": "learned", "activation": "gelu_tanh", "tied": True}
    return theirs, shape | {"attention_bias": True, "output_bias": True, "mlp_bias": True}


def gptj() -> tuple:
    theirs = transformers.GPTJForCausalLM(transformers.GPTJConfig(**GPT, rotary_dim=4))
    shape = SIZES | {"kv_heads": 4, "norm": "layer", "position": "rope_interleaved", "rotary_dims": 4}
    return theirs, shape | {"activation": "gelu_tanh", "parallel": True, "mlp_bias": True, "head_bias": True}


def llama(scaling: dict, ours: RopeScaling | None) -> tuple:
    config = transformers.LlamaConfig(**THEIR_SIZES, rope_parameters={"rope_theta": 500_000.0, **scaling})
    return transformers.LlamaForCausalLM(config), SIZES | {"rope_theta": 500_000.0, "rope_scaling": ours}


def mistral() -> tuple:
    config = transformers.MistralConfig(**THEIR_SIZES, sliding_window=5)
    return transformers.MistralForCausalLM(config), SIZES | {"windows": (5, 5, 5)}


def qwen2() -> tuple:
    config = transformers.Qwen2Config(**{name: value for name, value in THEIR_SIZES.items() if name != "head_dim"})
    return transformers.Qwen2ForCausalLM(config), SIZES | {"attention_bias": True}


def qwen3() -> tuple:
    config = transformers.Qwen3Config(**THEIR_SIZES | {"head_dim": 12})
    return transformers.Qwen3ForCausalLM(config), SIZES | {"head_dim": 12, "qk_norm": "rms"}


MODELS = {
    "GPT-2": gpt2,
    "GPT-J": gptj,
    "Llama": lambda: llama({"rope_type": "default"}, None),
    "Llama 3.1": lambda: llama({"rope_type": "llama3", **LLAMA3}, RopeScaling("llama3", 8.0, 16)),
    "Llama stretched": lambda: llama({"rope_type": "linear", "factor": 2.0}, RopeScaling("linear", 2.0)),
    "Llama with YaRN": lambda: llama({"rope_type": "yarn", **YARN}, RopeScaling("yarn", 4.0, 16)),
    "Mistral": mistral,
    "Qwen2": qwen2,
    "Qwen3": qwen3,
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str):
    theirs, changes = MODELS[name]()
    theirs = theirs.eval()
    generator = torch.Generator().manual_seed(0)
    for weight_name, weight in theirs.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        norm = "norm" in weight_name or "ln_" in weight_name
        weight.copy_(noise * 0.3 + (1 if norm and weight_name.endswith("weight") else 0))
    shape = Architecture(**changes, context=64, norm_epsilon=getattr(theirs.config, "rms_norm_eps", 1e-5))
    ours = Transformer(shape).eval()
    weights = renamed(theirs.state_dict())
    weights = {key: value.T if _transposed(name, key) else value for key, value in weights.items()}
    ours.load_state_dict(weights)
    tokens = torch.randint(61, (2, 40), generator=generator)
    expected = theirs(tokens).logits
    assert float(expected.std()) > 0.1
    for backend in ("plain", "fused"):
        ours.attention_backend = backend
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-4)


def _transposed(model: str, name: str) -> bool:
    """Tell whether a weight is one of GPT-2's, which multiply from the other side."""
    return model == "GPT-2" and name.endswith("proj.weight")
