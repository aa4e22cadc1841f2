"""What a person may say about a model, and the architecture it resolves to. Free of torch, so that `--help` is instant.

A family gives the switches, a named size or one dial, `depth`, the numbers; each can be set by itself, and says where
it came from. Families and sizes are data, in `ludus.model.presets`.
"""

from typing import Annotated, Any, ClassVar, Literal

from ludus.base.config import Field, Settings
from ludus.model.architecture import Activation, Architecture, Experts, Norm, Position, QueryKeyNorm, RopeScaling
from ludus.model.presets import FAMILIES, SIZES, Size

DEPTH = 4
TO_BE_NAMED = "?"


class NoScaling(Settings):
    """Rotary positions as they are."""

    kind: Literal["none"] = "none"


class LinearScaling(Settings):
    """Every rotary angle is divided by the factor."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(2.0, ge=1, description="Times the context is stretched.")


class Llama3Scaling(Settings):
    """Slow rotary angles are divided by the factor, fast ones kept: Llama 3.1."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(8.0, ge=1, description="Times the context is stretched.")
    original_context: int = Field(8192, ge=1, description="Context before.", json_schema_extra={"unit": "tokens"})
    low_frequency_factor: float = Field(1.0, gt=0, description="Angles of fewer turns in that context are divided.")
    high_frequency_factor: float = Field(4.0, gt=0, description="Angles of more turns in that context are kept.")


