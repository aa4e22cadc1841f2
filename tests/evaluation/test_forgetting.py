"""Bits per byte are those of a plain computation, whatever the batch; forgetting has a paired interval."""

import math

import pytest
import torch

from ludus.base.errors import DataError
from ludus.evaluation.forgetting import BitsPerByte, bits_per_byte, forgetting, general, parts, sample, windows
from ludus.evaluation.likelihood import likelihoods
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train

TEXT = "The quick brown fox jumps over the lazy dog, and Grüße aus Köln. " * 6


@pytest.fixture(scope="module")
def tokenizer():
    return train([TEXT * 3], TokenizerSettings(vocabulary=280))


@pytest.fixture(scope="module")
def model(tiny, tokenizer):
    return tiny(vocabulary=tokenizer.vocabulary_size, context=64)


@torch.no_grad()
def plain(model, tokens: list[int]) -> float:
    """Return the nats of a document that is seen whole."""
    ids = torch.tensor([tokens])
    logps = model(ids[:, :-1]).log_softmax(-1)
    return -float(logps.gather(2, ids[:, 1:, None]).double().sum())


def test_bits_per_byte_are_those_of_a_plain_computation(model, tokenizer):
    text = TEXT[:90]
    tokens = [tokenizer.bos, *tokenizer.encode(text)]
    found = bits_per_byte(model, tokenizer, [text], context=500)
    assert found.bytes == len(text.encode())
    assert found.tokens == len(tokens) - 1
    assert found.bits == pytest.approx(plain(model, tokens) / math.log(2) / found.bytes, rel=1e-6)


def test_rows_and_padding_change_nothing(model, tokenizer):
    texts = [TEXT[: 10 + 37 * number] for number in range(7)]
    found = [bits_per_byte(model, tokenizer, texts, context=24, rows=rows) for rows in (1, 3, 64)]
    alone = [bits_per_byte(model, tokenizer, [text], context=24).nats[0] for text in texts]
    for each in found:
        assert each.nats == pytest.approx(alone, rel=1e-5)


def test_dropout_is_off_while_measuring_and_comes_back(tiny, tokenizer):
    model = tiny(vocabulary=tokenizer.vocabulary_size, dropout=0.5).train()
    first, second = (bits_per_byte(model, tokenizer, [TEXT], context=32).bits for _ in range(2))
    assert first == second
    assert model.training


@pytest.mark.parametrize(("length", "context"), [(1, 8), (2, 8), (9, 8), (10, 8), (50, 8), (51, 7), (6, 1)])
def test_windows_predict_each_token_once_and_see_half_a_context(length, context):
    tokens = list(range(length))
    predicted = []
    for ids, weights in windows(tokens, context):
        assert len(ids) <= context + 1
        seen = weights.nonzero()[0]
        assert ids[0] == 0 or min(seen) >= context - context // 2 or context == 1
        predicted += ids[seen].tolist()
    assert predicted == tokens[1:]


def test_the_sample_is_the_same_each_time_and_within_its_limit():
    texts = [f"document {number} " * 20 for number in range(50)]
    chosen = sample(texts, 2_000)
    assert chosen == sample(list(reversed(texts)), 2_000)
    assert sum(map(len, chosen)) == 2_000
    assert sample(texts, None) == texts
    assert sample(["é" * 10], 5) == ["éé"]
    with pytest.raises(DataError, match="no text to measure"):
        sample([" \n"], 100)


def test_general_text_is_there_without_a_network_and_is_read_from_a_file(tmp_path):
    found = general(limit_bytes=20_000)
    assert sum(len(text.encode()) for text in found) == 20_000
    assert len(found) > 5
    (tmp_path / "book.txt").write_text("\n\n".join(f"paragraph {number} " * 30 for number in range(60)))
    chosen = general(tmp_path / "book.txt", None)
    assert len(chosen) > 5
    assert "".join(chosen) == (tmp_path / "book.txt").read_text()


@pytest.mark.parametrize(
    "text", ["short", "a line\n" * 2_000, "no line at all " * 3_000, "one\n \n" * 3_000, "a\r\nb\x0c"]
)
def test_a_long_document_is_parted_and_nothing_is_lost(text):
    found = list(parts(text))
    assert "".join(found) == text
    assert len(found) >= len(text) // 8_000
    assert all(len(part) <= 12_000 for part in found)


def test_forgetting_has_a_paired_interval(model, tiny, tokenizer):
    texts = [TEXT[number * 5 : number * 5 + 80] for number in range(30)]
    before = bits_per_byte(model, tokenizer, texts, context=32)
    same = forgetting(before, before)
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "within noise")
    other = tiny(seed=7, vocabulary=tokenizer.vocabulary_size, context=64)
    after = bits_per_byte(other, tokenizer, texts, context=32)
    change = forgetting(before, after)
    assert change.low < change.difference < change.high
    assert change.difference == pytest.approx(after.bits - before.bits)
    assert forgetting(after, before).difference == pytest.approx(-change.difference)
    assert forgetting(before, after) == change
    worse = BitsPerByte(**{**before.as_json(), "bits": before.bits + 1, "nats": [n + 60 for n in before.nats]})
    assert forgetting(before, worse).verdict == "forgotten"
    assert BitsPerByte.from_json(before.as_json()) == before


def test_measures_of_different_texts_are_not_compared(model, tokenizer):
    found = [bits_per_byte(model, tokenizer, [text], context=32) for text in (TEXT[:40], TEXT[1:41])]
    with pytest.raises(DataError, match="different texts"):
        forgetting(*found)
    assert math.isinf(forgetting(found[0], found[0]).low)


def test_what_a_model_would_say_is_counted_right(model):
    tokens = [3, 5]
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    ids = torch.tensor(tokens).numpy()
    weights = (torch.arange(len(tokens)) >= 2).float().numpy()
    wrong = ids.copy()
    wrong[-1] = (wrong[-1] + 1) % 200
    nothing = weights * 0
    found = likelihoods(model, [(ids, weights), (wrong, weights), (ids, nothing)], rows=2)
    assert [each.right for each in found] == [6, 5, 0]
    assert [each.exact for each in found[:2]] == [True, False]
    assert found[2].tokens == 0


@pytest.mark.oracle
def test_bits_per_byte_are_those_of_transformers(model, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    from ludus.model import exchange

    exchange.save(model, tmp_path / "model", tokenizer, {})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[tokenizer.bos, *tokenizer.encode(TEXT[:120])]])
    with torch.no_grad():
        loss = theirs(ids, labels=ids).loss
    wanted = float(loss) * (ids.shape[1] - 1) / math.log(2) / len(TEXT[:120].encode())
    assert bits_per_byte(model, tokenizer, [TEXT[:120]], context=200).bits == pytest.approx(wanted, rel=1e-5)
