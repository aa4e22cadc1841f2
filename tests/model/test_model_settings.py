import pytest

from ludus.base.config import Settings, resolve
from ludus.base.errors import ConfigError
from ludus.model.architecture import Architecture, Experts, RopeScaling
from ludus.model.presets import FAMILIES, SIZES
from ludus.model.settings import ModelSettings, architecture


class Recipe(Settings):
    model: ModelSettings = ModelSettings()


def found(*overrides: str):
    return resolve(Recipe, recipe=None, presets=None, environment={}, overrides=list(overrides))


def resolved(*overrides: str) -> ModelSettings:
    return found(*overrides).settings.model


def shaped(*overrides: str) -> Architecture:
    return architecture(resolved(*overrides), vocabulary=100, context=64)


@pytest.mark.parametrize("depth", range(1, 33))
def test_every_depth_derives_an_architecture(depth: int):
    shape = architecture(resolved(f"model.depth={depth}"), vocabulary=100, context=64)
    assert shape.layers == depth
    assert shape.heads * shape.head_dim == shape.width
    assert shape.heads % shape.kv_heads == 0
    assert shape.hidden % 32 == 0
    assert 2.6 < shape.hidden / shape.width < 3.1


def test_width_never_falls_with_depth():
    widths = [resolved(f"model.depth={depth}").width or 0 for depth in range(1, 33)]
    assert widths == sorted(widths)


def test_a_set_value_moves_what_derives_from_it():
    settings = resolved("model.width=96", "model.heads=6")
    assert (settings.kv_heads, settings.hidden) == (3, 256)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.width=100", "model.heads=3"], "multiple of 6"),
        (["model.width=96", "model.heads=32"], "multiple of 64"),
        (["model.heads=4", "model.kv_heads=3"], "does not divide"),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_what_would(overrides: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        architecture(resolved(*overrides), vocabulary=100, context=64)


def test_the_default_is_the_llama_it_was():
    assert shaped() == Architecture(100, 4, 128, 4, 2, 32, 352, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_sets_every_switch_and_says_so(family: str):
    resolution = found(f"model.family={family}")
    for switch, value in FAMILIES[family].items():
        assert getattr(resolution.settings.model, switch) == value
        assert resolution.origins[f"model.{switch}"] == f"derived: model.family={family}"
    unset = [name for name, value in resolution.settings.model if value is None]
    assert unset == ["base", "size", "window", "logit_softcap"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_switch_may_be_set_by_itself(family: str):
    shape = shaped(f"model.family={family}", "model.activation=gelu", "model.norm=plain", "model.mlp_convolution=1")
    assert (shape.activation, shape.norm, shape.mlp_convolution, shape.hidden) == ("gelu", "plain", 1, 512)
    assert shape.position == FAMILIES[family]["position"]


def test_families_are_what_they_are_called():
    gpt2, modern = shaped("model.family=gpt2", "model.depth=12"), shaped("model.family=modern")
    assert (gpt2.width, gpt2.heads, gpt2.kv_heads, gpt2.hidden) == (768, 12, 12, 3072)
    assert (gpt2.norm, gpt2.position, gpt2.activation, gpt2.tied) == ("layer", "learned", "gelu_tanh", True)
    assert (modern.norm, modern.qk_norm, modern.activation, modern.tied) == ("plain", "plain", "relu2", False)
    assert (modern.embedding_norm, modern.ngrams) == (True, 4)


@pytest.mark.parametrize(("family", "size"), [(family, size) for family, sizes in SIZES.items() for size in sizes])
def test_a_named_size_resolves_and_says_so(family: str, size: str):
    resolution, known = found(f"model.family={family}", f"model.size={size}"), SIZES[family][size]
    shape = architecture(resolution.settings.model, vocabulary=100, context=64)
    assert shape.layers == known.layers
    assert known.width in (None, shape.width)
    assert known.hidden in (None, shape.hidden)
    assert shape.tied == known.switches.get("tied", FAMILIES[family]["tied"])
    assert resolution.origins["model.depth"] == f"derived: model.size={size} of {family}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.family=gpt2", "model.size=125M"], "no size of gpt2, which has 124M.*did you mean 124M"),
        (["model.size=124M"], "no size of llama"),
        (["model.size=1B", "model.depth=4"], "model.size=1B has 16 layers, and model.depth=4; set model.depth=null"),
        (["model.activation=swish"], "expected one of swiglu, gelu, gelu_tanh, relu2"),
        (["model.family=lama"], "did you mean llama"),
        (["model.window_pattern=LX"], "window_pattern"),
        (["model.position=rope_interleaved", "model.rotary_dims=64"], "more than a head has"),
        (["model.experts.count=2", "model.experts.chosen=3"], "set it to fewer"),
        (["model.rope_scaling.kind=yarn", "model.rope_scaling.low_frequency_factor=1"], "low_frequency_factor"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would(overrides: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        shaped(*overrides)


def test_windows_follow_their_pattern():
    assert shaped("model.depth=6").windows == ()
    assert shaped("model.depth=6", "model.window=16").windows == (16, 16, 16, None, 16, 16)
    assert shaped("model.depth=3", "model.window=16", "model.window_pattern=GL").windows == (None, 16, None)


def test_experts_are_together_as_large_as_one_feed_forward():
    shape = shaped("model.experts.count=8", "model.width=128")
    assert shape.experts == Experts(8, 2, 1, 112, 0.001)
    assert 3 * shape.experts.hidden <= shape.hidden


def test_stretched_positions_reach_the_architecture():
    assert shaped("model.rope_scaling.kind=llama3").rope_scaling == RopeScaling("llama3", 8.0)
    yarn = shaped("model.rope_scaling.kind=yarn", "model.rope_scaling.factor=2", "model.rope_scaling.beta_fast=16")
    assert yarn.rope_scaling == RopeScaling("yarn", 2.0, 4096, beta_fast=16.0)


def test_heads_may_be_wider_than_their_share():
    shape = shaped("model.width=96", "model.heads=4", "model.head_dim=32")
    assert (shape.head_dim, shape.rotary_dims) == (32, 32)


def test_windows_must_be_one_a_layer():
    with pytest.raises(ValueError, match="1 windows for 2 layers"):
        Architecture(100, 2, 32, 2, 2, 16, 64, 64, windows=(3,))
