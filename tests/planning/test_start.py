"""From scratch or fine-tune: clear-cut cases have the clear answer, and each step is said with its figures."""

import pytest

from ludus.base.errors import ConfigError
from ludus.planning import chinchilla, devices, start, text

GB = 1e9


@pytest.mark.parametrize(
    ("size", "device", "budget", "goal", "verdict", "how"),
    [
        (200e6, "rtx4090", 50, "chat about our manuals", "fine-tune", "8B with LoRA"),
        (2e6, "t4", 10, "answer customers' questions", "fine-tune", "8B with QLoRA"),
        (5e9, "h100", 1000, "", "fine-tune", "read the text first"),
        (1e6, "laptop-4", None, "learn how a GPT works", "from scratch", "model.depth="),
        (1e6, "h100", 100, "study attention from scratch", "from scratch", "parameters"),
        (500e6, "rtx4090", 50, "generate MIDI music", "from scratch", "parameters"),
        (30 * GB, "a100-80", 500, "model protein sequences", "from scratch", "parameters"),
        (4000 * GB, "h200", 400_000, "", "from scratch", "parameters"),
        (4000 * GB, "h200", 100, "", "fine-tune", "read the text first"),
        (50e6, "laptop-4", 24, "summarise documents", "fine-tune", "135M with all weights"),
    ],
)
def test_clear_cases(size, device, budget, goal, verdict, how):
    found = start.advise(size, devices.find(device), budget=budget, goal=goal)
    assert found.verdict == verdict
    assert how in found.how
    assert len(found.reasons) == 6
    assert "tokens" in found.reasons[0]


def test_memory_by_method_falls_and_the_well_known_sizes_come_out():
    eight = next(base for base in start.BASES if base.name == "8B")
    full, lora, qlora = (sum(start.memory(eight, method).values()) / GB for method in start.METHODS)
    assert 120 < full < 140
    assert 16 < lora < 24
    assert 5 < qlora < 9
    seventy = start.BASES[-1]
    assert 40 < sum(start.memory(seventy, "QLoRA").values()) / GB < 60


def test_the_ratio_of_twenty_is_well_balanced():
    assert "well balanced" in chinchilla.verdict(10**9, 20 * 10**9)
    assert "under-trained" in chinchilla.verdict(10**9, 10**9)
    assert "on purpose" in chinchilla.verdict(10**9, 10**12)
    assert chinchilla.loss(70e9, 1.4e12) == pytest.approx(1.94, abs=0.02)  # Chinchilla itself


def test_repeated_text_is_worth_less_and_less():
    assert chinchilla.worth_of_repeats(100, 50) == 50
    assert chinchilla.worth_of_repeats(100, 400) == pytest.approx(400, rel=0.1)
    assert chinchilla.worth_of_repeats(100, 10_000) < 1700
    assert "fresh" in chinchilla.epochs_verdict(3)
    assert "next to nothing" in chinchilla.epochs_verdict(100)


def test_every_device_is_whole_and_a_wrong_name_has_a_neighbour():
    for device in devices.table().values():
        assert device.rates["float32"] > 1e11
        assert device.memory_bytes > 1e9
        assert 0 < device.reached(10**8) < 0.6
        assert device.kind in ("cpu", "gpu")
    with pytest.raises(ConfigError, match="did you mean rtx4090"):
        devices.find("rtx4091")
    assert devices.find("RTX 4090").priced(1.0).price == 1.0
    assert devices.find("t4").rate("bfloat16") == devices.find("t4").rates["float32"]


def test_tokens_are_told_from_bytes():
    assert 3 < text.bytes_per_token(4096) < 3.2
    assert text.bytes_per_token(10) == 1.0
    assert text.bytes_per_token(10**7) == 4.7
