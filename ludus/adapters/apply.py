"""From settings to an adapted model: the one place that knows every kind of adapter.

Each kind lives in a file of its own and is imported when it is asked for.
"""

from collections.abc import Callable, Sequence
from importlib import import_module

from ludus.adapters.settings import AnyAdapter, LoraPlusSettings
from ludus.adapters.whole import whole
from ludus.model.transformer import Transformer

HOMES = {
    "lora": "lora",
    "lora+": "lora",
    "dora": "dora",
    "vera": "vera",
    "loha": "loha",
    "ia3": "ia3",
    "prefix": "prefix",
    "prompt": "prompt",
}


def apply(model: Transformer, settings: AnyAdapter, *, seed: int, tokens: Sequence[int] | None = None) -> Transformer:
    """Adapt a model in place as the settings ask; for full fine-tuning it stays as it is.

    `tokens` are those of the words that a prompt starts as. Raises ConfigError where the model has no such layers.
    """
    home = HOMES.get(settings.kind)
    if home is None:
        return model
    make: Callable[..., Transformer] = getattr(import_module(f"ludus.adapters.{home}"), home)
    model = make(model, settings, seed=seed, **({"tokens": tokens} if settings.kind == "prompt" else {}))
    also: list[str] = getattr(settings, "also", [])
    return whole(model, also) if also else model


def rate_factor(settings: AnyAdapter) -> Callable[[str], float]:
    """Return by what each parameter's rate is multiplied, by its name: LoRA+ (arXiv 2402.12354) trains B faster."""
    if not isinstance(settings, LoraPlusSettings):
        return lambda name: 1.0
    ratio = settings.rate_ratio
    return lambda name: ratio if ".lora_B" in name else 1.0
