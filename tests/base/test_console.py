"""Progress: a bar on a terminal, sparse lines in a pipe, nothing for quick work."""

import io
import os
import subprocess
import sys

import pytest

from ludus.base import console
from ludus.base.console import Meter, duration, quiet, say, track


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    monkeypatch.delenv("LUDUS_QUIET", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def run(stream: io.StringIO, seconds: int, **more) -> str:
    """Do one step each second."""
    clock = Clock()
    with Meter("pretrain", seconds, clock=clock, stream=stream, **more) as meter:
        for step in range(1, seconds + 1):
            clock.now += 1
            meter.update(step, loss=2.0 / step)
    return stream.getvalue()


def test_say_prints_a_line_even_when_quiet(capsys):
    with quiet():
        say("hello")
        say()
    assert capsys.readouterr().out == "hello\n\n"


def test_work_under_five_seconds_prints_nothing_in_a_pipe():
    assert run(io.StringIO(), 4) == ""


def test_a_pipe_gets_a_line_at_most_every_ten_seconds_and_one_at_the_end():
    lines = run(io.StringIO(), 40).splitlines()
    assert lines[0] == "pretrain: 5/40 steps, 12 %, 1 steps/s, 35 s left, loss 0.4"
    assert [line.split()[1] for line in lines] == ["5/40", "15/40", "25/40", "35/40", "40/40"]
    assert "left" not in lines[-1]


def test_a_resumed_run_reckons_its_rate_from_where_it_began():
    clock, stream = Clock(), io.StringIO()
    meter = Meter("sft", 200, clock=clock, stream=stream, start=100)
    clock.now = 10
    meter.update(110)
    assert stream.getvalue() == "sft: 110/200 steps, 55 %, 1 steps/s, 1:30 left\n"


def test_a_terminal_gets_a_bar_once_work_lasts_over_a_second():
    assert run(Terminal(), 0) == ""
    shown = run(Terminal(), 3)
    assert "pretrain" in shown
    assert "3/3" in shown
    assert "steps/s, loss 0.6667" in shown


def test_a_failure_ends_the_lines_without_claiming_the_end():
    clock, stream = Clock(), io.StringIO()

    def work() -> None:
        with Meter("x", 10, clock=clock, stream=stream) as meter:
            clock.now = 6
            meter.update(3)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_silences_progress(stream, monkeypatch):
    with quiet():
        assert run(stream(), 40) == ""
    assert not console.is_quiet()
    monkeypatch.setenv("LUDUS_QUIET", "1")
    assert run(stream(), 40) == ""


def test_track_yields_every_item_and_knows_the_length(monkeypatch):
    seen: list[int | None] = []
    monkeypatch.setattr(Meter, "update", lambda self, done: seen.append(self.total))
    assert list(track([1, 2], "reading")) == [1, 2]
    assert list(track(iter("ab"), "reading", total=2)) == ["a", "b"]
    assert list(track(iter("a"), "reading")) == ["a"]
    assert seen == [2, 2, 2, 2, None]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (68, "1:08"), (7384, "2:03:04")])
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_importing_the_console_does_not_import_rich():
    code = "import sys, ludus.base.console; raise SystemExit('rich' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "."}, check=False).returncode == 0
    )
