import errno
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ludus.base.errors import DataError, DiskFull, RunError
from ludus.runs.metrics import MetricsLog, read

records = st.lists(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text())
)


@given(wanted=records)
def test_records_read_back_exactly(tmp_path_factory, wanted):
    log = MetricsLog(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    for record in wanted:
        log.append(record)
    assert repr(read(log.path)) == repr(wanted)


def test_a_record_is_seen_as_soon_as_it_is_appended(tmp_path):
    log = MetricsLog(tmp_path / "pretrain" / "metrics.jsonl")
    assert read(log.path) == []
    for step in range(3):
        log.append({"step": step, "loss": 1 / (step + 3)})
        log.sync()
        assert read(log.path)[-1] == {"step": step, "loss": 1 / (step + 3)}
    assert len(log.path.read_text().splitlines()) == 3


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b"\x00\x00\x00", b'{"step": 2}', b'{"text": "\xc3'])
def test_a_torn_last_line_is_not_read_and_not_built_upon(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    for step in range(2):
        MetricsLog(path).append({"step": step})
    with path.open("ab") as file:
        file.write(torn)
    assert read(path) == [{"step": 0}, {"step": 1}]
    MetricsLog(path).append({"step": 2, "again": True})
    assert read(path) == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]


def test_truncate_drops_the_steps_that_will_be_run_again(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.truncate(0) == 0
    log.append({"event": "start"})
    for step in range(10):
        log.append({"step": step, "loss": 1 / (step + 1)})
    before = log.path.read_bytes().splitlines(keepends=True)
    with log.path.open("ab") as file:
        file.write(b'{"step": 10, "lo')
    assert log.truncate(7) == 3
    assert log.path.read_bytes() == b"".join(before[:8])
    log.append({"step": 7})
    assert [record.get("step") for record in read(log.path)] == [None, *range(8)]
    assert MetricsLog(log.path).truncate(100) == 0
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize("damage", ["not json", "[1]", '{"step": 1}{"step": 2}', "", "\x00"])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + damage + '\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is damaged") as problem:
        read(path)
    assert "\n" not in str(problem.value)
    with pytest.raises(DataError):
        MetricsLog(path).truncate(0)


def test_a_log_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "pretrain").write_text("a file in place of the folder")
    with pytest.raises(RunError, match="cannot be written"):
        MetricsLog(tmp_path / "pretrain" / "metrics.jsonl").append({"step": 0})
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def test_a_full_disk_costs_the_record_and_nothing_else(tmp_path):
    mount = tmp_path / "tiny"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk of 64 kB")
    try:
        log, record = MetricsLog(mount / "metrics.jsonl"), {"text": "x" * 10_000}
        for _ in range(6):
            log.append(record)
        with pytest.raises(DiskFull, match="the disk is full"):
            log.append(record)
        assert read(log.path) == [record] * 6
        log.append({"short": True})
        assert read(log.path) == [*[record] * 6, {"short": True}]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_found_full_by_the_system_is_a_full_disk(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"the previous metrics\.jsonl is untouched"):
        log.truncate(0)
    assert read(log.path) == [{"step": 0}]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_writer_leaves_every_record_it_had_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(20):
        start = len(read(path))
        child = os.fork()
        if child == 0:
            try:
                log = MetricsLog(path)
                for step in range(start, start + 100_000):
                    log.append({"step": step, "text": "x" * 5000})
            finally:
                os._exit(1)
        try:
            while len(read(path)) == start:
                assert os.waitpid(child, os.WNOHANG) == (0, 0)
                time.sleep(0.001)
        finally:
            os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert [record["step"] for record in read(path)] == list(range(len(read(path))))
        MetricsLog(path).truncate(start + 1)
    assert len(read(path)) == 20
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 19
