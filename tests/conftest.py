"""What all tests share: one torch thread, no progress bars, no network, and a tiny model with a mind of its own."""

import os
from collections.abc import Callable

import pytest

for name, value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LUDUS_QUIET": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ[name] = value  # before torch is imported, and for every process a test starts


def pytest_configure(config: pytest.Config) -> None:
    config.option.importmode = "importlib"


@pytest.fixture(scope="session")
def shape() -> Callable:
    """Make a tiny architecture: `shape(layers=1, tied=True)`."""
    from ludus.model.settings import Architecture

    tiny = {"vocabulary": 61, "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 48}
    return lambda **changes: Architecture(**{**tiny, "context": 64, **changes})


@pytest.fixture(scope="session")
def tiny(shape: Callable) -> Callable:
    """Make a tiny model with real logits: `tiny(seed=1, backend="fused", layers=1)`.

    Fresh weights have a zero head and zero output projections, which would hide most mistakes; here none is zero.
    """
    import torch

    from ludus.model.transformer import Transformer, build

    def make(*, seed: int = 0, backend: str = "plain", **changes: object) -> Transformer:
        model = build(shape(**changes), seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else noise * parameter.shape[1] ** -0.5)
        for layer in model.layers:
            layer.self_attn.backend = backend
        return model.eval()

    return make
