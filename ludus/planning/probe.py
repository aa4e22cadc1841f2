"""A few real steps of the real model, timed in a process of their own, with the memory they took.

What lives here: the process that does it and what it reports. What does not: what to make of the figures. The one idea:
a second of measuring beats any formula, and a fresh process is the only honest witness of peak memory: allocators keep
holes that no count of tensors shows.
"""

import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ludus.base.errors import RunError
from ludus.planning.work import Work

STEPS, MOST_STEPS = 4, 30  # the first warms up; from the third on, the heap has stopped growing
TIMED_SECONDS = 1.0  # quick steps are repeated for so long
ANSWER_SECONDS = 300
TOKENS = 6  # generated, to time one


@dataclass(frozen=True)
class Probe:
    """What was measured of a model with `layers` layers and `rows` rows a micro-batch.

    `micro_batch_seconds` and `update_seconds` make a step; `first_step_seconds` has the libraries' start in it;
    `validation_seconds` is of one micro-batch forward, `token_seconds` of one step of generation. `start_seconds` is
    what the process took before it could begin. `peak_bytes` is the process's, of which `start_bytes` before the model.
    """

    layers: int
    rows: int
    micro_batch_seconds: float
    update_seconds: float
    first_step_seconds: float
    validation_seconds: float
    token_seconds: float
    start_seconds: float
    start_bytes: int
    peak_bytes: int


def measure(work: Work, *, threads: int, preload: Sequence[str] = ()) -> Probe:
    """Take the steps in a fresh process that has imported `preload` first. Raises RunError if it dies or hangs."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, work, threads, tuple(preload), time.time()), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(ANSWER_SECONDS):
            raise RunError(f"measuring took more than {ANSWER_SECONDS} s; plan with --quick, which only calculates")
        found = receiver.recv()
    except EOFError:
        raise RunError(
            "the process that measured was ended, most likely for want of memory; plan with --quick, which only "
            "calculates, or with a smaller model or fewer rows"
        ) from None
    finally:
        child.join(1)
        if child.is_alive():
            child.terminate()
        receiver.close()
    if isinstance(found, str):
        raise RunError(f"the model could not be measured: {found}; plan with --quick, which only calculates")
    return found


def _answer(sender: Any, work: Work, threads: int, preload: tuple[str, ...], begun: float) -> None:
    """Send the figures, or what went wrong in a line."""
    try:
        sender.send(run(work, threads=threads, preload=preload, begun=begun))
    except Exception as problem:
        sender.send(f"{type(problem).__name__}: {problem}".splitlines()[0])
    sender.close()


def run(work: Work, *, threads: int, preload: Sequence[str] = (), begun: float | None = None) -> Probe:
    """Take the steps in this process."""
    import torch

    from ludus.learning.objectives.next_token import next_token
    from ludus.model.transformer import build
    from ludus.optim import groups
    from ludus.planning import tuning
    from ludus.planning.ledger import batch, dress
    from ludus.runs.cost import Cost

    for name in preload:
        importlib.import_module(name)
    torch.set_num_threads(threads)
    start_seconds = time.time() - begun if begun else 0.0
    cost = Cost()
    start_bytes = cost.so_far()[2]
    model = dress(tuning.prepared(build(work.shape, seed=0), work), work)
    optimizer = groups.build(model.named_parameters(), work.optimizer, precision=model.precision)
    batches = [batch(work) for _ in range(min(2, work.accumulate))]
    micro: list[float] = []
    update: list[float] = []
    validation, token = [0.0], 0.0
    while len(update) < STEPS or (len(update) < MOST_STEPS and sum(micro) < TIMED_SECONDS):
        for one in batches:
            micro.append(_timed(lambda one=one: (next_token(model, one)["loss"] / one.weight).backward()))
        update.append(_timed(lambda: _update(model, optimizer)))
        if len(update) == STEPS // 2:  # in the midst of the steps, as in a run: it changes where the heap has holes
            model.eval()
            with torch.no_grad():
                validation = [_timed(lambda: float(next_token(model, batches[0])["loss"])) for _ in range(2)]
            token = min(_generate(model, work) for _ in range(2))
            model.train()
    warm = len(batches)
    return Probe(
        layers=work.shape.layers,
        rows=work.rows,
        micro_batch_seconds=median(micro[max(warm, len(micro) // 2) :]),  # the first ones make the heap
        update_seconds=median(update[1:]),
        first_step_seconds=sum(micro[:warm]) + update[0],
        validation_seconds=min(validation),
        token_seconds=token,
        start_seconds=start_seconds,
        start_bytes=start_bytes,
        peak_bytes=cost.so_far()[2],
    )


def _update(model: Any, optimizer: Any) -> None:
    import torch

    torch.nn.utils.clip_grad_norm_([each for each in model.parameters() if each.grad is not None], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _generate(model: Any, work: Work) -> float:
    """Return the seconds of one step of generation, for all prompts of a sample; 0 where there are no samples."""
    if not work.samples or not work.sample_prompts:
        return 0.0
    import torch

    from ludus.generation.engine import Sampling, generate

    prompts = [[1, 2, 3]] * work.sample_prompts
    tokens = min(TOKENS, max(1, work.context - 4))
    sampling = Sampling(tokens, frozenset(), temperature=0.8, top_k=50)
    seconds = _timed(lambda: generate(model, prompts, sampling, generator=torch.Generator().manual_seed(0)))
    return seconds / tokens


def _timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun
