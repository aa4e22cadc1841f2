"""Every kind of adapter under every objective: what can learn does, in the right sums, and can be looked past."""

import dataclasses
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from law_stages import STAGES, distance, documents, one_a_row, packed, step
from test_batch_split import EXACT, apart

from ludus.adapters import surgery
from ludus.adapters.apply import apply
from ludus.adapters.quantised import quantise_model
from ludus.adapters.settings import (
    AnyAdapter,
    DoraSettings,
    Ia3Settings,
    LohaSettings,
    LoraPlusSettings,
    LoraSettings,
    NoAdapter,
    PrefixSettings,
    PromptSettings,
    VeraSettings,
)
from ludus.learning.objectives.next_token import next_token
from ludus.model.transformer import Transformer
from ludus.parallel.recomputation import recompute

pytestmark = pytest.mark.law
KINDS: dict[str, AnyAdapter] = {
    "full": NoAdapter(kind="full"),
    "lora": LoraSettings(rank=4),
    "lora+": LoraPlusSettings(rank=4),
    "dora": DoraSettings(rank=4),
    "vera": VeraSettings(rank=8),
    "loha": LohaSettings(rank=3),
    "ia3": Ia3Settings(),
    "prefix": PrefixSettings(tokens=4),
    "projected prefix": PrefixSettings(tokens=4, projection=8),
    "prompt": PromptSettings(tokens=4),
}
QUANTISED = ("lora", "dora", "prefix", "prompt")
LEARNED_FROM = ["sft packed", "dpo", "grpo"]


@pytest.fixture(params=[*KINDS, *(f"{kind} on nf4" for kind in QUANTISED)])
def make(request, tiny: Callable) -> Callable[[], Transformer]:
    kind, _, quantised = request.param.partition(" on ")

    def made() -> Transformer:
        model = quantise_model(tiny(), quantised) if quantised else tiny()
        return moved(apply(model, KINDS[kind], seed=0))

    return made


def moved(model: Transformer) -> Transformer:
    """Move all that learns away from where it starts, where half of a low-rank change has no gradient."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def trainable(model: Transformer) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def test_every_kind_is_here():
    assert {type(settings) for settings in KINDS.values()} == set(get_args(AnyAdapter))


@pytest.mark.parametrize("stage", LEARNED_FROM)
def test_all_that_can_learn_does_and_splitting_a_batch_changes_no_gradient(make, tiny, stage: str):
    model, objective, batches = make(), STAGES[stage].objective, STAGES[stage].batches
    whole, metrics = step(model, objective, batches(tiny(), 1))
    assert whole.keys() == trainable(model).keys()
    for name, gradient in whole.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    parts, again = step(model, objective, batches(tiny(), 8))
    assert distance(parts, whole) < EXACT
    assert again == pytest.approx(metrics, rel=1e-5, abs=1e-5)


def test_neither_packing_nor_recomputation_changes_the_gradient(make):
    model = make()
    padded, _ = step(model, next_token, one_a_row(documents(), 1))
    assert distance(step(model, next_token, packed(documents(), 4))[0], padded) < EXACT
    assert distance(step(recompute(model), next_token, packed(documents(), 4))[0], padded) < EXACT


def test_a_prompt_computed_once_for_its_answers_gives_the_gradient_of_each_alone(make, tiny):
    model, together = make(), STAGES["grpo"].batches(tiny(), 1)[0]
    assert together.shared
    expected, _ = step(model, STAGES["grpo"].objective, [apart(together)])
    # The advantages of a group sum to zero, so most of the gradient cancels and rounding weighs more.
    assert distance(step(model, STAGES["grpo"].objective, [together])[0], expected) < 3 * EXACT


def test_mixed_precision_gives_finite_gradients_in_the_weights_own(make):
    model = make()
    model.precision = torch.bfloat16
    found, _ = step(model, next_token, packed(documents(), 1))
    assert found.keys() == trainable(model).keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name


@torch.no_grad()
def test_what_is_switched_off_is_the_base(make, tiny, request):
    name = request.node.callspec.params["make"]
    if name == "full":
        pytest.skip("all weights are trained: the reference is a copy")
    base = quantise_model(tiny(), "nf4") if name.endswith("nf4") else tiny()
    model, batch = make(), packed(documents(), 1)[0]
    view = surgery.switched_off(model).eval()
    assert torch.equal(view(batch.tokens, documents=batch.documents), base(batch.tokens, documents=batch.documents))
    shared = dataclasses.replace(STAGES["grpo"].batches(tiny(), 1)[0])
    where = {"documents": shared.documents, "shared": True}
    assert torch.equal(view(shared.tokens, **where), base(shared.tokens, **where))
    assert not torch.allclose(model.eval()(shared.tokens, **where), view(shared.tokens, **where), atol=1e-3)
