"""Supervised fine-tuning: conversations packed into rows, the loss on what the assistant says."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ludus.adapters.noise import noise
from ludus.base.errors import TokenizerMismatch
from ludus.base.seeds import derive_seed
from ludus.data import shards
from ludus.data.batch import Batch
from ludus.data.sources import Beside, Rows, pretraining
from ludus.evaluation.forgetting import general
from ludus.generation.engine import Sampling
from ludus.learning import hooks
from ludus.learning.loop import Source
from ludus.learning.objectives.next_token import next_token
from ludus.recipes import chats
from ludus.recipes.base import load_base
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.tokenizer import framed
from ludus.recipes.training import Fit, fit, in_epochs, prepare, questions, tuning_inputs, tuning_needs, tuning_settings
from ludus.runs.manifest import Manifest
from ludus.text.examples import Examples
from ludus.text.tokenizer import Tokenizer

MOST_REPLAYED = 100_000_000  # bytes of other text that are read


def make(place: Place, manifest: Manifest) -> Made:
    """Fine-tune a model on conversations."""
    recipe, settings = place.recipe, place.recipe.sft
    model, tokenizer, base = load_base(place, "sft")
    train, held_out = chats.rendered(place, tokenizer)
    model = noise(prepare(place, model, settings, tokenizer), settings.noise)
    rows = chats.rows(place, tokenizer, train)
    work = Fit(
        name="sft",
        settings=in_epochs(place, settings, rows),
        model=model,
        tokenizer=tokenizer,
        objective=next_token,
        source=beside_other_text(place, tokenizer, rows),
        prompts=questions(place, tokenizer, train if settings.data else None),
        sampling=Sampling(recipe.evaluate.max_new_tokens, frozenset(tokenizer.ends), temperature=0),
        validation=validation(held_out, settings.rows, tokenizer),
    )
    return fit(place, manifest, work, base=base)


def validation(held_out: Examples | None, rows: int, tokenizer: Tokenizer) -> hooks.Hook | None:
    """Return the validation on what was held out: the loss of a token that the assistant should say."""
    if held_out is None:
        return None
    batches: Callable[[], Iterator[Batch]] = partial(chats.in_order, held_out, rows=rows, pad_token=tokenizer.pad)
    return hooks.validate(next_token, batches, bytes_per_unit=None)


def beside_other_text(place: Place, tokenizer: Tokenizer, source: Rows) -> Source:
    """Put rows of other text beside the conversations, so that the model does not forget how to read and write."""
    recipe, settings = place.recipe, place.recipe.sft
    if not settings.replay:
        return source
    if settings.replay_path:
        texts = general(Path(settings.replay_path).expanduser(), MOST_REPLAYED)
        text = shards.joined(framed(tokenizer, texts), num_bytes=sum(len(one.encode()) for one in texts))
    else:
        text = _corpus(place, tokenizer)
    corpus = pretraining(
        text,
        context=recipe.data.context,
        rows=settings.replay,
        pad_token=tokenizer.pad,
        seed=derive_seed(recipe.seed, "replay"),
    )
    return Beside(source, corpus, weight=settings.replay_weight)


def _corpus(place: Place, tokenizer: Tokenizer) -> shards.TokenShards:
    settings = place.recipe.sft
    try:
        return shards.read(place.tokens / "train", tokenizer_hash=tokenizer.hash)
    except TokenizerMismatch:
        raise TokenizerMismatch(
            f"sft.base={settings.base} has another tokenizer than this run's corpus, of which sft.replay="
            f"{settings.replay} rows are wanted in each batch; set sft.replay=0, sft.replay_path=FILE, or "
            f"tokenizer.path={settings.base}"
        ) from None


def _replays_corpus(place: Place) -> bool:
    return bool(place.recipe.sft.replay) and not place.recipe.sft.replay_path


def inputs(place: Place) -> dict[str, Path]:
    """Return what the stage starts from, with the text of which some is replayed."""
    settings = place.recipe.sft
    found = tuning_inputs("sft")(place)
    if settings.validation:
        found["validation"] = Path(settings.validation).expanduser()
    if settings.replay and settings.replay_path:
        found["replay"] = Path(settings.replay_path).expanduser()
    return found | ({"tokens": place.tokens} if _replays_corpus(place) else {})


STAGE = Stage(
    name="sft",
    settings=tuning_settings("sft"),
    inputs=inputs,
    needs=lambda place: tuning_needs("sft")(place) + (["tokenizer"] if _replays_corpus(place) else []),
    make=make,
)
