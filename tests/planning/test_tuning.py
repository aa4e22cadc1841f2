"""Plans of fine-tuning: shapes brought and named, what is trained counted to the byte, what fits where."""

import json
import shutil

import pytest
import torch

from ludus.adapters import files
from ludus.adapters.apply import apply
from ludus.adapters.settings import LoraSettings, NoAdapter
from ludus.base.errors import ConfigError, RunError
from ludus.model import exchange
from ludus.model.settings import ModelSettings, architecture
from ludus.model.transformer import build
from ludus.optim.settings import AdamWSettings
from ludus.planning import devices, ledger, memory_errors, micro_batch, spending, tuning
from ludus.planning.work import Work
from ludus.recipes.schema import Recipe

KINDS = [
    {"kind": "lora"},
    {"kind": "lora+", "rank": 3},
    {"kind": "dora"},
    {"kind": "vera", "rank": 16},
    {"kind": "loha"},
    {"kind": "ia3"},
    {"kind": "prefix"},
    {"kind": "prefix", "projection": 12},
    {"kind": "prompt", "tokens": 3},
    {"kind": "lora", "also": ["embed_tokens", "norm"]},
]


def asked(**settings: object) -> str:
    """Return an adapter as a work holds it."""
    return json.dumps(tuning.SETTINGS.validate_python(settings).model_dump(mode="json"), sort_keys=True)


def sum_of(found: ledger.Ledger, start: str) -> int:
    return sum(size for name, size in found.parts.items() if name.startswith(start))


@pytest.fixture
def work(shape):
    return Work(
        shape(), 2, 24, 2, 10, "float32", AdamWSettings(), adapter=asked(kind="lora", rank=4), uneven=True, merge=True
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_adapter_its_gradients_and_moments_are_counted_to_the_byte(work, kind):
    found = ledger.measure(work.with_(adapter=asked(**kind)))
    model = apply(build(work.shape, seed=0), tuning.SETTINGS.validate_python(kind), seed=0)
    trained = 4 * sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert found.parts[tuning.ADAPTER] == found.parts[ledger.GRADIENTS] == trained
    moments = [found.parts[ledger.STATE + name] for name in ("exp avg", "exp avg sq")]
    assert moments == [trained, trained]


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4.127), ("int8", 8.1)])
def test_quantised_weights_are_counted_by_their_bits(work, kind, bits):
    shape = architecture(ModelSettings(depth=2, width=256), vocabulary=300, context=64)
    found = ledger.measure(work.with_(shape=shape, quantise=kind))
    weights = sum(one.weight.numel() for one in build(shape, seed=0).layers.modules() if hasattr(one, "in_features"))
    assert found.parts[tuning.QUANTISED] * 8 / weights == pytest.approx(bits, rel=0.005)
    assert found.frozen == found.parts[tuning.QUANTISED] + found.parts[tuning.FROZEN]


@pytest.mark.parametrize("kind", KINDS[:3] + KINDS[7:], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"quantise": "nf4", "weights": "bfloat16", "precision": "bfloat16", "recompute": True},
        {"quantise": "int8"},
        {"weights": "bfloat16", "precision": "bfloat16", "beside": 1},
    ],
    ids=str,
)
def test_a_tuning_step_without_content_takes_what_a_real_one_takes(work, kind, changes):
    wide = architecture(ModelSettings(depth=2, width=64), vocabulary=300, context=64)
    work = work.with_(shape=wide, adapter=asked(**kind), **changes)
    fake, real = ledger._walk(work), ledger._walk(work, fake=False)
    assert fake.peak == pytest.approx(real.peak, rel=0.01)
    assert fake.saved == pytest.approx(real.saved, rel=0.01)
    assert fake.standing == pytest.approx(real.standing, abs=4096)  # tables of levels are made when they are wanted


def test_a_deep_tuning_is_extended_from_a_shallow_one(work, monkeypatch, shape):
    deep = work.with_(shape=shape(layers=8), recompute=True)
    monkeypatch.setattr(ledger, "MOST_ADAPTED_LAYERS", 8)
    whole = ledger._extended(deep)
    monkeypatch.setattr(ledger, "MOST_ADAPTED_LAYERS", 4)
    assert ledger._extended(deep).peak == pytest.approx(whole.peak, rel=0.01)


def test_what_is_frozen_is_in_no_checkpoint(work):
    here = devices.Device("this", "here", "cpu", {"float32": 1e11}, 10**10, 1e10)
    parts = spending.memory(
        work.with_(merge=False, shape=architecture(ModelSettings(depth=2, width=256), vocabulary=300, context=64)), here
    ).parts
    assert parts[spending.CHECKPOINT] == pytest.approx(3 * parts[tuning.ADAPTER], rel=0.01)
    assert parts[spending.CHECKPOINT] < parts[tuning.FROZEN]