class YarnScaling(Settings):
    """Like llama3, blended by the index of the angle, and attention is sharpened."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(4.0, ge=1, description="Times the context is stretched.")
    original_context: int = Field(4096, ge=1, description="Context before.", json_schema_extra={"unit": "tokens"})
    beta_fast: float = Field(32.0, gt=0, description="Angles of more turns in that context are kept.")
    beta_slow: float = Field(1.0, gt=0, description="Angles of fewer turns in that context are divided.")
    attention_factor: float | None = Field(None, gt=0, description="Scales queries and keys; from the factor if unset.")


ScalingSettings = Annotated[
    NoScaling | LinearScaling | Llama3Scaling | YarnScaling,
    Field(discriminator="kind"),
]


class ExpertSettings(Settings):
    """A mixture of experts in place of each feed-forward."""

    count: int = Field(0, ge=0, description="Experts in a layer; 0 for none.")
    chosen: int = Field(2, ge=1, description="Experts that each token is sent to.")
    shared: int = Field(1, ge=0, description="Experts that every token is sent to, besides.")
    hidden: int | None = Field(None, ge=1, description="Inner channels of one expert.")
    balance_rate: float = Field(0.001, ge=0, description="Step of the biases that keep the experts equally busy.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Make the experts of a token together as large as one feed-forward."""
        whole = getattr(getattr(root, "model", None), "hidden", None)
        if not self.count or not whole:
            return {}
        hidden = max(8, whole // (self.chosen + self.shared) // 8 * 8)
        return {"hidden": (hidden, f"model.hidden={whole} shared by the experts of a token, in steps of 8")}


class ModelSettings(Settings):
    """A decoder: the family gives its switches, the depth or a named size its numbers; each may be set by itself."""

    shorthand: ClassVar[str] = "base"

    base: str | None = Field(
        None,
        description="A model to tune, in place of a fresh one: a folder, a run, or a name of the hub; ? in a recipe "
        "that wants one named.",
    )
    family: Literal["llama", "gpt2", "modern"] = Field(
        "llama", description="Where every switch below comes from that is not set."
    )
    size: str | None = Field(None, description="A named shape, such as 124M of gpt2, 1B of llama or d12 of modern.")
    depth: int | None = Field(None, ge=1, le=128, description="Layers; width, heads and feed-forward derive from it.")
    width: int | None = Field(None, ge=8, description="Channels of the residual stream.")
    heads: int | None = Field(None, ge=1, description="Attention heads; must divide the width.")
    kv_heads: int | None = Field(
        None, ge=1, description="Key and value heads (grouped-query attention); divides heads."
    )
    head_dim: int | None = Field(None, ge=2, description="Channels of one head.")
    hidden: int | None = Field(None, ge=8, description="Inner channels of the feed-forward.")
    norm: Norm | None = Field(None, description="Of the residual stream: by its root mean square, also centred, plain.")
    norm_epsilon: float | None = Field(None, gt=0, description="Added inside the norm's root.")
    norm_bias: bool | None = Field(None, description="Whether a `layer` norm has biases.")
    position: Position | None = Field(None, description="How a token knows where it stands.")
    rope_theta: float | None = Field(None, gt=0, description="Base of the rotary position angles.")
    rotary_dims: int | None = Field(None, ge=2, multiple_of=2, description="Channels of a head that rotate.")
    rope_scaling: ScalingSettings = Field(default=NoScaling(), description="Rotary positions for longer contexts.")
    activation: Activation | None = Field(None, description="Of the feed-forward; swiglu has a gate.")
    qk_norm: QueryKeyNorm | None = Field(None, description="Of queries and keys: by head, with weights or plain.")
    parallel: bool | None = Field(None, description="Attention and feed-forward read the same input.")
    attention_bias: bool | None = Field(None, description="Biases of queries, keys and values.")
    output_bias: bool | None = Field(None, description="A bias of attention's output.")
    mlp_bias: bool | None = Field(None, description="Biases of the feed-forward.")
    head_bias: bool | None = Field(None, description="A bias of the output head.")
    tied: bool | None = Field(None, description="Share the embedding with the output head.")
    window: int | None = Field(None, ge=1, description="Tokens that a local layer sees.")
    window_pattern: str = Field(
        "LLLG", pattern="^[LG]+$", description="Local and global layers in turn, from the first; with model.window."
    )
    logit_softcap: float | None = Field(None, gt=0, description="Largest logit, approached smoothly.")
    embedding_norm: bool | None = Field(None, description="Normalise the embedding.")
    embedding_skip: bool | None = Field(None, description="Mix the embedding into the input of every layer.")
    embedding_convolution: int | None = Field(None, ge=0, description="Earlier tokens mixed into each embedding.")
    attention_convolution: int | None = Field(None, ge=0, description="Earlier tokens mixed in before attention.")
    mlp_convolution: int | None = Field(None, ge=0, description="Earlier tokens mixed in before the feed-forward.")
    ngrams: int | None = Field(
        None, ge=0, le=8, description="Longest run of tokens with a learned vector of its own, from 2 on; 0 for none."
    )
    ngram_rows: int = Field(16_384, ge=1, description="Rows of the hashed table of each length.")
    experts: ExpertSettings = ExpertSettings()
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on embedding, attention weights and layer outputs.")
    initial: Literal["zero", "gpt2"] | None = Field(
        None, description="Fresh weights: zero outputs and head, or drawn as GPT-2's."
    )

    def derive(self, root: Settings) -> dict[str, tuple[Any, str]]:
        """Fill numbers from the size or the depth, switches from the family.

        Raises:
            ConfigError: the family has no size of that name, or it has other layers than were asked for.
        """
        size = named_size(self.family, self.size)
        _check_layers(self, size)
        found: dict[str, tuple[Any, str]] = {
            name: (value, f"model.family={self.family}") for name, value in FAMILIES[self.family].items()
        }
        found["rope_theta"] = (10_000.0, "the usual base")
        found |= _numbers(self, found["activation"][0] if self.activation is None else self.activation)
        for name in ("depth", "width", "heads", "kv_heads", "hidden"):
            value = getattr(size, "layers" if name == "depth" else name, None)
            if value is not None:
                found[name] = (value, f"model.size={self.size} of {self.family}")
        switches = {} if size is None else size.switches
        found |= {name: (value, f"model.size={self.size} of {self.family}") for name, value in switches.items()}
        return found | _of_heads(self, found)


def named_size(family: str, name: str | None) -> Size | None:
    """Return a named shape, None where none is named.

    Raises:
        ConfigError: the family has no such size.
    """
    if name is None or name in SIZES[family]:
        return None if name is None else SIZES[family][name]
    from ludus.base.errors import ConfigError, nearest

    near = nearest(name, SIZES[family])
    hint = f"; did you mean {near}?" if near else ""
    raise ConfigError(f"model.size={name} is no size of {family}, which has {', '.join(SIZES[family])}{hint}")


def _check_layers(settings: ModelSettings, size: Size | None) -> None:
    if size is not None and settings.depth not in (None, size.layers):
        from ludus.base.errors import ConfigError

        raise ConfigError(
            f"model.size={settings.size} has {size.layers} layers, and model.depth={settings.depth}; "
            "set model.depth=null, or model.size=null"
        )


def _numbers(settings: ModelSettings, activation: str) -> dict[str, tuple[Any, str]]:
    """Derive width, heads and feed-forward from the depth."""
    size = named_size(settings.family, settings.size)
    depth = settings.depth or (size.layers if size else DEPTH)
    width = settings.width or (size and size.width) or min(64 * depth, 128 * max(1, depth - 3))
    head_dim = settings.head_dim or (64 if width >= 384 else 32)
    heads = settings.heads or (size and size.heads) or max(1, width // head_dim)
    if settings.family == "llama":
        kv_heads = heads // 2 if heads % 2 == 0 else heads, f"half of model.heads={heads}, where that is whole"
    else:
        kv_heads = heads, f"model.heads={heads}: {settings.family} shares no keys"
    if activation == "swiglu":
        hidden = -(-width * 8 // 3 // 32) * 32, f"8/3 of model.width={width}, in steps of 32 (SwiGLU)"
    else:
        hidden = 4 * width, f"4 times model.width={width}"
    return {
        "depth": (depth, "a small model"),
        "width": (width, f"64 channels a layer, thinner below 6 layers, at model.depth={depth}"),
        "heads": (heads, f"{head_dim} channels a head at model.width={width}"),
        "kv_heads": kv_heads,
        "hidden": hidden,
    }


def _of_heads(settings: ModelSettings, found: dict[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    width, heads = settings.width or found["width"][0], settings.heads or found["heads"][0]
    head_dim = settings.head_dim or width // heads
    return {
        "head_dim": (head_dim if head_dim > 1 else None, f"model.width={width} over model.heads={heads}"),
        "rotary_dims": (head_dim // 2 * 2 or None, "the whole head"),
    }


def architecture(settings: ModelSettings, *, vocabulary: int, context: int) -> Architecture:
    """Join the settings with what data decides: the vocabulary and the context length in tokens.

    Raises:
        ConfigError: heads do not divide the width, kv_heads do not divide heads, a head has an odd size, or tokens are
            sent to more experts than there are.
    """
    settings = _complete(settings)
    _check_heads(settings)
    switches = set(Architecture.__dataclass_fields__) & set(ModelSettings.model_fields)
    chosen = {name: getattr(settings, name) for name in switches - {"experts", "rope_scaling"}}
    return Architecture(
        vocabulary=vocabulary,
        layers=settings.depth or DEPTH,
        context=context,
        windows=_windows(settings),
        rope_scaling=_scaling(settings),
        experts=_experts(settings),
        **chosen,
    )


def _complete(settings: ModelSettings) -> ModelSettings:
    """Fill what was not resolved; settings made in code have not been through the configuration."""
    if settings.width and settings.norm:
        return settings
    from ludus.base.config.fill import fill

    return fill(settings)


def _check_heads(settings: ModelSettings) -> None:
    from ludus.base.errors import ConfigError

    width, heads, kv_heads = settings.width or 0, settings.heads or 1, settings.kv_heads or 1
    whole = settings.head_dim == width // heads
    if whole and (width % heads or width // heads % 2):
        raise ConfigError(
            f"model.width={width} over model.heads={heads} is not an even whole number of channels a head; "
            f"set model.width to a multiple of {2 * heads}"
        )
    if heads % kv_heads:
        raise ConfigError(f"model.kv_heads={kv_heads} does not divide model.heads={heads}; set it to a divisor")
    if (settings.rotary_dims or 0) > (settings.head_dim or 0):
        raise ConfigError(
            f"model.rotary_dims={settings.rotary_dims} is more than a head has ({settings.head_dim}); set it lower"
        )


def _windows(settings: ModelSettings) -> tuple[int | None, ...]:
    if settings.window is None:
        return ()
    pattern, layers = settings.window_pattern, settings.depth or DEPTH
    return tuple(settings.window if pattern[layer % len(pattern)] == "L" else None for layer in range(layers))


def _scaling(settings: ModelSettings) -> RopeScaling | None:
    return None if settings.rope_scaling.kind == "none" else RopeScaling(**settings.rope_scaling.model_dump())


def _experts(settings: ModelSettings) -> Experts | None:
    from ludus.base.errors import ConfigError

    experts = settings.experts
    if not experts.count:
        return None
    if experts.chosen > experts.count:
        raise ConfigError(
            f"model.experts.chosen={experts.chosen} of model.experts.count={experts.count}; set it to fewer"
        )
    return Experts(**experts.model_dump() | {"hidden": experts.hidden or settings.hidden or 0})
