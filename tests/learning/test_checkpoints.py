import errno
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from ludus.base import files
from ludus.base.errors import CheckpointError, DiskFull, RunError
from ludus.learning import checkpoints
from ludus.learning.checkpoints import latest, load, save
from ludus.model import exchange

dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    seed = draw(st.integers(0, 1000))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return values.to(draw(st.sampled_from(dtypes)))


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors()
keys = st.text(max_size=5).filter(lambda key: key not in ("$tensor", "$tuple")) | st.sampled_from(
    ["a", "b", "a/b", "a.b", "__metadata__", "0"]
)
states = st.dictionaries(
    keys,
    st.recursive(
        values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3) | st.tuples(inner, inner),
        max_leaves=6,
    ),
    max_size=4,
)


def assert_same(first, second):
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        first, second = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert repr(first) == repr(second)


def small_state(step: int, size: int = 16) -> dict:
    """Make a state whose parts all tell the step, so that a mixture of two checkpoints would show."""
    return {"model": {"weight": torch.full((size,), float(step))}, "source": {"cursor": step}, "step": step}


def whole_step(path: Path | None) -> int:
    """Load a checkpoint, check that all its parts are of one step, and return that."""
    assert path is not None
    step, state = load(path)
    assert state["step"] == state["source"]["cursor"] == step
    assert bool((state["model"]["weight"] == step).all())
    return step


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


@settings(max_examples=60, deadline=None)
@given(state=states)
def test_any_state_loads_as_it_was_saved(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("checkpoints")
    path = save(folder, 42, state)
    step, loaded = load(path)
    assert step == 42
    assert_same(state, loaded)
    shutil.rmtree(folder)


def test_the_states_that_training_has_survive(tmp_path):
    model = torch.nn.Linear(3, 3)
    model(torch.ones(3)).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    optimizer.step()
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "model": model.state_dict(),
        "moments": {str(key): dict(value) for key, value in optimizer.state_dict()["state"].items()},
        "groups": optimizer.state_dict()["param_groups"],
        "parameter": model.weight,
        "random": torch.get_rng_state(),
        "python": random.Random(0).getstate(),
        "views": [base[:, 1], base.T, base[:2], base[1:], base[0, 0], base.expand(2, 3, 4)],
        "empty": [torch.zeros(0), torch.zeros(0), torch.zeros(2, 0, dtype=torch.bool)],
        "floats": [0.1 + 0.2, 5e-324, -0.0, float("inf"), float("nan"), 2**80],
        "nothing": {},
        "text": "schön \ud800 \x00",
    }
    _, loaded = load(save(tmp_path, 1, state))
    assert_same({**state, "model": dict(state["model"]), "parameter": model.weight.detach()}, loaded)
    assert not loaded["parameter"].requires_grad


def test_tied_tensors_are_saved_once_and_load_equal(tmp_path):
    weight = torch.randn(1000)
    path = save(tmp_path, 1, {"embedding": weight, "head": weight, "view": weight.view(10, 100), "part": weight[500:]})
    _, loaded = load(path)
    assert loaded["head"] is loaded["embedding"]
    assert torch.equal(loaded["view"], weight.view(10, 100))
    assert torch.equal(loaded["part"], weight[500:])
    assert (path / "tensors.safetensors").stat().st_size < 4 * 2500 + 1000


def test_changing_what_was_loaded_does_not_change_the_checkpoint(tmp_path):
    path = save(tmp_path, 1, small_state(1, size=10_000))
    _, state = load(path)
    state["model"]["weight"].add_(1)
    shutil.copytree(path, tmp_path / "copy")
    assert whole_step(path) == whole_step(tmp_path / "copy") == 1


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"optimizer": {"rate": object()}}, "state/optimizer/rate is of type object"),
        ({"optimizer": {0: 1}}, "state/optimizer has the key 0"),
        ({"text": {"$tensor": "x"}}, "has the key '\\$tensor'"),
        ({"raw": b"bytes"}, "state/raw is of type bytes"),
    ],
)
def test_what_has_no_place_in_a_state_is_named_before_anything_is_written(tmp_path, state, words):
    with pytest.raises(TypeError, match=words):
        save(tmp_path / "checkpoints", 1, state)
    assert not (tmp_path / "checkpoints").exists()


