"""A base model that transformers saved goes in, computes the same in every way it can be run, and leaves unchanged."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ludus.generation.cache import KVCache
from ludus.model.exchange import load, save

pytestmark = [pytest.mark.law, pytest.mark.oracle]
SIZES = {"vocab_size": 61, "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 64}
GPT = {"vocab_size": 61, "n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
MODELS = {
    "GPT-2": lambda: transformers.GPT2Config(**GPT),
    "GPT-2 narrow and untied": lambda: transformers.GPT2Config(**GPT, n_inner=48, tie_word_embeddings=False),
    "GPT-J": lambda: transformers.GPTJConfig(**GPT, rotary_dim=4),
    "Llama 2": lambda: transformers.LlamaConfig(**SIZES, max_position_embeddings=64),
    "Llama 3": lambda: transformers.LlamaConfig(**GROUPED, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
    "Llama 3.2": lambda: transformers.LlamaConfig(
        **GROUPED,
        head_dim=12,
        tie_word_embeddings=True,
        rope_parameters=LLAMA3 | {"original_max_position_embeddings": 16},
    ),
    "Mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=5),
    "Mistral without a window": lambda: transformers.MistralConfig(**GROUPED, head_dim=12, sliding_window=None),
    "Qwen2": lambda: transformers.Qwen2Config(**GROUPED, **WINDOWS),
    "Qwen2.5 small": lambda: transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "Qwen3": lambda: transformers.Qwen3Config(**GROUPED, **WINDOWS, head_dim=12),
    "Qwen3 small": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True),
}
EXACT = {"rtol": 1e-4, "atol": 1e-4}
SILENT = ("dtype", "head_dim", "layer_types", "max_window_layers", "n_inner", "summary_", "_name", "transformers_")


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Return their model, and the folder they saved it to: in bfloat16, since that is how most are published."""
    torch.manual_seed(7)
    theirs = transformers.AutoModelForCausalLM.from_config(MODELS[request.param]())
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            one = ("norm" in name or "ln_" in name) and name.endswith("weight")
            weight.copy_(torch.randn_like(weight) * 0.3 + one)
    folder = tmp_path_factory.mktemp("base")
    theirs.bfloat16().save_pretrained(folder)
    eager = {"attn_implementation": "eager", "dtype": torch.float32}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **eager).eval(), folder


@torch.no_grad()
def test_a_base_model_computes_the_same_whole_with_a_cache_and_padded_on_the_left(base):
    theirs, folder = base
    ours = load(folder).eval()
    tokens = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(ours(tokens), expected, **EXACT)

    def cached(rows: torch.Tensor, starts: list[int]) -> torch.Tensor:
        cache = KVCache(ours.shape, torch.tensor(starts), rows.shape[1], torch.float32)
        return torch.cat(
            [ours(part, cache=cache) for part in rows.split([9, *[1] * (rows.shape[1] - 9)], dim=1)], dim=1
        )

    torch.testing.assert_close(cached(tokens, [0, 0]), expected, **EXACT)
    tokens[1, :5] = 0
    real = torch.ones_like(tokens)
    real[1, :5] = 0
    positions = (real.cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=real, position_ids=positions).logits
    found = cached(tokens, [0, 5])
    torch.testing.assert_close(found[0], expected[0], **EXACT)
    torch.testing.assert_close(found[1, 5:], expected[1, 5:], **EXACT)
    torch.testing.assert_close(found[1, 5:], theirs(tokens[1:, 5:]).logits[0], **EXACT)


def test_a_base_model_leaves_bit_for_bit_as_it_came(base, tmp_path):
    theirs, folder = base
    model = load(folder, None)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    save(model, tmp_path / "out", max_shard_bytes=15_000)
    came = load_file(folder / "model.safetensors")
    left = {
        name: tensor for file in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    assert came.keys() == left.keys()
    assert all(torch.equal(came[name], left[name]) and came[name].dtype == left[name].dtype for name in came)
    again, report = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float32)
    assert not any(report.values()), report
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    said, config = (each.config.to_dict() for each in (theirs, again))
    strange = {key for key in said if said[key] != config.get(key) and not key.startswith(SILENT)}
    assert not strange, {key: (said[key], config.get(key)) for key in strange}


@torch.no_grad()
def test_the_keys_of_older_versions_say_the_same(base, tmp_path):
    theirs, folder = base
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if rotary := dict(config.pop("rope_parameters", {})):
        config["rope_theta"], kind = rotary.pop("rope_theta"), rotary.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {"type": kind, **rotary}
    if config.get("head_dim") == 8:
        config.pop("head_dim")
    if config["tie_word_embeddings"] == (config["model_type"] == "gpt2"):
        config.pop("tie_word_embeddings")
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = torch.arange(40).view(2, 20)
    torch.testing.assert_close(load(tmp_path).eval()(tokens), theirs(tokens).logits, **EXACT)
