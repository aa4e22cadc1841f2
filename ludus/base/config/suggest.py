"""Which key did the user mean?

A wrong dotted path is compared with every path of the schema, part by part, counting single edits (insert, delete,
replace, swap neighbours). A known name in another section comes after a misspelt name in this one; difflib is the last
resort.
"""

import difflib
from collections.abc import Iterable, Sequence

MOVED = 1.5  # a right name in the wrong section is a larger slip than one wrong letter, a smaller one than two
SHORTENED = 2.25
FAR = float("inf")


def edits(left: str, right: str) -> int:
    """Return the Damerau-Levenshtein distance (optimal string alignment) of two words."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, letter in enumerate(left, 1):
        above, before_above = row, before
        row = [i]
        for j, other in enumerate(right, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == right[j - 2] and left[i - 2] == other:
                cost = min(cost, before_above[j - 2] + 1)
            row.append(cost)
        before = above
    return row[-1]


def suggest_word(word: str, known: Iterable[str]) -> str | None:
    """Return the known word nearest to `word`, or None when none is near."""
    candidates = list(dict.fromkeys(known))
    lower = word.lower().replace("-", "_")
    scored = [(edits(lower, name.lower()), *_unlikeness(lower, name.lower()), i) for i, name in enumerate(candidates)]
    if scored:
        best = min(scored)
        if best[0] <= max(1, min(len(word), len(candidates[best[-1]])) // 3):
            return candidates[best[-1]]
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return matches[0] if matches else None


def suggest_path(wrong: str, known: Sequence[str]) -> str | None:
    """Return the dotted path the user most likely meant by `wrong`, or None when none is near."""
    *sections, last = wrong.lower().replace("-", "_").split(".")
    slips: dict[str, float] = {}
    scored: list[tuple[float, bool, bool, int, int]] = []
    for i, path in enumerate(known):
        *above, name = path.split(".")
        if name not in slips:
            slips[name] = min(_slip(last, name), _abbreviation(last, name))
        if slips[name] < FAR:
            scored.append((slips[name] + _displacement(sections, above), *_unlikeness(last, name), i))
    if scored:
        return known[min(scored)[-1]]
    matches = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _slip(wrong: str, name: str) -> float:
    """Edits between two names; FAR when they are too different to be a slip."""
    if wrong == name:
        return 0
    limit = max(1, min(len(wrong), len(name)) // 3)
    if abs(len(wrong) - len(name)) > limit or len(set(wrong) ^ set(name)) > 2 * limit:
        return FAR
    distance = edits(wrong, name)
    return distance if distance <= limit else FAR


def _abbreviation(wrong: str, name: str) -> float:
    """`vocab` for `vocabulary`, `heads` for `num_heads`, and the other way round."""
    short, long = sorted((wrong, name), key=len)
    return SHORTENED if len(short) > 2 and (long.startswith(short) or long.endswith(f"_{short}")) else FAR


def _displacement(wrong: list[str], sections: list[str]) -> float:
    """What it costs to get from one section to another: less if one is the other with a step left out."""
    if len(wrong) == len(sections):
        return sum(min(_slip(a, b), MOVED) for a, b in zip(wrong, sections, strict=True))
    short, long = sorted((wrong, sections), key=len)
    near = not short or short == long[: len(short)] or short == long[-len(short) :]
    return MOVED * (len(long) - len(short)) + (0 if near else MOVED / 2)


def _unlikeness(wrong: str, name: str) -> tuple[bool, bool, int]:
    """Break ties: swapped letters are the likeliest slip, a wrong first letter the least likely, then the length."""
    return sorted(wrong) != sorted(name), wrong[:1] != name[:1], abs(len(wrong) - len(name))
