"""Plots of groups and of new rows: where two groups lie apart, and which rows are novel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.diagnostics import Diagnosis
from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior
from pyrovae.plots.latent import view_of
from pyrovae.plots.planes import two_units
from pyrovae.plots.style import COLOURS, MUTED, NOTE, TRAINING, WIDTH, canvas, styled
from pyrovae.populations import GroupContrast, Novelty

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 20  # of p-values
SATURATED = 0.98  # quantile of the log ratios at which colours saturate


@styled
def group_contrast(
    source: GroupContrast, codes: Diagnosis | AggregatedPosterior, *,
    units: tuple[int, int] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """The means of all encodings in the colour of the groups' log ratio, those found larger.

    Args:
        source: what ``compare_groups(...).contrast(first, second)`` returns.
        codes: the q_agg whose groups were compared, or its diagnosis.
        units: which two; by default the most active ones.
        ax: where to draw; by default on a new figure.

    Raises:
        InputError: for codes of other rows, or of a single unit.
    """
    if not isinstance(source, GroupContrast):
        raise InputError(
            f"expected a GroupContrast; got {type(source).__name__}. Give what "
            "compare_groups(...).contrast(first, second) returns."
        )
    view = view_of(codes, None)
    agg = codes.aggregated if isinstance(codes, Diagnosis) else codes
    ratio = source.log_ratio.double().cpu().numpy()
    if len(ratio) != agg.size:
        raise InputError(
            f"expected q_agg of the {len(ratio):,} rows that were compared; got {agg.size:,}. Give "
            "the one that compare_groups was given."
        )
    first, second = two_units(units, view)
    x, y = agg.encoding.mean[:, [first, second]].double().cpu().numpy().T
    limit = float(np.quantile(np.abs(ratio[np.isfinite(ratio)]), SATURATED)) or 1.0
    ax = canvas(ax, height=0.9 * WIDTH).axes[0]
    found = source.found.cpu().numpy()
    style: dict[str, Any] = {"cmap": "coolwarm", "vmin": -limit, "vmax": limit, "linewidths": 0}
    ax.scatter(x[~found], y[~found], c=ratio[~found], s=5, alpha=0.5, **style)
    points = ax.scatter(x[found], y[found], c=ratio[found], s=16, **style)
    label = f"log q({source.first}) − log q({source.second}), nats"
    ax.figure.colorbar(points, ax=ax, fraction=0.05).set_label(label, parse_math=False)
    ax.set(xlabel=f"unit {first}", ylabel=f"unit {second}")
    told = (
        "nothing is tested"
        if source.q_value is None
        else f"{found.sum():,} codes found, drawn larger"
    )
    ax.set_title(told, fontsize=9, color=NOTE)
    return ax


@styled
def novel_rows(source: Novelty, *, ax: Axes | None = None) -> Axes:
    """Histogram of the p-values of new rows, with what rows like the calibration's would give.

    Args:
        source: what ``pyrovae.novelty`` returns.
        ax: where to draw; by default on a new figure.
    """
    if not isinstance(source, Novelty):
        raise InputError(
            f"expected a Novelty; got {type(source).__name__}. Give what pyrovae.novelty returns."
        )
    p_value, found = source.p_value.double().cpu().numpy(), source.found.cpu().numpy()
    panel = canvas(ax)
    ax = panel.axes[0]
    ax.hist(
        [p_value[found], p_value[~found]], bins=BINS, range=(0, 1), stacked=True,
        color=[COLOURS["q_agg"], TRAINING],
        label=[f"{found.sum():,} found novel", f"{(~found).sum():,} not found"],
    )  # fmt: skip
    ax.axhline(len(p_value) / BINS, color=MUTED, linestyle="--", label="if none were novel")
    ax.set(xlim=(0, 1), xlabel="conformal p-value", ylabel="new rows")
    panel.legend(ax, columns=3)
    return ax
