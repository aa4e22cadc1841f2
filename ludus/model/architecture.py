"""Every number and switch that shapes a model; what its `config.json` holds. Free of torch.

One transformer computes them all. The defaults are Llama's; which switches make a GPT-2 or our own family is data, in
`ludus.model.presets`.
"""

from dataclasses import dataclass
from typing import Literal

Norm = Literal["rms", "layer", "plain"]
Position = Literal["rope", "rope_interleaved", "learned", "none"]
Activation = Literal["swiglu", "gelu", "gelu_tanh", "relu2"]
QueryKeyNorm = Literal["none", "rms", "plain"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched beyond the context a model was trained with.

    `factor` is how many times; the two frequency factors are Llama 3's, the two betas and the attention factor YaRN's.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_context: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class Experts:
    """A mixture: `chosen` of `count` experts map each token, and `shared` more map every one.

    `hidden` is the inner size of one expert; `balance_rate` is how far a step moves the bias of an expert that has more
    or less than its share of the tokens.
    """

    count: int
    chosen: int
    shared: int = 0
    hidden: int = 0
    balance_rate: float = 0.001


@dataclass(frozen=True)
class Architecture:
    """The shape of a model.

    `rotary_dims` counts the channels of a head that rotate, 0 meaning all. `windows` says for each layer how many
    tokens a query sees, itself included; None is all, and an empty tuple is all in all layers. A convolution adds so
    many earlier tokens of the same document, each channel weighed on its own. `parallel` lets attention and
    feed-forward read the same normed input. `ngrams` is the longest run of tokens that has a vector of its own, out of
    a table of `ngram_rows` for each length from 2; 0 is none. `embedding_skip` mixes the embedding into each layer's
    input anew.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tied: bool = False
    dropout: float = 0.0
    norm: Norm = "rms"
    norm_bias: bool = True  # of `layer` alone; the others have none
    position: Position = "rope"
    rotary_dims: int = 0
    rope_scaling: RopeScaling | None = None
    activation: Activation = "swiglu"
    qk_norm: QueryKeyNorm = "none"
    parallel: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    windows: tuple[int | None, ...] = ()
    logit_softcap: float | None = None
    experts: Experts | None = None
    embedding_convolution: int = 0
    attention_convolution: int = 0
    mlp_convolution: int = 0
    ngrams: int = 0
    ngram_rows: int = 16_384
    embedding_norm: bool = False
    embedding_skip: bool = False

    def __post_init__(self) -> None:
        if not self.rotary_dims:
            object.__setattr__(self, "rotary_dims", self.head_dim)
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f"{len(self.windows)} windows for {self.layers} layers")

    @property
    def rotates(self) -> bool:
        """Whether positions are angles."""
        return self.position.startswith("rope")

    def window(self, layer: int) -> int | None:
        """Return how many tokens a query of a layer sees; None is all."""
        return self.windows[layer] if self.windows else None
