import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ludus.base.errors import CheckpointError, TokenizerMismatch
from ludus.model.exchange import load, load_tokenizer, save
from ludus.text.settings import TokenizerSettings
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train

SHAPES = [{}, {"tied": True}, {"kv_heads": 4, "rope_theta": 500.0, "norm_epsilon": 1e-6}, {"heads": 2, "head_dim": 12}]
ROW = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["one two three, one two three"], TokenizerSettings(kind="character"))


def edit(folder, **changes) -> None:
    path = folder / "config.json"
    config = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value != "absent"}
    path.write_text(json.dumps(config))
    (folder / "sha256.json").unlink(missing_ok=True)


@pytest.mark.law
@pytest.mark.parametrize("changes", [*SHAPES, {"dropout": 0.1}])
def test_a_saved_model_comes_back_bit_for_bit(tiny, tmp_path, changes: dict):
    model = tiny(**changes)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model").eval()
    assert again.shape == model.shape
    assert dict(again.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert torch.equal(again(ROW), model(ROW))
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.law
@pytest.mark.oracle
@pytest.mark.parametrize("changes", SHAPES)
def test_transformers_computes_the_same_logits_under_the_same_names(tiny, tmp_path, changes: dict):
    transformers = pytest.importorskip("transformers")
    model = tiny(**changes)
    save(model, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(theirs(ROW).logits, model(ROW), rtol=1e-5, atol=1e-5)
    names = load_file(tmp_path / "ours" / "model.safetensors").keys()
    tied = {"lm_head.weight"} if model.shape.tied else set()
    assert names == theirs.state_dict().keys() - tied


@pytest.mark.law
@pytest.mark.oracle
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_model_saved_by_transformers_comes_back_to_it_unchanged(tmp_path, legacy: bool, sharded: bool):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **rotary)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if sharded else "1GB")
    if legacy:
        edit(tmp_path / "theirs", rope_parameters="absent", rope_theta=700.0, rope_scaling=None, head_dim="absent")
    ours = load(tmp_path / "theirs").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(ROW), theirs(ROW).logits, rtol=1e-5, atol=1e-5)
    save(ours, tmp_path / "ours")
    back = load_file(tmp_path / "ours" / "model.safetensors")
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_the_tokenizer_and_its_special_ids_go_with_the_model(tiny, tmp_path, tokenizer):
    save(tiny(vocabulary=tokenizer.vocabulary_size), tmp_path / "model", tokenizer, {"stage": "sft"})
    assert load_tokenizer(tmp_path / "model").hash == tokenizer.hash
    for name in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "model" / name).read_text())
        ids = (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"])
        assert ids == (tokenizer.bos, tokenizer.end, tokenizer.pad)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tokenizer_larger_than_the_model_is_refused(tiny, tmp_path, tokenizer):
    with pytest.raises(TokenizerMismatch, match=r"has 2.. tokens, the model 61"):
        save(tiny(), tmp_path / "model", tokenizer)
    assert not (tmp_path / "model").exists()


def test_the_card_says_what_the_model_is_whatever_the_facts_contain(tiny, tmp_path):
    save(tiny(), tmp_path / "tutor", extra={"run": "a | b\n# not a heading"})
    card = (tmp_path / "tutor" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# tutor\n" in card
    assert "| run | a \\| b # not a heading |" in card
    assert json.loads((tmp_path / "tutor" / "config.json").read_text())["ludus"]["facts"] == {
        "run": "a | b\n# not a heading"
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_converted_as_they_are_read(tiny, tmp_path, dtype: torch.dtype):
    save(tiny(), tmp_path / "model")
    model = load(tmp_path / "model", dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.norm.weight, tiny().norm.weight.to(dtype))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"architectures": ["Lama4ForCausalLM"]},
            r"Lama4ForCausalLM; ludus reads LlamaForCausalLM.*Llama.* is the near",
        ),
        ({"architectures": None, "model_type": "mamba"}, "holds mamba"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 8.0}}, "rope_scaling=longrope"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling=dynamic"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "rope_scaling=yarn, mscale"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "does not say its factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"attention_bias": True}, "lacks the weight model.layers.0.self_attn.q_proj.bias"),
        ({"mlp_bias": True}, "lacks the weight model.layers.0.mlp.gate_proj.bias"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config=bitsandbytes"),
        ({"vocab_size": None, "hidden_size": "32"}, "does not say its vocab_size, hidden_size"),
        ({"intermediate_size": 64}, r"down_proj.weight of shape \(32, 48\), its config.json asks for \(32, 64\)"),
        ({"num_hidden_layers": 3}, "lacks the weight model.layers.2"),
        ({"num_hidden_layers": 1}, "holds model.layers.1.*no place"),
    ],
)
def test_what_ludus_cannot_run_exactly_is_refused_by_name(tiny, tmp_path, changes: dict, says: str):
    save(tiny(), tmp_path / "model")
    edit(tmp_path / "model", **changes)
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_biases_are_refused_even_where_the_config_is_silent(tiny, tmp_path):
    save(tiny(), tmp_path / "model")
    (tmp_path / "model" / "sha256.json").unlink()
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    save_file(tensors | bias, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj.bias, a bias"):
        load(tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_is_noticed(tiny, tmp_path, tokenizer, name: str):
    save(tiny(vocabulary=tokenizer.vocabulary_size), tmp_path / "model", tokenizer)
    damaged = bytearray((tmp_path / "model" / name).read_bytes())
    damaged[len(damaged) * 2 // 3] ^= 1
    (tmp_path / "model" / name).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load(tmp_path / "model")


def test_an_edited_card_or_template_does_not_lock_the_model(tiny, tmp_path, tokenizer):
    save(tiny(vocabulary=tokenizer.vocabulary_size), tmp_path / "model", tokenizer)
    for name in ("README.md", "chat_template.jinja"):
        (tmp_path / "model" / name).write_text("rewritten")
    assert load(tmp_path / "model").shape.vocabulary == tokenizer.vocabulary_size


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors; save"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "is no archive of PyTorch",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is a list"),
    ],
)
def test_a_folder_that_holds_no_readable_model_is_said_in_one_line(tiny, tmp_path, break_it, says: str):
    save(tiny(), tmp_path / "model")
    (tmp_path / "model" / "sha256.json").unlink()
    break_it(tmp_path / "model")
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_failed_save_leaves_the_old_model(tiny, tmp_path, monkeypatch):
    save(tiny(), tmp_path / "model")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ludus.model.exchange.write_json", fail)
    with pytest.raises(Exception, match=r"the disk is full.*previous model is untouched"):
        save(tiny(seed=3), tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").norm.weight, tiny().norm.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
