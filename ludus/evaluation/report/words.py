"""Figures as people read them: shares, durations, sizes and counts, with the same rounding everywhere.

What lives here: number to text. What does not: deciding which number matters. The one idea: rounding must not lie,
so 99.6 % never reads "100 %" and a thing that happened never reads "0".
"""

import math

SPACE = "\u00a0"  # figure and unit stay on one line
MINUS = "\u2212"


def percent(share: float | None) -> str:
    """Write a share of 0 to 1 in percent, without decimals unless they would be needed to tell it from 0 or 100."""
    if share is None or not math.isfinite(share):
        return "–"
    for digits in (0, 1, 2):
        text = f"{100 * share:.{digits}f}"
        if (share <= 0 or float(text) > 0) and (share >= 1 or float(text) < 100):
            break
    return f"{text.replace('-', MINUS)}{SPACE}%"


def points(difference: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    rounded = round(100 * difference, 1)
    digits = 0 if abs(rounded) >= 10 or rounded == int(rounded) else 1
    return f"{_sign(rounded)}{abs(rounded):.{digits}f}"


def duration(seconds: float | None) -> str:
    """Write a time as "0.4 s", "12 s", "5 min 12 s" or "3 h 05 min"."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min" + (f"{SPACE}{whole % 60:02d}{SPACE}s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60}{SPACE}h{SPACE}{minutes % 60:02d}{SPACE}min"


def size(num_bytes: float | None) -> str:
    """Write bytes in decimal units, as file managers do."""
    return "–" if num_bytes is None else _scaled(num_bytes, 1000, ["B", "kB", "MB", "GB", "TB"])


def amount(count: float | None) -> str:
    """Write a large count in three figures: 950, 12.3 k, 4.57 M."""
    return "–" if count is None else _scaled(count, 1000, ["", "k", "M", "G", "T"]).strip(SPACE)


def whole(count: float | None) -> str:
    """Write a count in full, with thousands apart."""
    return "–" if count is None else f"{round(count):,}"


def figure(value: float | None, digits: int = 3) -> str:
    """Write a number in so many significant digits, never as 1e-05 within reason."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if not -6 <= places <= 9:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    rounded = round(value, places)
    return f"{_sign(rounded, plus='')}{abs(rounded):,.{max(0, places)}f}"


def plural(count: float, word: str) -> str:
    """Write "1 document" or "1,204 documents"."""
    return f"{whole(count)}{SPACE}{word}{'' if round(count) == 1 else 's'}"


def _sign(value: float, plus: str = "+") -> str:
    return MINUS if value < 0 else plus if value > 0 else ""


def _scaled(value: float, step: int, units: list[str]) -> str:
    power = 0
    while abs(value) >= step - 0.5 and power < len(units) - 1:
        value, power = value / step, power + 1
    digits = 0 if power == 0 or abs(value) >= 99.5 else 1 if abs(value) >= 9.95 else 2
    return f"{value:.{digits}f}{SPACE}{units[power]}"