def test_the_newest_are_kept_and_unfinished_ones_do_not_count(tmp_path):
    assert latest(tmp_path / "none") is None
    for step in (1, 2, 9, 10, 100_000_000):
        assert save(tmp_path, step, small_state(step), keep=3) == latest(tmp_path)
    assert steps(tmp_path) == [9, 10, 100_000_000]
    (tmp_path / ".step-99999999999.0a1b2c3d.partial").mkdir()
    (tmp_path / "step-latest").mkdir()
    (tmp_path / "step-99999999999").write_text("a file")
    assert whole_step(latest(tmp_path)) == 100_000_000
    with pytest.raises(ValueError, match="at least one"):
        save(tmp_path, 11, {}, keep=0)


def test_saving_an_earlier_step_drops_the_future_it_went_back_on(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, small_state(step))
    save(tmp_path, 25, small_state(25))
    assert steps(tmp_path) == [20, 25]
    save(tmp_path, 25, {**small_state(25), "again": True})
    assert load(tmp_path / "step-00000025")[1]["again"] is True


def test_a_flipped_bit_anywhere_is_found_and_the_way_on_is_said(tmp_path):
    save(tmp_path, 7, small_state(7))
    path = save(tmp_path, 8, small_state(8, size=4))
    chance, contents = random.Random(0), {file: file.read_bytes() for file in path.iterdir()}
    assert sorted(file.name for file in contents) == ["sha256.json", "state.json", "tensors.safetensors"]
    positions = [(file, bit) for file, data in contents.items() for bit in range(8 * len(data))]
    for file, bit in chance.sample(positions, 1000):
        damaged = bytearray(contents[file])
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"delete step-00000008 to go on from step-00000007$") as problem:
            load(path)
        assert "\n" not in str(problem.value)
        if file.name != "sha256.json":  # a flip in the checksums themselves accuses the file or the list
            assert str(file) in str(problem.value)
        file.write_bytes(contents[file])
    assert whole_step(path) == 8


def test_a_cut_or_missing_file_is_found(tmp_path):
    path = save(tmp_path, 8, small_state(8))
    for file in path.iterdir():
        data = file.read_bytes()
        file.write_bytes(data[:-1])
        with pytest.raises(CheckpointError, match="start the stage again"):
            load(path)
        file.unlink()
        with pytest.raises(CheckpointError, match=file.name):
            load(path)
        file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-00000009 does not exist.*delete .* from step-00000008"):
        load(tmp_path / "step-00000009")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    for content in ("[]", '{"format": 1}', '{"format": 2, "state": {}}', '{"format": 2, "step": 1, "state": {}}'):
        with files.folder_in_progress(tmp_path / "model") as temp:
            (temp / "state.json").write_text(content)
        with pytest.raises(CheckpointError, match="model"):
            load(tmp_path / "model")


def save_again_and_again(folder: Path, acknowledge: int) -> None:
    start = 0 if (path := latest(folder)) is None else whole_step(path)
    for step in range(start + 1, start + 2000):
        save(folder, step, small_state(step, size=5_000))
        os.write(acknowledge, step.to_bytes(8, "big"))


