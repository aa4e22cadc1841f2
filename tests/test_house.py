"""The house rules: floors, sizes, names, and what must never be in the code."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ludus"
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Path]:
    """Return the Python files under folders of the repository."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


@lru_cache
def tree(file: Path) -> ast.Module:
    """Parse a file once."""
    return ast.parse(file.read_text(encoding="utf-8"))


def contract() -> dict:
    """Return the layers contract of pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [found] = [each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    return found


def floors() -> list[str]:
    """Return the floors from the top down."""
    return [floor.strip() for layer in contract()["layers"] for floor in layer.split("|")]


def name_of(file: Path) -> str:
    """Show a file by its place in the repository."""
    return file.relative_to(ROOT).as_posix()


def test_every_folder_is_a_floor_and_every_floor_a_folder():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(floors())


@pytest.mark.parametrize("floor", floors())
def test_a_floor_says_what_it_is_and_holds_something(floor: str):
    said = ast.get_docstring(tree(PACKAGE / floor / "__init__.py"))
    assert said
    rooms = [file for file in (PACKAGE / floor).rglob("*.py") if file.name != "__init__.py"]
    written = [node for file in rooms for node in tree(file).body if isinstance(node, Function | ast.ClassDef)]
    assert written, f"ludus/{floor} is empty"


def test_imports_only_go_down_and_no_folder_is_left_out():
    assert contract()["exhaustive"] is True
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_file_holds_one_idea():
    long = {
        name_of(file): len(file.read_text("utf-8").splitlines()) for file in sources("ludus", "tests", "benchmarks")
    }
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FILE}


def test_a_function_fits_a_screen():
    long = {
        f"{name_of(file)}:{node.lineno} {node.name}": length
        for file in sources("ludus", "tests", "benchmarks")
        for node in ast.walk(tree(file))
        if isinstance(node, Function) and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert not long


def test_names_say_what_a_thing_is():
    for file in sources("ludus", "tests", "benchmarks"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        assert not NAMELESS & {word for part in parts for word in part.split("_")}, name_of(file)
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                empty = node.name.endswith(("Manager", "Trainer", "Helper", "Utils")) or node.name.startswith("Base")
                assert not empty, f"{name_of(file)}: class {node.name}"


def test_every_module_of_the_package_begins_with_what_lives_there():
    silent = [name_of(file) for file in sources("ludus") if not ast.get_docstring(tree(file))]
    assert not silent


def test_every_function_of_the_package_has_a_return_type():
    untyped = [
        f"{name_of(file)}:{node.lineno} {node.name}"
        for file in sources("ludus")
        for node in ast.walk(tree(file))
        if isinstance(node, Function) and node.returns is None and not _is_inner(node, file)
    ]
    assert not untyped


def _is_inner(node: Function, file: Path) -> bool:
    return any(
        node in ast.walk(outer) and node is not outer for outer in ast.walk(tree(file)) if isinstance(outer, Function)
    )


def called(node: ast.AST) -> str:
    """Return the dotted name of what is called, "" for what has none."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the top-level packages that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.partition(".")[0]


def test_nothing_that_runs_code_from_a_file_is_in_the_package():
    executing = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in sources("ludus"):
        for node in ast.walk(tree(file)):
            where = f"{name_of(file)}:{getattr(node, 'lineno', 0)}"
            assert not executing & set(imported(node)), where
            assert called(node) not in ("torch.save", "eval", "exec"), where
            if called(node) == "torch.load":  # other people's checkpoints, of which tensors alone are read
                options = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert options.get("weights_only") == "True", where
            if isinstance(node, ast.keyword):
                assert node.arg != "trust_remote_code", where
                assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False", where
            if called(node) in ("np.load", "np.save", "numpy.load", "numpy.save"):
                assert any(keyword.arg == "allow_pickle" for keyword in node.keywords), where


def test_the_lower_floors_import_no_torch_for_help():
    """Settings are what `--help` reads: they must not pull in torch."""
    heavy = {"torch", "transformers", "tokenizers", "pyarrow", "numpy"}
    for file in [*sources("ludus/base"), *sorted(PACKAGE.rglob("settings.py")), PACKAGE / "recipes" / "schema.py"]:
        at_import = [node for node in tree(file).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not heavy & {name for node in at_import for name in imported(node)}, name_of(file)


def tracked() -> list[Path]:
    """Return the text files that the repository holds or is about to."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("this is no git checkout")
    files = [ROOT / name for name in found.stdout.split("\0") if name]
    binary = {".png", ".gif", ".parquet", ".safetensors", ".woff2", ".ico", ".gz"}
    return [file for file in files if file.is_file() and file.suffix not in binary]


def test_no_path_of_a_machine_and_no_host_of_a_registry_is_written_down():
    homes = ["root", "home", "Users", "work", "opt", "mnt"]
    paths = re.compile(rf"(?<![\w.~*/-])/(?:{'|'.join(homes)})/\w")
    hosts = [
        "pypi" + ".org",
        "files." + "pythonhosted",
        "registry." + "npmjs",
        "download." + "pytorch.org",
        "--index" + "-url",
    ]
    for file in tracked():
        text = file.read_text(encoding="utf-8", errors="replace")
        assert not paths.search(text), f"{name_of(file)}: {paths.search(text)}"
        assert not [host for host in hosts if host in text], name_of(file)


def test_every_file_of_the_package_goes_into_the_wheel():
    """Hatch takes what lies in the package and git does not ignore."""
    data = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    kept = set(tracked())
    assert not [
        name_of(file) for file in data if file not in kept and file.suffix in (".py", ".yaml", ".css", ".js", ".html")
    ]
    kinds = {file.suffix for file in data}
    assert {".yaml", ".css", ".js"} <= kinds


def test_shapes_are_held_to_their_word_while_tests_run():
    import torch
    from jaxtyping import TypeCheckError

    from ludus.model.attention import rotate

    heads, angles = torch.ones(2, 3, 5, 8), torch.ones(2, 1, 5, 4)
    assert rotate(heads, angles, angles).shape == heads.shape
    with pytest.raises(TypeCheckError):
        rotate(heads, angles, torch.ones(2, 1, 6, 4))
