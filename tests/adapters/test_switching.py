import pytest
import torch

from ludus.adapters.apply import apply
from ludus.adapters.files import save
from ludus.adapters.opening import base_of, newest_adapter, open_model
from ludus.adapters.quantised import Quantised, quantise_model
from ludus.adapters.settings import DoraSettings, Ia3Settings, LohaSettings, LoraSettings, PromptSettings, VeraSettings
from ludus.adapters.surgery import adapters
from ludus.adapters.switching import Shelf
from ludus.adapters.whole import whole
from ludus.base.errors import CheckpointError, ConfigError, RunError
from ludus.model import exchange
from ludus.model.resize import resize

ROW = torch.arange(40).view(2, 20)
KINDS = {
    "lora": LoraSettings(rank=4),
    "dora": DoraSettings(rank=2, targets=["v_proj"]),
    "vera": VeraSettings(rank=4),
    "loha": LohaSettings(rank=2),
    "ia3": Ia3Settings(),
    "prompt": PromptSettings(tokens=3),
}


def adapted(model, settings, also=()):
    apply(model, settings, seed=0)
    whole(model, also)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@torch.no_grad()
def test_adapters_of_every_kind_are_switched_on_one_base(tiny, tmp_path):
    says, base = {None: tiny()(ROW)}, tiny()
    shelf = Shelf(base)
    weights = {name: each.data_ptr() for name, each in base.named_parameters()}
    for name, settings in KINDS.items():
        model = adapted(tiny(), settings, ["lm_head"] if name == "lora" else ())
        says[name] = model(ROW)
        save(model, tmp_path / name)
        shelf.add(name, tmp_path / name)
        assert torch.equal(shelf.model(ROW), says[None])
    assert shelf.names == list(KINDS)
    for name in [*KINDS, None, *reversed(KINDS), None]:
        torch.testing.assert_close(shelf.use(name)(ROW), says[name], rtol=1e-6, atol=1e-6)
        assert shelf.current == name
    assert {name: each.data_ptr() for name, each in base.named_parameters()} == weights


def test_an_adapter_that_is_not_there_or_does_not_fit_leaves_the_shelf_as_it_is(tiny, tmp_path):
    save(adapted(tiny(), LoraSettings()), tmp_path / "one")
    save(adapted(tiny(width=16), LoraSettings()), tmp_path / "other")
    shelf = Shelf(tiny())
    with pytest.raises(ConfigError, match="known are none"):
        shelf.use("one")
    shelf.add("one", tmp_path / "one")
    before = shelf.use("one")(ROW)
    with pytest.raises(CheckpointError):
        shelf.add("other", tmp_path / "other")
    assert torch.equal(shelf.model(ROW), before)
    assert shelf.names == ["one"]
    save(adapted(resize(tiny(), 64), LoraSettings()), tmp_path / "larger")
    with pytest.raises(ConfigError, match="trained with 64 tokens and the model has 61"):
        shelf.add("larger", tmp_path / "larger")
    assert shelf.model.shape.vocabulary == len(shelf.model.embed_tokens.weight) == 61
    with pytest.raises(ConfigError, match="did you mean one"):
        shelf.use("on")
    with pytest.raises(ValueError, match="already"):
        Shelf(shelf.model)


@pytest.fixture
def stage(tiny, tmp_path):
    """A stage's folder with an adapter on a base beside it."""
    exchange.save(tiny(), tmp_path / "base")
    save(adapted(tiny(), LoraSettings()), tmp_path / "run" / "sft" / "adapter", base=str(tmp_path / "base"))
    return tmp_path / "run"


def test_a_model_and_an_adapter_open_alike(tiny, stage):
    adapter = newest_adapter(stage)
    assert adapter == newest_adapter(stage / "sft") == stage / "sft" / "adapter"
    assert torch.equal(open_model(adapter)(ROW), adapted(tiny(), LoraSettings())(ROW))
    assert torch.equal(open_model(base_of(adapter).folder)(ROW), tiny()(ROW))
    assert open_model(adapter, dtype=torch.bfloat16).embed_tokens.weight.dtype == torch.bfloat16


def test_a_base_that_has_moved_is_asked_for(tiny, stage, tmp_path):
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    adapter = newest_adapter(stage)
    with pytest.raises(RunError, match=r"belongs to the model .*base.*--base"):
        open_model(adapter)
    assert list(adapters(open_model(adapter, base=tmp_path / "elsewhere")))
    save(adapted(tiny(), LoraSettings()), tmp_path / "nameless")
    with pytest.raises(RunError, match="does not say which model"):
        open_model(tmp_path / "nameless")
    with pytest.raises(RunError, match="holds no adapter"):
        newest_adapter(tmp_path / "elsewhere")


def test_a_base_with_other_weights_is_refused(tiny, stage, tmp_path):
    exchange.save(tiny(seed=5), tmp_path / "base")
    with pytest.raises(CheckpointError, match="was trained on other weights") as caught:
        open_model(newest_adapter(stage))
    assert "\n" not in str(caught.value)
    exchange.save(tiny(seed=5), tmp_path / "third")
    with pytest.raises(CheckpointError, match="other weights"):
        open_model(newest_adapter(stage), base=tmp_path / "third")


@torch.no_grad()
@pytest.mark.parametrize("initialise", ["zero", "loftq"])
def test_a_base_opens_quantised_as_it_was_while_the_adapter_learned(tiny, tmp_path, initialise: str):
    exchange.save(tiny(), tmp_path / "base")
    model = quantise_model(tiny(), "nf4") if initialise == "zero" else tiny()
    adapted(model, LoraSettings(targets=["q_proj", "up_proj"], initialise=initialise))
    save(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    again = open_model(tmp_path / "adapter", quantise="as-trained")
    assert torch.equal(again(ROW), model(ROW))
    count = sum(isinstance(module, Quantised) for module in again.modules())
    assert count == (14 if initialise == "zero" else 4)
    with pytest.raises(ConfigError, match="none of none, nf4"):
        open_model(tmp_path / "adapter", quantise="nf5")
