import errno
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base import files
from ludus.base.errors import CheckpointError, DataError, DiskFull, RunError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def fill(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(problem: pytest.ExceptionInfo) -> str:
    message = str(problem.value)
    assert "\n" not in message
    return message


def refuse(monkeypatch, number: int, *, after: int = 0) -> None:
    """Make fsync, the last moment before a rename, fail as a full or forbidden disk does."""
    calls, sync = iter(range(10**6)), os.fsync

    def failing(descriptor):
        if next(calls) >= after:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", failing)


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "er" / "note.txt"
    files.atomic_write(path, "schön\n")
    files.atomic_write(path, b"second")
    assert path.read_bytes() == b"second"
    assert listing(path.parent) == ["note.txt"]


def test_a_written_file_has_ordinary_permissions(tmp_path):
    files.atomic_write(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "the disk is full"),
        (errno.EDQUOT, DiskFull, "the disk is full"),
        (errno.EACCES, RunError, "Permission denied"),
        (errno.EROFS, RunError, "Read-only file system"),
    ],
)
def test_a_refusing_disk_leaves_the_previous_file_and_says_why(tmp_path, monkeypatch, number, kind, words):
    path = tmp_path / "note.txt"
    files.atomic_write(path, "first")
    refuse(monkeypatch, number)
    with pytest.raises(kind) as problem:
        files.atomic_write(path, "second")
    assert words in one_line(problem)
    assert str(path) in one_line(problem)
    assert path.read_text() == "first"
    assert listing(tmp_path) == ["note.txt"]


def test_a_file_in_place_of_a_folder_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "taken").write_text("I am a file")
    with pytest.raises(RunError) as problem:
        files.atomic_write(tmp_path / "taken" / "note.txt", "x")
    assert "taken" in one_line(problem)
    with pytest.raises(RunError), files.folder_in_progress(tmp_path / "taken"):
        raise AssertionError("the work must not start")
    assert (tmp_path / "taken").read_text() == "I am a file"


@settings(max_examples=50)
@given(value=json_values)
def test_json_reads_back_exactly(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


def test_floats_and_lone_surrogates_survive_json(tmp_path):
    value = {"third": 1 / 3, "tiny": 5e-324, "negative zero": -0.0, "lost": "\ud800", "end": float("inf")}
    files.write_json(tmp_path / "value.json", value)
    assert repr(files.read_json(tmp_path / "value.json")) == repr(value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"", b"[" * 100_000])
