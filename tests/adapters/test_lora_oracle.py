"""LoRA, rsLoRA and DoRA beside PEFT's: the same logits and the same gradients."""

import pytest
import torch

from ludus.adapters.dora import dora
from ludus.adapters.lora import lora
from ludus.adapters.settings import DoraSettings, LoraSettings
from ludus.adapters.surgery import adapters
from ludus.model import exchange, feedforward

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks transformers
]
KINDS = {
    "lora": (lora, LoraSettings(rank=5, alpha=7.0), {}),
    "rslora": (lora, LoraSettings(rank=5, alpha=7.0, rank_stabilised=True), {"use_rslora": True}),
    "dora": (dora, DoraSettings(rank=5, alpha=7.0), {"use_dora": True}),
}


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("time", [4, 96])  # few tokens and many: the two ways to multiply
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_peft(tiny, tmp_path, monkeypatch, kind: str, time: int, lean: bool):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    monkeypatch.setattr(feedforward, "WORTH_REPEATING", 1 if lean else 1 << 40)
    put, settings, changes = KINDS[kind]
    exchange.save(tiny(context=128), tmp_path / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=5, lora_alpha=7, target_modules="all-linear", **changes)
    theirs = peft.get_peft_model(base, config).train()
    model = put(tiny(context=128), settings, seed=0).train()
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    with torch.no_grad():
        for name, adapter in adapters(model):
            other = theirs.get_submodule(f"base_model.model.model.{name}")
            twins = {"lora_A.weight": other.lora_A["default"].weight, "lora_B.weight": other.lora_B["default"].weight}
            if kind == "dora":
                twins["lora_magnitude_vector"] = other.lora_magnitude_vector["default"].weight
            for attribute, twin in twins.items():
                own = adapter.get_parameter(attribute)
                own.add_(torch.randn(own.shape, generator=generator), alpha=0.2)
                twin.copy_(own)
                pairs[f"{name}.{attribute}"] = own, twin
    # In float64, so that what is left are norms and angles, which transformers works out in float32 all the same.
    model, theirs = model.double(), theirs.double()
    tokens = torch.randint(61, (1, time), generator=generator)
    slopes = torch.randn((1, time, 61), generator=generator)
    ours, expected = model(tokens), theirs(tokens).logits.float()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=5e-6)
    (ours * slopes).sum().backward()
    (expected * slopes).sum().backward()
    for name, (own, twin) in pairs.items():
        scale = float(twin.grad.abs().max())
        assert float((own.grad - twin.grad).abs().max()) < 1e-5 * scale, name
    assert {name for name, each in model.named_parameters() if each.grad is not None} == pairs.keys()
