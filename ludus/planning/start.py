"""The first question: train from scratch or fine-tune, for this much text, this budget and this hardware?

What lives here: the reasoning, step by step, and its verdict. What does not: planning the run that follows. The one
idea: the answer is worth little without its reasons, so each step is a sentence with its figures, and the last follows
from them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ludus.planning import chinchilla
from ludus.planning.devices import Device

BYTES_PER_TOKEN = 4.4
HOURS_AT_HOME = 48.0  # of a device that costs nothing an hour, where no budget limits it
ENOUGH_TOKENS, ENOUGH_PARAMETERS = 20e9, 1e9  # for a model of one's own that is of general use
CONTINUE_TOKENS = 50e6  # from which on reading the text comes before answering questions
ADAPTER_SHARE = 0.01  # of the base's parameters, at rank 16 on all matrices, about
CONTEXT = 2048
QUANTISED_BYTES = 4.127 / 8  # NF4 with its scales quantised too
NEEDS_LANGUAGE = re.compile(
    "answer|ask|assist|bot|chat|code|customer|document|extract|faq|help|instruct|manual|question|reason|sql|summar"
    "|support|talk|translat|tutor"
)
FOR_LEARNING = re.compile(
    r"experiment|exercise|from scratch|\b(learn|understand) how|\bstudy|teach myself|curiosity|\bfun\b"
)
NOT_LANGUAGE = re.compile(r"\bdna\b|genom|protein|music|midi|molecul|smiles|chess|sensor|telemetry|time.series")


class ReadyMade(NamedTuple):
    """A ready-made model to start from."""

    name: str
    parameters: float
    layers: int
    width: int


BASES = (
    ReadyMade("135M", 1.35e8, 30, 576),
    ReadyMade("360M", 3.6e8, 32, 960),
    ReadyMade("1B", 1.24e9, 16, 2048),
    ReadyMade("3B", 3.2e9, 28, 3072),
    ReadyMade("8B", 8.0e9, 32, 4096),
    ReadyMade("70B", 70.6e9, 80, 8192),
)
METHODS = ("all weights", "LoRA", "QLoRA")


@dataclass(frozen=True)
class Start:
    """The verdict ("from scratch" or "fine-tune"), how in a sentence, the reasons, and memory by base and method."""

    verdict: str
    how: str
    reasons: tuple[str, ...]
    memory: Mapping[str, Mapping[str, Mapping[str, float]]]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "verdict": self.verdict,
            "how": self.how,
            "reasons": list(self.reasons),
            "memory": {base: {name: dict(parts) for name, parts in row.items()} for base, row in self.memory.items()},
        }


def advise(text_bytes: float, device: Device, *, budget: float | None = None, goal: str = "") -> Start:
    """Advise on a start. `budget` is in dollars; it is hours where the device costs nothing."""
    tokens = text_bytes / BYTES_PER_TOKEN
    hours, hours_said = _hours(device, budget)
    rate = max(device.rates.values()) * device.reached(100_000_000)
    flops = rate * hours * 3600
    affordable = chinchilla.best_parameters(flops)
    useful = chinchilla.worth_of_repeats(tokens, chinchilla.GOOD_EPOCHS * tokens)
    own = min(affordable, useful / chinchilla.RATIO, device.memory_bytes / 20)
    trained = min(flops / (6 * own), chinchilla.GOOD_EPOCHS * tokens)
    table = {base.name: {method: memory(base, method) for method in METHODS} for base in BASES}
    reasons = [
        f"text: {_amount(text_bytes)}B is about {_amount(tokens)} tokens; gone through {chinchilla.GOOD_EPOCHS} times, "
        f"which is nearly as good as fresh text, it is worth {_amount(useful)}",
        f"a model wants about 20 tokens a parameter, so this text fills one of {_amount(useful / 20)} parameters",
        f"compute: {hours_said} on {device.name} at about {rate / 1e12:.3g} TFLOP/s reached is {flops:.1e} "
        f"operations, best spent on {_amount(affordable)} parameters and {_amount(20 * affordable)} tokens",
        f"from scratch that makes {_amount(own)} parameters on {_amount(trained)} tokens: by the law of scale a loss "
        f"of about {chinchilla.loss(own, chinchilla.worth_of_repeats(tokens, trained)):.2f} nats a token on web text, "
        f"where a ready-made 8B reaches {chinchilla.loss(8e9, 15e12):.2f}; {_level(own, trained)}",
        _fitting(table, device),
    ]
    verdict, why = _verdict(goal, tokens, own, affordable)
    how = _from_scratch(own, trained) if verdict == "from scratch" else _fine_tune(table, device, tokens, flops)
    return Start(verdict, how, (*reasons, why), table)


def _hours(device: Device, budget: float | None) -> tuple[float, str]:
    if device.price > 0 and budget is not None:
        return budget / device.price, f"${budget:g} buys {budget / device.price:.3g} hours at ${device.price:g} an hour"
    hours = HOURS_AT_HOME if budget is None else budget
    return hours, f"{hours:g} hours" + ("" if budget is not None else " (no budget was given)")


def _verdict(goal: str, tokens: float, own: float, affordable: float) -> tuple[str, str]:
    """Decide, by what the model is for if that was said, else by whether text and compute make a useful one."""
    words = goal.lower()
    enough = tokens >= ENOUGH_TOKENS and own >= ENOUGH_PARAMETERS
    if FOR_LEARNING.search(words):
        return "from scratch", f"the goal is to learn by doing (“{goal}”): a small model of one's own teaches most"
    if NOT_LANGUAGE.search(words):
        return (
            "from scratch",
            f"“{goal}” is no language that ready-made models have read: they help little",
        )
    if enough:
        return "from scratch", (
            f"there is text ({_amount(tokens)} tokens) and compute ({_amount(affordable)} parameters) "
            "for a model of general use"
        )
    lacking = []
    if tokens < ENOUGH_TOKENS:
        lacking.append(f"text: {_amount(tokens)} of {_amount(ENOUGH_TOKENS)} tokens")
    if own < ENOUGH_PARAMETERS:
        lacking.append(f"size: {_amount(own)} of {_amount(ENOUGH_PARAMETERS)} parameters")
    asked = f", and “{goal}” needs a model that knows the language" if NEEDS_LANGUAGE.search(words) else ""
    return (
        "fine-tune",
        f"a useful model from scratch lacks {' and '.join(lacking)}{asked}: start from one that is there",
    )


def _from_scratch(parameters: float, tokens: float) -> str:
    depth = next((depth for depth in range(2, 129) if 12 * depth * (64 * depth) ** 2 >= parameters), 128)
    return (
        f"pretrain about {_amount(parameters)} parameters on {_amount(tokens)} tokens, model.depth={depth} or so; "
        "`ludus plan RECIPE` with that depth gives memory and time"
    )


def _fine_tune(table: Mapping[str, Any], device: Device, tokens: float, flops: float) -> str:
    """Choose the largest base that fits and whose text can be read once, with the method that gives up least."""
    found = [
        (base, method)
        for base in BASES
        for method in METHODS
        if sum(table[base.name][method].values()) <= 0.9 * device.memory_bytes
    ]
    if not found:
        return "fine-tune a base of less than 135M parameters: none of the usual sizes fits into this device's memory"
    quick = [(base, method) for base, method in found if _operations(base, method) * tokens <= flops]
    base, _ = (quick or found[:1])[-1]
    method = next(each for one, each in (quick or found) if one == base)
    first = "read the text first (pretraining continued on it), then " if tokens >= CONTINUE_TOKENS else ""
    part = "" if quick else " on a part of the text, for which there is time"
    said = "the largest that fits memory and budget, with the method that gives up least"
    return f"{first}fine-tune a base of {base.name} with {method}{part}: {said}"


def _operations(base: ReadyMade, method: str) -> float:
    """Return the floating-point operations for a token: an adapter needs no gradients of the base's weights."""
    return (6 if method == METHODS[0] else 4) * base.parameters


