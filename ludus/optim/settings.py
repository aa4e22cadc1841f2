"""What a person may say about optimisation. Free of torch."""

from typing import Annotated, Literal

from ludus.base.config import Field, Settings


class AdamWSettings(Settings):
    """AdamW (arXiv 1711.05101) for every parameter."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="Peak rate, reached after warm-up.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay, on everything but norms.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")


class MuonSettings(Settings):
    """Muon for the matrices of the layers, AdamW for embedding, head and norms."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(0.02, gt=0, description="Peak rate of the matrices.")
    adamw_learning_rate: float = Field(0.005, gt=0, description="Peak rate of embedding, head and norms.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Nesterov momentum of the matrices.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled decay of the matrices.")


OptimizerSettings = Annotated[AdamWSettings | MuonSettings, Field(discriminator="kind")]


class ScheduleSettings(Settings):
    """Warm-up, then a plateau, then a cooldown, over the steps of the stage."""

    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps in which the rate rises from 0.")
    cooldown: float = Field(0.5, ge=0, le=1, description="Share of the steps, at the end, in which the rate falls.")
    shape: Literal["linear", "cosine"] = Field("linear", description="How the rate falls.")
    floor: float = Field(0.0, ge=0, le=1, description="Share of the peak rate at the end.")
