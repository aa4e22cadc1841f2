"""Reinforcement learning with a verifier: sample groups of answers, reward the right ones, follow the advantage."""

from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.base.seeds import derive_seed
from ludus.corpus.exercises.build import read
from ludus.corpus.exercises.kinds import Exercise
from ludus.generation.engine import Completion, Sampling
from ludus.learning.loop import Source
from ludus.learning.objectives.policy import clipped_policy
from ludus.model.transformer import Transformer
from ludus.recipes.base import load_base, reference_of
from ludus.recipes.conversations import histories, question
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.training import Fit, fit, prepare, questions, tuning_inputs, tuning_needs, tuning_settings
from ludus.rollouts.rewards import Verdict, verify
from ludus.rollouts.source import Rollouts, WithReference
from ludus.runs.manifest import Manifest
from ludus.text.tokenizer import Tokenizer


def make(place: Place, manifest: Manifest) -> Made:
    """Reinforce right answers."""
    recipe, settings = place.recipe, place.recipe.grpo
    model, tokenizer, base = load_base(place, "grpo")
    model = prepare(place, model, settings, tokenizer, dropout=False)
    reference = reference_of(model, settings) if settings.kl else None
    work = Fit(
        name="grpo",
        settings=settings,
        model=model,
        tokenizer=tokenizer,
        objective=clipped_policy(low=settings.clip_low, high=settings.clip_high, kl=settings.kl),
        source=source(place, model, tokenizer, reference),
        prompts=questions(place, tokenizer),
        sampling=Sampling(recipe.evaluate.max_new_tokens, frozenset(tokenizer.ends), temperature=0),
        show=("reward", "entropy"),
    )
    return fit(place, manifest, work, base=base)


def source(place: Place, model: Transformer, tokenizer: Tokenizer, reference: Transformer | None) -> Source:
    """Return rollouts on the training exercises, rewarded 1 where the verifier finds the right answer."""
    recipe, settings = place.recipe, place.recipe.grpo
    exercises, prompts = asked(place, tokenizer)

    def score(index: int, completion: Completion) -> float:
        response = completion.text(tokenizer)
        verdict = verify(response, exercises[index].answer, finished=completion.finish == "stop")
        return float(verdict is Verdict.CORRECT)

    rollouts = Rollouts(
        model,
        prompts,
        score,
        settings.rollouts,
        stop=tokenizer.end,
        seed=derive_seed(recipe.seed, "grpo"),
        splits=settings.accumulate,
        kinds=[exercise.kind for exercise in exercises] if settings.rollouts.curriculum else None,
        every_group=settings.kl > 0,
    )
    return WithReference(rollouts, reference) if reference is not None else rollouts


def asked(place: Place, tokenizer: Tokenizer) -> tuple[list[Exercise], list[list[int]]]:
    """Return the training exercises that leave room for an answer, and their prompts; count and show the others.

    Raises:
        DataError: none does.
    """
    context, settings = place.recipe.data.context, place.recipe.grpo
    longest, exercises = settings.rollouts.max_new_tokens, read(place.exercises / "train.jsonl")
    before = histories(exercises, turns=settings.turns, seed=derive_seed(place.recipe.seed, "grpo"))
    found = [(exercise, question(tokenizer, exercise, said)) for exercise, said in zip(exercises, before, strict=True)]
    kept = [(exercise, prompt) for exercise, prompt in found if len(prompt) + longest <= context + 1]
    lost = f"{len(found) - len(kept):,} of {len(found):,} questions leave no room for {longest} more tokens"
    if not kept:
        raise DataError(f"{lost} in data.context={context}; raise it, or lower grpo.rollouts.max_new_tokens")
    if len(kept) < len(found):
        say(f"  left out: {lost} in data.context={context}")
    return [exercise for exercise, _ in kept], [prompt for _, prompt in kept]


STAGE = Stage(
    name="grpo",
    settings=tuning_settings("grpo"),
    inputs=tuning_inputs("grpo"),
    needs=tuning_needs("grpo"),
    make=make,
)
