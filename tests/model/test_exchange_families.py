"""Law 8 for every family: a model goes to transformers and comes back with its logits, names and architecture."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ludus.base.errors import CheckpointError
from ludus.model.architecture import Architecture, Experts, RopeScaling
from ludus.model.exchange import load, notice, save
from ludus.model.families import FOREIGN, LAYOUTS, layout_for
from ludus.model.presets import FAMILIES as PRESETS

ROW = torch.arange(40).view(2, 20)
YARN = RopeScaling("yarn", 4.0, original_context=128, beta_fast=4.0, beta_slow=0.3)  # felt at a base of 20
BIASES = {"attention_bias": True, "output_bias": True}
GPT2 = {
    "norm": "layer",
    "position": "learned",
    "activation": "gelu_tanh",
    "mlp_bias": True,
    "kv_heads": 4,
    "tied": True,
    **BIASES,
}
GPTJ = GPT2 | {"position": "rope_interleaved", "parallel": True, "head_bias": True, "tied": False, "rotary_dims": 4}
GPTJ |= {"attention_bias": False, "output_bias": False}
FAMILIES = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-linear": ("LlamaForCausalLM", {"rope_scaling": RopeScaling("linear", 4.0)}),
    "llama-llama3": ("LlamaForCausalLM", {"rope_scaling": RopeScaling("llama3", 8.0, original_context=16)}),
    "llama-yarn": ("LlamaForCausalLM", {"rope_scaling": YARN, "rope_theta": 20.0}),
    "llama-biases": ("LlamaForCausalLM", {"mlp_bias": True, **BIASES}),
    "mistral": ("MistralForCausalLM", {"windows": (5, 5), "rope_theta": 500.0}),
    "qwen2": ("Qwen2ForCausalLM", {"attention_bias": True, "tied": True}),
    "qwen2-windows": ("Qwen2ForCausalLM", {"attention_bias": True, "windows": (7, None)}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": "rms", "head_dim": 12}),
    "qwen3-all": (
        "Qwen3ForCausalLM",
        {"qk_norm": "rms", "windows": (None, 6), "rope_scaling": YARN, "rope_theta": 20.0, **BIASES},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-others": ("GPT2LMHeadModel", GPT2 | {"tied": False, "activation": "gelu", "dropout": 0.1}),
    "gptj": ("GPTJForCausalLM", GPTJ),
}
OWN = {
    "modern": {
        "norm": "plain",
        "qk_norm": "plain",
        "activation": "relu2",
        "windows": (4, None),
        "logit_softcap": 15.0,
        "embedding_convolution": 2,
        "mlp_convolution": 1,
        "embedding_skip": True,
    },
    "experts": {"experts": Experts(4, 2, shared=1, hidden=24)},
    "tied-none": {"position": "none", "tied": True},
    "two-windows": {"windows": (4, 9)},
    "no-bias-gpt2": GPT2 | {"norm_bias": False, "mlp_bias": False, "attention_bias": False, "output_bias": False},
}


def config_at(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.law
@pytest.mark.parametrize("name", [*FAMILIES, *OWN])
def test_every_family_comes_back_bit_for_bit(tiny, tmp_path, name: str):
    expected, changes = FAMILIES[name] if name in FAMILIES else ("LudusForCausalLM", OWN[name])
    model = tiny(**changes)
    for buffer in model.buffers():
        buffer.add_(0.1)
    save(model, tmp_path / "model")
    assert config_at(tmp_path / "model")["architectures"] == [expected]
    again = load(tmp_path / "model").eval()
    assert again.shape == model.shape
    kept, back = model.state_dict(), again.state_dict()
    assert kept.keys() == back.keys()
    assert all(torch.equal(kept[key], back[key]) and back[key].is_contiguous() for key in kept)
    assert not any(tensor.is_meta for tensor in [*again.buffers(), *again.parameters()])
    assert torch.equal(again(ROW), model(ROW))
    save(again, tmp_path / "again")
    assert config_at(tmp_path / "again") == config_at(tmp_path / "model")
    one, other = (load_file(tmp_path / place / "model.safetensors") for place in ("model", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.law
@pytest.mark.oracle
@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_and_ludus_read_each_other(tiny, tmp_path, name: str):
    transformers = pytest.importorskip("transformers")
    expected, changes = FAMILIES[name]
    model = tiny(**changes)
    save(model, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(theirs).__name__ == expected
    with torch.no_grad():
        torch.testing.assert_close(theirs(ROW).logits, model(ROW), rtol=2e-5, atol=2e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs").eval()
    assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(back(ROW), model(ROW), rtol=1e-6, atol=1e-6)
    ours, found = (load_file(tmp_path / place / "model.safetensors") for place in ("ours", "theirs"))
    assert ours.keys() == found.keys()
    assert all(torch.equal(ours[key], found[key]) for key in ours)


def test_files_of_gpt2_may_leave_out_the_prefix_and_hold_masks(tiny, tmp_path):
    model = tiny(**GPT2)
    save(model, tmp_path / "model")
    (tmp_path / "model" / "sha256.json").unlink()
    path = tmp_path / "model" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, path)
    assert torch.equal(load(tmp_path / "model").eval()(ROW), model(ROW))
    save_file(tensors | {"h.0.attn.c_extra.bias": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"c_extra.bias, a bias that ludus has no place for"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True; ludus runs gelu_new"),
        ({"activation_function": "swish"}, "activation_function=swish"),
        ({"n_head": 5}, "5 heads, which do not divide"),
        ({"n_layer": None}, "does not say its n_layer"),
    ],
)
def test_what_gpt2_has_and_ludus_has_not_is_refused_by_name(tiny, tmp_path, changes: dict, says: str):
    save(tiny(**GPT2), tmp_path / "model")
    (tmp_path / "model" / "sha256.json").unlink()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_at(tmp_path / "model") | changes))
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({}, "does not say its vocabulary, layers"),
        ({"shine": 3}, "has shine under `ludus`"),
        ({"rope_scaling": {"kind": "linear", "strength": 3}}, "strange rope_scaling"),
    ],
)
def test_a_damaged_config_of_our_own_is_refused_in_one_line(tiny, tmp_path, own: dict, says: str):
    save(tiny(**OWN["modern"]), tmp_path / "model")
    (tmp_path / "model" / "sha256.json").unlink()
    config = config_at(tmp_path / "model")
    own = config["ludus"]["architecture"] | own if own else {}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"ludus": {"architecture": own}}))
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_what_no_family_holds_is_said_with_the_settings_to_blame(shape, tiny, tmp_path):
    assert notice(shape()) is None
    said = notice(shape(qk_norm="plain", activation="relu2"))
    assert said is not None
    assert "transformers and vLLM cannot load this model" in said
    assert "activation=relu2, qk_norm=plain" in said
    save(tiny(qk_norm="plain"), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ludus\n")
    assert "no family of theirs has qk_norm=plain" in card
    assert "AutoModelForCausalLM" not in card


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"windows": (4, 9)}, "windows=(4, 9)"),
        ({"rope_scaling": RopeScaling("linear", 2.0, attention_factor=1.1)}, "rope_scaling.attention_factor"),
        ({"output_bias": True}, "output_bias=True"),
        ({"position": "none"}, "position=none"),
        ({"logit_softcap": 30.0}, "logit_softcap=30.0"),
        ({"experts": Experts(4, 2, hidden=8)}, "experts=on"),
        (GPT2 | {"kv_heads": 2}, "kv_heads=2"),
        (GPT2 | {"activation": "swiglu"}, "activation=swiglu"),
    ],
)
def test_each_misfit_is_named(shape, changes: dict, blamed: str):
    assert layout_for(shape(**changes)).name == "LudusForCausalLM"
    assert blamed in (notice(shape(**changes)) or "")


def test_a_switch_without_effect_is_no_misfit(shape):
    assert layout_for(shape(norm_bias=False, windows=(None, None), dropout=0.3)).name == "LlamaForCausalLM"
    assert layout_for(shape(**GPT2, rope_theta=5.0, rope_scaling=YARN)).name == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    ("family", "expected"),
    [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("modern", "LudusForCausalLM")],
)
def test_presets_are_written_as_what_they_are_named_for(shape, family: str, expected: str):
    known = {field.name for field in dataclasses.fields(Architecture)}
    switches = {name: value for name, value in PRESETS[family].items() if name in known}
    assert layout_for(shape(**switches, kv_heads=4)).name == expected


def test_the_table_of_layouts_has_no_name_twice():
    assert len(LAYOUTS) == len(FOREIGN) + 1
    assert len({layout.model_type for layout in LAYOUTS.values()}) == len(LAYOUTS)
