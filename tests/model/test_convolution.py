import pytest
import torch

from ludus.model.convolution import Convolution
from ludus.model.sight import Sight

DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, -1, -1], [0, 0, 1, 2, 2, 2, 2, 2, 2, 2]])


def convolution(taps: int) -> Convolution:
    made = Convolution(4, taps, "here").double()
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(0))
    return made


def inputs() -> torch.Tensor:
    return torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def one_by_one(x: torch.Tensor, weight: torch.Tensor, line: list[int]) -> torch.Tensor:
    """Convolve the tokens of one row at the places of `line`, which is one document."""
    found = x[line].clone()
    for place in range(len(line)):
        for back in range(1, min(place, len(weight)) + 1):
            found[place] += weight[back - 1] * x[line[place - back]]
    return found


@pytest.mark.parametrize("taps", [1, 3, 12])
def test_each_document_is_convolved_by_itself(shape, taps: int):
    layer, x = convolution(taps), inputs()
    found = layer(x, Sight(shape(), DOCUMENTS, documents=DOCUMENTS))
    for row, numbers in enumerate(DOCUMENTS.tolist()):
        for number in set(numbers):
            line = [place for place, each in enumerate(numbers) if each == number]
            torch.testing.assert_close(found[row, line], one_by_one(x[row], layer.weight, line))


@pytest.mark.parametrize("taps", [1, 3, 12])
def test_an_answer_reaches_back_into_its_prompt(shape, taps: int):
    layer, x = convolution(taps), inputs()
    found = layer(x, Sight(shape(), DOCUMENTS, documents=DOCUMENTS, shared=True))
    prompt = [0, 1, 2, 3]
    for line in ([], [4, 5, 6], [7], [8, 9]):
        expected = one_by_one(x[0], layer.weight, prompt + line)
        torch.testing.assert_close(found[0, line], expected[4:])
    torch.testing.assert_close(found[0, prompt], one_by_one(x[0], layer.weight, prompt))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("taps", [2, 12])
def test_gradients_are_those_of_finite_differences(shape, packed: bool, taps: int):
    layer, sight = convolution(taps), Sight(shape(), DOCUMENTS, documents=DOCUMENTS if packed else None)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x, sight))

    assert torch.autograd.gradcheck(run, (inputs().requires_grad_(), layer.weight.detach().requires_grad_()))


def test_it_starts_as_the_identity(shape):
    x = inputs().float()
    assert torch.equal(Convolution(4, 3, "here")(x, Sight(shape(), DOCUMENTS)), x)
