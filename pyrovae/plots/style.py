"""The style of all plots: a density has the same colour, line and marker in each of them."""

from __future__ import annotations

import importlib
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from pyrovae.diagnostics import Diagnosis
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.extras import needed_for
from pyrovae.progress import in_notebook

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
Part = TypeVar("Part")

# Okabe & Ito's palette, which stays distinguishable with any kind of colour vision.
COLOURS = {
    "data": "#444444",
    "held-out data": "#444444",
    "prior": "#0072B2",
    "q_agg": "#D55E00",
    "ex_post": "#009E73",
}
FURTHER = "#CC79A7"
LINES: dict[str, Any] = {"prior": "--", "q_agg": "-", "ex_post": "-."}
MARKERS = {"prior": "s", "q_agg": "o", "ex_post": "D"}
LABELS = {
    "data": "data",
    "prior": "prior $p(z)$",
    "q_agg": r"raw $q_\mathrm{agg}(z)$",
    "ex_post": "ex-post prior",
}
BAND = "#E4E4E4"  # of what is within its error
NOTE = "#555555"  # of words above a picture
# Paul Tol's muted palette and three more, for codes by label.
LABEL_COLOURS = (
    "#CC6677", "#6B5FD0", "#C2A93A", "#117733", "#56B4E9", "#D55E00", "#44AA99", "#AA4499",
    "#8A8A8A", "#999933", "#A65628", "#0072B2",
)  # fmt: skip
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


#: Whether new figures stay out of pyplot, which would show them in a notebook or a window.
_OFF_SCREEN: ContextVar[bool] = ContextVar("off_screen", default=False)


@contextmanager
def off_screen() -> Iterator[None]:
    """Keep new figures out of pyplot, as for a file."""
    token = _OFF_SCREEN.set(True)
    try:
        yield
    finally:
        _OFF_SCREEN.reset(token)


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """The plot function with the house style set while it draws, and only then.

    Raises:
        InputError: if matplotlib is not installed.
    """

    @wraps(plot)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with needed_for("a picture"):
            import matplotlib
        _set_up_pyplot()
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return inner


def _set_up_pyplot() -> None:
    """Load pyplot in a notebook, and its backend wherever it is loaded.

    A notebook's backend switches interactive mode on when it is first used. Within ``rc_context``
    that would be undone, and the notebook would show no figure any more, not even the user's own.
    """
    if _OFF_SCREEN.get():
        return
    if in_notebook():
        importlib.import_module("matplotlib.pyplot")
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.draw_if_interactive()


class Canvas(NamedTuple):
    """The axes to draw on.

    Args:
        axes: row by row.
        own: whether they fill a figure of their own, which can then have its legend beside them.
    """

    axes: list[Axes]
    own: bool

    def legend(self, *axes: Axes, columns: int = 3) -> None:
        """One legend for all entries of these axes: outside of a figure's axes if it can be."""
        pairs = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
        self.show_legend({label: handle for handle, label in reversed(pairs)},
                         list(dict.fromkeys(label for _, label in pairs)), columns)  # fmt: skip

    def show_legend(self, handles: dict[str, Any], labels: Sequence[str], columns: int) -> None:
        """A legend of these handles in the order of the labels."""
        parts = [handles[label] for label in labels], list(labels)
        if self.own:
            self.axes[0].get_figure().legend(  # type: ignore[union-attr]
                *parts, loc="outside upper center", ncols=columns, columnspacing=1.2,
                handletextpad=0.5, handlelength=1.8,
            )  # fmt: skip
        else:
            self.axes[0].legend(
                *parts, ncols=2 if len(labels) > 5 else 1, fontsize=8, frameon=True, framealpha=0.8
            )  # fmt: skip


def canvas(
    given: Axes | Sequence[Axes] | None, rows: int = 1, columns: int = 1, *,
    height: float = 3.4, width: float | None = None,
) -> Canvas:  # fmt: skip
    """The axes that a user has given, or those of a new figure.

    Args:
        given: one, or as many as there are panels, in any shape.
        rows, columns: of panels.
        height, width: of a new figure, in inches.

    Raises:
        InputError: for another number of axes.
    """
    count = rows * columns
    if given is not None:
        import numpy as np

        axes = list(np.asarray(given, dtype=object).flat)
        if len(axes) < count:
            raise InputError(
                f"expected {count} axes to draw on; got {len(axes)}. Make them with "
                f"plt.subplots({rows}, {columns}), or leave them out."
            )
        return Canvas(axes, own=False)
    figure = _new_figure((WIDTH if width is None else width, height))
    return Canvas(list(figure.subplots(rows, columns, squeeze=False).flat), own=True)


def panels_of(
    count: int, given: Axes | Sequence[Axes] | None, *, columns: int, height: float,
    width: float | None = None,
) -> Canvas:  # fmt: skip
    """As many axes as are needed, those given or in columns; what is left over stays empty."""
    rows, columns = (-(-count // columns), columns) if given is None else (count, 1)
    found = canvas(given, rows, columns, height=height, width=width)
    for ax in found.axes[count:]:
        ax.set_axis_off()
    return Canvas(found.axes[:count], found.own)


def _new_figure(size: tuple[float, float]) -> Figure:
    """A figure that pyplot knows in a notebook, or if the user has loaded it: so it is shown."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and not _OFF_SCREEN.get():
        figure: Figure = pyplot.figure(figsize=size)
        return figure
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def part_of(source: object, kind: type[Part], pick: Callable[[Diagnosis], Part | None],
            missing: Callable[[], InputError] | None = None) -> Part:  # fmt: skip
    """The part that a picture is of: of a diagnosis, or given itself.

    Args:
        source: a diagnosis, or the part.
        kind: of the part.
        pick: takes the part out of a diagnosis; ``None`` if it has none.
        missing: the error in that case.

    Raises:
        InputError: for anything else, or a diagnosis without that part.
    """
    if isinstance(source, kind):
        return source
    if not isinstance(source, Diagnosis):
        raise InputError(
            f"expected a Diagnosis or its {kind.__name__}; got {type(source).__name__}. Give what "
            "pyrovae.diagnose returns."
        )
    found = pick(source)
    if found is None:
        raise (
            InputError(f"expected a diagnosis with a {kind.__name__}; got one without.")
            if missing is None
            else missing()
        )
    return found


def ticks(axis: Axis, most: int, **options: Any) -> None:
    """At most so many intervals between ticks at round numbers, as ``MaxNLocator`` takes them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, **options))


def wrapped(text: str, width: int = 22) -> str:
    """A long label on several lines."""
    return "\n".join(textwrap.wrap(text, width))


def label_of(name: str) -> str:
    """What a density is called in a plot."""
    return LABELS.get(name, name.replace("_", " "))


def colour_of(name: str) -> str:
    """The colour of a density, the same in all plots."""
    return COLOURS.get(name, FURTHER)


def colours_by_name(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: that of a density, or one of its own for any other.

    >>> colours_by_name(["prior", "one", "two"])
    {'prior': '#0072B2', 'one': '#CC79A7', 'two': '#6B5FD0'}
    """
    others = cycle((FURTHER, *LABEL_COLOURS[1:]))
    return {name: COLOURS[name] if name in COLOURS else next(others) for name in names}


def bar(estimate: Estimate) -> float:
    """Length of an error bar: a standard error, or NaN, which draws none, if unresolved."""
    return math.nan if estimate.unresolved else estimate.standard_error
