"""The verbs that make things: their help says everything and costs nothing, and --print-config is itself a recipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ludus import __version__
from ludus.base.config import paths
from ludus.cli.main import main
from ludus.cli.verbs import EXAMPLES, STAGE, VERBS
from ludus.recipes.schema import Recipe

ROOT = Path(__file__).parents[2]
MAKING = [name for name, verb in VERBS.items() if verb.module == STAGE]


def ludus(*argv: str, code: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(["-c", code] if code else ["-m", "ludus"]), *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_package_is_the_command_line():
    assert ludus("--version").stdout == f"ludus {__version__}\n"


def test_help_of_a_stage_imports_no_torch():
    code = (
        "import sys\nfrom ludus.cli.main import main\n"
        "assert all(main([verb, '--help']) == 0 for verb in sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'pyarrow', 'transformers', 'jinja2'} & set(sys.modules)\n"
        "raise SystemExit(f'imported {heavy}' if heavy else 0)"
    )
    done = ludus(*MAKING, code=code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", MAKING)
def test_help_shows_every_setting_of_the_verb_with_its_doc(verb, capsys):
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: ludus {verb} [RECIPE]")
    sections = VERBS[verb].sections
    assert set(sections) <= set(Recipe.model_fields)
    wanted = [path for path in paths(Recipe) if path.partition(".")[0] in sections and path not in sections]
    leaves = [path for path in wanted if not any(other.startswith(f"{path}.") for other in wanted)]
    assert leaves or verb == "report"
    assert [path for path in leaves if f"  {path}=" not in said] == []
    lines = said.splitlines()
    undocumented = [
        line.split("=")[0]
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("  ") and "=" in line.split(" ")[2] and ".kind=" not in line
        if not below.startswith("      ")
    ]
    assert undocumented == []


def test_help_of_the_whole_run_shows_every_section_of_a_recipe():
    sections = {path.partition(".")[0] for path in paths(Recipe) if "." in path}
    assert set(VERBS["run"].sections) == sections


@pytest.mark.parametrize("verb", MAKING)
def test_the_printed_configuration_is_itself_a_recipe(verb, capsys, tmp_path):
    assert main([verb, "quickstart", "preset=smoke", "model.depth=3", "--print-config"]) == 0
    said = capsys.readouterr().out
    assert "model.depth: 3 " in said
    assert "# command line" in said
    assert "# derived: " in said
    (tmp_path / "again.yaml").write_text(said)
    assert main([verb, str(tmp_path / "again.yaml"), "--print-config"]) == 0
    again = capsys.readouterr().out
    assert values(again) == values(said)


def values(said: str) -> list[str]:
    """Return the printed settings without where they came from."""
    return [line.split("  #")[0].rstrip() for line in said.splitlines()]


def test_the_settings_of_the_examples_resolve(capsys):
    for command, _ in EXAMPLES:
        _, verb, *rest = command.split()
        if verb in MAKING:
            assert main([verb, *rest, "--print-config"]) == 0
    assert "pretrain.optimizer.kind: adamw" in capsys.readouterr().out
