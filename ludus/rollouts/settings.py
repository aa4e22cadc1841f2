"""What a person may say about rollouts and the policy gradient. Free of torch."""

from typing import Literal

from ludus.base.config import Field, Settings


class RolloutSettings(Settings):
    """How many answers are sampled for each step, and how rewards become advantages.

    Answers are drawn at temperature 1: the trainer scores them under the same distribution.
    """

    prompts: int = Field(128, ge=1, description="Questions for each rollout.", json_schema_extra={"unit": "prompts"})
    group: int = Field(4, ge=2, description="Answers to each question.", json_schema_extra={"unit": "answers"})
    max_new_tokens: int = Field(32, ge=1, description="Longest answer.", json_schema_extra={"unit": "tokens"})
    baseline: Literal["group", "leave-one-out"] = Field("group", description="What a reward is compared with.")
    scale: Literal["group", "batch", "none"] = Field("none", description="Whose standard deviation divides advantages.")
    aggregation: Literal["token", "sequence", "constant"] = Field(
        "constant", description="Every token counts the same, every answer does, or answers are divided by the longest."
    )
    curriculum: bool = Field(True, description="Ask more of the kinds of question whose answers differ most in reward.")
    epochs: int = Field(1, ge=1, le=16, description="Passes over each rollout; 1 is strictly on-policy.")
