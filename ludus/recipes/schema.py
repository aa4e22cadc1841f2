"""The schema of a recipe: every setting of every stage, in one tree. Free of torch.

Each floor owns its settings; here they are only put together, with the defaults that differ from stage to stage.
"""

import os
from typing import Any, Literal

import pydantic

from ludus.adapters.rates import default_rate, kind_of, parameters_at
from ludus.adapters.settings import AdapterSettings, NoAdapter
from ludus.base.config import Field, Settings
from ludus.corpus.exercises.settings import ExerciseSettings
from ludus.corpus.settings import CorpusSettings
from ludus.data.settings import DataSettings
from ludus.evaluation.compare_settings import CompareSettings
from ludus.learning.settings import TrainingSettings
from ludus.model.settings import TO_BE_NAMED, ModelSettings
from ludus.rollouts.settings import RolloutSettings
from ludus.text.settings import TokenizerSettings

StageName = Literal[
    "corpus", "tokenizer", "pretrain", "exercises", "sft", "compare", "dpo", "grpo", "evaluate", "report"
]
ALL: list[StageName] = ["corpus", "tokenizer", "pretrain", "exercises", "sft", "dpo", "grpo", "evaluate", "report"]
REPLAY = 4  # rows


class PretrainSettings(TrainingSettings):
    """Next-token prediction on the corpus, from fresh weights."""

    rows: int = Field(32, ge=1, description="Rows of data.context tokens in a micro-batch.")
    auto_rows: bool = Field(
        False, description="Split a step into as many micro-batches as memory asks for; the gradient is the same."
    )
    z_loss: float = Field(
        0.0, ge=0, description="Weight of the squared log-normaliser, which keeps logits from drifting; 1e-4 is usual."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each target that is spread over the vocabulary."
    )
    validation_rows: int = Field(400, ge=1, description="At most so many rows in a validation.")
    prompts: list[str] = Field(
        ["The module", "Return the", "An example of"], description="Beginnings that every sample continues."
    )
    sample_tokens: int = Field(60, ge=1, description="Length of a sample.", json_schema_extra={"unit": "tokens"})


