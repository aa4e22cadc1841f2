"""Which stages run: none that is up to date, none that is not needed, and nothing that was made is ever lost."""

import json
import shutil
from pathlib import Path

import pytest

from ludus.base.config import resolve
from ludus.recipes import chain
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe

RUN = Path("runs/tiny")
PRESETS = Path(chain.__file__).parent / "presets"


def place(*overrides: str) -> Place:
    resolved = resolve(Recipe, recipe=None, presets=PRESETS, environment={}, overrides=overrides)
    return Place(resolved.settings, Path("runs/x"), resolved.origins)


def made(child) -> list[str]:
    """Return the stages that a command line made, those that were up to date left out."""
    assert child.wait() == 0, child.err
    titles = [line for line in child.out.splitlines() if line.startswith("[")]
    return [line.split()[1].rstrip(";") for line in titles if "up to date" not in line]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    unlike = ("run.json", "recipe.json", "report.html", ".lock")
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in unlike}


def test_stages_run_in_order_with_what_they_need():
    assert chain.chosen(place(), "pretrain") == ["corpus", "tokenizer", "pretrain"]
    assert chain.chosen(place(), "exercises") == ["corpus", "exercises"]
    everything = [
        "corpus",
        "tokenizer",
        "pretrain",
        "exercises",
        "sft",
        "dpo-control",
        "dpo",
        "grpo",
        "evaluate",
        "report",
    ]
    assert chain.chosen(place(), "run") == everything
    without_control = [name for name in everything if name != "dpo-control"]
    assert chain.chosen(place("dpo.control=false"), "run") == without_control


def test_a_stage_follows_the_one_before_it_in_the_recipe():
    short = place("stages=[sft, grpo]")
    assert short.before("grpo") == "sft"
    assert short.before("sft") == "pretrain"
    assert chain.chosen(short, "run") == ["corpus", "tokenizer", "pretrain", "exercises", "sft", "grpo"]


def test_a_stage_that_is_brought_everything_needs_no_other():
    assert chain.chosen(place("sft.base=a", "sft.data=b"), "sft") == ["sft"]
    assert chain.chosen(place("dpo.base=a", "dpo.data=b", "dpo.control=false"), "dpo") == ["dpo"]
    assert chain.chosen(place("sft.base=a"), "sft") == ["corpus", "exercises", "sft"]
    assert chain.chosen(place("sft.base=a", "sft.data=b", "sft.replay=1"), "sft") == ["corpus", "tokenizer", "sft"]


def test_what_is_up_to_date_is_not_touched(run, ludus):
    before = contents(run / RUN)
    assert made(ludus("run", "tiny.yaml", folder=run)) == ["report"]
    assert contents(run / RUN) == before


def test_a_run_may_be_moved(run, ludus):
    (run / RUN).rename(run / "elsewhere")
    assert made(ludus("run", "tiny.yaml", "--folder", "elsewhere", folder=run)) == ["report"]


def test_a_changed_setting_runs_its_stage_and_those_after_it(run, ludus):
    assert made(ludus("run", "tiny.yaml", "dpo.beta=0.2", folder=run)) == ["dpo", "grpo", "evaluate", "report"]
    assert made(ludus("run", "tiny.yaml", "dpo.beta=0.2", "evaluate.rows=3", folder=run)) == ["evaluate", "report"]


def test_a_changed_text_runs_everything(run, ludus):
    text = run / "text.txt"
    text.write_text(text.read_text() + "One more line of it.\n")
    assert made(ludus("pretrain", "tiny.yaml", folder=run)) == ["corpus", "tokenizer", "pretrain"]


def test_another_tokenizer_file_of_the_same_name_is_noticed(run, ludus):
    shutil.copytree(run / RUN / "tokenizer" / "tokenizer", run / "mine")
    command = ["tokenizer", "tiny.yaml", "tokenizer.path=mine"]
    assert made(ludus(*command, folder=run)) == ["tokenizer"]
    assert made(ludus(*command, folder=run)) == []
    definition = json.loads((run / "mine" / "tokenizer.json").read_text())
    (run / "mine" / "tokenizer.json").write_text(json.dumps(definition))
    (run / "mine" / "sha256.json").unlink()
    assert made(ludus(*command, folder=run)) == ["tokenizer"]


def test_what_was_made_otherwise_is_set_aside_and_taken_back_untouched(run, ludus):
    before = contents(run / RUN / "grpo")
    assert made(ludus("grpo", "tiny.yaml", "steps=2", folder=run)) == ["grpo"]
    assert made(ludus("grpo", "tiny.yaml", "steps=3", folder=run)) == ["grpo"]
    assert len(list((run / RUN / "replaced").iterdir())) == 2
    child = ludus("grpo", "tiny.yaml", folder=run)
    assert made(child) == []
    assert "grpo: up to date; taken back from runs/tiny/replaced/grpo-" in child.out
    assert contents(run / RUN / "grpo") == before


def test_what_failed_before_it_made_anything_leaves_nothing(run, ludus):
    assert ludus("sft", "tiny.yaml", "sft.adapter={kind: lora, targets: [nose]}", folder=run).wait() == 2
    assert made(ludus("run", "tiny.yaml", folder=run)) == ["report"]
    assert not any((run / RUN / "replaced").iterdir())


