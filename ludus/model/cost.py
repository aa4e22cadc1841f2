"""What a model costs before it is built: parameters, floating-point operations and bytes, from its architecture alone.

Exact counts, tested against real tensors and PyTorch's own operation counter for every family and size. How long a
machine takes for them is measured elsewhere.
"""

from typing import Literal

from ludus.model.architecture import Architecture, Experts

BYTES = 4  # of a float32


def parameters(shape: Architecture) -> dict[str, int]:
    """Count the weights by part; a tied head has none of its own but its bias."""
    matrices = _matrices(shape)
    biases = (
        shape.attention_bias * (shape.heads + 2 * shape.kv_heads) * shape.head_dim + shape.output_bias * shape.width
    )
    embedding = shape.vocabulary * shape.width
    taps = shape.embedding_convolution + shape.layers * (shape.attention_convolution + shape.mlp_convolution)
    return {
        "embedding": embedding,
        "positions": shape.context * shape.width if shape.position == "learned" else 0,
        "ngrams": max(0, shape.ngrams - 1) * shape.ngram_rows * shape.width,
        "attention": matrices["attention"] + shape.layers * biases,
        "feed_forward": matrices["feed_forward"] + shape.layers * _feed_forward_biases(shape),
        "norms": _norms(shape),
        "convolutions": taps * shape.width,
        "skips": 2 * shape.layers * shape.embedding_skip,
        "head": (0 if shape.tied else embedding) + shape.head_bias * shape.vocabulary,
    }


def num_parameters(shape: Architecture) -> int:
    """Count all weights."""
    return sum(parameters(shape).values())


def active_parameters(shape: Architecture) -> int:
    """Count the weights that one token meets: of a mixture, the experts it is sent to."""
    idle = _matrices(shape)["feed_forward"] - _matrices(shape, active=True)["feed_forward"]
    return num_parameters(shape) - idle


def flops_by_part(shape: Architecture, context: int, *, seen: bool = False) -> dict[str, float]:
    """Count the floating-point operations of the forward pass for one token of a sequence of `context` tokens.

    `scores` are queries times keys and weights times values: for all pairs of tokens, as dense attention computes them,
    or where asked for those `seen` by mask and window alone, on average. What works element by element is left out
    (norms, activations, rotations), but for the convolutions.
    """
    active = _matrices(shape, active=True)
    pairs = sum(_keys(context, shape.window(layer), seen) for layer in range(shape.layers))
    return {
        "attention": 2 * active["attention"],
        "feed_forward": 2 * active["feed_forward"],
        "scores": 4 * shape.heads * shape.head_dim * pairs,
        "convolutions": 2 * parameters(shape)["convolutions"],
        "head": 2 * shape.vocabulary * shape.width,
    }


def flops_per_token(shape: Architecture, context: int, *, training: bool = True, seen: bool = False) -> int:
    """Count the floating-point operations for one token of a sequence of `context` tokens, forward and backward.

    6 N + 12 L H Q T (arXiv 2204.02311 appendix B): N counts the weights that multiply, the head among them even when
    tied, but not the embedding, which is a look-up; of a mixture, the chosen and shared experts. Pairs are counted as
    `flops_by_part` says. Without `training`, the forward pass alone.
    """
    forward = sum(flops_by_part(shape, context, seen=seen).values())
    return round(3 * forward if training else forward)  # the backward pass multiplies twice as often


def training_bytes(shape: Architecture, optimizer: Literal["adamw", "muon"] = "adamw") -> dict[str, int]:
    """Count the bytes that training holds from step to step in float32: weights, gradients and the optimizer's moments.

    AdamW has two moments of every weight; Muon has one of the matrices of layers, and AdamW's of the rest. Activations
    come on top; they grow with the batch.
    """
    weights = num_parameters(shape)
    single = sum(_matrices(shape).values()) if optimizer == "muon" else 0
    counts = {"weights": weights, "gradients": weights, "moments": 2 * weights - single}
    return {name: BYTES * count for name, count in (counts | {"total": sum(counts.values())}).items()}


def cache_bytes_per_token(shape: Architecture, bytes_per_number: int = BYTES) -> int:
    """Count the bytes that the KV cache keeps for one token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * bytes_per_number


def _matrices(shape: Architecture, *, active: bool = False) -> dict[str, int]:
    """Count the weights of the layers that multiply; of a mixture those of all experts, or `active` for one token."""
    attention = 2 * shape.width * (shape.heads + shape.kv_heads) * shape.head_dim
    one = (3 if shape.activation == "swiglu" else 2) * shape.width
    feed_forward = one * shape.hidden
    if shape.experts:
        experts = shape.experts
        feed_forward = experts.count * shape.width + one * experts.hidden * (_stacked(experts, active) + experts.shared)
    return {"attention": shape.layers * attention, "feed_forward": shape.layers * feed_forward}


def _stacked(experts: Experts, active: bool) -> int:
    return experts.chosen if active else experts.count


def _feed_forward_biases(shape: Architecture) -> int:
    """Count the biases of a layer's feed-forward; of a mixture, only the shared experts have any."""
    hidden = shape.experts.shared * shape.experts.hidden if shape.experts else shape.hidden
    inner = (2 if shape.activation == "swiglu" else 1) * hidden
    return inner + shape.width if shape.mlp_bias and hidden else 0


def _norms(shape: Architecture) -> int:
    count = shape.layers * (1 if shape.parallel else 2) + 1 + shape.embedding_norm
    weights = {"plain": 0, "rms": 1, "layer": 1 + shape.norm_bias}[shape.norm]
    of_heads = 2 * shape.layers * shape.head_dim if shape.qk_norm == "rms" else 0
    return count * weights * shape.width + of_heads


def _keys(context: int, window: int | None, seen: bool) -> float:
    """Return how many keys a query is multiplied with, on average over a sequence."""
    if not seen:
        return context
    window = min(window or context, context)
    return window - window * (window - 1) / (2 * context)
