"""Supervised fine-tuning: conversations packed into rows, the loss on what the assistant says."""

from pathlib import Path

import numpy as np

from ludus.base.console import say
from ludus.base.errors import TokenizerMismatch
from ludus.base.seeds import derive_seed
from ludus.corpus.exercises.build import read
from ludus.data import shards
from ludus.data.sources import Beside, Rows, pretraining
from ludus.generation.engine import Sampling
from ludus.learning.loop import Source
from ludus.learning.objectives.next_token import next_token
from ludus.recipes.conversations import example, fitting, in_both_styles
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.training import Fit, fit, load_base, prepare, questions, tuning_inputs, tuning_needs, tuning_settings
from ludus.runs.manifest import Manifest
from ludus.text.conversations import read_conversations
from ludus.text.tokenizer import Tokenizer


def make(place: Place, manifest: Manifest) -> Made:
    """Fine-tune a model on conversations."""
    recipe, settings = place.recipe, place.recipe.sft
    model, tokenizer, base = load_base(place, "sft")
    model = prepare(place, model, settings)
    work = Fit(
        name="sft",
        settings=settings,
        model=model,
        tokenizer=tokenizer,
        objective=next_token,
        source=beside_corpus(place, tokenizer, conversations(place, tokenizer)),
        prompts=questions(place, tokenizer),
        sampling=Sampling(recipe.evaluate.max_new_tokens, frozenset([tokenizer.end]), temperature=0),
    )
    return fit(place, manifest, work, base=base)


def beside_corpus(place: Place, tokenizer: Tokenizer, source: Rows) -> Source:
    """Put rows of the corpus beside the conversations, so that the model does not forget how to read and write."""
    recipe, settings = place.recipe, place.recipe.sft
    if not settings.replay:
        return source
    try:
        text = shards.read(place.tokens / "train", tokenizer_hash=tokenizer.hash)
    except TokenizerMismatch:
        raise TokenizerMismatch(
            f"sft.base={settings.base} has another tokenizer than this run's corpus, of which sft.replay="
            f"{settings.replay} rows are wanted in each batch; set sft.replay=0, or tokenizer.path={settings.base}"
        ) from None
    corpus = pretraining(
        text,
        context=recipe.data.context,
        rows=settings.replay,
        pad_token=tokenizer.pad,
        seed=derive_seed(recipe.seed, "replay"),
    )
    return Beside(source, corpus, weight=settings.replay_weight)


def conversations(place: Place, tokenizer: Tokenizer) -> Rows:
    """Render, check and pack the conversations."""
    recipe, settings = place.recipe, place.recipe.sft
    if settings.data:
        chats = read_conversations(settings.data)
    else:
        chats = in_both_styles(
            read(place.exercises / "train.jsonl"),
            rambling_share=settings.rambling_share,
            turns=settings.turns,
            seed=recipe.seed,
        )
    rendered = [example(tokenizer, messages) for messages in chats]
    examples = [rendered[number] for number in fitting([[each] for each in rendered], recipe.data.context)]
    stops = np.cumsum([len(tokens) for tokens, _ in examples])
    pieces = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)
    weights = np.concatenate([weights for _, weights in examples])
    say(f"  {len(examples):,} conversations, {stops[-1]:,} tokens, of which {int(weights.sum()):,} are learned")
    return Rows(
        np.concatenate([tokens for tokens, _ in examples]),
        weights,
        lambda epoch: pieces,
        length=recipe.data.context + 1,
        rows=settings.rows,
        pad_token=tokenizer.pad,
        seed=derive_seed(recipe.seed, "sft"),
    )


def inputs(place: Place) -> dict[str, Path]:
    """Return what the stage starts from, with the corpus where some of it is replayed."""
    return tuning_inputs("sft")(place) | ({"tokens": place.tokens} if place.recipe.sft.replay else {})


STAGE = Stage(
    name="sft",
    settings=tuning_settings("sft"),
    inputs=inputs,
    needs=lambda place: tuning_needs("sft")(place) + (["tokenizer"] if place.recipe.sft.replay else []),
    make=make,
)
