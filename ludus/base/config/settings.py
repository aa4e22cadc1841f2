"""`Settings`, the class every part of a schema is made of, and `derived`, a field that is worked out from others.

A schema is nested `Settings` classes and nothing else: types, ranges, units and docs live in the fields. Where values
come from (recipe, environment, command line) is not known here. A field whose default is None is *derived*: `derive`
names its value and the reason, and is asked only after everything the user said has been validated.
"""

from typing import Any, ClassVar

import pydantic
from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """One section of a schema: frozen, and every key it does not know is an error.

    A plain value in place of the section means its field `shorthand`, where it has one: `data=talks.jsonl`.
    """

    shorthand: ClassVar[str | None] = None

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Return {field: (value, why)} for fields left at None; values for fields the user set are not used.

        `root` is the whole tree; sections declared earlier, and all parents, are already filled. A parent that knows
        better may name a field of a section below it, by a dotted path, before that section is asked.
        """
        return {}


def Field(*default: Any, **facts: Any) -> Any:  # noqa: N802 -- it stands where pydantic's own would
    """Declare a field as pydantic does; type checkers see a default that is given by position here, and not there."""
    return pydantic.Field(*default, **facts)


def derived(*, description: str, unit: str | None = None, **constraints: Any) -> Any:
    """Declare a field that `Settings.derive` fills when the user does not.

    The annotation needs no `| None`: after the configuration is resolved there is a value.
    """
    extra: Any = {"unit": unit} if unit else None
    return Field(default=None, validate_default=False, description=description, json_schema_extra=extra, **constraints)
