"""What a person may say about adapters. Free of torch."""

from typing import Annotated, Literal

from ludus.base.config import Field, Settings


class NoAdapter(Settings):
    """Train every weight."""

    kind: Literal["none"] = "none"


class LoraSettings(Settings):
    """Freeze the model and learn a low-rank change of its linear layers (LoRA, arXiv 2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Rank of the change.")
    alpha: float = Field(16.0, gt=0, description="The change is multiplied by alpha / rank.")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Layers to adapt: all-linear (all but the output head), or names such as [q_proj, v_proj].",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the change.")


AdapterSettings = Annotated[NoAdapter | LoraSettings, Field(discriminator="kind")]
