"""Law 9: at step 0 the loss is ln V, DPO's is ln 2, the policy's ratio is 1 and its KL 0."""

import dataclasses
import math

import pytest
import torch
from law_stages import STAGES, answers, pairs, step
from switches import SWITCHES

from ludus.adapters.lora import lora
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import switched_off
from ludus.base.config.fill import fill
from ludus.data.pairs import stack
from ludus.learning.objectives.logps import frozen_logps
from ludus.learning.objectives.next_token import next_token
from ludus.learning.objectives.policy import clipped_policy
from ludus.learning.objectives.preference import direct_preference
from ludus.learning.reference import reference_logps
from ludus.model.presets import FAMILIES
from ludus.model.settings import ModelSettings, architecture
from ludus.model.transformer import build
from ludus.rollouts.settings import RolloutSettings
from ludus.rollouts.source import Rollouts, WithReference

pytestmark = pytest.mark.law
KINDS = ["plain", "fused", "tied", "lora", "dora", "vera", "nf4", "prefix", "recomputed"]


SIZES = [{}, {"layers": 1, "width": 16, "head_dim": 4}, {"vocabulary": 1000}]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [(stage, changes) for stage in STAGES if "pretrain" in stage or "sft" in stage for changes in SIZES]
    + [("sft packed", changes) for changes in SWITCHES.values()],
)
def test_the_first_loss_of_fresh_weights_is_the_logarithm_of_the_vocabulary(shape, stage: str, changes: dict):
    model = build(shape(**changes), seed=3)
    _, metrics = step(model, next_token, STAGES[stage].batches(model, 4))
    assert metrics["loss"] == pytest.approx(math.log(model.shape.vocabulary), rel=1e-6)


@pytest.mark.parametrize("initial", ["zero", "gpt2"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_tied_or_drawn_head_begins_near_that_loss(shape, switch: str, initial):
    model = build(shape(**SWITCHES[switch] | {"tied": True}), seed=3, initial=initial)
    _, metrics = step(model, next_token, STAGES["pretrain"].batches(model, 4))
    assert metrics["loss"] == pytest.approx(math.log(61), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [2, 6])
def test_every_family_begins_at_that_loss(family: str, depth: int):
    settings = fill(ModelSettings(family=family, depth=depth, width=32, heads=2))
    model = build(architecture(settings, vocabulary=61, context=64), seed=3, initial=settings.initial)
    _, metrics = step(model, next_token, STAGES["pretrain packed"].batches(model, 4))
    exact = not model.shape.tied and settings.initial == "zero"
    assert metrics["loss"] == pytest.approx(math.log(61), rel=1e-6 if exact else 0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", [0.0, 1.0])
def test_the_first_preference_loss_is_the_logarithm_of_two(models, kind: str, likelihood: float):
    model = models[kind]()
    reference = torch.from_numpy(reference_logps(model, pairs(), pad_token=0, size=8))
    batch = dataclasses.replace(stack(pairs(), 0), reference_logps=reference.T.flatten())
    _, metrics = step(model, direct_preference(0.1, likelihood=likelihood), [batch])
    assert metrics["preference_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert metrics["margin"] == pytest.approx(0, abs=1e-6)
    if not likelihood:
        assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("aggregation", ["constant", "token", "sequence"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_of_a_policy_is_one_and_its_divergence_zero(models, kind: str, aggregation):
    model = models[kind]()
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]] * 4
    settings = RolloutSettings(prompts=12, group=3, max_new_tokens=9, aggregation=aggregation)
    source = Rollouts(model, prompts, lambda _, answer: sum(answer.tokens) % 2, settings, stop=5, seed=0, splits=3)
    with_reference = WithReference(source, model)
    batches = [next(with_reference) for _ in range(3)]
    _, metrics = step(model, clipped_policy(low=0.2, high=0.2, kl=0.5), batches)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["gap"] == pytest.approx(0, abs=1e-5)
    assert metrics["clipped"] == 0


def test_an_adapters_reference_is_itself_at_step_0(tiny):
    policy = lora(tiny(), LoraSettings(), seed=0)
    batch = stack(pairs(), 0)
    assert torch.equal(frozen_logps(switched_off(policy), batch), frozen_logps(policy, batch))


def test_a_policy_that_moved_is_no_longer_at_one(models):
    """The law above would mean little if its figures could not move."""
    model = models["plain"]()
    _, metrics = step(model, clipped_policy(low=0.01, high=0.01, kl=0.5), answers("token")(model, 2))
    assert metrics["gap"] > 0.01
    assert metrics["kl"] > 0.01
    assert metrics["clipped"] > 0
