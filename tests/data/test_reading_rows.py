from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.data.batch import Batch, collate
from ludus.data.files import Files
from ludus.data.plan import Packed, pack
from ludus.data.rows import read, shorten
from ludus.data.shards import TokenShards
from ludus.data.sources import Rows, pretraining

TOKENS = np.arange(400, dtype=np.uint16)


def equal(one: Batch, other: Batch) -> bool:
    if (one.documents is None) != (other.documents is None):
        return False
    same = torch.equal(one.tokens, other.tokens) and torch.equal(one.weights, other.weights)
    return (
        same and one.weight == other.weight and (one.documents is None or torch.equal(one.documents, other.documents))
    )


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 11), min_size=1, max_size=20), weighted=st.booleans(), full=st.booleans())
def test_rows_are_read_as_collate_would_put_them(sizes: list[int], weighted: bool, full: bool):
    sizes = [11] * len(sizes) if full else sizes
    ends = np.cumsum(sizes)
    rows = pack(np.stack([ends - sizes, ends], axis=1), 11)
    weights = np.random.default_rng(0).integers(0, 3, 400).astype(np.float32) if weighted else None
    ones = np.ones(400, np.float32) if weights is None else weights
    examples = [[(TOKENS[a:b], ones[a:b]) for a, b in row] for row in rows.listed()]
    assert equal(read(TOKENS, weights, rows, length=11, pad_token=7), collate(examples, pad_token=7, length=11))


def test_several_files_read_as_one():
    whole = np.arange(100, 160, dtype=np.uint16)
    files = Files([whole[:7], whole[7:8], whole[8:41], whole[41:]])
    assert len(files) == 60
    places = np.array([[0, 6, 7], [8, 59, 40]])
    assert files[places].tolist() == whole[places].tolist()
    assert files[places].dtype == np.uint16
    for a, b in [(0, 60), (5, 9), (7, 8), (40, 42), (3, 3)]:
        assert files[a:b].tolist() == whole[a:b].tolist()


def packed() -> Batch:
    sizes = np.array([13, 4, 9, 8, 5])
    ends = np.cumsum(sizes)
    return read(TOKENS, None, pack(np.stack([ends - sizes, ends], axis=1), 13), length=13, pad_token=999)


def learnt(batch: Batch) -> list[int]:
    return sorted(batch.tokens[:, 1:][batch.weights != 0].tolist())


@pytest.mark.law
@pytest.mark.parametrize("context", [1, 3, 4, 6, 12])
def test_shorter_rows_predict_the_same_tokens_from_the_same_documents(context: int):
    batch = packed()
    short = shorten(batch, context)
    assert learnt(short) == learnt(batch)
    assert short.weight == batch.weight == (short.weights != 0).sum()
    assert short.weights.numel() == batch.weights.numel()
    assert short.tokens.shape[1] == context + 1
    before = {(int(a), int(b)) for row in batch.tokens for a, b in pairwise(row)}
    assert {(int(a), int(b)) for row in short.tokens for a, b in pairwise(row)} <= before
    inside = short.weights != 0
    assert torch.equal(short.documents[:, 1:][inside], short.documents[:, :-1][inside])


def test_a_batch_moves_with_all_its_tensors():
    batch = packed().to("cpu")
    assert equal(batch, packed())
    moved = packed().to("meta")
    assert moved.tokens.device.type == moved.weights.device.type == moved.documents.device.type == "meta"
    assert moved.weight == batch.weight


def test_the_account_of_a_source_adds_up_over_epochs():
    sizes = [3, 50, 17, 1, 2, 30, 9, 26, 41, 5]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    shards = TokenShards(np.arange(offsets[-1], dtype=np.uint16), offsets, 1)
    source = pretraining(shards, context=12, rows=1, pad_token=0, seed=5)
    rows = sum(len(source.plan(epoch)) for epoch in range(3))
    places = sum(batch.tokens.numel() for batch in islice(source, rows))
    account = source.account()
    assert account == {"trained": 3 * shards.predictions, "padded": places - source.tokens, "dropped": 0}
    assert source.metrics == {"padding": account["padded"] / places, "epoch": 3.0}
    again = pretraining(shards, context=12, rows=1, pad_token=0, seed=5)
    again.load_state_dict(source.state_dict())
    assert again.account() == account


@pytest.mark.parametrize("block", [60, 1 << 14])
def test_what_an_epoch_holds_is_known_from_its_first_block(block: int):
    ends = np.cumsum(np.random.default_rng(0).integers(5, 40, 400))
    pieces = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    source = Rows(
        np.zeros(ends[-1], np.uint16), None, lambda epoch: pieces, length=40, rows=2, pad_token=0, seed=0, block=block
    )
    found, rows = source.outlook(), len(source.plan(0))
    assert abs(found["tokens"] / ends[-1] - 1) < (0.1 if block == 60 else 1e-9)
    assert abs(found["rows"] / rows - 1) < (0.2 if block == 60 else 1e-9)
    assert abs(found["padding"] - (1 - ends[-1] / (rows * 40))) < (0.15 if block == 60 else 1e-9)


def test_a_source_reads_several_files_as_it_reads_one():
    pieces = np.array([[0, 9], [9, 30], [30, 31], [31, 60]])
    made = {"length": 30, "rows": 2, "pad_token": 0, "seed": 0}
    one = Rows(TOKENS[:60], None, lambda epoch: pieces, **made)
    several = Rows(Files([TOKENS[:11], TOKENS[11:60]]), None, lambda epoch: pieces, **made)
    assert all(equal(a, b) for a, b in zip(islice(one, 6), islice(several, 6), strict=True))


def test_rows_without_rows_are_no_rows():
    assert Packed(np.zeros((0, 2), np.int64), np.zeros(0, np.int64)).listed() == []
