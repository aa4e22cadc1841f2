import string

from hypothesis import given
from hypothesis import strategies as st

from ludus.corpus.exercises.kinds import Exercise
from ludus.rollouts.rewards import LONGEST, Verdict, extract, style, verify

words = st.text(string.ascii_letters + string.digits + " ", min_size=1, max_size=LONGEST).filter(str.strip)


@given(words)
def test_the_right_answer_is_correct_in_both_styles(answer):
    exercise = Exercise("kind", "problem", "prompt", answer.strip())
    assert verify(exercise.concise(), exercise.answer) is Verdict.CORRECT
    assert verify(exercise.rambling(), exercise.answer) is Verdict.CORRECT
    assert style(exercise.concise()) == "concise"
    assert style(exercise.rambling()) == "rambling"


@given(words, words)
def test_verdicts_tell_wrong_from_right_but_for_case_and_spacing(response, answer):
    same = response.lower().split() == answer.lower().split()
    assert verify(response, answer) is (Verdict.CORRECT if same else Verdict.WRONG)


@given(st.text(max_size=200), words)
def test_any_response_has_a_verdict_and_a_style_that_agree(response, answer):
    verdict = verify(response, answer)
    assert isinstance(verdict, Verdict)
    assert (verdict is Verdict.UNPARSEABLE) == (extract(response) is None) == (style(response) == "other")


@given(words)
def test_a_response_that_was_cut_off_has_not_answered(answer):
    assert verify(answer, answer, finished=False) is Verdict.UNPARSEABLE


def test_what_is_no_answer_is_not_wrong_but_unparseable():
    for response in ("", "  ", ".", ",", ", and more", "two\nlines", "x" * (LONGEST + 1)):
        assert verify(response, "x") is Verdict.UNPARSEABLE


def test_an_answer_is_compared_without_its_full_stop_case_and_spaces():
    for response in ("e a t", " e a t. ", "E A  T", "e a t, I think.", "e a t., no"):
        assert verify(response, "e a t") is Verdict.CORRECT
    for response in ("e a", "e a t s", "I think e a t", "e a t or not", "eat", "12"):
        assert verify(response, "e a t") is Verdict.WRONG
