"""What a person may say about one training stage. Free of torch."""

from typing import Any

import pydantic

from ludus.base.config import Field, Settings
from ludus.learning.guard_settings import RecoverySettings, SpikeSettings, StoppingSettings
from ludus.optim.settings import MuonSettings, OptimizerSettings, ScheduleSettings

STEPS = {"unit": "steps"}


class AverageSettings(Settings):
    """An average of the weights, which is what is validated and left at the end. Off unless one of the two is set."""

    decay: float | None = Field(None, ge=0, lt=1, description="Of an exponential average, such as 0.999.")
    last_steps: int | None = Field(
        None, ge=1, description="Average so many looks at the weights, the newest; one copy each."
    )
    every: int = Field(1, ge=1, description="Steps between two looks at the weights.", json_schema_extra=STEPS)

    @pydantic.model_validator(mode="after")
    def _one_of_them(self) -> "AverageSettings":
        if self.decay is not None and self.last_steps is not None:
            raise ValueError("decay and last_steps are two kinds of average: set one of them")
        return self


class TrainingSettings(Settings):
    """Steps, optimizer, schedule and what happens once in a while. Each stage has its own defaults."""

    steps: int = Field(400, ge=1, description="Optimizer steps.", json_schema_extra={"unit": "steps"})
    accumulate: int = Field(1, ge=1, description="Micro-batches for each step; changes memory, not the gradient.")
    recompute: bool = Field(
        False, description="Forget the activations of layers and compute them again: less memory, more time."
    )
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    optimizer: OptimizerSettings = Field(default=MuonSettings(), discriminator="kind")
    schedule: ScheduleSettings = ScheduleSettings()
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints.")
    sample_every: int | None = Field(None, ge=1, description="Steps between samples of the model's text.")
    validate_every: int | None = Field(None, ge=1, description="Steps between validations.")
    keep: int = Field(2, ge=1, description="Checkpoints to keep, besides the best.")
    measure_every: int = Field(
        50, ge=1, description="Steps between measures of the update over the weights.", json_schema_extra=STEPS
    )
    average: AverageSettings = AverageSettings()
    spike: SpikeSettings = SpikeSettings()
    recovery: RecoverySettings = RecoverySettings()
    stopping: StoppingSettings = StoppingSettings()

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Spread checkpoints, samples and validations over the steps."""
        fifth, tenth = max(1, self.steps // 5), max(1, self.steps // 10)
        saves = self.checkpoint_every or tenth
        return {
            "checkpoint_every": (tenth, f"a tenth of steps={self.steps}"),
            "sample_every": (saves, f"at each checkpoint, checkpoint_every={saves}"),
            "validate_every": (fifth, f"a fifth of steps={self.steps}"),
        }
