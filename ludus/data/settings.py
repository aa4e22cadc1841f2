"""What a recipe may say about training data: where text comes from, in which shares, and how rows are cut.

Free of torch. A `start` is a share of all batches of the run, so a shorter run keeps the shape of a longer one.
"""

from typing import Any, ClassVar

import pydantic

from ludus.base.config import Field, Settings

CONTEXT_DOC = "Longest piece of text the model sees at once."
_SHARE = {"unit": "share of the run"}


class DomainSettings(Settings):
    """One domain of a mixture: its text, its share, and how often it may be read."""

    path: str | list[str] | None = Field(None, description="File or folder of text, or a list of them.")
    hub: str | None = Field(
        None, description="Data set of the Hugging Face hub, NAME or NAME:SUBSET; a path goes before it."
    )
    weight: float = Field(1.0, ge=0, description="Share of the rows, beside the weights of the other domains.")
    epochs: float | None = Field(
        None,
        gt=0,
        description="Read it at most so often; then the others take its share.",
        json_schema_extra={"unit": "epochs"},
    )

    @pydantic.model_validator(mode="after")
    def _has_text(self) -> "DomainSettings":
        if self.path is None and self.hub is None:
            raise ValueError("a domain needs text: set its path or its hub")
        return self


class AnnealingStage(Settings):
    """Other weights from a share of the run on."""

    start: float = Field(ge=0, le=1, description="When they begin to hold.", json_schema_extra=_SHARE)
    weights: dict[str, float] = Field(description="Weight by domain; one that is left out rests.")


class RowsStage(Settings):
    """Another number of rows in a batch from a share of the run on."""

    start: float = Field(ge=0, le=1, description="When it begins to hold.", json_schema_extra=_SHARE)
    rows: int = Field(ge=1, description="Rows in a micro-batch.")


class ContextStage(Settings):
    """Another length of rows from a share of the run on; the number of tokens in a batch stays."""

    start: float = Field(ge=0, le=1, description="When it begins to hold.", json_schema_extra=_SHARE)
    context: int = Field(
        ge=1, description="Predictions in a row; divides data.context.", json_schema_extra={"unit": "tokens"}
    )


class DataSettings(Settings):
    """Where training text comes from and how token rows are cut."""

    shorthand: ClassVar[str] = "path"

    context: int = Field(128, ge=8, description=CONTEXT_DOC, json_schema_extra={"unit": "tokens"})
    path: str | list[str] | None = Field(None, description="File or folder of text, or a list; as corpus.path.")
    hub: str | None = Field(None, description="Data set of the Hugging Face hub, NAME or NAME:SUBSET; as corpus.hub.")
    mixture: dict[str, DomainSettings] = Field({}, description="Domains by name, instead of path and hub.")
    annealing: list[AnnealingStage] = Field([], description="Other weights of the mixture later in the run.")
    rows_ramp: list[RowsStage] = Field([], description="Other numbers of rows in a batch later in the run.")
    context_ramp: list[ContextStage] = Field([], description="Other lengths of rows in the run, with as many tokens.")
    prefetch: int = Field(
        2, ge=0, description="Batches read ahead in a thread; 0 for none.", json_schema_extra={"unit": "batches"}
    )

    @pydantic.field_validator("mixture")
    @classmethod
    def _names_are_folders(cls, mixture: dict[str, Any]) -> dict[str, Any]:
        taken = {"train", "validation"} & set(mixture)
        odd = [name for name in mixture if not name.replace("-", "_").isidentifier()]
        if taken or odd:
            raise ValueError(
                f"{[*taken, *odd][0]!r} cannot name a domain: use letters, digits and _, not train or validation"
            )
        return mixture
