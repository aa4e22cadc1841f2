import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ludus.model.cost import flops_per_token, num_parameters, parameters, training_bytes
from ludus.model.transformer import Transformer
from ludus.optim.groups import build as build_optimizer
from ludus.optim.settings import AdamWSettings

CHANGES = [{}, {"tied": True}, {"heads": 2, "head_dim": 12}, {"layers": 3, "hidden": 20}]


@pytest.mark.parametrize("changes", CHANGES)
def test_parameters_are_those_of_the_tensors(shape, changes: dict):
    model = Transformer(shape(**changes))
    counted = parameters(model.shape)
    assert sum(counted.values()) == num_parameters(model.shape) == sum(p.numel() for p in model.parameters())
    of_layers = counted["attention"] + counted["feed_forward"] + counted["norms"]
    assert of_layers == sum(p.numel() for p in model.layers.parameters()) + model.norm.weight.numel()


@pytest.mark.oracle
@pytest.mark.parametrize("changes", CHANGES)
def test_operations_are_those_pytorch_counts(tiny, changes: dict):
    model, batch, time = tiny(**changes), 3, 10
    row = torch.zeros(batch, time, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        logits = model(row)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    per_token = [counter.get_total_flops() / (batch * time) for counter in (forward, backward)]
    assert per_token[0] == flops_per_token(model.shape, time, training=False)
    assert sum(per_token) == flops_per_token(model.shape, time)


def test_bytes_are_those_of_a_training_step(tiny):
    model = tiny()
    optimizer = build_optimizer(model.named_parameters(), AdamWSettings())
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    expected = training_bytes(model.shape)
    assert expected["weights"] == sum(p.nbytes for p in model.parameters())
    assert expected["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [tensor for state in optimizer.state_dict().values() for tensor in state.values() if tensor.dim()]
    assert expected["moments"] == sum(tensor.nbytes for tensor in moments)
    assert expected["total"] == sum(size for name, size in expected.items() if name != "total")
