"""Law 6: decoding with the KV cache is the full forward pass; padding, compaction and sharing change nothing."""

from collections.abc import Callable

import pytest
import torch
from switches import KINDS as SWITCHED
from switches import switched
from torch import Tensor

from ludus.base.errors import ConfigError
from ludus.generation.cache import KVCache
from ludus.generation.engine import Sampling, generate, stream

pytestmark = pytest.mark.law
# With a cache FlexAttention gives way to a dense backend; one law is enough to see that it does.
KINDS = [
    "plain",
    "fused",
    "tied",
    "lora",
    "dora",
    "nf4",
    "prefix",
    *(kind for kind in SWITCHED if not kind.endswith("flex")),
]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def make(models, tiny) -> Callable:
    return lambda kind: models[kind]() if kind in models else switched(tiny, kind)


def prompts(sizes: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(61, (size,), generator=generator) for size in sizes]


def padded(parts: list[Tensor], filler: int = 0) -> tuple[Tensor, Tensor]:
    """Pad on the left; return the rows and where each begins."""
    longest = max(map(len, parts))
    rows = torch.stack([torch.cat([torch.full((longest - len(part),), filler), part]) for part in parts])
    return rows, torch.tensor([longest - len(part) for part in parts])


def greedily(model, prompt: list[int], sampling: Sampling) -> list[int]:
    """Decode one prompt the slow and obvious way: the whole sequence again for every token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + sampling.max_new_tokens:
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] in sampling.stop:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 1, 3, 2], [1, 11]])
@pytest.mark.parametrize("kind", [*KINDS, "windowed flex"])
@torch.no_grad()
def test_any_chunks_give_the_logits_of_the_full_forward_pass(make, kind: str, chunks: list[int]):
    model = make(kind)
    rows = torch.stack(prompts([12, 12, 12]))
    cache = KVCache(model.shape, torch.zeros(3, dtype=torch.long), 12, torch.float32)
    found = torch.cat([model(chunk, cache=cache) for chunk in rows.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(found, model(rows), **CLOSE)
    assert cache.length == 12 + (4 if kind == "prefix" else 0)  # virtual tokens are kept too


@pytest.mark.parametrize("filler", [0, 33])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_left_padding_changes_nothing(make, kind: str, filler: int):
    model = make(kind)
    parts, more = prompts([3, 9, 1, 6]), torch.stack(prompts([4] * 4, seed=1))
    rows, starts = padded(parts, filler)
    cache = KVCache(model.shape, starts, rows.shape[1] + 4, torch.float32)
    found = torch.cat([model(rows, cache=cache), *(model(token, cache=cache) for token in more.split(1, dim=1))], dim=1)
    for row, part in enumerate(parts):
        alone = model(torch.cat([part, more[row]])[None])[0]
        torch.testing.assert_close(found[row, starts[row] :], alone, **CLOSE)
    assert found.isfinite().all()


def test_positions_count_from_each_rows_first_real_token(shape):
    cache = KVCache(shape(), torch.tensor([0, 2, 5]), 8, torch.float32)
    assert cache.positions(6).tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 0]]
    cache.advance(6)
    assert cache.positions(2).tolist() == [[6, 7], [4, 5], [1, 2]]
    cache.select(torch.tensor([2, 0]))
    assert cache.positions(1).tolist() == [[1], [6]]


@pytest.mark.parametrize("chosen", [[2, 0], [1, 1, 1], [3, 0, 0, 2, 3]])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_rows_dropped_reordered_or_shared_go_on_as_alone(make, kind: str, chosen: list[int]):
    model = make(kind)
    parts = prompts([3, 9, 1, 6])
    rows, starts = padded(parts)
    cache = KVCache(model.shape, starts, rows.shape[1] + 5, torch.float32)
    model(rows, cache=cache)
    cache.select(torch.tensor(chosen))
    more = torch.stack(prompts([5] * len(chosen), seed=2))
    found = torch.cat([model(token, cache=cache) for token in more.split([2, 1, 2], dim=1)], dim=1)
    for row, index in enumerate(chosen):
        alone = model(torch.cat([parts[index], more[row]])[None])[0, len(parts[index]) :]
        torch.testing.assert_close(found[row], alone, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "group", "rows"),
    [("plain", group, rows) for rows in (1, 4, 256) for group in (1, 3)] + [(kind, 3, 4) for kind in KINDS[1:]],
)
@torch.no_grad()
def test_the_engine_decodes_as_the_full_forward_pass_does(make, kind: str, group: int, rows: int):
    model = make(kind)
    asked = [part.tolist() for part in prompts([3, 9, 1, 6, 4, 9, 2], seed=4)]
    free = Sampling(max_new_tokens=12, temperature=0)
    unstopped = [greedily(model, prompt, free) for prompt in asked]
    stops = frozenset({unstopped[0][2], unstopped[3][5], unstopped[5][0]})  # rows end one after another
    sampling = Sampling(max_new_tokens=12, stop=stops, temperature=0)
    expected = [greedily(model, prompt, sampling) for prompt in asked]
    assert len({len(tokens) for tokens in expected}) > 2
    found = generate(model, asked, sampling, group=group, rows=rows)
    assert [completion.tokens for completion in found] == [tokens for tokens in expected for _ in range(group)]
    for completion in found:
        assert completion.finish == ("stop" if completion.tokens[-1] in stops else "length")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_sampled_log_probabilities_are_those_of_the_full_forward_pass(make, kind: str):
    model = make(kind)
    asked = [part.tolist() for part in prompts([3, 9, 1, 6], seed=6)]
    sampling = Sampling(max_new_tokens=10, stop=frozenset(range(0, 61, 8)))
    found = generate(model, asked, sampling, generator=torch.Generator().manual_seed(0), group=2)
    for number, completion in enumerate(found):
        prompt = asked[number // 2]
        logps = model(torch.tensor([prompt + completion.tokens])).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = logps.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logps), expected, **CLOSE)


@pytest.mark.parametrize("padding", [0, 3])
@torch.no_grad()
def test_a_text_longer_than_the_context_goes_on_looking_back_no_further_than_it(tiny, padding: int):
    model, windowed = tiny(context=6), tiny(context=64, windows=(6, 6))
    text = torch.stack(prompts([14, 14]))
    rows = torch.cat([torch.zeros(2, padding, dtype=torch.long), text], dim=1)
    cache = KVCache(model.shape, torch.tensor([padding, padding]), 14 + padding, torch.float32)
    found = torch.cat([model(part, cache=cache) for part in rows.split([6 + padding, 1, 4, 1, 1, 1], dim=1)], dim=1)
    torch.testing.assert_close(found[:, padding:], windowed(text), **CLOSE)


@torch.no_grad()
def test_learned_positions_end_with_the_context_and_say_so(tiny):
    model = tiny(context=6, position="learned")
    cache = KVCache(model.shape, torch.tensor([2, 3]), 12, torch.float32)
    assert model(torch.zeros(2, 8, dtype=torch.long), cache=cache).isfinite().all()
    with pytest.raises(ConfigError, match="a text of 7 tokens, and the model has learned 6 positions"):
        model(torch.zeros(2, 1, dtype=torch.long), cache=cache)


@torch.no_grad()
def test_streaming_says_what_the_batch_says(models):
    model = models["plain"]()
    prompt = prompts([5])[0].tolist()
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=12, stop=frozenset({7, 8, 9}), temperature=temperature)
        batch = generate(model, [prompt], sampling, generator=torch.Generator().manual_seed(2))
        streamed = list(stream(model, prompt, sampling, generator=torch.Generator().manual_seed(2)))
        assert streamed == batch[0].tokens
