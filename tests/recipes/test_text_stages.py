"""From text to token shards, without a model: what the corpus and tokenizer stages leave."""

import json
import random
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from ludus.data import shards
from ludus.data.mixture import Domain, Mixture
from ludus.data.settings import DataSettings
from ludus.recipes import corpus, tokenizer
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe
from ludus.runs.manifest import Manifest
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import sampled


def texts(words: str, count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words.split(), k=draw.randint(10, 60))) + ".\n" for _ in range(count)]


def place(folder: Path, **settings) -> Place:
    return Place(Recipe.model_validate({"tokenizer": {"vocabulary": 280}, **settings}), folder / "runs" / "x")


def made(where: Place) -> tuple[dict, Tokenizer]:
    for stage in (corpus, tokenizer):
        stage.make(where, Manifest("test", fingerprint=""))
    return json.loads((where.corpus / "report.json").read_text()), Tokenizer.load(where.tokenizer)


def written(folder: Path, found: list[str]) -> str:
    folder.write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    return str(folder)


@pytest.mark.parametrize("batch", [1, 300, 1_000_000])
def test_the_tokens_on_disk_spell_the_corpus_framed_document_for_document(tmp_path: Path, monkeypatch, batch: int):
    monkeypatch.setattr(tokenizer, "_BATCH_CHARACTERS", batch)
    path = written(tmp_path / "a.jsonl", texts("the cat sat on a mat and saw the sea", 90, 0))
    where = place(tmp_path, corpus={"path": path, "near_duplicates": False})
    report, vocabulary = made(where)
    for split in ("train", "validation"):
        found = shards.read(where.tokens / split, tokenizer_hash=vocabulary.hash)
        spelt = []
        for start, stop in pairwise(found.offsets.tolist()):
            document = found.tokens[start:stop].tolist()
            assert (document[0], document[-1]) == (vocabulary.bos, vocabulary.end)
            spelt.append(vocabulary.decode(document[1:-1]))
        assert spelt == [document.text for document in corpus_documents(where, split)]
        assert found.num_bytes == report[split]["bytes"]


def corpus_documents(where: Place, split: str) -> list:
    from ludus.corpus.build import read

    return list(read(where.corpus, split))


def test_a_mixture_goes_from_files_to_batches(tmp_path: Path, capsys: pytest.CaptureFixture):
    web = texts("the cat sat on a mat and saw the sea", 90, 0)
    data = DataSettings.model_validate(
        {
            "mixture": {
                "web": {"path": written(tmp_path / "web.jsonl", web), "weight": 0.7},
                "books": {
                    "path": written(tmp_path / "b.jsonl", [*texts("ship wind star", 60, 1), web[0]]),
                    "weight": 0.3,
                },
            }
        }
    )
    where = place(tmp_path, data=data, corpus={"near_duplicates": False})
    report, vocabulary = made(where)
    assert report["dropped"] == {"copy": {"documents": 1, "characters": len(web[0])}}
    assert set(report["domains"]) == {"web", "books"}
    assert set(corpus.inputs(where)) == {f"source {tmp_path / name}" for name in ("web.jsonl", "b.jsonl")}
    parts = {
        name: shards.read(where.tokens / name / "train", tokenizer_hash=vocabulary.hash) for name in ("web", "books")
    }
    words = {name: set(vocabulary.decode(part.tokens[:].tolist()).split()) for name, part in parts.items()}
    assert words["web"].isdisjoint(words["books"])
    whole = shards.read(where.tokens / "train", tokenizer_hash=vocabulary.hash)
    assert whole.tokens[:].tolist() == np.concatenate([part.tokens[:] for part in parts.values()]).tolist()
    assert whole.num_bytes == sum(part.num_bytes for part in parts.values()) == report["train"]["bytes"]
    domains = {name: Domain(parts[name], data.mixture[name].weight) for name in parts}
    mixture = Mixture(domains, context=32, rows=10, pad_token=vocabulary.pad, seed=0)
    for batch in islice(mixture, 3):
        rows = [set(vocabulary.decode(row.tolist()).split()) for row in batch.tokens]
        assert sum(bool(row & words["web"]) for row in rows) == 7
    assert "books: " in capsys.readouterr().out


def test_the_weights_of_a_mixture_do_not_make_the_corpus_anew(tmp_path: Path):
    def settings(weight: float, path: str = "a") -> dict:
        mixture = {"one": {"path": path, "weight": weight}, "two": {"hub": "b/c"}}
        return corpus.settings_of(place(tmp_path, data={"mixture": mixture}).recipe)

    assert settings(0.5) == settings(0.7)
    assert settings(0.5) != settings(0.5, "z")


def test_data_path_is_what_the_corpus_is_read_from(tmp_path: Path):
    from ludus.base.config import resolve

    def resolved(*overrides: str) -> Recipe:
        return resolve(Recipe, recipe=None, presets=tmp_path, environment={}, overrides=overrides).settings

    assert resolved("data.path=../texts").corpus.path == "../texts"
    assert resolved("data.path=../texts", "corpus.path=mine").corpus.path == "mine"
    assert resolved("data.hub=a/b").corpus.hub == "a/b"
    assert resolved("data.hub=a/b").corpus.near_duplicates is False
    assert resolved("data.hub=a/b", "data.path=c").corpus.near_duplicates is True


def test_a_sample_is_a_share_of_all_text_evenly():
    short, long = ["x" * 100] * 500, ["y" * 100_000]
    for share in (0.01, 0.3, 1.0):
        taken = list(sampled([*short, *long, *short], share))
        size = sum(map(len, taken))
        assert abs(size - share * 200_000) <= 1000
        assert abs(sum(len(text) for text in taken if text[0] == "y") - share * 100_000) <= 1000
    assert list(sampled(short, 1.0)) == short


def test_a_vocabulary_is_trained_on_a_sample_where_there_is_more_and_it_is_said(tmp_path: Path, capsys):
    path = written(tmp_path / "a.jsonl", texts("the cat sat on a mat and saw the sea", 200, 0))
    where = place(tmp_path, corpus={"path": path}, tokenizer={"vocabulary": 270, "sample_bytes": 5000})
    made(where)
    assert "evenly (tokenizer.sample_bytes=5,000)" in capsys.readouterr().out
