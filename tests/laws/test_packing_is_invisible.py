"""Law 4: a document in a packed row has the logits, the loss and the gradient that it has alone."""

from collections.abc import Callable

import pytest
import torch
from law_stages import distance
from switches import KINDS as SWITCHED
from switches import switched
from torch import Tensor

pytestmark = pytest.mark.law
KINDS = ["plain", "fused", "tied", "lora", "nf4", "prefix", "recomputed", *SWITCHED]
SIZES = [[5, 1, 9, 2], [17], [3, 3, 3, 3, 3], [1, 1, 12]]


@pytest.fixture(scope="module")
def make(models, tiny) -> Callable:
    return lambda kind: models[kind]() if kind in models else switched(tiny, kind)


def documents(sizes: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(61, (size,), generator=generator) for size in sizes]


def rows() -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Return documents, and the rows they are packed into, padded on the right, with their document numbers."""
    found = [documents(sizes, seed) for seed, sizes in enumerate(SIZES)]
    length = 2 + max(sum(sizes) for sizes in SIZES)
    tokens, numbers = torch.full((len(SIZES), length), 60), torch.full((len(SIZES), length), -1)
    for row, parts in enumerate(found):
        joined = torch.cat(parts)
        tokens[row, : len(joined)] = joined
        numbers[row, : len(joined)] = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(SIZES[row]))
    return found, tokens, numbers


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()  # FlexAttention has no backward pass on a CPU, and would not be what runs
def test_packed_logits_are_those_of_each_document_alone(make, kind: str):
    model = make(kind)
    found, tokens, numbers = rows()
    logits = model(tokens, documents=numbers)
    for row, parts in enumerate(found):
        for number, document in enumerate(parts):
            packed = logits[row, numbers[row] == number]
            torch.testing.assert_close(packed, model(document[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_gradients_are_those_of_each_document_alone(make, kind: str):
    found, tokens, numbers = rows()
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn((*tokens.shape, 61), generator=generator) * (numbers >= 0)[..., None]

    def gradient(model) -> dict[str, Tensor]:
        # The bias of keys adds the same to all scores of a query, which changes nothing: its gradient is rounding.
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        return {name: value.grad for name, value in trained.items() if not name.endswith("k_proj.bias")}

    packed, alone = make(kind).train(), make(kind).train()
    (packed(tokens, documents=numbers) * directions).sum().backward()
    for row, parts in enumerate(found):
        for number, document in enumerate(parts):
            (alone(document[None])[0] * directions[row, numbers[row] == number]).sum().backward()
    assert distance(gradient(packed), gradient(alone)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_document_sees_another(make, kind: str):
    model = make(kind)
    _, tokens, numbers = rows()
    changed = torch.where(numbers == 1, (tokens + 1) % 61, tokens)
    before, after = (model(each, documents=numbers) for each in (tokens, changed))
    others = numbers != 1
    # The number of tokens that an expert gets may change the last digit of each.
    exact = 1e-6 if model.shape.experts else 0.0
    torch.testing.assert_close(before[others], after[others], rtol=exact, atol=exact)
    assert not torch.allclose(before[~others], after[~others], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_answers_after_a_shared_prompt_have_the_logits_they_have_alone(make, kind: str):
    model = make(kind)
    prompt, *answers = documents([6, 4, 1, 7], seed=5)
    tokens = torch.cat([prompt, *answers])[None]
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor([6, 4, 1, 7]))[None]
    logits = model(tokens, documents=numbers, shared=True)[0]
    for number, answer in enumerate(answers, 1):
        alone = model(torch.cat([prompt, answer])[None])[0]
        torch.testing.assert_close(logits[numbers[0] == number], alone[len(prompt) :], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits[: len(prompt)], alone[: len(prompt)], rtol=1e-5, atol=1e-5)
