"""Explain, resume and sweep, on one real run of a very small recipe."""

import json
import shlex
import shutil
import sys

import pytest

from ludus.base.files import read_json, write_json
from ludus.cli import cells as running
from ludus.cli.main import main
from ludus.runs.manifest import Manifest

SWEEP = ["sweep", "little.yaml", "pretrain.optimizer.learning_rate=0.01,0.02", "pretrain.steps=2"]


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """Stand in a copy of the folder in which the recipe was run."""
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("LUDUS__SEED", raising=False)
    return tmp_path / "here"


def told(capsys, *argv: str, code: int = 0) -> str:
    """Run a command line and return what it printed."""
    capsys.readouterr()
    assert main(list(argv)) == code
    out, err = capsys.readouterr()
    assert code == 0 or err.count("\n") >= 1
    return out if code == 0 else err


def test_explain_tells_the_ancestry_of_a_run_s_newest_model(here, capsys):
    said = told(capsys, "explain", "runs/little")
    stages = [line.partition(":")[0] for line in said.splitlines() if line and not line.startswith((" ", "to make"))]
    assert stages == ["corpus", "tokenizer", "pretrain"]
    assert "setting    model.depth = 1  (recipe little.yaml:8)" in said
    assert "by default or derived" in said
    model = read_json(here / "runs/little/pretrain/manifest.json")["outputs"]["model"]["sha256"]
    assert f"made       model: runs/little/pretrain/model  sha256 {model[:12]}\n" in said
    assert said.count("by         ludus run little.yaml") == 1  # told once, since it is the same for every stage
    assert said.endswith("to make runs/little/pretrain again:\n\n  ludus run little.yaml\n")


def test_explain_takes_a_stage_a_file_in_it_or_a_model(here, capsys):
    whole = told(capsys, "explain", "runs/little")
    for path in ("pretrain", "pretrain/model", "pretrain/model/config.json"):
        assert told(capsys, "explain", f"runs/little/{path}") == whole
    assert "pretrain" not in told(capsys, "explain", "runs/little/tokenizer/tokens")
    assert "runs/little" in told(capsys, "explain", str(here / "runs/little"))
    found = json.loads(told(capsys, "explain", "runs/little", "--json"))
    assert [manifest["stage"] for manifest in found] == ["corpus", "tokenizer", "pretrain"]


def test_explain_names_a_base_of_the_hub_by_its_commit(here, capsys):
    manifest = here / "runs/little/pretrain/manifest.json"
    content = read_json(manifest)
    commit = "0123456789" * 4
    place = here / "hub" / "models--somebody--small-model" / "snapshots" / commit
    place.mkdir(parents=True)
    content["inputs"]["base"] = {"path": str(place), "sha256": "ab" * 32}
    write_json(manifest, content)
    assert f"from       base: somebody/small-model@{commit}  sha256 {'ab' * 6}" in told(
        capsys, "explain", "runs/little"
    )


def test_explain_sees_what_was_changed_since(here, capsys):
    assert "CHANGED" not in told(capsys, "explain", "runs/little")
    (here / "runs/little/tokenizer/report.json").write_text("{}")
    shutil.rmtree(here / "runs/little/corpus/documents")
    said = told(capsys, "explain", "runs/little").splitlines()
    assert [line.split()[:2] for line in said if line.endswith("CHANGED OR GONE SINCE")] == [
        ["made", "documents:"],
        ["from", "documents:"],
        ["made", "report:"],
    ]


def test_the_command_that_makes_a_resumed_stage_again_is_the_one_the_run_was_begun_with(here, capsys):
    manifest = Manifest.read("runs/little/pretrain")
    manifest.command = ["ludus", "resume", "runs/little"]
    manifest.write()
    assert told(capsys, "explain", "runs/little").endswith("\n  ludus run little.yaml\n")
    recipe = read_json("runs/little/recipe.json")
    recipe["settings"]["pretrain"]["steps"] = 7  # now little.yaml no longer means what the run was made with
    write_json("runs/little/recipe.json", recipe)
    command = told(capsys, "explain", "runs/little").splitlines()[-1]
    words = shlex.split(command)
    assert words[:2] == ["ludus", "run"]
    assert words[-2:] == ["--folder", "runs/little"]
    assert "pretrain.steps=7" in words
    capsys.readouterr()
    assert main([*words[1:], "--print-config"]) == 0
    assert "pretrain.steps: 7 " in capsys.readouterr().out


