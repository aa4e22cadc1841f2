"""Memory and time are extended in layers, come by part, and are calculated where nothing was measured."""

import dataclasses

import pytest

from ludus.base.errors import RunError
from ludus.optim.settings import AdamWSettings
from ludus.planning import devices, ledger, machine, probe, spending, text
from ludus.planning.probe import Probe
from ludus.planning.work import Work

HERE = devices.Device("this", "here", "cpu", {"float32": 1e11}, 10**10, 1e10)


@pytest.fixture
def work(shape):
    return Work(shape(layers=3), 8, 24, 2, 10, "float32", AdamWSettings(), validation_rows=16, validations=2, samples=1)


def made(work: Work, layers: int, **changes: float) -> Probe:
    facts = {
        "layers": layers,
        "rows": work.rows,
        "micro_batch_seconds": 0.1 + 0.02 * layers,
        "update_seconds": 0.01 * layers,
        "first_step_seconds": 1.0,
        "validation_seconds": 0.08,
        "token_seconds": 0.001,
        "start_seconds": 2.0,
        "start_bytes": 300_000_000,
        "peak_bytes": 400_000_000 + 20_000_000 * layers + ledger.measure(work.with_layers(layers)).peak,
    }
    return Probe(**{**facts, **changes})  # type: ignore[arg-type]


def test_time_is_extended_over_layers_and_has_its_parts(work):
    found = spending.duration(work, HERE, [made(work, 1), made(work, 2)])
    assert found.step_seconds == pytest.approx(2 * 0.16 + 0.03)
    assert found.parts["steps"] == pytest.approx(10 * found.step_seconds)
    assert found.parts["validation"] == pytest.approx(0.01 * 16 * 2)
    assert "1 and 2 of 3 layers" in found.how


def test_memory_is_what_was_counted_and_what_the_process_and_its_heap_add(work):
    found = spending.memory(work, HERE, [made(work, 1), made(work, 2)])
    beside = found.parts.get(spending.CHECKPOINT, 0) + spending.BESIDE_BYTES
    assert found.total - beside == pytest.approx(460_000_000 + ledger.measure(work).peak, rel=0.02)
    whole = spending.memory(work, HERE, [made(work, 3)])
    assert whole.total == pytest.approx(found.total, rel=0.01)


def test_another_device_is_calculated(work):
    card = devices.find("rtx4090")
    found = spending.memory(work, card)
    assert found.parts[spending.PROCESS] == spending.CUDA_BYTES
    slow, fast = (spending.duration(work, devices.find(name)).total for name in ("laptop-4", "rtx4090"))
    assert slow > 0
    assert fast > 0
    assert "of 82.6 TFLOP/s" in spending.duration(work, card).how


def test_a_quick_model_is_measured_whole_and_a_slow_one_in_part(work):
    assert [size.shape.layers for size in spending._sizes(work, HERE)] == [3]
    slow = dataclasses.replace(HERE, rates={"float32": 1e7})
    assert [size.shape.layers for size in spending._sizes(work, slow)] == [1, 2]


def test_a_probe_takes_real_steps(work):
    found = probe.run(work.with_(accumulate=1, sample_prompts=1), threads=1)
    assert found.layers == 3
    assert 0 < found.update_seconds < 5
    assert found.peak_bytes >= found.start_bytes > 10**7


def test_a_probe_that_fails_says_so(work):
    with pytest.raises(RunError, match=r"could not be measured: .*--quick"):
        probe.measure(work.with_(precision="nonsense"), threads=1)


def test_memory_that_is_left_is_that_of_the_container(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    assert machine.available_memory(cgroup=tmp_path, meminfo=tmp_path / "meminfo") == 3_072_000_000
    for name, content in {"max": "1000", "current": "700", "stat": "anon 5\ninactive_file 100\n"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert machine.available_memory(cgroup=tmp_path, meminfo=tmp_path / "meminfo") == 400
    (tmp_path / "memory.max").write_text("max")
    assert machine.available_memory(cgroup=tmp_path, meminfo=tmp_path / "meminfo") == 3_072_000_000


def test_the_machine_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, old = machine.this_machine(1)
    again, remembered = machine.this_machine(1)
    assert (old, remembered) == (False, True)
    assert first.rates == again.rates
    assert first.rates["float32"] > 1e8
    assert first.bandwidth > 1e7


def test_text_on_disk_is_counted_and_text_elsewhere_is_not_known(tmp_path):
    (tmp_path / "a.txt").write_text("abc" * 1000)
    (tmp_path / "b.parquet").write_bytes(b"x" * 1000)
    (tmp_path / "c.bin").write_bytes(b"x" * 1000)
    assert text.size_of(sorted(tmp_path.iterdir())) == (5200, "2 files, some compressed")
    assert text._characters(tmp_path) == 3
