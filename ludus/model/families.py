"""The table of layouts, and which one a model is written in or read from.

A model whose architecture is exactly that of a family is written as that family, so that transformers and vLLM load it
unchanged. Any other is written in ludus' own layout: every field of the architecture under the key `ludus`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ludus.base.errors import CheckpointError, nearest
from ludus.model.architecture import Architecture, Experts, RopeScaling
from ludus.model.gpt2 import GPT2, GPTJ
from ludus.model.inherited import IDS, Inherited
from ludus.model.layout import Config, Layout
from ludus.model.llama import LLAMA, MISTRAL, QWEN2, QWEN3, places
from ludus.text.tokenizer import Tokenizer

FIELDS = {field.name: field for field in dataclasses.fields(Architecture)}


def _read_own(config: Config, folder: Path) -> Architecture:
    said = (config.get("ludus") or {}).get("architecture") or {}
    missing = [name for name, field in FIELDS.items() if field.default is dataclasses.MISSING and name not in said]
    if missing:
        raise CheckpointError(f"{folder / 'config.json'} does not say its {', '.join(missing)} under `ludus`")
    return Architecture(**_fields(said, folder))


OWN = Layout(
    "LudusForCausalLM", "ludus", frozenset(FIELDS), {}, lambda shape: {}, _read_own, places, loads_elsewhere=False
)
FOREIGN = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, GPTJ)
LAYOUTS = {layout.name: layout for layout in (*FOREIGN, OWN)}


def layout_for(shape: Architecture, model_type: str | None = None) -> Layout:
    """Return the layout that a model of this architecture is written in: the one it came in, where that still fits."""
    came_in_first = sorted(FOREIGN, key=lambda layout: layout.model_type != model_type)
    return next((layout for layout in came_in_first if not layout.misfits(shape)), OWN)


def to_blame(shape: Architecture) -> list[str]:
    """Name the settings that no family of transformers has together, against the family that comes nearest; or none."""
    return min((layout.misfits(shape) for layout in FOREIGN), key=len)


def config_of(
    shape: Architecture,
    dtype: torch.dtype,
    tokenizer: Tokenizer | None,
    extra: Mapping[str, Any],
    inherited: Inherited | None = None,
) -> dict[str, Any]:
    """Return `config.json`; what only ludus knows goes under the key `ludus`."""
    inherited = inherited or Inherited()
    layout = layout_for(shape, inherited.model_type)
    width = str(dtype).removeprefix("torch.")
    ids = (None, None, None) if tokenizer is None else (tokenizer.bos, _one_or_many(tokenizer.ends), tokenizer.pad)
    config = {
        "architectures": [layout.name],
        "model_type": layout.model_type,
        **layout.written(shape),
        **(inherited.settings if inherited.model_type == layout.model_type else {}),
        "use_cache": True,
        **inherited.token_ids(dict(zip(IDS, ids, strict=True))),
        "torch_dtype": width,
        "dtype": width,
    }
    own = dataclasses.asdict(shape)
    if layout is not OWN:
        said = dataclasses.asdict(layout.read(config, Path()))
        own = {name: value for name, value in own.items() if value != said[name]}  # what changes no logit
    bound = {} if tokenizer is None else {"tokenizer": tokenizer.hash}
    return config | {"ludus": {"architecture": own, **bound, **({"facts": dict(extra)} if extra else {})}}


def _one_or_many(ids: Sequence[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def layout_of(config: Any, folder: Path) -> Layout:
    """Return the layout that a `config.json` names.

    Raises:
        CheckpointError: ludus does not know it.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{folder / 'config.json'} is no model's config: it is a {type(config).__name__}")
    name = (config.get("architectures") or [config.get("model_type", "nothing it names")])[0]
    known = LAYOUTS | {layout.model_type: layout for layout in LAYOUTS.values()}
    if name not in known:
        near = nearest(str(name), LAYOUTS)
        hint = f" ({near} is the nearest)" if near else ""
        raise CheckpointError(f"{folder} holds {name}; ludus reads {', '.join(LAYOUTS)}{hint}")
    return known[name]


def architecture_of(config: Any, folder: Path) -> Architecture:
    """Read an architecture out of a `config.json`.

    Raises:
        CheckpointError: ludus does not know its family, it lacks a size, or asks for something ludus does not compute.
    """
    layout = layout_of(config, folder)
    found = layout.read(config, folder)
    own = config.get("ludus") or {}
    said = own.get("architecture") or {name: own[name] for name in ("dropout",) if name in own}
    return found if layout is OWN else dataclasses.replace(found, **_fields(said, folder))


def _fields(said: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Turn fields out of JSON into those of an architecture."""
    strange = [name for name in said if name not in FIELDS]
    if strange:
        raise CheckpointError(
            f"{folder / 'config.json'} has {strange[0]} under `ludus`, unknown to this version; use a newer one"
        )
    found = dict(said)
    for name, kind in (("rope_scaling", RopeScaling), ("experts", Experts)):
        if found.get(name) is not None:
            try:
                found[name] = kind(**found[name])
            except TypeError as problem:
                raise CheckpointError(f"{folder / 'config.json'} has a strange {name}: {problem}") from None
    if "windows" in found:
        found["windows"] = tuple(found["windows"])
    return found
