"""What README, ARCHITECTURE and their like say exists: commands, settings, targets, files, functions, code."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import get_args

import pytest

from ludus.base.config import bare_keys, preset_names, resolve
from ludus.cli.arguments import parse_recipe_arguments
from ludus.cli.stage import FLAGS, PRESETS
from ludus.cli.verbs import EXAMPLES, STAGE, VERBS
from ludus.recipes.schema import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]
MADE_BY_READERS = {"my.yaml"}  # recipes that a page shows, and that are not in the repository


@lru_cache
def page(name: str) -> str:
    """Read a page."""
    return (ROOT / name).read_text(encoding="utf-8")


def commands() -> Iterator[str]:
    """Yield every command line of ours that a page or the help shows, without what precedes and follows it."""
    for name in PAGES:
        blocks = re.findall(r"```sh\n(.*?)```", page(name), re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`((?:ludus|make) [^`\n]+)`", page(name))
        yield from (line.partition("  #")[0].strip() for line in lines)
    yield from (command for command, _ in EXAMPLES)


def ours(word: str) -> list[list[str]]:
    """Return the words after `word` (ludus or make) of every such command, each once."""
    found = {line for line in commands() if re.match(rf"(?:[A-Z_]+=\S+ )*{word} ", line)}
    return [shlex.split(line)[shlex.split(line).index(word) + 1 :] for line in sorted(found)]


def plain(words: list[str]) -> list[str]:
    """Leave out commands whose words are placeholders, such as VERB."""
    return [word for word in words if not re.fullmatch(r"[A-Z]+(?:/[A-Z]+)?", word)]


@pytest.mark.parametrize("words", ours("ludus"), ids=" ".join)
def test_a_command_that_is_shown_can_be_typed(words: list[str]):
    verb = words[0]
    if verb in ("--help", "--version", "VERB"):
        return
    assert verb in VERBS, f"there is no verb {verb}"
    module = importlib.import_module(VERBS[verb].module)
    if verb == "sweep" and plain(words) == words:
        check_sweep(words[1:])
    elif VERBS[verb].module == STAGE and plain(words) == words:
        check_recipe(verb, words[1:])
    elif hasattr(module, "USAGE") and plain(words) == words:
        from ludus.cli.options import read

        given = words[2:] if verb == "peft" and words[1] == "bench" else words[1:]
        assert not given or read(module.USAGE, given) is not None or "--help" in words  # a verb may be named alone


def check_sweep(words: list[str]) -> None:
    """Resolve the settings of each run of a sweep."""
    from ludus.cli import grid

    arguments = parse_recipe_arguments(words, FLAGS, bare_keys(Recipe, None))
    axes, fixed = grid.axes(arguments.overrides)
    for cell in grid.cells(axes):
        check_recipe("run", [str(arguments.recipe), *fixed, *(f"{key}={value}" for key, value in cell.items())])


def check_recipe(verb: str, words: list[str]) -> None:
    """Resolve the settings of a command line, as the verb would."""
    section = verb if verb in Recipe.model_fields else None
    arguments = parse_recipe_arguments(words, FLAGS, bare_keys(Recipe, section))
    if arguments.recipe in MADE_BY_READERS:
        assert f"# {arguments.recipe}" in page("README.md") or verb == "pretrain"
        return
    if str(arguments.recipe).startswith("runs/"):  # a run's folder stands for its recipe
        assert not arguments.overrides
        return
    assert arguments.recipe is None or arguments.recipe in preset_names(PRESETS), f"no recipe {arguments.recipe}"
    resolve(
        Recipe,
        recipe=arguments.recipe,
        presets=PRESETS,
        environment={},
        overrides=arguments.overrides,
        section=section,
    )


def test_the_recipe_that_is_shown_is_one(tmp_path: Path):
    [text] = re.findall(r"```yaml\n(# my\.yaml.*?)```", page("README.md"), re.DOTALL)
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    found = resolve(
        Recipe, recipe=str(tmp_path / "my.yaml"), presets=PRESETS, environment={}, overrides=["preset=quick"]
    )
    assert found.settings.name == "mine"
    assert found.settings.pretrain.steps == 20


def test_every_verb_is_on_the_front_page_or_is_a_stage_there():
    said = page("README.md")
    missing = [verb for verb in VERBS if f"ludus {verb}" not in said and f"| `{verb}` |" not in said]
    assert not missing


def test_every_target_of_make_that_is_shown_exists():
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    asked = {words[0] for words in ours("make")}
    assert {"quickstart", "test", "check", "bench"} <= asked <= targets


def test_every_link_leads_somewhere():
    for name in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page(name)):
            assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_every_file_that_is_named_exists():
    for name in PAGES:
        for path in re.findall(r"`((?:ludus|tests|docs|benchmarks|\.ci)/[\w./-]+)`", page(name)):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_the_page_of_laws_leaves_no_law_out():
    missing = [
        file.name
        for file in sorted((ROOT / "tests" / "laws").glob("test_*.py"))
        if file.name not in page("docs/laws.md")
    ]
    assert not missing


@lru_cache
def names() -> set[str]:
    """Return the dotted name of every module, class, function and method of the package."""
    found: set[str] = set()
    for file in sorted((ROOT / "ludus").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found |= {module, *_inside(ast.parse(file.read_text(encoding="utf-8")), module)}
    return found


def _inside(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield f"{name}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _inside(child, f"{name}.{child.name}")


def test_every_function_that_is_named_exists():
    for name in PAGES:
        for dotted in re.findall(r"`(ludus(?:\.\w+)+)`", page(name)):
            assert dotted in names(), f"{name}: {dotted}"


def snippets() -> list[str]:
    """Return what Python the page of fine-tuning shows, in blocks of its own and in the shell's."""
    text = page("docs/finetuning.md")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL) + re.findall(r"<<'END'\n(.*?)END\n", text, re.DOTALL)


