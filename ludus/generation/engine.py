"""The batched engine: many prompts at once, one prefill for a whole group, finished rows dropped as they end.

What it returns is what was sampled: token ids and their log-probabilities, never text to be tokenised again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ludus.generation.cache import KVCache
from ludus.generation.lean import WORTH_COPYING, lean
from ludus.generation.sampling import sample
from ludus.model.transformer import Transformer
from ludus.text.tokenizer import Tokenizer

COMPACT_BELOW = 0.75  # drop finished rows once fewer than this share of the rows is still running


@dataclass(frozen=True)
class Sampling:
    """How to draw, and when to stop."""

    max_new_tokens: int
    stop: frozenset[int] = frozenset()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass
class Completion:
    """What was sampled after one prompt; the stop token, if drawn, is the last of `tokens`."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"

    def text(self, tokenizer: Tokenizer, *, beginning: bool = False) -> str:
        """Return what the tokens say; ids that only pad the model's vocabulary, beyond the tokenizer's, say nothing."""
        known = [token for token in self.tokens if token < tokenizer.vocabulary_size]
        return tokenizer.decode(known, beginning=beginning)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    generator: torch.Generator | None = None,
    group: int = 1,
    rows: int = 256,
) -> list[Completion]:
    """Complete each prompt `group` times; completions of one prompt are neighbours.

    At most about `rows` sequences run at a time. Prompts of similar length run together, which saves padding; the
    result is in the order of `prompts`.
    """
    training = model.training
    model.eval()
    speaking = lean(model) if prompts and sampling.max_new_tokens >= WORTH_COPYING else model
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = max(1, rows // group)
    completions: dict[int, list[Completion]] = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        found = _complete(speaking, [prompts[index] for index in chosen], sampling, generator, group)
        for place, index in enumerate(chosen):
            completions[index] = found[place * group : (place + 1) * group]
    model.train(training)
    return [completion for index in range(len(prompts)) for completion in completions[index]]


@torch.inference_mode()
def stream(
    model: Transformer, prompt: Sequence[int], sampling: Sampling, *, generator: torch.Generator | None = None
) -> Iterator[int]:
    """Yield the tokens after one prompt as they are drawn, the stop token included."""
    model = lean(model.eval()) if sampling.max_new_tokens >= WORTH_COPYING else model.eval()
    cache, logits = _prefill(model, [prompt], sampling.max_new_tokens)
    for _ in range(sampling.max_new_tokens):
        token, _ = _draw(logits, sampling, generator)
        yield int(token)
        if int(token) in sampling.stop:
            return
        logits = _advance(model, token, cache)


def _complete(
    model: Transformer, prompts: list[Sequence[int]], sampling: Sampling, generator: torch.Generator | None, group: int
) -> list[Completion]:
    cache, logits = _prefill(model, prompts, sampling.max_new_tokens)
    repeated = torch.arange(len(prompts), device=logits.device).repeat_interleave(group)
    if group > 1:
        cache.select(repeated)
        logits = logits[repeated]
    completions = [Completion() for _ in repeated]
    running = list(range(len(completions)))  # completion of each row of the cache; finished rows stay until compaction
    for step in range(sampling.max_new_tokens):
        tokens, logps = _draw(logits, sampling, generator)
        for row, token, logp in zip(range(len(running)), tokens.tolist(), logps.tolist(), strict=True):
            completion = completions[running[row]]
            if completion.finish == "length":
                completion.tokens.append(token)
                completion.logps.append(logp)
                completion.finish = "stop" if token in sampling.stop else "length"
        alive = [row for row, index in enumerate(running) if completions[index].finish == "length"]
        if not alive or step == sampling.max_new_tokens - 1:
            break
        if len(alive) < COMPACT_BELOW * len(running):
            kept = torch.tensor(alive, device=tokens.device)
            cache.select(kept)
            tokens, running = tokens[kept], [running[row] for row in alive]
        logits = _advance(model, tokens, cache)
    return completions


def _prefill(model: Transformer, prompts: list[Sequence[int]], max_new_tokens: int) -> tuple[KVCache, Tensor]:
    """Run the prompts, padded on the left, and return the cache and the logits after each: (rows, vocab)."""
    longest = max(len(prompt) for prompt in prompts)
    device = model.embed_tokens.weight.device
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    starts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    dtype = model.precision if model.precision != torch.float32 else model.embed_tokens.weight.dtype
    cache = KVCache(model.shape, starts, longest + max_new_tokens, dtype)
    hidden = model.hidden(tokens, cache=cache)
    return cache, model.logits(hidden[:, -1])


def _advance(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    return model.logits(model.hidden(tokens[:, None], cache=cache)[:, -1])


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    return sample(
        logits, temperature=sampling.temperature, generator=generator, top_k=sampling.top_k, top_p=sampling.top_p
    )
