"""Numbers as text, with as many digits as their standard error supports."""

from __future__ import annotations

import math

from pyrovae.estimates import Estimate

MINUS = "−"
MOST_DECIMALS = 5
SIGNS = {"lower": "≥ ", "upper": "≤ ", None: ""}


def decimals(error: float) -> int:
    """Decimals that show two significant digits of a standard error.

    >>> [decimals(error) for error in (14.0, 1.4, 0.14, 0.0014)]
    [0, 1, 2, 4]
    """
    return min(max(1 - math.floor(math.log10(error)), 0), MOST_DECIMALS)


def number(value: float, error: float = 0.0, *, signed: bool = False) -> str:
    """A value with its standard error, or alone if it is exact to rounding.

    Args:
        value: the number to show.
        error: its standard error; 0 for an exact number.
        signed: whether a positive number gets a plus sign, as differences do.

    >>> number(-35.2134, 0.1432)
    '−35.21 ± 0.14'
    >>> number(0.5271, 0.0312, signed=True)
    '+0.527 ± 0.031'
    >>> number(8.0), number(7.2704)
    ('8', '7.27')
    """
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{plain(value, '.4g')} ± {plain(error, '.2g')}" if error else plain(value, ".4g")
    sign = "+" if signed else ""
    if error <= 1e-6 * max(1.0, abs(value)):
        return plain(round(value, 6) + 0.0, f"{sign}.4g" if abs(value) < 1e4 else f"{sign},.0f")
    places = decimals(error)
    return f"{plain(value, f'{sign},.{places}f')} ± {error:,.{places}f}"


def plain(value: float, spec: str) -> str:
    """A number in a format, with a true minus sign and no negative zero.

    >>> plain(-1234.5, ",.1f"), plain(-0.0001, ".2f"), plain(float("-inf"), ".2f")
    ('−1,234.5', '0.00', '−∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = format(value, spec)
    if text.startswith("-") and not any(digit in text for digit in "123456789"):
        text = format(0.0, spec)
    return text.replace("-", MINUS)


def show(estimate: Estimate, *, signed: bool = False) -> str:
    """An estimate as text, with ≥ or ≤ if it is a bound; if it is unresolved, the reason.

    >>> show(Estimate(-35.2134, 0.1432, 500, "data", "lower"))
    '≥ −35.21 ± 0.14'
    """
    if estimate.unresolved:
        return estimate.unresolved
    return SIGNS[estimate.bound] + number(estimate.value, estimate.standard_error, signed=signed)


def show_measure(measure: str, estimate: Estimate) -> str:
    """The estimate of a measure by its key: a difference with its sign, a number of units whole.

    >>> show_measure("active_units", Estimate(9.0, 0.00003, 500))
    '9'
    >>> show_measure("active_units", Estimate(9.0, 0.31, 500))
    '9 ± 0.3'
    """
    if measure == "active_units" and not estimate.unresolved:
        error = f"{estimate.standard_error:.1f}"
        return f"{estimate.value:.0f}" + ("" if float(error) == 0 else f" ± {error}")
    return show(estimate, signed="_minus_" in measure)


def count(value: int) -> str:
    """A whole number with thousands separated.

    >>> count(60000)
    '60,000'
    """
    return f"{value:,}"
