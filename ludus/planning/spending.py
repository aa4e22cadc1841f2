"""Where the memory and the time of a run will go, by part.

What lives here: joining what was counted (the ledger) with what was measured (probes), in a straight line over layers.
What does not: counting or measuring. The one idea: count what is exact, measure what is not, extend only in layers,
which are all alike.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ludus.adapters.certificate import ROWS, TIME
from ludus.model.architecture import Architecture
from ludus.model.cost import num_parameters
from ludus.planning import ledger, probe, tuning
from ludus.planning.devices import Device
from ludus.planning.machine import cached
from ludus.planning.work import BYTES, Work

PYTHON_BYTES = 400_000_000  # Python, torch and their libraries once they run; measured instead where there are probes
CUDA_BYTES = 700_000_000  # a CUDA context with its libraries
CPU_SLACK, CUDA_SLACK = 0.5, 0.06  # share of what tensors hold in passing that lies idle in holes, in a long run
# A run holds more than its steps do: the tokenizer, token shards it touched, logs, samples. About 65 MB.
BESIDE_BYTES = 65_000_000
# A processor makes a kernel for each shape of bfloat16 product and keeps it: those of samples, and those of each length
# that a validation's rows have. Measured, on Llamas of 10 to 60 M parameters.
KERNEL_BYTES, LENGTH_BYTES, MOST_LENGTHS = 90_000_000, 7_000_000, 56
REUSED = 0.5  # share of a heap's holes that merging finds large enough
PROBE_SECONDS = 10.0  # that the steps of one probe may take, about
SUSPICIOUS = 3.0  # times the calculated seconds of a micro-batch, from which a measure is not believed at once
START_SECONDS = 4.0
LAUNCH_SECONDS = 8e-6  # to start one kernel on a GPU, of which a layer has about so many, forward and backward:
KERNELS_A_LAYER = 110
PROCESS, HOLES = "Python, torch and libraries", "holes in the heap"
CHECKPOINT = "copy for a checkpoint"
KERNELS, MERGED, MERGING = "kernels by length of rows", "weights, merged in float32", "merging"


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by part; and how they were found.

    `merging` are those of merging the adapter at the end, which is done in the processor's memory; 0 where none is.
    """

    parts: Mapping[str, int]
    moment: str
    how: str
    merging: int = 0

    @property
    def total(self) -> int:
        """Return all of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Duration:
    """Seconds of a run by part, of one step, and how they were found."""

    parts: Mapping[str, float]
    step_seconds: float
    how: str

    @property
    def total(self) -> float:
        """Return all of it."""
        return sum(self.parts.values())


def probes(
    work: Work,
    device: Device,
    *,
    threads: int,
    preload: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> list[probe.Probe]:
    """Measure the work on this machine, whole where that is quick, else on two numbers of layers; keep it cached."""
    found = []
    for size in _sizes(work, device):
        about = {"work": dataclasses.asdict(_asked(size)), "preload": list(preload)}
        about["work"]["optimizer"] = size.optimizer.model_dump(mode="json")

        def make(size: Work = size) -> dict[str, float]:
            layers = f"{size.shape.layers} of {work.shape.layers} layers"
            say(f"measuring {layers}, {size.rows} rows, in a process of its own")
            found = probe.measure(size, threads=threads, preload=preload)
            if found.micro_batch_seconds > SUSPICIOUS * _calculated(size, device)[0]:
                # Two threads that were put on one core wait for each other; in a new process they seldom are again.
                say("far slower than this machine multiplies; measuring again")
                again = probe.measure(size, threads=threads, preload=preload)
                found = min(found, again, key=lambda one: one.micro_batch_seconds)
            return dataclasses.asdict(found)

        measured, _ = cached("probe", about, make, threads=threads)
        found.append(probe.Probe(**measured))
    return found


def _asked(work: Work) -> Work:
    """Leave out what does not change a probe, so that it need not be made again."""
    lean = {
        "steps": 1,
        "validation_rows": 0,
        "validation_examples": 0,
        "checkpoints": 1,
        "accumulate": min(2, work.accumulate),
        "merge": False,
    }
    return work.with_(validations=min(work.validations, int(work.uneven)), samples=min(1, work.samples), **lean)


def _sizes(work: Work, device: Device) -> list[Work]:
    """Choose the sizes to measure: all layers if their steps fit the time, else as many as do, and half of those."""
    micro_batches = min(2, work.accumulate) * probe.STEPS + 2
    rate = device.rate(work.precision) * 0.5 * device.reached(work.parameters)

    def seconds(size: Work) -> float:
        return size.flops / size.steps / size.accumulate / rate * micro_batches

    if seconds(work) <= PROBE_SECONDS or work.shape.layers <= 2:
        return [work]
    fitting = [count for count in range(2, work.shape.layers) if seconds(work.with_layers(count)) <= PROBE_SECONDS]
    more = max(fitting, default=2)
    few = max(1, more // 2)
    rows = work.rows
    while rows > 1 and seconds(work.with_layers(more).with_(rows=rows)) > 10 * PROBE_SECONDS:
        rows = -(-rows // 2)
    return [work.with_layers(count).with_(rows=rows) for count in (few, more)]


def memory(work: Work, device: Device, measured: Sequence[probe.Probe] = ()) -> Memory:
    """Return what the work takes at its peak on a device; with probes, with the process and the heap as measured."""
    counted = ledger.measure(work)
    parts = dict(sorted(counted.parts.items()))
    if work.averages:
        parts["averaged weights"] = work.averages * BYTES["float32"] * work.parameters
    if work.copies_checkpoints and device.kind == "cpu":  # the copy is the processor's
        parts[CHECKPOINT] = counted.standing - counted.frozen + parts.get("averaged weights", 0)
    if measured:
        process, holes = _beside(work, counted.peak, measured)
        # The heap goes on tearing for some dozens of steps, more than a probe takes.
        holes = max(holes, _torn(counted))
        how = "tensors counted, process and heap measured" + _of_layers(measured, work)
    elif device.kind == "cpu":
        process, holes, how = PYTHON_BYTES, _torn(counted), "tensors counted, the rest estimated"
    else:
        process, holes, how = CUDA_BYTES, round(CUDA_SLACK * counted.peak), "tensors counted, the rest estimated"
    parts[PROCESS] = process + (BESIDE_BYTES if device.kind == "cpu" else 0)
    parts[HOLES] = holes
    if work.uneven and device.kind == "cpu" and work.precision == "bfloat16":
        lengths = min(MOST_LENGTHS, work.context, -(-work.validation_examples // work.rows)) if work.validations else 0
        parts[KERNELS] = KERNEL_BYTES + lengths * LENGTH_BYTES
    return _with_merging(work, device, Memory(parts, counted.moment, how), counted)


def _with_merging(work: Work, device: Device, found: Memory, counted: ledger.Ledger) -> Memory:
    """Add what merging takes at the end; where it is a processor that trains, that may be the peak of the whole."""
    if not work.merge:
        return found
    merged = merging_bytes(work.shape)
    if device.kind != "cpu":
        return dataclasses.replace(found, merging=merged + PYTHON_BYTES + BESIDE_BYTES)
    stays = (PROCESS, KERNELS, CHECKPOINT, tuning.ADAPTER)
    parts = {name: size for name, size in found.parts.items() if name in stays or name.startswith(ledger.STATE)}
    free = found.parts[HOLES] + counted.peak - counted.standing
    parts |= {MERGED: merged, HOLES: round((1 - REUSED) * free)}
    total = sum(parts.values())
    return (
        Memory(parts, MERGING, found.how, total) if total > found.total else dataclasses.replace(found, merging=total)
    )


def merging_bytes(shape: Architecture) -> int:
    """Return what merging an adapter takes: all weights in float32, one of them while it is made, and some logits."""
    hidden = shape.hidden * shape.width
    return BYTES["float32"] * (num_parameters(shape) + 3 * hidden + 4 * ROWS * TIME * shape.vocabulary)


def _torn(counted: ledger.Ledger) -> int:
    """Return the bytes that lie idle in holes of a processor's heap; what stays from step to step tears none."""
    return round(CPU_SLACK * (counted.peak - counted.standing))


