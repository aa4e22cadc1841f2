"""The files a model may lie in: shards, pickles of tensors, and what is handed on from one folder to the next."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ludus.base.errors import CheckpointError
from ludus.model.exchange import load, save, write_tensors
from ludus.model.stored import Entry, write
from ludus.text.settings import TokenizerSettings
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train

ROW = torch.arange(40).view(2, 20)
GPT2 = {"norm": "layer", "position": "learned", "activation": "gelu_tanh", "kv_heads": 4, "tied": True}
GPT2 |= {"attention_bias": True, "output_bias": True, "mlp_bias": True}


def as_pickles(folder: Path, shards: int = 1, **options: object) -> None:
    """Turn the weights of a folder into pickles, as they were published before safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "sha256.json").unlink()
    if shards == 1:
        torch.save(weights, folder / "pytorch_model.bin", **options)
        return
    where = {}
    for number in range(shards):
        part = {name: weights[name].clone() for name in sorted(weights)[number::shards]}
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("changes", [{}, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("shards", [1, 3])
def test_pickles_of_tensors_are_read(tiny, tmp_path, changes: dict, shards: int):
    model = tiny(**changes)
    save(model, tmp_path / "model")
    as_pickles(tmp_path / "model", shards)
    again = load(tmp_path / "model")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model.norm.weight": Evil()}, r"pytorch_model\.bin is refused: it holds more than tensors; a pickle may run"),
        ({"model.norm.weight": [1.0, 2.0]}, r"it holds model\.norm\.weight, which is no tensor"),
        ([torch.ones(3)], "it holds a list, which is no tensor"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_never_run(tiny, tmp_path, content: object, says: str):
    save(tiny(), tmp_path / "model")
    as_pickles(tmp_path / "model")
    torch.save(content, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-300]), r"pytorch_model\.bin cannot be read"),
        (lambda file: file.write_bytes(b""), "it is no archive of PyTorch"),
        (lambda file: file.write_bytes(pickle.dumps(Evil())), "it is no archive of PyTorch"),
        (lambda file: file.rename(file.with_name("model.pt")), r"model\.pt is not opened: ludus reads safetensors and"),
        (
            lambda file: file.rename(file.with_name("model.gguf")),
            r"has no model\.safetensors; model\.gguf is not opened",
        ),
    ],
)
def test_a_damaged_pickle_or_another_file_is_said_in_one_line(tiny, tmp_path, damage, says: str):
    save(tiny(), tmp_path / "model")
    as_pickles(tmp_path / "model")
    damage(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_pickles_in_the_format_of_old_are_refused(tiny, tmp_path):
    save(tiny(), tmp_path / "model")
    as_pickles(tmp_path / "model", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"it is no archive of PyTorch's, as since version 1\.6"):
        load(tmp_path / "model")


@pytest.mark.law
@pytest.mark.parametrize("changes", [{}, GPT2], ids=["llama", "gpt2"])
def test_a_model_in_shards_is_the_same_model(tiny, tmp_path, changes: dict):
    model = tiny(**changes)
    save(model, tmp_path / "whole")
    save(model, tmp_path / "shards", max_shard_bytes=9_000)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    numbers = sum(tensor.numel() for tensor in whole.values())
    assert index["metadata"] == {"total_size": 4 * numbers, "total_parameters": numbers}
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{number:05d}-of-{len(names):05d}.safetensors" for number in range(1, len(names) + 1)]
    found = {}
    for name in names:
        part = load_file(tmp_path / "shards" / name)
        assert len(part) == 1 or sum(4 * tensor.numel() for tensor in part.values()) <= 9_000
        assert {index["weight_map"][key] for key in part} == {name}
        with safe_open(tmp_path / "shards" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        found |= part
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert torch.equal(load(tmp_path / "shards").eval()(ROW), model(ROW))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda index: index.write_text("{}"), "names no files of this folder under `weight_map`"),
        (lambda index: index.write_text('{"weight_map": {"a": "../secret.safetensors"}}'), "names no files of this"),
        (lambda index: next(index.parent.glob("model-00002*")).unlink(), "model-00002-of-.*cannot be read"),
    ],
)
def test_a_damaged_index_or_a_missing_shard_is_said(tiny, tmp_path, damage, says: str):
    save(tiny(), tmp_path / "model", max_shard_bytes=9_000)
    (tmp_path / "model" / "sha256.json").unlink()
    damage(tmp_path / "model" / "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_what_is_streamed_is_what_the_library_writes(tmp_path, dtype: torch.dtype):
    tensors = {"b": torch.randn(3, 5).to(dtype), "a": torch.ones(()).to(dtype), "e": torch.ones(0, 4).to(dtype)}
    tensors["mixed"] = torch.arange(3)
    entries = [Entry(name, each.dtype, tuple(each.shape), lambda each=each: each) for name, each in tensors.items()]
    write(tmp_path / "ours", entries)
    write_tensors(tensors, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


@pytest.mark.parametrize("changes", [{}, GPT2], ids=["llama", "gpt2"])
def test_linear_layers_are_handed_over_as_soon_as_they_are_whole(tiny, tmp_path, changes: dict):
    model, seen = tiny(**changes), []

    class Marked(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    def mark(name: str, layer: nn.Linear) -> nn.Module:
        assert not any(weight.is_meta for weight in layer.parameters())
        assert layer.weight.dtype == torch.float64
        assert torch.equal(layer.weight, model.get_submodule(name).weight.double())
        seen.append(name)
        return Marked(layer)

    save(model, tmp_path / "model", max_shard_bytes=5_000)  # weights and biases in different files
    again = load(tmp_path / "model", torch.float64, linear=mark).eval()
    blocks = {f"layers.{name}" for name, module in model.layers.named_modules() if isinstance(module, nn.Linear)}
    assert len(seen) == len(set(seen))
    assert set(seen) == blocks == {name for name, module in again.named_modules() if isinstance(module, Marked)}
    torch.testing.assert_close(again(ROW), model(ROW))


@pytest.mark.parametrize("changes", [{}, GPT2], ids=["llama", "gpt2"])
def test_a_model_of_half_precision_runs_as_it_was_loaded(tiny, tmp_path, changes: dict):
    model = tiny(**changes)
    save(tiny(**changes).bfloat16(), tmp_path / "model")
    half = load(tmp_path / "model", None).eval()
    assert half.precision == torch.bfloat16
    assert load(tmp_path / "model").precision == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(half(ROW), model(ROW), rtol=0.1, atol=0.2)


def test_weights_of_whole_numbers_are_refused(tiny, tmp_path):
    save(tiny(), tmp_path / "model")
    (tmp_path / "model" / "sha256.json").unlink()
    path = tmp_path / "model" / "model.safetensors"
    save_file(load_file(path) | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match=r"norm\.weight as int8; ludus reads floats of 16 to 64 bits"):
        load(tmp_path / "model", None)


def foreign(folder: Path, generation: dict, **config: object) -> None:
    """Make a folder look as others leave theirs."""
    (folder / "sha256.json").unlink()
    said = json.loads((folder / "config.json").read_text()) | config
    said.pop("ludus")
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "generation_config.json").write_text(json.dumps(generation))


def test_ends_defaults_of_sampling_and_harmless_settings_are_handed_on(tiny, tmp_path):
    save(tiny(vocabulary=400), tmp_path / "base")
    said = {
        "bos_token_id": 3,
        "eos_token_id": [395, 397],
        "temperature": 0.6,
        "top_p": 0.9,
        "transformers_version": "4.44",
    }
    foreign(tmp_path / "base", said, eos_token_id=395, bos_token_id=3, initializer_range=0.01)
    save(load(tmp_path / "base"), tmp_path / "again")
    config, generation = (
        json.loads((tmp_path / "again" / f"{name}.json").read_text()) for name in ("config", "generation_config")
    )
    kept = {"bos_token_id": 3, "eos_token_id": [395, 397], "pad_token_id": None, "temperature": 0.6, "top_p": 0.9}
    assert generation == kept
    assert (config["bos_token_id"], config["eos_token_id"], config["initializer_range"]) == (3, [395, 397], 0.01)
    tokenizer = train(["one two three"], TokenizerSettings(kind="character"))
    save(load(tmp_path / "again"), tmp_path / "tuned", tokenizer)
    generation = json.loads((tmp_path / "tuned" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.end, 395, 397]
    assert (generation["bos_token_id"], generation["pad_token_id"]) == (tokenizer.bos, tokenizer.pad)


def test_a_model_leaves_in_the_family_it_came_in_where_several_fit(tiny, tmp_path):
    save(tiny(), tmp_path / "base")
    foreign(tmp_path / "base", {}, architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=None)
    save(load(tmp_path / "base"), tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["MistralForCausalLM"], "mistral")
    assert "(MistralForCausalLM layout)" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(
    ("family", "silent", "means"),
    [
        ("mistral", "sliding_window", {"windows": (4096, 4096)}),
        ("mistral", "max_position_embeddings", {"context": 131_072}),
        ("qwen2", "max_position_embeddings", {"context": 32_768}),
        ("qwen3", "head_dim", {"head_dim": 128}),
        ("qwen3", "num_key_value_heads", {"kv_heads": 32}),
        ("llama", "num_key_value_heads", {"kv_heads": 4}),
        ("llama", "tie_word_embeddings", {"tied": False}),
        ("gptj", "rotary_dim", {"rotary_dims": 64}),
        ("gpt2", "n_inner", {"hidden": 128}),
        ("gpt2", "tie_word_embeddings", {"tied": True}),
    ],
)
def test_a_silent_config_means_what_it_means_to_that_family(tmp_path, family: str, silent: str, means: dict):
    from ludus.model.families import architecture_of

    said = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    said |= {"intermediate_size": 48, "num_key_value_heads": 2, "n_embd": 32, "n_layer": 2, "n_head": 4}
    said |= {"n_positions": 64, "max_position_embeddings": 64, "head_dim": 8, "sliding_window": 5, "rotary_dim": 4}
    said |= {"n_inner": 48, "model_type": family}
    said.pop(silent, None)
    found = architecture_of(said, tmp_path)
    assert {name: getattr(found, name) for name in means} == means


def test_rotary_settings_for_kinds_of_layers_are_refused(tiny, tmp_path):
    save(tiny(), tmp_path / "model")
    rotary = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    foreign(tmp_path / "model", {}, rope_parameters=rotary)
    with pytest.raises(CheckpointError, match="asks for rope_parameters of its own for full_attention"):
        load(tmp_path / "model")


def test_a_model_that_got_a_template_stops_elsewhere_where_it_stops_here(tiny, tmp_path):
    dressed = choose(train(["one two three"], TokenizerSettings(kind="character")), "chatml")
    assert len(dressed.ends) == 2
    save(tiny(vocabulary=dressed.vocabulary_size), tmp_path / "model", dressed)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "model" / file).read_text())["eos_token_id"] == list(dressed.ends)
    assert Tokenizer.load(tmp_path / "model").ends == dressed.ends
