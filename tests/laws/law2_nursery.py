"""A process that has imported everything and forks a child for each command line of ludus it is given.

So a real process, to be killed at any moment, costs a tenth of a second instead of the seconds that importing torch
takes. It never computes anything itself: a fork is only safe before the first backward pass. Talk to it through the
fixture `ludus`: one JSON line in, {"argv", "folder", "environment"}; out come a line with the child's number,
and once it has ended a line with its exit code, negative for a signal, to be answered by an empty line.
"""

import json
import os
import sys
import traceback

import torch
import torch._dynamo  # every optimizer imports it

import ludus.cli.resume
import ludus.cli.stage
import ludus.recipes.chain  # noqa: F401 -- this is what takes long
from ludus.cli.main import main


def live(job: dict) -> int:
    """Be a command line process."""
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    for stream, name in ((sys.stdout, "out.txt"), (sys.stderr, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), stream.fileno())
    try:
        return main(job["argv"])
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve() -> None:
    torch.set_num_threads(1)
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            os._exit(live(json.loads(line)))
        print(child, flush=True)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)
        sys.stdin.readline()  # until that line comes, the dead child keeps its number from being given to another
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve()
