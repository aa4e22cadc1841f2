"""From settings to an adapted model: the one place that knows every kind of adapter."""

from ludus.adapters.lora import lora
from ludus.adapters.settings import LoraSettings, NoAdapter
from ludus.model.transformer import Transformer


def apply(model: Transformer, settings: NoAdapter | LoraSettings, *, seed: int) -> Transformer:
    """Adapt a model in place as the settings ask; without an adapter it stays as it is."""
    return lora(model, settings, seed=seed) if isinstance(settings, LoraSettings) else model
