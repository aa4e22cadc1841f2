import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ludus.base.errors import DataError
from ludus.corpus.document import Document
from ludus.corpus.split import split


def made(*texts: str) -> list[Document]:
    return [Document(text, f"d{index}", "test") for index, text in enumerate(texts)]


def many(count: int = 200) -> list[Document]:
    draw = random.Random(0)
    return made(*(f"document {index} " + "x" * draw.randint(5, 400) for index in range(count)))


def characters(documents: list[Document]) -> int:
    return sum(len(document.text) for document in documents)


def test_about_the_fraction_is_held_out():
    documents = many()
    sides = split(documents, 0.1, seed=0)
    assert 0.1 <= characters(sides.validation) / characters(documents) <= 0.15
    assert characters(sides.train) + characters(sides.validation) == characters(documents)


def test_the_order_of_documents_does_not_matter_and_the_seed_does():
    documents = many()
    held = {document.id for document in split(documents, 0.1, seed=0).validation}
    assert {document.id for document in split(documents[::-1], 0.1, seed=0).validation} == held
    assert {document.id for document in split(documents, 0.1, seed=1).validation} != held


def test_groups_stay_together():
    documents = many()
    groups = [index - index % 4 for index in range(len(documents))]
    held = {int(document.id[1:]) for document in split(documents, 0.1, 0, groups).validation}
    assert held
    assert all((index in held) == (groups[index] in held) for index in range(len(documents)))


def test_one_long_text_is_cut_at_a_line_end_and_the_report_says_so():
    text = "".join(f"line {index} of the text\n" for index in range(500))
    sides = split(made(text), 0.05, seed=0)
    assert sides.train[0].text + sides.validation[0].text == text
    assert sides.train[0].text.endswith("\n")
    assert 0.04 < len(sides.validation[0].text) / len(text) < 0.06
    assert "cut at a line end" in sides.method


@given(text=st.text(st.sampled_from("ab \n"), min_size=1, max_size=60), fraction=st.floats(0.01, 0.5))
def test_a_text_is_cut_into_two_parts_without_loss_or_refused(text: str, fraction: float):
    try:
        sides = split(made(text), fraction, seed=0)
    except DataError:
        return
    assert sides.train[0].text + sides.validation[0].text == text
    assert sides.train[0].text.strip()
    assert sides.validation[0].text.strip()


def test_a_text_without_line_ends_is_cut_at_a_space():
    sides = split(made("word " * 1000), 0.1, seed=0)
    assert sides.train[0].text.endswith(" ")
    assert not sides.validation[0].text.startswith(" ")


def test_too_little_text_or_texts_all_alike_are_refused():
    with pytest.raises(DataError, match="too few"):
        split(made("a"), 0.05, seed=0)
    with pytest.raises(DataError, match="too alike"):
        split(made("the same text " * 9, "the same text! " * 9), 0.05, 0, groups=[0, 0])
