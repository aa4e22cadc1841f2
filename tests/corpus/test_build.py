import json
import random
import weakref
from pathlib import Path

import pytest

from ludus.base.errors import DataError
from ludus.corpus import build as build_module
from ludus.corpus import dedup, shards, shelf
from ludus.corpus.build import build, read
from ludus.corpus.dedup import leaders
from ludus.corpus.document import Document
from ludus.corpus.settings import CorpusSettings


def source(folder: Path, *texts: str) -> str:
    (folder / "source.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(folder / "source.jsonl")


def long_text(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"word{draw.randint(0, 999)}" for _ in range(60))


def built(folder: Path, *texts: str, **settings) -> dict:
    (folder / "corpus").mkdir(exist_ok=True)
    return build(CorpusSettings(path=source(folder, *texts), **settings), folder / "corpus", seed=0)


TEXTS = [long_text(seed) for seed in range(40)]
MESSY = ["", " \n", "short", TEXTS[0].upper(), TEXTS[1] + " and a little more", "e\u0301\r\n" + long_text(50) + "\x07"]


@pytest.mark.law
@pytest.mark.parametrize("near_duplicates", [True, False])
def test_everything_read_is_kept_or_dropped_for_a_reason(tmp_path: Path, near_duplicates: bool):
    report = built(tmp_path, *TEXTS, *MESSY, near_duplicates=near_duplicates)
    for unit in ("documents", "characters"):
        dropped = sum(count[unit] for count in report["dropped"].values())
        assert report["read"][unit] == report["kept"][unit] + dropped
        assert report["kept"][unit] == report["train"][unit] + report["validation"][unit]
    assert report["read"]["characters"] == sum(map(len, TEXTS + MESSY))
    expected = {"empty": 2, "too short": 1, "copy": 1, "cleaned": 0} | ({"near copy": 1} if near_duplicates else {})
    assert {reason: count["documents"] for reason, count in report["dropped"].items()} == expected
    assert json.loads((tmp_path / "corpus" / "report.json").read_text()) == report


def test_what_was_written_reads_back(tmp_path: Path):
    report = built(tmp_path, *TEXTS)
    parts = {split: list(read(tmp_path / "corpus", split)) for split in ("train", "validation")}
    assert sorted(d.text for part in parts.values() for d in part) == sorted(text + "\n" for text in TEXTS)
    for split, part in parts.items():
        assert report[split]["documents"] == len(part)
        assert report[split]["bytes"] == sum(len(d.text.encode()) for d in part)
    assert parts["validation"]


def test_the_same_settings_give_the_same_corpus(tmp_path: Path):
    first = built(tmp_path, *TEXTS)
    files = {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    assert built(tmp_path, *TEXTS) == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()} == files


@pytest.mark.law
@pytest.mark.parametrize("near_duplicates", [True, False])
def test_a_corpus_that_is_put_aside_on_the_disk_is_the_one_held_in_memory(tmp_path, monkeypatch, near_duplicates: bool):
    texts = TEXTS + MESSY + [long_text(99) * 30]
    held = built(tmp_path, *texts, near_duplicates=near_duplicates)
    files = {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    monkeypatch.setattr(shelf, "_HELD_CHARACTERS", 3000)
    monkeypatch.setattr(dedup, "_BATCH_SHINGLES", 90)
    assert built(tmp_path, *texts, near_duplicates=near_duplicates) == held
    assert {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()} == files


def test_beyond_a_number_of_documents_kin_is_no_longer_looked_for_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "_KIN_DOCUMENTS", 5)
    report = built(tmp_path, *TEXTS, near_duplicates=False)
    assert report["kept"]["documents"] == len(TEXTS)
    assert report["notes"] == ["more than 5 documents: near copies of those held out were not looked for"]


def test_documents_pass_through_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of what is read, no more is held than the shelf and the comparison of near copies ask for."""
    monkeypatch.setattr(shelf, "_HELD_CHARACTERS", 3000)
    monkeypatch.setattr(dedup, "_BATCH_SHINGLES", 500)
    alive, most = weakref.WeakSet(), []

    class Watched(str):
        __slots__ = ("__weakref__",)

    def found(settings, reading):
        for number in range(400):
            text = Watched(long_text(1000 + number))
            alive.add(text)
            most.append(len(alive))
            yield Document(text, str(number), "s")

    monkeypatch.setattr(build_module, "documents", found)
    monkeypatch.setattr(build_module, "clean", lambda text: text)
    build(CorpusSettings(), tmp_path, seed=0)
    assert len(most) == 400
    assert max(most) < 60


@pytest.mark.parametrize("near_duplicates", [True, False])
def test_no_near_copy_of_a_validation_document_is_trained_on(tmp_path: Path, near_duplicates: bool):
    copies = [f"{text} copy {number}" for text in TEXTS for number in range(3)]
    built(tmp_path, *copies, near_duplicates=near_duplicates, validation_fraction=0.2)
    held = [d.text for d in read(tmp_path / "corpus", "validation")]
    trained = [d.text for d in read(tmp_path / "corpus", "train")]
    assert held
    assert len(held) + len(trained) == (len(TEXTS) if near_duplicates else len(copies))
    copied = {leader for leader in leaders(held + trained)[len(held) :] if leader < len(held)}
    assert not copied


def test_nothing_left_is_one_clear_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"2 documents read \(1 empty, 1 too short\).*minimum_characters=20") as caught:
        built(tmp_path, "", "short")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is empty"):
        built(tmp_path)


def test_shards_are_cut_by_size_and_keep_order_and_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_SHARD_CHARACTERS", 10)
    documents = [Document("text\n" * n, f"{n}\ud800", "s", "u", "l", {"n": n, "what": "\ud800"}) for n in range(1, 6)]
    size = shards.write(documents, tmp_path, "train")
    assert size["shards"] == len(list(tmp_path.glob("train-*.parquet"))) > 1
    back = list(read(tmp_path, "train"))
    assert [(d.text, d.metadata) for d in back] == [(d.text, d.metadata) for d in documents]
    assert back[0].id == "1?"


def test_a_folder_without_a_corpus_and_a_broken_shard_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no train part"):
        list(read(tmp_path, "train"))
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="build the corpus again"):
        list(read(tmp_path, "train"))
