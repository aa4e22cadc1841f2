"""Make text uniform without changing what it says; cleaning what is clean changes nothing."""

import re
import unicodedata

_LINE_ENDS = re.compile(r"\r\n?|[\f\v\x85\u2028\u2029]")
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")


def encodable(text: str) -> str:
    """Return text with lone surrogates, which no file can hold, as U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def clean(text: str) -> str:
    """Return text in NFC with Unix line ends, no control characters, no trailing spaces, at most two blank lines."""
    text = _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))
    text = unicodedata.normalize("NFC", encodable(text))
    text = _BLANK_LINES.sub("\n\n\n", _TRAILING.sub("", text)).strip("\n")
    return f"{text}\n" if text.strip() else ""
