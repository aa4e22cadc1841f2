import sys

import pytest

from ludus.corpus.document import Document
from ludus.corpus.interpreter import interpreter_documents, module_documents

SOURCE = b'''
"""What the module is for."""
import os

__all__ = ["Shelf"]

if os.name == "nt":
    def place(a): "There."
else:
    def place(b): "Here."

class Shelf(dict, object):
    """A shelf.

    As in:
        indented
    """
    def put(self, item, *, where=(1, 2, 3), table={"a": "a long default value", "b": "another one"}): 
        """Put an item."""
    def _hide(self): "Private."
    def silent(self): pass
    async def fetch(self, url: str = "x") -> bytes: "Get it."

class _Hidden: "Private."
class Undocumented: pass
def undocumented(): pass
'''


@pytest.fixture(scope="module")
def library() -> dict[str, Document]:
    imported = set(sys.modules)
    found = {document.id: document for document in interpreter_documents("python")}
    assert not {name for name in set(sys.modules) - imported if not name.startswith("pydoc_data")}
    return found


def test_a_module_gives_documents_for_itself_and_what_is_public_and_documented():
    found = {name: (kind, text) for name, kind, text in module_documents("shop.shelf", SOURCE)}
    assert list(found) == ["", "place", "Shelf"]
    assert found[""] == (
        "module",
        "shop.shelf\n\nshop.shelf is a module of the Python standard library.\n\nWhat the module is for.\n",
    )
    assert found["place"][1].startswith("shop.shelf.place(a)\n\nplace is a function in the module shop.shelf.\n")
    kind, text = found["Shelf"]
    assert kind == "class"
    assert text == (
        "shop.shelf.Shelf(dict, object)\n\nShelf is a class in the module shop.shelf.\n\n"
        "A shelf.\n\nAs in:\n    indented\n\n"
        "Shelf.put(self, item, *, where=(1, 2, 3), table=...)\n    Put an item.\n\n"
        "Shelf.fetch(self, url: str='x')\n    Get it.\n"
    )


def test_broken_source_documents_nothing():
    assert list(module_documents("broken", b"def (")) == []
    assert list(module_documents("broken", b"\x00")) == []


def test_the_library_says_which_module_defines_what(library: dict[str, Document]):
    document = library["class:collections.OrderedDict"]
    assert document.text.startswith(
        "collections.OrderedDict(dict)\n\nOrderedDict is a class in the module collections.\n"
    )
    assert document.metadata == {"module": "collections", "name": "OrderedDict", "kind": "class"}
    assert library["class:decimal.Decimal"].metadata["module"] == "decimal"
    assert "function:os.path.join" in library
    assert "class:pathlib.Path" in library
    assert "topic:while" in library


def test_the_library_is_public_of_useful_size_and_told_apart(library: dict[str, Document]):
    assert 1.8e6 < sum(len(document.text) for document in library.values()) < 2.6e6
    assert len(library) > 2000
    for document in library.values():
        parts = f"{document.metadata['module']}.{document.metadata['name']}".split(".")
        assert not any(part.startswith("_") for part in parts if part != "__future__"), document.id
        assert parts[0] not in ("test", "idlelib", "lib2to3")
