"""Prefix tuning against PEFT, and what is its own: where it starts, and the network that makes it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from switches import switched

from ludus.adapters import virtual
from ludus.adapters.prefix import prefix
from ludus.adapters.settings import PrefixSettings
from ludus.base.seeds import derive_seed
from ludus.generation.engine import Sampling, generate
from ludus.model import exchange

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers

ROW = torch.arange(24).view(2, 12)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def disturbed(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.virtual.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def theirs_of(model, folder):
    """Return the base of a model as transformers loads it, and write the adapter beside it as PEFT's files."""
    transformers = pytest.importorskip("transformers")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(virtual.config(model)))
    save_file(virtual.tensors(model), folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()


@pytest.mark.oracle
@pytest.mark.parametrize("projection", [0, 10])
@pytest.mark.parametrize("kind", ["llama plain", "gpt2 plain"])
@torch.no_grad()
def test_peft_loads_our_prefix_and_computes_and_says_the_same(tiny, tmp_path, kind: str, projection: int):
    peft = pytest.importorskip("peft")
    base = switched(tiny, kind)
    exchange.save(base, tmp_path / "model")
    model = disturbed(prefix(base, PrefixSettings(tokens=5, projection=projection), seed=0))
    theirs = peft.PeftModel.from_pretrained(theirs_of(model, tmp_path), tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(input_ids=ROW).logits, model(ROW), **CLOSE)
    assert not torch.allclose(switched(tiny, kind)(ROW), model(ROW), atol=1e-2)
    asked = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    ours = generate(model, asked, Sampling(max_new_tokens=8, temperature=0))
    longest = max(map(len, asked))
    rows = torch.tensor([[0] * (longest - len(tokens)) + tokens for tokens in asked])  # padded on the left
    mask = torch.tensor([[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in asked])
    told = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    said = theirs.generate(input_ids=rows, attention_mask=mask, **told)
    assert said[:, longest:].tolist() == [completion.tokens for completion in ours]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama plain", "gpt2 plain"])
@torch.no_grad()
def test_a_prefix_that_peft_saved_computes_the_same_here(tiny, tmp_path, kind: str):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = switched(tiny, kind)
    exchange.save(base, tmp_path / "model")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    model = virtual.load(base, said, load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    torch.testing.assert_close(model(ROW), theirs(input_ids=ROW).logits, **CLOSE)
    ours = virtual.config(model)
    assert {name: said[name] for name in ours if name not in {"encoder_hidden_size", "inference_mode"}} == {
        name: value for name, value in ours.items() if name not in {"encoder_hidden_size", "inference_mode"}
    }


@torch.no_grad()
def test_it_starts_as_the_keys_and_values_of_real_tokens(tiny):
    model = prefix(tiny(), PrefixSettings(tokens=6), seed=2)
    draw = torch.Generator().manual_seed(derive_seed(2, "prefix"))
    tokens = torch.randint(61, (1, 6), generator=draw).expand(2, -1)
    torch.testing.assert_close(model(ROW), tiny()(torch.cat((tokens, ROW), dim=1))[:, 6:], **CLOSE)


def test_a_network_changes_little_of_where_it_starts(tiny):
    table, start = (prefix(tiny(), PrefixSettings(tokens=6, projection=n), seed=2).virtual.table() for n in (9, 0))
    assert 0 < (table - start).norm() < 0.1 * start.norm()


@torch.no_grad()
def test_a_network_that_makes_it_is_folded_into_the_same_prefix(tiny):
    model = disturbed(prefix(tiny(), PrefixSettings(tokens=6, projection=9), seed=2))
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        f"virtual.{name}" for name in ("weight", "inner", "inner_bias", "outer", "outer_bias")
    }
    folded = virtual.load(tiny(), virtual.config(model), virtual.tensors(model))
    assert [name for name, value in folded.named_parameters() if value.requires_grad] == ["virtual.weight"]
    assert torch.equal(folded(ROW), model(ROW))


def test_no_drawing_disturbs_the_global_generator(tiny):
    torch.manual_seed(0)
    prefix(tiny(dropout=0.1).train(), PrefixSettings(tokens=6, projection=9), seed=2)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(after, torch.get_rng_state())
