"""`ludus merge`: an adapter and its base go in, a model with a certificate comes out, or nothing."""

import json
from pathlib import Path

import pytest
import torch

from ludus.adapters.apply import apply
from ludus.adapters.files import save
from ludus.adapters.quantised import quantise_model
from ludus.adapters.settings import DoraSettings, LoraSettings, PromptSettings
from ludus.adapters.whole import whole
from ludus.base.errors import CheckpointError, ConfigError, DataError, LudusError, RunError
from ludus.cli.merge import main
from ludus.model import exchange
from ludus.text.tokenizer import Tokenizer

ROW = torch.arange(40).view(2, 20)


def adapted(base: Path, settings, quantise: str = "none", also=()):
    model = exchange.load(base)
    if quantise != "none":
        quantise_model(model, quantise)  # type: ignore[arg-type]
    apply(model, settings, seed=0)
    whole(model, also)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    return model


@pytest.fixture
def stage(model, tmp_path, monkeypatch):
    """Make a stage's adapter: `stage(settings)` returns the trained model and the run's folder."""
    monkeypatch.chdir(tmp_path)

    def make(settings=LoraSettings(rank=4), **how):  # noqa: B008
        trained = adapted(model, settings, **how)
        save(trained, tmp_path / "runs" / "mine" / "sft" / "adapter", base=str(model))
        return trained, tmp_path / "runs" / "mine"

    return make


@torch.no_grad()
@pytest.mark.parametrize("settings", [LoraSettings(rank=4), DoraSettings(rank=4)])
@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_a_run_is_merged_and_says_how_well(model, stage, tmp_path, capsys, settings, quantise: str):
    trained, run = stage(settings, quantise=quantise)
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "mine-sft-merged" / "merge.json").read_text())
    assert found["base_quantised"] == quantise
    assert f"{found['largest_difference']:.2g} at most" in out
    assert found["adapter_sha256"].keys() == {"adapter_model.safetensors"}
    assert found["base_sha256"].keys() == {"model.safetensors"}
    again = exchange.load(tmp_path / "mine-sft-merged")
    torch.testing.assert_close(again(ROW), trained(ROW), rtol=1e-4, atol=1e-4)
    theirs, ours = (Tokenizer.load(folder) for folder in (model, tmp_path / "mine-sft-merged"))
    assert theirs.encode("Grüße") == ours.encode("Grüße")


@pytest.mark.oracle
def test_transformers_loads_what_was_merged_in_bfloat16(stage, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    _, run = stage(also=["lm_head"])
    (tmp_path / "text.txt").write_text("Grüße aus Köln. " * 60)
    argv = [str(run / "sft"), "--output", "out", "--dtype", "bfloat16", "--text", "text.txt"]
    assert main(argv) == 0
    found = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (found["dtype"], found["tokens"], found["kind"]) == ("bfloat16", 5 * 64, "lora and whole")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    again = exchange.load(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(theirs.float()(ROW).logits, again(ROW), rtol=1e-4, atol=1e-4)


def test_what_is_there_is_replaced_only_by_force(stage, tmp_path, capsys):
    _, run = stage()
    assert main([str(run)]) == 0
    with pytest.raises(RunError, match="already exists"):
        main([str(run)])
    assert main([str(run), "--force"]) == 0


def test_virtual_tokens_are_told_to_stay_a_folder(stage, tmp_path):
    _, run = stage(PromptSettings(tokens=3))
    with pytest.raises(ConfigError, match="cannot be merged"):
        main([str(run)])
    assert not (tmp_path / "mine-sft-merged").exists()


def test_a_wrong_merge_writes_nothing(stage, tmp_path, monkeypatch):
    from ludus.adapters.lora import Lora

    merged = Lora.merged
    _, run = stage()
    monkeypatch.setattr(Lora, "merged", lambda self: merged(self) * 1.01)
    with pytest.raises(CheckpointError, match="nothing was written"):
        main([str(run)])
    assert not (tmp_path / "mine-sft-merged").exists()


@pytest.mark.parametrize(
    ("argv", "error", "says"),
    [
        (["nowhere"], RunError, "nowhere does not exist"),
        (["runs/mine", "--base", "nowhere"], LudusError, "nowhere does not exist"),
        (["runs/mine", "--dtype", "float8"], ConfigError, "float32"),
        (["runs/mine", "--text", "nowhere.txt"], DataError, "cannot be read as text"),
        (["runs/mine", "--output", "runs/mine/sft/adapter"], RunError, "is the model itself"),
    ],
)
def test_a_mistake_is_one_line(stage, argv: list[str], error: type[LudusError], says: str):
    stage()
    with pytest.raises(error, match=says) as caught:
        main(argv)
    assert "\n" not in str(caught.value)
