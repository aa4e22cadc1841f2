import json

import pytest
import torch
from safetensors.torch import load_file

from ludus.adapters.files import load, save
from ludus.adapters.lora import lora
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import adapters
from ludus.base.errors import CheckpointError
from ludus.model import exchange

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers

ROW = torch.arange(40).view(2, 20)
KINDS = [
    LoraSettings(),
    LoraSettings(rank=3, alpha=4.5, dropout=0.1),
    LoraSettings(targets=["q_proj", "1.mlp.down_proj"]),
    LoraSettings(targets=["v_proj", "lm_head"]),
]


def trained(model, settings: LoraSettings):
    lora(model, settings, seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.lora_B.weight.normal_(std=0.3, generator=generator)
    return model


@pytest.mark.law
@pytest.mark.parametrize("settings", KINDS)
def test_a_saved_adapter_comes_back_bit_for_bit(tiny, tmp_path, settings: LoraSettings):
    model = trained(tiny(), settings)
    save(model, tmp_path / "adapter", base="runs/first/pretrain/model")
    again = load(tiny(), tmp_path / "adapter")
    assert torch.equal(again(ROW), model(ROW))
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    one, other = (next(adapters(each))[1] for each in (model, again))
    assert (one.scale, one.dropout.p) == (other.scale, other.dropout.p)


@pytest.mark.law
@pytest.mark.oracle
@pytest.mark.parametrize("settings", KINDS)
def test_peft_loads_our_adapter_and_computes_the_same(tiny, tmp_path, settings: LoraSettings):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    exchange.save(tiny(), tmp_path / "model")
    model = trained(tiny(), settings)
    save(model, tmp_path / "adapter", base=str(tmp_path / "model"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = base(ROW).logits.detach()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ROW).logits, model(ROW), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, model(ROW), atol=1e-2)
    names = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False).keys()
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == names


@pytest.mark.law
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["v_proj", "lm_head"]])
def test_an_adapter_peft_saved_computes_the_same_here(tiny, tmp_path, targets):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    exchange.save(tiny(), tmp_path / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=5, lora_alpha=7, target_modules=targets, lora_dropout=0.2)
    theirs = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load(exchange.load(tmp_path / "model"), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(ROW), theirs(ROW).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "ADALORA"}, "of kind ADALORA"),
        ({"use_dora": True}, "lacks .*lora_magnitude_vector"),
        ({"bias": "all", "lora_bias": True}, "bias=all, lora_bias=True"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"rank_pattern": {"q_proj": 4}}, r"q_proj.lora_A.weight of shape \(8, 32\), this model needs \(4, 32\)"),
        ({"modules_to_save": ["lm_head"]}, "lacks .*lm_head"),
        ({"modules_to_save": ["score"]}, "modules_to_save=score"),
        ({"target_modules": ".*q_proj"}, "holds, and the model has no place for"),
        ({"target_modules": ["q_proj"]}, "holds, and the model has no place for"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "adapts embed_tokens, no linear layer"),
        ({"target_modules": "*("}, "cannot be used"),
        ({"target_modules": None}, "names no target_modules"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"rank_pattern": [4]}, "cannot be used"),
        ({"r": 4}, r"of shape \(8, 32\), this model needs \(4, 32\)"),
        ({"r": "eight"}, "valid integer"),
    ],
)
def test_an_adapter_ludus_cannot_compute_is_refused_by_name(tiny, tmp_path, changes: dict, says: str):
    save(trained(tiny(), LoraSettings()), tmp_path / "adapter")
    (tmp_path / "adapter" / "sha256.json").unlink()
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tiny(), tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_old_config_that_says_only_the_least_is_enough(tiny, tmp_path):
    model = trained(tiny(), LoraSettings(rank=4, alpha=8))
    save(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "sha256.json").unlink()
    (tmp_path / "adapter" / "ludus.json").unlink()
    path = tmp_path / "adapter" / "adapter_config.json"
    least = {key: json.loads(path.read_text())[key] for key in ("peft_type", "r", "target_modules")}
    path.write_text(json.dumps(least | {"lora_alpha": 8}))
    assert torch.equal(load(tiny(), tmp_path / "adapter")(ROW), model(ROW))


def test_an_adapter_of_another_model_is_refused(tiny, tmp_path):
    save(trained(tiny(), LoraSettings()), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"needs|lacks|no linear layer"):
        load(tiny(width=16), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no place for"):
        load(tiny(layers=1), tmp_path / "adapter")


def test_a_flipped_bit_is_noticed(tiny, tmp_path):
    save(trained(tiny(), LoraSettings()), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 16
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is damaged"):
        load(tiny(), tmp_path / "adapter")


def test_a_folder_without_an_adapter_is_refused(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load(tiny(), tmp_path)


def test_a_model_without_an_adapter_has_nothing_to_save_and_one_with_is_no_plain_model(tiny, tmp_path):
    with pytest.raises(ValueError, match="no adapter to save"):
        save(tiny(), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="merge its adapter first"):
        exchange.save(trained(tiny(), LoraSettings()), tmp_path / "model")
