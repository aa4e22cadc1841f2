"""What every training stage shares: the model at its precision, the run, and the folder it leaves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ludus.adapters.apply import rate_factor
from ludus.adapters.quantised import describe
from ludus.adapters.settings import NoAdapter
from ludus.base.console import Meter, say
from ludus.base.errors import ConfigError
from ludus.base.files import read_json, write_json
from ludus.base.seeds import derive_seed
from ludus.corpus.download import cache_folder
from ludus.corpus.exercises.build import read
from ludus.data.prefetch import Prefetch
from ludus.data.sources import Rows
from ludus.learning import autotune, device, precision
from ludus.learning.guard import Guard
from ludus.learning.interruption import listening
from ludus.learning.loop import Run, Source, train
from ludus.learning.saver import Saver
from ludus.model.float8 import float8
from ludus.model.settings import TO_BE_NAMED
from ludus.model.transformer import Transformer
from ludus.optim import groups, schedules
from ludus.parallel import mesh
from ludus.parallel.recomputation import recompute
from ludus.planning.memory_errors import advising
from ludus.recipes.base import adapted, weights_of
from ludus.recipes.company import Company, Fit
from ludus.recipes.conversations import question
from ludus.recipes.leaving import leave
from ludus.recipes.place import Made, Place
from ludus.recipes.schema import Recipe, SftSettings
from ludus.runs.manifest import Manifest
from ludus.text.examples import Examples
from ludus.text.find import repository
from ludus.text.tokenizer import Tokenizer

ASKED = 4  # beginnings of examples that are gone on with at every sample
CHOICE = "choice.json"  # what was found to be fastest, in the folder of the stage


def prepare(
    place: Place, model: Transformer, settings: Any, tokenizer: Tokenizer | None = None, *, dropout: bool = True
) -> Transformer:
    """Put a model on the device, set its precision and attach the adapter asked for; without `dropout`, turn it off.

    The `tokenizer` is that of a model that is tuned.
    """
    where = device.place(place.recipe.device)
    policy = precision.policy(place.recipe.precision, where.device)
    model = model.to(where.device)
    model.precision = policy.dtype
    say(f"  {_millions(model)} parameters on {where}, {policy}")
    if describe(model):
        say(f"  {describe(model)}")
    if policy.float8:
        left = float8(model).left
        say(f"  of odd sizes for float8, so in bfloat16: {', '.join(left)}" if left else "  every layer in float8")
    if settings.recompute:
        recompute(model)
    if tokenizer is not None:
        model = adapted(place, model, settings, tokenizer)
    return model if dropout else _without_dropout(model)


def _without_dropout(model: Transformer) -> Transformer:
    """Turn dropout off where log-probabilities are compared with a frozen model's: its noise would pass for change."""
    active = [layer for layer in model.modules() if isinstance(layer, torch.nn.Dropout) and layer.p]
    for layer in active:
        layer.p = 0.0
    if active:
        say("  dropout is off: its noise would pass for a change of the log-probabilities that are compared")
    return model


def fit(place: Place, manifest: Manifest, work: Fit, *, base: Path | None = None) -> Made:
    """Train, or continue training, and leave the model with its card in the stage's folder."""
    settings, folder = work.settings, place.stage(work.name)
    torch.manual_seed(derive_seed(place.recipe.seed, work.name, "torch"))
    ranks = mesh.current()
    optimizer = groups.build(
        work.model.named_parameters(),
        settings.optimizer,
        precision=work.model.precision,
        rank=ranks.rank,
        ranks=ranks.ranks,
        factor=rate_factor(getattr(settings, "adapter", NoAdapter())),
    )
    schedule = schedules.build(settings.schedule, settings.steps)
    where = work.model.embed_tokens.weight.device
    scaling = precision.policy(place.recipe.precision, where).scaling
    guard = Guard(device=where, spike=settings.spike, scaling=scaling)
    run = Run(folder, work.model, optimizer, schedule, work.source, guard=guard)
    metric = "validation_loss" if settings.stopping.best else None
    saver = Saver(folder / "checkpoints", keep=settings.keep, metric=metric)
    with listening() as asked, Meter(f"  {work.name}", settings.steps) as meter, saver, _closing(work.source):
        company = Company(place, manifest, work, run, saver)
        if company.resume():
            say(f"  resuming after step {run.step} of {settings.steps}")
            meter.start = meter.done = run.step
        with _tuned(place, work), advising(work.name, getattr(settings, "rows", 1), settings.accumulate):
            train(
                run,
                work.objective,
                steps=settings.steps,
                accumulate=settings.accumulate,
                clip=settings.clip,
                mesh=ranks,
                hooks=company.hooks(meter, asked),
            )
        company.end()
    if run.stopped:
        say(f"  stopped early after step {run.step}: {run.stopped}")
    with company.final_weights():
        return leave(place, work, run, base)


