"""`ludus plan`: everything said before a run, with nothing built; the first question answered; mistakes in a line."""

import json
import shutil

import pytest

from ludus.cli import plan as verb
from ludus.cli.main import main

ADVISE = ["plan", "--advise", "text=200MB", "budget=50", "device=rtx4090"]


@pytest.fixture
def here(tmp_path, monkeypatch, little):
    """Stand in an empty folder with a cache of its own and no recipe but a little one."""
    (tmp_path / "little.yaml").write_text(little)
    (tmp_path / "text.txt").write_text("the number 1 comes after 0.\n\n" * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def told(capsys, *argv: str, code: int = 0) -> str:
    """Run a command line and return what it printed."""
    capsys.readouterr()
    assert main(list(argv)) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_a_plan_is_made_with_nothing_built(here, capsys):
    said = told(capsys, "plan", "little.yaml", "device=rtx4090", "price=2")
    for section in ("model", "tokens", "memory at the peak", "time (calculated", "largest micro-batch"):
        assert f"\n{section}" in said
    assert "at $2 an hour" in said
    assert "estimated from 0.0 MB (1 files)" in said
    assert not (here / "runs").exists()


def test_a_plan_as_json_has_every_figure_and_its_origin(here, capsys):
    found = json.loads(told(capsys, "plan", "little.yaml", "device=a100-80", "--json", "rows=4"))
    assert found["parameters"]["total"] == sum(v for k, v in found["parameters"].items() if k != "total")
    assert found["tokens"]["trained"] == 3 * 4 * 16
    assert found["memory"]["total"] == sum(found["memory"]["parts"].values())
    assert found["rows"]["chosen"] == 4
    assert found["rows"]["rows"] > 1000
    assert found["advice"] == []
    assert found["tokens"]["verdict"]


def test_this_machine_is_measured_once(here, capsys):
    said = told(capsys, "plan", "little.yaml")
    assert "measuring 1 of 1 layers, 2 rows, in a process of its own" in said
    assert "time (measured)" in said
    again = told(capsys, "plan", "little.yaml")
    assert "measuring" not in again
    assert "time (measured)" in again
    assert "calculated" in told(capsys, "plan", "little.yaml", "--quick")


def test_what_does_not_fit_comes_with_what_to_change(here, capsys, monkeypatch):
    monkeypatch.setattr(verb, "PRELOAD", ())
    said = told(capsys, "plan", "little.yaml", "device=laptop-4", "data.context=64", "rows=400000")
    assert "IT DOES NOT FIT" in said
    assert "  1. pretrain.rows=" in said
    assert "the same gradient" in said


def test_a_tuning_is_planned_by_its_parts(here, capsys):
    argv = ["plan", "qlora-instruct", "model.size=1B", "data.context=128", "device=rtx4090"]
    said = told(capsys, *argv)
    for part in ("frozen weights, quantised", "adapter  ", "optimizer: exp avg sq", "trained  ", "merging the adapter"):
        assert part in said
    assert "sft.steps=400 stand for sft.epochs=3" in said
    found = json.loads(told(capsys, *argv, "--json", "adapter.rank=4"))
    assert found["stage"] == "sft"
    assert found["trained"] == found["memory"]["parts"]["adapter"] / 4
    assert found["tuning"]["adapter"]["rank"] == 4
    assert found["tuning"]["quantise"] == "nf4"
    assert found["memory"]["merging"] > 4 * found["parameters"]["total"]


def test_the_first_question_is_answered_with_reasons(capsys):
    said = told(capsys, *ADVISE, "goal=chat about our manuals")
    assert said.startswith("advice: fine-tune\n  fine-tune a base of 8B with LoRA")
    assert "  6. " in said
    found = json.loads(told(capsys, *ADVISE, "--json"))
    assert found["verdict"] == "fine-tune"
    assert set(found["memory"]["8B"]) == {"all weights", "LoRA", "QLoRA"}


def test_a_run_is_planned_by_its_folder(finished, capsys, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    found = json.loads(told(capsys, "plan", "runs/little", "device=t4", "--json"))
    assert found["tokens"]["origin"] == "counted"
    assert found["precision"] == "float32"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan", "little.yaml", "device=rtx4091"], "device=rtx4091: unknown; did you mean rtx4090?"),
        (["plan", "little.yaml", "text=lots"], "text=lots: expected an amount above 0"),
        (["plan", "little.yaml", "budget=3"], "budget= is for the first question; add --advise"),
        (["plan", "--advise"], "text= is missing"),
        (["plan", "litle.yaml"], "recipe litle.yaml does not exist; did you mean little.yaml?"),
        (["plan", "little.yaml", "model.depht=3"], "model.depht: unknown key"),
        (["plan", "qlora-instruct"], "the plan of a fine-tuning needs a model: model=FOLDER"),
        (["plan", "qlora-instruct", "model=nobody/nothing-at-all"], "nobody/nothing-at-all"),
        (["plan", "little.yaml", "--quik"], "unknown option --quik; did you mean --quick?"),
    ],
)
def test_a_mistake_is_a_line(here, argv, message, capsys):
    said = told(capsys, *argv, code=2)
    assert said.startswith(f"ludus: {message}")
    assert said.count("\n") == 1


def test_help_lists_the_devices(capsys):
    said = told(capsys, "plan", "--help")
    assert "rtx4090, rtx5090" in said
    assert "--advise" in said
