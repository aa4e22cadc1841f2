"""The bench of adapters: every kind is tried and measured, nothing finished again, and a failure stops no other."""

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch

from ludus.adapters.apply import apply
from ludus.adapters.settings import LoraSettings, PromptSettings
from ludus.base.errors import ConfigError, LudusError
from ludus.evaluation.scatter import Spot, scatter
from ludus.recipes import peft_bench, peft_page, peft_results
from ludus.recipes.peft_bench import ALL, Bench, in_this_process, run, variants
from ludus.recipes.peft_measures import certificate

EXAMPLES = [(f"What comes after {number}?", f"{number + 1}.") for number in range(60)]


@pytest.fixture(scope="module")
def brought(tiny, tmp_path_factory):
    """Save a tiny model and data to tune it on."""
    from ludus.model import exchange
    from ludus.text.settings import TokenizerSettings
    from ludus.text.train import train

    folder = tmp_path_factory.mktemp("brought")
    tokenizer = train([f"{question} {answer}" for question, answer in EXAMPLES], TokenizerSettings(vocabulary=275))
    sizes = {"width": 64, "head_dim": 16, "hidden": 64, "context": 64}
    exchange.save(tiny(vocabulary=tokenizer.vocabulary_size, **sizes), folder / "model", tokenizer, {})
    rows = [json.dumps({"prompt": question, "completion": answer}) + "\n" for question, answer in EXAMPLES]
    (folder / "data.jsonl").write_text("".join(rows))
    (folder / "text.txt").write_text("\n\n".join(f"general text, paragraph {number}. " * 60 for number in range(4)))
    return folder


