"""What a recipe may say about the corpus. Free of heavy imports, so that help and configuration stay quick."""

from ludus.base.config import Field, Settings


class CorpusSettings(Settings):
    """Where text comes from, and how it is cleaned and split."""

    path: str | None = Field(
        None, description="a file or folder of txt, md, jsonl or parquet; without it, the documentation of this Python"
    )
    url: str | None = Field(None, description="address of such a file, downloaded once and kept; instead of path")
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="hash the downloaded file must have; wants url"
    )
    source: str | None = Field(None, description="name of the source, recorded with every document")
    licence: str | None = Field(None, description="licence of the text, recorded with every document")
    minimum_characters: int = Field(
        20, ge=1, description="shorter documents are dropped", json_schema_extra={"unit": "characters"}
    )
    near_duplicates: bool = Field(True, description="drop all but the first of documents that are nearly the same")
    validation_fraction: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="share of the text held out of training",
        json_schema_extra={"unit": "of characters"},
    )
