"""Virtual tokens of either kind: whatever surrounds them, a text reads the same ones and computes the same."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from switches import KINDS as SWITCHED
from switches import SWITCHES, switched
from torch import Tensor

from ludus.adapters import virtual
from ludus.adapters.noise import noise
from ludus.adapters.prefix import prefix
from ludus.adapters.prompt import prompt
from ludus.adapters.settings import PrefixSettings, PromptSettings
from ludus.base.errors import CheckpointError, ConfigError
from ludus.data.batch import Batch, collate
from ludus.data.shards import TokenShards
from ludus.data.sources import pretraining
from ludus.generation.cache import KVCache
from ludus.generation.engine import Sampling, generate, stream
from ludus.generation.lean import lean
from ludus.learning import checkpoints
from ludus.learning.loop import Run, train
from ludus.learning.objectives.next_token import next_token
from ludus.model.sight import document_positions
from ludus.model.transformer import Transformer
from ludus.optim import groups
from ludus.optim.schedules import constant
from ludus.optim.settings import AdamWSettings
from ludus.parallel.mesh import Mesh
from ludus.parallel.recomputation import recompute

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
COUNT = 5
ADAPTERS = {
    "prefix": lambda model: prefix(model, PrefixSettings(tokens=COUNT), seed=3),
    "projected": lambda model: prefix(model, PrefixSettings(tokens=COUNT, projection=12), seed=3),
    "prompt": lambda model: prompt(model, PromptSettings(tokens=COUNT), seed=3),
}
SHAPES = ["llama plain", "llama fused", *SWITCHED]


@pytest.fixture(params=ADAPTERS)
def adapt(request):
    return ADAPTERS[request.param]


@pytest.fixture(params=SHAPES)
def model(request, adapt, tiny) -> Transformer:
    return adapt(switched(tiny, request.param))


@pytest.fixture
def plain(adapt, tiny) -> Transformer:
    return adapt(tiny())


def texts(sizes: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(61, (size,), generator=generator) for size in sizes]


def alone(model: Transformer, text: Tensor) -> Tensor:
    return model(text[None])[0]


@torch.no_grad()
def test_the_virtual_tokens_are_read_and_only_they_are_trained(model):
    text = texts([9])[0][None]
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "virtual.weight" in learned
    assert all(name.startswith("virtual.") for name in learned)
    found = model(text)
    assert found.shape == (1, 9, 61)
    weight = virtual.virtual_of(model).weight
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(model(text), found, atol=1e-3)


@torch.no_grad()
def test_packed_documents_and_padding_compute_what_each_does_alone(model):
    parts = texts([4, 7, 1, 5])
    row = torch.cat([*parts, torch.full((3,), 9)])[None]
    documents = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    documents = torch.cat([documents, torch.full((3,), -1)])[None]
    found = model(row, documents=documents)
    assert found.isfinite().all()
    for part, piece in zip(parts, found[0].split([4, 7, 1, 5, 3]), strict=False):
        torch.testing.assert_close(piece, alone(model, part), **CLOSE)


@pytest.mark.parametrize("length", [0, 1, 6])
@torch.no_grad()
def test_answers_that_share_a_prompt_compute_what_each_does_behind_a_prompt_of_its_own(model, length: int):
    question, *answers = texts([length, 3, 1, 6])
    row = torch.cat([question, *answers, torch.zeros(2, dtype=torch.long)])[None]
    sizes = [length, 3, 1, 6, 2]
    documents = torch.cat([torch.full((size,), number) for size, number in zip(sizes, [0, 1, 2, 3, -1], strict=True)])
    found = model(row, documents=documents[None], shared=True)[0].split(sizes)
    assert all(part.isfinite().all() for part in found)
    for answer, piece in zip(answers, found[1:], strict=False):
        torch.testing.assert_close(piece, alone(model, torch.cat([question, answer]))[length:], **CLOSE)


@torch.no_grad()
def test_explicit_positions_are_those_of_the_text(model):
    parts = texts([6, 6])
    documents = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    rows, positions = torch.stack(parts), document_positions(documents)
    expected = model(rows, documents=documents)
    torch.testing.assert_close(model(rows, positions=positions, documents=documents), expected, **CLOSE)
    torch.testing.assert_close(model(rows, positions=torch.arange(6).expand(2, -1)), model(rows), **CLOSE)
    if model.shape.position != "none":
        shifted = model(rows, positions=torch.tensor([[0, 2, 3, 5, 8, 9]] * 2))
        assert not torch.allclose(shifted, model(rows), atol=1e-3)


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 1, 3, 2]])
@torch.no_grad()
def test_any_chunks_through_the_cache_give_the_full_pass(model, chunks: list[int]):
    rows = torch.stack(texts([12, 12, 12]))
    cache = KVCache(model.shape, torch.zeros(3, dtype=torch.long), 12, torch.float32)
    found = torch.cat([model(chunk, cache=cache) for chunk in rows.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(found, model(rows), **CLOSE)
    assert cache.length == 12 + COUNT


@torch.no_grad()
def test_left_padding_selection_and_sharing_change_nothing(model):
    parts = texts([3, 9, 1, 6])
    rows = torch.stack([torch.cat([torch.full((9 - len(part),), 33), part]) for part in parts])
    starts = torch.tensor([9 - len(part) for part in parts])
    cache = KVCache(model.shape, starts, 14, torch.float32)
    positions = cache.positions(9)
    found = model(rows, cache=cache)
    assert found.isfinite().all()
    again = KVCache(model.shape, starts, 14, torch.float32)
    told = model(rows, cache=again, positions=positions)
    for part, row, other, start in zip(parts, found, told, starts, strict=True):
        torch.testing.assert_close(row[start:], alone(model, part), **CLOSE)
        torch.testing.assert_close(other[start:], row[start:], **CLOSE)
    chosen = [2, 0, 0, 3]
    cache.select(torch.tensor(chosen))
    more = torch.stack(texts([5] * 4, seed=2))
    after = torch.cat([model(piece, cache=cache) for piece in more.split([2, 1, 2], dim=1)], dim=1)
    for row, index in enumerate(chosen):
        whole = alone(model, torch.cat([parts[index], more[row]]))[len(parts[index]) :]
        torch.testing.assert_close(after[row], whole, **CLOSE)


@torch.no_grad()
def test_the_first_tokens_of_a_padded_cache_must_hold_some_of_every_row(plain):
    cache = KVCache(plain.shape, torch.tensor([0, 4]), 12, torch.float32)
    with pytest.raises(ValueError, match="at least the first real token of every row"):
        plain(torch.zeros(2, 3, dtype=torch.long), cache=cache)


@torch.no_grad()
def test_the_engine_draws_what_the_full_pass_says(plain):
    asked = [part.tolist() for part in texts([3, 9, 1, 6, 4], seed=4)]
    sampling = Sampling(max_new_tokens=8, stop=frozenset({7, 8}), temperature=0)
    expected = []
    for tokens in asked:
        said: list[int] = []
        while len(said) < 8 and not {7, 8} & set(said):
            said.append(int(plain(torch.tensor([tokens + said]))[0, -1].argmax()))
        expected.append(said)
    found = generate(plain, asked, sampling, group=2, rows=4)
    assert [each.tokens for each in found] == [said for said in expected for _ in range(2)]
    assert [list(stream(plain, tokens, sampling)) for tokens in asked] == expected


@torch.no_grad()
def test_a_text_as_long_as_the_context_sees_all_virtual_tokens_through_a_cache(adapt, tiny):
    model = adapt(tiny(context=12))
    row = texts([12])[0][None]
    cache = KVCache(model.shape, torch.zeros(1, dtype=torch.long), 20, torch.float32)
    found = torch.cat([model(piece, cache=cache) for piece in row.split(1, dim=1)], dim=1)
    torch.testing.assert_close(found, model(row), **CLOSE)
    before = model(row[:, :4], cache=cache)  # beyond the context all grows older, virtual tokens too
    assert before.isfinite().all()


def test_learned_positions_count_the_virtual_tokens(adapt, tiny):
    model = adapt(tiny(context=12, position="learned"))
    assert (virtual.room(model), virtual.room(tiny(context=12)), virtual.room(adapt(tiny(context=12)))) == (7, 12, 12)
    assert model(torch.zeros(1, 7, dtype=torch.long)).isfinite().all()
    with pytest.raises(ConfigError, match="8 tokens in a row after 5 virtual ones, and the model has learned 12"):
        model(torch.zeros(1, 8, dtype=torch.long))
    cache = KVCache(model.shape, torch.tensor([0, 1]), 12, torch.float32)
    model(torch.zeros(2, 7, dtype=torch.long), cache=cache)
    with pytest.raises(ConfigError, match="the model has learned 12 positions"):
        model(torch.zeros(2, 1, dtype=torch.long), cache=cache)
    with pytest.raises(ConfigError, match="5 virtual tokens leave no room in the 4 positions"):
        adapt(tiny(context=4, position="learned"))


# --- gradients ---


def batches(seed: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [(random.integers(0, 61, size), np.ones(size, np.float32)) for size in (4, 11, 2, 7)]


def gradients(model: Transformer, parts: list[Batch]) -> dict[str, Tensor]:
    model.zero_grad()
    for part in parts:
        next_token(model, part)["loss"].backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert value.isfinite().all()
        assert value.norm() > 0, name
        assert (found[name] - value).norm() <= 2e-6 * value.norm(), name


@pytest.mark.law
def test_rows_packing_and_recomputation_change_no_gradient(model):
    if "flex" in model.attention_backend:
        pytest.skip("FlexAttention has no backward pass on a processor")
    examples = batches()
    together = gradients(model.train(), [collate([[each] for each in examples], pad_token=0)])
    assert_same(gradients(model, [collate([[each]], pad_token=0) for each in examples]), together)
    assert_same(gradients(model, [collate([examples[:2], examples[2:]], pad_token=0, length=20)]), together)
    assert_same(gradients(recompute(model), [collate([examples], pad_token=0)]), together)


@pytest.mark.parametrize("backend", ["plain", "fused", "blocked", "flex", "auto"])
def test_every_attention_backend_gives_the_same_gradient(plain, backend: str):
    examples = batches()
    expected = gradients(plain, [collate([examples], pad_token=0)])
    plain.attention_backend = backend
    assert_same(gradients(plain, [collate([examples], pad_token=0)]), expected)


def test_low_precision_keeps_the_virtual_tokens_in_float32(adapt, tiny):
    for base in (tiny().bfloat16(), tiny()):
        base.precision = torch.bfloat16
        found = gradients(adapt(base), [collate([batches()], pad_token=0)])
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found.values())
        assert next(iter(base.virtual.parameters())).dtype == torch.float32


def test_they_learn(plain):
    batch = collate([batches()], pad_token=0)
    optimizer = groups.build(plain.named_parameters(), AdamWSettings(learning_rate=0.05))
    losses = []
    for _ in range(20):
        loss = next_token(plain, batch)["loss"] / batch.weight
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


# --- surgery ---


@torch.no_grad()
def test_a_copy_for_decoding_computes_the_same(plain):
    plain.precision = torch.bfloat16
    row = texts([9])[0][None]
    fast = lean(plain)
    assert fast is not plain
    torch.testing.assert_close(fast(row), plain(row), rtol=0, atol=0)


@torch.no_grad()
def test_without_them_the_model_is_exactly_its_base(adapt, tiny):
    row, base = texts([9])[0][None], tiny()
    model = adapt(tiny())
    with_them = model(row)
    view = virtual.remove(copy.copy(model))
    assert torch.equal(view(row), base(row))
    assert torch.equal(model(row), with_them)
    assert torch.equal(copy.deepcopy(model)(row), with_them)
    virtual.remove(model)
    assert type(model) is Transformer
    assert virtual.virtual_of(model) is None
    assert model.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(model(row), base(row))
    assert adapt(model).virtual is virtual.virtual_of(model)
    with pytest.raises(ValueError, match="remove them first"):
        adapt(model)


@torch.no_grad()
def test_states_and_files_come_back_bit_for_bit(adapt, tiny):
    row, model = texts([9])[0][None], adapt(tiny())
    for parameter in model.virtual.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    again = adapt(tiny())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(row), model(row))
    config, tensors = virtual.config(model), virtual.tensors(model)
    assert tensors.keys() == {"prompt_embeddings"}
    loaded = virtual.load(tiny(), config, tensors)
    assert torch.equal(loaded(row), model(row))
    assert [name for name, value in loaded.named_parameters() if value.requires_grad] == ["virtual.weight"]
    assert virtual.config(loaded) == config


@pytest.mark.law
def test_a_resumed_run_goes_on_bit_for_bit_noise_included(adapt, tiny, tmp_path):
    text = TokenShards(np.tile(np.arange(60, dtype=np.uint16), 20), np.arange(0, 1201, 100), 1200)

    def fresh() -> Run:
        model = noise(adapt(tiny(dropout=0.1)), 5.0)
        torch.manual_seed(0)
        optimizer = groups.build(model.named_parameters(), AdamWSettings(learning_rate=0.02))
        return Run(tmp_path, model, optimizer, constant(), pretraining(text, context=16, rows=4, pad_token=60, seed=1))

    def go(run: Run, steps: int) -> list[float]:
        seen: list[float] = []
        train(run, next_token, steps=steps, mesh=Mesh(), hooks=[lambda _, metrics: seen.append(metrics["loss"])])
        return seen

    whole = go(fresh(), 8)
    first = fresh()
    losses = go(first, 4)
    path = checkpoints.save(tmp_path, first.step, first.state_dict())
    resumed = fresh()
    torch.rand(7)
    resumed.load_state_dict(checkpoints.load(path)[1])
    assert losses + go(resumed, 8) == whole
    assert len(set(whole)) == 8


def test_files_that_do_not_fit_are_refused_by_what_is_wrong(plain, tiny):
    config, tensors = virtual.config(plain), virtual.tensors(plain)
    for wrong, match in [({"peft_type": "IA3"}, "of kind IA3"), ({"num_transformer_submodules": 2}, "decoders only")]:
        with pytest.raises(CheckpointError, match=match):
            virtual.load(tiny(), {**config, **wrong}, tensors)
    with pytest.raises(CheckpointError, match="holds nothing; save it again"):
        virtual.load(tiny(), config, {})
    with pytest.raises(CheckpointError, match="trained on another model"):
        virtual.load(tiny(width=48, layers=3), config, tensors)
    with pytest.raises(CheckpointError, match="leave no room in the 5 positions"):
        virtual.load(tiny(context=5, position="learned"), config, tensors)


def test_the_seed_decides_where_they_start(adapt, tiny):
    assert torch.equal(adapt(tiny()).virtual.table(), adapt(tiny()).virtual.table())


def test_shapes_here_are_all_there_are():
    assert {kind.rpartition(" ")[0] for kind in SHAPES} == set(SWITCHES)
    assert {field.name for field in dataclasses.fields(Batch)} >= {"documents", "shared"}
