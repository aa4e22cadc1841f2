"""A plain value in place of a section, and parents that derive for the sections below them."""

from typing import Any, ClassVar

import pytest

from ludus.base.config import Field, Settings, resolve
from ludus.base.errors import ConfigError


class Rate(Settings):
    """How fast."""

    rate: float | None = Field(None, gt=0)

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        return {"rate": (0.1, "usual")}


class Model(Settings):
    """What is trained."""

    shorthand: ClassVar[str] = "base"
    base: str | None = None
    depth: int = 4


class Stage(Settings):
    """One stage."""

    small: bool = False
    optimizer: Rate = Rate()

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        return {"optimizer.rate": (1.0, "for a small model")} if self.small else {}


class Recipe(Settings):
    """All of it."""

    model: Model = Model()
    stage: Stage = Stage()


def read(tmp_path, *overrides: str, recipe: str | None = None):
    file = tmp_path / "a.yaml"
    file.write_text(recipe or "stage: {small: false}\n")
    return resolve(Recipe, recipe=file, presets=tmp_path, environment={}, overrides=overrides)


def test_a_plain_value_stands_for_the_sections_shorthand(tmp_path):
    resolved = read(tmp_path, "model=stories.bin", "model.depth=2")
    assert resolved.settings.model == Model(base="stories.bin", depth=2)
    assert resolved.origins["model.base"] == "command line"


def test_the_shorthand_works_in_a_recipe_and_keeps_what_stands_beside_it(tmp_path):
    assert read(tmp_path, "model.depth=3", recipe="model: a\n").settings.model == Model(base="a", depth=3)


def test_a_section_without_a_shorthand_takes_no_plain_value(tmp_path):
    with pytest.raises(ConfigError, match="stage: expected a section with keys, got 'a'"):
        read(tmp_path, "stage=a")


def test_a_parent_derives_for_a_section_below_it_before_that_is_asked(tmp_path):
    resolved = read(tmp_path, "stage.small=true")
    assert resolved.settings.stage.optimizer.rate == 1.0
    assert resolved.origins["stage.optimizer.rate"] == "derived: for a small model"
    assert read(tmp_path).settings.stage.optimizer.rate == 0.1
    assert read(tmp_path, "stage.small=true", "stage.optimizer.rate=3").settings.stage.optimizer.rate == 3


def test_a_derivation_of_a_field_that_is_not_there_is_a_mistake_of_ours(tmp_path):
    class Wrong(Stage):
        def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
            return {"optimizer.speed": (1.0, "none")}

    class Bad(Settings):
        stage: Wrong = Wrong()

    with pytest.raises(TypeError, match=r"optimizer\.speed"):
        resolve(Bad, recipe=None, presets=tmp_path, environment={}, overrides=[])
