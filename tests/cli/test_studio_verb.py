"""The verb `studio`: its mistakes are lines, and a missing extra names what installs it."""

import pytest

from ludus.cli import studio
from ludus.cli.main import main


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(studio, "find_spec", lambda package: None)
    assert main(["studio"]) == 2
    assert capsys.readouterr().err == (
        "ludus: the studio needs starlette and uvicorn; install with: pip install 'ludus[studio]'\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 would open the studio to others: set LUDUS_STUDIO_TOKEN to a secret"),
        (["--port", "70000"], "--port expects a whole number from 0 to 65535, got '70000'"),
        (["no/model"], "no/model is neither a path here nor"),
        (["a", "--model", "b"], "the model is given twice, as a and as --model b; give one"),
    ],
)
def test_a_mistake_is_one_line(argv, message, capsys, monkeypatch):
    pytest.importorskip("uvicorn")
    monkeypatch.delenv("LUDUS_STUDIO_TOKEN", raising=False)
    assert main(["studio", *argv]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"ludus: {message}")
    assert told.count("\n") == 1
