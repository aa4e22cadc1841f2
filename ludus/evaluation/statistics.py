"""How sure a score is: intervals for one accuracy, and for the difference of two on the same questions.

What lives here: the Wilson interval for one proportion, Tango's interval for a paired difference, McNemar's exact p,
and the one-word verdict the reports print. What does not: running a model or reading answers.

The one idea: two checkpoints answer the *same* questions, so only the questions on which they disagree carry
information. A comparison that forgets the pairing needs several times more questions to see the same improvement.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from ludus.base.errors import DataError

Verdict = Literal["improved", "degraded", "within noise"]


@dataclass(frozen=True)
class Comparison:
    """What changed between two models on the same questions; differences are shares, not percent.

    `gained` counts the questions only the later model answers right, `lost` those only the earlier one did.
    `low` and `high` bound the difference; `p` is McNemar's exact two-sided probability.
    """

    questions: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float
    verdict: Verdict


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a proportion by Wilson's score interval (Wilson 1927; Newcombe 1998, Stat. Med. 17:857, method 3).

    Always inside [0, 1] and never of zero width, so 0 of 20 reads "at most 16 %" and not "exactly nothing".
    No questions at all give (0, 1): nothing is known. Raises DataError for impossible counts.
    """
    if not 0 <= correct <= total:
        raise DataError(f"{correct} right of {total} questions is impossible; expected 0 <= right <= questions")
    z = _quantile(confidence)
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    # Rounding leaves a residue of 1e-17 at the two ends, where the formula is exactly 0 or 1.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def compare(
    before: Sequence[bool] | np.ndarray, after: Sequence[bool] | np.ndarray, confidence: float = 0.95
) -> Comparison:
    """Compare two models' right-or-wrong marks, given in the same order of questions.

    The interval is Tango's, so its verdict and its bounds can never disagree: it excludes 0 exactly when McNemar's
    z test is significant. `p` is the exact conditional test, which is the stricter of the two; it is for the record.
    Raises DataError when the two do not hold equally many marks, or none.
    """
    earlier, later = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if earlier.shape != later.shape or earlier.ndim != 1:
        raise DataError(
            f"cannot pair {earlier.size} marks with {later.size}; both models must answer the same questions"
        )
    if earlier.size == 0:
        raise DataError("cannot compare two models on no questions; give at least one")
    gained, lost = int(np.sum(~earlier & later)), int(np.sum(earlier & ~later))
    low, high = tango(gained, lost, earlier.size, confidence)
    verdict: Verdict = "improved" if low > 0 else "degraded" if high < 0 else "within noise"
    difference = (gained - lost) / earlier.size
    return Comparison(earlier.size, gained, lost, difference, low, high, mcnemar(gained, lost), verdict)


def tango(gained: int, lost: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a paired difference of proportions by inverting the score test (Tango 1998, Stat. Med. 17:891).

    Chosen over the bootstrap and over Newcombe's method 10 because it needs no random numbers, holds its coverage at
    the small numbers of disagreements that training stages show, stays inside [-1, 1], has a width even when the two
    models agree everywhere, and reduces to McNemar's statistic at a difference of 0 (so verdict and test agree).
    That test's error stays near 5 % without the caution of the exact one, which finds fewer true improvements
    (Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodol. 13:91). Correct to the last digits of a float.
    """
    if min(gained, lost) < 0 or gained + lost > total or total < 1:
        raise DataError(f"{gained} gained and {lost} lost of {total} questions is impossible")
    z = _quantile(confidence)
    difference = (gained - lost) / total

    def score(theta: float) -> float:
        return _tango_score(theta, gained, lost, total)

    low = -1.0 if lost == total else _bisect(lambda theta: score(theta) - z, -1.0, difference)
    high = 1.0 if gained == total else _bisect(lambda theta: score(theta) + z, difference, 1.0)
    return low, high


def mcnemar(gained: int, lost: int) -> float:
    """Return McNemar's exact two-sided p: how often a fair coin splits the disagreements at least this unevenly."""
    disagreements = gained + lost
    if disagreements == 0:
        return 1.0
    term, tail = 1, 1
    for index in range(1, min(gained, lost) + 1):  # binomial coefficients, exact integers
        term = term * (disagreements - index + 1) // index
        tail += term
    return min(1.0, 2 * tail / 2**disagreements)


def _tango_score(theta: float, gained: int, lost: int, total: int) -> float:
    """Return the score statistic for a true difference `theta`; it falls as theta grows."""
    # The probability of losing a question, at its maximum likelihood under the difference theta: a quadratic's root.
    linear = (2 * total - gained + lost) * theta - gained - lost
    constant = -lost * theta * (1 - theta)
    losing = (math.sqrt(max(0.0, linear * linear - 8 * total * constant)) - linear) / (4 * total)
    variance = total * (2 * losing + theta * (1 - theta))
    distance = gained - lost - total * theta
    return distance / math.sqrt(variance) if variance > 1e-300 else math.copysign(math.inf, distance)


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """Find where a falling function crosses zero, to the last bit of the bracket's larger end."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise DataError(f"a confidence of {confidence} is impossible; expected a share between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)
