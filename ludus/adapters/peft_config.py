"""What PEFT's `adapter_config.json` says, in both directions: which layers are adapted, and how.

Each kind is a row in a table: which fields of the file count, and how to make the adapter of one layer. What PEFT can
say and ludus cannot compute is refused by name, and so is a field that nobody here has heard of, unless it is off.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ludus.adapters.dora import Dora
from ludus.adapters.ia3 import Ia3
from ludus.adapters.loha import Loha
from ludus.adapters.lora import Lora
from ludus.adapters.peft_names import Home, homes, shortest
from ludus.adapters.settings import DoraSettings, LohaSettings, LoraSettings, VeraSettings
from ludus.adapters.surgery import Adapter, Make, device_of, linears, targeted
from ludus.adapters.vera import Vera, draw, largest
from ludus.base.errors import CheckpointError
from ludus.model.layout import Place
from ludus.model.transformer import Transformer

Config = Mapping[str, Any]
VIRTUAL = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
# Fields of every kind that are read, or that do not change what is computed; any other must be off.
CHOICE = "peft_type target_modules exclude_modules layers_to_transform layers_pattern modules_to_save"
HARMLESS = (
    "auto_mapping base_model_name_or_path ensure_weight_tying fan_in_fan_out inference_mode init_ia3_weights "
    "init_weights peft_version revision runtime_config task_type megatron_core qalora_group_size eva_config "
    "corda_config loftq_config lora_ga_config monteclora_config"
)
# Ways of drawing LoRA's first weights that leave the frozen ones alone, so that nothing of them matters later.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def makers(model: Transformer, config: Config, folder: Path) -> dict[str, Make]:
    """Return how to make the adapter of each layer that a config targets, by our names.

    Raises:
        CheckpointError: the config asks for what ludus does not compute, or for layers that the model has not.
    """
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{folder} holds an adapter of kind {kind}; ludus reads {', '.join((*KINDS, *VIRTUAL))}, and not this one"
        )
    row = KINDS[kind]
    refuse(config, f"{CHOICE} {HARMLESS} {row.fields}".split(), folder)
    try:
        chosen = _chosen(model, config, folder)
        return row.makers(model, config, chosen)
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as problem:
        said = str(problem).splitlines()
        raise CheckpointError(
            f"{folder / 'adapter_config.json'} cannot be used: {' '.join(said[-3:-1]) or said[0]}"
        ) from None


def refuse(config: Config, known: Iterable[str], folder: Path) -> None:
    """Raise CheckpointError if a config sets anything else than the known fields."""
    known = set(known)
    asked = [f"{key}={value}" for key, value in config.items() if key not in known and value and value != "none"]
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        asked.append(f"init_lora_weights={start} (it changes the frozen weights; convert the adapter to a plain one)")
    if asked:
        raise CheckpointError(f"{folder} asks for {', '.join(sorted(asked))}, which ludus does not compute")


def config_of(
    model: Transformer, found: Mapping[str, Adapter], also: Sequence[str], base: str, revision: str | None
) -> dict[str, Any]:
    """Return the config of a model's adapters by the layers they stand for; `also` are the modules trained whole."""
    chosen = homes(model.shape, found)
    first = next(iter(found.values()))
    kind = next(name for name, row in KINDS.items() if isinstance(first, row.type))
    names = [home.foreign for home in chosen]
    known = [home.foreign for home in homes(model.shape, linears(model))]
    said = KINDS[kind].said(
        [(home.foreign, next(found[each] for each in home.sources if each in found)) for home in chosen]
    )
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "target_modules": sorted(names) if kind == "IA3" else shortest(names, known),
        "modules_to_save": sorted(also) or None,
        "inference_mode": True,
        **said,
        **({} if kind == "LOHA" else {"fan_in_fan_out": any(home.transposed for home in chosen)}),
    }


def saved_whole(config: Config, places: Sequence[Place], folder: Path) -> set[str]:
    """Return the modules, by their foreign names, that a config says were trained whole."""
    modules = {place.foreign.rpartition(".")[0] for place in places}
    found: set[str] = set()
    for name in config.get("modules_to_save") or ():
        meant = {module for module in modules if module.endswith(name) or f".{name}." in f".{module}."}
        if not meant:
            raise CheckpointError(f"{folder} asks for modules_to_save={name}, which the model has not")
        found |= meant
    return found


def _chosen(model: Transformer, config: Config, folder: Path) -> list[Home]:
    """Return the places that the targets of a config mean."""
    targets, known = config.get("target_modules"), homes(model.shape, linears(model))
    if not targets:
        raise CheckpointError(f"{folder} names no target_modules, so nobody can know which layers it changes")
    if targets == "all-linear":
        wanted = {home.foreign for home in homes(model.shape, targeted(model, "all-linear"))}
        chosen = [home for home in known if home.foreign in wanted]
    else:
        chosen = [home for home in known if _is_meant(home.foreign, targets) and _in_layers(home.foreign, config)]
    excluded = config.get("exclude_modules")
    chosen = [home for home in chosen if not (excluded and _is_meant(home.foreign, excluded))]
    whole = config.get("modules_to_save") or ()
    chosen = [home for home in chosen if not any(f".{name}." in f".{home.foreign}." for name in whole)]
    lost = [] if isinstance(targets, str) else [name for name in targets if not _meets(name, known)]
    if lost or not chosen:
        what = ", ".join(map(str, lost)) or f"the pattern {targets}"
        raise CheckpointError(
            f"{folder} adapts {what}, no linear layer of this model; is the adapter one of this model?"
        )
    return chosen


