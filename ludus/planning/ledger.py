"""A ledger of tensors: what a training step holds, and at which moment most.

What lives here: running the real step on tensors without content, with every storage counted when it is born and when
it dies. What does not: what the operating system adds. The one idea: the very code that will train says what it keeps
for the backward pass, so no formula has to keep up with it.
"""

import contextlib
import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ludus.adapters.lowrank import LowRank
from ludus.data.batch import Batch
from ludus.learning.objectives.next_token import next_token
from ludus.model import head
from ludus.model.transformer import Transformer
from ludus.optim import groups
from ludus.parallel.recomputation import recompute
from ludus.planning import tuning
from ludus.planning.work import Work

MOST_LAYERS = 16  # that are gone through one by one; deeper models are extended in a straight line
MOST_ADAPTED_LAYERS = 4  # each of which is many more steps
PASSES = ("forward pass", "backward pass", "update")
MOST_PIECES, LOGITS_AT_A_TIME = 16, 1 << 20
FEWEST_ROWS = 32  # of logits at a time
PARTS = {
    "embed_tokens": "embedding",
    "embed_positions": "embedding",
    "self_attn": "attention",
    "mlp": "feed-forward",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
    "norm": "norms",
    "lm_head": "logits and head",
}
ACTIVATIONS = "activations: "
SCORES = f"{ACTIVATIONS}attention scores"
WEIGHTS, GRADIENTS, BATCH, UPDATE = "weights", "gradients", "batch", "update, in passing"
STATE = "optimizer: "


