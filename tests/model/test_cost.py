import pytest
import torch
from switches import SWITCHES
from torch.utils.flop_counter import FlopCounterMode

from ludus.model import cost
from ludus.model.architecture import Architecture
from ludus.model.presets import FAMILIES, SIZES
from ludus.model.settings import ModelSettings, architecture
from ludus.model.transformer import Transformer
from ludus.optim.groups import build as build_optimizer
from ludus.optim.settings import AdamWSettings, MuonSettings

CHANGES = [{"tied": True}, {"heads": 2, "head_dim": 12}, {"layers": 3, "hidden": 20}, *SWITCHES.values()]
NAMED = [(family, size) for family, sizes in SIZES.items() for size in sizes]
# As published: GPT-2's and Llama's model cards, SmolLM2's.
PUBLISHED = {
    ("gpt2", "124M"): 124_439_808,
    ("gpt2", "355M"): 354_823_168,
    ("gpt2", "774M"): 774_030_080,
    ("gpt2", "1.5B"): 1_557_611_200,
    ("llama", "135M"): 134_515_008,
    ("llama", "360M"): 361_821_120,
    ("llama", "1B"): 1_235_814_400,
    ("llama", "3B"): 3_212_749_824,
    ("llama", "8B"): 8_030_261_248,
}


def named(family: str, size: str) -> Architecture:
    known = SIZES[family][size]
    settings = ModelSettings(family=family, size=size)
    return architecture(settings, vocabulary=known.vocabulary or 50_257, context=known.context or 1024)


def on_meta(shape: Architecture) -> Transformer:
    with torch.device("meta"):
        return Transformer(shape)


def counted(model: Transformer, ending: str) -> int:
    return sum(value.numel() for name, value in model.named_parameters() if name.endswith(ending))


@pytest.mark.parametrize("changes", CHANGES)
def test_parameters_are_those_of_the_tensors(shape, changes: dict):
    model = on_meta(shape(**changes))
    parts = cost.parameters(model.shape)
    assert sum(parts.values()) == cost.num_parameters(model.shape) == sum(p.numel() for p in model.parameters())
    assert parts["convolutions"] == counted(model, "convolution.weight")
    assert parts["skips"] == counted(model, "skip")
    assert parts["norms"] == sum(counted(model, f"norm.{kind}") for kind in ("weight", "bias"))


@pytest.mark.parametrize(("family", "size"), NAMED)
def test_every_named_size_has_the_parameters_of_its_tensors(family: str, size: str):
    shape = named(family, size)
    assert cost.num_parameters(shape) == sum(p.numel() for p in on_meta(shape).parameters())


@pytest.mark.oracle
@pytest.mark.parametrize(("family", "size"), PUBLISHED)
def test_named_sizes_are_those_published(family: str, size: str):
    assert cost.num_parameters(named(family, size)) == PUBLISHED[family, size]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [1, 4, 13])
def test_every_family_has_the_parameters_of_its_tensors_at_every_depth(family: str, depth: int):
    shape = architecture(ModelSettings(family=family, depth=depth), vocabulary=1000, context=64)
    assert cost.num_parameters(shape) == sum(p.numel() for p in on_meta(shape).parameters())


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
    elementwise = cost.flops_by_part(model.shape, time)["convolutions"]  # which the counter does not see
    assert per_token[0] + elementwise == cost.flops_per_token(model.shape, time, training=False)
    assert sum(per_token) + 3 * elementwise == cost.flops_per_token(model.shape, time)


@pytest.mark.parametrize("window", [None, 1, 4, 10, 30])
def test_pairs_seen_are_those_of_the_mask(shape, window: int | None):
    from ludus.model.sight import Sight

    model = shape(layers=1, windows=(window,))
    mask = Sight(model, torch.zeros(1, 10, dtype=torch.long)).mask("dense", window, torch.float32)
    everything = cost.flops_by_part(model, 10)["scores"]
    assert cost.flops_by_part(model, 10, seen=True)["scores"] == pytest.approx(
        everything * float(mask.isfinite().float().mean())
    )


def test_of_a_mixture_the_idle_experts_cost_memory_but_no_operations(shape):
    small, large = (shape(**SWITCHES["mixture"] | {"experts": experts(count)}) for count in (4, 40))
    assert cost.num_parameters(large) > 3 * cost.num_parameters(small)
    router = 36 * 2 * 2 * small.width
    assert cost.flops_per_token(large, 8, training=False) - cost.flops_per_token(small, 8, training=False) == router
    assert cost.active_parameters(large) - cost.active_parameters(small) == router // 2
    assert cost.active_parameters(shape()) == cost.num_parameters(shape())


def experts(count: int):
    from ludus.model.architecture import Experts

    return Experts(count, 2, 0, 12)


@pytest.mark.parametrize("settings", [AdamWSettings(), MuonSettings()], ids=["adamw", "muon"])
@pytest.mark.parametrize("changes", [{}, SWITCHES["gpt2"], SWITCHES["modern"], SWITCHES["mixture"]])
def test_bytes_are_those_of_a_training_step(tiny, changes: dict, settings):
    model = tiny(**changes).train()
    optimizer = build_optimizer(model.named_parameters(), settings)
    model(torch.arange(48).view(1, 48) % 61).sum().backward()
    optimizer.step()
    expected = cost.training_bytes(model.shape, settings.kind)
    assert expected["weights"] == sum(p.nbytes for p in model.parameters())
    assert expected["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [tensor for state in optimizer.state_dict().values() for tensor in state.values() if tensor.dim()]
    assert expected["moments"] == sum(tensor.nbytes for tensor in moments)
    assert expected["total"] == sum(size for name, size in expected.items() if name != "total")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_keeps_so_many_bytes_for_a_token(shape, dtype: torch.dtype):
    from ludus.generation.cache import KVCache

    cache = KVCache(shape(), torch.zeros(3, dtype=torch.long), 7, dtype)
    per_token = cost.cache_bytes_per_token(shape(), dtype.itemsize)
    assert cache.keys.nbytes + cache.values.nbytes == 3 * 7 * per_token
