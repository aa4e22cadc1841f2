"""Grids: several values make an axis, what is in brackets is one value, and folders' names never clash."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base.errors import ConfigError
from ludus.cli.grid import axes, cells, names, split


def test_several_values_are_an_axis_and_one_is_fixed():
    found, fixed = axes(["model.depth=2,4", "seed=1", "stages=[corpus, pretrain]", "pretrain.prompts=[a,b],[c]"])
    assert found == {"model.depth": ["2", "4"], "pretrain.prompts": ["[a,b]", "[c]"]}
    assert fixed == ["seed=1", "stages=[corpus, pretrain]"]
    assert [cell["model.depth"] for cell in cells(found)] == ["2", "2", "4", "4"]
    assert split("""{a: 1, b: 2},"x, y",'z,'""") == ["{a: 1, b: 2}", '"x, y"', "'z,'"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to sweep: give a setting several values, as in model.depth=2,4,6"),
        (["seed=1"], "nothing to sweep: give a setting several values, as in model.depth=2,4,6"),
        (["a=1,,2"], "a: a value is empty; values are separated by single commas, as in a=1,2,3"),
        (["a=1,2,1"], "a: the value 1 is given twice"),
        (["a=1,2", "a=3"], "a is given twice; give all its values at once, as in a=1,2,3"),
        (["name=a,b"], "name is the same for a whole sweep; give it one value (a list in brackets is one)"),
    ],
)
def test_what_is_no_grid_is_one_line(overrides, message):
    with pytest.raises(ConfigError) as caught:
        axes(overrides)
    assert str(caught.value) == message


def test_names_are_short_and_readable():
    assert names(cells({"model.depth": ["2"], "data.context": ["32", "64"]})) == [
        "depth=2,context=32",
        "depth=2,context=64",
    ]
    assert names(cells({"sft.steps": ["2"], "dpo.steps": ["3"]})) == ["sft.steps=2,dpo.steps=3"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=5, unique=True))
def test_names_are_safe_and_never_clash(values):
    found = names(cells({"corpus.path": values}))
    assert len({name.lower() for name in found}) == len(values)
    for name in found:
        assert len(name.encode()) <= 130
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-=,")
        assert name.startswith("path=")
