"""The plan of a run: everything that can be said before it starts, as one value.

What lives here: putting it together, and as JSON. What does not: how any figure is found, and how it is printed. The
one idea: a plan is made from the same recipe as the run, by the same code, so it cannot drift from it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ludus.model.cost import flops_per_token, parameters
from ludus.planning import chinchilla, memory_errors, micro_batch, spending, text, tuning, work
from ludus.planning.devices import Device
from ludus.planning.work import BYTES, Work


@dataclass(frozen=True)
class Plan:
    """What a run needs, where each figure is from, and what to change if it does not fit."""

    work: Work
    text: text.Text
    device: Device
    measured: bool
    memory: spending.Memory
    duration: spending.Duration
    fit: micro_batch.Fit
    advice: tuple[str, ...]
    stage: str = "pretrain"

    @property
    def epochs(self) -> float | None:
        """Return how often the text is gone through, None where its length is not known."""
        return self.work.tokens / self.text.tokens if self.text.tokens else None

    @property
    def trained(self) -> int:
        """Count the parameters that are trained."""
        return (
            self.memory.parts.get(tuning.ADAPTER, 0) // BYTES["float32"] if self.work.adapter else self.work.parameters
        )

    @property
    def cost(self) -> float:
        """Return dollars."""
        return self.duration.total / 3600 * self.device.price

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        work, shape = self.work, self.work.shape
        return {
            "stage": self.stage,
            "parameters": {**parameters(shape), "total": work.parameters},
            "trained": self.trained,
            "flops": {"per_token": flops_per_token(shape, work.context), "run": work.flops},
            "tokens": {
                "trained": work.tokens,
                "available": self.text.tokens,
                "origin": self.text.tokens_origin,
                "epochs": self.epochs,
                "per_parameter": work.tokens / work.parameters,
                "verdict": chinchilla.verdict(work.parameters, work.tokens),
            },
            "vocabulary": {"size": self.text.vocabulary, "origin": self.text.vocabulary_origin},
            "memory": {
                "parts": dict(self.memory.parts),
                "total": self.memory.total,
                "available": self.device.memory_bytes,
                "moment": self.memory.moment,
                "how": self.memory.how,
                "merging": self.memory.merging,
            },
            "time": {
                "parts": dict(self.duration.parts),
                "total": self.duration.total,
                "step_seconds": self.duration.step_seconds,
                "how": self.duration.how,
            },
            "device": {"key": self.device.key, "name": self.device.name, "price": self.device.price},
            "cost": self.cost,
            "rows": {"chosen": work.rows, "accumulate": work.accumulate, **self.fit._asdict()},
            "precision": work.precision,
            "tuning": {
                "adapter": json.loads(work.adapter or "null"),
                "quantise": work.quantise,
                "weights": work.weights,
                "recompute": work.recompute,
                "merge": work.merge,
            }
            if self.stage != "pretrain"
            else None,
            "advice": list(self.advice),
        }


def make(
    recipe: Any,
    folder: Path,
    device: Device,
    *,
    base: Path | None = None,
    stage: str = "pretrain",
    threads: int,
    text_bytes: int | None = None,
    measure: bool = True,
    preload: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a recipe's pretraining on a device, or the fine-tuning of the model at `base`.

    On this machine with a few measured steps, unless not to `measure`.
    """
    if stage == "sft":
        todo = tuning.tuning(recipe, base, native_bfloat16=device.native_bfloat16, on_gpu=device.kind == "gpu")
        found = tuning.text_of(recipe, todo.shape.vocabulary)
    else:
        found = text.of_recipe(recipe, folder, text_bytes)
        todo = work.pretraining(recipe, found, native_bfloat16=device.native_bfloat16)
    here = device.key == "this"
    limit = round(micro_batch.MARGIN * device.memory_bytes)

    def calculated(one: Work) -> int:
        return spending.memory(one, device).total

    fits = calculated(todo) <= device.memory_bytes
    probed = (
        spending.probes(todo, device, threads=threads, preload=preload, say=say) if here and measure and fits else []
    )

    def total(one: Work) -> int:
        return spending.memory(one, device, probed).total

    # Rows change nothing about the merging at the end.
    fit = micro_batch.largest(todo.with_(merge=False), limit, total)
    return Plan(
        work=todo,
        text=found,
        device=device,
        measured=bool(probed),
        memory=spending.memory(todo, device, probed),
        duration=spending.duration(todo, device, probed),
        fit=fit,
        advice=tuple(memory_errors.advice(todo, fit, device.memory_bytes, total, stage=stage)),
        stage=stage,
    )