@dataclass(frozen=True)
class Ledger:
    """Bytes held at the peak of a step by part, the moment of the peak, and what stays from step to step.

    `moments` are the bytes by part at the peak of each pass: another one may be the highest of a deeper model.
    """

    parts: Mapping[str, int]
    moment: str
    standing: int
    saved: int  # kept by the forward pass for the backward pass
    frozen: int = 0  # of what stands, what never changes, and so is in no checkpoint
    moments: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Return the most bytes held at once."""
        return sum(self.parts.values())


class _Count(TorchDispatchMode):
    """Counts live storages by label; remembers the labels of the moment when most was alive."""

    def __init__(self, *, fake: bool) -> None:
        super().__init__()
        self.fake = fake
        self.labels: dict[int, tuple[str, int]] = {}
        self.live: Counter[str] = Counter()
        self.total = 0
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}  # by moment
        self.moment = ""
        self.owners = ["other"]
        self.time = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not self.fake:
            result = function(*args, **(kwargs or {}))
        elif given and not any(isinstance(each, FakeTensor) for each in given):
            with unset_fake_temporarily():  # the batch alone has content, for what depends on it
                result = function(*args, **(kwargs or {}))
        elif function is torch.ops.aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            # How many are chosen is content, which there is none of: all of them, as in a batch without padding.
            mask = args[1][0]
            result = args[0].reshape(-1, *args[0].shape[mask.dim() :]).clone()
        else:
            result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor, self.label(tensor))
        return result

    def label(self, tensor: Tensor) -> str:
        """Name what a new tensor is, by the module that runs."""
        if self.moment == "update":
            return UPDATE
        owner = self.owners[-1]
        square = tensor.dim() >= 4 and self.time > 1 and tensor.shape[-1] == self.time
        if owner == "attention" and square and tensor.shape[-2] % self.time == 0:
            return SCORES
        return ACTIVATIONS + owner

    def add(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's storage once, until it dies."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.labels:
            return
        self.labels[key] = (label, size)
        self.live[label] += size
        self.total += size
        weakref.finalize(storage, self.remove, key)
        if self.total > self.peaks.get(self.moment, (0, {}))[0]:
            self.peaks[self.moment] = self.total, dict(self.live)

    def remove(self, key: int) -> None:
        """Forget a storage that has died."""
        label, size = self.labels.pop(key)
        self.live[label] -= size
        self.total -= size

    def rename(self, tensor: Tensor, label: str) -> None:
        """Say what a tensor has turned out to be."""
        key = tensor.untyped_storage()._cdata
        if key not in self.labels:
            self.add(tensor, label)
        old, size = self.labels[key]
        self.live[old] -= size
        self.live[label] += size
        self.labels[key] = (label, size)

    def moments(self) -> dict[str, dict[str, int]]:
        """Return the bytes by part at the peak of each pass of a step."""
        peaks = {name: self.peaks[name][1] for name in PASSES if name in self.peaks}
        return {name: {part: size for part, size in parts.items() if size} for name, parts in peaks.items()}


@lru_cache(maxsize=128)
def measure(work: Work) -> Ledger:
    """Return what a step of the work holds at its peak, on top of what the process itself takes."""
    try:
        return _extended(work)
    except (RuntimeError, NotImplementedError, TypeError, AssertionError):
        # Some code cannot run without content: then the same is counted with content, on the smallest sizes.
        return _from_small(work)


def _from_small(work: Work) -> Ledger:
    """Count real tensors of one and two layers and rows, and extend: each part is linear in both."""
    small = work.with_(rows=1).with_layers(1)
    found = [[_walk(small.with_(rows=rows).with_layers(layers), fake=False) for rows in (1, 2)] for layers in (1, 2)]
    rows, layers = work.rows - 1, work.shape.layers - 1

    def extend(of: Callable[[Ledger], int]) -> int:
        (one, wide), (deep, both) = ((of(each) for each in pair) for pair in found)
        return max(0, one + rows * (wide - one) + layers * (deep - one) + rows * layers * (both - deep - wide + one))

    return _extended_by(extend, [each for pair in found for each in pair])


def _extended_by(extend: Callable[[Callable[[Ledger], int]], int], found: Sequence[Ledger]) -> Ledger:
    """Extend every figure of some ledgers, each moment for itself, and see which one is the highest then."""
    moments = {
        moment: {
            part: extend(lambda each, moment=moment, part=part: each.moments.get(moment, {}).get(part, 0))
            for part in {name for each in found for name in each.moments.get(moment, {})}
        }
        for moment in found[-1].moments
    }
    standing, saved, frozen = (
        extend(lambda each, what=what: getattr(each, what)) for what in ("standing", "saved", "frozen")
    )
    return _of(moments, standing, saved, frozen)


def _of(moments: Mapping[str, Mapping[str, int]], standing: int, saved: int, frozen: int) -> Ledger:
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return Ledger(moments[moment], moment, standing, saved, frozen, moments)


def _extended(work: Work) -> Ledger:
    """Walk through a step, or through smaller ones where it is large, and extend in a straight line."""
    # The head goes through the rows in pieces of so many logits: a piece is quick with content, slow to go through.
    pieces = work.context * work.shape.vocabulary / LOGITS_AT_A_TIME
    most = max(2, round(MOST_PIECES / max(pieces, 1e-9)))
    if work.rows > 2 * most:
        few, more = (_extended(work.with_(rows=rows)) for rows in (most, 2 * most))
        return _line(few, more, (work.rows - 2 * most) / most)
    deep = MOST_ADAPTED_LAYERS if work.adapter else MOST_LAYERS
    if work.shape.layers > deep:
        few, more = (_walk(work.with_layers(count)) for count in (deep // 2, deep))
        return _line(few, more, (work.shape.layers - deep) / (deep - deep // 2))
    return _walk(work)


def _line(few: Ledger, more: Ledger, far: float) -> Ledger:
    """Extend two ledgers in a straight line beyond the second, `far` times the distance between them."""

    def extend(of: Callable[[Ledger], int]) -> int:
        return max(0, round(of(more) + (of(more) - of(few)) * far))

    return _extended_by(extend, [few, more])


@lru_cache(maxsize=256)
def _walk(work: Work, *, fake: bool = True) -> Ledger:
    """Go through two steps, on tensors without content unless not `fake`; the second is like all that follow."""
    batches = [batch(work) for _ in range(work.accumulate if work.accumulate < 3 else 2)]  # later ones are like these
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    room = tuning.room_alone(work.on_gpu) if fake else contextlib.nullcontext()
    with _as_there(work), room, mode, torch.random.fork_rng(devices=[]), _Count(fake=fake) as count:
        count.time = work.context
        if isinstance(mode, FakeTensorMode):  # what the model computes of documents it computes without content
            batches = [dataclasses.replace(one, documents=_without_content(one.documents, mode)) for one in batches]
        model = prepare(work)
        _label(model, work, count)
        optimizer = groups.build(model.named_parameters(), work.optimizer, precision=getattr(torch, work.precision))
        with _owners(model, count), _gradients(model, count):
            for _ in range(2):
                count.peaks.clear()
                standing = count.total
                frozen = count.live[tuning.FROZEN] + count.live[tuning.QUANTISED]
                saved = _step(batches, model, optimizer, count)
    return _of(count.moments(), standing, saved, frozen)


def _label(model: Transformer, work: Work, count: _Count) -> None:
    """Tell the count what stands."""
    labels = tuning.label(model, work)
    for tensor in labels or model.parameters():
        count.rename(tensor, labels.get(tensor, WEIGHTS))


@contextlib.contextmanager
def _as_there(work: Work) -> Iterator[None]:
    """Let the head work on as many logits at a time as on the work's device, and never on a few of a large vocabulary.

    On a processor it takes some at a time that stay in its cache: hundreds of steps without content, and no memory.
    There, too, low-rank changes may be added to the weights, as they never are on a GPU.
    """
    before, folds = head.CACHED_ENTRIES, LowRank.folds
    head.CACHED_ENTRIES = 1 << 40 if work.on_gpu else max(before, FEWEST_ROWS * work.shape.vocabulary)
    if work.on_gpu:
        LowRank.folds = lambda *_: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        head.CACHED_ENTRIES = before
        LowRank.folds = folds  # type: ignore[method-assign]


def _without_content(tensor: Tensor | None, mode: FakeTensorMode) -> Tensor | None:
    return None if tensor is None else mode.from_tensor(tensor)


def prepare(work: Work) -> Transformer:
    """Return the model of the work, with weights that were not drawn."""
    return dress(tuning.blank(work), work)


def dress(model: Transformer, work: Work) -> Transformer:
    """Set a model's precision, attention and recomputation to those of the work, ready to train."""
    model.precision = getattr(torch, work.precision)
    backend = "fused" if work.on_gpu and work.backend == "auto" else work.backend
    if backend != "auto":
        set_backend(model, backend)
    if work.on_gpu:
        model.head_chunk_entries = head.ACCELERATOR_ENTRIES  # type: ignore[assignment]
    if work.recompute:
        recompute(model)
    return model.train()


