"""What a person may say about optimisation. Free of torch.

Rates are told by role: `embedding`, `table` (vectors of n-grams), `head`, `matrix` and `scalar`. What is not said
derives from the main rate, by `role_rates` and `role_decays`, which the optimizer asks too: settings made in code need
no filling first.
"""

from typing import Annotated, Any, Literal

from ludus.base.config import Field, Settings, derived

USUAL_RATE = 1e-3
ROLES = ("embedding", "table", "head", "matrix", "scalar")


def _rate(what: str) -> Any:
    return Field(None, gt=0, description=f"Peak rate of {what}.")


def _decay(what: str) -> Any:
    return Field(None, ge=0, description=f"Decoupled decay of {what}.")


class AdamWSettings(Settings):
    """AdamW (arXiv 1711.05101) for every parameter."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = derived(gt=0, description="Peak rate, reached after warm-up.")
    embedding_learning_rate: float | None = _rate("the embedding")
    table_learning_rate: float | None = _rate("the vectors of n-grams, each of which is seen seldom")
    head_learning_rate: float | None = _rate("the head")
    scalar_learning_rate: float | None = _rate("norms, biases, convolutions and scalars")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay, never on norms, biases and scalars.")
    embedding_weight_decay: float | None = _decay("the embedding")
    head_weight_decay: float | None = _decay("the head")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    state: Literal["float32", "8bit", "paged"] = Field(
        "float32",
        description="How both moments are kept: 8 bytes a weight; 2 with 8bit (tensors under 4096 weights stay "
        "float32); or 8 that may leave the GPU for the host's memory (paged: NVIDIA GPUs, with bitsandbytes).",
    )

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Give every role the one rate, and embedding and head the decay of the matrices."""
        rate = self.learning_rate or USUAL_RATE
        found = {"learning_rate": (rate, "usual for AdamW")} | _spread(rate, "learning_rate")
        return found | dict.fromkeys(DECAYS, (self.weight_decay, f"as weight_decay={self.weight_decay:g}"))


class MuonSettings(Settings):
    """Muon for the matrices of the layers, AdamW for embedding, head and norms."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(0.02, gt=0, description="Peak rate of the matrices.")
    adamw_learning_rate: float = Field(0.005, gt=0, description="Peak rate of embedding, head and norms.")
    embedding_learning_rate: float | None = _rate("the embedding")
    table_learning_rate: float | None = _rate("the vectors of n-grams, each of which is seen seldom")
    head_learning_rate: float | None = _rate("the head")
    scalar_learning_rate: float | None = _rate("norms, biases, convolutions and scalars")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of the matrices.")
    momentum_start: float = Field(0.85, ge=0, lt=1, description="Momentum of the first update, where it warms up.")
    momentum_warmup: int = Field(
        0, ge=0, description="Updates over which momentum rises to its value.", json_schema_extra={"unit": "steps"}
    )
    nesterov: bool = Field(True, description="Look one step ahead along the momentum.")
    method: Literal["newton_schulz", "polar_express"] = Field(
        "newton_schulz", description="Iteration that brings singular values to 1; Polar Express comes closer."
    )
    iterations: int = Field(5, ge=1, le=8, description="Iterations of the method; each costs three matrix products.")
    scale: Literal["shape", "adamw"] = Field(
        "shape",
        description="Factor of the rate: max(1, rows/columns)^0.5, or 0.2 max(rows, columns)^0.5 for AdamW's rates.",
    )
    normalised: bool = Field(False, description="Give the rows of an update the same size over time (NorMuon).")
    row_beta: float = Field(0.95, ge=0, lt=1, description="Decay of the rows' second moment, where normalised.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled decay of the matrices.")
    embedding_weight_decay: float | None = _decay("the embedding")
    head_weight_decay: float | None = _decay("the head")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of AdamW's second moment.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Give embedding, head and scalars AdamW's rate, and no decay."""
        return _spread(self.adamw_learning_rate, "adamw_learning_rate") | dict.fromkeys(
            DECAYS, (0.0, "Muon decays the matrices alone")
        )


OptimizerSettings = Annotated[AdamWSettings | MuonSettings, Field(discriminator="kind")]
DECAYS = ("embedding_weight_decay", "head_weight_decay")
UNDECAYED = ("scalar", "table")
TABLE_FACTOR = 10  # a row of a table is updated only when its run of tokens comes by


def _spread(rate: float, main: str) -> dict[str, tuple[Any, str]]:
    roles = [role for role in ROLES if role not in ("matrix", "table")]
    tables = rate * TABLE_FACTOR, f"{TABLE_FACTOR} times {main}={rate:g}, since a row of them is seldom seen"
    found = {f"{role}_learning_rate": (rate, f"as {main}={rate:g}") for role in roles}
    return found | {"table_learning_rate": tables}


def role_rates(settings: AdamWSettings | MuonSettings) -> dict[str, float]:
    """Return the peak rate of each role."""
    return {role: _value(settings, role, "learning_rate") for role in ROLES}


def role_decays(settings: AdamWSettings | MuonSettings) -> dict[str, float]:
    """Return the decoupled decay of each role; scalars and tables have none."""
    found = {role: _value(settings, role, "weight_decay") for role in ROLES if role not in UNDECAYED}
    return found | dict.fromkeys(UNDECAYED, 0.0)


def _value(settings: AdamWSettings | MuonSettings, role: str, what: str) -> float:
    name = what if role == "matrix" else f"{role}_{what}"
    value = getattr(settings, name)
    return settings.derive(None)[name][0] if value is None else value


class ScheduleSettings(Settings):
    """Warm-up, then a plateau, then a cooldown, over the steps of the stage."""

    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps in which the rate rises from 0.")
    warmup_steps: int | None = Field(
        None, ge=0, description="Warm-up in steps, instead of a share.", json_schema_extra={"unit": "steps"}
    )
    cooldown: float | None = Field(
        None, ge=0, le=1, description="Share of the steps, at the end, in which the rate falls."
    )
    cooldown_steps: int | None = Field(
        None, ge=0, description="Cooldown in steps, instead of a share.", json_schema_extra={"unit": "steps"}
    )
    shape: Literal["linear", "cosine", "wsd", "inverse_sqrt", "constant"] = Field(
        "linear",
        description="How the rate falls: in a line, as a cosine, as 1 - sqrt (wsd), with 1/sqrt(step) from the end of "
        "the warm-up, or not at all; a cooldown given with the last two falls in a line.",
    )
    floor: float = Field(0.0, ge=0, le=1, description="Share of the peak rate at the end.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Fill the share of the cooldown from the shape."""
        share = {"linear": 0.5, "cosine": 0.5, "wsd": 0.2}.get(self.shape, 0.0)
        return {"cooldown": (share, f"usual with shape={self.shape}")}