def test_unreadable_json_is_the_error_asked_for_in_one_line(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as problem:
        files.read_json(path)
    assert "bad.json is not valid JSON" in one_line(problem)
    with pytest.raises(CheckpointError):
        files.read_json(path, CheckpointError)


def test_missing_json_says_so(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json does not exist"):
        files.read_json(tmp_path / "gone.json")
    with pytest.raises(DataError, match="cannot be read"):
        files.read_json(tmp_path)


def test_hashes_agree_with_hashlib(tmp_path):
    (tmp_path / "data").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert files.sha256_file(tmp_path / "data") == files.sha256_text("abc") == expected
    assert files.sha256_json({"b": 1, "a": [2]}) == files.sha256_json({"a": [2], "b": 1})
    assert files.sha256_json(1) != files.sha256_json(1.0) != files.sha256_json("1")


def test_a_folder_appears_whole_with_checksums(tmp_path):
    target = tmp_path / "runs" / "model"
    with files.folder_in_progress(target) as temp:
        fill(temp, weights="1", config="2")
        (temp / "inner").mkdir()
        fill(temp / "inner", more="3")
        assert not target.exists()
    assert listing(target) == ["config", "inner", "sha256.json", "weights"]
    assert set(json.loads((target / "sha256.json").read_text())) == {"config", "inner/more", "weights"}
    assert listing(target.parent) == ["model"]
    files.verify_folder(target)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for text in ("old", "new"):
        with files.folder_in_progress(tmp_path / "model") as temp:
            fill(temp, **{text: text})
    assert listing(tmp_path / "model") == ["new", "sha256.json"]
    assert listing(tmp_path) == ["model"]


def test_a_replacement_cut_in_two_is_undone_by_the_next_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    with files.folder_in_progress(tmp_path / "model") as temp:
        fill(temp, weights="old")
    (tmp_path / "model").rename(tmp_path / ".model.0a1b2c3d.replaced")
    with pytest.raises(KeyboardInterrupt), files.folder_in_progress(tmp_path / "model"):
        raise KeyboardInterrupt
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert listing(tmp_path) == ["model"]


@pytest.mark.parametrize("problem", [ValueError("ours"), KeyboardInterrupt(), OSError(errno.ENOENT, "an input")])
def test_a_failure_inside_leaves_the_target_untouched_and_passes_through(tmp_path, problem):
    with files.folder_in_progress(tmp_path / "model") as temp:
        fill(temp, weights="old")

    def fail(temp: Path) -> None:
        fill(temp, weights="new")
        raise problem

    with pytest.raises(type(problem)), files.folder_in_progress(tmp_path / "model") as temp:
        fail(temp)
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert listing(tmp_path) == ["model"]


@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EACCES, RunError)])
def test_a_refusing_disk_leaves_the_previous_folder(tmp_path, monkeypatch, number, kind, after):
    with files.folder_in_progress(tmp_path / "model") as temp:
        fill(temp, weights="old")
    refuse(monkeypatch, number, after=after)
    with pytest.raises(kind) as problem, files.folder_in_progress(tmp_path / "model") as temp:
        fill(temp, weights="new")
    assert ("the previous model is untouched" in one_line(problem)) == (kind is DiskFull)
    monkeypatch.undo()
    files.verify_folder(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert listing(tmp_path) == ["model"]


def test_verify_names_the_damaged_and_the_missing_file(tmp_path):
    with files.folder_in_progress(tmp_path / "model") as temp:
        fill(temp, first="1", second="2")
    fill(tmp_path / "model", added="by the user, not ours to judge")
    files.verify_folder(tmp_path / "model")
    fill(tmp_path / "model", first="!")
    with pytest.raises(CheckpointError, match="first is damaged"):
        files.verify_folder(tmp_path / "model")
    (tmp_path / "model" / "first").unlink()
    with pytest.raises(CheckpointError, match="first is missing"):
        files.verify_folder(tmp_path / "model")
    (tmp_path / "model" / "sha256.json").unlink()
    with pytest.raises(CheckpointError, match=r"sha256\.json does not exist"):
        files.verify_folder(tmp_path / "model")
    with pytest.raises(CheckpointError, match="does not exist or is not a folder"):
        files.verify_folder(tmp_path / "other")


def test_leftovers_of_the_dead_are_swept_and_work_in_progress_stays(tmp_path):
    (tmp_path / ".model.00000000.partial").mkdir()
    fill(tmp_path / ".model.00000000.partial", weights="half")
    fill(tmp_path, **{".note.txt.00000000.partial": "half", ".hidden": "the user's"})
    with files.folder_in_progress(tmp_path / "first") as first:
        with files.folder_in_progress(tmp_path / "second"):
            assert first.is_dir()
        assert files.sweep(tmp_path) == 0
    assert listing(tmp_path) == [".hidden", "first", "second"]


def test_a_removed_folder_is_never_seen_in_part(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    fill(tmp_path / "old", weights="1")

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        files.remove_folder(tmp_path / "old")
    assert not (tmp_path / "old").exists()
    monkeypatch.undo()
    assert files.sweep(tmp_path) == 1
    assert listing(tmp_path) == []


def replace_again_and_again(target: Path) -> None:
    for count in range(2000):
        with files.folder_in_progress(target) as temp:
            fill(temp, first=str(count), second=str(count))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_writer_never_leaves_a_torn_folder(tmp_path):
    target, chance, seen = tmp_path / "model", random.Random(0), set()
    with files.folder_in_progress(target) as temp:
        fill(temp, first="start", second="start")
    for _ in range(60):
        child = os.fork()
        if child == 0:
            try:
                replace_again_and_again(target)
            finally:
                os._exit(1)
        try:
            before = (target / "first").read_text()
            while (target / "first").read_text() == before:  # progress, so that the kill hits a busy writer
                assert os.waitpid(child, os.WNOHANG) == (0, 0)
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.01))
        finally:
            os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        files.verify_folder(target)
        assert (target / "first").read_text() == (target / "second").read_text()
        seen.add((target / "first").read_text())
    assert len(seen) > 1
    files.sweep(tmp_path)
    assert listing(tmp_path) == ["model"]


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert files.free_bytes(tmp_path / "not" / "yet") > 0
