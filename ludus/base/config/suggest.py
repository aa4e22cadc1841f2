"""Which key did the user mean?

A wrong dotted path is compared with every path of the schema, part by part, counting single edits (insert, delete,
replace, swap neighbours). A known name in another section comes after a misspelt name in this one; difflib is the last
resort.
"""

import difflib
from collections.abc import Iterable, Sequence

MOVED = 1.5  # a right name in the wrong section is a larger slip than one wrong letter, a smaller one than two


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
    parts = wrong.lower().replace("-", "_").split(".")
    scored = [(_distance(parts, path.split(".")), *_unlikeness(wrong, path), i) for i, path in enumerate(known)]
    scored = [score for score in scored if score[0] < float("inf")]
    if scored:
        return known[min(scored)[-1]]
    matches = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _distance(wrong: list[str], path: list[str]) -> float:
    """Edits between two paths; infinite when a part is too different to be a slip."""
    last = _slip(wrong[-1], path[-1])
    if len(wrong) != len(path):
        return last + MOVED * abs(len(wrong) - len(path)) + (0 if _shares_section(wrong, path) else MOVED / 2)
    sections = sum(min(_slip(a, b), MOVED) for a, b in zip(wrong[:-1], path[:-1], strict=True))
    return last + sections


def _slip(wrong: str, name: str) -> float:
    if wrong == name:
        return 0
    distance = edits(wrong, name)
    return distance if distance <= max(1, min(len(wrong), len(name)) // 3) else float("inf")


def _shares_section(wrong: list[str], path: list[str]) -> bool:
    return len(wrong) == 1 or len(path) == 1 or wrong[0] == path[0]


def _unlikeness(wrong: str, name: str) -> tuple[bool, bool, int]:
    """Break ties: swapped letters are the likeliest slip, a wrong first letter the least likely, then the length."""
    return sorted(wrong) != sorted(name), wrong[:1] != name[:1], abs(len(wrong) - len(name))
