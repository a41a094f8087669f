"""Plots of the latent space: the map of codes, the activity of units, and their marginals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.diagnostics import ACTIVE, Collapse, Diagnosis
from pyrovae.display import by_number
from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior
from pyrovae.plots.grids import Array, line, mass_levels, most_active, pair_density, unit_density
from pyrovae.plots.style import (
    COLOURS,
    LABEL_COLOURS,
    LINES,
    MUTED,
    NOTE,
    WIDTH,
    bar,
    canvas,
    label_of,
    panels_of,
    part_of,
    styled,
    ticks,
)
from pyrovae.randomness import seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

MOST_POINTS = 3000  # codes on the map, at most
GRID = 128  # points along each axis of the map's contours
SHARES = (0.5, 0.9)  # shares of the mass that the contours enclose
ACTIVE_COLOUR = "#4477AA"


class View(NamedTuple):
    """What a picture of the latent space shows.

    Args:
        z: one code of each data point, shape ``(M, D)``.
        rows: the number of each code's data point, shape ``(M,)``.
        population: N, the data points that there are.
        densities: over z, by name.
        order: of the units, the most active first.
        active: whether each unit is active, shape ``(D,)``, if that was measured.
        all_codes: all draws, for what has no density in closed form.
    """

    z: Tensor
    rows: Tensor
    population: int
    densities: dict[str, dist.Distribution]
    order: list[int]
    active: Tensor | None
    all_codes: Tensor


def view_of(source: Diagnosis | AggregatedPosterior, prior: dist.Distribution | None) -> View:
    """The codes and densities of a diagnosis, or of q_agg alone."""
    if isinstance(source, Diagnosis):
        codes, size = source.codes, len(source.collapse.active)
        return View(
            codes.z[:, 0], codes.index, codes.population,
            {"q_agg": source.aggregated, "prior": source.prior if prior is None else prior},
            most_active(source.collapse, size), source.collapse.active, codes.z.flatten(0, 1),
        )  # fmt: skip
    if not isinstance(source, AggregatedPosterior):
        raise InputError(
            f"expected a Diagnosis or an AggregatedPosterior; got {type(source).__name__}. Give "
            "what pyrovae.diagnose or pyrovae.aggregate returns."
        )
    with torch.no_grad(), seeded(0, "codes of a plot"):
        z = source.encoding.sample()
    order = z.double().var(0, correction=0).argsort(descending=True).tolist()
    densities = {"q_agg": source} | ({} if prior is None else {"prior": prior})
    return View(z, torch.arange(len(z)), len(z), densities, order, None, z)


@styled
def latent_map(
    source: Diagnosis | AggregatedPosterior,
    *,
    colour: Any = None,
    prior: dist.Distribution | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Codes of the two most active units, with contours of q_agg and of the prior.

    The contours enclose 50 and 90 % of the mass of the exact two-dimensional marginals. With a
    single unit the map is its histogram.

    Args:
        source: a diagnosis, or q_agg.
        colour: what colours the codes: a label or a number for each training row, shape ``(N,)``.
        prior: p(z); by default that of the diagnosis.
        ax: where to draw; by default on a new figure.

    Raises:
        InputError: for another number of labels than there are rows.
    """
    view = view_of(source, prior)
    if view.z.shape[-1] == 1:
        return _one_unit(view, ax)
    units = sorted(view.order[:2])
    x, y = (line(view.z[:, unit], GRID) for unit in units)
    panel = canvas(ax, height=WIDTH)
    ax = panel.axes[0]
    handles = _codes(ax, view, units, colour)
    for name, density in view.densities.items():
        heights = pair_density(density, units, x, y)
        if heights is not None:
            ax.contour(
                x.double().cpu().numpy(), y.double().cpu().numpy(), heights,
                levels=mass_levels(heights, SHARES), colors=COLOURS[name],
                linestyles=LINES[name], linewidths=1.3,
            )  # fmt: skip
    ax.set(xlabel=f"unit {units[0]}", ylabel=f"unit {units[1]}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(_collapsed_note(view.active), fontsize=9, color=NOTE)
    handles |= _contour_handles(view)
    panel.show_legend(handles, list(handles), columns=3)
    return ax


def _codes(ax: Axes, view: View, units: list[int], colour: Any) -> dict[str, Any]:
    """Draw the codes, in colours by label if there are any, and return a handle for each."""
    points = view.z[:MOST_POINTS, units].double().cpu().numpy()
    style: dict[str, Any] = {"s": 5, "linewidths": 0, "rasterized": True}
    if colour is None:
        ax.scatter(points[:, 0], points[:, 1], alpha=0.35, color=COLOURS["data"], **style)
        return {"codes": _dot(COLOURS["data"])}
    labels, hues = _labels(colour, view.population, view.rows[:MOST_POINTS])
    if hues is None:
        scatter = ax.scatter(
            points[:, 0], points[:, 1], alpha=0.7, c=labels, cmap="viridis", **style
        )
        ax.figure.colorbar(scatter, ax=ax, fraction=0.04)
        return {}
    for value, hue in hues.items():
        chosen = points[labels == value]
        ax.scatter(chosen[:, 0], chosen[:, 1], alpha=0.6, color=hue, **style)
    return {str(value): _dot(hue) for value, hue in hues.items()}


def colours_of(colour: Any, population: int, rows: Tensor) -> tuple[Any, dict[str, Any]]:
    """A colour for each of some rows, and a handle for each label.

    Args:
        colour: what colours them, as for `latent_map`.
        population: N, the data points that there are.
        rows: their numbers, shape ``(n,)``.
    """
    from matplotlib import colormaps

    if colour is None:
        return COLOURS["data"], {}
    labels, hues = _labels(colour, population, rows)
    if hues is None:
        span = float(np.ptp(labels)) or 1.0
        return colormaps["viridis"]((labels - labels.min()) / span), {}
    handles = {str(value): _dot(hue) for value, hue in hues.items()}
    return [hues[value] for value in labels.tolist()], handles


def _labels(
    colour: Any, population: int, rows: Tensor
) -> tuple[NDArray[Any], dict[Any, str] | None]:
    """The labels of some rows, and the colours of all labels, which are the same in each picture.

    There are no such colours for more different numbers than there are colours.
    """
    given = np.asarray(colour)
    if given.shape != (population,):
        raise InputError(
            f"expected a label for each of {population:,} rows; got shape {given.shape}. Give "
            "those of the training rows, in their order."
        )
    labels: NDArray[Any] = given[rows.cpu().numpy()]
    values = sorted(np.unique(given).tolist(), key=by_number)
    if len(values) <= len(LABEL_COLOURS):
        return labels, dict(zip(values, LABEL_COLOURS, strict=False))
    if not np.issubdtype(given.dtype, np.number):
        raise InputError(
            f"expected numbers, or at most {len(LABEL_COLOURS)} labels; got {len(values)}. "
            "Join some of them."
        )
    return labels, None


def _dot(colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", markersize=4, linestyle="none")


def _contour_handles(view: View) -> dict[str, Any]:
    from matplotlib.lines import Line2D

    return {
        f"{label_of(name)}: 50, 90 %": Line2D([], [], color=COLOURS[name], linestyle=LINES[name])
        for name in view.densities
    }


def _collapsed_note(active: Tensor | None) -> str:
    if active is None:
        return ""
    collapsed = (~active).nonzero().flatten().tolist()
    if not collapsed:
        return "the unit is active" if len(active) == 1 else f"all {len(active)} units are active"
    listed = ", ".join(str(unit) for unit in collapsed[:8]) + (", …" if len(collapsed) > 8 else "")
    return f"{int(active.sum())} of {len(active)} units are active; collapsed: {listed}"


def _one_unit(view: View, ax: Axes | None) -> Axes:
    panel = canvas(ax)
    ax = panel.axes[0]
    ax.hist(
        view.z[:, 0].double().cpu().numpy(), bins=50, density=True, color=COLOURS["data"],
        alpha=0.3, label="codes",
    )  # fmt: skip
    _unit_curves(ax, view, 0, line(view.z[:, 0]))
    ax.set(xlabel="unit 0", ylabel="density")
    ax.set_title(_collapsed_note(view.active), fontsize=9, color=NOTE)
    panel.legend(ax)
    return ax


def _unit_curves(ax: Axes, view: View, unit: int, grid: Tensor) -> None:
    for name, density in view.densities.items():
        style: dict[str, Any] = {"color": COLOURS[name], "linestyle": LINES[name]}
        heights = unit_density(density, unit, grid)
        if heights is not None:
            ax.plot(grid.double().cpu().numpy(), heights, label=label_of(name), **style)
            continue
        # If the density of a single unit is not known, a histogram of draws shows it.
        draws = view.all_codes if name == "q_agg" else _prior_draws(density)
        ax.hist(
            draws[:, unit].double().cpu().numpy(), bins=40, density=True, histtype="step",
            label=f"{label_of(name)}, draws", **style,
        )  # fmt: skip


def _prior_draws(prior: dist.Distribution, size: int = 4096) -> Tensor:
    with torch.no_grad(), seeded(0, "prior draws of a plot"):
        return prior.sample(torch.Size([size])).reshape(size, -1)


@styled
def unit_marginals(
    source: Diagnosis | AggregatedPosterior,
    *,
    most: int = 6,
    prior: dist.Distribution | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """The marginals of q_agg and of the prior for the most active units.

    Args:
        source: a diagnosis, or q_agg.
        most: units that are drawn at most.
        prior: p(z); by default that of the diagnosis.
        axes: where to draw, one for each unit; by default on a new figure.
    """
    view = view_of(source, prior)
    units = view.order[:most]
    columns = min(2, len(units))
    rows = -(-len(units) // columns)
    height = 0.7 + (3.0 if rows == 1 else 1.7 * rows)
    panel = panels_of(len(units), axes, columns=columns, height=height)
    for ax, unit in zip(panel.axes, units, strict=False):
        _unit_curves(ax, view, unit, line(view.all_codes[:, unit]))
        collapsed = "" if view.active is None or bool(view.active[unit]) else " (collapsed)"
        ax.set_title(f"unit {unit}{collapsed}")
        ax.set_ylim(bottom=0)
        ticks(ax.xaxis, 5)
        ticks(ax.yaxis, 4)
    for ax in panel.axes[::columns]:
        ax.set_ylabel("density")
    panel.legend(panel.axes[0])
    return panel.axes


@styled
def unit_activity(
    source: Diagnosis | Collapse, *, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Rate, KL(q_agg,d‖p_d) and variance of means of every unit, with collapsed units marked.

    Rate and KL are left out if the prior's marginals are not known.

    Args:
        source: a diagnosis, or its ``collapse``, of which the KL is not known.
        axes: where to draw, one for each of these measures; by default on a new figure.
    """
    activity = part_of(source, Collapse, lambda diagnosis: diagnosis.collapse)
    unit_kl = source.training.unit_kl if isinstance(source, Diagnosis) else None
    measures = [
        (estimates, label)
        for estimates, label in (
            (activity.unit_rate, "rate, nats"),
            (unit_kl, r"KL($q_\mathrm{agg,d}$ ‖ $p_d$), nats"),
        )
        if estimates is not None
    ]
    panel = canvas(axes, 1 + len(measures), height=2.8 + 1.7 * len(measures))
    axes = panel.axes[: 1 + len(measures)]
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
    for one in axes:
        one.set_xlim(-0.6, len(active) - 0.4)
        ticks(one.xaxis, 12, integer=True, min_n_ticks=1)
    panel.legend(*axes, columns=2)
    return axes


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