@contextmanager
def _closing(source: Source) -> Iterator[None]:
    """End the thread that reads ahead, whatever has happened."""
    try:
        yield
    finally:
        if isinstance(source, Prefetch):
            source.close()


@contextmanager
def _tuned(place: Place, work: Fit) -> Iterator[None]:
    """Train with what makes this model fastest on this machine, measured once: a resumed run goes on with it.

    Threads are left alone: they are a setting, and results depend on them.
    """
    if not work.tuned:
        yield
        return
    file = place.stage(work.name) / CHOICE
    batch = autotune.peek(work.source)
    batch = batch.to(work.model.embed_tokens.weight.device)
    tries = {name: values for name, values in autotune.candidates(work.model, batch).items() if name != "threads"}
    choice = autotune.choose(
        work.model,
        work.objective,
        batch,
        steps_planned=work.settings.steps * work.settings.accumulate,
        cache=cache_folder(),
        recorded=read_json(file) if file.is_file() else None,
        tries=tries,
    )
    write_json(file, choice.settings)
    if choice.source != "rule":
        for line in (str(choice), *choice.reasons):
            say(f"  {line}")
    autotune.apply(choice, work.model)
    try:
        yield
    finally:  # some of it holds for the whole process
        autotune.apply(autotune.RULES, work.model)


def _millions(model: Transformer) -> str:
    return f"{weights_of(model) / 1e6:.2f} M"


def in_epochs(place: Place, settings: SftSettings, rows: Rows) -> SftSettings:
    """Return the settings with the steps that the epochs asked for take, and what derives from steps derived anew."""
    if settings.epochs is None:
        return settings
    a_step = settings.rows * settings.accumulate
    steps = max(1, round(settings.epochs * rows.outlook()["rows"] / a_step))
    every = ("checkpoint_every", "sample_every", "validate_every")
    open_ones = [name for name in every if place.origins.get(f"sft.{name}", "derived").startswith("derived")]
    anew = settings.model_copy(update={"steps": steps, **dict.fromkeys(open_ones)})
    anew = anew.model_copy(update={name: anew.derive(place.recipe)[name][0] for name in open_ones})
    say(f"  {settings.epochs:g} epochs are {steps:,} steps of {a_step} rows")
    return anew


def questions(place: Place, tokenizer: Tokenizer, learned: Examples | None = None) -> dict[str, list[int]]:
    """Return what is answered at every sample: a held-out exercise of each kind, or beginnings of `learned`."""
    if learned is not None:
        starts = [_until_learned(*one) for one in learned.examples[:: max(1, len(learned.examples) // ASKED)][:ASKED]]
        return {tokenizer.decode(start): start for start in starts}
    file = place.exercises / "held_out.jsonl"
    firsts = {exercise.kind: exercise for exercise in reversed(read(file))} if file.exists() else {}
    return {exercise.prompt: question(tokenizer, exercise) for exercise in firsts.values()}


def _until_learned(tokens: np.ndarray, weights: np.ndarray) -> list[int]:
    """Return the tokens before the first that is learned."""
    return tokens[: max(1, int(np.flatnonzero(weights)[0]))].tolist()


def tuning_settings(stage: str) -> Callable[[Recipe], dict[str, Any]]:
    """Return what decides the outcome of a tuning stage."""
    return lambda recipe: recipe.model_dump(mode="json", include={stage, "data", "seed", "precision", "threads"})


def tuning_inputs(stage: str) -> Callable[[Place], dict[str, Path]]:
    """Return the artefacts a tuning stage starts from."""

    def inputs(place: Place) -> dict[str, Path]:
        data = getattr(getattr(place.recipe, stage), "data", None)
        files = brought_files(data) if data else {"data": place.exercises}
        return {"base": place.base(stage), **files}

    return inputs


def brought_files(named: str | Sequence[str]) -> dict[str, Path]:
    """Return the files among what a person named as data; a data set of the hub is none."""
    names = [named] if isinstance(named, str) else list(named)
    files = [Path(name).expanduser() for name in names if not repository(name) or Path(name).expanduser().exists()]
    return {"data" if len(files) == 1 else f"data {number}": file for number, file in enumerate(files, 1)}


def tuning_needs(stage: str) -> Callable[[Place], list[str]]:
    """Return the stages a tuning stage comes after; none where the recipe brings base and data itself."""

    def needs(place: Place) -> list[str]:
        settings = getattr(place.recipe, stage)
        if place.brought(stage) == TO_BE_NAMED:
            raise ConfigError(
                f"{place.recipe.name} tunes a model, and none is named: give model=FOLDER, a run, or a name of the "
                "hub, such as model=Qwen/Qwen2.5-0.5B"
            )
        before = [] if place.brought(stage) else [place.before(stage)]
        return before + ([] if getattr(settings, "data", None) else ["exercises"])

    return needs
