"""Which weights an adapter belongs to: their hashes, kept beside it and compared before it is put on a model.

An adapter on another model of the same shape computes nonsense without a word; so a base is known by its weights, not
by where it lies.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ludus.base.errors import CheckpointError
from ludus.base.files import CHECKSUMS, read_json, sha256_file

KEY = "base_sha256"


def weight_hashes(place: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of weights in a folder, or of a file; those recorded beside them are believed."""
    if place.is_file():
        return {place.name: sha256_file(place)}
    files = sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin"))
    sums = read_json(place / CHECKSUMS, CheckpointError) if (place / CHECKSUMS).is_file() else {}
    known: Mapping[str, str] = sums if isinstance(sums, dict) else {}
    return {file.name: known.get(file.name) or sha256_file(file) for file in files}


def refuse_another(adapter: Path, said: Mapping[str, Any], base: Path) -> None:
    """Raise CheckpointError if a base is not the one that an adapter says it was trained on; some say nothing."""
    wanted = said.get(KEY)
    if not wanted:
        return
    found = weight_hashes(base)
    if set(found.values()) != set(wanted.values()):
        raise CheckpointError(
            f"{adapter} was trained on other weights than those of {base}, and would say nonsense on them; give the "
            f"model it was trained on as its base, or delete {KEY} from its ludus.json if the weights are the same"
        )
