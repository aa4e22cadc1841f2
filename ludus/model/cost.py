"""What a model costs before it is built: parameters, floating-point operations and bytes, from its architecture alone.

Exact counts, tested against real tensors and PyTorch's own operation counter. How long a machine takes for them is
measured elsewhere.
"""

from ludus.model.settings import Architecture

BYTES = 4  # of a float32


def parameters(shape: Architecture) -> dict[str, int]:
    """Count the weights by part; a tied head has none of its own."""
    attention = 2 * shape.width * (shape.heads + shape.kv_heads) * shape.head_dim
    embedding = shape.vocabulary * shape.width
    return {
        "embedding": embedding,
        "attention": shape.layers * attention,
        "feed_forward": shape.layers * 3 * shape.width * shape.hidden,
        "norms": (2 * shape.layers + 1) * shape.width,
        "head": 0 if shape.tied else embedding,
    }


def num_parameters(shape: Architecture) -> int:
    """Count all weights."""
    return sum(parameters(shape).values())


def flops_per_token(shape: Architecture, context: int, *, training: bool = True) -> int:
    """Count the floating-point operations for one token of a sequence of `context` tokens, forward and backward.

    6 N + 12 L H Q T (arXiv 2204.02311 appendix B): N counts the weights that multiply, the head among them even when
    tied, but not the embedding, which is a look-up. Scores are counted for all pairs, seen by the mask or not.
    Without `training`, the forward pass alone.
    """
    counts = parameters(shape)
    multiplied = counts["attention"] + counts["feed_forward"] + counts["embedding"]  # the head is as large
    pairs = shape.layers * shape.heads * shape.head_dim * context
    forward = 2 * multiplied + 4 * pairs
    return 3 * forward if training else forward  # the backward pass multiplies twice as often


def training_bytes(shape: Architecture) -> dict[str, int]:
    """Count the bytes that training holds from step to step in float32: weights, gradients and AdamW's two moments.

    Activations come on top; they grow with the batch.
    """
    weights = BYTES * num_parameters(shape)
    return {"weights": weights, "gradients": weights, "moments": 2 * weights, "total": 4 * weights}
