"""The fast way to multiply a layer with a low-rank change gives what the formula gives, and keeps and computes less."""

import pytest
import torch
from torch import nn

from ludus.adapters.dora import Dora, dora
from ludus.adapters.initialise import pissa
from ludus.adapters.lora import Lora, lora
from ludus.adapters.quantised import quantise, quantise_model
from ludus.adapters.settings import DoraSettings, LoraSettings
from ludus.adapters.surgery import adapters, merge
from ludus.data.batch import Batch
from ludus.generation.lean import lean
from ludus.learning.objectives.next_token import next_token
from ludus.model import feedforward
from ludus.model.presets import FAMILIES
from ludus.parallel.recomputation import recompute

KINDS = {"lora": (Lora, LoraSettings), "dora": (Dora, DoraSettings)}
FEW, MANY = 3, 64  # tokens: with so few of them the change stays apart, with so many it is added to the weights
GPT2 = {
    name: FAMILIES["gpt2"][name] for name in ("activation", "norm", "position", "mlp_bias") if name in FAMILIES["gpt2"]
}


def adapter(kind: str, base: nn.Module, *, start: bool = False, **settings: object) -> Lora:
    """Make an adapter that says something."""
    make, configured = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    found = make(base.requires_grad_(False), configured(rank=3, alpha=4.5, **settings), generator)
    with torch.no_grad():
        if start:
            found.begin(torch.randn(3, 12, generator=generator), torch.randn(20, 3, generator=generator), counted=True)
        found.lora_A.weight.add_(torch.randn(3, 12, generator=generator), alpha=0.3)
        found.lora_B.weight.add_(torch.randn(20, 3, generator=generator), alpha=0.3)
        if kind == "dora":
            found.lora_magnitude_vector.mul_(torch.rand(20, generator=generator) + 0.5)
    return found


def learned_by(made: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in made.parameters() if parameter.requires_grad]


def layer(kind: str = "plain", dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    made = nn.Linear(12, 20, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return made.to(dtype) if kind == "plain" else quantise(made, kind)


def outcome(compute, x: torch.Tensor, learned) -> list[torch.Tensor]:
    """Return what comes out, and the gradients of what comes in and of what is learned."""
    x = x.detach().clone().requires_grad_()
    out = compute(x)
    slopes = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x, *learned], slopes)]


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("base", ["plain", "bias", "nf4", "int8"])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_formula(kind: str, base: str, start: bool, tokens: int):
    under = layer(bias=base == "bias") if base in ("plain", "bias") else layer(base)
    made, x = adapter(kind, under, start=start), torch.randn(2, tokens, 12)
    product = made.product()
    assert product is not None
    assert product.folds(x) == (tokens == MANY)
    learned = learned_by(made)
    fast, slow = (outcome(compute, x, learned) for compute in (made, made.spelled_out))
    for left, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("start", [False, True])
