"""Configuration end to end: precedence, origins, kinds, derivation and the one-line errors."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pydantic import model_validator

from ludus.base.config import Field, Resolved, Settings, derived, describe, fill, load_resolved, paths, resolve
from ludus.base.config.merge import Merge
from ludus.base.config.yaml import read_yaml
from ludus.base.errors import ConfigError


class AdamW(Settings):
    """Adam with decoupled decay."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0, description="peak rate")
    weight_decay: float = Field(0.1, ge=0)


class Muon(Settings):
    """Momentum made orthogonal."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(0.02, gt=0)
    momentum: float = 0.95


class Model(Settings):
    """The transformer."""

    depth: int = Field(
        4, ge=1, le=64, description="layers; width derives from it", json_schema_extra={"unit": "layers"}
    )
    width: int = derived(description="channels", unit="channels", ge=8, le=2048)
    name: str = "gpt"

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        return {"width": (64 * self.depth, "64 x model.depth")}


class Task(Settings):
    """One task."""

    name: str
    shots: int = Field(0, ge=0)


class Pretrain(Settings):
    """Learn to predict the next token."""

    optimizer: AdamW | Muon = Field(default=AdamW(weight_decay=0.2), discriminator="kind")
    steps: int = derived(description="steps", ge=1)
    limit: int | None = Field(None, description="stop early")
    tied: bool = False
    files: list[str] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=lambda: {"web": 1.0, "books": 2.0})
    clip: float | Literal["off"] = 1.0
    tasks: list[Task] = Field(default_factory=list)
    folder: Path = Path("data")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        return {"steps": (root.model.width * 2, "2 x model.width")}


class Root(Settings):
    name: str = "run"
    seed: int = 0
    model: Model = Model()
    pretrain: Pretrain = Pretrain()


@pytest.fixture
def read(tmp_path: Path):
    """Resolve `Root` with overrides, a recipe's text, presets' texts and an environment."""

    def go(
        *overrides: str, text: str | None = None, presets: dict[str, str] | None = None, **more: Any
    ) -> Resolved[Root]:
        for name, body in (presets or {}).items():
            (tmp_path / f"{name}.yaml").write_text(body)
        recipe = more.pop("recipe", None)
        if text is not None:
            recipe = tmp_path / "my.yaml"
            recipe.write_text(text)
        more = {"environment": {}} | more
        return resolve(Root, recipe=recipe, presets=tmp_path, overrides=overrides, **more)

    return go


def errors(read: Any, *overrides: str, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*overrides, **more)
    return str(caught.value).splitlines()


def test_each_layer_goes_over_the_one_below_and_origins_say_which(read):
    text = "model: {depth: 2}\npresets:\n  full:\n    model:\n      depth: 3\n"
    environment = {"LUDUS__MODEL__DEPTH": "5", "LUDUS_QUIET": "1", "HOME": "/"}

    def depth(resolved: Resolved[Root]) -> tuple[int, str]:
        return resolved.settings.model.depth, resolved.origins["model.depth"].rpartition("/")[2]

    assert depth(read()) == (4, "default")
    assert depth(read(text=text)) == (2, "my.yaml:1")
    assert depth(read("preset=full", text=text)) == (3, "my.yaml:5")
    assert depth(read("preset=full", text=text, environment=environment)) == (5, "environment LUDUS__MODEL__DEPTH")
    assert depth(read("preset=full", "model.depth=6", text=text, environment=environment)) == (6, "command line")


def test_a_recipe_extends_another_and_its_variants_add_up(read):
    base = "model: {depth: 2, name: base}\npresets: {full: {model: {depth: 8, name: big}}}\n"
    child = "extends: base\npreset: full\nseed: 3\npresets: {full: {model: {depth: 9}}}\n"
    resolved = read(text=child, presets={"base": base})
    assert (resolved.settings.seed, resolved.settings.model.depth, resolved.settings.model.name) == (3, 9, "big")
    assert read("--preset", "null", text=child, presets={"base": base}).settings.model.depth == 2


@pytest.mark.parametrize(
    "overrides", [["model.depth=6"], ["--model.depth=6"], ["--model.depth", "6"], ["model.depth=5", "model.depth=6"]]
)
def test_an_override_may_be_written_in_three_ways_and_the_last_one_counts(read, overrides):
    assert read(*overrides).settings.model.depth == 6


def test_a_flag_alone_is_true_and_hyphens_are_underscores(read):
    settings = read("--pretrain.tied", "--pretrain.optimizer.learning-rate", "1e-2").settings
    assert settings.pretrain.tied is True
    assert settings.pretrain.optimizer.learning_rate == 1e-2


def test_a_section_s_own_command_reads_its_keys_bare(read):
    settings = read("optimizer.kind=muon", "steps=7", "--weights.web=3", "seed=2", section="pretrain").settings
    assert (settings.pretrain.optimizer.kind, settings.pretrain.steps, settings.seed) == ("muon", 7, 2)
    assert settings.pretrain.weights == {"web": 3.0, "books": 2.0}
    assert errors(read, "steps=7") == ["steps: unknown key (from command line); did you mean pretrain.steps?"]


def test_values_are_yaml_1_2_and_text_fields_take_text(read):
    settings = read(
        "pretrain.optimizer.learning_rate=1e-4", "pretrain.files=[a, 1.10, no]", "name=1.10", "model.name=a: b: c",
        "pretrain.folder=010", "pretrain.clip=off", "pretrain.weights={my-web: 1}", "seed=010",
    ).settings  # fmt: skip
    assert settings.pretrain.optimizer.learning_rate == 1e-4
    assert settings.pretrain.files == ["a", "1.10", "no"]
    assert (settings.name, settings.model.name, settings.seed) == ("1.10", "a: b: c", 10)
    assert (settings.pretrain.folder, settings.pretrain.clip) == (Path("010"), "off")
    assert settings.pretrain.weights == {"my-web": 1.0}


def test_mappings_are_replaced_whole_but_a_dotted_override_changes_one_entry(read):
    assert read(text="pretrain: {weights: {news: 1}}").settings.pretrain.weights == {"news": 1.0}
    changed = read(
        "pretrain.weights.web.txt=4", "--pretrain.weights.web.md=5", text="pretrain: {weights: {news: 1}}"
    ).settings.pretrain.weights
    assert changed == {"news": 1.0, "web.txt": 4.0, "web.md": 5.0}


def test_another_kind_starts_afresh_at_every_layer(read):
    recipe = "pretrain: {optimizer: {kind: muon, learning_rate: 1e-2}}"
    resolved = read("pretrain.optimizer.kind=adamw", text=recipe)
    assert resolved.settings.pretrain.optimizer == AdamW()  # not the default instance's weight_decay either
    assert resolved.dropped[0].startswith("pretrain.optimizer.learning_rate: 0.01 (recipe ")
    assert resolved.dropped[0].endswith("since pretrain.optimizer.kind became adamw (command line)")
    assert "# not used: pretrain.optimizer.learning_rate: 0.01" in resolved.render()
    in_environment = read(text=recipe, environment={"LUDUS__PRETRAIN__OPTIMIZER__KIND": "adamw"})
    assert in_environment.settings.pretrain.optimizer == AdamW()


def test_the_same_kind_and_part_of_a_kind_keep_what_is_there(read):
    recipe = "pretrain: {optimizer: {kind: muon, learning_rate: 1e-2}}"
    kept = read("pretrain.optimizer.momentum=0.5", "pretrain.optimizer.kind=muon", text=recipe)
    assert kept.settings.pretrain.optimizer == Muon(learning_rate=1e-2, momentum=0.5)
    assert kept.dropped == ()
    partial = read("pretrain.optimizer.learning_rate=0.5").settings.pretrain.optimizer
    assert partial == AdamW(learning_rate=0.5, weight_decay=0.2)


def test_a_key_of_another_kind_says_whose_it_is(read):
    (line,) = errors(read, "optimizer.kind=muon", "optimizer.weight_decay=0.3", section="pretrain")
    assert line == (
        "pretrain.optimizer.weight_decay: `weight_decay` belongs to pretrain.optimizer.kind=adamw; "
        "this run uses muon (from command line)"
    )


def test_derived_values_follow_what_they_derive_from_and_can_be_set(read):
    resolved = read("model.depth=6")
    assert (resolved.settings.model.width, resolved.settings.pretrain.steps) == (384, 768)
    assert resolved.origins["model.width"] == "derived: 64 x model.depth"
    assert read("model.width=100").settings.pretrain.steps == 200
    assert read("model.width=null", text="model: {width: 100}").settings.model.width == 256
    assert resolved.settings.pretrain.limit is None
    assert resolved.origins["pretrain.limit"] == "default"


def test_a_derivation_out_of_range_is_an_error_with_its_reason(read):
    assert errors(read, "model.depth=50") == [
        "model.width: expected a whole number from 8 to 2048, got 3200 (derived: 64 x model.depth)"
    ]


def test_settings_made_in_code_are_filled_without_changing_the_original():
    bare = Root(model=Model(depth=2))
    full = fill(bare)
    assert full.model.width == 128
    assert full.pretrain.steps == 256
    assert bare.model.width is None
    assert Root().model.width is None


def test_every_mistake_is_told_on_its_own_line_with_its_origin(read):
    text = "model:\n  detph: 2\n  name: 5\nmodle:\n  depth: 3\nseed: true\n"
    lines = errors(read, "model.depth=99", "pretrain.optimizer.kind=muno", text=text, environment={"LUDUS__SEDE": "1"})
    told = [re.sub(r"recipe \S+/", "recipe ", line) for line in lines]
    assert told == [
        "model.detph: unknown key (from recipe my.yaml:2); did you mean model.depth?",
        "modle.depth: unknown key (from recipe my.yaml:4); did you mean model.depth?",
        "sede: unknown key (from environment LUDUS__SEDE); did you mean seed?",
        "pretrain.optimizer.kind: expected one of adamw, muon, got 'muno' (from command line); did you mean muon?",
        "seed: expected a whole number, got true (from recipe my.yaml:6)",
        "model.name: expected text, got 5 (from recipe my.yaml:3); put it in quotes",
        "model.depth: expected a whole number from 1 to 64, got 99 (from command line)",
    ]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model=5", "model: expected a section with keys, got 5"),
        ("pretrain.optimizer=muno", "did you mean pretrain.optimizer.kind=muon?"),
        ("pretrain.optimizer.learning_rate=.nan", "expected a number, above 0, got .nan"),
        ("pretrain.optimizer.learning_rate=-1", "expected a number, above 0, got -1"),
        ("pretrain.tied=3", "expected true or false, got 3"),
        ("pretrain.clip=of", "expected a number or off, got 'of' (from command line); did you mean off?"),
        ("pretrain.files=a", "expected a list of text, such as [a, b], got 'a'"),
        ("pretrain.tasks=[{shots: 1}]", "pretrain.tasks.0.name: not given, and it has no default"),
        ("pretrain.tasks=[{name: a, shosts: 1}]", "pretrain.tasks.0.shosts: unknown key"),
        ("pretrain.tasks=[{name: a, shots: -1}]", "pretrain.tasks.0.shots: expected a whole number, 0 or more, got -1"),
        ("pretrain.weights={web: x}", "pretrain.weights.web: expected a number, got 'x'"),
        ("pretrain.weights=5", "pretrain.weights: expected names with a number each"),
        ("pretrain.tasks=5", "pretrain.tasks: expected a list of sections, such as [{…}, {…}], got 5"),
        (
            "pretrain.tasks.0.shots=3",
            "pretrain.tasks.0.shots: unknown key (from command line); a list is replaced whole",
        ),
        ("model.depth.extra=3", "model.depth.extra: unknown key (from command line); model.depth is one value"),
        ("pretrain.optimizer.kind={a: [1]}", "expected one of adamw, muon, got {a: [1]}"),
        ("preset=full", "no recipe was given"),
        ("model.depth", "an override needs a value, as in model.depth=VALUE"),
        ("=5", "not a key"),
        ("model..depth=5", "not a key"),
        ("seed=\x1b[31m", "seed: expected a whole number, got ' [31m'"),
    ],
)
def test_a_bad_override_is_one_clear_line(read, override, reason):
    (line,) = errors(read, override)
    assert reason in line


def test_a_missing_value_says_how_to_give_it(tmp_path):
    class Needy(Settings):
        source: Task

    with pytest.raises(ConfigError, match=r"^source.name: not given, .* as source.name=VALUE$"):
        resolve(Needy, recipe=None, presets=tmp_path, environment={}, overrides=[])


def test_a_check_across_fields_speaks_for_itself(tmp_path):
    class Picky(Settings):
        low: int = 1
        high: int = 2

        @model_validator(mode="after")
        def ordered(self):
            if self.low > self.high:
                raise ValueError("low must not be above high")
            return self

    class Whole(Settings):
        span: Picky = Picky()

    with pytest.raises(ConfigError, match=r"^span: low must not be above high$"):
        resolve(Whole, recipe=None, presets=tmp_path, environment={}, overrides=["span.low=3"])


def test_what_is_printed_is_a_recipe_for_the_same_run(read):
    overrides = (
        "name=a: 'b' # c",
        "pretrain.optimizer.kind=muon",
        "pretrain.tasks=[{name: x}]",
        "pretrain.files=[no, '1']",
    )
    resolved = read(*overrides)
    assert read(text=resolved.render()).settings == resolved.settings


def test_a_run_folder_keeps_settings_and_origins(read, tmp_path):
    resolved = read("model.depth=6", "pretrain.optimizer.kind=muon")
    stored = tmp_path / "recipe.json"
    stored.write_text(json.dumps(resolved.as_json()))
    assert load_resolved(Root, stored) == resolved


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": {}}'])
def test_a_damaged_stored_recipe_is_an_error(tmp_path, damage):
    (tmp_path / "recipe.json").write_text(damage)
    with pytest.raises(ConfigError, match="is damaged"):
        load_resolved(Root, tmp_path / "recipe.json")


def test_help_names_every_path_with_its_default_unit_range_and_doc():
    text = describe(Root)
    for path in paths(Root):
        assert path in text
    assert "model.depth=4" in text
    assert "a whole number from 1 to 64 layers" in text
    assert "layers; width derives from it" in text
    assert "model.width=256" in text
    assert "derived: 64 x model.depth" in text
    assert "pretrain.optimizer  (kind=adamw)" in text
    assert "pretrain.optimizer  (kind=muon)" in text
    assert "pretrain.tasks.*.shots=0" in text
    assert "model" not in describe(Root, ["pretrain"]).replace("model.width", "")


VALUES = [
    "1",
    "-1",
    "null",
    "x",
    "[1]",
    "[a, {b: 1}]",
    "{kind: muon}",
    "{kind: [1]}",
    "{1: 2}",
    "{}",
    "",
    "1e400",
    "*x",
    "!!x y",
    "9" * 5000,
]
KEYS = [*paths(Root), "pretrain.tasks.0", "pretrain.weights.a.b", "model.depth.z", "preset", "x.y"]


@settings_of_hypothesis(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)).map("=".join), max_size=3))
def test_any_override_is_taken_or_refused_in_short_lines(overrides):
    told = ""
    try:
        resolved = resolve(Root, recipe=None, presets=Path(), environment={}, overrides=overrides)
        assert set(resolved.origins) == {
            line.partition(":")[0] for line in resolved.render().splitlines() if line[0] != "#"
        }
    except ConfigError as error:
        told = str(error)
    assert all(len(line) < 300 and "Node(" not in line for line in told.splitlines())


@settings_of_hypothesis(max_examples=30, deadline=None)
@given(st.integers(1, 64), st.text(max_size=20), st.floats(1e-9, 1e9), st.lists(st.text(max_size=5), max_size=3))
def test_values_survive_being_printed_and_read_again(depth, name, rate, files):
    pretrain = {"files": files, "optimizer": {"kind": "muon", "learning_rate": rate}}
    settings = Root.model_validate({"name": name, "model": {"depth": depth}, "pretrain": pretrain})
    text = Resolved(settings, dict.fromkeys(paths(Root), "x")).render()
    merge = Merge(Root)
    merge.add(read_yaml(text, str))
    assert not merge.finish()
    assert Root.model_validate(merge.tree.plain()) == settings
