"""Several domains in one stream, row by row, in set shares.

Which domain gives the next row follows from how far each lags behind its share, so every stretch of rows holds the
shares to within a row, with no chance in it. The order of rows is one for all ranks and all workers. Shares may change
by stages (annealing); a domain that was read as often as allowed gives its share to the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ludus.base.console import say
from ludus.base.errors import ConfigError, DataError, nearest
from ludus.base.seeds import derive_seed
from ludus.data.batch import Batch
from ludus.data.plan import Packed, Plan, together
from ludus.data.ramps import Stages
from ludus.data.rows import read, shorten
from ludus.data.shards import TokenShards
from ludus.data.sources import ByBatch, cuts, plain

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Domain:
    """Where some of the rows come from. `weight` is its share beside the others'; `epochs` how often it may be read."""

    shards: TokenShards
    weight: float
    epochs: float | None = None


class Mixture:
    """Yield batches of `rows` packed rows from all domains, in the shares of their weights.

    `annealing` holds (share of `batches`, weights) from which new weights hold; `batches` is the number of the whole
    run. With several `ranks`, consecutive batches go to the ranks in turn, as in `ludus.data.sources.Rows`.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        *,
        context: int,
        rows: int | ByBatch,
        pad_token: int,
        seed: int,
        batches: int = 0,
        annealing: Sequence[tuple[float, Weights]] = (),
        rank: int = 0,
        ranks: int = 1,
        shortened: ByBatch | None = None,
        announce: Callable[[str], None] = say,
    ) -> None:
        first = {name: domain.weight for name, domain in domains.items()}
        _check([first, *(weights for _, weights in annealing)], domains)
        self.domains, self.names = domains, list(domains)
        self.weights = Stages(first, annealing, batches)
        self.plans = {
            name: Plan(cuts(domain.shards, context, own), length=context + 1, seed=own)
            for name, domain in domains.items()
            for own in [derive_seed(seed, "domain", name)]
        }
        self.streams = {name: plain(domain.shards.tokens) for name, domain in domains.items()}
        self.length, self.pad_token, self.rank, self.ranks = context + 1, pad_token, rank, ranks
        self.rows = rows if callable(rows) else lambda batch: rows
        self.shortened, self.announce = shortened, announce
        self.batches, self.tokens, self.padded = 0, 0, 0
        self.trained = dict.fromkeys(domains, 0)  # predictions
        self.credits = dict.fromkeys(domains, 0.0)  # rows each domain lags behind its share
        self.spent: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        count = self.rows(self.batches)
        taken = [[self._row() for _ in range(count)] for _ in range(self.ranks)]
        for _, row in (each for rows in taken for each in rows):
            tokens = int(row.sizes.sum())
            self.tokens += tokens
            self.padded += self.length - tokens
        batch = self._read(taken[self.rank])
        self.batches += 1
        return batch if self.shortened is None else shorten(batch, self.shortened(self.batches - 1))

    def _row(self) -> tuple[str, Packed]:
        """Take the next row, from the domain that lags furthest behind its share."""
        weights = self.weights(self.batches)
        there = {name: weights.get(name, 0.0) for name in self.names if name not in self.spent}
        whole = sum(there.values())
        if not whole:
            raise DataError(
                f"every domain of data.mixture that has a weight was read as often as allowed ({', '.join(self.spent)})"
                f" after {self.batches} batches; raise their epochs, or train for fewer steps"
            )
        for name, weight in there.items():
            self.credits[name] += weight / whole
        name = max((each for each in there if there[each]), key=lambda each: self.credits[each])
        self.credits[name] -= 1
        row = self.plans[name].take(1)
        self.trained[name] += int(row.sizes.sum()) - len(row.ranges)
        allowed = self.domains[name].epochs
        if allowed is not None and self._epochs(name) >= allowed:
            self.spent.append(name)
            owed = self.credits.pop(name)
            self.credits = {each: credit + owed / max(len(self.credits), 1) for each, credit in self.credits.items()}
            self.announce(f"  {name} was read {allowed:g} times, as often as allowed; the others take its share")
        return name, row

    def _read(self, taken: list[tuple[str, Packed]]) -> Batch:
        """Read each domain's rows at once, and put every row in its place."""
        order = sorted(range(len(taken)), key=lambda index: taken[index][0])
        parts = []
        for name in sorted({name for name, _ in taken}):
            rows = together([taken[index][1] for index in order if taken[index][0] == name])
            parts.append(read(self.streams[name], None, rows, length=self.length, pad_token=self.pad_token))
        return _placed(parts, np.argsort(order))

    def _epochs(self, name: str) -> float:
        return self.trained[name] / max(self.domains[name].shards.predictions, 1)

    def outlook(self, batches: int) -> dict[str, float]:
        """Return how often each domain will about be read in so many batches, at the weights and caps it has."""
        found = dict.fromkeys(self.names, 0.0)
        for batch in range(batches):
            weights = self.weights(batch)
            there = {
                name: weights.get(name, 0.0)
                for name in self.names
                if found[name] < (self.domains[name].epochs or np.inf)
            }
            predictions = self.rows(batch) * self.ranks * (self.length - 1) / (sum(there.values()) or np.inf)
            for name, weight in there.items():
                found[name] += weight * predictions / max(self.domains[name].shards.predictions, 1)
        return found

    def account(self) -> dict[str, Any]:
        """Return what became of all tokens so far, in all and by domain, and the epochs of each domain."""
        by_domain = {name: {"trained": self.trained[name], "epochs": self._epochs(name)} for name in self.names}
        dropped = sum(plan.dropped for plan in self.plans.values())
        return {"trained": sum(self.trained.values()), "padded": self.padded, "dropped": dropped, "domains": by_domain}

    @property
    def metrics(self) -> dict[str, float]:
        """Return the share of padding so far, and the epochs and the share of predictions of each domain."""
        places, trained = self.tokens + self.padded, sum(self.trained.values())
        epochs = {f"epochs_{name}": self._epochs(name) for name in self.names}
        shares = {f"share_{name}": self.trained[name] / trained if trained else 0.0 for name in self.names}
        return {"padding": self.padded / places if places else 0.0} | epochs | shares

    def state_dict(self) -> dict[str, Any]:
        """Return where the mixture and each domain stand."""
        plans = {name: plan.state_dict() for name, plan in self.plans.items()}
        counts = {"tokens": self.tokens, "batches": self.batches, "padded": self.padded}
        return counts | {
            "domains": plans,
            "trained": dict(self.trained),
            "credits": dict(self.credits),
            "spent": list(self.spent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says."""
        for name, plan in self.plans.items():
            plan.load_state_dict(state["domains"][name])
        self.tokens, self.batches, self.padded = state["tokens"], state["batches"], state["padded"]
        self.trained, self.credits = dict(state["trained"]), dict(state["credits"])
        self.spent = list(state["spent"])


def _check(stages: Sequence[Weights], domains: Mapping[str, Domain]) -> None:
    """Raise ConfigError for weights that name no domain, are negative, or leave nothing to read."""
    for weights in stages:
        for name, weight in weights.items():
            if name not in domains:
                near = nearest(name, domains)
                hint = f"; did you mean {near}?" if near else ""
                raise ConfigError(f"data.annealing names {name}; the domains are {', '.join(domains)}{hint}")
            if weight < 0:
                raise ConfigError(f"the weight of {name} in data.mixture is {weight}; it must be 0 or more")
        if not sum(weights.values()):
            raise ConfigError("the weights of data.mixture are all 0; give at least one domain a weight above it")


def _placed(parts: Sequence[Batch], order: np.ndarray) -> Batch:
    """Join batches of rows of one length and put the rows in order."""
    rows = torch.from_numpy(order)
    documents = None
    if any(part.documents is not None for part in parts):
        single = [torch.zeros_like(part.tokens) if part.documents is None else part.documents for part in parts]
        documents = torch.cat(single)[rows]
    return Batch(
        tokens=torch.cat([part.tokens for part in parts])[rows],
        weights=torch.cat([part.weights for part in parts])[rows],
        weight=sum(part.weight for part in parts),
        documents=documents,
    )
