"""The documentation that every Python interpreter carries: its language reference and its library's docstrings.

A corpus that is there without a network. Source files are parsed, never imported. Each document begins by saying what
it describes and in which module that is, so that such questions can be answered from the text.
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ludus.corpus.document import Document

LICENCE = "PSF-2.0"
SOURCE = "python-{}.{} documentation"

_SKIPPED = {
    "__phello__",
    "__pycache__",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
# Public modules whose Python source lies in a private file.
_PUBLISHED = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "concurrent.futures._base": "concurrent.futures",
    "genericpath": "os.path",
    "pathlib._local": "pathlib",
    "posixpath": "os.path",
}
_LONGEST_VALUE = 40

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def interpreter_documents(source: str, licence: str = LICENCE) -> Iterator[Document]:
    """Yield the language reference's topics, then one document for each public module, class and function."""
    for name, text in _topics():
        text = f"{name}\n\n{name} is a topic of the Python language reference.\n\n{text.strip()}\n"
        metadata = {"module": "", "name": name, "kind": "topic"}
        yield Document(text, f"topic:{name}", source, licence=licence, metadata=metadata)
    seen: set[str] = set()
    for module, content in _modules(Path(sysconfig.get_path("stdlib"))):
        for name, kind, text in module_documents(module, content):
            identifier = f"{kind}:{module}.{name}" if name else f"{kind}:{module}"
            if identifier in seen:  # two files may make up one module
                identifier += "+"
            seen.add(identifier)
            metadata = {"module": module, "name": name or module, "kind": kind}
            yield Document(text, identifier, source, licence=licence, metadata=metadata)


def module_documents(module: str, source: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield (name, kind, text) for a module's own docstring (name empty) and each documented public definition."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in the library's own strings
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates and deliberately broken files; they document nothing
            return
    docstring = ast.get_docstring(tree)
    if docstring:
        yield "", "module", f"{module}\n\n{module} is a module of the Python standard library.\n\n{docstring}\n"
    seen = set()
    for node in _definitions(tree.body):
        text = _definition_text(module, node)
        if text and node.name not in seen:  # the first of alternatives chosen by platform
            seen.add(node.name)
            yield node.name, _kind(node), text


def _topics() -> Iterator[tuple[str, str]]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions ship Python without its documentation
        return
    yield from sorted(topics.items())


def _modules(library: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(_files(library), key=str):
        module = _module_name(file.relative_to(library))
        if module:
            yield module, file.read_bytes()


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name in _SKIPPED:
            continue
        if entry.is_dir():
            yield from _files(entry)
        elif entry.suffix == ".py":
            yield entry


def _module_name(path: Path) -> str | None:
    """Return the dotted name of a public module, or None for what is private."""
    parts = list(path.with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    if name in _PUBLISHED:
        return _PUBLISHED[name]
    public = all(part.isidentifier() and (not part.startswith("_") or part == "__future__") for part in parts)
    return name if public and parts else None


def _definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """Yield public definitions, those behind `if` and `try` included."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse])


def _definition_text(module: str, node: Definition) -> str | None:
    """Write a definition's document: heading, what it is and where, its docstring, then its methods."""
    docstring = ast.get_docstring(node)
    methods = list(_methods(f"{node.name}", node)) if isinstance(node, ast.ClassDef) else []
    if not docstring and not methods:
        return None
    heading = f"{module}.{node.name}{_signature(node)}"
    place = f"{node.name} is a {_kind(node)} in the module {module}."
    return "\n\n".join([heading, place, *([docstring] if docstring else []), *methods]) + "\n"


def _methods(owner: str, node: ast.ClassDef) -> Iterator[str]:
    for item in _definitions(node.body):
        docstring = ast.get_docstring(item)
        if docstring:
            indented = "\n".join(f"    {line}" if line else "" for line in docstring.splitlines())
            yield f"{owner}.{item.name}{_signature(item)}\n{indented}"


def _kind(node: Definition) -> str:
    return "class" if isinstance(node, ast.ClassDef) else "function"


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base) for base in node.bases]
        return f"({', '.join(bases)})" if bases else ""
    return f"({_without_long_values(node.args)})"


def _without_long_values(arguments: ast.arguments) -> str:
    """Write parameters with their defaults; a default longer than a name or number is left as `...`."""
    for defaults in (arguments.defaults, arguments.kw_defaults):
        for index, value in enumerate(defaults):
            if value is not None and len(ast.unparse(value)) > _LONGEST_VALUE:
                defaults[index] = ast.Constant(...)
    return ast.unparse(arguments)
