from itertools import islice

import numpy as np
import pytest
import torch

from ludus.base.errors import ConfigError, DataError
from ludus.data.batch import Batch
from ludus.data.mixture import Domain, Mixture
from ludus.data.ramps import context_ramp, rows_ramp
from ludus.data.shards import TokenShards


def shards(first: int, sizes: list[int]) -> TokenShards:
    """Make documents whose tokens are all different, so that each can be followed."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return TokenShards(first + np.arange(offsets[-1], dtype=np.uint16), offsets, int(offsets[-1]))


WEB = shards(10_000, [40, 13, 70, 26, 9, 55, 120, 31])
BOOKS = shards(20_000, [90, 14, 33])
CODE = shards(30_000, [25, 25, 60])
SAID: list[str] = []


def mixture(*, web: float = 6, books: float = 3, code: float = 1, epochs: dict | None = None, **changes) -> Mixture:
    limits = epochs or {}
    parts = {"web": (WEB, web), "books": (BOOKS, books), "code": (CODE, code)}
    domains = {name: Domain(part, weight, limits.get(name)) for name, (part, weight) in parts.items()}
    SAID.clear()
    plain = {"context": 12, "rows": 4, "pad_token": 0, "seed": 5, "announce": SAID.append}
    return Mixture(domains, **{**plain, **changes})


def drawn(batches) -> list[int]:
    """Return the domain of each row, 1 to 3."""
    return [int(row[0]) // 10_000 for batch in batches for row in batch.tokens]


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_every_stretch_of_rows_holds_the_shares():
    rows = drawn(islice(mixture(), 50))
    for length in (10, 40, 200):
        for number, share in ((1, 0.6), (2, 0.3), (3, 0.1)):
            assert abs(rows[:length].count(number) - share * length) < 1.5
    assert len(set(rows[:10])) == 3


def test_rows_of_one_batch_come_from_several_domains_each_in_its_own_order():
    mixed = mixture()
    assert {len(set(drawn([batch]))) for batch in islice(mixed, 5)} & {2, 3}
    alone = [row for batch in islice(mixture(web=0, code=0), 10) for row in batch.tokens.tolist()]
    beside = [row for batch in islice(mixture(), 40) for row in batch.tokens.tolist() if row[0] // 10_000 == 2]
    assert beside[:40] == alone[:40]


@pytest.mark.law
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_out_the_rows_of_one_process(ranks: int):
    alone = list(islice(mixture(), 6 * ranks))
    shared = [list(islice(mixture(rank=rank, ranks=ranks), 6)) for rank in range(ranks)]
    assert all(same(batch, shared[number % ranks][number // ranks]) for number, batch in enumerate(alone))
    whole = list(islice(mixture(rows=4 * ranks), 6))
    for number, batch in enumerate(whole):
        assert batch.tokens.tolist() == [row for part in shared for row in part[number].tokens.tolist()]
        assert batch.weight == sum(part[number].weight for part in shared)


@pytest.mark.law
def test_a_mixture_resumes_at_every_batch_whatever_has_changed_by_then():
    def made() -> Mixture:
        return mixture(
            epochs={"books": 1},
            batches=40,
            annealing=[(0.5, {"web": 1, "code": 3})],
            rows=rows_ramp(4, [(0.3, 6)], 40),
            shortened=context_ramp(12, [(0.0, 6), (0.6, 12)], 40),
        )

    stream, running = list(islice(made(), 40)), made()
    for done in range(38):
        resumed = made()
        resumed.load_state_dict(running.state_dict())
        assert all(same(one, other) for one, other in zip(islice(resumed, 2), stream[done : done + 2], strict=True))
        next(running)
        assert resumed.tokens >= running.tokens
    assert resumed.account()["domains"]["books"]["epochs"] == 1


def test_a_domain_read_as_often_as_allowed_gives_its_share_to_the_others_and_says_so_once():
    mixed = mixture(epochs={"books": 2})
    rows = drawn(islice(mixed, 60))
    last = max(index for index, number in enumerate(rows) if number == 2)
    account = mixed.account()["domains"]["books"]
    assert account == {"trained": 2 * BOOKS.predictions, "epochs": 2.0}
    assert last < 150
    rest = rows[last + 1 :]
    assert abs(rest.count(1) / len(rest) - 6 / 7) < 0.03
    assert [line for line in SAID if "books" in line] == SAID
    assert len(SAID) == 1


def test_nothing_left_to_read_is_one_line():
    with pytest.raises(DataError, match=r"read as often as allowed \(books\).*raise their epochs") as caught:
        list(islice(mixture(web=0, code=0, epochs={"books": 1}), 100))
    assert "\n" not in str(caught.value)


def test_weights_change_from_their_share_of_the_run_on():
    mixed = mixture(batches=40, annealing=[(0.5, {"code": 1, "books": 1})])
    rows = drawn(islice(mixed, 40))
    assert abs(rows[:80].count(1) - 48) < 2
    assert rows[80:].count(1) == 0
    assert abs(rows[80:].count(3) - 40) < 2


def test_what_was_read_is_accounted_for_by_domain():
    mixed = mixture()
    batches = list(islice(mixed, 30))
    account = mixed.account()
    assert account["trained"] == sum(batch.weight for batch in batches)
    assert mixed.tokens + account["padded"] == sum(batch.tokens.numel() for batch in batches)
    assert account["dropped"] == 0
    assert sum(domain["trained"] for domain in account["domains"].values()) == account["trained"]
    assert mixed.metrics["share_web"] == account["domains"]["web"]["trained"] / account["trained"]
    assert mixed.metrics["epochs_web"] == account["domains"]["web"]["trained"] / WEB.predictions


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"names wbe.*did you mean web"):
        mixture(annealing=[(0.5, {"wbe": 1})])
    with pytest.raises(ConfigError, match=r"weight of web.*-1"):
        mixture(web=-1)
    with pytest.raises(ConfigError, match="all 0"):
        mixture(web=0, books=0, code=0)


def test_how_often_each_domain_will_be_read_is_known_before():
    changes = {"epochs": {"books": 2}, "batches": 60, "annealing": [(0.5, {"web": 1, "code": 3})]}
    mixed = mixture(**changes)
    before = mixed.outlook(60)
    list(islice(mixed, 60))
    for name, domain in mixed.account()["domains"].items():
        assert abs(before[name] / domain["epochs"] - 1) < 0.2  # rows of twelve are not quite full
