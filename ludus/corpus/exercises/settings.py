"""What a person may say about the exercises."""

from ludus.base.config import Field, Settings


class ExerciseSettings(Settings):
    """Questions with one right answer each, generated from a seed."""

    train: int = Field(24_000, ge=1, description="Exercises to train on.", json_schema_extra={"unit": "exercises"})
    held_out: int = Field(
        1_000, ge=1, description="Exercises kept for evaluation.", json_schema_extra={"unit": "exercises"}
    )
    held_out_share: float = Field(0.15, gt=0, lt=1, description="Share of all problems that is never trained on.")
    largest: int = Field(50, ge=1, le=999, description="Largest number in sums and differences.")
    longest: int = Field(5, ge=3, le=12, description="Longest row of letters to sort, reverse or count in.")
    questions: bool = Field(True, description="Ask about the corpus too: which module defines a name.")
