import pytest
import torch

from ludus.base.errors import ConfigError
from ludus.model.attention import BACKENDS
from ludus.model.sight import Sight

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, -1, -1]])


def heads(batch: int = 2, count: int = 4, time: int = 7, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, count, time, size, generator=torch.Generator().manual_seed(seed))


def attend(name: str, inputs: tuple[torch.Tensor, ...], sight: Sight, window: int | None = None) -> torch.Tensor:
    backend = BACKENDS[name]
    return backend.attend(*inputs, sight.mask(backend.form, window, inputs[0].dtype))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["causal", "documents"])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (4, 2), (6, 1)])
def test_the_backends_agree(shape, queries: int, keys: int, documents: torch.Tensor | None, window: int | None):
    sight = Sight(shape(), torch.zeros(2, 7, dtype=torch.long), documents=documents)
    inputs = heads(count=queries), heads(count=keys, seed=1), heads(count=keys, seed=2)
    plain = attend("plain", inputs, sight, window)
    for name in ("fused", "flex"):
        torch.testing.assert_close(attend(name, inputs, sight, window), plain, rtol=1e-5, atol=1e-6)


def test_a_block_is_skipped_where_no_query_of_it_sees_a_key_of_it_in_that_row(shape):
    """FlexAttention's reference on a CPU works out every block, so the backends would agree with any."""
    documents = torch.stack([torch.arange(384) // 128, torch.arange(384) // 256])
    sight = Sight(shape(), documents, documents=documents)
    seen = sight.mask("dense", None, torch.float32).isfinite().view(2, 1, 3, 128, 3, 128).any(5).any(3)
    blocks = sight.mask("blocks", None, torch.float32)
    assert torch.equal(blocks.to_dense().bool(), seen)
    assert seen.sum((1, 2, 3)).tolist() == [3, 4]
    assert sight.mask("blocks", 64, torch.float32).sparsity() >= blocks.sparsity()


def test_attention_is_a_weighted_mean_of_the_values_that_may_be_seen():
    queries, keys, values = heads(1, 1), heads(1, 1, seed=1), heads(1, 1, seed=2)
    mixed = BACKENDS["plain"].attend(queries, keys, values, None)
    scores = queries[0, 0, 3] @ keys[0, 0, :4].T / 8**0.5
    torch.testing.assert_close(mixed[0, 0, 3], scores.softmax(0) @ values[0, 0, :4])


def test_float64_attention_is_as_exact_as_float64():
    inputs = [heads(seed=seed).double() for seed in range(3)]
    plain, fused = (BACKENDS[name].attend(*inputs, None) for name in ("plain", "fused"))
    torch.testing.assert_close(plain, fused, rtol=1e-13, atol=1e-13)


def test_a_mask_is_made_once_for_each_window(shape):
    sight = Sight(shape(), torch.zeros(2, 7, dtype=torch.long), documents=DOCUMENTS)
    assert sight.mask("dense", 2, torch.float32) is sight.mask("dense", 2, torch.float32)
    assert sight.mask("dense", 9, torch.float32) is sight.mask("dense", None, torch.float32)  # no row is as long
    assert sight.mask("dense", 2, torch.float32) is not sight.mask("dense", None, torch.float32)


def test_attention_weights_are_dropped_and_the_rest_made_larger():
    inputs = heads(1, 1), heads(1, 1, seed=1), torch.ones(1, 1, 7, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("plain", "fused"):
            means = [BACKENDS[name].attend(*inputs, None, 0.5).mean() for _ in range(200)]
            assert float(torch.stack(means).mean()) == pytest.approx(1, abs=0.1)
            assert float(torch.stack(means).std()) > 0.05
    with pytest.raises(ConfigError, match="drops no weights"):
        BACKENDS["flex"].attend(*inputs, None, 0.5)


def test_a_backend_nobody_knows_is_refused_with_the_nearest(tiny):
    with pytest.raises(ConfigError, match="did you mean flex"):
        tiny().attention_backend = "flexx"


def test_a_backend_is_set_for_every_layer(tiny):
    model = tiny()
    model.attention_backend = "fused"
    assert model.attention_backend == "fused"
    assert {layer.self_attn.backend for layer in model.layers} == {"fused"}
