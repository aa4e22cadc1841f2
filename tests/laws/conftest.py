"""Models as the laws see them: plain, under an adapter, recomputing, on the other attention backend."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # law_stages.py is read by processes of their own, too


@pytest.fixture(scope="session")
def models(tiny: Callable) -> dict[str, Callable]:
    """Make a model of a kind: `models["lora"](tied=True)`."""
    import torch

    from ludus.adapters.apply import apply
    from ludus.adapters.quantised import quantise_model
    from ludus.adapters.settings import AnyAdapter, DoraSettings, LoraSettings, PrefixSettings, VeraSettings
    from ludus.model.architecture import Architecture, Experts
    from ludus.model.presets import FAMILIES
    from ludus.parallel.recomputation import recompute

    def adapted(settings: AnyAdapter, quantise: str | None = None):
        def make(**changes: object):
            model = quantise_model(tiny(**changes), quantise) if quantise else tiny(**changes)
            apply(model, settings, seed=0)
            generator = torch.Generator().manual_seed(4)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            return model

        return make

    def family(name: str):
        switches = {key: value for key, value in FAMILIES[name].items() if key in Architecture.__dataclass_fields__}
        return lambda **changes: tiny(**{**switches, "ngram_rows": 97, **changes})

    return {
        "plain": tiny,
        "gpt2": family("gpt2"),
        "modern": family("modern"),
        "experts": lambda **changes: tiny(experts=Experts(count=4, chosen=2, shared=1, hidden=16), **changes),
        "fused": lambda **changes: tiny(backend="fused", **changes),
        "tied": lambda **changes: tiny(tied=True, **changes),
        "lora": adapted(LoraSettings(rank=4)),
        "dora": adapted(DoraSettings(rank=4)),
        "vera": adapted(VeraSettings(rank=8)),
        "nf4": adapted(LoraSettings(rank=4), "nf4"),
        "prefix": adapted(PrefixSettings(tokens=4)),
        "recomputed": lambda **changes: recompute(tiny(**changes)),
    }
