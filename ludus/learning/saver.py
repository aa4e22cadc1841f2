"""Checkpoints written while training goes on: the step waits for a copy of the state in memory, and for no disk.

A thread writes the copy as `checkpoints` does. One write is under way at a time, into the same buffers: a save that
comes before the last is done waits for it, since a second set of buffers would cost as much memory again. What fails
in the thread is raised by the next `check`, `save` or `wait`.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ludus.base.console import say
from ludus.learning import checkpoints

WORTH_A_WORD_SECONDS = 0.5


class Saver:
    """Saves checkpoints into `folder`: the newest `keep`, and the one of the least `metric`.

    As a context it waits at the end for the last write, whatever else has happened.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, metric: str | None = None) -> None:
        self.folder, self.keep, self.metric = Path(folder), keep, metric
        self.step = self.saved = 0  # of the last save begun, of the last that is on the disk
        self._buffers = _Buffers()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._told = False

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        """Copy `state` and return; a thread calls `before`, writes the checkpoint, calls `after`.

        Once this has returned, the state may change. Raise what has failed in the write before this one, and
        TypeError for a value no state can hold.
        """
        self.wait(step)
        values, tensors = checkpoints.pack(state)
        copied = self._buffers.copy(tensors)
        metric = None
        if self.metric is not None and metrics is not None and self.metric in metrics:
            metric = (self.metric, float(metrics[self.metric]))
        self.step = step

        def write() -> None:
            try:
                copied()
                if before:
                    before()
                checkpoints.write(self.folder, step, values, self._buffers.tensors, keep=self.keep, metric=metric)
                self.saved = step
                if after:
                    after()
            except BaseException as problem:
                self._failure = problem

        # A daemon: whoever leaves at once leaves a hidden folder behind, which the next save sweeps away.
        self._thread = threading.Thread(target=write, name=f"checkpoint of step {step}", daemon=True)
        self._thread.start()

    @property
    def writing(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise, once, what has failed in the last write; wait for nothing."""
        failure, self._failure = (None, self._failure) if self.writing else (self._failure, None)
        if failure is not None:
            raise failure

    def wait(self, step: int | None = None) -> None:
        """Return when the last save is on the disk; raise, once, what has failed in it.

        `step` is what waits, if that is not the end: the first time that this takes long, it is said.
        """
        began = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
        waited = time.perf_counter() - began
        if step is not None and waited > WORTH_A_WORD_SECONDS and not self._told:
            self._told = True
            what = f"waited {waited:.1f} s for the checkpoint of step {self.step} to be written"
            say(f"  step {step} {what}; set checkpoint_every higher to save less often")
        self.check()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self.wait()
        elif isinstance(failure[1], Exception) and self._thread is not None:
            self._thread.join()  # what has gone wrong first is what counts


class _Buffers:
    """The copy of a state's tensors on the CPU, in memory that is used again for the next one."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._stream: Any = None

    def copy(self, tensors: Mapping[str, Tensor]) -> Callable[[], object]:
        """Take the tensors' values as they are now; call what is returned before reading the copy."""
        self.tensors = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        at_hand = [name for name, tensor in tensors.items() if not tensor.is_cuda]
        if at_hand:
            torch._foreach_copy_([self.tensors[name] for name in at_hand], [tensors[name] for name in at_hand])  # pyright: ignore[reportPrivateImportUsage]
        if device is None:
            return lambda: None
        return self._fetch({name: tensor for name, tensor in tensors.items() if tensor.is_cuda}, device)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self.tensors.get(name)
        if buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype:
            return buffer
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)

    def _fetch(self, tensors: Mapping[str, Tensor], device: torch.device) -> Callable[[], object]:
        """Bring tensors from the GPU beside the training: the step waits for a copy on the GPU, where there is room."""
        current = torch.cuda.current_stream(device)
        free, _ = torch.cuda.mem_get_info(device)
        beside = free > 2 * sum(tensor.nbytes for tensor in tensors.values())
        values = {name: tensor.clone() for name, tensor in tensors.items()} if beside else tensors
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for name, value in values.items():
                self.tensors[name].copy_(value, non_blocking=True)
                value.record_stream(self._stream)
            done = self._stream.record_event()
        if not beside:
            current.wait_event(done)  # the next update may change a weight only when it has been fetched
        return done.synchronize
