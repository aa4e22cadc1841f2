"""Templates that came with someone else's model, rendered in a process of their own with a cap on time and memory.

Jinja's sandbox keeps a template away from the machine, not from its time: three nested loops run for hours, and a
long enough string fills the memory. No counting of steps sees inside one filter, so the system does it: the process
may use a few seconds of processor a rendering and half a gigabyte, and is ended if it takes more. It starts at the
first foreign template, is shared by all threads, and costs about a tenth of a second; templates of ours run at home.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.text import rendering

SECONDS = 4  # of processor time, for one rendering
BYTES = 512 * 2**20  # of address space
_START = "import sys; sys.path[:] = sys.argv[1:]; from ludus.text.sandbox import serve; serve()"

_lock = threading.Lock()
_worker: "subprocess.Popen[str] | None" = None


def render(template: str, variables: Mapping[str, Any], *, now: datetime) -> str:
    """Render in the process apart. Raises `DataError` if the template fails or takes more than it may."""
    if len(template) > rendering.LARGEST_TEMPLATE:
        size, most = len(template), rendering.LARGEST_TEMPLATE
        raise DataError(f"the chat template has {size} characters; at most {most} are accepted")
    asked = json.dumps({"template": template, "variables": dict(variables), "now": now.isoformat()})
    with _lock:
        found = _ask(asked)
    if not found:
        raise DataError(
            f"the chat template was stopped: it takes more than {SECONDS} s of processor time or "
            f"{BYTES // 2**20} MB to render; mend chat_template.jinja, or choose another with --template"
        )
    answer = json.loads(found)
    if "error" in answer:
        raise DataError(answer["error"])
    return answer["text"]


def serve() -> None:
    """Be the process apart: a rendering asked for on each line of standard input, answered on standard output."""
    import resource

    with suppress(ValueError, OSError):  # a system that does not cap it, or caps it lower already
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS, hard))
        print(json.dumps(_answer(line)), flush=True)


def _answer(line: str) -> dict[str, str]:
    try:
        asked = json.loads(line)
        now = datetime.fromisoformat(asked["now"])
        return {"text": rendering.render(asked["template"], asked["variables"], now=now)}
    except DataError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "the chat template wants more memory than a template may have; mend or replace it"}


def _ask(line: str) -> str:
    """Send one request; empty if the process has ended over it."""
    global _worker
    if _worker is None or _worker.poll() is not None:
        _end()
        _worker = _started()
    assert _worker.stdin
    assert _worker.stdout
    try:
        _worker.stdin.write(line + "\n")
        _worker.stdin.flush()
        found = _worker.stdout.readline()
    except OSError:
        found = ""
    if not found:
        _end()
    return found


def _started() -> "subprocess.Popen[str]":
    here = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-I", "-S", "-c", _START, here, *(path for path in sys.path if path)]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True, encoding="utf-8")


@atexit.register
def _end() -> None:
    global _worker
    worker, _worker = _worker, None
    if worker is None:
        return
    for pipe in (worker.stdin, worker.stdout):
        with suppress(OSError):
            if pipe:
                pipe.close()
    worker.kill()
    worker.wait()


def _forget_in_child() -> None:
    """Let a forked child start its own: two of them on one pipe would read each other's answers."""
    global _lock, _worker
    worker, _worker, _lock = _worker, None, threading.Lock()
    if worker is not None:
        worker.returncode = 0  # it is the parent's to wait for
        for pipe in (worker.stdin, worker.stdout):
            if pipe:
                os.close(pipe.fileno())


os.register_at_fork(after_in_child=_forget_in_child)
