"""One of two processes that share a step: `python two_ranks.py FOLDER RANK`.

Reads FOLDER/model, writes the gradients and metrics of every stage to FOLDER/found.
"""

import datetime
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as distributed
from law_stages import STAGES, step
from safetensors.torch import save_file

from ludus.model.exchange import load
from ludus.parallel.mesh import current


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    model = load(folder / "model")
    (folder / "found").mkdir(exist_ok=True)
    for name, stage in STAGES.items():
        batches = stage.batches(model, 8)
        gradients, metrics = step(model, stage.objective, batches[rank::2], current())
        if rank == 0:
            save_file(gradients, folder / "found" / f"{name}.safetensors")
            (folder / "found" / f"{name}.json").write_text(json.dumps(metrics))
    distributed.barrier()
    os._exit(0)  # gloo's threads may outlive the group and abort a process that leaves by the front door


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
