"""How many tokens a model of a size wants, and what loss to expect: the published law of scale.

What lives here: Chinchilla's law with its published constants, the ratio of tokens to parameters in words, and what
repeating data is worth. What does not: fitting a law to runs of our own, which is `scaling_law`. The one idea: the
ratio says what compute would have bought at best, not what a model for daily use should be.
"""

import math

RATIO = 20.0  # tokens a parameter
GOOD_EPOCHS, WORTHLESS_EPOCHS = 4, 40
E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
REPEATS_SCALE = 15.4


def loss(parameters: float, tokens: float) -> float:
    """Return the loss in nats a token that the published fit expects (arXiv 2203.15556 eq. 10), on web text.

    The constants are of large models on MassiveText with a vocabulary of 32,000; for small models, other text or other
    vocabularies only differences mean anything.
    """
    return E + A / parameters**ALPHA + B / tokens**BETA


def best_parameters(flops: float) -> float:
    """Return the parameters that make the most of a compute budget at 20 tokens each: C = 6 N D."""
    return math.sqrt(flops / (6 * RATIO))


def worth_of_repeats(unique: float, trained: float) -> float:
    """Return how many fresh tokens the tokens trained on are worth, when they repeat (arXiv 2305.16264).

    Up to four epochs are nearly as good as fresh text; from about forty on nothing more is gained.
    """
    repeats = max(0.0, trained / unique - 1)
    return min(trained, unique) + (
        unique * REPEATS_SCALE * (1 - math.exp(-repeats / REPEATS_SCALE)) if repeats else 0.0
    )


def verdict(parameters: int, tokens: int) -> str:
    """Say what the ratio of tokens to parameters means."""
    ratio = tokens / max(1, parameters)
    said = f"{ratio:.3g} tokens a parameter, where about 20 make the most of the compute: "
    if ratio < 10:
        return said + "under-trained; a smaller model or more steps would reach a lower loss for the same compute"
    if ratio <= 40:
        return said + "well balanced"
    return said + (
        "trained for longer than the compute alone would ask for, as small models often are on purpose: "
        "they cost less to run"
    )


def epochs_verdict(epochs: float) -> str:
    """Say what going through the text so many times means."""
    if epochs <= 1:
        return f"{epochs:.2g} epochs: no text is seen twice"
    if epochs <= GOOD_EPOCHS:
        return f"{epochs:.2g} epochs: up to about {GOOD_EPOCHS}, repeated text is nearly as good as fresh"
    if epochs <= WORTHLESS_EPOCHS:
        return f"{epochs:.2g} epochs: beyond about {GOOD_EPOCHS}, each repetition teaches less; watch the validation"
    return f"{epochs:.3g} epochs: beyond about {WORTHLESS_EPOCHS}, more steps teach next to nothing; get more text"
