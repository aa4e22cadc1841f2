"""Pretraining: next-token prediction over packed documents, from fresh weights."""

from dataclasses import replace
from functools import partial

import torch

from ludus.base.console import say
from ludus.base.files import read_json, write_json
from ludus.base.seeds import derive_seed
from ludus.data import shards, sources
from ludus.data.batch import Batch
from ludus.data.mixture import Domain, Mixture
from ludus.data.prefetch import Prefetch
from ludus.data.ramps import context_ramp, rows_ramp
from ludus.generation.engine import Sampling
from ludus.learning import device, hooks
from ludus.learning.objectives.next_token import next_token
from ludus.model.settings import architecture
from ludus.model.transformer import build
from ludus.planning import spending, work
from ludus.planning.devices import Device
from ludus.planning.machine import this_machine
from ludus.planning.micro_batch import choose_rows
from ludus.planning.predictions import check_prediction
from ludus.planning.text import of_recipe
from ludus.recipes.place import Made, Place, Stage
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
        sampling=Sampling(settings.sample_tokens, frozenset([tokenizer.end]), temperature=0.8, top_k=50),
        validation=hooks.validate(next_token, held_out, bytes_per_unit=validation.num_bytes / validation.predictions),
    )
    made = fit(place, manifest, training)
    checked = check_prediction(place.folder)
    if checked:
        say(f"  {checked}")
    return made


def fitted(place: Place) -> Place:
    """Return the run with rows and accumulation that fit into memory; chosen once, so that it is resumed with them."""
    settings, file = place.recipe.pretrain, place.stage("pretrain") / "rows.json"
    if file.is_file():
        chosen = read_json(file)
    else:
        here = _device(place)
        asked = work.pretraining(place.recipe, of_recipe(place.recipe, place.folder))
        choice = choose_rows(
            asked, memory_bytes=here.memory_bytes, total=lambda each: spending.memory(each, here).total
        )
        say(f"  {choice.reason}")
        chosen = {"rows": choice.rows, "accumulate": choice.accumulate}
        write_json(file, chosen)
    recipe = place.recipe.model_copy(update={"pretrain": settings.model_copy(update=chosen)})
    return replace(place, recipe=recipe)


def _device(place: Place) -> Device:
    """Return where the run will be, with the memory that is free there."""
    where = device.place(place.recipe.device).device
    if where.type != "cuda":
        return this_machine(place.recipe.threads or 1)[0]
    name, memory = torch.cuda.get_device_name(where), torch.cuda.mem_get_info(where)[0]
    return Device("this", name, "gpu", rates={"float32": 1.0, "bfloat16": 1.0}, memory_bytes=memory)


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


STAGE = Stage(
    name="pretrain",
    settings=settings_of,
    inputs=lambda place: {"tokenizer": place.tokenizer, "tokens": place.tokens},
    needs=lambda place: ["tokenizer"],
    make=make,
)
