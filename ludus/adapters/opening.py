"""Open what a path names as one model: a model's folder, or an adapter's with the base it was trained on.

An adapter's folder says where its base lies: a path, here or beside the adapter, or a name on the hub at a commit.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ludus.adapters import files
from ludus.adapters.identity import refuse_another
from ludus.adapters.quantised import quantiser
from ludus.base.errors import ConfigError, RunError
from ludus.model import exchange
from ludus.model.hub import Found, find
from ludus.model.transformer import Transformer


def open_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    quantise: str = "none",
    base: Path | str | None = None,
    like: Path | None = None,
) -> Transformer:
    """Load the model of a folder, of a run, of a name on the hub, or of an adapter together with its base.

    `dtype` and `quantise` are those of the frozen weights: none, nf4, int8, or as-trained, which is what they were
    while the adapter learned, or the adapter `like` where the bare model is meant. `base` takes the place of the model
    that the adapter names.

    Raises:
        CheckpointError: a folder is damaged, or holds what ludus cannot compute; or an adapter is for another base.
        RunError: there is no model, or the base is no longer where it was.
    """
    folder = find(path).folder
    adapter = folder if (folder / files.CONFIG).is_file() else None
    if adapter is not None:
        folder = base_of(adapter, base).folder
        refuse_another(adapter, files.recorded(adapter), folder)
    model = exchange.load(folder, dtype, device=device, linear=_quantiser(quantise, like or adapter))
    return model if adapter is None else files.load(model, adapter)


def find_adapter(path: Path | str) -> Path | None:
    """Return the adapter folder meant by a path: itself, or its `adapter`; None if it names none."""
    path = Path(path).expanduser()
    return next((folder for folder in (path, path / "adapter") if (folder / files.CONFIG).is_file()), None)


def newest_adapter(path: Path | str) -> Path:
    """Return the adapter meant by a path, or that of a run's newest stage that has one.

    Raises:
        RunError: there is none.
    """
    path = Path(path).expanduser()
    stages = sorted(path.glob(f"*/adapter/{files.CONFIG}"), key=lambda file: file.stat().st_mtime)
    found = find_adapter(path) or (stages[-1].parent if stages else None)
    if found is None:
        missing = "does not exist" if not path.exists() else f"holds no adapter: no {files.CONFIG} in it or in a stage"
        raise RunError(f"{path} {missing}; give the folder that an adapter was saved to, or its run")
    return found


def base_of(adapter: Path, base: Path | str | None = None) -> Found:
    """Return the model that an adapter was trained on, or `base` where it is given.

    Raises:
        RunError: the adapter does not say, or what it names is not there.
    """
    if base is not None:
        return find(base)
    config = files.read_config(adapter)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name:
        raise RunError(f"{adapter} does not say which model it belongs to; give it with --base")
    for place in (Path(name), adapter / name):
        if place.exists():
            return find(place)
    try:
        return find(name, revision=revision)
    except RunError as problem:
        raise RunError(
            f"{adapter} belongs to the model {name}, and {problem}; give its new place with --base"
        ) from None


def _quantiser(kind: str, adapter: Path | None) -> Callable[[str, nn.Linear], nn.Module] | None:
    """Return what is to be made of each linear layer of the blocks; None for nothing."""
    only = None
    if kind == "as-trained":
        said = files.recorded(adapter) if adapter is not None else {}
        kind, only = said.get("quantise", "none"), said.get("quantised_layers")
    if kind not in ("none", "nf4", "int8"):
        raise ConfigError(f"quantise={kind} is none of none, nf4, int8, as-trained")
    if kind == "none":
        return None
    make = quantiser(kind)  # type: ignore[arg-type]
    return make if only is None else lambda name, layer: make(name, layer) if name in only else layer
