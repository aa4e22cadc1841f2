"""The work of one training run as plain figures: what is computed, on how many tokens, how often.

What lives here: reading a recipe into `Work`, and the counts that follow from it. What does not: what the work costs.
The one idea: everything that decides memory and time is one frozen value, so a plan is a function of it.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ludus.model.cost import flops_per_token, num_parameters
from ludus.model.settings import Architecture, architecture
from ludus.planning.text import Text

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Work:
    """A training run: a model, its micro-batches, its optimizer and what happens beside the steps.

    `rows` of `context` predictions make a micro-batch, `accumulate` of those a step. `packed` rows hold several
    documents, whose mask is a tensor of its own. `backend` is the attention's, "auto" for the model's own choice;
    `recompute` layers forget their activations; `averages` counts further copies of the weights. `adapter` is what is
    trained on frozen weights, as JSON, empty where all weights train; the frozen ones are kept in `weights`, or
    `quantise`d. `beside` them are rows of other text in each micro-batch. Examples of a validation that are `uneven`
    stand in rows as long as they are. At the end an adapter is `merge`d. `on_gpu`, attention and head choose otherwise
    than on a processor.
    """

    shape: Architecture
    rows: int
    context: int
    accumulate: int
    steps: int
    precision: str
    optimizer: Any
    packed: bool = True
    backend: str = "auto"
    recompute: bool = False
    averages: int = 0
    validation_rows: int = 0
    validation_examples: int = 0
    validations: int = 0
    samples: int = 0
    sample_prompts: int = 0
    sample_tokens: int = 0
    checkpoints: int = 1
    adapter: str = ""
    quantise: str = "none"
    weights: str = "float32"
    beside: int = 0
    uneven: bool = False
    merge: bool = False
    on_gpu: bool = False

    @property
    def tokens_per_step(self) -> int:
        """Count the predictions of one optimizer step, padding included."""
        return (self.rows + self.beside) * self.context * self.accumulate

    @property
    def tokens(self) -> int:
        """Count the predictions of the whole run, padding included."""
        return self.tokens_per_step * self.steps

    @property
    def parameters(self) -> int:
        """Count the weights."""
        return num_parameters(self.shape)

    @property
    def flops(self) -> float:
        """Count the floating-point operations of all steps, without validation and samples.

        Frozen weights have no gradient of their own, a third of the products.
        """
        share = 2 / 3 if self.adapter else 1.0
        return float(flops_per_token(self.shape, self.context)) * self.tokens * share

    @property
    def copies_checkpoints(self) -> bool:
        """Tell whether checkpoints are copied first and written while training goes on."""
        return find_spec("ludus.learning.saver") is not None

    def with_(self, **changes: Any) -> "Work":
        """Return the work with some figures changed."""
        return dataclasses.replace(self, **changes)

    def with_layers(self, layers: int) -> "Work":
        """Return the work of the same model with fewer layers."""
        windows = getattr(self.shape, "windows", ())
        changes: dict[str, Any] = {"layers": layers} | ({"windows": windows[:layers]} if windows else {})
        return self.with_(shape=dataclasses.replace(self.shape, **changes))


def pretraining(recipe: Any, text: Text, *, native_bfloat16: bool | None = None) -> Work:
    """Return the work of a recipe's pretraining.

    `native_bfloat16` says whether the device multiplies bfloat16 natively; None asks this machine. Raises ConfigError
    for a model whose sizes do not fit together.
    """
    settings, data = recipe.pretrain, recipe.data
    return Work(
        shape=architecture(recipe.model, vocabulary=text.vocabulary, context=data.context),
        rows=settings.rows,
        context=data.context,
        accumulate=settings.accumulate,
        steps=settings.steps,
        precision=precision_of(recipe.precision, native_bfloat16),
        optimizer=settings.optimizer,
        packed=text.packed,
        backend=str(getattr(recipe.model, "attention", None) or "auto"),
        recompute=bool(getattr(settings, "recompute", False)),
        averages=averages(getattr(settings, "average", None)),
        validation_rows=min(settings.validation_rows, text.validation_rows(data.context)),
        validations=times(settings.steps, settings.validate_every),
        samples=times(settings.steps, settings.sample_every),
        sample_prompts=len(settings.prompts),
        sample_tokens=settings.sample_tokens,
        checkpoints=times(settings.steps, settings.checkpoint_every),
    )


def precision_of(asked: str, native_bfloat16: bool | None = None) -> str:
    """Return the precision of matrix products by name, `auto` resolved for a device or for this machine."""
    if asked != "auto":
        return asked
    if native_bfloat16 is not None:
        return "bfloat16" if native_bfloat16 else "float32"
    from ludus.learning.precision import choose

    return str(choose("auto")[0]).removeprefix("torch.")


def averages(settings: Any) -> int:
    """Count the copies of the weights that an average of them keeps."""
    if settings is None:
        return 0
    return 1 if settings.decay is not None else settings.last_steps or 0


def times(steps: int, every: int | None) -> int:
    """Count how often something happens that happens every so many steps, and after the last."""
    return -(-steps // every) if every else 1


def multiplying(shape: Architecture) -> int:
    """Count the weights that multiply: all but an embedding that is only looked up. A law of scale counts these."""
    return num_parameters(shape) - (0 if shape.tied else shape.vocabulary * shape.width)


def halvings(rows: int) -> Iterator[int]:
    """Yield rows, then half as many, down to one: sizes at which a batch can be split evenly."""
    while rows > 1:
        yield rows
        rows = -(-rows // 2)
    yield 1
