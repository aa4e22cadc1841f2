"""Adapters of every kind, on every family, in both directions between ludus and PEFT: the same logits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ludus.adapters.apply import apply
from ludus.adapters.files import load, save
from ludus.adapters.settings import (
    DoraSettings,
    Ia3Settings,
    LohaSettings,
    LoraSettings,
    PrefixSettings,
    PromptSettings,
    VeraSettings,
)
from ludus.adapters.whole import whole
from ludus.model import exchange

pytestmark = [
    pytest.mark.law,
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks transformers
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
]

ROW = torch.arange(40).view(2, 20)
OLD = {"norm": "layer", "mlp_bias": True, "activation": "gelu_tanh", "kv_heads": 4}
FAMILIES = {
    "llama": {},
    "tied": {"tied": True},
    "qwen3": {"qk_norm": "rms", "attention_bias": False},
    "gpt2": {**OLD, "position": "learned", "attention_bias": True, "output_bias": True, "tied": True},
    "gptj": {**OLD, "position": "rope_interleaved", "parallel": True, "head_bias": True, "rotary_dims": 4},
}
OURS = {
    "lora": LoraSettings(rank=4),
    "lora, some": LoraSettings(rank=3, alpha=4.5, dropout=0.1, targets=["q_proj", "1.mlp.down_proj"]),
    "rslora": LoraSettings(rank=4, rank_stabilised=True),
    "pissa": LoraSettings(rank=4, initialise="pissa"),
    "dora": DoraSettings(rank=4),
    "dora, some": DoraSettings(rank=3, targets=["k_proj", "up_proj"], rank_stabilised=True),
    "prefix": PrefixSettings(tokens=5),
    "prompt": PromptSettings(tokens=5),
    "vera": VeraSettings(rank=6),
    "vera, some": VeraSettings(rank=6, targets=["v_proj", "down_proj"], projection_seed=3),
    "loha": LohaSettings(rank=3),
    "ia3": Ia3Settings(),
    "ia3, outputs alone": Ia3Settings(targets=["q_proj", "up_proj"], feedforward=[]),
}
MATRIX = [(family, kind) for family in FAMILIES for kind in OURS if (family, kind) != ("gpt2", "loha")]  # PEFT has none


def moved(model, by: float = 0.05):
    """Let whatever learns say something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


