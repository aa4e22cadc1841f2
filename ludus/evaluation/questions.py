"""Asking a model held-out questions and checking what it says."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ludus.corpus.exercises.kinds import Exercise
from ludus.generation.engine import Sampling, generate
from ludus.model.transformer import Transformer
from ludus.rollouts.rewards import Verdict, style, verify
from ludus.text.chat import render
from ludus.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """What a model said to one question. `tokens` counts its answer, the stop token included."""

    id: int
    kind: str
    prompt: str
    answer: str
    response: str
    correct: bool
    verdict: str
    style: str
    truncated: bool
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """Return what is written."""
        return asdict(self)


def ask(
    model: Transformer, tokenizer: Tokenizer, exercises: Sequence[Exercise], *, max_new_tokens: int, rows: int = 256
) -> list[Answer]:
    """Ask every question greedily; the answer is exact, so the same model always scores the same."""
    prompts = [
        render(tokenizer, [{"role": "user", "content": exercise.prompt}], generation_prompt=True).tokens
        for exercise in exercises
    ]
    sampling = Sampling(max_new_tokens, frozenset(tokenizer.ends), temperature=0)
    completions = generate(model, prompts, sampling, rows=rows)
    answers = []
    for index, (exercise, completion) in enumerate(zip(exercises, completions, strict=True)):
        response, finished = completion.text(tokenizer), completion.finish == "stop"
        verdict = verify(response, exercise.answer, finished=finished)
        answers.append(
            Answer(
                id=index,
                kind=exercise.kind,
                prompt=exercise.prompt,
                answer=exercise.answer,
                response=response,
                correct=verdict is Verdict.CORRECT,
                verdict=verdict.value,
                style=style(response) if finished else "other",
                truncated=not finished,
                tokens=len(completion.tokens),
            )
        )
    return answers
