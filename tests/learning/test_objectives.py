import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ludus.data.batch import Batch
from ludus.learning.objectives.logps import frozen_logps, learned, token_logps
from ludus.learning.objectives.next_token import next_token
from ludus.learning.objectives.policy import clipped_policy
from ludus.learning.objectives.preference import direct_preference
from ludus.model.head import target_logps
from ludus.parallel.mesh import Mesh

ROWS, TIME = 4, 9


def batch(**changes) -> Batch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(61, (ROWS, TIME), generator=generator)
    weights = torch.tensor([[1.0] * 8, [0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 1, 0, 1]])
    return dataclasses.replace(Batch(tokens, weights, 17.0), **changes)


def plain_logps(model, given: Batch) -> Tensor:
    """Return the log-probability of every token by the plain formula, weighted or not."""
    logps = model(given.tokens[:, :-1]).log_softmax(-1)
    return logps.gather(2, given.tokens[:, 1:, None])[..., 0]


class Fixed(torch.nn.Module):
    """A model whose log-probabilities are what its one parameter says: a fake to try objectives on by hand."""

    def __init__(self, logps: Tensor) -> None:
        super().__init__()
        self.logps = torch.nn.Parameter(logps)
        self.lm_head = None  # no plain layer, so that `logits` is asked

    def hidden(self, tokens: Tensor, **where: object) -> Tensor:
        return self.logps[..., None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Give token 1 the wanted probability and token 0 the rest."""
        return torch.cat([torch.log1p(-hidden.exp()), hidden], dim=-1)


def asked(logps: list[list[float]], **fields) -> tuple[Fixed, Batch]:
    table = torch.tensor(logps)
    ones = torch.ones(len(table), table.shape[1] + 1, dtype=torch.long)
    given = {"weights": torch.ones_like(table), "weight": float(table.numel())} | {
        name: torch.tensor(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Fixed(table), Batch(ones, **given)


def test_token_logps_are_those_of_the_plain_formula_where_something_is_learned(tiny):
    model, given = tiny(), batch()
    found = token_logps(model, given, entropy=True)
    wanted = given.weights != 0
    torch.testing.assert_close(found.logps[wanted], plain_logps(model, given)[wanted], rtol=1e-5, atol=1e-6)
    assert not found.logps[~wanted].any()
    logps = model(given.tokens[:, :-1]).log_softmax(-1)[wanted]
    torch.testing.assert_close(found.entropy, -(logps.exp() * logps).sum(), rtol=1e-5, atol=1e-5)


def test_the_head_runs_on_learned_positions_only(tiny, monkeypatch):
    seen = []

    def spy(hidden, weight, targets, **how):
        seen.append(len(hidden))
        return target_logps(hidden, weight, targets, **how)

    monkeypatch.setattr("ludus.learning.objectives.logps.target_logps", spy)
    token_logps(tiny(), batch())
    assert seen == [17]


def test_frozen_logps_have_no_graph_and_no_dropout_and_leave_the_mode(tiny):
    model, given = tiny(dropout=0.5).train(), batch()
    found = frozen_logps(model, given)
    assert not found.requires_grad
    assert torch.equal(found, frozen_logps(model, given))
    assert model.training


def test_next_token_is_the_summed_cross_entropy(tiny):
    model, given = tiny(), batch(weights=batch().weights * torch.tensor([[1.0], [0.5], [2.0], [1.0]]))
    logits = model(given.tokens[:, :-1])
    each = F.cross_entropy(logits.flatten(0, 1), given.tokens[:, 1:].flatten(), reduction="none")
    expected = (each * given.weights.flatten()).sum()
    torch.testing.assert_close(next_token(model, given)["loss"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"logit_softcap": 2.0}, {"head_bias": True, "logit_softcap": 3.0}])
@pytest.mark.parametrize("entries", [None, 0, 61 * 3])
@pytest.mark.parametrize(
    "terms", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "label_smoothing": 0.2}]
)
def test_z_loss_and_label_smoothing_are_those_of_the_plain_formula(tiny, monkeypatch, changes, entries, terms):
    monkeypatch.setattr("ludus.model.head.PLAIN_ENTRIES", 61 * 20 if entries is None else 0)
    model, given = tiny(**changes), batch(weights=batch().weights * torch.tensor([[1.0], [0.5], [2.0], [1.0]]))
    model.head_chunk_entries = entries
    sums = next_token(model, given, **terms)
    sums["loss"].backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    logits, targets, weights = model(given.tokens[:, :-1]).flatten(0, 1), given.tokens[:, 1:].flatten(), given.weights
    smoothing, z_loss = terms.get("label_smoothing", 0.0), terms.get("z_loss", 0.0)
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    extra = z_loss * (weights.flatten() * logits.logsumexp(-1) ** 2).sum()
    expected = (each * weights.flatten()).sum() + extra
    torch.testing.assert_close(sums["loss"], expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    for ours, theirs in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-4)
    assert sums.keys() == {"loss"} | ({"nll"} if terms else set()) | ({"z_loss"} if z_loss else set())
    if terms:
        torch.testing.assert_close(sums["nll"], next_token(model, given)["loss"].detach(), rtol=1e-5, atol=1e-5)
    if z_loss:
        torch.testing.assert_close(sums["z_loss"], extra.detach(), rtol=1e-5, atol=1e-5)
    logps = token_logps(model, given).logps
    wanted = given.weights != 0
    torch.testing.assert_close(logps[wanted], plain_logps(model, given)[wanted], rtol=1e-4, atol=1e-5)


class Wrapped(torch.nn.Module):
    """A head under surgery: it computes what the plain one does, and is none."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


@pytest.mark.parametrize("terms", [{}, {"z_loss": 0.1, "label_smoothing": 0.2}])
def test_a_head_under_surgery_learns_the_same(tiny, terms):
    plain, wrapped, given = tiny(logit_softcap=4.0), tiny(logit_softcap=4.0), batch()
    wrapped.lm_head = Wrapped(wrapped.lm_head)
    expected, found = next_token(plain, given, **terms), next_token(wrapped, given, **terms)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    found["loss"].backward()
    expected["loss"].backward()
    for ours, theirs in zip(wrapped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plain_entries", [0, 1 << 20])
def test_float16_with_a_loss_scale_has_the_gradient_of_float32(tiny, monkeypatch, plain_entries):
    monkeypatch.setattr("ludus.model.head.PLAIN_ENTRIES", plain_entries)
    exact, model, given = tiny(), tiny(), batch()
    model.precision = torch.float16
    (next_token(exact, given)["loss"] / given.weight).backward()
    (next_token(model, given)["loss"] * (2.0**16 / given.weight)).backward()
    norms = [float(Mesh().clip_(one, 1e9, scale=scale)) for one, scale in ((exact, 1.0), (model, 2.0**16))]
    assert norms[1] == pytest.approx(norms[0], rel=0.01)
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


def test_nothing_is_gathered_where_every_position_is_learned(tiny):
    model, given = tiny(), batch()
    assert learned(model, given).places.tolist() == given.weights.flatten().nonzero()[:, 0].tolist()
    whole = batch(weights=torch.ones(ROWS, TIME - 1), weight=32.0)
    assert learned(model, whole).places is None
    torch.testing.assert_close(token_logps(model, whole).logps, plain_logps(model, whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entries", [None, 61 * 3])
def test_every_tensor_is_made_where_the_model_is(tiny, monkeypatch, entries):
    """Meta tensors stand for an accelerator's: they mix with no others, and have no values to look at."""
    monkeypatch.setattr("ludus.model.head.PLAIN_ENTRIES", 0 if entries else 1 << 20)
    model = tiny().to("meta")
    model.head_chunk_entries = entries
    ones = torch.ones(ROWS, TIME - 1, device="meta")
    pairs = torch.ones(ROWS, device="meta")
    given = batch(
        tokens=torch.zeros(ROWS, TIME, dtype=torch.long, device="meta"),
        weights=ones,
        weight=30.0,
        old_logps=ones,
        advantages=ones,
    )
    objectives = {
        next_token: given,
        partial(next_token, z_loss=0.1, label_smoothing=0.1): given,
        clipped_policy(low=0.2, high=0.2, kl=0.1): dataclasses.replace(given, reference_logps=ones),
        direct_preference(0.1, likelihood=1.0): dataclasses.replace(given, reference_logps=pairs),
    }
    for objective, data in objectives.items():
        sums = objective(model, data)
        assert {value.device.type for value in sums.values()} == {"meta"}
        sums["loss"].backward()


def test_nothing_to_learn_is_a_loss_of_zero_with_a_gradient_of_zero(tiny):
    model = tiny()
    zero = batch(
        weights=batch().weights * 0, weight=1.0, old_logps=torch.zeros(ROWS, 8), advantages=torch.ones(ROWS, 8)
    )
    for objective in (next_token, clipped_policy(low=0.2, high=0.2)):
        sums = objective(model, zero)
        sums["loss"].backward()
        assert all(float(value.detach()) == 0 for value in sums.values())
        assert not model.embed_tokens.weight.grad.any()


def test_the_preference_loss_is_that_of_the_paper():
    model, pairs = asked(
        [[-1.0, -2.0], [-0.5, -0.5], [-2.0, -1.0], [-3.0, -0.25]],  # two chosen above two rejected
        reference_logps=[-2.0, -1.5, -2.5, -3.0],
        weight=2.0,
    )
    beta = 0.3
    margins = [beta * ((-3 + 2.0) - (-3 + 2.5)), beta * ((-1 + 1.5) - (-3.25 + 3.0))]
    expected = sum(-math.log(1 / (1 + math.exp(-margin))) for margin in margins)
    sums = direct_preference(beta)(model, pairs)  # type: ignore[arg-type]
    assert sums["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert sums["margin"].item() == pytest.approx(sum(margins), rel=1e-5)
    assert sums["accuracy"].item() == 1
    assert sums["chosen_logp"].item() == pytest.approx(-4)
    likelihood = direct_preference(beta, likelihood=0.7)(model, pairs)["loss"]  # type: ignore[arg-type]
    assert likelihood.item() == pytest.approx(expected + 0.7 * (3 / 2 + 1 / 2), rel=1e-5)


def test_a_preference_raises_the_chosen_answer_and_lowers_the_rejected():
    model, pairs = asked([[-1.0, -2.0], [-2.0, -1.0]], reference_logps=[-3.0, -3.0], weight=1.0)
    direct_preference(0.1)(model, pairs)["loss"].backward()  # type: ignore[arg-type]
    assert (model.logps.grad[0] < 0).all()
    assert (model.logps.grad[1] > 0).all()


def test_the_control_learns_the_chosen_answer_alone_and_still_tells_its_accuracy():
    model, pairs = asked([[-1.0, -2.0], [-4.0, -1.0]], reference_logps=[-3.0, -3.0], weight=1.0)
    sums = direct_preference(0.0, likelihood=1.0)(model, pairs)  # type: ignore[arg-type]
    sums["loss"].backward()
    torch.testing.assert_close(model.logps.grad, torch.tensor([[-0.5, -0.5], [0.0, 0.0]]))
    assert sums["accuracy"].item() == 1
    assert sums["margin"].item() == 0


# ratio -> (advantage, surrogate, whether its gradient flows), with the ratio kept in [0.8, 1.3]
CASES = [
    (1.0, 2.0, 2.0, True),
    (1.2, 2.0, 2.4, True),
    (1.5, 2.0, 2.6, False),
    (0.5, 2.0, 1.0, True),
    (1.5, -2.0, -3.0, True),
    (0.9, -2.0, -1.8, True),
    (0.5, -2.0, -1.6, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "surrogate", "flows"), CASES)
def test_the_policys_surrogate_is_clipped_as_in_the_paper(ratio, advantage, surrogate, flows):
    model, given = asked([[-1.0]], old_logps=[[-1.0 - math.log(ratio)]], advantages=[[advantage]])
    sums = clipped_policy(low=0.2, high=0.3)(model, given)  # type: ignore[arg-type]
    assert sums["loss"].item() == pytest.approx(-surrogate, rel=1e-5)
    assert sums["ratio"].item() == pytest.approx(ratio, rel=1e-5)
    assert sums["clipped"].item() == (not flows)
    sums["loss"].backward()
    expected = -ratio * advantage if flows else 0.0
    assert model.logps.grad.item() == pytest.approx(expected, rel=1e-4)


def test_the_divergences_gradient_is_that_of_the_kl_itself():
    """Over all tokens, k3 weighted by the ratio has the value and the gradient of KL(policy || reference)."""
    policy = torch.tensor([0.2, -0.3, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.1, 0.2, 0.5, -0.5], dtype=torch.float64).log_softmax(0)
    reference = torch.tensor([1.0, 0.3, -0.2, 0.4], dtype=torch.float64).log_softmax(0)
    logps = policy.log_softmax(0)
    divergence = (logps.exp() * (logps - reference)).sum()
    wanted = torch.autograd.grad(divergence, policy, retain_graph=True)[0]
    table = logps.detach().float()[:, None].tolist()
    model, given = asked(
        table,
        old_logps=old.float()[:, None].tolist(),
        reference_logps=reference.float()[:, None].tolist(),
        advantages=[[0.0]] * 4,
        weights=old.exp().float()[:, None].tolist(),  # tokens are met as often as the old policy draws them
    )
    sums = clipped_policy(low=0.2, high=0.2, kl=1.0)(model, given)  # type: ignore[arg-type]
    assert sums["loss"].item() == pytest.approx(divergence.item(), rel=1e-4)
    sums["loss"].backward()
    found = torch.autograd.grad(logps, policy, grad_outputs=model.logps.grad[:, 0].double())[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_means_over_tokens_are_over_learned_tokens():
    model, given = asked(
        [[-1.0, -1.0, -1.0]],
        old_logps=[[-1.0 - math.log(2.0), -1.0, 5.0]],
        advantages=[[1.0, 1.0, 1.0]],
        weights=[[0.25, 0.25, 0.0]],
        weight=8.0,
    )
    sums = clipped_policy(low=0.2, high=0.2)(model, given)  # type: ignore[arg-type]
    assert sums["ratio"].item() / 8 == pytest.approx(1.5)
    assert sums["gap"].item() / 8 == pytest.approx(math.log(2) / 2)
    assert sums["clipped"].item() / 8 == 0.5
