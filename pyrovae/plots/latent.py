"""Plots of the latent space: the map of codes, the activity of units, and their marginals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.diagnostics import ACTIVE, Diagnosis
from pyrovae.plots.grids import Array, line, mass_levels, most_active, pair_density, unit_density
from pyrovae.plots.style import (
    COLOURS,
    LINES,
    MUTED,
    WIDTH,
    bar,
    label_of,
    legend_above,
    panels,
    styled,
    ticks,
)
from pyrovae.randomness import seeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 3000  # codes on the map, at most
GRID = 128  # points along each axis of the map's contours
SHARES = (0.5, 0.9)  # shares of the mass that the contours enclose
ACTIVE_COLOUR = "#4477AA"


@styled
def latent_map(diagnosis: Diagnosis) -> Figure:
    """Codes of the two most active units, with contours of q_agg and of the prior.

    The contours enclose 50 and 90 % of the mass of the exact two-dimensional marginals. With a
    single unit the map is its histogram.
    """
    z = diagnosis.codes.z[:, 0]
    if z.shape[-1] == 1:
        return _one_unit(diagnosis, z[:, 0])
    units = sorted(most_active(diagnosis.collapse, 2))
    x, y = (line(z[:, unit], GRID) for unit in units)
    figure, (ax,) = panels(height=WIDTH)
    points = z[:MOST_POINTS, units].double().cpu().numpy()
    ax.scatter(
        points[:, 0], points[:, 1], s=5, alpha=0.35, linewidths=0, color=COLOURS["data"],
        rasterized=True,
    )  # fmt: skip
    for name, density in (("q_agg", diagnosis.aggregated), ("prior", diagnosis.prior)):
        heights = pair_density(density, units, x, y)
        if heights is not None:
            ax.contour(
                x.double().cpu().numpy(), y.double().cpu().numpy(), heights,
                levels=mass_levels(heights, SHARES), colors=COLOURS[name],
                linestyles=LINES[name], linewidths=1.3,
            )  # fmt: skip
    ax.set(xlabel=f"unit {units[0]}", ylabel=f"unit {units[1]}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(_collapsed_note(diagnosis), fontsize=9, color="#555555")
    _map_legend(figure)
    return figure


def _map_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLOURS["data"], marker="o", markersize=3, linestyle="none")]
    handles += [Line2D([], [], color=COLOURS[n], linestyle=LINES[n]) for n in ("q_agg", "prior")]
    labels = ["codes", f"{label_of('q_agg')}: 50, 90 %", f"{label_of('prior')}: 50, 90 %"]
    figure.legend(
        handles, labels, loc="outside upper center", ncols=3, columnspacing=1, handletextpad=0.5
    )


def _collapsed_note(diagnosis: Diagnosis) -> str:
    active = diagnosis.collapse.active
    collapsed = (~active).nonzero().flatten().tolist()
    if not collapsed:
        return "the unit is active" if len(active) == 1 else f"all {len(active)} units are active"
    listed = ", ".join(str(unit) for unit in collapsed[:8]) + (", …" if len(collapsed) > 8 else "")
    return f"{int(active.sum())} of {len(active)} units are active; collapsed: {listed}"


def _one_unit(diagnosis: Diagnosis, codes: Tensor) -> Figure:
    figure, (ax,) = panels()
    ax.hist(
        codes.double().cpu().numpy(), bins=50, density=True, color=COLOURS["data"], alpha=0.3,
        label="codes",
    )  # fmt: skip
    _unit_curves(ax, diagnosis, 0, line(codes))
    ax.set(xlabel="unit 0", ylabel="density")
    ax.set_title(_collapsed_note(diagnosis), fontsize=9, color="#555555")
    legend_above(figure, ax)
    return figure


def _unit_curves(ax: Axes, diagnosis: Diagnosis, unit: int, grid: Tensor) -> None:
    for name, density in (("q_agg", diagnosis.aggregated), ("prior", diagnosis.prior)):
        style: dict[str, Any] = {"color": COLOURS[name], "linestyle": LINES[name]}
        heights = unit_density(density, unit, grid)
        if heights is not None:
            ax.plot(grid.double().cpu().numpy(), heights, label=label_of(name), **style)
            continue
        # If the density of a single unit is not known, a histogram of draws shows it.
        draws = diagnosis.codes.z.flatten(0, 1) if name == "q_agg" else _prior_draws(density)
        ax.hist(
            draws[:, unit].double().cpu().numpy(), bins=40, density=True, histtype="step",
            label=f"{label_of(name)}, draws", **style,
        )  # fmt: skip


def _prior_draws(prior: dist.Distribution, size: int = 4096) -> Tensor:
    with torch.no_grad(), seeded(0, "prior draws of a plot"):
        return prior.sample(torch.Size([size])).reshape(size, -1)


@styled
def unit_marginals(diagnosis: Diagnosis, *, most: int = 6) -> Figure:
    """The marginals of q_agg and of the prior for the most active units."""
    units = most_active(diagnosis.collapse, most)
    columns = min(2, len(units))
    rows = -(-len(units) // columns)
    figure, axes = panels(rows, columns, height=0.7 + (3.0 if rows == 1 else 1.7 * rows))
    for ax, unit in zip(axes, units, strict=False):
        _unit_curves(ax, diagnosis, unit, line(diagnosis.codes.z[..., unit]))
        collapsed = "" if bool(diagnosis.collapse.active[unit]) else " (collapsed)"
        ax.set_title(f"unit {unit}{collapsed}")
        ax.set_ylim(bottom=0)
        ticks(ax.xaxis, 5)
        ticks(ax.yaxis, 4)
    for ax in axes[len(units) :]:
        ax.set_axis_off()
    for ax in axes[::columns]:
        ax.set_ylabel("density")
    legend_above(figure, axes[0])
    return figure


@styled
def unit_activity(diagnosis: Diagnosis) -> Figure:
    """Rate, KL(q_agg,d‖p_d) and variance of means of every unit, with collapsed units marked.

    Rate and KL are left out if the prior's marginals are not known.
    """
    activity, unit_kl = diagnosis.collapse, diagnosis.training.unit_kl
    measures = [
        (estimates, label)
        for estimates, label in (
            (activity.unit_rate, "rate, nats"),
            (unit_kl, r"KL($q_\mathrm{agg,d}$ ‖ $p_d$), nats"),
        )
        if estimates is not None
    ]
    figure, axes = panels(1 + len(measures), height=2.8 + 1.7 * len(measures))
    active = activity.active.cpu().numpy()
    for ax, (estimates, label) in zip(axes, measures, strict=False):
        errors = np.array([bar(estimate) for estimate in estimates])
        _unit_points(ax, np.array([estimate.value for estimate in estimates]), errors, active)
        ax.set_ylabel(label)
    ax = axes[-1]
    variance = activity.variance_of_means.double().cpu().numpy()
    _unit_points(ax, variance, np.array([bar(unit) for unit in activity.variances]), active)
    ax.axhline(ACTIVE, color="#000000", linewidth=1, linestyle=":", label=f"{ACTIVE:g}")
    ax.set_yscale("log")
    positive = variance[variance > 0]
    low = min(ACTIVE, positive.min() if len(positive) else ACTIVE)
    ax.set_ylim(low / 3, max(variance.max(), ACTIVE) * 3)
    ax.set(xlabel="latent unit", ylabel="variance of means")
    for panel in axes:
        panel.set_xlim(-0.6, len(active) - 0.4)
        ticks(panel.xaxis, 12, integer=True, min_n_ticks=1)
    legend_above(figure, *axes, columns=2)
    return figure


def _unit_points(ax: Axes, values: Array, errors: Array, active: NDArray[np.bool_]) -> None:
    index = np.arange(len(active))
    kinds = (
        (active, "active", ACTIVE_COLOUR, "o", ACTIVE_COLOUR),
        (~active, "collapsed", MUTED, "X", "white"),
    )
    for mask, label, colour, marker, face in kinds:
        if mask.any():
            ax.errorbar(
                index[mask], values[mask], yerr=2 * errors[mask], color=colour,
                marker=marker, markersize=6, markerfacecolor=face, linestyle="none",
                capsize=2, label=f"{label} (± 2 standard errors)",
            )  # fmt: skip
