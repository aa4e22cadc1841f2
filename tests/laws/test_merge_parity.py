"""Law 7: every adapter is the identity at step 0, and merged it gives the adapter's logits."""

import functools

import pytest
import torch
from law_stages import STAGES

from ludus.adapters.apply import apply
from ludus.adapters.lora import lora
from ludus.adapters.quantised import Quantised, quantise_model
from ludus.adapters.settings import DoraSettings, Ia3Settings, LohaSettings, LoraSettings, VeraSettings
from ludus.adapters.surgery import adapters, is_adapted, merge, switched_off
from ludus.adapters.whole import whole
from ludus.data.batch import Batch
from ludus.model.transformer import Transformer
from ludus.optim.groups import build as build_optimizer
from ludus.optim.settings import AdamWSettings
from ludus.parallel.recomputation import recompute

pytestmark = pytest.mark.law
ROW = torch.arange(44).view(2, 22)
TARGETS = ["all-linear", ["q_proj", "v_proj"], ["0.mlp.down_proj", "lm_head"]]
OLD = {"norm": "layer", "mlp_bias": True, "activation": "gelu_tanh", "kv_heads": 4}
FAMILIES = {
    "llama": {},
    "tied": {"tied": True},
    "qwen3": {"qk_norm": "rms"},
    "gpt2": {**OLD, "position": "learned", "attention_bias": True, "output_bias": True, "tied": True},
    "gptj": {**OLD, "position": "rope_interleaved", "parallel": True, "head_bias": True, "rotary_dims": 4},
}
KINDS = {
    "lora": LoraSettings(rank=4),
    "rslora": LoraSettings(rank=4, rank_stabilised=True),
    "pissa": LoraSettings(rank=4, initialise="pissa"),
    "dora": DoraSettings(rank=4),
    "vera": VeraSettings(rank=16),
    "loha": LohaSettings(rank=4),
    "ia3": Ia3Settings(),
}
EXACT = ("lora", "rslora", "vera", "loha", "ia3")  # DoRA divides by the lengths that it multiplies with
STARTS = ("sft packed", "dpo", "grpo")


def kind(name: str, targets: str | list[str]):
    """Return the settings of a kind; the layers before which IA3 scales are the same everywhere."""
    inner = {"feedforward": [each for each in targets if "down" in each]} if name == "ia3" and targets else {}
    return KINDS[name].model_copy(update={"targets": targets, **({} if targets == "all-linear" else inner)})


@pytest.fixture(scope="session")
def plain(tiny):
    """Make a plain model of a family: `plain("gpt2")`."""
    return lambda family, **changes: tiny(**{**FAMILIES[family], **changes})


@pytest.fixture(scope="session")
def batch(plain):
    """Return a batch of a stage, made with a plain model of a family."""
    return functools.cache(lambda family, stage: STAGES[stage].batches(plain(family), 4)[1])


def train(model: Transformer, stage: str, batch: Batch, steps: int = 3) -> None:
    """Let a stage move the model."""
    optimizer = build_optimizer(model.named_parameters(), AdamWSettings(learning_rate=0.03))
    for _ in range(steps):
        (STAGES[stage].objective(model, batch)["loss"] / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def judge(model: Transformer, plain: Transformer) -> None:
    """Compare a trained model with what it is merged, and with what it was."""
    before = plain(ROW)
    torch.testing.assert_close(switched_off(model.eval())(ROW), before, rtol=0, atol=0)
    with torch.enable_grad():  # without, an adapter may fold itself
        adapted = model(ROW).detach()
    assert not torch.allclose(adapted, before, atol=1e-3)
    merged = merge(model)
    assert not is_adapted(merged)
    assert not any(isinstance(module, Quantised) for module in merged.modules())
    torch.testing.assert_close(merged(ROW), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["plain", "fused"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_is_the_identity_at_step_0(tiny, name: str, targets, backend: str):
    model = apply(tiny(backend=backend), kind(name, targets), seed=0)
    assert list(adapters(model))
    before, near = tiny(backend=backend)(ROW), 0.0 if name in EXACT else 1e-6
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(ROW), before, rtol=near, atol=10 * near)


@pytest.mark.parametrize("base", ["dense", "nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", KINDS)
def test_every_family_and_base_has_the_identity_and_is_merged(plain, batch, name: str, family: str, base: str):
    made = plain(family) if base == "dense" else quantise_model(plain(family), base)  # type: ignore[arg-type]
    before = made(ROW)
    model = apply(made, KINDS[name], seed=0)
    near = 0.0 if name in EXACT else 1e-6
    torch.testing.assert_close(model(ROW), before, rtol=near, atol=10 * near)
    train(model, "sft", batch(family, "sft"))
    judge(model, plain(family) if base == "dense" else quantise_model(plain(family), base))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", STARTS)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", KINDS)
def test_a_merged_adapter_gives_the_adapters_logits_after_any_stage(plain, batch, name: str, targets, stage: str):
    model = apply(plain("llama"), kind(name, targets), seed=0)
    train(model, stage, batch("llama", stage))
    judge(model, plain("llama"))


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in STARTS])
def test_lora_is_merged_after_every_other_stage_as_well(plain, batch, stage: str):
    model = lora(plain("llama"), LoraSettings(rank=4), seed=0)
    train(model, stage, batch("llama", stage))
    judge(model, plain("llama"))


@pytest.mark.parametrize("also", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "norm"]])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", STARTS)
def test_modules_trained_whole_are_merged(plain, batch, family: str, also: list[str], stage: str):
    model = whole(apply(plain(family), KINDS["lora"], seed=0), also)
    train(model, stage, batch(family, stage))
    judge(model, plain(family))
    assert model.shape.tied == plain(family).shape.tied


@pytest.mark.parametrize("name", ["lora", "dora", "loha"])
@pytest.mark.parametrize("family", ["tied", "gpt2"])
def test_a_head_that_learned_alone_is_a_tensor_of_its_own_once_merged(plain, batch, family: str, name: str):
    model = apply(plain(family), kind(name, ["q_proj", "lm_head"]), seed=0)
    train(model, "sft", batch(family, "sft"))
    judge(model, plain(family))
    assert not model.shape.tied


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_ia3_scales_a_bias_with_its_outputs(plain, family: str):
    model = apply(plain(family), Ia3Settings(targets=["up_proj"], feedforward=[]), seed=0)
    for _, adapter in adapters(model):
        adapter.ia3_l.mul_(3)
    before = plain(family).layers[0].mlp.up_proj.bias
    adapted = model(ROW)
    torch.testing.assert_close(merge(model)(ROW), adapted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.layers[0].mlp.up_proj.bias, 3 * before)


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_merging_knows_nothing_of_other_surgery(plain, name: str):
    model = recompute(apply(plain("llama"), KINDS[name], seed=0))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    adapted = model(ROW)
    torch.testing.assert_close(merge(model)(ROW), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vera", "loha", "ia3"])
def test_in_bfloat16_an_adapter_learns_and_stays_in_float32(plain, batch, name: str):
    model = plain("llama")
    model.precision = torch.bfloat16
    before = model(ROW)
    apply(model, KINDS[name], seed=0)
    assert torch.equal(model(ROW), before)
    train(model, "sft", batch("llama", "sft"))
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    adapted = model(ROW)
    assert not torch.allclose(adapted, before, atol=1e-2)
    torch.testing.assert_close(merge(model)(ROW), adapted, rtol=0.1, atol=0.1)
