"""Options of the verbs without a recipe: every mistake is a line, help is made of the same table."""

import pytest

from ludus.base.errors import ConfigError
from ludus.cli.options import Option, Usage, help_text, read

USAGE = Usage(
    "look",
    "Look at things",
    (("THING", "what to look at"), ("OTHER", "what to compare it with")),
    1,
    (
        Option("--far", "how far", float, "X", 1.5, 0, 10),
        Option("--times", "how often", int, "N", 2, 1),
        Option("--name", "a word", str, "WORD"),
        Option("--kind", "a choice", str, "KIND", "big", choices=("big", "small")),
        Option("--loud", "a switch"),
    ),
    "The end.",
)


def test_words_options_and_defaults_are_read():
    given = read(USAGE, ["a", "--far", "0", "--times=3", "--name=--x", "--loud", "b"])
    assert given is not None
    assert given.words == ["a", "b"]
    assert [given[name] for name in ("far", "times", "name", "kind", "loud")] == [0.0, 3, "--x", "big", True]
    assert read(USAGE, ["-", "--name", "-"])["name"] == "-"


def test_an_option_that_may_be_given_several_times_is_a_list():
    usage = Usage("look", "Look", options=(Option("--with", "a thing", str, "X", several=True),))
    assert read(usage, [])["with"] == []
    assert read(usage, ["--with", "a", "--with=b"])["with"] == ["a", "b"]
    assert read(usage, [])["with"] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "THING is missing: ludus look THING [OTHER] [options]; THING is what to look at"),
        (["a", "b", "c"], "c: unexpected; ludus look THING [OTHER] [options]"),
        (["a", "b", "times=3"], "times=3: unexpected; write --times 3"),
        (["a", "--tims", "3"], "unknown option --tims; did you mean --times?"),
        (["a", "-x"], "unknown option -x; ludus look --help lists them"),
        (["a", "--far"], "--far needs a value: --far X"),
        (["a", "--far", "--loud"], "--far needs a value: --far X"),
        (["a", "--far", "hot"], "--far expects a number from 0 to 10, got 'hot'"),
        (["a", "--far", "nan"], "--far expects a number from 0 to 10, got 'nan'"),
        (["a", "--far", "-1"], "--far expects a number from 0 to 10, got '-1'"),
        (["a", "--times", "0"], "--times expects a whole number, 1 or more, got '0'"),
        (["a", "--times", "1.5"], "--times expects a whole number, 1 or more, got '1.5'"),
        (["a", "--loud=1"], "--loud takes no value, got '1'"),
        (["a", "--kind", "smal"], "--kind smal: known are big, small; did you mean small?"),
    ],
)
def test_a_mistake_is_one_line(argv, message):
    with pytest.raises(ConfigError) as caught:
        read(USAGE, argv)
    assert str(caught.value) == message


def test_help_shows_every_word_and_option_with_its_default(capsys):
    assert read(USAGE, ["--far", "3", "-h"]) is None
    shown = capsys.readouterr().out
    assert shown == help_text(USAGE) + "\n"
    for said in ("usage: ludus look THING [OTHER] [options]", "--far X", "default 1.5", "what to look at", "The end."):
        assert said in shown
