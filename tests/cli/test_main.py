"""The entry: help without weight, verbs found, errors told in a line, exit codes kept."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ludus import __version__
from ludus.base.errors import ConfigError
from ludus.cli.arguments import parse_recipe_arguments
from ludus.cli.main import help_text, main
from ludus.cli.verbs import EXAMPLES, STAGE, VERBS

ROOT = Path(__file__).parents[2]


def python(code: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, **more
    )


@pytest.fixture
def module(monkeypatch):
    """Stand a module in for a verb's; its main does what the test says."""

    def put(name: str, act) -> None:
        stand_in = types.ModuleType(name)
        stand_in.main = act
        monkeypatch.setitem(sys.modules, name, stand_in)

    monkeypatch.delenv("LUDUS_TRACEBACK", raising=False)
    return put


@pytest.mark.parametrize("argv", [["--help"], [], ["--version"], ["prtrain"]])
def test_help_imports_neither_torch_nor_a_schema(argv):
    code = (
        "import sys\nfrom ludus.cli.main import main\n"
        f"main({argv!r})\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'ruamel', 'ruamel.yaml', 'argparse'} & set(sys.modules)\n"
        "raise SystemExit(f'imported {heavy}' if heavy else 0)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb_once_under_its_purpose(capsys):
    assert main([]) == main(["--help"]) == main(["-h"]) == main(["help"]) == 0
    lines = help_text().splitlines()
    for name, verb in VERBS.items():
        assert sum(line.split() == [name, *verb.doc.split()] for line in lines) == 1
    for heading in ("make a model", "use it", "look at it", "examples"):
        assert heading in lines
    assert len(EXAMPLES) == 3
    assert max(map(len, lines)) <= 110
    assert "\x1b" not in capsys.readouterr().out
    assert "\x1b[1m" in help_text(colour=True)


def test_examples_use_verbs_that_exist():
    assert {command.split()[1] for command, _ in EXAMPLES} <= set(VERBS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ludus {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretain"], "ludus: unknown verb 'pretain'; did you mean pretrain?\n"),
        (["Chat"], "ludus: unknown verb 'Chat'; did you mean chat?\n"),
        (["xyzzy"], "ludus: unknown verb 'xyzzy'; `ludus --help` lists them\n"),
        (["--verison"], "ludus: unknown option --verison; did you mean --version?\n"),
        (["-x"], "ludus: unknown option -x; there are --help and --version\n"),
        (["my.yaml"], "ludus: expected a verb before my.yaml; did you mean `ludus run my.yaml`?\n"),
        (["help", "pretain"], "ludus: unknown verb 'pretain'; did you mean pretrain?\n"),
    ],
)
def test_a_word_that_is_no_verb_is_one_line_and_exit_code_two(argv, message, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_calls_its_module_with_the_rest(verb, module):
    calls = []
    module(VERBS[verb].module, lambda *given: calls.append(given))
    assert main([verb, "tiny", "a.b=1"]) == 0
    assert main(["help", verb]) == 0
    head = (verb,) if VERBS[verb].module == STAGE else ()
    assert calls == [(*head, ["tiny", "a.b=1"]), (*head, ["--help"])]


def test_a_verb_chooses_the_exit_code(module):
    module("ludus.cli.chat", lambda argv: 7)
    assert main(["chat"]) == 7


def fail(error: BaseException):
    def act(argv: list[str]) -> None:
        raise error

    return act


def test_a_user_s_mistake_is_its_lines_without_a_traceback(module, capsys, monkeypatch):
    module("ludus.cli.chat", fail(ConfigError("a: wrong\nb: wrong too")))
    assert main(["chat"]) == 2
    assert capsys.readouterr().err == "ludus: a: wrong\nludus: b: wrong too\n"
    monkeypatch.setenv("LUDUS_TRACEBACK", "1")
    assert main(["chat"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.endswith("ludus: a: wrong\nludus: b: wrong too\n")


def test_an_error_chooses_its_exit_code(module):
    error = ConfigError("x")
    error.exit_code = 5
    module("ludus.cli.chat", fail(error))
    assert main(["chat"]) == 5


def test_a_mistake_of_ours_keeps_its_traceback(module):
    module("ludus.cli.chat", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["chat"])


def test_an_interrupt_is_one_line_and_130(module, capsys):
    module("ludus.cli.chat", fail(KeyboardInterrupt()))
    assert main(["chat"]) == 130
    assert capsys.readouterr().err == "ludus: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "import sys, types\nfrom ludus.cli.main import main\n"
        "chat = types.ModuleType('ludus.cli.chat')\n"
        "chat.main = lambda argv: [print('x' * 100) for _ in range(100_000)] and None\n"
        "sys.modules['ludus.cli.chat'] = chat\nsys.exit(main(['chat']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    _, told = child.communicate()
    assert (child.returncode, told) == (141, b"")


def test_arguments_are_a_recipe_overrides_and_flags():
    argv = [
        "my.yaml",
        "model.depth=6",
        "--optimizer.kind",
        "muon",
        "--a.b=c=d",
        "--folder",
        "runs/x",
        "--data.shuffle",
        "-h",
    ]
    recipe, overrides, flags = parse_recipe_arguments(argv)
    assert recipe == "my.yaml"
    assert overrides == ["model.depth=6", "optimizer.kind=muon", "a.b=c=d", "data.shuffle=true"]
    assert flags == {"--folder": "runs/x", "--help": True}
    assert parse_recipe_arguments(["--folder=a=b", "steps=-1", "--x.y", "-1"]) == (
        None,
        ["steps=-1", "x.y=-1"],
        {"--folder": "a=b"},
    )


def test_a_key_without_a_dot_is_an_override_when_the_caller_knows_it():
    assert parse_recipe_arguments(["--num-steps", "5", "--preset", "full"], keys=["num_steps"]).overrides == [
        "num-steps=5",
        "preset=full",
    ]
    with pytest.raises(ConfigError, match=r"^unknown option --num-stesp; did you mean --num_steps\?$"):
        parse_recipe_arguments(["--num-stesp", "5"], keys=["num_steps"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prnit-config"], r"^unknown option --prnit-config; did you mean --print-config\?$"),
        (["--foldr=x"], r"^unknown option --foldr; did you mean --folder\?$"),
        (["-z"], "^unknown option -z; there are --help, --print-config, --folder$"),
        (["--folder"], "^--folder needs a value, as in --folder VALUE$"),
        (["--folder", "--help"], "^--folder needs a value"),
        (["--help=3"], "^--help takes no value, got '3'$"),
        (["a", "b"], "^b: unexpected; the recipe is a, and a setting is written key=value$"),
    ],
)
def test_a_bad_argument_is_one_line(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse_recipe_arguments(argv)
