"""The head against a plain log-softmax: same values, same gradients, whatever the size of a chunk."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ludus.model import head
from ludus.model.head import rows_at_a_time, summed_loss, target_logps

ENTRIES = [0, 1, 50 * 7, None]
TERMS = [{}, {"z_loss": 0.3}, {"label_smoothing": 0.2}, {"z_loss": 1e-2, "label_smoothing": 0.1}]


def drawn(rows: int = 37, channels: int = 8, vocabulary: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_()
        for size in ((rows, channels), (vocabulary, channels), (vocabulary,))
    )
    return hidden, weight, bias, torch.randint(vocabulary, (rows,), generator=generator)


@pytest.fixture(autouse=True, params=[0, head.PLAIN_ENTRIES], ids=["large", "small"])
def size(request, monkeypatch) -> None:
    """Let the same few logits count as a large batch, whose gradient is made on the way, and as a small one."""
    monkeypatch.setattr(head, "PLAIN_ENTRIES", request.param)
    monkeypatch.setattr(head, "CACHED_ENTRIES", 50 * 4)


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("biased", [False, True])
def test_chunks_change_neither_values_nor_gradients(entries, softcap, biased):
    hidden, weight, bias, targets = drawn()
    bias = bias if biased else None
    learned = [one for one in (hidden, weight, bias) if one is not None]
    found = target_logps(
        hidden,
        weight,
        targets,
        precision=torch.float32,
        entropy=True,
        mean=True,
        softcap=softcap,
        bias=bias,
        chunk_entries=entries,
    )
    logits = plain(hidden, weight, bias, softcap)
    logps = logits.log_softmax(dim=-1)
    expected = [logps.gather(1, targets[:, None])[:, 0], logits.logsumexp(dim=-1), logps.mean(dim=-1)]
    upstream = [torch.linspace(-1, end, len(targets), dtype=torch.float64) for end in (1, 2, 3)]
    pairs = list(zip((found.logps, found.normalisers, found.mean_logps), expected, strict=True))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found.entropies, -(logps.exp() * logps).sum(dim=-1))
    ours, theirs = (
        torch.autograd.grad(sum((one[side] * up).sum() for one, up in zip(pairs, upstream, strict=True)), learned)
        for side in (0, 1)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("terms", TERMS)
def test_the_loss_and_its_gradient_are_those_of_the_plain_formula(entries, softcap, terms):
    hidden, weight, bias, targets = drawn()
    weights = torch.linspace(-0.5, 2, len(targets), dtype=torch.float64)
    how = terms | {"softcap": softcap, "bias": bias, "chunk_entries": entries}
    found = summed_loss(hidden, weight, targets, weights, precision=torch.float32, **how)
    logits = plain(hidden, weight, bias, softcap)
    smoothing, z_loss = terms.get("label_smoothing", 0.0), terms.get("z_loss", 0.0)
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    squares = (weights * logits.logsumexp(dim=-1) ** 2).sum()
    expected = (each * weights).sum() + z_loss * squares
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.z_loss, (z_loss * squares).detach())
    torch.testing.assert_close(found.nll, (F.cross_entropy(logits, targets, reduction="none") * weights).sum().detach())
    ours = torch.autograd.grad(3 * found.loss, (hidden, weight, bias))
    for one, other in zip(ours, torch.autograd.grad(3 * expected, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("entries", [0, 7 * 2])
def test_gradients_are_those_of_finite_differences(entries):
    hidden, weight, bias, targets = drawn(rows=5, channels=3, vocabulary=7)
    how = {"precision": torch.float32, "softcap": 3.0, "chunk_entries": entries}

    def logps(*learned: Tensor) -> tuple[Tensor, ...]:
        found = target_logps(*learned[:2], targets, bias=learned[2], mean=True, **how)
        return found.logps, found.normalisers, found.mean_logps

    def loss(*learned: Tensor) -> Tensor:
        terms = {"z_loss": 0.1, "label_smoothing": 0.2}
        return summed_loss(*learned[:2], targets, None, bias=learned[2], **how, **terms).loss

    assert torch.autograd.gradcheck(logps, (hidden, weight, bias))
    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_what_is_frozen_gets_no_gradient_and_no_work():
    hidden, weight, bias, targets = drawn()
    for learned in itertools.product([False, True], repeat=3):
        if not any(learned):
            continue
        given = [one.detach().requires_grad_(asks) for one, asks in zip((hidden, weight, bias), learned, strict=True)]
        for entries in (0, 100):
            for one in given:
                one.grad = None
            how = {"precision": torch.float32, "bias": given[2], "chunk_entries": entries}
            summed_loss(*given[:2], targets, None, **how).loss.backward()
            assert [one.grad is not None for one in given] == list(learned)
            target_logps(*given[:2], targets, **how).logps.sum().backward()
            assert all(one.grad.abs().max() < 1e-12 for one, asks in zip(given, learned, strict=True) if asks)
    with torch.no_grad():
        assert not summed_loss(hidden, weight, targets, None, precision=torch.float32).loss.requires_grad


@pytest.mark.parametrize("entries", [0, 50])
def test_no_rows_have_no_gradient(entries):
    hidden, weight, _, targets = drawn(rows=0)
    how = {"precision": torch.float32, "chunk_entries": entries}
    target_logps(hidden, weight, targets, **how).logps.sum().backward()
    assert not weight.grad.any()
    found = summed_loss(hidden, weight, targets, None, **how)
    found.loss.backward()
    assert found.loss.item() == 0
    assert not weight.grad.any()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entries", [0, 50 * 9])
def test_narrow_products_stay_near(precision, entries):
    hidden, weight, _, targets = (one.detach().float() if one.is_floating_point() else one for one in drawn())
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets, reduction="sum"), (hidden, weight))
    how = {"precision": precision, "chunk_entries": entries}
    losses = [
        summed_loss(hidden, weight, targets, None, **how).loss,
        -target_logps(hidden, weight, targets, **how).logps.sum(),
    ]
    for loss in losses:
        assert loss.dtype == torch.float32
        for ours, theirs in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
            assert ours.dtype == torch.float32
            assert (ours - theirs).norm() / theirs.norm() < 0.02


def test_a_large_head_hands_its_gradient_over_once(monkeypatch):
    hidden, weight, _, targets = drawn()
    loss = summed_loss(hidden, weight, targets, None, precision=torch.float32).loss
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(weight.grad, 2 * first)
    monkeypatch.setattr(head, "SPENT_ENTRIES", 1)
    weight.grad = None
    loss = summed_loss(hidden, weight, targets, None, precision=torch.float32, chunk_entries=500).loss
    loss.backward(retain_graph=True)
    torch.testing.assert_close(weight.grad, first)
    with pytest.raises(RuntimeError, match="goes backward once"):
        loss.backward()


@pytest.mark.parametrize(
    ("rows", "vocabulary", "precision", "entries", "expected"),
    [
        (1536, 65, torch.float32, None, 1536),  # all at once: a few logits
        (1536, 4096, torch.float32, None, 1536),
        (2048, 50257, torch.float32, None, 256),  # a chunk pays for reading the weight
        (4096, 50257, torch.bfloat16, None, 512),
        (1 << 20, 65, torch.float32, None, 15_888),  # 66 even chunks of about a million logits
        (2060, 50257, torch.bfloat16, None, 412),
        (2048, 50257, torch.float32, 0, 2048),
        (2048, 50257, torch.float32, 1 << 20, 20),
        (2048, 50257, torch.float32, 1, 1),
    ],
)
def test_rows_at_a_time_follow_the_measured_rule_or_what_is_set(rows, vocabulary, precision, entries, expected):
    assert rows_at_a_time(torch.empty(rows, 1), torch.empty(vocabulary, 1), precision, entries) == expected
