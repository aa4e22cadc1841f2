"""One kind of adapter, trained on a few examples and measured from every side, by `python -m` with the file of a job.

What lives here: what one process of the bench does, seed after seed. What does not: which kinds there are, and what is
made of the figures. The one idea: a trial has a process of its own, so that the memory it takes is its own, and says
what it found as lines of JSON, so that what is finished is never lost.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch

from ludus.adapters.apply import apply, rate_factor
from ludus.adapters.opening import open_model
from ludus.adapters.quantised import quantise_model
from ludus.adapters.settings import AdapterSettings, AnyAdapter, NoAdapter, PromptSettings
from ludus.base.console import say
from ludus.base.errors import ConfigError, LudusError
from ludus.base.seeds import derive_seed
from ludus.data.pairs import Example
from ludus.data.sources import Rows
from ludus.evaluation.forgetting import BitsPerByte, bits_per_byte, forgetting
from ludus.evaluation.held_out import asked, parted, reference_example, spread
from ludus.learning import device, precision
from ludus.learning.loop import Run, train
from ludus.learning.objectives.next_token import next_token
from ludus.model.architecture import Architecture
from ludus.model.transformer import Transformer, build
from ludus.optim import groups, schedules
from ludus.optim.settings import AdamWSettings, ScheduleSettings
from ludus.parallel import mesh
from ludus.recipes.brought import conversations, speaking
from ludus.recipes.compare import with_room
from ludus.recipes.peft_measures import (
    Clock,
    Say,
    certificate,
    finite,
    forget_peak,
    gradient_bytes,
    memory_status,
    peak_bytes,
    quality,
    state_bytes,
    trainable,
)
from ludus.text.conversations import told
from ludus.text.examples import build as examples_of
from ludus.text.tokenizer import Tokenizer

MARK = "\x1e"  # before a line for the bench; whatever else a library prints is no news


@dataclass(frozen=True)
class Job:
    """What one process does: a variant with its seeds; none of them to measure the model as it is."""

    name: str
    adapter: dict[str, Any]
    quantise: str
    rate: float
    seeds: list[int]
    model: str
    data: str
    texts: str  # JSON file with a list of general texts
    steps: int
    rows: int
    context: int
    held_out: float
    most_held_out: int
    precision: str = "float32"
    device: str = "auto"
    threads: int | None = None
    before: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what is written."""
        return asdict(self)


@dataclass(frozen=True)
class Material:
    """What all trials of a process share."""

    tokenizer: Tokenizer
    training: list[Example]
    held_out: list[Example]
    texts: list[str]


def trials(job: Job, tell: Say) -> None:
    """Do a job: tell `{"step": ...}` now and then while it trains, and `{"run": ...}` for what is finished."""
    if job.threads:
        torch.set_num_threads(job.threads)
    material = _material(job)
    _warm_up(job)
    start = memory_status("VmRSS")
    if not job.seeds:
        tell({"run": _untrained(job, material)})
    for seed in job.seeds:
        tell({"run": _trial(job, material, seed, start, tell)})


def _material(job: Job) -> Material:
    tokenizer = speaking(job.model)
    training, held_out = parted(conversations(job.data), job.held_out)
    learned = examples_of(tokenizer, training, context=job.context)
    if learned.left_out:
        say(f"  left out of {len(training):,} examples to train on: {told(learned.left_out)}")
    references = [reference_example(tokenizer, asked(chat.messages)) for chat in held_out]
    known = [each for each in references if each is not None and len(each[0]) <= job.context + 1]
    if len(known) < len(references):
        say(f"  left out of {len(references):,} held-out examples: {len(references) - len(known):,} that do not fit")
    if not known:
        raise ConfigError(
            f"no example of {job.data} that fits into {job.context} tokens is held out; take a longer context, or a "
            f"larger share than {job.held_out:g}"
        )
    texts = json.loads(Path(job.texts).read_text("utf-8"))
    return Material(tokenizer, learned.examples, spread(known, job.most_held_out), texts)