def _beside(work: Work, peak: int, measured: Sequence[probe.Probe]) -> tuple[int, int]:
    """Return what a process takes by itself, and what its heap wastes at `peak` bytes of tensors."""
    start = measured[-1].start_bytes
    over = [each.peak_bytes - start - ledger.measure(_as_probed(work, each)).peak for each in measured]
    lazily = max(0, min(PYTHON_BYTES - start, min(over)))  # libraries that are loaded by the first step
    if len(over) == 1:
        waste = over[0] - lazily
        if measured[0].rows != work.rows:
            waste = round(waste * peak / max(1, ledger.measure(_as_probed(work, measured[0])).peak))
        return start + lazily, max(0, waste)
    few, more = measured
    slope = (over[1] - over[0]) / (more.layers - few.layers)
    waste = over[1] - lazily + max(0.0, slope) * (work.shape.layers - more.layers)
    if more.rows != work.rows:
        waste *= work.rows / more.rows
    return start + lazily, max(0, round(waste))


def _as_probed(work: Work, one: probe.Probe) -> Work:
    return work.with_layers(one.layers).with_(rows=one.rows)


def _of_layers(measured: Sequence[probe.Probe], work: Work) -> str:
    if measured[-1].layers == work.shape.layers:
        return ""
    return f" on {measured[0].layers} and {measured[-1].layers} of {work.shape.layers} layers"