def _is_meant(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _meets(target: str, known: Sequence[Home]) -> bool:
    return any(_is_meant(home.foreign, [target]) for home in known)


def _in_layers(name: str, config: Config) -> bool:
    """Tell whether a name is in one of the layers that are asked for; only a list of targets may ask."""
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if layers is None or layers == [] or isinstance(config["target_modules"], str):
        return True
    wanted = [layers] if isinstance(layers, int) else layers
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            return int(match[1]) in wanted
    return False


def _own(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Return what a layer has of its own, by the first pattern that matches the end of its name, else the default."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


Makers = Callable[[Transformer, Config, list[Home]], dict[str, Make]]


def _each(chosen: list[Home], make: Callable[[str], Make]) -> dict[str, Make]:
    return {source: make(home.foreign) for home in chosen for source in home.sources}


def _read_lora(model: Transformer, config: Config, chosen: list[Home]) -> dict[str, Make]:
    generator = torch.Generator()
    made, kind = (Dora, DoraSettings) if config.get("use_dora") else (Lora, LoraSettings)

    def make(name: str) -> Make:
        settings = kind(
            rank=_own(config.get("rank_pattern"), name, config.get("r", 8)),
            alpha=_own(config.get("alpha_pattern"), name, config.get("lora_alpha", 8)),
            dropout=config.get("lora_dropout") or 0.0,
            rank_stabilised=bool(config.get("use_rslora")),
        )
        return lambda layer: made(layer, settings, generator)

    return _each(chosen, make)


def _read_loha(model: Transformer, config: Config, chosen: list[Home]) -> dict[str, Make]:
    generator = torch.Generator()

    def make(name: str) -> Make:
        settings = LohaSettings(
            rank=_own(config.get("rank_pattern"), name, config.get("r", 8)),
            alpha=_own(config.get("alpha_pattern"), name, config.get("alpha", 8)),
        )
        return lambda layer: Loha(layer, settings, generator)

    return _each(chosen, make)


def _read_vera(model: Transformer, config: Config, chosen: list[Home]) -> dict[str, Make]:
    seed = config.get("projection_prng_key")
    settings = VeraSettings(
        rank=config.get("r", 256),
        dropout=config.get("vera_dropout") or 0.0,
        initial=config.get("d_initial", 0.1),
        projection_seed=0 if seed is None else seed,
    )
    layers = [source for home in chosen for source in home.sources]
    projection = draw(*largest(model, layers), settings.rank, settings.projection_seed)
    projection.to(device_of(model))
    return _each(chosen, lambda name: lambda layer: Vera(layer, settings, projection))


def _read_ia3(model: Transformer, config: Config, chosen: list[Home]) -> dict[str, Make]:
    inner = config.get("feedforward_modules") or []

    def is_inner(name: str) -> bool:  # PEFT's list means any end of a name, not only whole parts
        return bool(re.fullmatch(inner, name)) if isinstance(inner, str) else any(name.endswith(end) for end in inner)

    return _each(chosen, lambda name: lambda layer: Ia3(layer, feedforward=is_inner(name)))


Found = list[tuple[str, Any]]  # adapters by the foreign names of their places


def _said_lora(found: Found) -> dict[str, Any]:
    first: Lora = found[0][1]
    return {
        **_sizes({name: (adapter.rank, adapter.alpha) for name, adapter in found}, "lora_alpha"),
        "lora_dropout": first.dropout.p,
        "bias": "none",
        "use_rslora": first.rank_stabilised,
        "use_dora": isinstance(first, Dora),
    }


def _sizes(sizes: dict[str, tuple[int, float]], key: str) -> dict[str, Any]:
    """Say rank and alpha: those of most layers, and the others by name."""
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    return {
        "r": rank,
        key: _whole(alpha),
        "rank_pattern": {name: own for name, (own, _) in sizes.items() if own != rank},
        "alpha_pattern": {name: _whole(own) for name, (_, own) in sizes.items() if own != alpha},
    }


def _said_loha(found: Found) -> dict[str, Any]:
    ranks = {name: adapter.hada_w1_b.shape[0] for name, adapter in found}
    return _sizes({name: (ranks[name], adapter.scale * ranks[name]) for name, adapter in found}, "alpha")


def _said_vera(found: Found) -> dict[str, Any]:
    first: Vera = found[0][1]
    return {
        "r": first.projection.A.shape[0],
        "projection_prng_key": first.seed,
        "save_projection": True,
        "vera_dropout": first.dropout.p,
        "d_initial": first.initial,
        "bias": "none",
    }


def _said_ia3(found: Found) -> dict[str, Any]:
    return {"feedforward_modules": [name for name, adapter in found if adapter.feedforward]}


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


class Kind(NamedTuple):
    """A kind of adapter: its class, the fields of its own, and what reads and what writes them."""

    type: type[Adapter]
    fields: str
    makers: Makers
    said: Callable[[Found], dict[str, Any]]


KINDS = {
    "LORA": Kind(
        Lora,
        "r lora_alpha lora_dropout use_rslora use_dora rank_pattern alpha_pattern init_lora_weights",
        _read_lora,
        _said_lora,
    ),
    "VERA": Kind(Vera, "r d_initial projection_prng_key save_projection vera_dropout", _read_vera, _said_vera),
    "LOHA": Kind(Loha, "r alpha rank_pattern alpha_pattern", _read_loha, _said_loha),
    "IA3": Kind(Ia3, "feedforward_modules", _read_ia3, _said_ia3),
}
