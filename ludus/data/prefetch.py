"""Reading ahead in a thread, so that the loop never waits for data.

The stream is that of the source, batch for batch. Each batch is handed out with the state the source had after it, so
what a checkpoint holds is where the loop stands, not how far was read ahead.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ludus.data.batch import Batch

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class _Ready:
    """A batch, or what stopped the source; and where the source stood then."""

    batch: Batch | None
    problem: BaseException | None
    state: dict[str, Any]
    tokens: int
    metrics: dict[str, float]
    account: dict[str, Any]


class Prefetch:
    """Yield the batches of a source, read up to `ahead` of them in advance by a thread.

    `ready` is done to each batch in that thread (`Batch.pin`, say). `waited_seconds` is the wait for the last batch,
    `total_waited_seconds` that for all. An error of the source is raised in the batch's place. Close it when done, or
    use it as a context.
    """

    def __init__(self, source: Any, *, ahead: int = 2, ready: Callable[[Batch], Batch] | None = None) -> None:
        self.source, self.ahead, self.ready = source, ahead, ready
        self.waited_seconds = self.total_waited_seconds = 0.0
        self._stop = threading.Event()
        self._queue: queue.Queue[_Ready] = queue.Queue(ahead)
        self._thread: threading.Thread | None = None
        self._last = self._snapshot(None)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._last.problem is not None:  # it has ended; asking again does not wake it
            raise self._last.problem
        began = time.perf_counter()
        if self._thread is None:
            self._begin()
        self._last = self._queue.get()
        self.waited_seconds = time.perf_counter() - began
        self.total_waited_seconds += self.waited_seconds
        if self._last.batch is None:
            assert self._last.problem is not None
            raise self._last.problem
        return self._last.batch

    @property
    def tokens(self) -> int:
        """Count the tokens of the batches handed out."""
        return self._last.tokens

    @property
    def metrics(self) -> dict[str, float]:
        """Return the source's metrics as of the last batch, and the seconds waited for it."""
        return self._last.metrics | {"waited_seconds": self.waited_seconds}

    def account(self) -> dict[str, Any]:
        """Return the source's account as of the last batch."""
        return self._last.account

    def state_dict(self) -> dict[str, Any]:
        """Return where the source stood after the last batch that was handed out."""
        return self._last.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget what was read ahead, and stand where `state` says."""
        self.close()
        self.source.load_state_dict(state)
        self._last = self._snapshot(None)

    def close(self) -> None:
        """End the thread; the source is put back to where the last batch handed out left it."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._queue = queue.Queue(self.ahead)
            self.source.load_state_dict(self._last.state)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _begin(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(self._queue, self._stop), daemon=True, name="prefetch")
        self._thread.start()

    def _work(self, ahead: "queue.Queue[_Ready]", stop: threading.Event) -> None:
        found = self._last
        while not stop.is_set():
            try:
                batch = next(self.source)
                found = self._snapshot(batch if self.ready is None else self.ready(batch))
            except BaseException as problem:  # whatever it is, the loop is told, in its place
                found = replace(found, batch=None, problem=problem)  # the source may stand halfway; this is before it
            while not stop.is_set():
                try:
                    ahead.put(found, timeout=_POLL_SECONDS)
                    break
                except queue.Full:
                    continue
            if found.problem is not None:
                return

    def _snapshot(self, batch: Batch | None) -> _Ready:
        source = self.source
        account = source.account() if hasattr(source, "account") else {}
        metrics = dict(getattr(source, "metrics", {}))
        return _Ready(batch, None, source.state_dict(), source.tokens, metrics, account)
