"""What a recipe may say about the tokenizer. Free of heavy imports, so that help and configuration stay quick."""

from typing import Literal

from ludus.base.config import Field, Settings


class TokenizerSettings(Settings):
    """Which vocabulary to train, or which existing one to use instead."""

    kind: Literal["bpe", "character"] = Field(
        "bpe", description="byte-level BPE, or one token for each character of the training text"
    )
    vocabulary: int = Field(
        4096,
        ge=262,
        le=1_000_000,
        description="size of a bpe vocabulary, special and byte tokens included; kind=character counts its own",
        json_schema_extra={"unit": "tokens"},
    )
    path: str | None = Field(
        None,
        description="an existing tokenizer instead of training one: a model's folder, tokenizer.json, a SentencePiece "
        "model, a rank file (*.tiktoken), or a name on the Hugging Face hub (gpt2)",
    )
    sample_bytes: int = Field(
        200_000_000,
        ge=1,
        description="a bpe vocabulary is trained on so much of the training text, spread evenly over it",
        json_schema_extra={"unit": "bytes"},
    )
    compare: list[str] = Field(
        [],
        description="other vocabularies to compare with: tokenizer.json files, SentencePiece models, rank files",
    )
