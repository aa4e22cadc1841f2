import errno
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from ludus.base.errors import RunError
from ludus.base.files import read_json
from ludus.runs.folder import find_model, hold

HOLDER = """
import os, sys, time
from ludus.runs.folder import hold
with hold(sys.argv[1]):
    if "--fork" in sys.argv and os.fork() == 0:  # a worker that outlives its parent
        os.write(1, b"worker %d\\n" % os.getpid())
        time.sleep(20)
        os._exit(0)
    os.write(1, b"held\\n")
    time.sleep(20)
"""


@contextmanager
def another_process_holding(path: Path, *options: str):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *options], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen, count: int = 1) -> list[str]:
    return sorted(process.stdout.readline().decode().strip() for _ in range(count))


def model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_held_folder_is_made_and_gives_the_stages_theirs(tmp_path):
    with hold(tmp_path / "runs" / "demo") as run:
        assert run.stage("sft") == run.path / "sft"
        assert run.stage("sft").is_dir()
        run.describe("tiny", ["pretrain", "sft"], seed=1)
    assert read_json(tmp_path / "runs/demo/run.json") == {"recipe": "tiny", "stages": ["pretrain", "sft"], "seed": 1}
    with hold(tmp_path / "runs" / "demo"):
        pass


def test_a_folder_held_by_another_process_is_refused_by_its_number(tmp_path):
    with another_process_holding(tmp_path / "demo") as other:
        assert said(other) == ["held"]
        for _ in range(2):
            with pytest.raises(RunError) as problem, hold(tmp_path / "demo"):
                raise AssertionError("two processes hold one run")
            assert str(problem.value) == f"{tmp_path / 'demo'} is in use by process {other.pid}; wait for it or stop it"


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with another_process_holding(tmp_path / "demo") as other:
        assert said(other) == ["held"]
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / "demo" / ".lock").read_text() == str(other.pid)
        with hold(tmp_path / "demo"):
            assert (tmp_path / "demo" / ".lock").read_text() == str(os.getpid())


def test_a_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    with another_process_holding(tmp_path / "demo", "--fork") as other:
        held, worker = said(other, 2)
        assert held == "held"
        try:
            other.send_signal(signal.SIGKILL)
            other.wait()
            with hold(tmp_path / "demo"):
                pass
        finally:
            os.kill(int(worker.split()[1]), signal.SIGKILL)


def test_a_folder_is_held_once_in_one_process_too_and_freed_after_an_error(tmp_path):
    with hold(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()}"), hold(tmp_path):
        pass
    with pytest.raises(ValueError, match="ours"), hold(tmp_path):
        raise ValueError("ours")
    with hold(tmp_path):
        pass


def test_what_killed_writers_left_is_swept_when_a_run_is_held(tmp_path):
    (tmp_path / "sft" / ".model.0a1b2c3d.partial").mkdir(parents=True)
    (tmp_path / ".run.json.0a1b2c3d.partial").write_text("{")
    with hold(tmp_path):
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "sft"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "demo"):
        with pytest.raises(RunError, match="cannot be written") as problem, hold(path):
            raise AssertionError("the work must not start")
        assert "\n" not in str(problem.value)

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(RunError, match="demo cannot be written: Read-only file system"), hold(tmp_path / "demo"):
        raise AssertionError("the work must not start")


@pytest.fixture
def ordinary_user():
    """Give up root's right to write anywhere, if we are root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_folder_without_permission_is_refused(ordinary_user):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        for path in (Path(folder), Path(folder) / "demo"):
            with pytest.raises(RunError, match="cannot be written: Permission denied"), hold(path):
                raise AssertionError("the work must not start")
        os.chmod(folder, 0o700)


def test_a_model_is_found_by_its_folder_its_stage_or_its_run(tmp_path):
    run = tmp_path / "demo"
    base, tuned = model(run / "pretrain" / "model"), model(run / "sft" / "model")
    (run / "dpo" / "checkpoints").mkdir(parents=True)
    with hold(run) as folder:
        folder.describe("tiny", ["pretrain", "exercises", "sft", "dpo"])
    assert find_model(base) == base
    assert find_model(run / "pretrain") == base
    assert find_model(run) == tuned
    with hold(run) as folder:
        folder.describe("tiny", ["sft", "pretrain"])
    assert find_model(str(run)) == base


def test_without_run_json_the_newest_model_is_meant(tmp_path):
    first, second = model(tmp_path / "a" / "model"), model(tmp_path / "b" / "model")
    os.utime(second / "config.json", (1, 1))
    assert find_model(tmp_path) == first


def test_an_adapter_in_the_place_of_a_stage_s_model_is_the_model(tmp_path):
    model(tmp_path / "pretrain" / "model")
    tuned = tmp_path / "sft" / "model"
    tuned.mkdir(parents=True)
    (tuned / "adapter_config.json").write_text("{}")
    (tmp_path / "run.json").write_text('{"stages": ["pretrain", "sft"]}')
    assert find_model(tmp_path) == find_model(tmp_path / "sft") == find_model(tuned) == tuned


def test_a_model_that_is_not_there_gets_advice(tmp_path):
    (tmp_path / "demo").mkdir()
    with pytest.raises(RunError, match=r"demo holds no model yet.*train one first"):
        find_model(tmp_path / "demo")
    with pytest.raises(RunError, match=r"dmeo does not exist; did you mean .*/demo\?"):
        find_model(tmp_path / "dmeo")
    with pytest.raises(RunError, match=r"far/away does not exist$"):
        find_model(tmp_path / "far" / "away")
    for content in ("[]", '{"stages": 3}', "{"):
        (tmp_path / "demo" / "run.json").write_text(content)
        with pytest.raises(RunError, match=r"run\.json"):
            find_model(tmp_path / "demo")
