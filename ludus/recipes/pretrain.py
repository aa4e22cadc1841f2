"""Pretraining: next-token prediction over packed documents, from fresh weights."""

from ludus.base.console import say
from ludus.base.seeds import derive_seed
from ludus.data import shards, sources
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
    model = prepare(place, build(shape, seed=derive_seed(recipe.seed, "weights")), settings)
    rows = {"context": recipe.data.context, "rows": settings.rows, "pad_token": tokenizer.pad}
    source = sources.pretraining(train, seed=derive_seed(recipe.seed, "pretrain"), **rows)
    account(source, settings.rows * settings.accumulate * settings.steps)

    def held_out():
        return sources.in_order(validation, limit=settings.validation_rows, **rows)

    work = Fit(
        name="pretrain",
        settings=settings,
        model=model,
        tokenizer=tokenizer,
        objective=next_token,
        source=source,
        prompts={prompt: [tokenizer.bos, *tokenizer.encode(prompt)] for prompt in settings.prompts},
        sampling=Sampling(settings.sample_tokens, frozenset([tokenizer.end]), temperature=0.8, top_k=50),
        validation=hooks.validate(next_token, held_out, bytes_per_unit=validation.num_bytes / validation.predictions),
    )
    return fit(place, manifest, work)


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
