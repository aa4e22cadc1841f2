"""Pretraining: next-token prediction over packed documents, from fresh weights."""

from functools import partial

from ludus.base.console import say
from ludus.base.seeds import derive_seed
from ludus.data import shards, sources
from ludus.data.prefetch import Prefetch
from ludus.data.ramps import context_ramp, rows_ramp
from ludus.data.shards import TokenShards
from ludus.generation.engine import Sampling
from ludus.learning import hooks
from ludus.learning.objectives.next_token import next_token
from ludus.model.settings import architecture
from ludus.model.transformer import build
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.schema import Recipe
from ludus.recipes.training import Fit, fit, prepare
from ludus.runs.manifest import Manifest
from ludus.text.tokenizer import Tokenizer


def make(place: Place, manifest: Manifest) -> Made:
    """Pretrain a model."""
    recipe, settings = place.recipe, place.recipe.pretrain
    tokenizer = Tokenizer.load(place.tokenizer)
    train = shards.read(place.tokens / "train", tokenizer_hash=tokenizer.hash)
    validation = shards.read(place.tokens / "validation", tokenizer_hash=tokenizer.hash)
    shape = architecture(recipe.model, vocabulary=tokenizer.vocabulary_size, context=recipe.data.context)
    model = prepare(
        place, build(shape, seed=derive_seed(recipe.seed, "weights"), initial=recipe.model.initial or "zero"), settings
    )
    rows = {"context": recipe.data.context, "rows": settings.rows, "pad_token": tokenizer.pad}
    source = text(recipe, train, tokenizer)
    account(source, settings.rows * settings.accumulate * settings.steps)

    def held_out():
        return sources.in_order(validation, limit=settings.validation_rows, **rows)

    work = Fit(
        name="pretrain",
        settings=settings,
        model=model,
        tokenizer=tokenizer,
        objective=partial(next_token, z_loss=settings.z_loss, label_smoothing=settings.label_smoothing),
        source=Prefetch(source, ahead=recipe.data.prefetch) if recipe.data.prefetch else source,
        prompts={prompt: [tokenizer.bos, *tokenizer.encode(prompt)] for prompt in settings.prompts},
        sampling=Sampling(settings.sample_tokens, frozenset([tokenizer.end]), temperature=0.8, top_k=50),
        validation=hooks.validate(next_token, held_out, bytes_per_unit=validation.num_bytes / validation.predictions),
    )
    return fit(place, manifest, work)


def text(recipe: Recipe, shards: TokenShards, tokenizer: Tokenizer) -> sources.Rows:
    """Return the stream of rows, with the ramps that the recipe asks for."""
    data, settings = recipe.data, recipe.pretrain
    batches = settings.steps * settings.accumulate
    longer = [(stage.start, stage.context) for stage in data.context_ramp]
    return sources.pretraining(
        shards,
        context=data.context,
        rows=rows_ramp(settings.rows, [(stage.start, stage.rows) for stage in data.rows_ramp], batches),
        pad_token=tokenizer.pad,
        seed=derive_seed(recipe.seed, "pretrain"),
        shortened=context_ramp(data.context, longer, batches) if longer else None,
    )


def account(source: sources.Rows, wanted: int) -> None:
    """Print what becomes of the tokens: all are trained on, some places are padded, none is dropped."""
    plan = source.plan(0)
    filled = sum(stop - start for row in plan for start, stop in row)
    padded = len(plan) * source.length - filled
    say(
        f"  {filled:,} tokens in {len(plan):,} rows an epoch ({padded / (filled + padded):.1%} padding, 0 dropped); "
        f"{wanted / len(plan):.2f} epochs"
    )


def settings_of(recipe: Recipe) -> dict:
    """Return what decides the outcome."""
    sections = recipe.model_dump(mode="json", include={"model", "data", "pretrain", "seed", "precision", "threads"})
    return sections


STAGE = Stage(
    name="pretrain",
    settings=settings_of,
    inputs=lambda place: {"tokenizer": place.tokenizer, "tokens": place.tokens},
    needs=lambda place: ["tokenizer"],
    make=make,
)
