from pathlib import Path

import pytest

from ludus.base.config import Settings, resolve
from ludus.base.errors import ConfigError
from ludus.data.settings import DataSettings


class Schema(Settings):
    data: DataSettings = DataSettings()


def said(folder: Path, text: str, *overrides: str) -> DataSettings:
    (folder / "recipe.yaml").write_text(text)
    file = folder / "recipe.yaml"
    return resolve(Schema, recipe=file, presets=folder, environment={}, overrides=overrides).settings.data


def test_a_recipe_says_a_mixture_and_the_command_line_changes_it(tmp_path: Path):
    text = "data:\n  mixture: {web: {hub: a/b, weight: 0.7}, books: {path: c, epochs: 2}}\n"
    text += "  annealing: [{start: 0.8, weights: {books: 1}}]\n  rows_ramp: [{start: 0.1, rows: 8}]\n"
    data = said(tmp_path, text, "data.mixture.web.weight=0.5", "data.mixture.web.path=[x, y]", "data.prefetch=0")
    assert (data.mixture["web"].path, data.mixture["web"].weight) == (["x", "y"], 0.5)
    assert (data.mixture["books"].epochs, data.mixture["books"].weight) == (2, 1)
    assert (data.annealing[0].start, data.rows_ramp[0].rows, data.prefetch) == (0.8, 8, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "mixture: {web: {pth: a, path: b}}",
            r"data\.mixture\.web\.pth: unknown key.*did you mean data\.mixture\.web\.path",
        ),
        ("mixture: {web: {weight: 1}}", r"data\.mixture\.web: a domain needs text: set its path or its hub"),
        ("mixture: {train: {path: a}}", "'train' cannot name a domain"),
        ("mixture: {../web: {path: a}}", "cannot name a domain"),
        ("annealing: [{strat: 0.5, start: 0.2, weights: {}}]", r"data\.annealing\.0\.strat: unknown key"),
        ("rows_ramp: [{start: 1.5, rows: 2}]", r"data\.rows_ramp\.0\.start"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(tmp_path: Path, text: str, says: str):
    with pytest.raises(ConfigError, match=says) as caught:
        said(tmp_path, f"data:\n  {text}\n")
    assert "\n" not in str(caught.value)
