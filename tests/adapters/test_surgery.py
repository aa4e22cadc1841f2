import pytest
import torch

from ludus.adapters.apply import apply
from ludus.adapters.lora import Lora, lora
from ludus.adapters.settings import LoraSettings, NoAdapter
from ludus.adapters.surgery import adapters, merge, switched_off
from ludus.base.errors import ConfigError
from ludus.learning.objectives.logps import frozen_logps
from ludus.optim.groups import build as build_optimizer
from ludus.optim.settings import AdamWSettings, MuonSettings
from ludus.parallel.recomputation import recompute

ROW = torch.arange(40).view(2, 20)


def trained(model, settings: LoraSettings, seed: int = 3):
    """Give a model adapters and let them say something."""
    lora(model, settings, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.lora_B.weight.normal_(std=0.3, generator=generator)
    return model


def test_all_linear_is_every_linear_layer_but_the_head(tiny):
    model = lora(tiny(), LoraSettings(), seed=0)
    assert len(list(adapters(model))) == 7 * model.shape.layers
    assert not isinstance(model.lm_head, Lora)


def test_targets_are_the_ends_of_names(tiny):
    model = lora(tiny(), LoraSettings(targets=["q_proj", "1.mlp.up_proj", "lm_head"]), seed=0)
    names = {name for name, _ in adapters(model)}
    assert names == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.up_proj", "lm_head"}


@pytest.mark.parametrize(
    ("target", "says"), [("q_prj", "did you mean q_proj"), ("proj", "known are"), ("", "known are")]
)
def test_a_target_that_is_no_layer_is_refused(tiny, target: str, says: str):
    with pytest.raises(ConfigError, match=says) as caught:
        lora(tiny(), LoraSettings(targets=[target]), seed=0)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_tied_head_under_an_adapter_learns_alone_and_is_no_longer_tied_once_merged(tiny):
    model = trained(tiny(tied=True), LoraSettings(targets=["lm_head"]))
    adapted, embedding = model(ROW), model.embed_tokens.weight.clone()
    merged = merge(model)
    torch.testing.assert_close(merged(ROW), adapted, rtol=1e-5, atol=1e-5)
    assert torch.equal(merged.embed_tokens.weight, embedding)
    assert not merged.shape.tied


def test_a_second_adapter_is_refused(tiny):
    with pytest.raises(ValueError, match="merge"):
        lora(lora(tiny(), LoraSettings(), seed=0), LoraSettings(), seed=0)


def test_only_the_adapters_learn(tiny):
    model = trained(tiny(), LoraSettings(rank=2))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())
    for settings in (AdamWSettings(learning_rate=0.1), MuonSettings()):
        optimizer = build_optimizer(model.named_parameters(), settings)
        model(ROW).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_the_same_seed_draws_the_same_adapter_and_leaves_the_global_generator_alone(tiny):
    before = torch.get_rng_state()
    first, second, other = (dict(adapters(lora(tiny(), LoraSettings(), seed=seed))) for seed in (0, 0, 1))
    name = "layers.0.mlp.up_proj"
    assert torch.equal(first[name].lora_A.weight, second[name].lora_A.weight)
    assert not torch.equal(first[name].lora_A.weight, other[name].lora_A.weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("recomputed", [False, True])
def test_switched_off_is_the_model_before_surgery_and_shares_its_weights(tiny, recomputed: bool):
    plain, model = tiny()(ROW), trained(tiny(), LoraSettings())
    model = (recompute(model) if recomputed else model).train()
    reference = switched_off(model)
    assert torch.equal(reference(ROW), plain)
    assert not torch.allclose(model(ROW), plain, atol=1e-3)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in reference.parameters()} < shared
    reference.eval()
    assert all(module.training for module in model.modules() if not isinstance(module, torch.nn.Linear))


def test_a_reference_stays_what_it_was_while_the_policy_learns(tiny):
    from ludus.data.batch import Batch

    model = trained(tiny(), LoraSettings())
    batch = Batch(ROW, torch.ones(2, 19), 38.0)
    reference = switched_off(model)
    before, policy = frozen_logps(reference, batch), frozen_logps(model, batch)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.lora_A.weight.mul_(2)
    assert torch.equal(frozen_logps(reference, batch), before)
    assert not torch.allclose(frozen_logps(model, batch), policy, atol=1e-3)


def test_a_model_without_adapters_has_no_free_reference(tiny):
    with pytest.raises(ValueError, match="no adapter"):
        switched_off(tiny())


def test_merging_leaves_a_plain_model_that_can_be_trained(tiny):
    model = merge(trained(tiny(tied=True), LoraSettings()))
    assert dict(model.named_parameters()).keys() == dict(tiny(tied=True).named_parameters()).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight is model.embed_tokens.weight


def test_dropout_enters_the_change_alone_and_only_in_training(tiny):
    model, plain = lora(tiny(), LoraSettings(dropout=0.5), seed=0), tiny()(ROW)
    assert torch.equal(model.train()(ROW), plain)  # B is still zero
    model = trained(tiny(), LoraSettings(dropout=0.5))
    assert torch.equal(model.eval()(ROW), model(ROW))
    assert not torch.equal(model.train()(ROW), model(ROW))


def test_settings_choose_the_adapter(tiny):
    assert not list(adapters(apply(tiny(), NoAdapter(), seed=0)))
    assert list(adapters(apply(tiny(), LoraSettings(), seed=0)))