class TuningSettings(TrainingSettings):
    """What every stage after pretraining has: where it starts and what it trains."""

    base: str | None = Field(None, description="Model to start from, instead of the stage before; as model.base.")
    template: str = Field(
        "auto", description="Chat template, by name: auto is the model's own, or plain words for a model without one."
    )
    adapter: AdapterSettings = Field(default=NoAdapter(), description="What to train: all weights, or an adapter.")
    quantise: Literal["none", "nf4", "int8"] = Field(
        "none", description="Keep the frozen weights in 4 or 8 bits (QLoRA); wants an adapter."
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32", description="What frozen weights are kept in; those that train are float32."
    )
    merge: bool = Field(True, description="Leave the merged model beside the adapter, where there is one.")
    turns: int = Field(3, ge=1, description="At most so many exercises in one conversation.")

    @pydantic.model_validator(mode="after")
    def _frozen_weights_need_an_adapter(self) -> "TuningSettings":
        whole = isinstance(self.adapter, NoAdapter)
        if whole and (self.quantise != "none" or self.weights != "float32"):
            what = f"quantise={self.quantise}" if self.quantise != "none" else f"weights={self.weights}"
            raise ValueError(f"{what} is for frozen weights, and without an adapter all train; set adapter.kind=lora")
        if getattr(self.adapter, "initialise", "zero") == "loftq" and self.quantise == "int8":
            raise ValueError("adapter.initialise=loftq makes up for nf4, and quantise=int8; set quantise=nf4")
        return self

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Give an adapter on a model that was brought the rate that suits its kind and the model's size."""
        found = super().derive(root)
        base = self.base or getattr(getattr(root, "model", None), "base", None)
        if base not in (None, TO_BE_NAMED) and self.optimizer.kind == "adamw":
            rate, why = default_rate(kind_of(self.adapter), parameters_at(base))
            found["optimizer.learning_rate"] = rate, why
        return found

    def named_data(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Return what `data` names, where a model is brought to be tuned on it."""
        model, data = getattr(root, "model", None), getattr(root, "data", None)
        if not (self.base or getattr(model, "base", None)):
            return {}
        named = getattr(data, "path", None), getattr(data, "hub", None)
        found = (
            (value, f"data.{field}, beside model.base") for field, value in zip(("path", "hub"), named, strict=True)
        )
        return next(({"data": each} for each in found if each[0]), {})


class SftSettings(TuningSettings):
    """Supervised fine-tuning; the loss covers what the assistant says."""

    rows: int = Field(32, ge=1, description="Rows of data.context tokens in a micro-batch.")
    epochs: float | None = Field(
        None, gt=0, description="Times to go through the data, instead of steps.", json_schema_extra={"unit": "epochs"}
    )
    data: str | list[str] | None = Field(
        None,
        description="Conversations, not exercises: JSONL, JSON, CSV, Parquet, text or a data set of the hub, as "
        "messages, prompt and completion, alpaca, sharegpt or plain text.",
    )
    format: str = Field("auto", description="How the rows of the data are read; auto looks at their columns.")
    learn: Literal["all", "last"] | list[str] = Field(
        "all", description="Turns that are learned: all of the assistant's, the last, or those of chosen roles."
    )
    packing: bool = Field(True, description="Several conversations in a row, none of which sees another.")
    validation: str | None = Field(
        None, description="Conversations for the validation, instead of a share of the data."
    )
    validation_share: float = Field(
        0.05, ge=0, lt=1, description="Share of the data that is held out; by prompt, so that none leaks."
    )
    noise: float = Field(0.0, ge=0, description="Size of noise on the embeddings (NEFTune); 5 is usual, 0 is none.")
    replay: int | None = Field(None, ge=0, description="Rows of other text beside them, against forgetting.")
    replay_path: str | None = Field(None, description="That text: file or folder; without it the run's own corpus.")
    replay_weight: float = Field(0.1, gt=0, description="Weight of a token of that text; one of an answer has 1.")
    rambling_share: float = Field(0.5, ge=0, le=1, description="Share of exercises answered in the rambling style.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Tune on what `data` names; replay the corpus to a model that was trained on it."""
        found = super().derive(root) | self.named_data(root)
        brought = self.base or getattr(getattr(root, "model", None), "base", None)
        foreign, own = (0, "for a model from elsewhere"), (REPLAY, "for a model that was pretrained on this corpus")
        if self.replay_path:
            foreign = (REPLAY, "since sft.replay_path is given")
        return found | {"replay": foreign if brought else own}


class DpoSettings(TuningSettings):
    """Direct preference optimisation: concise answers over rambling ones, both right."""

    steps: int = Field(40, ge=1, description="Optimizer steps.", json_schema_extra={"unit": "steps"})
    pairs: int = Field(64, ge=1, description="Pairs in a micro-batch.", json_schema_extra={"unit": "pairs"})
    beta: float = Field(0.1, gt=0, description="How strongly a preference is held against leaving the reference.")
    likelihood: float = Field(1.0, ge=0, description="Weight of the chosen answer's NLL per token.")
    control: bool = Field(
        True, description="Also train on the likelihood term alone, to tell what the preference adds."
    )
    data: str | None = Field(None, description="JSONL of prompt, chosen, rejected, instead of exercises.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Tune on what `data` names, unless a stage before learns from that."""
        found = super().derive(root)
        first = "sft" not in getattr(root, "stages", ["sft"])
        return found | (self.named_data(root) if first else {})


class GrpoSettings(TuningSettings):
    """Group relative policy optimisation against a verifier."""

    steps: int = Field(
        150, ge=1, description="Optimizer steps, each on one rollout.", json_schema_extra={"unit": "steps"}
    )
    rollouts: RolloutSettings = RolloutSettings()
    clip_low: float = Field(0.2, gt=0, lt=1, description="How far below 1 the ratio may fall.")
    clip_high: float = Field(0.2, gt=0, description="How far above 1 the ratio may rise.")
    kl: float = Field(0.0, ge=0, description="Weight of the divergence from the model the stage starts from.")


class EvaluateSettings(Settings):
    """The held-out questions, asked of every model of the run, greedily."""

    max_new_tokens: int = Field(40, ge=1, description="Longest answer.", json_schema_extra={"unit": "tokens"})
    questions: int | None = Field(None, ge=1, description="Held-out questions to ask.")
    rows: int = Field(256, ge=1, description="Questions answered at a time.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Ask every held-out exercise."""
        return {"questions": (root.exercises.held_out, "all of exercises.held_out")}


class Recipe(Settings):
    """Everything a run is made of."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The run's folder is runs/NAME.")
    stages: list[StageName] = Field(ALL, min_length=1, description="Stages of `ludus run`, in this order.")
    seed: int = Field(0, ge=0, description="Decides everything random.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to compute.")
    precision: Literal["auto", "float32", "bfloat16", "float16", "float8"] = Field(
        "auto", description="Of matrix products while training."
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field([], description="Where metrics go besides metrics.jsonl.")
    threads: int | None = Field(None, ge=1, description="Processor threads; the last digits of a result depend on it.")
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings = PretrainSettings()
    exercises: ExerciseSettings = ExerciseSettings()
    sft: SftSettings = SftSettings()
    compare: CompareSettings = CompareSettings()
    dpo: DpoSettings = DpoSettings()
    grpo: GrpoSettings = GrpoSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Use the processors this process may use."""
        if hasattr(os, "sched_getaffinity"):
            return {"threads": (len(os.sched_getaffinity(0)), "the processors this process may use")}
        return {"threads": (os.cpu_count() or 1, "the processors of this machine")}
