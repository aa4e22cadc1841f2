import subprocess
import sys
import time
from pathlib import Path

import pytest

from ludus.base.errors import RunError
from ludus.base.files import folder_in_progress, read_json, write_json
from ludus.runs.artefacts import artefact
from ludus.runs.manifest import Manifest, fingerprint, lineage


def make(stage_folder: Path, inputs: dict[str, Path], *, depth: int = 4, content: str = "weights") -> Path:
    """Run a fake stage that makes one model folder; return that."""
    manifest = Manifest.begin(
        stage_folder, stage_folder.name, settings={"depth": depth}, inputs=inputs, command=["ludus", stage_folder.name]
    )
    with folder_in_progress(stage_folder / "model") as temp:
        (temp / "weights").write_text(content)
    manifest.finish({"model": stage_folder / "model"}, tokens=100, summary={"loss": 1.5})
    return stage_folder / "model"


@pytest.fixture
def three_stages(tmp_path) -> Path:
    """Make raw text, a run of pretrain → sft, and another run's dpo on both; return that last model."""
    (tmp_path / "raw.txt").write_text("once upon a time")
    base = make(tmp_path / "runs/demo/pretrain", {"text": tmp_path / "raw.txt"})
    tuned = make(tmp_path / "runs/demo/sft", {"model": base})
    return make(tmp_path / "runs/other/dpo", {"model": tuned, "reference": base})


def test_a_manifest_reads_back_as_it_was_written(three_stages):
    folder = three_stages.parent
    manifest = Manifest.read(folder)
    assert (manifest.stage, manifest.status, manifest.tokens) == ("dpo", "complete", 100)
    assert manifest.folder == folder
    assert manifest.summary == {"loss": 1.5}
    assert manifest.command == ["ludus", "dpo"]
    assert manifest.as_json() == read_json(folder / "manifest.json")
    assert set(manifest.as_json()) == {
        *("stage", "fingerprint", "status", "settings", "origins", "inputs", "outputs", "started", "wall_seconds"),
        *("cpu_seconds", "peak_memory_bytes", "tokens", "environment", "command", "summary"),
    }
    assert set(manifest.environment) == {"python", "torch", "platform", "cpu_count", "threads", "ludus"}
    assert manifest.environment["torch"].startswith("2.")


def test_lineage_runs_from_a_model_back_to_the_raw_text(three_stages, tmp_path):
    for path in (three_stages, three_stages / "weights", three_stages.parent):
        assert [manifest.stage for manifest in lineage(path)] == ["pretrain", "sft", "dpo"]
    assert lineage(three_stages)[0].inputs["text"]["path"] == str(tmp_path / "raw.txt")
    assert [manifest.stage for manifest in lineage(tmp_path / "runs/demo/sft")] == ["pretrain", "sft"]
    with pytest.raises(RunError, match=r"nothing says how .*raw\.txt was made") as problem:
        lineage(tmp_path / "raw.txt")
    assert "\n" not in str(problem.value)


def test_lineage_survives_moving_the_run(three_stages, tmp_path):
    (tmp_path / "runs/demo").rename(tmp_path / "archive")
    assert [manifest.stage for manifest in lineage(tmp_path / "archive/sft/model")] == ["pretrain", "sft"]
    assert Manifest.read(tmp_path / "archive/sft").inputs["model"]["path"] == "../pretrain/model"


def test_lineage_passes_by_manifests_of_another_kind_and_ends_in_a_circle(tmp_path):
    model = make(tmp_path / "run/pretrain", {})
    write_json(model / "manifest.json", {"shards": 3})
    tuned = make(tmp_path / "run/sft", {"model": model})
    make(tmp_path / "run/pretrain", {"model": tuned})
    assert [manifest.stage for manifest in lineage(tuned)] == ["pretrain", "sft"]


def test_the_fingerprint_tells_settings_and_inputs_but_not_places():
    inputs = {"text": {"path": "a.txt", "sha256": "1"}}
    moved = {"text": {"path": "b.txt", "sha256": "1"}}
    changed = {"text": {"path": "a.txt", "sha256": "2"}}
    first = fingerprint("sft", {"depth": 4, "rate": 0.1}, inputs)
    assert first == fingerprint("sft", {"rate": 0.1, "depth": 4}, moved)
    others = [
        fingerprint("dpo", {"depth": 4, "rate": 0.1}, inputs),
        fingerprint("sft", {"depth": 5, "rate": 0.1}, inputs),
        fingerprint("sft", {"depth": 4, "rate": 0.1}, changed),
    ]
    assert len({first, *others}) == 4


def test_a_stage_is_current_until_settings_inputs_or_outputs_change(three_stages, tmp_path):
    sft = Manifest.read(tmp_path / "runs/demo/sft")
    assert sft.is_current(sft.fingerprint)
    assert not sft.is_current(fingerprint("sft", {"depth": 5}, sft.inputs))
    make(tmp_path / "runs/demo/pretrain", {"text": tmp_path / "raw.txt"}, content="others")
    assert sft.changed(sft.inputs) == ["model"]
    (tmp_path / "runs/demo/sft/model").rename(tmp_path / "elsewhere")
    assert sft.changed(sft.outputs) == ["model"]
    assert not sft.is_current(sft.fingerprint)


def test_a_stage_begun_again_carries_its_cost_on(tmp_path):
    first = Manifest.begin(tmp_path, "sft", settings={"depth": 4})
    time.sleep(0.02)
    first.update(tokens=7)
    assert not first.is_current(first.fingerprint)
    assert first.wall_seconds >= 0.02
    assert first.peak_memory_bytes > 10**6
    again = Manifest.begin(tmp_path, "sft", settings={"depth": 4})
    assert again.tokens == 7
    again.finish({})
    assert again.wall_seconds >= first.wall_seconds
    assert again.cpu_seconds >= first.cpu_seconds
    assert (again.started, again.tokens) == (first.started, 7)
    new = Manifest.begin(tmp_path, "sft", settings={"depth": 4})
    assert (new.tokens, new.status) == (0, "running")
    new.update(tokens=7)
    other = Manifest.begin(tmp_path, "sft", settings={"depth": 5})
    assert other.tokens == 0


def test_a_missing_input_is_said_before_the_stage_begins(tmp_path):
    with pytest.raises(RunError, match=r"gone\.txt does not exist; make it first"):
        Manifest.begin(tmp_path / "sft", "sft", settings={}, inputs={"text": tmp_path / "gone.txt"})
    assert not (tmp_path / "sft").exists()
    with pytest.raises(RunError, match=r"manifest\.json does not exist"):
        Manifest.read(tmp_path)
    write_json(tmp_path / "manifest.json", {"stage": "sft"})
    with pytest.raises(RunError, match="is not the manifest of a stage"):
        Manifest.read(tmp_path)


def test_a_folder_without_checksums_is_named_by_all_its_files(tmp_path):
    folder = tmp_path / "texts" / "raw"
    folder.mkdir(parents=True)
    (folder / "a").write_text("a")
    first = artefact(folder, tmp_path / "run")
    (folder / "a").write_text("b")
    assert artefact(folder, tmp_path / "run")["sha256"] != first["sha256"]


def test_the_floors_below_do_not_import_torch():
    code = (
        "import sys, ludus.runs.folder, ludus.runs.manifest, ludus.runs.metrics, ludus.base.seeds; print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ludus.runs.manifest" in modules
    assert not {"torch", "numpy"} & set(modules)
