import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ludus.base.errors import DataError
from ludus.corpus.build import build, read
from ludus.corpus.document import Document
from ludus.corpus.settings import CorpusSettings
from ludus.corpus.split import Entries
from ludus.corpus.split import split as chosen

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "text" / "tinyshakespeare.txt"


@dataclass
class Sides:
    train: list[Document]
    validation: list[Document]
    method: str


def split(documents: list[Document], fraction: float, seed: int, groups: list[int] | None = None, **how) -> Sides:
    entries = Entries(seed)
    for document in documents:
        entries.add(document)
    found = chosen(entries, documents, fraction, groups=groups, **how)
    sides: dict[str, list[Document]] = {"train": [], "validation": []}
    for side, document in found.sides(documents):
        sides[side].append(document)
    return Sides(**sides, method=found.method)


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


@given(
    text=st.text(st.sampled_from("ab \n"), min_size=1, max_size=60), fraction=st.floats(0.01, 0.5), exact=st.booleans()
)
def test_a_text_is_cut_into_two_parts_without_loss_or_refused(text: str, fraction: float, exact: bool):
    try:
        sides = split(made(text), fraction, seed=0, exact=exact)
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


def test_an_exact_cut_takes_the_share_to_the_character():
    text = "".join(f"line {index} of the text\n" for index in range(500))
    sides = split(made(text), 0.1, seed=0, exact=True)
    assert len(sides.train[0].text) == int(len(text) * 0.9)
    assert sides.train[0].text + sides.validation[0].text == text


@pytest.mark.oracle
@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the text is not at hand")
def test_shakespeare_verbatim_is_split_where_nanogpt_splits_it(tmp_path: Path):
    text = SHAKESPEARE.read_text(encoding="utf-8")
    assert len(text) == 1_115_394
    settings = CorpusSettings(path=str(SHAKESPEARE), validation_fraction=0.1, verbatim=True)
    report = build(settings, tmp_path, seed=0)
    train, validation = ([d.text for d in read(tmp_path, side)] for side in ("train", "validation"))
    assert (train, validation) == ([text[: int(len(text) * 0.9)]], [text[int(len(text) * 0.9) :]])
    assert len(validation[0]) == 111_540
    assert report["dropped"] == {}


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the text is not at hand")
def test_shakespeare_cleaned_loses_four_blanks_and_is_cut_at_a_line_end(tmp_path: Path):
    report = build(CorpusSettings(path=str(SHAKESPEARE), validation_fraction=0.1), tmp_path, seed=0)
    assert report["dropped"] == {"cleaned": {"documents": 0, "characters": 4}}
    assert (report["train"]["characters"], report["validation"]["characters"]) == (1_003_852, 111_538)