def test_what_the_environment_had_set_is_part_of_the_command(here, capsys, monkeypatch):
    monkeypatch.setenv("LUDUS__SEED", "5")
    monkeypatch.setattr(sys, "argv", ["ludus", "corpus", "little.yaml", "name=other"])
    assert main(sys.argv[1:]) == 0
    said = told(capsys, "explain", "runs/other")
    assert "setting    seed = 5  (environment LUDUS__SEED)" in said
    assert said.endswith("\n  ludus corpus little.yaml name=other seed=5\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["explain", "runs/littel"], "runs/littel does not exist; did you mean runs/little?"),
        (["explain", "."], "nothing says how . was made: no manifest.json of a stage is in it or above it"),
        (["resume", "runs/littel"], "runs/littel does not exist; did you mean runs/little?"),
        (["resume", "runs"], "runs is not a run, it has no recipe.json; name a folder in runs/"),
        (
            ["resume", "runs/little", "seed=3"],
            "seed=3: a run is resumed as it was; `ludus run RECIPE seed=3` changes a",
        ),
        (["sweep"], "RECIPE is missing: ludus sweep RECIPE key=a,b,c"),
        (["sweep", "little.yaml"], "nothing to sweep"),
        (["sweep", "little.yaml", "model.depht=1,2"], "model.depht: unknown key"),
        (["sweep", "litle.yaml", "model.depth=1,2"], "recipe litle.yaml does not exist; did you mean little.yaml?"),
    ],
)
def test_a_mistake_is_a_line(here, argv, message, capsys):
    said = told(capsys, *argv, code=2)
    assert said.startswith(f"ludus: {message}")
    assert said.count("\n") == 1


def test_every_mistake_of_every_cell_is_told_once_and_before_anything_runs(here, capsys):
    said = told(capsys, "sweep", "little.yaml", "model.depth=1,x,0", "seed=-1", code=2)
    assert len(said.splitlines()) == 3
    assert not (here / "runs/little-sweep").exists()


def test_a_finished_run_has_nothing_to_resume(here, capsys):
    assert told(capsys, "resume", "runs/little") == "everything is up to date in runs/little\n"
    assert "did you mean" in told(capsys, "resume", "runs/little/pretrain", code=2)


def test_a_run_is_resumed_with_the_settings_it_was_begun_with(here, capsys, monkeypatch):
    before = read_json("runs/little/pretrain/manifest.json")
    shutil.rmtree("runs/little/pretrain")
    (here / "little.yaml").unlink()  # a run needs nothing but its folder to go on
    monkeypatch.setattr(sys, "argv", ["ludus", "resume", "runs/little"])
    said = told(capsys, "resume", "runs/little")
    assert said.startswith("left to do: pretrain\n")
    after = read_json("runs/little/pretrain/manifest.json")
    assert after["fingerprint"] == before["fingerprint"]
    assert after["outputs"] == before["outputs"]
    assert after["origins"] == before["origins"]


def test_a_run_of_a_verb_that_makes_nothing_is_refused(here, capsys):
    write_json("runs/little/run.json", read_json("runs/little/run.json") | {"verb": "chat"})
    assert "made with the verb 'chat', which makes no stages" in told(capsys, "resume", "runs/little", code=2)


def test_a_sweep_runs_each_cell_shares_what_it_can_and_ends_with_the_best_first(here, capsys, monkeypatch):
    said = told(capsys, *SWEEP)
    assert "[1/2] learning_rate=0.01: running\n" in said
    assert "[2/2] learning_rate=0.02: running, corpus, tokenizer shared\n" in said
    assert "; about " in said
    folder = here / "runs/little-sweep"
    assert (folder / "comparison.html").is_file()
    assert (folder / "learning_rate=0.02/report.html").is_file()
    assert "[3/4] pretrain" in (folder / "learning_rate=0.02/output.log").read_text()
    table = said.partition("loss (nats/token)")[2].splitlines()[1:3]
    losses = [float(line.split()[1]) for line in table]
    assert losses == sorted(losses)
    first = [Manifest.read(folder / f"learning_rate={rate}/pretrain").outputs for rate in ("0.01", "0.02")]
    assert first[0] != first[1]
    again = told(capsys, *SWEEP)
    assert again.count(": up to date, validation loss") == 2
    assert "running" not in again
    assert again.partition("\n\n")[2] == said.partition("\n\n")[2]
    cell = shlex.quote("runs/little-sweep/learning_rate=0.02")
    command = "ludus run little.yaml pretrain.steps=2 pretrain.optimizer.learning_rate=0.02"
    assert told(capsys, "explain", "runs/little-sweep/learning_rate=0.02").endswith(f"{command} --folder {cell}\n")


def test_a_cell_that_fails_does_not_keep_the_others_from_running(here, capsys):
    # The context of the second is too long for the validation text, or its model for its heads: here the latter.
    argv = ["sweep", "little.yaml", "model.heads=2,3", "stages=[corpus, tokenizer, pretrain]", "pretrain.steps=1"]
    assert main(argv) == 2
    said = capsys.readouterr().out
    assert "[1/2] heads=2: validation loss" in said
    assert "[2/2] heads=3: failed: model.width=16 over model.heads=3" in said
    assert said.endswith("failed, and not in the comparison: heads=3\n")


def test_a_sweep_that_is_interrupted_says_how_to_go_on(here, capsys, monkeypatch):
    def stop(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.chain, "run", stop)
    assert main(SWEEP) == 130
    assert capsys.readouterr().out.endswith("stopped; what was finished is kept\nrepeat the command to go on\n")