@pytest.mark.law
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children only save
def test_no_kill_makes_the_newest_unloadable_or_loses_an_acknowledged_save(tmp_path):
    chance, last, caught_in_the_act = random.Random(0), 0, 0
    for _ in range(64):
        reading, acknowledge = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_again_and_again(tmp_path, acknowledge)
            finally:
                os._exit(1)
        os.close(acknowledge)
        acknowledged = int.from_bytes(os.read(reading, 8), "big")  # progress: this child has saved, or died
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert acknowledged == last + 1
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        while said := os.read(reading, 8):
            acknowledged = int.from_bytes(said, "big")
        os.close(reading)
        caught_in_the_act += any(path.name.startswith(".") for path in tmp_path.iterdir())
        last = max(whole_step(path) for path in tmp_path.glob("step-*"))  # the older ones are whole too
        assert latest(tmp_path) == tmp_path / f"step-{last:08d}"
        assert last - acknowledged in (0, 1)  # one may be done and not yet acknowledged
    assert caught_in_the_act >= 16
    save(tmp_path, last + 1, small_state(last + 1))
    assert steps(tmp_path) == [last, last + 1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("phase", ["tensors", "values", "checksums", "rename", "prune"])
def test_a_disk_that_fills_in_any_phase_keeps_the_old_checkpoint(tmp_path, monkeypatch, phase):
    save(tmp_path, 1, small_state(1), keep=1)

    def full(*arguments, **options):
        if phase == "tensors":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {
        "tensors": (exchange, "save_file"),
        "values": (Path, "write_text"),
        "checksums": (files, "_seal"),
        "rename": (files, "_rename_over"),
        "prune": (checkpoints, "remove_folder"),
    }
    monkeypatch.setattr(*where[phase], full)
    with pytest.raises((DiskFull, OSError)) as problem:
        save(tmp_path, 2, small_state(2), keep=1)
    monkeypatch.undo()
    if phase == "prune":
        assert steps(tmp_path) == [1, 2]
        return
    assert problem.type is DiskFull
    assert "the disk is full" in str(problem.value)
    assert "\n" not in str(problem.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert whole_step(latest(tmp_path)) == 1


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1, small_state(1), keep=1)
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 100)
    with pytest.raises(DiskFull, match=r"step-00000002 has .* MB free of the 0\.0 MB needed; make room"):
        save(tmp_path, 2, small_state(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.fixture
def tiny_disk(tmp_path):
    mount = tmp_path / "tiny"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk of 2 MB")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_known_to_be_too_full_is_refused(tiny_disk):
    save(tiny_disk, 1, small_state(1, size=150_000), keep=1)
    with pytest.raises(DiskFull, match=r"1\.\d MB free of the 1\.6 MB needed.*what was there before is untouched"):
        save(tiny_disk, 2, small_state(2, size=340_000), keep=1)
    assert [path.name for path in tiny_disk.iterdir()] == ["step-00000001"]
    assert whole_step(latest(tiny_disk)) == 1


def test_what_a_killed_save_left_does_not_take_the_room_of_the_next(tiny_disk):
    leftover = tiny_disk / ".step-00000001.0a1b2c3d.partial"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(bytes(1_500_000))
    save(tiny_disk, 2, small_state(2, size=300_000))
    assert [path.name for path in tiny_disk.iterdir()] == ["step-00000002"]


def test_a_disk_that_fills_up_keeps_the_old_checkpoint(tiny_disk, monkeypatch):
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 10**12)
    fitted = []
    for size in [*range(364_000, 376_000, 250), 2**20]:  # around the edge, so that every file meets the full disk
        for path in tiny_disk.iterdir():
            shutil.rmtree(path)
        save(tiny_disk, 1, small_state(1, size=150_000))
        try:
            save(tiny_disk, 2, small_state(2, size=size))
            fitted.append(True)
        except DiskFull:
            fitted.append(False)
        assert len(list(tiny_disk.iterdir())) == 1 + fitted[-1]
        assert whole_step(latest(tiny_disk)) == 1 + fitted[-1]
    assert fitted == sorted(fitted, reverse=True)
    assert 5 < sum(fitted) < 40


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").write_text("a file in place of the folder")
    with pytest.raises(RunError, match="checkpoints") as problem:
        save(tmp_path / "checkpoints", 1, small_state(1))
    assert "\n" not in str(problem.value)

    def forbidden(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(RunError, match="step-00000001 cannot be written: Permission denied"):
        save(tmp_path / "elsewhere", 1, small_state(1))
