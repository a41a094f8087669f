"""The style of all plots: a density has the same colour, line and marker in each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from pyrovae.estimates import Estimate
from pyrovae.extras import needed_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe & Ito's palette, which stays distinguishable with any kind of colour vision.
COLOURS = {"data": "#444444", "prior": "#0072B2", "q_agg": "#D55E00", "ex_post": "#009E73"}
FURTHER = "#CC79A7"
LINES: dict[str, Any] = {"prior": "--", "q_agg": "-", "ex_post": "-."}
MARKERS = {"prior": "s", "q_agg": "o", "ex_post": "D"}
LABELS = {
    "data": "data",
    "prior": "prior $p(z)$",
    "q_agg": r"raw $q_\mathrm{agg}(z)$",
    "ex_post": "ex-post prior",
}
TRAINING, VALIDATION, MUTED = "#56B4E9", "#332288", "#8A8A8A"

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.05,
    "axes.unicode_minus": True,
    "axes.formatter.use_locale": False,
    "text.usetex": False,  # which needs a TeX, and reads "%" and "_" in labels as commands
    "text.parse_math": True,
    "path.sketch": None,
    "svg.fonttype": "path",
    "svg.hashsalt": "pyrovae",
}
WIDTH = 5.0  # inches: narrow enough to be read on a phone


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """The plot function with the house style set while it draws, and only then.

    Raises:
        InputError: if matplotlib is not installed.
    """

    @wraps(plot)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with needed_for("a picture"):
            import matplotlib
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return inner


def panels(
    rows: int = 1, columns: int = 1, *, height: float = 3.4, width: float = WIDTH
) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, and its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def ticks(axis: Axis, most: int, **options: Any) -> None:
    """At most so many intervals between ticks at round numbers, as ``MaxNLocator`` takes them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, **options))


def legend_above(figure: Figure, *axes: Axes, columns: int = 3) -> None:
    """One legend for all axes, outside them, so that it covers no data."""
    entries = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in reversed(entries)}
    labels = list(dict.fromkeys(label for _, label in entries))
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside upper center",
        ncols=columns,
        columnspacing=1.2,
        handletextpad=0.5,
        handlelength=1.8,
    )


def label_of(name: str) -> str:
    """What a density is called in a plot."""
    return LABELS.get(name, name.replace("_", " "))


def colour_of(name: str) -> str:
    """The colour of a density, the same in all plots."""
    return COLOURS.get(name, FURTHER)


def bar(estimate: Estimate) -> float:
    """Length of an error bar: a standard error, or NaN, which draws none, if unresolved."""
    return math.nan if estimate.unresolved else estimate.standard_error
