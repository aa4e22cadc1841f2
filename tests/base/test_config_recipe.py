"""Recipes on disk: YAML 1.2, strict, by name or path."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base.config.recipe import layers, machine_note, preset_names, read_recipe
from ludus.base.config.yaml import read_yaml
from ludus.base.errors import ConfigError


def load(text: str):
    return read_yaml(text, lambda line: f"line {line}").plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1e5", 1e5), ("on", "on"), ("no", "no"), ("010", 10), ("0o17", 15), ("0x1f", 31),
        ("1_000", 1000), ("~", None), ("", None), ("null", None), ("True", True), ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"), ("1: 2", {"1": 2}), ("-.inf", float("-inf")), ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("'1'", "1"), ('"true"', "true"),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}), ("1.1.1", "1.1.1"), ("|\n  a\n  b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(text, value):
    assert load(text) == value
    assert type(load(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: `a` is set twice"),
        ("a: [1", "line 1: not valid YAML"),
        ("a:\n\tb: 1", "line 2: not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag .* is not allowed"),
        ("a: !x 1", "line 1: the tag"),
        ("b: &b {c: 1}\na:\n  <<: *b", "line 3: .*merge keys"),
        ("? [1, 2]\n: 3", "line 1: a key must be a name"),
        ("a: &x [*x]", "line 1: aliases repeat"),
        ("--- 1\n--- 2", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("[" * 400, "line 1: "),
    ],
)
def test_what_is_not_plain_data_is_one_line_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    assert "\n" not in str(caught.value)


def test_aliases_cannot_blow_up():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match="aliases repeat"):
        load("\n".join(lines))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text):
    told = ""
    try:
        load(text)
    except ConfigError as error:
        told = str(error)
    assert "\n" not in told


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_recipe_is_found_by_name_or_by_path(tmp_path):
    presets = write(tmp_path, tiny="seed: 1", small="seed: 2")
    assert preset_names(presets) == ["small", "tiny"]
    (by_name,) = read_recipe("tiny", presets)
    (by_path,) = read_recipe(tmp_path / "tiny.yaml", tmp_path / "none")
    assert by_name.values.plain() == by_path.values.plain() == {"seed": 1}
    assert by_name.values.value["seed"].origin == "recipe tiny.yaml:1"


def test_extends_is_read_relative_to_its_file(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, base="seed: 1")
    write(tmp_path / "deep", child="extends: ../base.yaml\nname: x")
    chain = read_recipe(tmp_path / "deep" / "child.yaml", tmp_path)
    assert [file.values.plain() for file in chain] == [{"seed": 1}, {"name": "x"}]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("tinny", r"unknown recipe 'tinny'; did you mean tiny\? \(presets are bad, circle, loop, tiny\)"),
        ("./tinny.yaml", r"recipe tinny.yaml does not exist; did you mean tiny\?"),
        ("circle", "circle.yaml:1: `extends` goes round in a circle|goes round in a circle"),
        ("bad", r"recipe bad.yaml:2: unknown recipe 'tniy'; did you mean tiny\?"),
        ("loop", r"extends: expected one name or path, got \[a\] \(from recipe loop.yaml:1\)"),
    ],
)
def test_a_recipe_that_cannot_be_found_names_the_nearest(tmp_path, recipe, message):
    write(tmp_path, tiny="seed: 1", circle="extends: circle", bad="seed: 1\nextends: tniy", loop="extends: [a]")
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(recipe, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- 1", r"a recipe must be keys and values, got \[1\] \(from recipe .*x.yaml:1\)"),
        (b"presets: 5", "presets: presets must be keys and values, got 5"),
        (b"presets: {full: 5}", "presets.full: preset full must be keys and values, got 5"),
        (b"a: 1\n" * 300_000, "larger than"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    (tmp_path / "x.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / "x.yaml", tmp_path)


def test_an_unknown_variant_names_the_nearest_and_a_folder_is_no_recipe(tmp_path):
    chain = read_recipe("tiny", write(tmp_path, tiny="preset: ful\npresets: {full: {seed: 1}}"))
    with pytest.raises(ConfigError, match=r"unknown preset 'ful' \(from recipe tiny.yaml:1\); did you mean full\?"):
        layers(chain, None)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        read_recipe(tmp_path / "folder.yaml", tmp_path)


@pytest.mark.parametrize(("gpu", "seed"), [(True, 1), (False, 2)])
def test_a_recipe_may_leave_its_variant_to_the_machine_and_says_so(tmp_path, monkeypatch, gpu, seed):
    monkeypatch.setattr("ludus.base.config.recipe.has_gpu", lambda: gpu)
    text = "preset: {gpu: full, cpu: twin}\npresets: {full: {seed: 1}, twin: {seed: 2}}"
    chain = read_recipe("tiny", write(tmp_path, tiny=text))
    assert layers(chain, None)[-1].plain() == {"seed": seed}
    assert machine_note(chain).startswith(f"preset={'full' if gpu else 'twin'}, since this machine has")


def test_a_choice_by_the_machine_needs_both_kinds_of_machine(tmp_path):
    chain = read_recipe("tiny", write(tmp_path, tiny="preset: {gpu: full}\npresets: {full: {seed: 1}}"))
    with pytest.raises(ConfigError, match=r"expected one name, or \{gpu: NAME, cpu: NAME\}"):
        layers(chain, None)