@pytest.mark.parametrize("code", snippets(), ids=range(len(snippets())))
def test_what_a_snippet_takes_from_us_is_there(code: str):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ludus"):
            assert all(f"{node.module}.{name.name}" in names() for name in node.names)


def test_the_data_that_the_page_of_fine_tuning_makes_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ludus.text.conversations import read_chats, read_preferences

    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"<<'END'\n(.*?)END\n", page("docs/finetuning.md"), re.DOTALL):
        exec(code, {})
    found = read_chats("stories.jsonl")
    assert f"stories.jsonl: {found.format}, {len(found.chats)} examples" in page("docs/finetuning.md")
    assert len(read_preferences(Path("pairs.jsonl"))) == len(found.chats)


def test_every_kind_of_adapter_is_in_the_table():
    from ludus.adapters.rates import KINDS
    from ludus.adapters.settings import AnyAdapter

    text = page("docs/finetuning.md")
    kinds = {kind for each in get_args(AnyAdapter) for kind in get_args(each.model_fields["kind"].annotation)}
    assert not [kind for kind in kinds - {"none"} if f"| `{kind}`" not in text]
    for kind in kinds & set(KINDS):
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{kind}`") and " … " in line]
        small, large = re.findall(r"([\d.e-]+) … ([\d.e-]+) \|", row)[0]
        assert (float(small), float(large)) == KINDS[kind][:2], kind


def test_the_floor_plan_is_that_of_the_contract():
    shown = [
        floor
        for line in re.findall(r"^\| (`.*?) \|", page("ARCHITECTURE.md"), re.MULTILINE)
        for floor in re.findall(r"`(\w+)`", line)
    ]
    contract = re.search(r"^layers = \[(.*?)\]", page("pyproject.toml"), re.DOTALL | re.MULTILINE)
    assert contract
    floors = re.findall(r"\w+", contract[1])
    assert shown[: len(floors)] == floors


def test_the_loop_that_is_shown_is_the_loop():
    source = page("ludus/learning/loop.py")
    [function] = [node for node in ast.parse(source).body if getattr(node, "name", "") == "train"]
    code = ast.get_source_segment(source, function)
    found = re.search(r"<!-- loop -->\n```python\n(.*?)```\n<!-- /loop -->", page("ARCHITECTURE.md"), re.DOTALL)
    assert found
    assert found[1].strip() == code, "the loop has changed; copy it into ARCHITECTURE.md"


def test_the_objective_that_is_shown_works(tiny):
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from ludus.data.batch import Batch
    from ludus.data.pairs import Pair, stack
    from ludus.learning.loop import Objective
    from ludus.learning.objectives.logps import token_logps
    from ludus.model.transformer import Transformer

    space = {each.__name__.rpartition(".")[2]: each for each in (torch, Tensor, Batch, token_logps, Transformer)} | {
        "F": F,
        "Objective": Objective,
    }
    [code] = re.findall(r"```python\n(def odds_ratio.*?)```", page("CONTRIBUTING.md"), re.DOTALL)
    exec(code, space)
    answers = [(np.arange(length) + 5, np.ones(length, dtype=np.float32)) for length in (4, 7, 6, 3)]
    batch = stack([Pair(answers[0], answers[1]), Pair(answers[2], answers[3])], 0)
    sums = space["odds_ratio"](0.1)(tiny(), batch)
    assert torch.isfinite(sums["loss"])
    assert sums["loss"].requires_grad
    assert 0 <= sums["accuracy"] <= 2


def test_the_front_page_shows_what_the_quickstart_printed():
    found = re.search(r"<!-- quickstart-table -->(.*?)<!-- /quickstart-table -->", page("README.md"), re.DOTALL)
    assert found
    assert "accuracy" in found[1], "fill in the table that `make quickstart` printed"
