import pytest

from ludus.base.config import Settings, resolve
from ludus.base.errors import ConfigError
from ludus.model.settings import ModelSettings, architecture


class Recipe(Settings):
    model: ModelSettings = ModelSettings()


def resolved(*overrides: str) -> ModelSettings:
    found = resolve(Recipe, recipe=None, presets=None, environment={}, overrides=list(overrides))
    return found.settings.model


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
