"""The kinds of exercise: each a function from a random generator to a problem and its answer.

Letters are written apart and digits are tokens of their own, so that a byte-level BPE shows the model what it has to
work on.
"""

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exercise:
    """A question with one right answer. `problem` identifies it whatever the wording."""

    kind: str
    problem: str
    prompt: str
    answer: str

    def concise(self) -> str:
        """Answer in as few words as will do."""
        return self.answer

    def rambling(self) -> str:
        """Answer, then go on talking."""
        return f"{self.answer}, and I do hope that this helps you."


Kind = Callable[[random.Random], Exercise]


def addition(largest: int) -> Kind:
    """Add two numbers of at most `largest`."""

    def make(draw: random.Random) -> Exercise:
        a, b = draw.randint(0, largest), draw.randint(0, largest)
        prompt = draw.choice([f"What is {a} + {b}?", f"Add {a} and {b}.", f"{a} + {b} = ?"])
        return Exercise("addition", f"{a}+{b}", prompt, str(a + b))

    return make


def subtraction(largest: int) -> Kind:
    """Subtract the smaller of two numbers from the larger."""

    def make(draw: random.Random) -> Exercise:
        b, a = sorted((draw.randint(0, largest), draw.randint(0, largest)))
        prompt = draw.choice([f"What is {a} - {b}?", f"Subtract {b} from {a}.", f"{a} - {b} = ?"])
        return Exercise("subtraction", f"{a}-{b}", prompt, str(a - b))

    return make


def sorting(longest: int) -> Kind:
    """Put letters into alphabetical order."""

    def make(draw: random.Random) -> Exercise:
        letters = _letters(draw, longest)
        shown = " ".join(letters)
        prompt = draw.choice([f"Sort these letters: {shown}", f"Put in alphabetical order: {shown}"])
        return Exercise("sorting", f"sort {shown}", prompt, " ".join(sorted(letters)))

    return make


def reversing(longest: int) -> Kind:
    """Write letters backwards."""

    def make(draw: random.Random) -> Exercise:
        letters = _letters(draw, longest)
        shown = " ".join(letters)
        prompt = draw.choice([f"Reverse these letters: {shown}", f"Write backwards: {shown}"])
        return Exercise("reversing", f"reverse {shown}", prompt, " ".join(reversed(letters)))

    return make


def counting(longest: int) -> Kind:
    """Count letters, up to three more than there are to sort."""

    def make(draw: random.Random) -> Exercise:
        letters = _letters(draw, longest + 3)
        shown = " ".join(letters)
        prompt = draw.choice([f"How many letters are in {shown}?", f"Count these letters: {shown}"])
        return Exercise("counting", f"count {shown}", prompt, str(len(letters)))

    return make


def modules(facts: Sequence[tuple[str, str]]) -> Kind:
    """Ask which module defines a name, after the line of documentation that says so.

    `facts` are (name, module) pairs in which every name is unique.
    """

    def make(draw: random.Random) -> Exercise:
        name, module = draw.choice(facts)
        question = draw.choice([f"Which module defines {name}?", f"Where is {name} defined?"])
        return Exercise("modules", f"module of {name}", f"{name} is in the module {module}. {question}", module)

    return make


def _letters(draw: random.Random, longest: int) -> list[str]:
    return [draw.choice(string.ascii_lowercase) for _ in range(draw.randint(3, longest))]
