"""Prompt tuning against PEFT, and the words it starts as."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from switches import switched

from ludus.adapters import virtual
from ludus.adapters.prompt import prompt
from ludus.adapters.settings import PromptSettings
from ludus.base.errors import ConfigError
from ludus.generation.engine import Sampling, generate
from ludus.model import exchange

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers

ROW = torch.arange(24).view(2, 12)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("kind", ["llama plain", "gpt2 plain"])
@torch.no_grad()
def test_peft_loads_our_prompt_and_computes_and_says_the_same(tiny, tmp_path, kind: str):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = switched(tiny, kind)
    exchange.save(base, tmp_path / "model")
    model = prompt(base, PromptSettings(tokens=5), seed=0)
    model.virtual.weight.add_(torch.randn(5, 32, generator=torch.Generator().manual_seed(1)))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(virtual.config(model)))
    save_file(virtual.tensors(model), tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(input_ids=ROW).logits[:, 5:], model(ROW), **CLOSE)
    assert not torch.allclose(switched(tiny, kind)(ROW), model(ROW), atol=1e-2)
    asked = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    ours = generate(model, asked, Sampling(max_new_tokens=8, temperature=0))
    for tokens, completion in zip(asked, ours, strict=True):
        text = torch.tensor([tokens])
        said = theirs.generate(
            input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=8, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        assert said[0].tolist()[-8:] == completion.tokens


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama plain", "gpt2 plain"])
@torch.no_grad()
def test_a_prompt_that_peft_saved_computes_the_same_here(tiny, tmp_path, kind: str):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = switched(tiny, kind)
    exchange.save(base, tmp_path / "model")
    for config in (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
    ):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        theirs = peft.get_peft_model(theirs, config).eval()
        theirs.save_pretrained(tmp_path / "adapter")
        said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        model = virtual.load(base, said, load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
        torch.testing.assert_close(model(ROW), theirs(input_ids=ROW).logits[:, 4:], **CLOSE)
        ours = {name: value for name, value in virtual.config(model).items() if name in said}
        ours |= {"peft_type": said["peft_type"], "inference_mode": said["inference_mode"]}
        assert {name: said[name] for name in ours} == ours
        virtual.remove(model)


@pytest.mark.parametrize(("words", "expected"), [([7, 8], [7, 8, 7, 8, 7]), (range(20, 40), [20, 21, 22, 23, 24])])
@torch.no_grad()
def test_it_starts_as_the_words_of_a_text_repeated_or_cut(tiny, words, expected):
    model = prompt(tiny(), PromptSettings(tokens=5), seed=0, tokens=list(words))
    before = torch.tensor([expected]).expand(2, -1)
    torch.testing.assert_close(model(ROW), tiny()(torch.cat((before, ROW), dim=1))[:, 5:], **CLOSE)


def test_it_starts_as_tokens_drawn_from_the_seed(tiny):
    one, same, other = (prompt(tiny(), PromptSettings(tokens=5), seed=seed).virtual.weight for seed in (0, 0, 1))
    words = tiny().embed_tokens.weight
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert all((words == row).all(dim=1).any() for row in one)


def test_a_text_without_words_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"adapter\.text is empty"):
        prompt(tiny(), PromptSettings(tokens=5), seed=0, tokens=[])