def _warm_up(job: Job) -> None:
    """Take one step with a model of nothing, so that what loads at first use does not count as the trial's memory."""
    if not job.seeds:
        return
    model = build(Architecture(8, layers=1, width=64, heads=4, kv_heads=4, head_dim=16, hidden=64, context=64), seed=0)
    if job.quantise != "none":
        quantise_model(model, job.quantise)  # type: ignore[arg-type]
    settings: AnyAdapter = pydantic.TypeAdapter(AdapterSettings).validate_python(job.adapter)
    model = model if isinstance(settings, NoAdapter) else apply(model, settings, seed=0)
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()


def _model(job: Job, material: Material) -> Transformer:
    where = device.place(job.device).device  # type: ignore[arg-type]
    model = open_model(job.model, device=where, quantise=job.quantise)
    model.precision = precision.policy(job.precision, where).dtype  # type: ignore[arg-type]
    return with_room(model, material.tokenizer.vocabulary_size)


def _untrained(job: Job, material: Material) -> dict[str, Any]:
    model = _model(job, material)
    found = bits_per_byte(model, material.tokenizer, material.texts, context=job.context, limit_bytes=None)
    return {
        "name": job.name,
        "quantise": job.quantise,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "examples": len(material.training),
        **quality(model, material.held_out),
        "general": found.as_json(),
    }


def _trial(job: Job, material: Material, seed: int, start: int, tell: Say) -> dict[str, Any]:
    forget_peak()
    settings: AnyAdapter = pydantic.TypeAdapter(AdapterSettings).validate_python(job.adapter)
    model = _model(job, material)
    torch.manual_seed(derive_seed(seed, "peft bench"))
    model = _adapted(model, settings, material, seed)
    run = _run(job, model, material, settings, seed)
    clock = Clock(seed, tell)
    train(run, next_token, steps=job.steps, mesh=mesh.current(), hooks=(clock,))
    found = {
        "name": job.name,
        "kind": job.adapter["kind"],
        "quantise": job.quantise,
        "seed": seed,
        "rate": job.rate,
        "trainable": trainable(model),
        "train_loss": finite(clock.loss),
        **clock.seconds(),
        "peak_bytes": peak_bytes(start),
        "gradient_bytes": gradient_bytes(model),
        "optimizer_bytes": state_bytes(run.optimizer.state_dict()),
    }
    del run
    after = bits_per_byte(model, material.tokenizer, material.texts, context=job.context, limit_bytes=None)
    change = forgetting(BitsPerByte.from_json(job.before), after) if job.before else None
    return {
        **found,
        **quality(model, material.held_out),
        "bits_per_byte": finite(after.bits),
        "forgetting": None if change is None else {key: finite(value) for key, value in asdict(change).items()},
        "merge": certificate(model, material.held_out),
    }


def _adapted(model: Transformer, settings: AnyAdapter, material: Material, seed: int) -> Transformer:
    if isinstance(settings, NoAdapter):
        return model.requires_grad_(True)
    words = settings.text if isinstance(settings, PromptSettings) else None
    tokens = material.tokenizer.encode(words) if words else None
    return apply(model, settings, seed=derive_seed(seed, "adapter"), tokens=tokens)


def _run(job: Job, model: Transformer, material: Material, settings: AnyAdapter, seed: int) -> Run:
    stops = np.cumsum([len(tokens) for tokens, _ in material.training])
    pieces = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)
    source = Rows(
        np.concatenate([tokens for tokens, _ in material.training]),
        np.concatenate([weights for _, weights in material.training]),
        lambda epoch: pieces,
        length=job.context + 1,
        rows=job.rows,
        pad_token=material.tokenizer.pad,
        seed=derive_seed(seed, "data"),
    )
    optimizer = groups.build(
        model.named_parameters(),
        AdamWSettings(learning_rate=job.rate, weight_decay=0.0, beta2=0.99),
        factor=rate_factor(settings),
    )
    return Run(Path(), model, optimizer, schedules.build(ScheduleSettings(warmup=0.06), job.steps), source)


def main(argv: Sequence[str]) -> int:
    """Do the job in a JSON file and write a line for each thing there is to say."""
    job = Job(**json.loads(Path(argv[0]).read_text("utf-8")))

    def tell(said: dict[str, Any]) -> None:
        print(MARK + json.dumps(said), flush=True)

    try:
        trials(job, tell)
    except LudusError as error:
        tell({"failed": str(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
