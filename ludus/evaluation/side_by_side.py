"""The same prompts with the same seeds, before and after tuning: what was said, and what changed on the whole.

What lives here: asking one model, summing up two, and the files that hold the comparison. What does not: loading
models, or the page (`side_by_side_page.py`). The one idea: one model is asked at a time and its answers are data, so
that two large models need never be in memory together.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.base.files import atomic_write, write_json
from ludus.base.seeds import derive_seed
from ludus.evaluation.forgetting import BitsPerByte, Forgetting, forgetting, paired_bootstrap
from ludus.evaluation.held_out import Asked, prompt_tokens, reference_example
from ludus.evaluation.likelihood import Found, likelihoods, total
from ludus.evaluation.statistics import wilson
from ludus.generation.engine import Completion, Sampling, generate
from ludus.model.transformer import Transformer
from ludus.text.tokenizer import Tokenizer

GRAM = 4
RESAMPLES = 2_000
LINES, SUMMARY, PAGE = "compare.jsonl", "compare.json", "compare.html"


@dataclass(frozen=True)
class Answer:
    """What a model said; `tokens` counts the stop token, `repetition` is the share of repeated runs of four tokens."""

    text: str
    tokens: int
    finish: str
    repetition: float


@dataclass(frozen=True)
class Measured:
    """One model's part: its answers by seed, what it thinks of the reference answers, and of general text."""

    answers: dict[int, list[Answer]]
    references: list[Found | None]
    general: BitsPerByte | None = None


@dataclass(frozen=True)
class Comparison:
    """Both parts with the questions; `facts` are shown with them (models, data, sampling, what was left out)."""

    asked: Sequence[Asked]
    before: Measured
    after: Measured
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def forgotten(self) -> Forgetting | None:
        """Return the change of bits per byte of general text, None where it was not measured."""
        if self.before.general is None or self.after.general is None:
            return None
        return forgetting(self.before.general, self.after.general)


def fitting(
    questions: Sequence[Asked], tokenizers: Sequence[Tokenizer], *, context: int, max_new_tokens: int
) -> list[Asked]:
    """Return the questions that leave room for an answer with every tokenizer; the others are counted and shown.

    Raises:
        DataError: none does.
    """
    kept = [
        question
        for question in questions
        if all(len(prompt_tokens(tokenizer, question)) + max_new_tokens <= context for tokenizer in tokenizers)
    ]
    lost = len(questions) - len(kept)
    if not kept:
        raise DataError(
            f"none of {lost} prompts leaves room for {max_new_tokens} tokens of an answer in a context of {context}; "
            "ask for shorter answers"
        )
    if lost:
        say(f"  {lost} of {len(questions)} prompts are left out: no room for {max_new_tokens} tokens after them")
    return kept


def answers(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Asked], sampling: Sampling, seed: int, rows: int = 32
) -> list[Answer]:
    """Answer every question, drawn with a seed: the same model with the same questions says the same."""
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(derive_seed(seed, "side by side"))
    prompts = [prompt_tokens(tokenizer, question) for question in questions]
    completions = generate(model, prompts, sampling, generator=generator, rows=rows)
    return [_answer(tokenizer, completion) for completion in completions]


def measure(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Asked],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    general: BitsPerByte | None = None,
    rows: int = 32,
) -> Measured:
    """Ask a model everything; reference answers longer than the model has positions for count as unknown."""
    examples = [reference_example(tokenizer, question) for question in questions]
    learned = model.shape.position == "learned"
    known = [
        (number, example)
        for number, example in enumerate(examples)
        if example is not None and not (learned and len(example[0]) > model.shape.context)
    ]
    found = likelihoods(model, [example for _, example in known], rows=rows, pad_token=tokenizer.pad)
    references: list[Found | None] = [None] * len(questions)
    for (number, _), each in zip(known, found, strict=True):
        references[number] = each
    said = {seed: answers(model, tokenizer, questions, sampling, seed, rows) for seed in seeds}
    return Measured(said, references, general)


