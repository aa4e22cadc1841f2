import struct
from pathlib import Path

import pytest
import torch

from ludus.base.errors import CheckpointError
from ludus.generation.cache import KVCache
from ludus.model.exchange import load, save
from ludus.runs.folder import find_model

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights"  # beside the repository, where it is
TOLD = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, \
red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play \
with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


def vocabulary(path: Path) -> list[bytes]:
    """Read the tokens of a llama2.c vocabulary: after an integer, each as score, length and bytes."""
    content, at, found = path.read_bytes(), 4, []
    while at < len(content):
        _, length = struct.unpack_from("<fi", content, at)
        found.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    return found


@pytest.fixture
def written(tiny, tmp_path):
    """Write a tiny model as llama2.c does, with pairs of rotary channels side by side, and return it and the file."""

    def write(**changes):
        model, shape = tiny(**changes), tiny(**changes).shape
        weights = dict(model.state_dict())
        for name in [name for name in weights if "q_proj" in name or "k_proj" in name]:
            heads = weights[name].view(-1, 2, shape.head_dim // 2, shape.width)
            weights[name] = heads.transpose(1, 2).reshape(-1, shape.width)
        order = "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
        order += " post_attention_layernorm mlp.gate_proj mlp.down_proj mlp.up_proj"
        names = [f"layers.{layer}.{part}.weight" for part in order.split() for layer in range(shape.layers)]
        tables = [torch.ones(shape.context * shape.head_dim)]
        head = [] if shape.tied else [weights["lm_head.weight"]]
        every = [weights["embed_tokens.weight"], *(weights[name] for name in names), weights["norm.weight"]]
        words = shape.vocabulary if shape.tied else -shape.vocabulary
        sizes = (shape.width, shape.hidden, shape.layers, shape.heads, shape.kv_heads, words, shape.context)
        content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in [*every, *tables, *head])
        (tmp_path / "little.bin").write_bytes(struct.pack("<7i", *sizes) + content)
        return model, tmp_path / "little.bin"

    return write


@pytest.mark.law
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_llama2c_is_read_and_leaves_as_a_llama(written, tmp_path, tied: bool):
    model, file = written(tied=tied)
    assert find_model(file) == file
    ours = load(file)
    assert ours.shape == model.shape
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    save(ours, tmp_path / "out")
    rows = torch.arange(40).view(2, 20)
    assert torch.equal(load(tmp_path / "out").eval()(rows), model(rows))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:20], "has 20 bytes; a model of llama2.c begins with 28"),
        (lambda content: content[:-4], r"has \d+ bytes, its sizes ask for \d+; it is cut short"),
        (lambda content: content + bytes(8), "its sizes ask for"),
        (
            lambda content: struct.pack("<7i", 1, 2, 3, 4, 5, 6, 7) + content[28:],
            "no model of llama2.c: its seven sizes",
        ),
        (lambda content: struct.pack("<7i", *[0] * 7) + content[28:], "no model of llama2.c: its seven sizes"),
        (lambda content: b"24ka" + struct.pack("<i", 2) + content[8:], "version 2; ludus reads the first"),
        (lambda content: b"PK" + content[2:], "no model by itself; give the folder"),
        (lambda content: b"", "has 0 bytes"),
    ],
)
def test_what_is_no_whole_file_of_llama2c_is_refused_in_one_line(written, damage, says: str):
    _, file = written()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=says) as caught:
        load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.oracle
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights of stories260K are not here")
@torch.no_grad()
def test_a_model_that_others_trained_tells_their_story(tmp_path):
    model = load(WEIGHTS / "stories260K.bin").eval()
    assert sum(weight.numel() for weight in model.parameters()) == 260_032
    tokens, rows = vocabulary(WEIGHTS / "tok512.bin"), [1]
    cache = KVCache(model.shape, torch.tensor([0]), 200, torch.float32)
    for _ in range(200):
        rows.append(int(model(torch.tensor([rows[-1:]]), cache=cache)[0, -1].argmax()))
    text = b"".join(
        bytes.fromhex(token[3:5].decode()) if token[:3] == b"<0x" else token
        for token in (tokens[row] for row in rows[1:])
    )
    assert text.decode().removeprefix(" ") == TOLD
    transformers = pytest.importorskip("transformers")
    save(model, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (
        theirs.generate(torch.tensor([[1]]), max_new_tokens=200, do_sample=False, eos_token_id=-1)[0].tolist() == rows
    )
