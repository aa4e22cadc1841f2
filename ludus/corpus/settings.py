"""What a recipe may say about the corpus. Free of heavy imports, so that help and configuration stay quick."""

from typing import Any

from ludus.base.config import Field, Settings, derived


class CorpusSettings(Settings):
    """Where text comes from, and how it is cleaned and split."""

    path: str | list[str] | None = Field(
        None,
        description="a file or folder of txt, md, jsonl, json, parquet or zip, or a list of them; "
        "without it, the documentation of this Python",
    )
    hub: str | None = Field(
        None, description="a data set of the Hugging Face hub: NAME, NAME:SUBSET or NAME:SUBSET@REVISION; without path"
    )
    hub_files: str = Field("*.parquet", description="which files of the data set, as a pattern of their paths")
    url: str | None = Field(None, description="address of one file, downloaded once and kept; without path and hub")
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="hash the downloaded file must have; wants url"
    )
    text_column: str = Field("text", description="column or key that holds the text, in Parquet and JSON")
    limit_documents: int | None = Field(
        None, ge=1, description="stop reading after so many", json_schema_extra={"unit": "documents"}
    )
    limit_bytes: int | None = Field(
        None, ge=1, description="stop reading after so much text", json_schema_extra={"unit": "bytes"}
    )
    source: str | None = Field(None, description="name of the source, recorded with every document")
    licence: str | None = Field(None, description="licence of the text, recorded with every document")
    verbatim: bool = Field(
        False, description="keep every character: clean nothing, and cut one long text exactly, not at a line end"
    )
    minimum_characters: int = Field(
        20, ge=1, description="shorter documents are dropped", json_schema_extra={"unit": "characters"}
    )
    near_duplicates: bool = derived(description="drop all but the first of documents that are nearly the same")
    validation_fraction: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="share of the text held out of training",
        json_schema_extra={"unit": "of characters"},
    )

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Read what `data` names; look for near copies where nobody has."""
        data = getattr(root, "data", None)
        path, hub = getattr(data, "path", None), getattr(data, "hub", None)
        domains = getattr(data, "mixture", {}).values()
        own = (self.hub or hub) and not (self.path or path)
        from_hub = own or any(each.hub and not each.path for each in domains)
        drop = (
            (False, "data sets of the hub come without copies") if from_hub else (True, "text from anywhere has copies")
        )
        return {"path": (path, "data.path"), "hub": (hub, "data.hub"), "near_duplicates": drop}
