"""llama2.c's one-file models, such as the TinyStories ones: seven integers, then every weight as float32.

They are Llamas, but that rotary pairs lie side by side in a head and not half a head apart. Queries and keys are put
into Llama's order while they are read, so that the model leaves as any other Llama does.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ludus.base.errors import CheckpointError
from ludus.model.architecture import Architecture

HEADER = struct.Struct("<7i")
NEWER = 0x616B3432  # "ak42", which later versions begin with
Sizes = list[tuple[str, tuple[int, ...]]]


def is_one(path: Path) -> bool:
    """Tell whether a path is a file of this kind by its looks: a `.bin` that is no archive of PyTorch's."""
    if not path.is_file() or path.suffix != ".bin":
        return False
    with path.open("rb") as file:
        return file.read(2) not in (b"PK", b"\x80\x02")


def architecture(path: Path) -> Architecture:
    """Read the shape of the model in a file.

    Raises:
        CheckpointError: it is no such file, one of a newer version, or has more or fewer bytes than its sizes ask for.
    """
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise CheckpointError(f"{path} has {len(head)} bytes; a model of llama2.c begins with {HEADER.size} of sizes")
    width, hidden, layers, heads, kv_heads, vocabulary, context = HEADER.unpack(head)
    if width == NEWER:
        raise CheckpointError(
            f"{path} is of llama2.c's version {hidden}; ludus reads the first: export it with `export.py --version 0`"
        )
    positive = min(width, hidden, layers, heads, kv_heads, abs(vocabulary), context) > 0
    if not positive or width % (2 * heads) or heads % kv_heads:
        raise CheckpointError(f"{path} is no model of llama2.c: its seven sizes are {HEADER.unpack(head)}")
    found = Architecture(
        vocabulary=abs(vocabulary),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        hidden=hidden,
        context=context,
        tied=vocabulary > 0,
    )
    asked = HEADER.size + 4 * sum(torch.Size(size).numel() for _, size in _contents(found))
    if path.stat().st_size != asked:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, its sizes ask for {asked}; it is cut short or none of llama2.c's"
        )
    return found


def tensors_of(path: Path, shape: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a file by our names, mapped, layer by layer; queries and keys in Llama's order."""
    storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    numbers = torch.empty(0, dtype=torch.float32).set_(storage)  # type: ignore[call-overload]
    start = HEADER.size // 4
    for name, size in _contents(shape):
        stop = start + torch.Size(size).numel()
        stack, start = numbers[start:stop].view(size), stop
        if name in ("cosines", "sines"):
            continue
        if "*" not in name:
            yield name, stack
            continue
        for layer, tensor in enumerate(stack):
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                tensor = _half_split(tensor, shape.head_dim)
            yield name.replace("*", str(layer)), tensor


def _half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Move the rows of each head from pairs side by side to pairs half a head apart."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _contents(shape: Architecture) -> Sizes:
    """Return what follows the header, in order; a star stands for each layer's number."""
    layers, width, hidden = shape.layers, shape.width, shape.hidden
    keys, table = shape.kv_heads * shape.head_dim, (shape.context, shape.head_dim // 2)
    found: Sizes = [
        ("embed_tokens.weight", (shape.vocabulary, width)),
        ("layers.*.input_layernorm.weight", (layers, width)),
        ("layers.*.self_attn.q_proj.weight", (layers, width, width)),
        ("layers.*.self_attn.k_proj.weight", (layers, keys, width)),
        ("layers.*.self_attn.v_proj.weight", (layers, keys, width)),
        ("layers.*.self_attn.o_proj.weight", (layers, width, width)),
        ("layers.*.post_attention_layernorm.weight", (layers, width)),
        ("layers.*.mlp.gate_proj.weight", (layers, hidden, width)),
        ("layers.*.mlp.down_proj.weight", (layers, width, hidden)),
        ("layers.*.mlp.up_proj.weight", (layers, hidden, width)),
        ("norm.weight", (width,)),
        ("cosines", table),
        ("sines", table),
    ]
    return found if shape.tied else [*found, ("lm_head.weight", (shape.vocabulary, width))]
