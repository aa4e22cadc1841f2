import copy

import pytest
import torch

from ludus.parallel.recomputation import recompute

ROW = torch.arange(40).view(2, 20)


def gradients(model) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model.train()(ROW).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("backend", ["plain", "fused"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_identical_dropout_included(tiny, every: int, dropout: float, backend: str):
    kept = gradients(tiny(dropout=dropout, backend=backend))
    again = gradients(recompute(tiny(dropout=dropout, backend=backend), every))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_layers_run_twice_in_training_only(tiny):
    model, calls = tiny(), []
    for layer in model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    recompute(model, every=2)
    gradients(model)
    assert len(calls) == 3  # the first of two layers twice
    calls.clear()
    model.eval()(ROW).sum().backward()
    assert len(calls) == 2


def test_names_and_logits_stay_and_a_copy_stands_alone(tiny):
    model = recompute(tiny())
    assert dict(model.named_parameters()).keys() == dict(tiny().named_parameters()).keys()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[0].mlp.down_proj.weight.zero_()
    assert torch.equal(model.train()(ROW), tiny()(ROW))
    assert not torch.equal(other.train()(ROW), tiny()(ROW))
