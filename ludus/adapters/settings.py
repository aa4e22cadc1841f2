"""What a person may say about adapters. Free of torch."""

from typing import Annotated, Any, Literal

from ludus.base.config import Field, Settings

Targets = Literal["all-linear"] | list[str]
ALSO = "Modules that are trained whole beside the adapter and saved with it, such as [embed_tokens, lm_head]."


def _targets(default: Any = "all-linear") -> Any:
    return Field(
        default,
        description="Layers to adapt: all-linear (all but the output head), or names such as [q_proj, v_proj].",
    )


def _tokens() -> Any:
    return Field(
        16, ge=1, le=4096, description="Virtual tokens before every text.", json_schema_extra={"unit": "tokens"}
    )


class NoAdapter(Settings):
    """Train every weight."""

    kind: Literal["none", "full"] = "none"


class LoraSettings(Settings):
    """Freeze the model and learn a low-rank change of its linear layers (LoRA, arXiv 2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Rank of the change.")
    alpha: float = Field(16.0, gt=0, description="The change is multiplied by alpha / rank.")
    targets: Targets = _targets()
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the change.")
    rank_stabilised: bool = Field(
        False, description="Multiply by alpha / sqrt(rank) instead, so that high ranks learn as fast (rsLoRA)."
    )
    initialise: Literal["zero", "pissa", "loftq"] = Field(
        "zero",
        description="Start from no change; from the largest singular values, taken out of the frozen weights (PiSSA); "
        "or from what quantising them lost (LoftQ).",
    )
    also: list[str] = Field([], description=ALSO)


class LoraPlusSettings(LoraSettings):
    """LoRA with a higher rate for B, which starts at zero (LoRA+, arXiv 2402.12354)."""

    kind: Literal["lora+"] = "lora+"  # type: ignore[assignment]
    rate_ratio: float = Field(16.0, ge=1, description="Rate of B over the rate of A.")


class DoraSettings(LoraSettings):
    """LoRA on the direction of each row of weights, and its length learned apart (DoRA, arXiv 2402.09353)."""

    kind: Literal["dora"] = "dora"  # type: ignore[assignment]


class VeraSettings(Settings):
    """Freeze random matrices that all layers share and learn two vectors a layer (VeRA, arXiv 2310.11454)."""

    kind: Literal["vera"] = "vera"
    rank: int = Field(256, ge=1, description="Rank of the shared random matrices.")
    targets: Targets = _targets()
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the change.")
    initial: float = Field(0.1, gt=0, description="What the vector between the two matrices starts at.")
    projection_seed: int = Field(0, ge=0, description="Seed of the random matrices.")
    also: list[str] = Field([], description=ALSO)


class LohaSettings(Settings):
    """Learn the product, entry by entry, of two low-rank changes (LoHa, arXiv 2108.06098)."""

    kind: Literal["loha"] = "loha"
    rank: int = Field(8, ge=1, description="Rank of each factor; their product has up to its square.")
    alpha: float = Field(8.0, gt=0, description="The change is multiplied by alpha / rank.")
    targets: Targets = _targets()
    also: list[str] = Field([], description=ALSO)


class Ia3Settings(Settings):
    """Learn one factor for each channel of keys, values and inner layers (IA3, arXiv 2205.05638)."""

    kind: Literal["ia3"] = "ia3"
    targets: Targets = _targets(["k_proj", "v_proj", "down_proj"])
    feedforward: list[str] = Field(
        ["down_proj"], description="Those of the targets whose inputs are scaled, instead of their outputs."
    )
    also: list[str] = Field([], description=ALSO)


class PrefixSettings(Settings):
    """Learn keys and values that stand before every text, in each layer (prefix tuning, arXiv 2101.00190)."""

    kind: Literal["prefix"] = "prefix"
    tokens: int = _tokens()
    projection: int = Field(
        0, ge=0, description="Width of a small network they are made by while training; 0 learns them directly."
    )


class PromptSettings(Settings):
    """Learn the embeddings of tokens that stand before every text (prompt tuning, arXiv 2104.08691)."""

    kind: Literal["prompt"] = "prompt"
    tokens: int = _tokens()
    text: str | None = Field(None, description="Words they start as; without, they start as tokens drawn at random.")


AnyAdapter = (
    NoAdapter
    | LoraSettings
    | LoraPlusSettings
    | DoraSettings
    | VeraSettings
    | LohaSettings
    | Ia3Settings
    | PrefixSettings
    | PromptSettings
)
AdapterSettings = Annotated[AnyAdapter, Field(discriminator="kind")]
