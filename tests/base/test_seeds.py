from hypothesis import given
from hypothesis import strategies as st

from ludus.base.seeds import derive_seed

names = st.lists(st.text() | st.integers(), max_size=4)


@given(seed=st.integers(), path=names)
def test_a_derived_seed_is_stable_and_fits_a_torch_generator(seed, path):
    assert derive_seed(seed, *path) == derive_seed(seed, *path)
    assert 0 <= derive_seed(seed, *path) < 2**63


def test_a_derived_seed_never_changes_between_versions():
    assert derive_seed(0, "dropout") == 8274642947821326870
    assert derive_seed(1234, "shuffle", 7) == 5369115551570985423


@given(seed=st.integers(), first=names, second=names)
def test_different_names_have_different_seeds(seed, first, second):
    same = [(type(name), name) for name in first] == [(type(name), name) for name in second]
    assert (derive_seed(seed, *first) == derive_seed(seed, *second)) == same


def test_names_do_not_run_together():
    seeds = [derive_seed(1, "a", "b"), derive_seed(1, "ab"), derive_seed(1, "a", 1), derive_seed(1, "a", "1")]
    assert len({*seeds, derive_seed(2, "a", "b"), derive_seed(1)}) == 6
