"""VeRA, LoHa and IA3: what each is made of, beside what the laws say of all."""

import copy

import pytest
import torch

from ludus.adapters.apply import apply
from ludus.adapters.ia3 import ia3
from ludus.adapters.loha import loha
from ludus.adapters.quantised import quantise_model
from ludus.adapters.settings import DoraSettings, Ia3Settings, LohaSettings, LoraSettings, VeraSettings
from ludus.adapters.surgery import adapters
from ludus.adapters.vera import Projection, draw, vera
from ludus.adapters.whole import whole
from ludus.base.errors import ConfigError
from ludus.generation.lean import lean
from ludus.optim.groups import role

ROW = torch.arange(40).view(2, 20)
OLD = {"norm": "layer", "mlp_bias": True, "activation": "gelu_tanh", "kv_heads": 4}
GPT2 = {**OLD, "position": "learned", "attention_bias": True, "output_bias": True, "tied": True}
KINDS = {
    "lora": LoraSettings(rank=2),
    "dora": DoraSettings(rank=2),
    "vera": VeraSettings(rank=4),
    "loha": LohaSettings(rank=2),
    "ia3": Ia3Settings(),
}


def moved(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def test_all_layers_share_one_pair_of_random_matrices_that_is_drawn_from_its_own_seed(tiny):
    model = vera(tiny(), VeraSettings(rank=4, projection_seed=3), seed=0)
    pairs = {id(module): module for module in model.modules() if isinstance(module, Projection)}
    (pair,) = pairs.values()
    assert (pair.A.shape, pair.B.shape) == ((4, 48), (48, 4))
    assert torch.equal(pair.A, draw(48, 48, 4, 3).A)
    assert not any("projection" in name for name in model.state_dict())
    assert {id(m) for m in copy.deepcopy(model).modules() if isinstance(m, Projection)} != pairs.keys()


@pytest.mark.oracle
def test_the_matrices_are_those_of_peft(tiny):
    init = pytest.importorskip("peft.tuners.vera.model")._kaiming_init
    pair, generator = draw(48, 32, 6, 5), torch.Generator().manual_seed(5)
    assert torch.equal(pair.A, init((6, 32), generator))
    assert torch.equal(pair.B, init((48, 6), generator))


def test_the_rank_of_a_hadamard_product_exceeds_that_of_its_factors(tiny):
    model = moved(loha(tiny(), LohaSettings(rank=3, targets=["q_proj"]), seed=0))
    _, adapter = next(adapters(model))
    assert torch.linalg.matrix_rank(adapter.merged() - adapter.base.weight) == 9


def test_the_gradient_of_a_product_entry_by_entry_is_that_of_its_formula(tiny):
    model = moved(loha(tiny(), LohaSettings(rank=3, targets=["q_proj"]), seed=0))
    _, adapter = next(adapters(model))
    x, factors = torch.randn(5, 32), [p for p in adapter.parameters() if p.requires_grad]
    ours = torch.autograd.grad(adapter(x).square().sum(), factors)
    weight = adapter.base.weight + adapter.scale * (factors[0] @ factors[1]) * (factors[2] @ factors[3])
    theirs = torch.autograd.grad((x @ weight.T).square().sum(), factors)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_factors_and_vectors_are_never_decayed(tiny):
    for make, settings in ((ia3, Ia3Settings()), (vera, VeraSettings(rank=4))):
        model = make(tiny(), settings, seed=0)
        assert {role(name, each) for name, each in model.named_parameters() if each.requires_grad} == {"scalar"}


def test_a_feedforward_layer_that_is_no_target_is_refused(tiny):
    with pytest.raises(ConfigError, match="up_proj, which is none of"):
        ia3(tiny(), Ia3Settings(targets=["v_proj"], feedforward=["up_proj"]))


def test_part_of_a_matrix_cannot_have_its_inputs_scaled_alone(tiny):
    with pytest.raises(ConfigError, match="can only be scaled together"):
        ia3(tiny(**GPT2), Ia3Settings(targets=["q_proj", "v_proj"], feedforward=["q_proj"]))
    every = ["q_proj", "k_proj", "v_proj"]
    model = ia3(tiny(**GPT2), Ia3Settings(targets=every, feedforward=every))
    assert model.layers[0].self_attn.q_proj.ia3_l is model.layers[0].self_attn.k_proj.ia3_l


def test_layers_of_one_matrix_on_disk_share_what_does_not_run_over_its_rows(tiny):
    for settings, shared in ((LoraSettings(rank=2), "lora_A.weight"), (LohaSettings(rank=2), "hada_w1_b")):
        model = apply(tiny(**GPT2), settings, seed=0)
        attention = model.layers[0].self_attn
        first = attention.q_proj.get_parameter(shared)
        assert attention.v_proj.get_parameter(shared) is first is not attention.o_proj.get_parameter(shared)
    model = apply(tiny(**GPT2), VeraSettings(rank=2), seed=0)
    assert [getattr(model.layers[0].self_attn, name).row for name in ("q_proj", "k_proj", "v_proj")] == [0, 32, 64]


@torch.no_grad()
@pytest.mark.parametrize("base", ["dense", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lean_copy_and_a_deep_one_compute_the_same(tiny, kind: str, base: str):
    model = tiny() if base == "dense" else quantise_model(tiny(), "nf4")
    moved(whole(apply(model, KINDS[kind], seed=0), ["lm_head", "embed_tokens", "norm"]))
    model.precision = torch.bfloat16
    near = 0.05 if kind == "dora" else 0.0  # its lengths are those of the rounded weights then
    torch.testing.assert_close(lean(model)(ROW), model(ROW), rtol=near, atol=near)
    assert torch.equal(copy.deepcopy(model)(ROW), model(ROW))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_bfloat16_are_adapted_in_float32_and_stay_what_they_are(tiny, kind: str):
    model = tiny().to(torch.bfloat16)
    model.precision = torch.bfloat16
    before = model(ROW)
    model = apply(model, KINDS[kind], seed=0)
    torch.testing.assert_close(
        model(ROW), before, rtol=0.02 if kind == "dora" else 0, atol=0.1 if kind == "dora" else 0
    )
    model(ROW).square().sum().backward()
    learning = [each for each in model.parameters() if each.requires_grad]
    assert {each.dtype for each in learning} == {torch.float32}
    assert any(each.grad.abs().sum() > 0 for each in learning)