def repetition(tokens: Sequence[int], gram: int = GRAM) -> float:
    """Return the share of runs of `gram` tokens that were there before (seq-rep-n, arXiv 1908.04319); 0 for few."""
    runs = [tuple(tokens[start : start + gram]) for start in range(len(tokens) - gram + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def summary(found: Comparison) -> dict[str, Any]:
    """Sum a comparison up: each side's manner, the reference answers' perplexity, and what was forgotten."""
    change = found.forgotten
    return {
        "prompts": len(found.asked),
        "seeds": list(found.before.answers),
        "before": manner(found.before),
        "after": manner(found.after),
        "reference": _references(found),
        "forgetting": None if change is None else _finite(asdict(change)),
        **found.facts,
    }


def manner(side: Measured) -> dict[str, Any]:
    """Return how a model answers: the share of answers that it ended itself, their length, and how they repeat."""
    every = [answer for said in side.answers.values() for answer in said]
    stopped = sum(answer.finish == "stop" for answer in every)
    low, high = wilson(stopped, len(every))
    known = [each for each in side.references if each is not None]
    whole = total(known)
    return {
        "stopped": stopped / len(every),
        "stopped_low": low,
        "stopped_high": high,
        "mean_tokens": sum(answer.tokens for answer in every) / len(every),
        "repetition": sum(answer.repetition for answer in every) / len(every),
        "reference_perplexity": math.exp(min(700.0, whole.nats / whole.tokens)) if whole.tokens else None,
        "bits_per_byte": None if side.general is None else side.general.bits,
    }


def write(found: Comparison, folder: Path) -> list[Path]:
    """Write `compare.jsonl`, `compare.json` and `compare.html` into a folder; return their paths."""
    from ludus.evaluation.side_by_side_page import render

    whole = summary(found)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in records(found))
    atomic_write(folder / LINES, lines)
    write_json(folder / SUMMARY, whole)
    atomic_write(folder / PAGE, render(found, whole))
    return [folder / LINES, folder / SUMMARY, folder / PAGE]


def records(found: Comparison) -> list[dict[str, Any]]:
    """Return a line for each prompt and seed."""
    lines = []
    for seed, said in found.before.answers.items():
        for number, question in enumerate(found.asked):
            before, after = said[number], found.after.answers[seed][number]
            references = (found.before.references[number], found.after.references[number])
            lines.append(
                {
                    "prompt": question.prompt,
                    "messages": [dict(message) for message in question.messages],
                    "seed": seed,
                    "before": before.text,
                    "after": after.text,
                    "tokens": {"before": before.tokens, "after": after.tokens},
                    "finish": {"before": before.finish, "after": after.finish},
                    "repetition": {"before": before.repetition, "after": after.repetition},
                    "reference": question.reference,
                    "reference_mean_logp": dict(zip(("before", "after"), map(_mean_logp, references), strict=True)),
                }
            )
    return lines


def lines(whole: dict[str, Any]) -> list[str]:
    """Say a summary in a few lines of text."""
    before, after = whole["before"], whole["after"]
    said = [
        f"{whole['prompts']} prompts, {len(whole['seeds'])} seed(s)            before      after",
        f"  answers that end by themselves {before['stopped']:>10.0%} {after['stopped']:>10.0%}",
        f"  tokens an answer               {before['mean_tokens']:>10.1f} {after['mean_tokens']:>10.1f}",
        f"  repeated runs of {GRAM} tokens      {before['repetition']:>10.1%} {after['repetition']:>10.1%}",
    ]
    if before["reference_perplexity"] and after["reference_perplexity"]:
        said.append(
            f"  perplexity of good answers     {before['reference_perplexity']:>10.2f} "
            f"{after['reference_perplexity']:>10.2f}"
        )
    change = whole["forgetting"]
    if change:
        interval = "" if change["low"] is None else f" ({change['low']:+.4f} .. {change['high']:+.4f})"
        said.append(f"  bits per byte, general text    {change['before']:>10.4f} {change['after']:>10.4f}")
        said.append(f"  {change['verdict']}: {change['difference']:+.4f} bits per byte{interval}")
    return said


def _answer(tokenizer: Tokenizer, completion: Completion) -> Answer:
    text = tokenizer.decode([token for token in completion.tokens if token < tokenizer.vocabulary_size])
    return Answer(text, len(completion.tokens), completion.finish, repetition(completion.tokens))


def _references(found: Comparison) -> dict[str, float | int | None] | None:
    """Return the change of the mean negative log-likelihood of good answers, nats a token, with its interval."""
    pairs = [
        (before, after)
        for before, after in zip(found.before.references, found.after.references, strict=True)
        if before is not None and after is not None and before.tokens == after.tokens
    ]
    if not pairs:
        return None
    changes = np.array([after.nats - before.nats for before, after in pairs])
    sizes = [before.tokens for before, _ in pairs]
    bounds = paired_bootstrap(changes, sizes, 0.95, RESAMPLES, 0) if len(pairs) > 1 else (None, None)
    return {"difference": changes.sum() / sum(sizes), "low": bounds[0], "high": bounds[1], "answers": len(pairs)}


def _mean_logp(found: Found | None) -> float | None:
    return None if found is None or not found.tokens else -found.nats / found.tokens


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