def test_a_result_that_was_tampered_with_is_made_again(run, ludus):
    questions = run / RUN / "exercises" / "questions"
    shutil.rmtree(questions)
    assert made(ludus("exercises", "tiny.yaml", folder=run)) == ["exercises"]
    assert made(ludus("run", "tiny.yaml", folder=run)) == ["report"]  # it came out as it was


def test_going_on_with_another_torch_is_said(run, ludus):
    stage = run / RUN / "grpo"
    shutil.rmtree(stage / "checkpoints" / "step-00000021")
    manifest = json.loads((stage / "manifest.json").read_text())
    environment = manifest["environment"] | {"torch": "1.0"}
    (stage / "manifest.json").write_text(json.dumps(manifest | {"status": "running", "environment": environment}))
    child = ludus("grpo", "tiny.yaml", folder=run)
    assert made(child) == ["grpo"]
    assert "  warning: begun with torch 1.0, now 2." in child.out
    assert "  resuming after step 18 of 21\n" in child.out


def test_the_control_of_dpo_is_trained_and_compared_with_what_dpo_started_from(run, ludus):
    child = ludus("run", "tiny.yaml", "dpo.control=true", folder=run)
    assert made(child) == ["dpo-control", "dpo", "evaluate", "report"]  # for grpo, dpo came out as it was
    assert child.out.count("reference log-probabilities: as computed before") == 2  # the run before had computed them
    results = json.loads((run / RUN / "evaluation" / "results.json").read_text())
    compared = {result["stage"]: result["comparison"] and result["comparison"]["with"] for result in results["stages"]}
    assert compared == {"pretrain": None, "sft": "pretrain", "dpo": "sft", "dpo-control": "sft", "grpo": "dpo"}


@pytest.fixture
def foreign(run: Path, ludus) -> Path:
    """Make a model with a tokenizer of its own, in another run."""
    shape = ["tokenizer.kind=bpe", "tokenizer.vocabulary=270", "pretrain.steps=2", "model.width=16", "model.heads=2"]
    child = ludus("pretrain", "tiny.yaml", "name=other", "data.context=96", *shape, folder=run)
    assert child.wait() == 0, child.err
    return run


def test_a_model_from_elsewhere_is_tuned_and_evaluated_in_its_own_tokens(foreign, ludus):
    shutil.rmtree(foreign / RUN)
    given = ["stages=[sft, dpo, grpo, evaluate]", "sft.base=runs/other", "sft.replay=0", "data.context=96"]
    given += [f"{stage}.steps=2" for stage in ("sft", "dpo", "grpo")]
    given += ["grpo.rollouts.max_new_tokens=4", "sft.turns=1", "dpo.turns=1", "grpo.turns=1"]
    child = ludus("run", "tiny.yaml", *given, folder=foreign)
    assert made(child) == ["corpus", "exercises", "sft", "dpo", "grpo", "evaluate"]
    theirs = (foreign / "runs/other/tokenizer/tokenizer/tokenizer.json").read_bytes()
    for stage in ("sft", "dpo", "grpo"):
        assert (foreign / RUN / stage / "model" / "tokenizer.json").read_bytes() == theirs
    results = json.loads((foreign / RUN / "evaluation" / "results.json").read_text())
    assert [result["stage"] for result in results["stages"]] == ["sft", "dpo", "grpo"]
    assert [result["comparison"] is None for result in results["stages"]] == [True, False, False]
    assert all(1 < result["bits_per_byte"] < 10 for result in results["stages"])


def test_models_of_different_tokenizers_are_compared_by_their_bits_for_the_same_bytes(foreign, ludus):
    child = ludus(
        "run", "tiny.yaml", "grpo.base=runs/other", "grpo.steps=1", "grpo.rollouts.max_new_tokens=4", folder=foreign
    )
    assert made(child) == ["grpo", "evaluate", "report"]
    results = json.loads((foreign / RUN / "evaluation" / "results.json").read_text())
    by_stage = {result["stage"]: result for result in results["stages"]}
    assert by_stage["grpo"]["comparison"] is None  # it did not start from dpo
    own = json.loads((foreign / RUN / "pretrain" / "metrics.jsonl").read_text().splitlines()[-1])["bits_per_byte"]
    assert by_stage["pretrain"]["bits_per_byte"] == pytest.approx(own, rel=1e-5)
    other = json.loads((foreign / "runs/other/pretrain/metrics.jsonl").read_text().splitlines()[-1])["bits_per_byte"]
    assert by_stage["grpo"]["bits_per_byte"] == pytest.approx(other, rel=0.2)


def test_sft_alone_with_a_model_and_conversations_of_ones_own(foreign, ludus):
    shutil.rmtree(foreign / RUN)
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    (foreign / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    child = ludus(
        "sft", "tiny.yaml", "sft.base=runs/other", "sft.data=chats.jsonl", "replay=0", "steps=1", folder=foreign
    )
    assert made(child) == ["sft"]
    assert sorted(path.name for path in (foreign / RUN).iterdir() if path.is_dir()) == ["sft"]
