"""What a person may say about the comparison of a model before and after tuning. Free of torch."""

from ludus.base.config import Field, Settings


class CompareSettings(Settings):
    """The same prompts and seeds before and after tuning, side by side, and what was forgotten."""

    prompts: int = Field(16, ge=1, description="Held-out examples of the data to ask, evenly spread.")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer.", json_schema_extra={"unit": "tokens"})
    temperature: float = Field(0.7, ge=0, description="How freely to draw; 0 takes the likeliest token each time.")
    seeds: list[int] = Field([0], min_length=1, description="Each prompt is answered once with each.")
    text: str | None = Field(
        None, description="File or folder of general text for bits per byte; without it, Python's documentation."
    )
    bytes: int = Field(100_000, ge=1, description="At most so much general text.", json_schema_extra={"unit": "bytes"})
