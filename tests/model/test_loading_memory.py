"""How much memory a model takes on its way in and out: itself, and little more at any moment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ludus.model import stored
from ludus.model.exchange import save
from ludus.model.llama import places
from ludus.model.transformer import build

pytestmark = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's record of peaks")
SIZES = {"vocabulary": 6000, "layers": 4, "width": 512, "heads": 8, "kv_heads": 8, "head_dim": 64, "hidden": 1536}
GPT2 = {
    "layers": 8,
    "norm": "layer",
    "position": "learned",
    "activation": "gelu_tanh",
    "tied": True,
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
}
WATCHED = """
import json, os, sys, torch
from pathlib import Path
from ludus.model.exchange import load, save

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

def peak(work):
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    kept = work()
    return memory("VmHWM") - before, kept

class Eighth(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().to(torch.int8))

def measure(folder, dtype, kind):
    linear = {"eighth": lambda name, layer: Eighth(layer)}.get(kind)
    grown, model = peak(lambda: load(folder, getattr(torch, dtype), linear=linear))
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if model.shape.tied:
        size -= model.lm_head.weight.numel() * model.lm_head.weight.element_size()
    written = peak(lambda: save(model, folder + "-again", max_shard_bytes=1e8))[0] if kind == "save" else 0
    return {"size": size, "loading": grown, "saving": written}

small, *cases = sys.argv[1:]
for case in cases:
    save(load(small), small + "-again")  # whatever is imported once is by now
    if os.fork() == 0:  # each begins with the same, clean memory
        save(load(small), small + "-again")  # and touches its pages
        print(json.dumps({case: measure(*case.split(":"))}), flush=True)
        os._exit(0)
    os.wait()
"""
CASES = [f"{name}:float32:save" for name in ("single", "sharded", "pickle", "gpt2")]
CASES += ["sharded:bfloat16:", "sharded:float32:eighth"]


@pytest.fixture(scope="module")
def found(tiny, shape, tmp_path_factory) -> dict[str, dict[str, int]]:
    """Measure a model of 80 MB: in one file, in several, as a pickle, turned over; and converted on its way."""
    place = tmp_path_factory.mktemp("sizes")
    model = build(shape(**SIZES), seed=0)
    save(model, place / "single")
    save(model, place / "sharded", max_shard_bytes=2e7)
    save(build(shape(**SIZES | GPT2), seed=0), place / "gpt2")
    save(tiny(), place / "small")
    (place / "pickle").mkdir()
    (place / "pickle" / "config.json").write_text((place / "single" / "config.json").read_text())
    weights = {place.foreign: model.get_parameter(place.sources[0]).detach() for place in places(model.state_dict())}
    torch.save(weights, place / "pickle" / "pytorch_model.bin")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, "small", *CASES]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {case: figures for line in done.stdout.splitlines() for case, figures in json.loads(line).items()}


@pytest.mark.parametrize("name", ["single", "sharded", "pickle", "gpt2"])
def test_loading_takes_a_tenth_more_than_the_model_at_most_and_saving_a_few_layers(found, name: str):
    figures = found[f"{name}:float32:save"]
    assert figures["size"] > 5e7
    assert 0.9 * figures["size"] < figures["loading"] < 1.1 * figures["size"]
    assert figures["saving"] < 0.25 * figures["size"]  # a place or two; GPT-2's are turned over


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ""), ("float32", "eighth")])
def test_a_dtype_or_a_quantisation_applies_while_loading(found, dtype: str, kind: str):
    figures = found[f"sharded:{dtype}:{kind}"]
    layer = 4 * SIZES["hidden"] * SIZES["width"] if kind else 0
    assert 0.9 * figures["size"] < figures["loading"] < 1.1 * figures["size"] + layer + stored.PART_BYTES


def test_tensors_are_copied_in_parts_as_they_are_whole(monkeypatch):
    monkeypatch.setattr(stored, "PART_BYTES", 64)
    for rows, columns in ((7, 3), (1, 90), (40, 5)):
        whole = torch.randn(rows, columns)
        targets = [torch.zeros(part, columns) for part in (rows // 2, rows - rows // 2)]
        stored.spread(whole.clone(), targets)
        assert torch.equal(torch.cat(targets), whole)
        targets = [torch.zeros(part, rows) for part in (columns // 3, columns - columns // 3)]
        stored.spread(whole.clone(), targets, transposed=True)
        assert torch.equal(torch.cat(targets).T, whole)
