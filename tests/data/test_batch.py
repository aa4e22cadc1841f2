import numpy as np
import torch

from ludus.data.batch import Batch, collate


def example(tokens: list[int], weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(tokens, dtype=np.uint16), np.array(weights, dtype=np.float32)


def test_a_packed_batch_aligns_weights_with_predictions():
    rows = [[example([5, 6, 7], [1, 1, 1]), example([8, 9], [1, 1])], [example([1, 2], [1, 0.5])]]
    batch = collate(rows, pad_token=0)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9], [1, 2, 0, 0, 0]]
    assert batch.tokens.dtype == torch.int64
    assert batch.weights.tolist() == [[1, 1, 0, 1], [0.5, 0, 0, 0]]  # 8 begins a document: nobody predicts it
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]]
    assert batch.weight == 4


def test_single_documents_need_no_mask():
    batch = collate([[example([5, 6, 7], [0, 0, 1])], [example([1, 2], [0, 1])]], pad_token=9, length=4)
    assert batch.documents is None
    assert batch.tokens.tolist() == [[5, 6, 7, 9], [1, 2, 9, 9]]
    assert batch.weight == 2


def test_a_given_weight_stands():
    assert collate([[example([1, 2], [1, 1])]], pad_token=0, weight=3.5).weight == 3.5


def test_a_batch_comes_back_from_its_state():
    batch = collate([[example([1, 2], [1, 1])]], pad_token=0)
    again = Batch(**batch.state_dict())
    assert torch.equal(again.tokens, batch.tokens)
    assert again.documents is None
