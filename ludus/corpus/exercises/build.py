"""Make the exercises of a run: draw, split by problem, drop repeats, count what was dropped, write JSONL."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

from ludus.base.errors import ConfigError, DataError
from ludus.base.files import atomic_write, write_json
from ludus.base.seeds import derive_seed
from ludus.corpus.exercises.kinds import Exercise, Kind, addition, counting, modules, reversing, sorting, subtraction
from ludus.corpus.exercises.settings import ExerciseSettings

TRIES = 5_000  # draws without a new problem before a kind is taken to be exhausted
LONGEST_NAME = 12  # characters; long names are many tokens, and say nothing more
TRAINING_SHARES = {"addition": 3, "subtraction": 3}  # carrying takes practice; every other kind has a share of 1


def kinds(settings: ExerciseSettings, facts: Sequence[tuple[str, str]] = ()) -> dict[str, Kind]:
    """Return the generators by name; questions about the corpus only where there are facts to ask about."""
    made = {
        "addition": addition(settings.largest),
        "subtraction": subtraction(settings.largest),
        "sorting": sorting(settings.longest),
        "reversing": reversing(settings.longest),
        "counting": counting(settings.longest),
    }
    return made | ({"modules": modules(facts)} if settings.questions and len(facts) > 1 else {})


def is_held_out(exercise: Exercise, share: float) -> bool:
    """Say on which side of the split a problem lies: a hash of the problem, so it never depends on a seed."""
    return derive_seed(0, "held out", exercise.problem) / 2**63 < share


def draw(
    made: dict[str, Kind], count: int, *, held_out: bool, share: float, seed: int
) -> tuple[list[Exercise], Counter]:
    """Draw `count` exercises in turns of the kinds; held-out ones have equal shares and no wording twice.

    Returns them with a count of the draws that were left out: on the other side of the split, or repeated.
    """
    generators = {name: random.Random(derive_seed(seed, name, held_out)) for name in made}
    found: list[Exercise] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    exhausted: set[str] = set()
    turns = [name for name in made for _ in range(1 if held_out else TRAINING_SHARES.get(name, 1))]
    for name in cycle(turns):
        if len(found) == count or len(exhausted) == len(made):
            break
        if name in exhausted:
            continue
        for _ in range(TRIES):
            exercise = made[name](generators[name])
            if is_held_out(exercise, share) != held_out:
                left_out["other side of the split"] += 1
            elif held_out and exercise.prompt in seen:
                left_out["repeated"] += 1
            else:
                seen.add(exercise.prompt)
                found.append(exercise)
                break
        else:
            exhausted.add(name)
    return found, left_out


def facts_of(metadata: Iterable[dict]) -> list[tuple[str, str]]:
    """Return (name, module) for every short name in the corpus that is defined in one module only."""
    homes: dict[str, set[str]] = {}
    for entry in metadata:
        if entry.get("name") and entry.get("module") and entry.get("kind") in ("class", "function"):
            homes.setdefault(entry["name"], set()).add(entry["module"])
    facts = ((name, next(iter(where))) for name, where in homes.items() if len(where) == 1)
    return sorted((name, module) for name, module in facts if max(len(name), len(module)) <= LONGEST_NAME)


def build(settings: ExerciseSettings, folder: Path, facts: Sequence[tuple[str, str]], *, seed: int) -> dict:
    """Write `train.jsonl`, `held_out.jsonl` and `report.json` into `folder`; return the report.

    Raises:
        ConfigError: the kinds do not have as many problems as were asked for.
    """
    made = kinds(settings, facts)
    report: dict = {}
    for name, count, held_out in (("train", settings.train, False), ("held_out", settings.held_out, True)):
        found, left_out = draw(made, count, held_out=held_out, share=settings.held_out_share, seed=seed)
        if len(found) < count:
            raise ConfigError(
                f"exercises.{name}={count} but only {len(found)} different exercises were found; "
                f"set exercises.{name}={len(found)} or raise exercises.largest or exercises.longest"
            )
        random.Random(derive_seed(seed, "order", name)).shuffle(found)
        atomic_write(folder / f"{name}.jsonl", "".join(json.dumps(asdict(exercise)) + "\n" for exercise in found))
        report[name] = {
            "exercises": len(found),
            "by_kind": dict(Counter(exercise.kind for exercise in found)),
            "left_out": dict(left_out),
        }
    write_json(folder / "report.json", report)
    return report


def read(path: Path) -> list[Exercise]:
    """Read exercises back.

    Raises:
        DataError: the file is missing or not what `build` writes.
    """
    try:
        return list(_parse(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} does not hold exercises ({error}); make them with `ludus exercises`") from error


def _parse(lines: Iterable[str]) -> Iterator[Exercise]:
    return (Exercise(**json.loads(line)) for line in lines if line.strip())
