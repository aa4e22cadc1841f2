"""`ludus scaling`: a tiny ladder is run, fitted and kept; a larger run is foretold, made, and held against it."""

import json
import shutil

import pytest

from ludus.cli import scaling as verb
from ludus.cli.main import main
from ludus.planning import scaling_page

LADDER = ["scaling", "little.yaml", "model.width=16,32", "pretrain.steps=2,4,8", "pretrain.validate_every=8"]


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """Stand in a copy of the folder in which the recipe was run, without a browser."""
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(scaling_page, "to_png", lambda page, png, **more: png)
    return tmp_path / "here"


def told(capsys, *argv: str, code: int = 0) -> str:
    """Run a command line and return what it printed."""
    capsys.readouterr()
    assert main(list(argv)) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_a_ladder_is_climbed_fitted_and_foretells_a_run_that_is_then_checked(here, capsys):
    said = told(capsys, *LADDER, "predict=width=48,steps=12")
    assert "[6/6] width=32,steps=8" in said
    assert "fitted to 6 runs" in said
    folder = here / "runs" / "little-scaling"
    kept = json.loads((folder / "scaling.json").read_text())
    assert len(kept["runs"]) == 6
    assert (folder / "scaling.html").is_file()
    larger = folder / "width-48-steps-12"
    assert json.loads((larger / "prediction.json").read_text())["settings"] == [
        "pretrain.validate_every=8",
        "model.width=48",
        "pretrain.steps=12",
    ]
    [command] = [line.removeprefix("make it:").split() for line in said.splitlines() if line.startswith("make it:")]
    assert "has no validation loss yet" in told(capsys, "scaling", "--check", str(larger), code=2)
    assert main(command[1:]) == 0
    assert "the law of scale foretold a loss of" in told(capsys, "scaling", "--check", str(larger))
    assert "outcome" in json.loads((larger / "prediction.json").read_text())
    again = told(capsys, *LADDER, "--fit")
    assert "running" not in again
    assert "fitted to 6 runs" in again


def test_axes_that_are_left_out_come_from_the_recipe(here):
    axes, fixed = verb.ladder("little.yaml", ["model.depth=4", "pretrain.steps=100"])
    assert axes == {"model.depth": ["2", "3", "4"], "pretrain.steps": ["25", "50", "100"]}
    assert fixed == []
    assert verb.ladder("little.yaml", ["model.width=16,32,64"])[0].keys() == {"model.width", "pretrain.steps"}


def test_what_is_foretold_may_be_named_in_short():
    assert verb.prediction_words("depth=6,steps=2000,model.heads=4,seed=1") == [
        "model.depth=6",
        "pretrain.steps=2000",
        "model.heads=4",
        "seed=1",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["scaling"], "RECIPE is missing"),
        (["scaling", "little.yaml", "predict=6"], "predict=6: expected settings of the larger run"),
        (["scaling", "little.yaml", "predict=depht=6"], "depht: unknown key"),
        (["scaling", "--check", "runs/little"], "nothing was foretold of runs/little"),
        (["scaling", "little.yaml", "--fit"], "0 runs cannot tell five constants"),
    ],
)
def test_a_mistake_is_a_line(here, argv, message, capsys):
    said = told(capsys, *argv, code=2)
    assert said.startswith(f"ludus: {message}")
    assert said.count("\n") == 1
