"""Law 7: every adapter is the identity at step 0, and merged it gives the adapter's logits."""

import pytest
import torch
from law_stages import STAGES

from ludus.adapters.lora import lora
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import adapters, merge
from ludus.data.batch import Batch
from ludus.optim.groups import build as build_optimizer
from ludus.optim.settings import AdamWSettings
from ludus.parallel.recomputation import recompute

pytestmark = pytest.mark.law
ROW = torch.arange(44).view(2, 22)
TARGETS = ["all-linear", ["q_proj", "v_proj"], ["0.mlp.down_proj", "lm_head"]]


def train(model, stage: str, steps: int = 3) -> None:
    """Let a stage move the model."""
    optimizer = build_optimizer(model.named_parameters(), AdamWSettings(learning_rate=0.03))
    batch: Batch = STAGES[stage].batches(model, 4)[1]
    for _ in range(steps):
        (STAGES[stage].objective(model, batch)["loss"] / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("backend", ["plain", "fused"])
@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_is_the_identity_at_step_0(tiny, targets, backend: str):
    model = lora(tiny(backend=backend), LoraSettings(targets=targets, dropout=0.3), seed=0)
    assert list(adapters(model))
    for mode in (False, True):
        assert torch.equal(model.train(mode)(ROW), tiny(backend=backend)(ROW))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("targets", TARGETS)
def test_a_merged_adapter_gives_the_adapters_logits_after_any_stage(tiny, targets, stage: str):
    model = lora(tiny(), LoraSettings(targets=targets, rank=4), seed=0)
    train(model, stage)
    with torch.no_grad():
        adapted = model.eval()(ROW)
        assert not torch.allclose(adapted, tiny()(ROW), atol=1e-3)
        merged = merge(model)
        assert not list(adapters(merged))
        torch.testing.assert_close(merged(ROW), adapted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_merging_knows_nothing_of_other_surgery(models):
    model = recompute(models["lora"]())
    adapted = model(ROW)
    torch.testing.assert_close(merge(model)(ROW), adapted, rtol=1e-5, atol=1e-5)
