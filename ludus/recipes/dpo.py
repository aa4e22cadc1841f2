"""Direct preference optimisation, and its control: the same pairs and steps without the preference term."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ludus.base.console import say
from ludus.base.files import folder_in_progress, sha256_json
from ludus.base.seeds import derive_seed
from ludus.corpus.exercises.build import read
from ludus.data.pairs import Pair, Pairs
from ludus.generation.engine import Sampling
from ludus.learning.loop import Objective
from ludus.learning.objectives.preference import direct_preference
from ludus.learning.reference import reference_logps
from ludus.model.transformer import Transformer
from ludus.recipes.base import before_training, load_base, starts_quantised
from ludus.recipes.conversations import example, fitting, style_pairs
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.training import Fit, fit, prepare, questions, tuning_inputs, tuning_needs, tuning_settings
from ludus.runs.artefacts import sha256_artefact
from ludus.runs.manifest import Manifest
from ludus.text.conversations import read_preferences
from ludus.text.tokenizer import Tokenizer


def make(place: Place, manifest: Manifest) -> Made:
    """Prefer the better of two answers."""
    settings = place.recipe.dpo
    return _fit(place, manifest, "dpo", direct_preference(settings.beta, likelihood=settings.likelihood))


def make_control(place: Place, manifest: Manifest) -> Made:
    """Learn the better answers as such; what DPO adds is what it does beyond this."""
    return _fit(place, manifest, "dpo-control", direct_preference(0.0, likelihood=place.recipe.dpo.likelihood or 1.0))


def _fit(place: Place, manifest: Manifest, name: str, objective: Objective) -> Made:
    recipe, settings = place.recipe, place.recipe.dpo
    model, tokenizer, base = load_base(place, "dpo")
    model = prepare(place, model, settings, tokenizer, dropout=False)
    pairs = preferences(place, tokenizer)
    begun = settings.adapter.model_dump_json() if starts_quantised(settings.adapter) else ""
    kept = f"{settings.quantise} {settings.weights} {begun}"
    frozen = before_training(model, settings)
    reference = cached_reference(place.folder / "reference", base, frozen, pairs, tokenizer.pad, kept)
    work = Fit(
        name=name,
        settings=settings,
        model=model,
        tokenizer=tokenizer,
        objective=objective,
        source=Pairs(
            pairs, reference, size=settings.pairs, pad_token=tokenizer.pad, seed=derive_seed(recipe.seed, "dpo")
        ),
        prompts=questions(place, tokenizer),
        sampling=Sampling(recipe.evaluate.max_new_tokens, frozenset(tokenizer.ends), temperature=0),
        show=("loss", "margin"),
    )
    return fit(place, manifest, work, base=base)


def preferences(place: Place, tokenizer: Tokenizer) -> list[Pair]:
    """Return the pairs of a person's file, or as many exercises in two styles as the steps will use."""
    settings = place.recipe.dpo
    if settings.data:
        made = [Pair(example(tokenizer, a), example(tokenizer, b)) for a, b in read_preferences(settings.data)]
    else:
        wanted = settings.steps * settings.accumulate * settings.pairs
        exercises = read(place.exercises / "train.jsonl")[:wanted]
        made = style_pairs(tokenizer, exercises, turns=settings.turns, seed=derive_seed(place.recipe.seed, "dpo"))
    return [made[number] for number in fitting(made, place.recipe.data.context)]


def cached_reference(
    folder: Path, base: Path, model: Transformer, pairs: list[Pair], pad_token: int, kept: str
) -> np.ndarray:
    """Return the reference's log-probabilities, computed once for this model at its precision and this data.

    `kept` says how its weights are kept, and what makes it differ from `base`.
    """
    texts = [[answer[0].tolist() for answer in pair] for pair in pairs]
    key = sha256_json([sha256_artefact(base), str(model.precision), kept, texts])
    file = folder / f"{key[:16]}.npy"
    if file.exists():
        say("  reference log-probabilities: as computed before")
        return np.load(file, allow_pickle=False)
    found = reference_logps(model, pairs, pad_token=pad_token)
    with folder_in_progress(folder) as temp:
        np.save(temp / file.name, found, allow_pickle=False)
    return found


def _stage(name: str, make: Callable[[Place, Manifest], Made]) -> Stage:
    return Stage(
        name=name,
        settings=tuning_settings("dpo"),
        inputs=tuning_inputs("dpo"),
        needs=tuning_needs("dpo"),
        make=make,
    )


STAGE, CONTROL = _stage("dpo", make), _stage("dpo-control", make_control)
