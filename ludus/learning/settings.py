"""What a person may say about one training stage. Free of torch."""

from typing import Any

from ludus.base.config import Field, Settings
from ludus.optim.settings import MuonSettings, OptimizerSettings, ScheduleSettings

ROWS = "packed rows"


class TrainingSettings(Settings):
    """Steps, optimizer, schedule and what happens once in a while. Each stage has its own defaults."""

    steps: int = Field(400, ge=1, description="Optimizer steps.", json_schema_extra={"unit": "steps"})
    accumulate: int = Field(1, ge=1, description="Micro-batches for each step; changes memory, not the gradient.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    optimizer: OptimizerSettings = Field(default=MuonSettings(), discriminator="kind")
    schedule: ScheduleSettings = ScheduleSettings()
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints.")
    sample_every: int | None = Field(None, ge=1, description="Steps between samples of the model's text.")
    validate_every: int | None = Field(None, ge=1, description="Steps between validations.")
    keep: int = Field(2, ge=1, description="Checkpoints to keep.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Spread checkpoints, samples and validations over the steps."""
        fifth, tenth = max(1, self.steps // 5), max(1, self.steps // 10)
        return {
            "checkpoint_every": (tenth, f"a tenth of steps={self.steps}"),
            "sample_every": (fifth, f"a fifth of steps={self.steps}"),
            "validate_every": (fifth, f"a fifth of steps={self.steps}"),
        }
