"""What quantised layers cost on this processor, beside dense ones and bitsandbytes' own, in one run.

    python benchmarks/quantised.py                 decoding, one layer, and steps of LoRA and QLoRA
    python benchmarks/quantised.py --part step     only the steps: 8 layers of width 256, 8 rows of 256 tokens

All variants take turns, on one thread; quoted is the median of processor time. The ratio of a layer is to
`nn.Linear` in the same precision, that of a step to LoRA's on dense weights, turn by turn.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ludus.adapters.lora import lora
from ludus.adapters.quantised import Quantised, quantise, quantise_model
from ludus.adapters.settings import LoraSettings
from ludus.data.batch import Batch
from ludus.learning.objectives.next_token import next_token
from ludus.model.architecture import Architecture
from ludus.model.transformer import Transformer, build
from ludus.optim import groups
from ludus.optim.settings import AdamWSettings

SHAPE = Architecture(
    vocabulary=8192, layers=8, width=256, heads=4, kv_heads=4, head_dim=64, hidden=688, context=256, tied=False
)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Work = Callable[[], object]


def turns(works: dict[str, Work], repeats: int, warm: int = 2) -> dict[str, list[float]]:
    """Return the processor milliseconds of each work, turn by turn."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + warm):
        for name, work in works.items():
            started = time.process_time_ns()
            work()
            if turn >= warm:
                found[name].append((time.process_time_ns() - started) / 1e6)
    return found


def show(title: str, found: dict[str, list[float]], peer: str) -> None:
    """Print medians, and the median of the ratios of each turn."""
    print(f"\n{title}")
    for name, spent in found.items():
        ratio = statistics.median(mine / other for mine, other in zip(spent, found[peer], strict=True))
        print(f"  {name:34s} {statistics.median(spent):9.3f} CPU ms   {ratio:5.2f}")


def bitsandbytes_layer(layer: nn.Linear, dtype: torch.dtype) -> nn.Module | None:
    """Return bitsandbytes' own layer with the same weights; None where it is not installed."""
    try:
        import bitsandbytes
    except ImportError:
        return None
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
    )
    made.load_state_dict({"weight": layer.weight})
    return made.to("cpu")


def layers(layer: nn.Linear, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Return the layer in every form."""
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=dtype).requires_grad_(False)
    dense.weight.copy_(layer.weight)
    found: dict[str, nn.Module] = {"nn.Linear": dense, "nf4": quantise(layer, "nf4", kernel="torch")}
    found["int8"] = quantise(layer, "int8")
    theirs = bitsandbytes_layer(layer, dtype)
    if theirs is not None:
        found |= {"nf4, bitsandbytes' kernels": quantise(layer, "nf4", kernel="bitsandbytes"), "Linear4bit": theirs}
    return found


def forward(layer: nn.Module, x: Tensor) -> Work:
    """Return the work of a forward pass."""

    def work() -> None:
        with torch.no_grad():
            layer(x)

    return work


def there_and_back(layer: nn.Module, x: Tensor) -> Work:
    """Return the work of a forward and a backward pass."""
    x = x.clone().requires_grad_()
    ones = torch.ones(*x.shape[:-1], layer.out_features, dtype=x.dtype)  # type: ignore[arg-type]
    return lambda: torch.autograd.grad(layer(x), x, ones)


def measure_layers(size: int, repeats: int) -> None:
    """Print what decoding and products of one layer cost."""
    layer = nn.Linear(size, size, bias=False).requires_grad_(False)
    for name, dtype in PRECISIONS.items():
        forms = layers(layer, dtype)
        decoders = {key: partial(form.dense, dtype) for key, form in forms.items() if isinstance(form, Quantised)}
        show(f"decode {size} x {size} to {name}", turns(decoders, repeats), "nf4")
        for rows in (1, 16, 512):
            x = torch.randn(rows, size, dtype=dtype)
            found = turns({key: forward(form, x) for key, form in forms.items()}, repeats)
            show(f"forward, {rows} rows, {name}", found, "nn.Linear")
        x = torch.randn(512, size, dtype=dtype)
        found = turns({key: there_and_back(form, x) for key, form in forms.items()}, repeats)
        show(f"forward and backward, 512 rows, {name}", found, "nn.Linear")


def stepper(model: Transformer, precision: torch.dtype, batch: Batch) -> Work:
    """Return the work of a LoRA step on the model."""
    lora(model, LoraSettings(), seed=0)
    model.precision = precision
    model.train()
    optimizer = groups.build(model.named_parameters(), AdamWSettings(learning_rate=1e-4))

    def work() -> float:
        sums = next_token(model, batch)
        (sums["loss"] / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(sums["loss"].detach()) / batch.weight

    return work


def measure_steps(repeats: int) -> None:
    """Print what a step of LoRA costs on dense and on quantised weights."""
    tokens = torch.randint(0, SHAPE.vocabulary, (8, 256), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.ones(8, 255), 8 * 255.0)
    for name, precision in PRECISIONS.items():
        works = {"LoRA": stepper(build(SHAPE, seed=0, initial="gpt2"), precision, batch)}
        for label, kind, kernel in (
            ("QLoRA, nf4", "nf4", "torch"),
            ("QLoRA, nf4, bitsandbytes' kernels", "nf4", "bitsandbytes"),
            ("QLoRA, int8", "int8", "auto"),
        ):
            model = quantise_model(build(SHAPE, seed=0, initial="gpt2"), kind, kernel=kernel)  # type: ignore[arg-type]
            works[label] = stepper(model, precision, batch)
        print(f"\nfirst losses, {name}: " + ", ".join(f"{label} {work():.4f}" for label, work in works.items()))
        show(f"step, {name}", turns(works, repeats, warm=1), "LoRA")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("layer", "step", "all"), default="all")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if asked.part in ("layer", "all"):
        measure_layers(asked.size, asked.repeats)
    if asked.part in ("step", "all"):
        measure_steps(asked.repeats)


if __name__ == "__main__":
    main()