def bench_of(folder, output, **changes) -> Bench:
    facts = {"steps": 3, "rows": 1, "context": 48, "seeds": 2, "text": str(folder / "text.txt"), "bytes": 4_000}
    return Bench(str(folder / "model"), str(folder / "data.jsonl"), output, **{**facts, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def content(brought, tmp_path_factory):
    """Try every kind once."""
    return run(bench_of(brought, tmp_path_factory.mktemp("bench"), seeds=1, rank=4), in_this_process)


def test_every_kind_is_tried_and_measured(content):
    assert content["failed"] == {}
    assert [each["name"] for each in content["runs"]] == list(ALL)
    for each in content["runs"]:
        assert math.isfinite(each["loss"])
        assert each["loss"] > 0
        assert each["optimizer_bytes"] >= 2 * each["gradient_bytes"]
        assert each["cpu_seconds"] > 0
        assert each["forgetting"]["documents"] > 1
    trainable = {each["name"]: each["trainable"] for each in content["runs"]}
    assert trainable["full"] == content["bases"][0]["parameters"]
    assert trainable["lora"] == trainable["qlora"] == trainable["rslora"] == trainable["pissa"]
    assert trainable["dora"] > trainable["lora"] > trainable["ia3"]
    assert [base["name"] for base in content["bases"]] == ["base", "base on nf4"]


def test_a_merge_is_certified_or_said_to_be_impossible(content):
    merges = {each["name"]: each["merge"] for each in content["runs"]}
    assert merges["full"]["reason"] == "nothing to merge"
    for kind in ("prefix", "prompt"):
        assert merges[kind]["largest"] is None
        assert "cannot be merged" in merges[kind]["reason"]
    for kind in set(ALL) - {"full", "prefix", "prompt"}:
        assert merges[kind]["largest"] < 1e-4, kind


def test_all_kinds_see_the_same_examples_in_the_same_order(brought, tmp_path):
    """With a rate of nearly nothing, kinds that begin as the model itself all see the same losses."""
    kinds = ("full", "lora", "dora", "vera", "loha", "ia3")
    bench = bench_of(brought, tmp_path, seeds=1, kinds=kinds, rates=dict.fromkeys(kinds, 1e-12))
    found = run(bench, in_this_process)
    losses = [each["train_loss"] for each in found["runs"]]
    assert losses == pytest.approx([losses[0]] * len(kinds), rel=1e-5)
    assert found["runs"][0]["loss"] == pytest.approx(found["bases"][0]["loss"], rel=1e-5)
    assert found["runs"][0]["forgetting"]["difference"] == pytest.approx(0, abs=1e-5)


def test_what_is_finished_is_not_run_again(brought, tmp_path):
    tried = []

    def counting(job, folder, said):
        tried.append((job.name, job.seeds))
        in_this_process(job, folder, said)

    first = run(bench_of(brought, tmp_path, kinds=["lora", "ia3"], seeds=1), counting)
    assert tried == [("base", []), ("lora", [0]), ("ia3", [0])]
    tried.clear()
    again = run(bench_of(brought, tmp_path, kinds=["lora", "ia3"], seeds=2), counting)
    assert tried == [("lora", [1]), ("ia3", [1])]
    assert again["runs"][0] == first["runs"][0]
    tried.clear()
    other = run(bench_of(brought, tmp_path, kinds=["lora"], seeds=2, rates={"lora": 1e-3}), counting)
    assert tried == [("lora", [0, 1])]
    assert len(other["runs"]) == 2
    assert len(other["earlier"]) == 4, "what was made otherwise is kept apart"


def test_seeds_differ_and_are_repeatable(brought, tmp_path):
    found = [run(bench_of(brought, tmp_path / name, kinds=["lora"]), in_this_process) for name in "ab"]
    one, two = ([each["loss"] for each in content["runs"]] for content in found)
    assert one == two
    assert one[0] != one[1]


def test_a_failure_is_kept_and_stops_no_other(brought, tmp_path, capsys):
    def failing(job, folder, said):
        if job.name == "lora" or not job.seeds:
            in_this_process(job, folder, said)
        else:
            raise LudusError("no memory left")

    found = run(bench_of(brought, tmp_path, kinds=["ia3", "lora"], seeds=1), failing)
    assert found["failed"] == {"ia3": "no memory left"}
    assert [each["name"] for each in found["runs"]] == ["lora"]
    assert "ia3 failed: no memory left" in peft_results.table(found)
    assert "no memory left" in peft_page.render(found)
    repaired = run(bench_of(brought, tmp_path, kinds=["ia3", "lora"], seeds=1), in_this_process)
    assert repaired["failed"] == {}
    assert [each["name"] for each in repaired["runs"]] == ["ia3", "lora"]


def test_the_table_the_page_and_the_csv_show_every_kind(content):
    lines = peft_results.table(content)
    assert [line.split("  ")[0] for line in lines[1:]] == ["base", "base on nf4", *ALL]
    html = peft_page.render(content)
    assert html.count('class="plot"') == 2
    for kind in ALL:
        assert f">{kind}<" in html
    rows = peft_results.as_csv(content).splitlines()
    assert rows[0].startswith("name,kind,quantise,seed,rate,trainable,loss")
    assert len(rows) == 1 + len(ALL)


def test_a_kind_on_a_quantised_base_has_a_name_of_its_own(capsys):
    found = variants(["lora", "dora", "full", "qlora"], ["none", "nf4"])
    assert [each.name for each in found] == ["lora", "qlora", "dora", "dora on nf4", "full"]
    assert "full is left out on nf4" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no kind dorra; did you mean dora"):
        variants(["dorra"], ["none"])


def test_an_interval_over_seeds_is_students():
    found = peft_results.mean([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.high == pytest.approx(2 + 4.303 / 3**0.5)
    assert peft_results.mean([1.0]).half is None
    many = peft_results.mean([float(number % 2) for number in range(31)])
    assert many.half == pytest.approx(2.0423 * 0.50801 / 31**0.5, rel=1e-3)


def test_a_certificate_would_show_a_merge_that_is_wrong(tiny, monkeypatch):
    from ludus.adapters.lora import Lora

    tokens = torch.arange(20).numpy()
    examples = [(tokens, (tokens > 3).astype("float32"))]

    def adapted():
        model = apply(tiny(), LoraSettings(rank=3, alpha=6.0), seed=0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        return model

    right = certificate(adapted(), examples)["largest"]
    assert 0 < right < 1e-4, "the formula and the merged weight do not round alike"
    merged = Lora.merged
    monkeypatch.setattr(Lora, "merged", lambda self: merged(self) + 1e-3)
    assert certificate(adapted(), examples)["largest"] > 1e-3
    virtual = apply(tiny(), PromptSettings(tokens=2), seed=0)
    assert "cannot be merged" in certificate(virtual, examples)["reason"]


def test_names_in_a_plot_do_not_cover_each_other():
    spots = [Spot(f"kind{number}", 1000.0, 1 + number / 1e4, 0.9, 1.1) for number in range(6)]
    html = str(scatter("Loss", [*spots, Spot("other", 1e6, 2.0), Spot("lost", 10.0, math.nan)], base=("base", 3.0)))
    assert html.count('class="name') == 7
    tops = [
        float(part.split("top:")[1].split("%")[0]) for part in html.split("<span")[1:] if 'class="name' in part[:20]
    ]
    ordered = sorted(tops[:6])
    assert all(later - earlier > 4 for earlier, later in pairwise(ordered))
    assert scatter("Nothing", [Spot("lost", 1.0, math.inf)]) is None


def test_the_verb_tries_in_processes_of_their_own(brought, tmp_path, capsys, monkeypatch):
    from ludus.cli.peft import main

    shutil.copytree(brought, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    words = ["bench", "model", "data.jsonl", "--kinds", "lora", "--seeds", "1", "--steps", "2", "--rows", "1"]
    words += ["--context", "48", "--text", "text.txt", "--bytes", "2000", "--threads", "1", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "lora" in said
    assert (tmp_path / "here" / "runs" / "peft-model" / "bench.html").is_file()
    [found] = json.loads((tmp_path / "here" / "runs" / "peft-model" / "bench.json").read_text())["runs"]
    assert found["peak_bytes"] > 0


def test_the_verb_says_what_it_does_not_understand(capsys):
    from ludus.cli.peft import main

    for words, message in [
        (["benhc"], "did you mean bench"),
        (["bench", "model", "data", "--learning-rates", "lora"], "expected KIND=RATE"),
        (["bench", "model", "data", "--quantise", "fp4"], "known are none, nf4, int8"),
    ]:
        with pytest.raises(ConfigError, match=message):
            main(words)
    assert main(["--help"]) == 0
    assert peft_bench.RESULTS in capsys.readouterr().out
