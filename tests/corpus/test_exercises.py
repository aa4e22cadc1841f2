import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from ludus.base.errors import ConfigError, DataError
from ludus.corpus.exercises import build as building
from ludus.corpus.exercises.build import build, draw, facts_of, is_held_out, kinds, read
from ludus.corpus.exercises.kinds import Exercise
from ludus.corpus.exercises.settings import ExerciseSettings

FACTS = [(f"name{number}", f"module{number % 7}") for number in range(60)]
SETTINGS = ExerciseSettings(train=1200, held_out=180)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("exercises")
    return folder, build(SETTINGS, folder, FACTS, seed=3)


def solve(prompt: str) -> str:
    """Answer a question from its words alone, by other means than it was made with."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    letters = re.findall(r"\b[a-z]\b", prompt.partition(":")[2] or prompt.partition(" in ")[2])
    about = re.search(r"(?:defines|Where is) (\w+)", prompt)
    if about:
        return dict(re.findall(r"(\w+) is in the module (\w+)\.", prompt))[about[1]]
    if "How many" in prompt or "Count" in prompt:
        return str(sum(1 for _ in letters))
    if "Sort" in prompt or "alphabetical" in prompt:
        return " ".join(letter for code in range(97, 123) for letter in letters if letter == chr(code))
    if "Reverse" in prompt or "backwards" in prompt:
        return " ".join(letters[index] for index in range(len(letters) - 1, -1, -1))
    if "Subtract" in prompt:
        return str(numbers[1] - numbers[0])
    return str(numbers[0] - numbers[1] if " - " in prompt else sum(numbers))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_answer_is_right(made, split):
    exercises = read(made[0] / f"{split}.jsonl")
    assert {exercise.kind for exercise in exercises} == set(kinds(SETTINGS, FACTS))
    for exercise in exercises:
        assert solve(exercise.prompt) == exercise.answer


def test_no_problem_is_on_both_sides_whatever_its_wording(made):
    train, held_out = (read(made[0] / f"{split}.jsonl") for split in ("train", "held_out"))
    assert {exercise.problem for exercise in train}.isdisjoint(exercise.problem for exercise in held_out)
    assert {exercise.prompt for exercise in train}.isdisjoint(exercise.prompt for exercise in held_out)
    assert all(is_held_out(exercise, SETTINGS.held_out_share) for exercise in held_out)
    wordings = {re.sub(r"\d+|\b[a-z]\b", "_", exercise.prompt) for exercise in held_out if exercise.kind == "addition"}
    assert len(wordings) == 3


def test_the_side_of_a_problem_depends_on_no_seed(tmp_path, made):
    build(SETTINGS, tmp_path, FACTS, seed=4)
    train, held_out = read(tmp_path / "train.jsonl"), read(made[0] / "held_out.jsonl")
    assert {exercise.problem for exercise in train}.isdisjoint(exercise.problem for exercise in held_out)


def test_the_same_seed_makes_the_same_exercises_and_another_seed_others(tmp_path, made):
    for seed in (3, 4):
        build(SETTINGS, tmp_path / str(seed), FACTS, seed=seed)
    names = ("train.jsonl", "held_out.jsonl", "report.json")
    assert all((tmp_path / "3" / name).read_bytes() == (made[0] / name).read_bytes() for name in names)
    assert all((tmp_path / "4" / name).read_bytes() != (made[0] / name).read_bytes() for name in names)


def test_held_out_questions_are_never_asked_twice_and_kinds_have_equal_shares(made):
    held_out = read(made[0] / "held_out.jsonl")
    assert len({exercise.prompt for exercise in held_out}) == len(held_out)
    counts = Counter(exercise.kind for exercise in held_out)
    assert 0 < counts.pop("modules") <= 20  # no more of so few facts are held out
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_report_counts_what_was_kept_and_left_out(made):
    folder, report = made
    assert json.loads((folder / "report.json").read_text()) == report
    for split in ("train", "held_out"):
        assert report[split]["by_kind"] == Counter(exercise.kind for exercise in read(folder / f"{split}.jsonl"))
        assert report[split]["exercises"] == sum(report[split]["by_kind"].values())
        assert report[split]["left_out"]["other side of the split"] > 0


def test_more_than_there_are_is_an_error_that_says_how_many_there_are(tmp_path, monkeypatch):
    def three(draw: random.Random) -> Exercise:
        number = draw.randint(1, 3)
        return Exercise("three", f"{number}", f"Say {number}.", f"{number}")

    monkeypatch.setattr(building, "TRIES", 50)
    monkeypatch.setattr(building, "kinds", lambda settings, facts: {"three": three})
    monkeypatch.setattr(building, "is_held_out", lambda exercise, share: exercise.problem != "1")
    settings = ExerciseSettings(train=5, held_out=3)
    with pytest.raises(
        ConfigError, match=r"^exercises\.held_out=3 but only 2 different .*; set exercises\.held_out=2 or "
    ):
        build(settings, tmp_path, [], seed=0)
    assert len(build(ExerciseSettings(train=5, held_out=2), tmp_path, [], seed=0)["held_out"]["by_kind"]) == 1


def test_a_kind_that_runs_out_leaves_its_place_to_the_others():
    few = {"module": kinds(SETTINGS, FACTS)["modules"], "counting": kinds(SETTINGS)["counting"]}
    found, left_out = draw(few, 150, held_out=True, share=0.2, seed=0)
    counts = Counter(exercise.kind for exercise in found)
    assert 0 < counts["modules"] < counts["counting"]
    assert counts.total() == 150
    assert left_out["repeated"] > 0


def test_facts_are_short_names_with_one_home():
    metadata = [
        {"name": "walk", "module": "os", "kind": "function"},
        {"name": "walk", "module": "ast", "kind": "function"},
        {"name": "gcd", "module": "math", "kind": "function"},
        {"name": "gcd", "module": "math", "kind": "function"},
        {"name": "PI", "module": "math", "kind": "constant"},
        {"name": "a_name_that_is_long", "module": "x", "kind": "class"},
        {"module": "math", "kind": "module"},
    ]
    assert facts_of(metadata) == [("gcd", "math")]


def test_only_a_corpus_with_facts_is_asked_about():
    assert "modules" not in kinds(SETTINGS, [])
    assert "modules" not in kinds(SETTINGS, FACTS[:1])
    assert "modules" not in kinds(ExerciseSettings(questions=False), FACTS)
    assert "modules" in kinds(SETTINGS, FACTS)


@pytest.mark.parametrize("settings", [{"longest": 3, "largest": 1}, {"longest": 12, "largest": 999}])
def test_the_smallest_and_the_largest_settings_work(tmp_path, settings):
    build(ExerciseSettings(train=20, held_out=8, held_out_share=0.4, **settings), tmp_path, [], seed=0)
    for exercise in read(tmp_path / "train.jsonl"):
        assert solve(exercise.prompt) == exercise.answer


@pytest.mark.parametrize("content", ["not JSON\n", '{"kind": "x"}\n', "[]\n", None])
def test_what_is_no_file_of_exercises_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"x\.jsonl does not hold exercises .*; make them with `ludus exercises`$"):
        read(tmp_path / "x.jsonl")
