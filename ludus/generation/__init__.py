"""From a model to text: the KV cache, sampling, and the batched engine."""
