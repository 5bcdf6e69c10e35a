"""Numbers and names in the form that a person reads."""

from __future__ import annotations

import math

MISSING = "not measured"
MINUS = "\N{MINUS SIGN}"
_ACRONYMS = {"arp", "aplt", "hr", "ndcg", "mrr", "auc", "dp", "mgu", "dgu"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def label(metric: str) -> str:
    """Display name of a metric: `ndcg@10` is NDCG@10, `val_loss` Validation loss."""
    base, at, k = metric.partition("@")
    if base.endswith("_soft"):
        return label(base.removesuffix("_soft")) + " (catalogue)"
    first, _, rest = base.replace("val_", "validation_").partition("_")
    first = first.upper() if first in _ACRONYMS else first[:1].upper() + first[1:]
    words = [word.upper() if word in _ACRONYMS else word for word in rest.split("_")]
    return " ".join([first, *words]).rstrip() + at + k


def decimals(value: float, digits: int = 4) -> int:
    """Places after the point that show `digits` significant digits of `value`, at most 8."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 8)


def figure(value: float | None, places: int | None = None) -> str:
    """A value with four significant digits (or `places` decimals), or "not measured"."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value != 0 and abs(value) < 1e-6:
        return scientific(value)
    places = decimals(value) if places is None else places
    return f"{round(value, places) + 0.0:,.{places}f}".replace("-", MINUS)  # + 0.0 unsigns -0


def scientific(value: float) -> str:
    """Such as 3.2 × 10⁻⁷."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa} × 10{power(int(exponent))}".replace("-", MINUS)


def power(exponent: int) -> str:
    """An exponent in superscript digits."""
    return str(exponent).translate(_SUPERSCRIPT)


def span(interval: tuple[float, float] | None, like: float | None) -> str:
    """An interval as precise as its width deserves, never more than the value `like` beside it."""
    if interval is None:
        return ""
    low, high = interval
    places = decimals(like or max(abs(low), abs(high)))
    if high > low:
        places = min(places, decimals(high - low, 2))
    # A dash beside a minus sign would be misread.
    between = "\N{EN DASH}" if low >= 0 else " to "
    return f"{figure(low, places)}{between}{figure(high, places)}"


def share(value: float) -> str:
    """A share as per cent: 0.0999 is 10%, 0.004 is 0.4%."""
    percent = 100 * value
    text = f"{percent:.0f}" if abs(percent) >= 9.95 else f"{percent:.1f}".removesuffix(".0")
    return text.replace("-", MINUS) + "%"


def relative(before: float | None, after: float | None) -> float | None:
    """(after − before) / |before|, where both are known and `before` is not 0."""
    if before is None or after is None or before == 0:
        return None
    return (after - before) / abs(before)


def signed(change: float | None) -> str:
    """A relative change with its sign: −9.2%, +134%, −0.02%."""
    if change is None:
        return MISSING
    percent = 100 * change
    size = abs(percent)
    places = 0 if size >= 99.5 else 1 if size >= 0.95 else 2
    text = f"{percent:+.{places}f}"
    if float(text) == 0:
        return "±0%"
    return text.replace("-", MINUS) + "%"
