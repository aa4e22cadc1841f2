"""What is fastest here: choices that no rule gets right for every machine and shape, measured before the first step.

Tried on one real micro-batch: threads, float32 precision mode, attention backend, how many logits at once, compiling.
All compute the same up to the last digits. The tries leave weights, gradients, buffers and random state as they were,
and take a small share of the planned run; a short run takes the rule, so that it comes out the same each time. A choice
belongs to its run: it is recorded, and resuming takes the record, so that exact resume holds.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ludus.base.errors import LudusError
from ludus.base.files import read_json, write_json
from ludus.data.batch import Batch
from ludus.learning.loop import Objective, Source
from ludus.model import cost
from ludus.model.attention import BACKENDS
from ludus.model.transformer import Transformer
from ludus.optim.groups import Optimizer

Value = str | int | bool | None
RULES: dict[str, Value] = {"threads": None, "float32": "highest", "attention": "auto", "head": None, "compile": False}
SHORT_SECONDS = 60.0  # a run estimated shorter measures nothing
SLOW_RATE = 2e11  # operations per second, for that estimate
SHARE, MOST_SECONDS = 0.01, 30.0  # of the planned run, and at most, that measuring may take
GAIN = 0.03  # what differs by less is noise, and the rule stays
COMPILE_SECONDS = 60.0  # of a first compilation; it has to save twice that
WHOLE_ENTRIES = 1 << 26  # logits that may be tried all at once: 256 MB in float32
EXACT = 1e-6  # relative error of a product up to which a precision mode counts as float32


@dataclass(frozen=True)
class Choice:
    """What was chosen, where from, and a line for each reason; `settings` is plain data, for the run's manifest."""

    settings: dict[str, Value]
    source: Literal["rule", "cached", "measured", "recorded"]
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it in one line; `threads` None is what was set, `head` None its own rule, 0 all logits at once."""
        return f"{', '.join(f'{name} {value}' for name, value in self.settings.items())} ({self.source})"


def choose(
    model: Transformer,
    objective: Objective,
    batch: Batch,
    *,
    optimizer: Optimizer | None = None,
    steps_planned: int,
    cache: Path | None,
    recorded: Mapping[str, Value] | None = None,
    tries: Mapping[str, Sequence[Value]] | None = None,
) -> Choice:
    """Return the fastest settings for this model and batch, without applying them.

    `cache` is a folder of the user, None for none; `recorded` are the settings of the run that is resumed; `tries`
    replaces what is tried. `optimizer` is not tried: its kernel is fused wherever PyTorch has one, 6-7 times faster.
    """
    if recorded is not None:
        return Choice(dict(RULES) | dict(recorded), "recorded", ["the settings this run began with"])
    planned = estimated_seconds(model, batch, steps_planned)
    if planned < SHORT_SECONDS:  # nor is the cache asked: what is quickly done again shall come out the same
        reason = f"about {planned:.0f} s of training is too short to measure in"
        return Choice(dict(RULES), "rule", [reason])
    file = None if cache is None else cache / f"autotune-{fingerprint(model, batch)}.json"
    known = _read(file)
    if known is not None:
        return known
    tried = tries if tries is not None else candidates(model, batch)
    with _untouched(model):
        found = _measure(model, objective, batch, steps_planned, tried)
    if file is not None and found.source == "measured":
        with suppress(LudusError):  # a cache that cannot be written costs time, nothing else
            write_json(file, {"settings": found.settings, "reasons": found.reasons})
    return found


def apply(choice: Choice | Mapping[str, Value], model: Transformer) -> None:
    """Set a model and this process to a choice.

    Raises:
        ConfigError: a recorded attention backend is none of this version's.
    """
    settings = choice.settings if isinstance(choice, Choice) else choice
    for name, value in settings.items():
        _APPLY[name](model, value)


def peek(source: Source) -> Batch:
    """Return the next batch of a source, which then stands where it stood."""
    state = source.state_dict()
    batch = next(source)
    source.load_state_dict(state)
    return batch


def estimated_seconds(model: Transformer, batch: Batch, steps: int) -> float:
    """Estimate how long so many micro-batches take on an ordinary processor, from their operations alone."""
    rows, time_ = batch.tokens.shape
    operations = cost.flops_per_token(model.shape, time_) * rows * time_ * steps
    return operations / SLOW_RATE


def fingerprint(model: Transformer, batch: Batch) -> str:
    """Name what a measurement holds for: machine, software, model, precision, batch, threads and determinism."""
    device = model.embed_tokens.weight.device
    facts = {
        "machine": [platform.machine(), _processor(), os.cpu_count()],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "shape": repr(model.shape),
        "precision": str(model.precision),
        "batch": [*batch.tokens.shape, batch.documents is not None, batch.shared],
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def candidates(model: Transformer, batch: Batch) -> dict[str, list[Value]]:
    """Return what is worth trying beside the rule, in the order in which it is decided."""
    on_gpu = model.embed_tokens.weight.device.type == "cuda"
    rows, time_ = batch.tokens.shape
    found: dict[str, list[Value]] = {}
    if not on_gpu and torch.get_num_threads() > 1:
        found["threads"] = [1]  # where other work shares the cores, more threads wait for one another
    if not on_gpu and model.precision == torch.float32 and _medium_is_exact():
        found["float32"] = ["medium"]  # another library, not other digits
    dense = [name for name in BACKENDS if name != "flex"]
    found["attention"] = ["fused", "flex"] if on_gpu else list(dense)
    if rows * time_ * model.shape.vocabulary <= WHOLE_ENTRIES:
        found["head"] = [0]
    if on_gpu:
        found["compile"] = [True]
    return found


def _measure(
    model: Transformer, objective: Objective, batch: Batch, steps: int, tried: Mapping[str, Sequence[Value]]
) -> Choice:
    """Decide one setting after the other, each against the best so far, as long as the time allowed lasts."""
    begun = time.perf_counter()
    settings: dict[str, Value] = dict(RULES) | {"threads": torch.get_num_threads()}
    apply(settings, model)
    best = min(_seconds(model, objective, batch) for _ in range(2))
    allowed = min(MOST_SECONDS, SHARE * best * steps)
    reasons = [f"a micro-batch takes {_time(best)} as the rule has it; {allowed:.1f} s allowed for tries"]
    for name, values in tried.items():
        for value in values:
            spent = time.perf_counter() - begun
            if name == "compile" and best * steps * GAIN < 2 * COMPILE_SECONDS:
                reasons.append(f"{name} {value}: not tried, the run is too short to win back the compiling")
                continue
            if name != "compile" and spent + 2 * best > allowed:
                reasons.append(f"{name} {value}: not tried, {allowed:.1f} s are spent")
                continue
            found = _try(model, objective, batch, settings, name, value)
            if isinstance(found, str):
                reasons.append(f"{name} {value}: cannot be used here ({found})")
                continue
            faster = found < best * (1 - GAIN)
            reasons.append(f"{name} {value}: {_time(found)} against {_time(best)}{', taken' if faster else ''}")
            if faster:
                settings, best = settings | {name: value}, found
    return Choice(settings, "measured", reasons)


def _try(
    model: Transformer, objective: Objective, batch: Batch, settings: dict[str, Value], name: str, value: Value
) -> float | str:
    """Return the seconds of a micro-batch with one setting changed, or why it does not work."""
    try:
        apply({**settings, name: value}, model)
        return min(_seconds(model, objective, batch) for _ in range(2))
    except (RuntimeError, NotImplementedError, LudusError) as problem:
        return (str(problem).splitlines() or [type(problem).__name__])[0][:120]
    finally:
        apply(settings, model)


def _seconds(model: Transformer, objective: Objective, batch: Batch) -> float:
    """Time one forward and backward pass."""
    device = model.embed_tokens.weight.device
    _wait(device)
    begun = time.perf_counter()
    objective(model, batch)["loss"].backward()
    _wait(device)
    taken = time.perf_counter() - begun
    model.zero_grad(set_to_none=True)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _untouched(model: Transformer) -> Iterator[None]:
    """Give back gradients, buffers, mode, random state and settings as they were."""
    device = model.embed_tokens.weight.device
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    before = current(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for parameter, _ in gradients:
                parameter.grad = None
            model.train()
            yield
    finally:
        apply(before, model)
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training


def current(model: Transformer) -> dict[str, Value]:
    """Return the settings in force."""
    return {
        "threads": torch.get_num_threads(),
        "float32": torch.get_float32_matmul_precision(),
        "attention": model.attention_backend,
        "head": getattr(model, "head_chunk_entries", None),
        "compile": model.layers[0]._compiled_call_impl is not None,
    }


def _set_threads(model: Transformer, value: Any) -> None:
    if value is not None and value != torch.get_num_threads():
        torch.set_num_threads(value)


def _set_attention(model: Transformer, value: Any) -> None:
    model.attention_backend = value


def _set_head(model: Transformer, value: Any) -> None:
    model.head_chunk_entries = value


def _set_compile(model: Transformer, value: Any) -> None:
    for block in model.layers:
        if value and block._compiled_call_impl is None:
            block.compile()
        elif not value:
            block._compiled_call_impl = None


_APPLY: dict[str, Callable[[Transformer, Any], None]] = {
    "threads": _set_threads,
    "float32": lambda model, value: torch.set_float32_matmul_precision(value),
    "attention": _set_attention,
    "head": _set_head,
    "compile": _set_compile,
}


def _medium_is_exact() -> bool:
    """Tell whether the medium mode multiplies in float32 here; a processor with AMX may round to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    before, exact = torch.get_float32_matmul_precision(), left.double() @ right.double()
    try:
        torch.set_float32_matmul_precision("medium")
        return bool((left @ right - exact).norm() <= EXACT * exact.norm())
    finally:
        torch.set_float32_matmul_precision(before)


def _read(file: Path | None) -> Choice | None:
    """Return what is cached; what cannot be read or does not fit is measured anew."""
    if file is None or not file.is_file():
        return None
    try:
        held = read_json(file)
    except LudusError:
        return None
    settings = held.get("settings") if isinstance(held, dict) else None
    if not isinstance(settings, dict) or settings.keys() != RULES.keys() or settings["attention"] not in KNOWN:
        return None
    return Choice(settings, "cached", [str(reason) for reason in held.get("reasons", [])])


KNOWN = {"auto", *BACKENDS}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