def test_gradients_of_lora_are_those_of_finite_differences(start: bool, tokens: int):
    made = adapter("lora", layer(dtype=torch.float64), start=start).double()
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    product = made.product()
    assert product is not None
    A, B = (each.detach()[:, :] for each in product.learned)
    from ludus.adapters.lowrank import _Product

    inputs = (x, A.clone().requires_grad_(), B.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, A, B: _Product.apply(product, x, A, B), inputs, fast_mode=True)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_gradients_of_dora_are_those_of_the_formula_to_the_last_digits_of_float64(tokens: int):
    made = adapter("dora", layer(dtype=torch.float64), start=True).double()
    x = torch.randn(1, tokens, 12, dtype=torch.float64)
    fast, slow = (outcome(compute, x, learned_by(made)) for compute in (made, made.spelled_out))
    for left, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_too_small_for_bfloat16_weights_is_not_lost(kind: str):
    made = adapter(kind, layer(dtype=torch.bfloat16, bias=False))
    with torch.no_grad():
        made.lora_B.weight.mul_(1e-4)
        if kind == "dora":
            made.lora_magnitude_vector.copy_(made.norms())
    x = torch.randn(256, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = made.product()
        assert product is not None
        assert not product.folds(x.bfloat16())
        out = outcome(lambda x: made(x) - made.base(x), x, learned_by(made))
        slow = outcome(lambda x: made.spelled_out(x) - made.base(x), x, learned_by(made))
    for left, right in zip(out[2:], slow[2:], strict=True):
        torch.testing.assert_close(left, right, rtol=3e-2, atol=3e-2 * float(right.abs().max()))
    rounded = (made.merged().bfloat16() != made.base.weight).float().mean()  # type: ignore[operator]
    assert rounded < 0.3, "the change is not small enough for this test to mean anything"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [FEW, 128])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_formula(kind: str, tokens: int):
    torch.manual_seed(5)
    made, x = adapter(kind, layer()), torch.randn(2, tokens, 12)
    truth = outcome(made.spelled_out, x, learned_by(made))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast, slow = (outcome(compute, x, learned_by(made)) for compute in (made, made.spelled_out))
    for exact, left, right in zip(truth, fast, slow, strict=True):
        scale = float(exact.abs().max())
        assert float((left - exact).abs().max()) <= 1.5 * float((right - exact).abs().max()) + 0.004 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_and_surgery_on_its_parts_take_the_formula(kind: str):
    made = adapter(kind, layer(), dropout=0.5)
    assert made.train().product() is None
    assert made.eval().product() is not None
    x = torch.randn(4, MANY, 12)
    made.train()
    torch.manual_seed(0)
    dropped = made.dropout(x)
    torch.manual_seed(0)
    with torch.no_grad():
        out = made(x)
        if kind == "lora":
            expected = made.base(x) + dropped @ (made.lora_B.weight @ made.lora_A.weight).T * 1.5
        else:  # as PEFT: what is dropped is dropped for the frozen weight's second term as well
            weight = made.base.weight + made.lora_B.weight @ made.lora_A.weight * 1.5
            scales = made.lora_magnitude_vector / weight.norm(dim=1)
            frozen = dropped @ made.base.weight.T
            expected = made.base(x) - frozen + scales * (dropped @ weight.T)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    made.eval().base.forward = made.base.forward  # what float8 does
    assert made.product() is None


@pytest.fixture
def batch() -> Batch:
    tokens = torch.randint(61, (8, 33), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, torch.ones(8, 32), 256.0)