@pytest.mark.parametrize(("size", "device"), [("8B", "rtx4090"), ("8B", "l4"), ("70B", "rtxa6000"), ("70B", "l40s")])
def test_a_large_model_in_four_bits_fits_one_card(size, device):
    shape = architecture(ModelSettings(family="llama", size=size), vocabulary=128_256, context=512)
    card = devices.find(device)
    work = Work(
        shape,
        1,
        512,
        16,
        100,
        "bfloat16",
        AdamWSettings(),
        adapter=asked(kind="lora", rank=16),
        quantise="nf4",
        weights="bfloat16",
        recompute=True,
        merge=True,
        on_gpu=True,
    )
    found = spending.memory(work, card)
    assert found.total <= card.memory_bytes
    linear = work.parameters - 2 * shape.vocabulary * shape.width - (2 * shape.layers + 1) * shape.width
    assert found.parts[tuning.QUANTISED] == pytest.approx(linear * 4.127 / 8, rel=1e-3)
    assert found.merging > 4 * work.parameters  # of the processor's memory, and said


def test_the_shape_is_that_of_what_is_brought(shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build(shape(), seed=0)
    exchange.save(model, tmp_path / "elsewhere" / "model")
    files.save(apply(model, LoraSettings(), seed=0), tmp_path / "adapter", base=str(tmp_path / "elsewhere" / "model"))
    recipe = Recipe.model_validate({"sft": {"adapter": {"kind": "lora"}, "replay": 3}, "data": {"context": 16}})
    for place in ("elsewhere/model", "adapter"):
        found = tuning.tuning(recipe, tmp_path / place)
        assert (found.shape.width, found.shape.layers) == (shape().width, shape().layers)
    assert found.tokens_per_step == (recipe.sft.rows + 3) * 16
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"belongs to the model .*give its new place"):
        tuning.tuning(recipe, tmp_path / "adapter")


def test_the_shape_is_that_of_the_size_that_is_named():
    recipe = Recipe.model_validate({"model": {"family": "llama", "size": "8B"}, "sft": {"steps": 10}})
    found = tuning.tuning(recipe, None)
    assert found.parameters == 8_030_261_248
    assert found.adapter == ""
    assert isinstance(recipe.sft.adapter, NoAdapter)
    with pytest.raises(ConfigError, match=r"needs a model: model=FOLDER.*model\.size=8B"):
        tuning.tuning(Recipe(), None)


def test_epochs_are_steps_where_the_data_is_here(tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n' * 1000)
    told = {"epochs": 2, "rows": 5, "packing": False, "validation_share": 0.1, "data": str(tmp_path / "chats.jsonl")}
    recipe = Recipe.model_validate({"model": {"size": "1B"}, "sft": told})
    found = tuning.tuning(recipe, None)
    assert (found.steps, found.validation_examples) == (2 * 900 // 5, 100)
    recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"data": str(tmp_path / "none.jsonl")})})
    assert tuning.tuning(recipe, None).steps == recipe.sft.steps
    assert "stand for sft.epochs=2" in tuning.text_of(recipe, 1000).tokens_origin


def test_merging_is_its_own_moment_where_a_processor_does_both(work):
    here = devices.Device("this", "here", "cpu", {"float32": 1e11}, 10**10, 1e10)
    wide = work.with_(
        shape=architecture(ModelSettings(depth=8, width=512), vocabulary=4096, context=64), quantise="nf4", rows=1
    )
    found = spending.memory(wide, here)
    assert found.moment == spending.MERGING
    assert found.parts[spending.MERGED] > 4 * wide.parameters
    alone = spending.memory(wide.with_(merge=False), here)
    assert alone.total < found.total == found.merging
    said = memory_errors.advice(
        wide, micro_batch.Fit(1, 0, 1), alone.total, lambda one: spending.memory(one, here).total, stage="sft"
    )
    assert said[0].startswith("sft.merge=false")
    assert "(fits)" in said[0]


def test_advice_for_a_tuning_goes_from_what_changes_least_to_what_changes_most(work):
    def total(one: Work) -> int:
        saved = (one.weights == "bfloat16") + (one.quantise == "nf4") + (getattr(one.optimizer, "state", "") == "8bit")
        return 1000 + 100 * one.rows + one.context + 300 * (not one.recompute) - 200 * saved + 2000 * (not one.adapter)

    whole = work.with_(adapter="", rows=4, merge=False, context=256)
    said = memory_errors.advice(whole, micro_batch.Fit(0, 0, 1), 800, total, stage="sft")
    order = [
        "rows=1 sft.accumulate=8",
        "recompute=true",
        "adapter.kind=lora",
        "weights=bfloat16",
        "quantise=nf4",
        "optimizer.state=8bit",
    ]
    assert [line.split(":")[0] for line in said[:6]] == [
        f"sft.{name}" + (" sft.adapter.rank=16" if "kind" in name else "") for name in order
    ]
    assert "0.00 GB (not enough yet)" in said[3]
    assert "(fits)" in said[-1]
    hopeless = memory_errors.advice(whole, micro_batch.Fit(0, 0, 1), 10, total, stage="sft")
    assert "data.context=128" in hopeless[6]
    assert "shard the model" in hopeless[-1]
    assert memory_errors.advice(whole, micro_batch.Fit(4, 0, 1), 10**9, total, stage="sft") == []


def test_norms_stay_wide_where_weights_are_kept_narrow(work):
    model = tuning.blank(work.with_(weights="bfloat16"))
    kept = {one.dtype for one in model.parameters() if one.dim() < 2}
    assert kept == {torch.float32}
