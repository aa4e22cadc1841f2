"""One-edit typos of every key find their key; `typo_score` may be asked about any schema."""

import importlib.util
import string
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base.config import Field, Settings, paths, suggest_path, suggest_word
from ludus.base.config.suggest import edits


class AdamW(Settings):
    kind: Literal["adamw"] = "adamw"
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    beta_first: float = 0.9
    beta_second: float = 0.95
    epsilon: float = 1e-8


class Muon(Settings):
    kind: Literal["muon"] = "muon"
    learning_rate: float = 0.02
    momentum: float = 0.95
    nesterov: bool = True
    orthogonal_steps: int = 5


class Model(Settings):
    depth: int = 4
    width: int = 256
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 64
    vocabulary: int = 4096
    context: int = 512
    dropout: float = 0.0
    tied_embeddings: bool = True


class Data(Settings):
    files: list[str] = Field(default_factory=list)
    shard_tokens: int = 1
    validation_share: float = 0.01
    shuffle: bool = True
    packing: bool = True
    max_length: int = 512


class Stage(Settings):
    steps: int = 1
    tokens: int = 1
    batch_tokens: int = 1
    accumulate: int = 1
    clip: float = 1.0
    warmup: int = 10
    schedule: str = "cosine"
    floor: float = 0.1
    checkpoint_every: int = 100
    evaluate_every: int = 100
    optimizer: AdamW | Muon = Field(default=AdamW(), discriminator="kind")


class Preference(Stage):
    beta: float = 0.1
    label_smoothing: float = 0.0
    reference: str = "sft"


class Large(Settings):
    name: str = "run"
    seed: int = 0
    folder: str = "runs"
    model: Model = Model()
    data: Data = Data()
    pretrain: Stage = Stage()
    sft: Stage = Stage()
    dpo: Preference = Preference()


def one_edit(word: str) -> Iterator[str]:
    """Yield one-edit typos: all deletions and swaps, and at each position a spread of letters inserted and replaced."""
    letters = string.ascii_lowercase + "_"
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :]
    for i in range(len(word) + 1):
        for letter in letters[i % 9 :: 9]:
            yield word[:i] + letter + word[i:]
            yield word[:i] + letter + word[i + 1 :]


def typo_score(schema: type[Settings], *, step: int = 1) -> float:
    """Return the share of one-edit typos, every `step`-th, of all field names whose right path is suggested first."""
    known = list(paths(schema))
    tried = right = 0
    for path in known:
        section, dot, name = path.rpartition(".")
        typos = sorted({typo for typo in one_edit(name) if typo and f"{section}{dot}{typo}" not in known})
        for typo in typos[len(path) % step :: step]:
            tried += 1
            right += suggest_path(f"{section}{dot}{typo}", known) == path
    assert tried > 20 / step * len(known)
    return right / tried


def test_one_edit_typos_of_every_key_of_a_large_schema_find_their_key():
    assert typo_score(Large) >= 0.95


def test_one_edit_typos_of_every_key_of_the_recipe_find_their_key():
    if importlib.util.find_spec("ludus.recipes.schema") is None:
        pytest.skip("the schema of recipes is not there yet")
    from ludus.recipes.schema import Recipe

    assert typo_score(Recipe, step=9) >= 0.95


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("model.detph", "model.depth"),
        ("modle.depth", "model.depth"),
        ("modle.detph", "model.depth"),
        ("depth", "model.depth"),
        ("detph", "model.depth"),
        ("Model.Depth", "model.depth"),
        ("pretrain.learning-rate", "pretrain.optimizer.learning_rate"),
        ("learning_rat", "pretrain.optimizer.learning_rate"),
        ("pretrain.width", "model.width"),
        ("optimizer.kind", "pretrain.optimizer.kind"),
        ("dpo.optimiser.kind", "dpo.optimizer.kind"),
        ("sed", "seed"),
        ("heads", "model.num_heads"),
        ("kv_heads", "model.num_kv_heads"),
        ("vocab", "model.vocabulary"),
    ],
)
def test_the_path_that_was_meant_is_suggested(wrong, meant):
    assert suggest_path(wrong, list(paths(Large))) == meant


def test_nothing_is_suggested_for_a_word_like_no_other():
    assert suggest_path("zzzzqqqq", list(paths(Large))) is None
    assert suggest_word("qqq", ["adamw", "muon"]) is None
    assert suggest_word("x", []) is None


@pytest.mark.parametrize(
    ("left", "right", "count"), [("", "abc", 3), ("ab", "ba", 1), ("cat", "cut", 1), ("a", "abc", 2)]
)
def test_edits_counts_insertions_deletions_replacements_and_swaps(left, right, count):
    assert edits(left, right) == edits(right, left) == count


@settings(deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edits_is_a_symmetric_distance_that_vanishes_only_on_equals(left, right):
    assert edits(left, right) == edits(right, left)
    assert (edits(left, right) == 0) == (left == right)
    assert abs(len(left) - len(right)) <= edits(left, right) <= max(len(left), len(right))