def gradients(model, batch: Batch) -> dict[str, torch.Tensor]:
    next_token(model, batch)["loss"].backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def adapted(model, kind: str, **settings: object):
    """Give a model adapters that say something."""
    put = {"lora": lora, "dora": dora}[kind]
    put(model, KINDS[kind][1](rank=4, **settings), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, each in adapters(model):
            each.lora_B.weight.add_(torch.randn(each.lora_B.weight.shape, generator=generator), alpha=0.2)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", ["up_proj", "q_proj"], ["down_proj"]])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lean_feed_forward_takes_adapters(tiny, batch, monkeypatch, kind: str, targets, family: str):
    switches = GPT2 if family == "gpt2" else {}
    made = {}
    for name, least in (("lean", 1), ("whole", 1 << 40)):
        monkeypatch.setattr(feedforward, "WORTH_REPEATING", least)
        model = adapted(tiny(**switches), kind, targets=targets)
        made[name] = gradients(model.train(), batch)
    assert made["lean"].keys() == made["whole"].keys()
    for name, left in made["lean"].items():
        torch.testing.assert_close(left, made["whole"][name], rtol=1e-4, atol=1e-4)
    assert all("lora_" in name for name in made["lean"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("under", ["plain", "nf4"])
def test_whole_models_give_the_gradients_of_the_formula(tiny, batch, monkeypatch, kind: str, under: str):
    monkeypatch.setattr(feedforward, "WORTH_REPEATING", 1)
    model = tiny() if under == "plain" else quantise_model(tiny(), "nf4")
    model = adapted(model, kind).train()
    fast = gradients(model, batch)
    recomputed = gradients(recompute(model), batch)
    monkeypatch.setattr(Lora, "product", lambda self: None)
    slow = gradients(model, batch)
    for name, left in fast.items():
        torch.testing.assert_close(left, slow[name], rtol=1e-4, atol=1e-5 * float(left.abs().max()))
        assert torch.equal(left, recomputed[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_step_keeps_less_than_the_formula(tiny, batch, monkeypatch, kind: str, precision: torch.dtype):
    monkeypatch.setattr(feedforward, "WORTH_REPEATING", 1)
    model = adapted(tiny(), kind).train()
    model.precision = precision
    known = {parameter.data_ptr() for parameter in model.parameters()}

    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = next_token(model, batch)["loss"]
        del loss
        return sum(sizes.values())

    fast = kept()
    monkeypatch.setattr(Lora, "product", lambda self: None)
    assert fast < (0.8 if precision == torch.float32 else 0.9) * kept()


def test_frozen_weights_cost_no_gradients(tiny, batch):
    """One product forward and one back, where training all weights takes two back; the head's among them."""
    from torch.utils.flop_counter import FlopCounterMode

    def products(model) -> int:
        with FlopCounterMode(display=False) as counter:
            next_token(model, batch)["loss"].backward()
        return counter.get_total_flops()

    plain, model = (
        tiny(width=64, hidden=96).train(),
        lora(tiny(width=64, hidden=96).train(), LoraSettings(rank=1), seed=0),
    )
    matrices = sum(
        weight.numel() for name, weight in plain.named_parameters() if weight.dim() == 2 and "embed" not in name
    )
    inward = sum(
        weight.numel() for name, weight in plain.named_parameters() if "0.self_attn" in name and "o_proj" not in name
    )
    saved = 2 * 256 * (matrices + inward)  # every weight's gradient, and that of what the first layer's heads hear
    changes = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert products(model) <= products(plain) - saved + 2 * 256 * 2 * changes + 2 * 2 * 2 * matrices
    assert not model.embed_tokens.weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_to_draw_tokens_with_computes_the_same(tiny, kind: str):
    model = adapted(tiny(), kind)
    model.precision = torch.bfloat16
    row = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(lean(model)(row), model(row), rtol=0.03, atol=0.06)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("under", ["bfloat16", "nf4"])
def test_what_learns_is_float32_over_any_base(tiny, batch, kind: str, under: str):
    model = tiny().bfloat16() if under == "bfloat16" else quantise_model(tiny(), "nf4")
    model = adapted(model, kind).train()
    model.precision = torch.bfloat16
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in learned.values()} == {torch.float32}
    assert gradients(model, batch).keys() == learned.keys()
    model.eval()
    row = torch.arange(40).view(2, 20)
    with torch.no_grad():
        before = model(row)
        assert float((merge(model, torch.float32)(row) - before).abs().mean()) < 0.03 * float(before.std())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_moments_are_what_the_adapter_has_parameters_times_three(tiny, batch, kind: str):
    from ludus.optim.groups import build
    from ludus.optim.settings import AdamWSettings

    model = adapted(tiny(), kind).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build(model.named_parameters(), AdamWSettings())
    next_token(model, batch)["loss"].backward()
    held = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    optimizer.step()
    held += sum(
        value.nbytes for state in optimizer.state_dict().values() for name, value in state.items() if name != "step"
    )
    assert held == 3 * 4 * sum(parameter.numel() for parameter in learned)


def test_pissa_costs_no_identity(tiny):
    model, row = tiny(), torch.arange(40).view(2, 20)
    before = model(row)
    pissa(lora(model, LoraSettings(rank=4), seed=0))
    torch.testing.assert_close(model(row), before, rtol=1e-5, atol=1e-5)
