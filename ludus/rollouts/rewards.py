"""Verifiable rewards: read the answer out of a response and compare it with the right one.

A verdict is typed, so that a wrong answer and one that could not be read are never confused.
"""

from enum import StrEnum


class Verdict(StrEnum):
    """What a verifier says of a response."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"


LONGEST = 64  # characters; a longer "answer" is a text that holds no answer


def extract(response: str) -> str | None:
    """Return the answer of a response: what stands before its first comma, without a closing full stop.

    None where there is nothing that could be an answer.
    """
    answer = response.partition(",")[0].strip().removesuffix(".").strip()
    return answer if answer and len(answer) <= LONGEST and "\n" not in answer else None


def verify(response: str, answer: str, *, finished: bool = True) -> Verdict:
    """Compare a response with the right answer, exactly but for case and spacing.

    A response that was cut off before its stop token (`finished=False`) has not answered.
    """
    found = extract(response) if finished else None
    if found is None:
        return Verdict.UNPARSEABLE
    return Verdict.CORRECT if _canonical(found) == _canonical(answer) else Verdict.WRONG


def style(response: str) -> str:
    """Name the style of a response: "rambling" if it goes on after its answer, "concise" if it stops, else "other"."""
    if extract(response) is None:
        return "other"
    return "rambling" if "," in response else "concise"


def _canonical(answer: str) -> str:
    return " ".join(answer.lower().split())
