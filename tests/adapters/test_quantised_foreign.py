import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ludus.adapters import int8
from ludus.adapters.foreign import from_bitsandbytes, is_quantised
from ludus.adapters.quantised import quantise
from ludus.base.errors import CheckpointError


def written(*, shape: tuple[int, int] = (96, 128), kind: str = "nf4", second: bool = True, block: int = 64):
    """Return bitsandbytes' layer and what transformers writes of it."""
    theirs = pytest.importorskip("bitsandbytes")
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
    weight = theirs.nn.Params4bit(
        dense, requires_grad=False, quant_type=kind, compress_statistics=second, blocksize=block
    )
    layer = theirs.nn.Linear4bit(shape[1], shape[0], quant_type=kind, compute_dtype=torch.float32)
    layer.weight = weight.to("cpu")
    return dense, layer, {name: tensor.clone() for name, tensor in layer.state_dict().items()}


@pytest.mark.oracle
@pytest.mark.parametrize("second", [True, False])
def test_a_layer_that_bitsandbytes_wrote_has_its_weights_and_its_outputs(second: bool):
    dense, layer, tensors = written(second=second)
    assert is_quantised(tensors)
    ours = from_bitsandbytes(tensors)
    if second:
        bare = nn.Linear(128, 96, bias=False)
        bare.weight.data = dense
        assert torch.equal(ours.dense(), quantise(bare, "nf4").dense())
    x = torch.randn(4, 128)
    assert torch.equal(ours(x), layer(x))
    assert torch.equal(ours.bias, layer.bias)
    assert len(ours.state_dict()) == (5 if second else 3)


@pytest.mark.oracle
def test_levels_of_the_scales_that_are_not_the_usual_are_kept():
    *_, tensors = written()
    usual = from_bitsandbytes(tensors)
    tensors["weight.nested_quant_map"] = tensors["weight.nested_quant_map"] * 1.5
    ours = from_bitsandbytes(tensors)
    assert "levels" in ours.state_dict()
    assert "levels" not in usual.state_dict()
    assert not torch.equal(ours.dense(), usual.dense())


@pytest.mark.oracle
@pytest.mark.parametrize("how", [{"kind": "fp4"}, {"block": 128}])
def test_other_four_bits_are_refused(how: dict):
    *_, tensors = written(**how)
    with pytest.raises(CheckpointError, match="dequantize"):
        from_bitsandbytes(tensors)


@pytest.mark.oracle
def test_a_weight_without_its_state_is_refused():
    *_, tensors = written()
    del tensors["weight.quant_state.bitsandbytes__nf4"]
    with pytest.raises(CheckpointError, match="lacks"):
        from_bitsandbytes(tensors)


def test_a_layer_in_eight_bits_is_read_by_its_scales():
    weight = torch.randn(20, 30)
    code = int8.encode(weight)
    tensors: dict[str, Tensor] = {"weight": code.codes, "SCB": code.scales, "weight_format": torch.tensor(0)}
    assert is_quantised(tensors)
    assert not is_quantised({"weight": weight})
    ours = from_bitsandbytes(tensors)
    assert ours.kind == "int8"
    assert torch.equal(ours.dense(), int8.decode(code))


@pytest.mark.oracle
def test_every_layer_of_a_checkpoint_of_transformers_in_four_bits_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=61, num_key_value_heads=1, **shape)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=four, dtype=torch.float32, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "four")
    theirs.train()  # for evaluation it has products of lower precision
    stored = load_file(tmp_path / "four" / "model.safetensors")
    layers = {name.removesuffix(".weight.absmax") for name in stored if name.endswith(".weight.absmax")}
    assert len(layers) == 7
    for layer in layers:
        tensors = {
            name.removeprefix(f"{layer}."): each for name, each in stored.items() if name.startswith(f"{layer}.")
        }
        module, ours = theirs.get_submodule(layer), from_bitsandbytes(tensors)
        assert is_quantised(tensors)
        x = torch.randn(4, ours.in_features, requires_grad=True)
        assert torch.equal(ours(x), module(x))
