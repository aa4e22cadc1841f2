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

    from ludus.adapters.lora import lora
    from ludus.adapters.settings import LoraSettings
    from ludus.adapters.surgery import adapters
    from ludus.model.architecture import Architecture, Experts
    from ludus.model.presets import FAMILIES
    from ludus.parallel.recomputation import recompute

    def adapted(**changes: object):
        model = lora(tiny(**changes), LoraSettings(rank=4), seed=0)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for _, adapter in adapters(model):
                adapter.lora_B.weight.normal_(std=0.2, generator=generator)
        return model

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
        "lora": adapted,
        "recomputed": lambda **changes: recompute(tiny(**changes)),
    }