def duration(work: Work, device: Device, measured: Sequence[probe.Probe] = ()) -> Duration:
    """Return how long the work takes on a device, by part."""
    if measured:
        micro = _over_layers(work, measured, "micro_batch_seconds") * work.rows / measured[-1].rows
        update = _over_layers(work, measured, "update_seconds")
        validation = _over_layers(work, measured, "validation_seconds") / measured[-1].rows
        token = _over_layers(work, measured, "token_seconds")
        start = measured[-1].start_seconds
        how = "measured" + _of_layers(measured, work)
    else:
        micro, update = _calculated(work, device)
        validation, token, start = micro / 3 / work.rows, micro / work.rows / 8, START_SECONDS
        how = f"calculated: {device.reached(work.parameters):.0%} of {device.rate(work.precision) / 1e12:.3g} TFLOP/s"
    step = micro * work.accumulate + update
    parts = {
        "steps": step * work.steps,
        "validation": validation * work.validation_rows * work.validations,
        "samples": token * work.sample_tokens * work.samples,
        "start": start,
    }
    return Duration(parts, step, how)


def _over_layers(work: Work, measured: Sequence[probe.Probe], name: str) -> float:
    """Extend a measured time to all layers."""
    last = getattr(measured[-1], name)
    if len(measured) == 1:
        return last * (work.shape.layers / measured[0].layers if measured[0].layers != work.shape.layers else 1.0)
    few, more = measured
    slope = max(0.0, last - getattr(few, name)) / (more.layers - few.layers)
    return last + slope * (work.shape.layers - more.layers)


def _calculated(work: Work, device: Device) -> tuple[float, float]:
    """Return the seconds of a micro-batch and of an update by the device's rates."""
    flops = work.flops / work.steps / work.accumulate
    micro = flops / (device.rate(work.precision) * device.reached(work.parameters))
    if device.kind == "gpu":
        micro = max(micro, work.shape.layers * KERNELS_A_LAYER * LAUNCH_SECONDS)
    moved = work.parameters * BYTES["float32"] * 7  # weights, gradient and two moments read, three of them written
    return micro, moved / device.bandwidth
