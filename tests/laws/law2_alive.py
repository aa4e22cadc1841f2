"""Lives of the small run of `learning/alive.py`, each in a process to be killed; its data is broken in places.

A process that has imported everything forks a child for each folder it is given on a line, and says the child's number
and, once it has ended, its exit code; an empty line lets go of it. What a finished life has left is in `outcome`.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch._dynamo  # every optimizer imports it
from learning.alive import Life

from ludus.base.files import sha256_json
from ludus.learning import checkpoints
from ludus.learning.stopping import restore_best
from ludus.runs.metrics import read

STEPS = 70  # at which it never arrives
# Numbers of batches: one alone; three in a row, again three when that is undone; three around a checkpoint.
BROKEN = (14, 25, 26, 27, 32, 33, 34, 45, 46, 47)
SPIKES = (19, 41, 50)


def life(folder: Path) -> Life:
    """Return the run as it stands in `folder`, which may be empty."""
    return Life(folder, broken=BROKEN, spikes=SPIKES, patience=3, least=0.25, wavering=0.15)


def outcome(ended: Life) -> dict[str, Any]:
    """Return all that a life has left but times, ending with the best weights."""
    folder, run = ended.folder, ended.run
    records = [
        {name: value for name, value in each.items() if name != "seconds"} for each in read(folder / "metrics.jsonl")
    ]
    last = [value.tolist() for value in run.model.parameters()]
    best = checkpoints.best(folder / "checkpoints")
    restored = restore_best(run, folder / "checkpoints")
    return {
        "metrics": repr(records),  # in which NaN is equal to itself
        "events": read(folder / "events.jsonl"),
        "last": sha256_json(last),
        "best": [restored, best and best[1], sha256_json([value.tolist() for value in run.model.parameters()])],
        "saved": sorted({int(line) for line in (folder / "saved.txt").read_text().split()}),
        "marker": json.loads((folder / "checkpoints" / "best.json").read_text()),
        "ended": [run.step, run.stopped, run.source.tokens, int(run.guard.skips)],
    }


def live(folder: Path) -> int:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        ended = life(folder)
        ended.live(STEPS)
        (folder / "outcome.json").write_text(json.dumps(outcome(ended)))
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def serve() -> None:
    torch.set_num_threads(1)
    while folder := sys.stdin.readline().strip():
        child = os.fork()
        if not child:
            os._exit(live(Path(folder)))
        print(child, flush=True)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)
        sys.stdin.readline()  # until that line comes, the dead child keeps its number from being given to another
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve()
