"""Metrics into TensorBoard and Weights & Biases, for those who watch there. `metrics.jsonl` is written always.

Both are optional packages. A tracker only reads: what it fails to send is lost to it alone.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ludus.base.errors import MissingExtra
from ludus.learning.loop import Hook, Metrics, Run

Tracker = Literal["tensorboard", "wandb"]


def require(names: Sequence[Tracker]) -> None:
    """Raise MissingExtra for a tracker whose package is not installed: before the training, not after it."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        needed = f"trackers=[{','.join(missing)}] needs {' and '.join(missing)}"
        raise MissingExtra(f"{needed}; install with: pip install 'ludus[trackers]'")


def tensorboard(folder: Path) -> Hook:
    """Write every metric as a scalar into `folder`; watch with `tensorboard --logdir FOLDER`."""
    require(["tensorboard"])
    writer: Any = None

    def hook(run: Run, metrics: Metrics) -> None:
        nonlocal writer
        if writer is None:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder), purge_step=run.step)  # a resumed run takes back what came after
        for name, value in metrics.items():
            writer.add_scalar(name, value, run.step)
        writer.flush()

    return hook


def wandb(project: str, name: str, folder: Path, settings: Mapping[str, Any]) -> Hook:
    """Log every metric to a run of Weights & Biases; `WANDB_MODE=offline` keeps it on this machine."""
    require(["wandb"])
    import wandb as library

    session = library.init(
        project=project, name=name, id=name.replace("/", "-"), resume="allow", dir=str(folder), config=dict(settings)
    )

    def hook(run: Run, metrics: Metrics) -> None:
        session.log(dict(metrics), step=run.step)

    return hook


def hooks(
    names: Sequence[Tracker], *, folder: Path, project: str, name: str, settings: Mapping[str, Any]
) -> list[Hook]:
    """Return the hook of each tracker asked for."""
    require(names)
    makers = {
        "tensorboard": lambda: tensorboard(folder / "tensorboard"),
        "wandb": lambda: wandb(project, name, folder, settings),
    }
    return [makers[each]() for each in names]
