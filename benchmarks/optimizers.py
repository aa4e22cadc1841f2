"""What an optimizer's step costs on this processor, beside PyTorch's own, in one run.

    python benchmarks/optimizers.py                       4 layers of width 128: 0.8 M parameters, bfloat16 and float32
    python benchmarks/optimizers.py --depth 12 --width 768 --repeats 5

Every optimizer steps in turn on the same weights and gradients; quoted is the least processor time of one thread. The
ratio is to the peer of the same precision: PyTorch's Muon with its AdamW for the rest, and PyTorch's AdamW. PyTorch's
Muon always computes in bfloat16.
"""

import argparse
import time
from collections.abc import Callable

import torch

from ludus.model.architecture import Architecture
from ludus.model.transformer import Transformer, build
from ludus.optim import groups
from ludus.optim.settings import AdamWSettings, MuonSettings

MUONS = {
    "muon": MuonSettings(),
    "muon, Polar Express": MuonSettings(method="polar_express"),
    "muon, Polar Express, 4 iterations": MuonSettings(method="polar_express", iterations=4),
    "muon, normalised": MuonSettings(normalised=True),
}


def ours(model: Transformer) -> dict[str, Callable[[], object]]:
    """Return our steps by name; the last is AdamW's."""
    steps: dict[str, Callable[[], object]] = {}
    for precision in (torch.bfloat16, torch.float32):
        for name, settings in MUONS.items():
            optimizer = groups.build(model.named_parameters(), settings, precision=precision)
            steps[f"{name}, {str(precision).removeprefix('torch.')}"] = optimizer.step
    return steps | {"adamw": groups.build(model.named_parameters(), AdamWSettings()).step}


def theirs(model: Transformer) -> dict[str, Callable[[], object]]:
    """Return the peers' steps by name."""
    matrices = [one for name, one in model.named_parameters() if groups.role(name, one) == "matrix"]
    rest = [one for name, one in model.named_parameters() if groups.role(name, one) != "matrix"]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01)
    others = torch.optim.AdamW(rest, lr=0.005)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return {"PyTorch: Muon and AdamW": lambda: (muon.step(), others.step()), "PyTorch: AdamW": adamw.step}


def measure(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the least processor milliseconds of each step; they take turns, so that a busy moment hits all."""
    found = dict.fromkeys(steps, float("inf"))
    for turn in range(repeats + 2):
        for name, step in steps.items():
            started = time.process_time()
            step()
            spent = 1000 * (time.process_time() - started)
            found[name] = min(found[name], spent) if turn >= 2 else found[name]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    heads = max(1, asked.width // 64)
    numbers = {"layers": asked.depth, "width": asked.width, "heads": heads, "kv_heads": heads, "context": 64}
    shape = Architecture(vocabulary=65, head_dim=asked.width // heads, hidden=asked.width * 8 // 3 // 8 * 8, **numbers)
    model = build(shape, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) / 100
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters, one thread\n")
    found = measure(theirs(model) | ours(model), asked.repeats)
    for name, spent in found.items():
        peer = found["PyTorch: Muon and AdamW" if "uon" in name else "PyTorch: AdamW"]
        print(f"{name:44s} {spent:8.2f} CPU ms   {spent / peer:5.2f}")


if __name__ == "__main__":
    main()
