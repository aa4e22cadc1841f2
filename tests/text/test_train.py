import subprocess
import sys

import pytest

from ludus.base.errors import DataError
from ludus.text.settings import TokenizerSettings
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import prepare, train

TEXT = (
    "It's 1234 + 56 = 1290.\n\n    The cat, the hat and the bat: x = 7; y_2 = the_end(x)\n"
    "While others were waiting, a number of people remembered what something between them had meant.\n"
) * 4
SCRIPT = """
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train
print(train([{text!r}, "so far so good, so far"], TokenizerSettings(vocabulary=300)).hash)
"""


def test_every_digit_is_a_token_of_its_own():
    tokenizer = train([TEXT], TokenizerSettings(vocabulary=320))
    for number in ("1234", " 56", "x=1290.", "1234 + 56 = 1290"):
        pieces = [tokenizer.decode([index]) for index in tokenizer.encode(number)]
        assert all(len(piece) == 1 for piece in pieces if any(map(str.isdigit, piece))), pieces


def test_words_carry_their_space():
    tokenizer = train([TEXT * 3], TokenizerSettings(vocabulary=320))
    assert " the" in {tokenizer.decode([index]) for index in range(tokenizer.vocabulary_size)}


def test_training_twice_in_other_processes_gives_the_same_vocabulary():
    script = SCRIPT.format(text=TEXT)
    hashes = {
        subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
        for env in (
            {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "1"},
            {"RAYON_NUM_THREADS": "2", "PYTHONHASHSEED": "2"},
        )
    }
    assert len(hashes) == 1
    assert train([TEXT, "so far so good, so far"], TokenizerSettings(vocabulary=300)).hash == hashes.pop().strip()


def test_a_vocabulary_has_exactly_the_size_asked_for():
    assert train([TEXT], TokenizerSettings(vocabulary=300)).vocabulary_size == 300


def test_a_vocabulary_the_text_cannot_fill_names_the_size_that_it_can():
    with pytest.raises(DataError, match=r"set tokenizer\.vocabulary=\d+ or less") as caught:
        train([TEXT], TokenizerSettings(vocabulary=4096))
    supported = int(str(caught.value).split("tokenizer.vocabulary=")[1].split()[0])
    assert train([TEXT], TokenizerSettings(vocabulary=supported)).vocabulary_size == supported


def test_characters_are_counted_not_asked_for():
    tokenizer = train(["hello", "wörld"], TokenizerSettings(kind="character"))
    assert tokenizer.vocabulary_size == 6 + 256 + len(set("hellowörld"))
    assert len(tokenizer.encode("wörld")) == 5
    with pytest.raises(DataError, match="no text"):
        train([], TokenizerSettings(kind="character"))


def test_an_existing_tokenizer_is_used_instead_of_training(tmp_path):
    tokenizer = train([TEXT], TokenizerSettings(vocabulary=300))
    tokenizer.save(tmp_path)
    assert isinstance(prepare(iter(()), TokenizerSettings(path=str(tmp_path))), Tokenizer)
    assert prepare(iter(()), TokenizerSettings(path=str(tmp_path))).hash == tokenizer.hash
