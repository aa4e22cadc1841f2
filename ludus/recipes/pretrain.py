"""Pretraining: next-token prediction over packed documents, from fresh weights."""

from functools import partial

from ludus.base.console import say
from ludus.base.errors import ConfigError
from ludus.base.seeds import derive_seed
from ludus.data import shards, sources
from ludus.data.batch import Batch
from ludus.data.mixture import Domain, Mixture
from ludus.data.prefetch import Prefetch
from ludus.data.ramps import context_ramp, rows_ramp
from ludus.generation.engine import Sampling
from ludus.learning import hooks
from ludus.learning.objectives.next_token import next_token
from ludus.model import cost
from ludus.model.settings import architecture
from ludus.model.transformer import build
from ludus.planning.predictions import check_prediction
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.rows import fitted
from ludus.recipes.schema import Recipe
from ludus.recipes.training import Fit, fit, prepare
from ludus.runs.manifest import Manifest
from ludus.text.tokenizer import Tokenizer


def make(place: Place, manifest: Manifest) -> Made:
    """Pretrain a model."""
    place = fitted(place) if place.recipe.pretrain.auto_rows else place
    recipe, settings = place.recipe, place.recipe.pretrain
    tokenizer = Tokenizer.load(place.tokenizer)
    validation = shards.read(place.tokens / "validation", tokenizer_hash=tokenizer.hash)
    shape = architecture(recipe.model, vocabulary=tokenizer.vocabulary_size, context=recipe.data.context)
    model = prepare(
        place, build(shape, seed=derive_seed(recipe.seed, "weights"), initial=recipe.model.initial or "zero"), settings
    )
    flops = cost.flops_per_token(shape, recipe.data.context)
    held = cost.training_bytes(shape, settings.optimizer.kind)["total"]
    say(f"  {flops / 1e6:,.1f} MFLOPs a token, {held / 1e6:,.1f} MB for weights, gradients and moments")
    rows = {"context": recipe.data.context, "rows": settings.rows, "pad_token": tokenizer.pad}
    source = text(place, tokenizer)
    say(f"  {outlook(source, recipe)}")

    ready = Batch.pin if model.embed_tokens.weight.is_cuda else None

    def held_out():
        return sources.in_order(validation, limit=settings.validation_rows, **rows)

    training = Fit(
        name="pretrain",
        settings=settings,
        model=model,
        tokenizer=tokenizer,
        objective=partial(next_token, z_loss=settings.z_loss, label_smoothing=settings.label_smoothing),
        source=Prefetch(source, ahead=recipe.data.prefetch, ready=ready) if recipe.data.prefetch else source,
        tuned=True,
        prompts={prompt: [tokenizer.bos, *tokenizer.encode(prompt)] for prompt in settings.prompts},
        sampling=Sampling(settings.sample_tokens, frozenset(tokenizer.ends), temperature=0.8, top_k=50),
        validation=hooks.validate(next_token, held_out, bytes_per_unit=validation.num_bytes / validation.predictions),
    )
    made = fit(place, manifest, training)
    checked = check_prediction(place.folder)
    if checked:
        say(f"  {checked}")
    return made


def text(place: Place, tokenizer: Tokenizer) -> sources.Rows | Mixture:
    """Return the stream of rows: of one corpus or of a mixture, with the ramps that the recipe asks for."""
    data, settings = place.recipe.data, place.recipe.pretrain
    batches = settings.steps * settings.accumulate
    longer = [(stage.start, stage.context) for stage in data.context_ramp]
    rows = {
        "context": data.context,
        "rows": rows_ramp(settings.rows, [(stage.start, stage.rows) for stage in data.rows_ramp], batches),
        "pad_token": tokenizer.pad,
        "seed": derive_seed(place.recipe.seed, "pretrain"),
        "shortened": context_ramp(data.context, longer, batches) if longer else None,
    }
    if not data.mixture:
        return sources.pretraining(shards.read(place.tokens / "train", tokenizer_hash=tokenizer.hash), **rows)
    domains = {
        name: Domain(
            shards.read(place.tokens / name / "train", tokenizer_hash=tokenizer.hash), domain.weight, domain.epochs
        )
        for name, domain in data.mixture.items()
    }
    annealing = [(stage.start, stage.weights) for stage in data.annealing]
    return Mixture(domains, batches=batches, annealing=annealing, **rows)


def outlook(source: sources.Rows | Mixture, recipe: Recipe) -> str:
    """Say what becomes of the tokens: all are trained on, some places are padded, none is dropped."""
    batches = recipe.pretrain.steps * recipe.pretrain.accumulate
    if isinstance(source, Mixture):
        read = (f"{name} {epochs:.2f}" for name, epochs in source.outlook(batches).items())
        return f"epochs of each domain: {', '.join(read)} (0 tokens dropped)"
    there = source.outlook()
    about = "about " if there["blocks"] > 1 else ""
    wanted = sum(source.rows(batch) for batch in (0, batches - 1)) / 2 * batches  # what a ramp comes to, roughly
    return (
        f"{about}{there['tokens']:,} tokens in {there['rows']:,} rows an epoch ({there['padding']:.1%} padding, "
        f"0 dropped); {wanted / there['rows']:.2f} epochs"
    )


def settings_of(recipe: Recipe) -> dict:
    """Return what decides the outcome."""
    sections = recipe.model_dump(mode="json", include={"model", "data", "pretrain", "seed", "precision", "threads"})
    return sections


def needs(place: Place) -> list[str]:
    """Return the stage before; raise ConfigError where a model is brought, which is tuned and not made."""
    if place.recipe.model.base:
        raise ConfigError(
            f"model.base={place.recipe.model.base} brings a model, and pretrain makes a fresh one; take pretrain out "
            "of stages, or go on with that model on plain text: ludus sft model=MODEL data=FILE"
        )
    return ["tokenizer"]


STAGE = Stage(
    name="pretrain",
    settings=settings_of,
    inputs=lambda place: {"tokenizer": place.tokenizer, "tokens": place.tokens},
    needs=needs,
    make=make,
)