def both_ways(ours, theirs) -> None:
    with torch.no_grad():
        found = theirs(ROW).logits[:, -ROW.shape[1] :]  # PEFT's have those of a prompt's tokens as well
        torch.testing.assert_close(ours(ROW), found, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def base(tiny: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a plain model of a family."""
    folder = tmp_path_factory.mktemp("bases")

    def make(family: str) -> Path:
        if not (folder / family).exists():
            exchange.save(tiny(**FAMILIES[family]), folder / family)
        return folder / family

    return make


def foreign(folder: Path):
    return pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("family", "kind"), MATRIX)
def test_peft_loads_what_was_trained_here(base, tiny, tmp_path, family: str, kind: str):
    peft = pytest.importorskip("peft")
    model = moved(apply(tiny(**FAMILIES[family]), OURS[kind], seed=0))
    save(model, tmp_path / "adapter", base=str(base(family)))
    theirs = peft.PeftModel.from_pretrained(foreign(base(family)), tmp_path / "adapter").eval()
    both_ways(model, theirs)
    assert not torch.allclose(model(ROW), tiny(**FAMILIES[family])(ROW), atol=1e-3)
    names = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False).keys()
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == names
    again = load(tiny(**FAMILIES[family]), tmp_path / "adapter")
    torch.testing.assert_close(again(ROW), model(ROW), rtol=1e-6, atol=1e-6)


def theirs_of(peft, kind: str, family: str):
    attention, inner = ("c_attn", "mlp.c_proj") if family == "gpt2" else ("v_proj", "down_proj")
    inner = "fc_out" if family == "gptj" else inner
    common = {"task_type": "CAUSAL_LM", "target_modules": [attention, inner]}
    return {
        "lora": peft.LoraConfig(r=5, lora_alpha=7, lora_dropout=0.2, **common),
        "all-linear": peft.LoraConfig(r=3, **{**common, "target_modules": "all-linear"}),
        "pattern": peft.LoraConfig(r=3, **{**common, "target_modules": rf".*\.1\..*{attention}"}),
        "layers": peft.LoraConfig(r=3, layers_to_transform=[1], **common),
        "excluded": peft.LoraConfig(r=3, exclude_modules=rf".*\.0\..*{attention}", **common),
        "ranks": peft.LoraConfig(r=3, rank_pattern={inner: 6}, alpha_pattern={rf"1\..*{attention}": 20}, **common),
        "rslora": peft.LoraConfig(r=4, use_rslora=True, init_lora_weights="gaussian", **common),
        "dora": peft.LoraConfig(r=4, use_dora=True, **common),
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "head": peft.LoraConfig(r=3, **{**common, "target_modules": [attention, "lm_head"]}),
        "vera": peft.VeraConfig(r=6, projection_prng_key=5, **common),
        "vera, not saved": peft.VeraConfig(r=6, save_projection=False, **common),
        "loha": peft.LoHaConfig(r=3, alpha=5, rank_pattern={inner: 2}, **common),
        "ia3": peft.IA3Config(feedforward_modules=[inner], **common),
        "norm": peft.LoraConfig(
            r=3, modules_to_save=["ln_f" if family in ("gpt2", "gptj") else "model.norm"], **common
        ),
        "whole head": peft.LoraConfig(r=3, modules_to_save=["lm_head"], **common),
        "whole both": peft.LoraConfig(
            r=3, modules_to_save=["lm_head", "wte" if family in ("gpt2", "gptj") else "embed_tokens"], **common
        ),
    }[kind]


THEIRS = (
    "lora",
    "all-linear",
    "pattern",
    "layers",
    "excluded",
    "ranks",
    "rslora",
    "dora",
    "prefix",
    "prompt",
    "head",
    "vera",
    "vera, not saved",
    "loha",
    "ia3",
    "norm",
    "whole head",
    "whole both",
)


@pytest.mark.filterwarnings("ignore:Specified to not save vera_A:UserWarning")
@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_peft_saved_computes_the_same_here(base, tmp_path, family: str, kind: str):
    peft = pytest.importorskip("peft")
    if (family, kind) == ("gpt2", "loha"):
        pytest.skip("PEFT has no LoHa for the layers of its GPT-2")
    theirs = moved(peft.get_peft_model(foreign(base(family)), theirs_of(peft, kind, family)).eval())
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load(exchange.load(base(family)), tmp_path / "adapter").eval()
    both_ways(ours, theirs)


@pytest.mark.parametrize("switches", [{"windows": (8, 8)}, {"attention_bias": True}], ids=["mistral", "qwen2"])
def test_relatives_of_llama_go_the_same_way(tiny, tmp_path, switches: dict):
    peft = pytest.importorskip("peft")
    exchange.save(tiny(**switches), tmp_path / "base")
    model = moved(apply(tiny(**switches), LoraSettings(rank=2), seed=0))
    save(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    both_ways(model, peft.PeftModel.from_pretrained(foreign(tmp_path / "base"), tmp_path / "adapter").eval())


@pytest.mark.parametrize("also", [["embed_tokens"], ["lm_head"], ["norm", "1.input_layernorm"], ["1.mlp.up_proj"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_modules_trained_whole_load_in_peft(base, tiny, tmp_path, family: str, also: list[str]):
    peft = pytest.importorskip("peft")
    model = apply(tiny(**FAMILIES[family]), LoraSettings(rank=2, targets=["q_proj"]), seed=0)
    moved(whole(model, also))
    save(model, tmp_path / "adapter", base=str(base(family)))
    theirs = peft.PeftModel.from_pretrained(foreign(base(family)), tmp_path / "adapter").eval()
    both_ways(model, theirs)
    again = load(tiny(**FAMILIES[family]), tmp_path / "adapter")
    assert torch.equal(again(ROW), model(ROW))
