"""One seed for a run, and from it a seed of its own for every use of chance.

A seed is derived by name, never by drawing from a shared generator, so a new use of chance does not disturb the others
and a resumed run finds the same seeds again. Generators belong to the floors that own a random library.
"""

import hashlib
import json


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the seed in [0, 2**63) that belongs to `names` under `seed`; the order and type of the names count."""
    parts = [int(seed), *(name if isinstance(name, str) else int(name) for name in names)]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
