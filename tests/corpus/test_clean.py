import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from ludus.corpus.clean import clean

texts = st.text(st.one_of(st.characters(), st.sampled_from("\r\n\t \x00\x0c\ufeffe\u0301\ud800 a")), max_size=60)


@given(text=texts)
def test_cleaning_twice_changes_nothing_more(text: str):
    assert clean(clean(text)) == clean(text)


@given(text=texts)
def test_clean_text_is_uniform_and_can_be_written(text: str):
    result = clean(text)
    assert result == "" or result.endswith("\n")
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in result if character not in "\n\t")
    assert "\n\n\n\n" not in result
    assert not any(line.endswith((" ", "\t")) for line in result.split("\n"))
    assert unicodedata.is_normalized("NFC", result)


def test_what_the_text_says_stays():
    assert clean("  first\tline \r\nsecond\rthird\x07\n\n\n\n\n\nlast e\u0301") == (
        "  first\tline\nsecond\nthird\n\n\nlast \u00e9\n"
    )
    assert clean("\ufeffmark") == "mark\n"
    assert clean(" \n\t\n") == ""
