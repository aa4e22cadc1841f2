"""The peer of our benchmarks: a GPT-2 and its training loop in plain PyTorch, with nanoGPT's architecture and settings.

    python benchmarks/plain.py --text shakespeare.txt       4 layers of 128, 2,000 iterations, the whole validation
    python benchmarks/plain.py --text shakespeare.txt --steps 200 --precision bfloat16

Nothing of ludus is used here, and nothing is tuned: this is what a careful person writes in an afternoon. Before its
times are compared with anything, it has to reach the known loss: 1.898 nats a character (within 0.02) after 2,000
iterations, about 68 s on two quiet cores.
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The numbers of a GPT-2; the defaults are nanoGPT's example for a laptop's processor."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    vocabulary: int = 65


GPT2 = Shape(layers=12, heads=12, width=768, context=1024, vocabulary=50257)


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of the same example."""

    rows: int = 12
    steps: int = 2000
    warmup: int = 100
    rate: float = 1e-3
    least: float = 1e-4
    decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    precision: torch.dtype = torch.float32
    fused: bool = False


class Block(nn.Module):
    """Causal attention and a GELU feed-forward, each behind a LayerNorm without bias."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, width = shape.heads, shape.width
        self.attention_norm, self.feed_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.attend = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.feed = nn.Linear(width, 4 * width, bias=False)
        self.fed = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        split = self.attend(self.attention_norm(x)).view(batch, time, 3, self.heads, -1)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # (batch, heads, time, head_dim) each
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.attended(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.fed(F.gelu(self.feed(self.feed_norm(x))))


class GPT(nn.Module):
    """Learned positions, blocks, a last norm, and a head tied to the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attended.weight", "fed.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * shape.layers) if residual else 1))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices only."""
    groups = [
        {"params": [each for each in model.parameters() if each.dim() >= 2], "weight_decay": settings.decay},
        {"params": [each for each in model.parameters() if each.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=settings.betas, fused=settings.fused)


def rate_at(step: int, settings: Settings) -> float:
    """Return the learning rate: a linear rise, then half a cosine down to the least."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / (settings.warmup + 1)
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.least + 0.5 * (1 + math.cos(math.pi * share)) * (settings.rate - settings.least)


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings) -> Callable[..., Tensor]:
    """Return what makes one update and gives back its loss: `step(tokens, targets)`."""
    device = next(model.parameters()).device.type

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        narrow = settings.precision != torch.float32
        with torch.autocast(device, dtype=settings.precision) if narrow else contextlib.nullcontext():
            loss = model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


@torch.no_grad()
def validate(model: GPT, tokens: Tensor, rows: int = 64) -> float:
    """Return the mean loss over all whole blocks of the context, one after another."""
    blocks = (len(tokens) - 1) // model.shape.context
    inputs, targets = (tokens[shift : shift + blocks * model.shape.context].view(blocks, -1) for shift in (0, 1))
    sums = (model(*pair) * len(pair[0]) for pair in zip(inputs.split(rows), targets.split(rows), strict=True))
    return float(sum(sums)) / blocks


def train(shape: Shape, settings: Settings, tokens: Tensor, *, seed: int) -> tuple[GPT, list[float]]:
    """Return a trained model and the seconds of each step."""
    torch.manual_seed(seed)
    model = GPT(shape)
    optimizer = optimizer_of(model, settings)
    update, seconds = stepper(model, optimizer, settings), []
    for step in range(settings.steps):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings)
        starts = torch.randint(len(tokens) - shape.context, (settings.rows,)).tolist()
        inputs, targets = (
            torch.stack([tokens[start + shift : start + shift + shape.context] for start in starts]) for shift in (0, 1)
        )
        update(inputs, targets).item()
        seconds.append(time.perf_counter() - begun)
    return model, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a text file; its last tenth is the validation")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    text = arguments.text.read_text("utf-8")
    ids = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[character] for character in text])
    cut = int(0.9 * len(tokens))
    settings = Settings(steps=arguments.steps, precision=getattr(torch, arguments.precision))
    model, seconds = train(Shape(vocabulary=len(ids)), settings, tokens[:cut], seed=arguments.seed)
    print(
        f"{1000 * median(seconds):.2f} ms an iteration, {sum(seconds):.1f} s of loop, {torch.get_num_threads()} threads"
    )
    print(f"{validate(model, tokens[cut:]):.4f} nats a character on the whole validation text")


if __name__ == "__main__":
    main()
