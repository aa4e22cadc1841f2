import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.corpus.dedup import families, fingerprint, leaders

WORDS = [f"word{index}" for index in range(500)]


def sentence(seed: int, words: int = 200) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def edited(words: list[str], share: float, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("changed" if draw.random() < share else word for word in words)


def test_case_and_spaces_do_not_make_a_text_another():
    assert fingerprint("The  same\nTEXT") == fingerprint("the same text ")
    assert fingerprint("1 + 2") != fingerprint("1 - 2")


def test_planted_near_copies_are_found_and_others_left_alone():
    originals = [sentence(seed) for seed in range(60)]
    texts = [" ".join(words) for words in originals]
    copies = [edited(words, 0.02, seed) for seed, words in enumerate(originals)]
    found = leaders(texts + copies)
    assert found[:60] == list(range(60))
    assert sum(leader == index for index, leader in enumerate(found[60:])) >= 55


def test_texts_that_share_only_a_little_are_kept():
    words = sentence(1)
    halves = [" ".join(words), " ".join(words[:100] + sentence(2, 100)), " ".join(sentence(3))]
    assert leaders(halves) == [0, 1, 2]


def test_of_very_short_texts_only_the_same_are_copies():
    assert leaders(["1 + 2", "1 - 2", "1  + 2", "", "?"]) == [0, 1, 0, 3, 4]


def test_no_kept_text_is_a_near_copy_of_another_kept_one():
    base = sentence(7)
    texts = [edited(base, 0.03, seed) for seed in range(120)]
    found = leaders(texts)
    kept = [text for index, text in enumerate(texts) if found[index] == index]
    assert len(kept) < len(texts)
    assert leaders(kept) == list(range(len(kept)))


def test_a_family_is_named_by_its_first_member():
    base = sentence(9)
    texts = [
        "something else entirely, said in a few more words",
        " ".join(base),
        edited(base, 0.01, 1),
        edited(base, 0.01, 2),
    ]
    assert families(texts) == [0, 1, 1, 1]


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(max_size=30), max_size=8))
def test_any_texts_are_compared_and_a_later_one_never_leads(texts: list[str]):
    for found in (leaders(texts), families(texts)):
        assert len(found) == len(texts)
        assert all(leader <= index for index, leader in enumerate(found))
        assert all(found[leader] == leader for leader in found)


def test_pairs_do_not_depend_on_what_else_is_compared():
    a, b = " ".join(sentence(4)), edited(sentence(4), 0.01, 5)
    others = [" ".join(sentence(seed, 2000)) for seed in range(20, 60)]
    assert leaders([a, b]) == [0, 0]
    assert leaders([*others, a, b])[-1] == len(others)
