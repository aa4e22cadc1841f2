"""Two processes that share Muon's matrices: `python two_owners.py FOLDER`; each writes FOLDER/RANK.safetensors."""

import datetime
import os
import sys
from pathlib import Path

import torch
import torch._dynamo  # every optimizer imports it
import torch.distributed as distributed
from safetensors.torch import save_file

from ludus.optim import groups
from ludus.optim.settings import MuonSettings

SHAPES = {"a": (8, 12), "b": (8, 12), "c": (12, 8), "d": (3, 8, 12), "lone": (5, 5), "norm": (6,)}
SETTINGS = {
    "plain": MuonSettings(),
    "normalised": MuonSettings(normalised=True, method="polar_express", momentum_warmup=3),
}


def weights(
    settings: MuonSettings, precision: torch.dtype, *, rank: int = 0, ranks: int = 1
) -> dict[str, torch.Tensor]:
    """Take four steps with gradients that every rank knows, the third one skipped."""
    generator = torch.Generator().manual_seed(0)
    named = {
        ("experts." if len(shape) == 3 else "") + name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in SHAPES.items()
    }
    optimizer = groups.build(named.items(), settings, precision=precision, rank=rank, ranks=ranks)
    for step in range(4):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step(skip=torch.tensor(step == 2))
    return {name: parameter.detach() for name, parameter in named.items()}


def every(**ranks: int) -> dict[str, torch.Tensor]:
    return {
        f"{kind}.{precision}.{name}": weight
        for kind, settings in SETTINGS.items()
        for precision in (torch.float32, torch.bfloat16)
        for name, weight in weights(settings, precision, **ranks).items()
    }


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    save_file(every(rank=rank, ranks=2), folder / f"{rank}.safetensors")
    distributed.barrier()
    if rank == 0:
        os.wait()
    os._exit(0)  # gloo's threads may outlive the group and abort a process that leaves by the front door


if __name__ == "__main__":
    # Importing takes longer than all the rest, so once for both; nothing has computed yet.
    main(Path(sys.argv[1]), rank=0 if os.fork() else 1)