def memory(base: ReadyMade, method: str) -> dict[str, float]:
    """Return the bytes that fine-tuning a base takes by part, a row of 2048 tokens at a time with recomputation."""
    adapter = 0.0 if method == "all weights" else ADAPTER_SHARE * base.parameters
    each = {"all weights": 4.0, "LoRA": 2.0, "QLoRA": QUANTISED_BYTES}[method]
    trained = base.parameters if method == "all weights" else adapter
    rows = CONTEXT * base.width * 2.0  # the residual stream of one layer in bfloat16
    return {
        "weights": each * base.parameters + 4 * adapter,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": base.layers * rows + 34 * rows,
        "process": 1e9,
    }


def _fitting(table: Mapping[str, Any], device: Device) -> str:
    """Say what fine-tuning takes, and what of it fits."""
    parts = []
    for method in METHODS:
        sizes = ", ".join(
            f"{name} {_amount(size)}B{'' if size <= 0.9 * device.memory_bytes else ' (too much)'}"
            for name, row in table.items()
            if (size := sum(row[method].values()))
        )
        parts.append(f"{method}: {sizes}")
    return f"fine-tuning takes, of {device.memory_bytes / 1e9:.0f} GB, with " + "; ".join(parts)


def _level(parameters: float, tokens: float) -> str:
    """Say in words what a model of that size and training can do."""
    size = min(parameters, tokens / 20)
    if size < 3e7:
        return "it picks up the style and the words of the text, and few facts"
    if size < 3e8:
        return "it writes fluently about nothing in particular, like GPT-2, and cannot be relied on"
    if size < 2e9:
        return "it answers simple questions, and follows instructions once tuned"
    return "it is of general use once tuned"


def _amount(count: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.3g} "