def set_backend(model: Any, backend: str) -> None:
    """Choose how attention is computed, in every layer."""
    if hasattr(type(model), "attention_backend"):
        model.attention_backend = backend
        return
    for layer in model.layers:
        layer.self_attn.backend = backend


def batch(work: Work, *, vocabulary: int | None = None) -> Batch:
    """Return a micro-batch of the work's shape: random tokens, two documents a row where rows are packed."""
    rows = work.rows + work.beside
    size = (rows, work.context + 1)
    tokens = torch.randint(0, vocabulary or work.shape.vocabulary, size)
    documents, weights = None, torch.ones(rows, work.context)
    if work.packed:
        documents = torch.zeros(size, dtype=torch.long)
        documents[:, work.context // 2 :] = 1
        weights[:, work.context // 2 - 1] = 0.0  # a document's first token is not predicted
    return Batch(tokens, weights, float(weights.sum()), documents)


def _step(batches: list[Batch], model: Transformer, optimizer: Any, count: _Count) -> int:
    """Take one step and return what the last forward pass kept."""
    for one in batches:
        for tensor in (one.tokens, one.weights, one.documents):
            if tensor is not None:
                count.rename(tensor, BATCH)
    saved = 0
    for one in batches:
        before = count.total
        count.moment = "forward pass"
        del count.owners[1:]  # layers that are computed again are left in their midst
        loss = next_token(model, one)["loss"] / one.weight
        saved = count.total - before
        count.moment = "backward pass"
        loss.backward()
        del loss
    count.moment = "update"
    nn.utils.clip_grad_norm_([each for each in model.parameters() if each.grad is not None], 1.0)
    optimizer.step()
    for values in optimizer.state_dict().values():
        for name, tensor in values.items():
            if isinstance(tensor, Tensor):
                count.rename(tensor, STATE + name.replace("_", " "))
    optimizer.zero_grad()
    return saved


@contextlib.contextmanager
def _owners(model: nn.Module, count: _Count) -> Iterator[None]:
    """Let the count know which part of the model runs."""
    handles = []
    for name, module in model.named_modules():
        part = PARTS.get(name.rpartition(".")[2]) or ("residual stream" if name.split(".")[-2:-1] == ["layers"] else "")
        if part:
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: count.owners.append(part)))
            handles.append(module.register_forward_hook(lambda *_: (count.owners.pop(), None)[1]))
    count.owners[0] = "logits and head"  # what runs in no part of the model is the objective
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _gradients(model: nn.Module, count: _Count) -> Iterator[None]:
    """Let the count know a gradient for what it is."""

    def known(parameter: Tensor) -> None:
        assert parameter.grad is not None
        count.rename(parameter.grad, GRADIENTS)

    handles = [each.register_post_accumulate_grad_hook(known) for each in model.parameters() if each.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
