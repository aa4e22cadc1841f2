"""What every training stage shares: the model at its precision, the run, and the folder it leaves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ludus.adapters import files as adapter_files
from ludus.adapters.apply import apply
from ludus.adapters.surgery import adapters, merge
from ludus.base.console import Meter, say
from ludus.base.errors import TokenizerMismatch
from ludus.base.files import read_json, write_json
from ludus.base.seeds import derive_seed
from ludus.corpus.download import cache_folder
from ludus.corpus.exercises.build import read
from ludus.data.prefetch import Prefetch
from ludus.learning import autotune, device, precision
from ludus.learning.guard import Guard
from ludus.learning.interruption import listening
from ludus.learning.loop import Run, Source, train
from ludus.learning.saver import Saver
from ludus.model import exchange
from ludus.model.float8 import float8
from ludus.model.transformer import Transformer
from ludus.optim import groups, schedules
from ludus.parallel import mesh
from ludus.parallel.recomputation import recompute
from ludus.planning.memory_errors import advising
from ludus.recipes.company import Company, Fit
from ludus.recipes.conversations import question
from ludus.recipes.place import Made, Place
from ludus.recipes.schema import Recipe
from ludus.runs.manifest import Manifest
from ludus.text.tokenizer import Tokenizer

CHOICE = "choice.json"  # what was found to be fastest, in the folder of the stage


def prepare(place: Place, model: Transformer, settings: Any, *, dropout: bool = True) -> Transformer:
    """Put a model on the device, set its precision and attach the adapter asked for; without `dropout`, turn it off."""
    where = device.place(place.recipe.device)
    policy = precision.policy(place.recipe.precision, where.device)
    model = model.to(where.device)
    model.precision = policy.dtype
    say(f"  {_millions(model)} parameters on {where}, {policy}")
    if policy.float8:
        left = float8(model).left
        say(f"  of odd sizes for float8, so in bfloat16: {', '.join(left)}" if left else "  every layer in float8")
    if settings.recompute:
        recompute(model)
    adapter = getattr(settings, "adapter", None)
    if adapter is not None:
        model = apply(model, adapter, seed=derive_seed(place.recipe.seed, "adapter"))
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
        return _leave(place, work, run, base)


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


def _leave(place: Place, work: Fit, run: Run, base: Path | None) -> Made:
    folder = place.stage(work.name)
    outputs = {"model": folder / "model"}
    if any(adapters(work.model)):
        outputs["adapter"] = folder / "adapter"
        adapter_files.save(work.model, outputs["adapter"], base=str(base or ""))
        merge(work.model)
    facts = {"run": place.recipe.name, "stage": work.name, "steps": run.step}
    exchange.save(work.model, outputs["model"], work.tokenizer, facts)
    account = work.source.account() if hasattr(work.source, "account") else {}  # type: ignore[attr-defined]
    if account:
        domains = account.get("domains", {})
        fates = [f"{count:,} {fate}" for fate, count in account.items() if fate != "domains"]
        fates += [f"{name} {each['trained']:,} ({each['epochs']:.2f} epochs)" for name, each in domains.items()]
        say(f"  of all tokens: {', '.join(fates)}")
    return Made(outputs, tokens=run.source.tokens, summary={"steps": run.step, "account": account})


def _millions(model: Transformer) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M"


def load_base(place: Place, stage: str) -> tuple[Transformer, Tokenizer, Path]:
    """Load the model a stage starts from, with the tokenizer that belongs to it.

    Raises:
        TokenizerMismatch: the tokenizer has tokens that the model does not know.
    """
    folder = place.base(stage)
    model, tokenizer = exchange.load(folder), Tokenizer.load(folder)
    if tokenizer.vocabulary_size > model.shape.vocabulary:
        raise TokenizerMismatch(
            f"{folder}: its tokenizer with its chat template has {tokenizer.vocabulary_size} tokens, its model "
            f"{model.shape.vocabulary}; start {stage} from a model saved with the tokenizer it was trained with"
        )
    return model, tokenizer, folder


def questions(place: Place, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Return one held-out question of each kind, to be answered at every sample; none without exercises."""
    file = place.exercises / "held_out.jsonl"
    firsts = {exercise.kind: exercise for exercise in reversed(read(file))} if file.exists() else {}
    return {exercise.prompt: question(tokenizer, exercise) for exercise in firsts.values()}


def tuning_settings(stage: str) -> Callable[[Recipe], dict[str, Any]]:
    """Return what decides the outcome of a tuning stage."""
    return lambda recipe: recipe.model_dump(mode="json", include={stage, "data", "seed", "precision", "threads"})


def tuning_inputs(stage: str) -> Callable[[Place], dict[str, Path]]:
    """Return the artefacts a tuning stage starts from."""

    def inputs(place: Place) -> dict[str, Path]:
        data = getattr(getattr(place.recipe, stage), "data", None)
        return {"base": place.base(stage), "data": Path(data).expanduser() if data else place.exercises}

    return inputs


def tuning_needs(stage: str) -> Callable[[Place], list[str]]:
    """Return the stages a tuning stage comes after; none where the recipe brings base and data itself."""

    def needs(place: Place) -> list[str]:
        settings = getattr(place.recipe, stage)
        before = [] if settings.base else [place.before(stage)]
        return before + ([] if getattr(settings, "data", None) else ["exercises"])

    return needs
