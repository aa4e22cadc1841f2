"""`ludus report`: several runs on one page, mistakes in a line."""

import pytest

from ludus.base.errors import ConfigError, RunError
from ludus.cli import report


def test_words_that_name_runs_are_told_from_the_values_of_flags():
    assert report.taken_apart(["a", "--output", "page.html", "b"]) == (["a", "b"], ["--output", "page.html"])
    assert report.taken_apart(["a", "--output=page.html"]) == (["a"], ["--output=page.html"])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="nothing does not exist"):
        report.main([str(tmp_path / "nothing"), str(tmp_path / "none")])


@pytest.mark.parametrize("words", [["--output", "page.html"], ["--output=page.html"]])
def test_one_run_has_its_page_where_it_is(words, tmp_path):
    with pytest.raises(ConfigError, match=r"report\.html"):
        report.main([str(tmp_path), *words])
