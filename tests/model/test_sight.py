import torch

from ludus.model.sight import Sight, document_positions


def seen(sight: Sight, window: int | None = None) -> list[list[int]]:
    return sight.mask("dense", window, torch.float32)[0, 0].isfinite().int().tolist()


def test_documents_number_positions_and_close_the_mask(shape):
    documents = torch.tensor([[0, 0, 1, 1, 1, -1]])
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0]]
    assert seen(Sight(shape(), documents, documents=documents)) == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_a_window_reaches_back_so_many_tokens_the_query_among_them(shape):
    assert seen(Sight(shape(), torch.zeros(1, 4, dtype=torch.long)), 2) == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_a_window_counts_positions_so_an_answer_looks_back_into_its_prompt(shape):
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    rows = seen(Sight(shape(), documents.abs(), documents=documents, shared=True), 3)
    assert rows[5] == [0, 1, 1, 0, 0, 1, 0]
    assert rows[6] == [0, 0, 1, 0, 0, 1, 1]


def test_positions_count_on_after_a_shared_prompt(shape):
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1]])
    assert Sight(shape(), documents, documents=documents).positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 0]]
    both = Sight(shape(), documents, documents=documents, shared=True)
    assert both.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 3]]


def test_padding_is_told_from_what_is_real(shape):
    documents = torch.tensor([[0, 0, 1, -1]])
    assert Sight(shape(), documents, documents=documents).real.tolist() == [[True, True, True, False]]
    assert Sight(shape(), documents).real is None
