"""docs/papers.md and the docstrings say the same, read both ways."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACE = r"(?:eq\. \d+|appendix [A-Z]|§[\d.]*\d)"
CITATION = re.compile(rf"arXiv[ :](\d{{4}}\.\d{{4,5}})(?: ({PLACE}))?")


class Row(NamedTuple):
    """A line of the page: a paper by its number or its author, where in it, and the dotted name of the code."""

    paper: str
    place: str
    code: str


def rows(columns: int) -> list[Row]:
    """Return the rows of the table that has so many columns."""
    lines = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    found = [line for line in cells if len(line) == columns and line[-1].startswith("`")]
    return [Row(line[0], line[2] if columns == 4 else "", line[-1].strip("`")) for line in found]


@lru_cache
def docstrings() -> dict[str, str]:
    """Return the docstring of every module, class and function of the package by dotted name."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "ludus").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found |= dict(_documented(ast.parse(file.read_text(encoding="utf-8")), module))
    return found


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[tuple[str, str]]:
    yield name, " ".join((ast.get_docstring(node) or "").split())
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from _documented(child, f"{name}.{child.name}")


def said_of(name: str) -> str:
    """Return what the docstrings of something and of its module say."""
    return " ".join(docstrings()[part] for part in (name, name.rpartition(".")[0]) if part in docstrings())


@pytest.mark.parametrize("row", rows(4), ids=lambda row: f"{row.paper}-{row.code.rpartition('.')[2]}")
def test_the_code_of_a_row_exists_and_cites_its_paper_and_place(row: Row):
    assert row.code in docstrings(), f"docs/papers.md names {row.code}, which does not exist"
    cited = {paper for paper, _ in CITATION.findall(said_of(row.code))}
    assert row.paper in cited, f"{row.code} does not cite arXiv {row.paper}"
    assert row.place in said_of(row.code), f"{row.code} does not cite {row.place}"


@pytest.mark.parametrize("row", rows(3), ids=lambda row: row.paper)
def test_the_code_of_a_row_names_its_author(row: Row):
    author, year = row.paper.split()[0], row.paper.split()[-1]
    said = docstrings()[row.code]
    assert author in said
    assert year in said


def test_every_citation_in_a_docstring_has_its_row():
    known = rows(4)
    for name, said in docstrings().items():
        for paper, place in CITATION.findall(said):
            fitting = [row for row in known if row.paper == paper and f"{row.code}.".startswith(f"{name}.")]
            assert fitting, f"{name} cites arXiv {paper}, which has no row in docs/papers.md"
            assert not place or place in {row.place for row in fitting}, f"{name} cites {place} of arXiv {paper}"


def test_no_citation_hides_outside_docstrings():
    for file in sorted((ROOT / "ludus").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        said = " ".join(
            ast.get_docstring(node) or ""
            for node in ast.walk(ast.parse(text))
            if hasattr(node, "body") and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        )
        assert len(re.findall("arXiv", text)) == len(re.findall("arXiv", said)), (
            f"{file.name} cites outside a docstring"
        )
