"""Plots of the guide: its calibration, its gaps, and how it compares with NUTS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.calibration import (
    ALARM,
    CELLS,
    Calibration,
    LocalCalibration,
    counts_below,
    ecdf_band,
)
from pyrovae.diagnostics import Diagnosis, Gaps, NutsComparison, left_out_of
from pyrovae.errors import InputError
from pyrovae.plots.style import (
    BAND,
    COLOURS,
    FURTHER,
    MUTED,
    TRAINING,
    canvas,
    panels_of,
    part_of,
    styled,
    ticks,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

# Colours and dashes of joint quantities: those of Okabe & Ito that no unit has, and an indigo.
JOINT: tuple[tuple[str, Any], ...] = (
    ("#000000", "-"), ("#CC79A7", "--"), ("#009E73", "-."), ("#E69F00", ":"),
    ("#332288", (0, (5, 1))),
)  # fmt: skip
LEAST_P = 1e-4  # smaller p-values are drawn there, and the axis says so
MOST_UNITS = 10  # drawn for each data point, at most


@styled
def calibration(source: Diagnosis | Calibration, *, ax: Axes | None = None) -> Axes:
    """ECDF of the probability integral transforms of each test, minus that of a calibrated guide.

    Units are lines, units of discrete sites dotted ones, and joint quantities dashed. The band is
    simultaneous for all curves together: the verdict rejects a unit or a joint quantity
    exactly where its curve leaves the band (Säilynoja et al. 2022).

    Args:
        source: a diagnosis, or what ``pyrovae.calibrate`` returns.
        ax: where to draw; by default on a new figure.
    """
    result = part_of(
        source, Calibration, lambda diagnosis: diagnosis.guide_check.calibration,
        lambda: left_out_of("a calibration of the guide", "simulations"),
    )  # fmt: skip
    count, tests = result.pit.shape
    panel = canvas(ax)
    ax = panel.axes[0]
    edges = np.arange(CELLS + 1) / CELLS
    low, high = (
        np.array([0, *bound, count]) / count - edges for bound in ecdf_band(count, ALARM / tests)
    )
    ax.fill_between(
        edges, low, high, color=BAND, linewidth=0,
        label=f"{100 * (1 - ALARM):.0f} % band of an exact guide",
    )  # fmt: skip
    curves = np.array([[0, *counts_below(pit), count] for pit in result.pit.unbind(-1)])
    passed = result.passed.tolist()
    first, last = result.units, result.units + len(result.discrete)
    kinds = (
        ("unit", "-", range(first)),
        ("discrete unit", ":", range(first, last)),
    )
    for noun, style, columns in kinds:
        for state, colour in ((True, TRAINING), (False, COLOURS["q_agg"])):
            drawn = [column for column in columns if passed[column] == state]
            for column in drawn:
                ax.plot(
                    edges, curves[column] / count - edges,
                    color=colour, linewidth=1.2, linestyle=style,
                )  # fmt: skip
            if drawn:
                nouns = noun if len(drawn) == 1 else f"{noun}s"
                name = f"{len(drawn)} {nouns} {'' if state else 'not '}calibrated"
                ax.plot([], [], color=colour, linestyle=style, label=name)
    fine = [test for test in range(last, tests) if passed[test]]
    for test in fine:
        ax.plot(edges, curves[test] / count - edges, color=MUTED, linewidth=1.2, linestyle="--")
    if fine:
        label = f"{len(fine)} joint calibrated"
        ax.plot([], [], color=MUTED, linestyle="--", label=label)
    for number, name in enumerate(result.quantities[len(result.discrete) :]):
        if not passed[last + number]:
            (colour, style), curve = JOINT[number % len(JOINT)], curves[last + number]
            ax.plot(edges, curve / count - edges, color=colour, linestyle=style, label=name)
    ax.axhline(0.0, color=MUTED, linewidth=1)
    ax.set(xlim=(0, 1), xlabel="share of guide draws below the true code")
    ax.set_ylabel("ECDF − uniform")
    panel.legend(ax, columns=2)
    return ax


@styled
def local_calibration(source: LocalCalibration, *, ax: Axes | None = None) -> Axes:
    """The adjusted p-values of both kinds of tests at each observed row, and the limit.

    A row below the limit is one where the guide departs from the posterior.

    Args:
        source: what ``pyrovae.calibrate_locally`` returns.
        ax: where to draw; by default on a new figure.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(source, LocalCalibration):
        raise InputError(
            f"expected a LocalCalibration; got {type(source).__name__}. Give what "
            "pyrovae.calibrate_locally returns."
        )
    ax = (panel := canvas(ax)).axes[0]
    table = source.table()
    kinds = (
        ("classifier", "L-C2ST", TRAINING, 8),
        ("replicates", "posterior SBC", COLOURS["q_agg"], 4),
    )
    for name, label, colour, size in kinds:
        ax.plot(
            table["row"], table[name].clip(lower=LEAST_P), color=colour, marker="o",
            markersize=size, linestyle="none", label=label,
        )  # fmt: skip
    ax.axhline(ALARM, color=MUTED, linestyle="--", linewidth=1, label=f"limit, {ALARM:g}")
    ax.set(yscale="log", xlabel="observed row", ylabel=f"adjusted p-value, {LEAST_P:g} if less")
    panel.legend(ax, columns=3)
    return ax


@styled
def gaps(source: Diagnosis | Gaps, *, ax: Axes | None = None) -> Axes:
    """How far the ELBO of each data point falls short of log p(x), by cause.

    Args:
        source: a diagnosis, or what ``pyrovae.inference_gaps`` returns.
        ax: where to draw; by default on a new figure.
    """
    result = part_of(
        source, Gaps, lambda diagnosis: diagnosis.guide_check.gaps,
        lambda: left_out_of("gaps of the guide", "gap_rows"),
    )  # fmt: skip
    parts = {
        "amortization": result.family.values - result.guide.values,
        "approximation": result.evidence.values - result.family.values,
    }
    total = result.evidence.values - result.guide.values
    order = np.argsort(total.double().cpu().numpy())[::-1]
    panel = canvas(ax)
    ax = panel.axes[0]
    bottom = np.zeros(len(order))
    for (name, values), colour in zip(
        parts.items(), (COLOURS["q_agg"], COLOURS["prior"]), strict=True
    ):
        height = values.double().cpu().numpy()[order].clip(min=0)
        ax.bar(range(len(order)), height, 0.8, bottom=bottom, color=colour, label=f"{name} gap")
        bottom = bottom + height
    ax.set(xlabel="held-out data points, by size of the loss", ylabel="log p(x) − ELBO, nats")
    ax.set_xticks([])
    ax.grid(visible=False, axis="x")
    panel.legend(ax, columns=2)
    return ax


@styled
def beside(source: Diagnosis | NutsComparison, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Mean and two standard deviations of each unit by NUTS and by the guide.

    Args:
        source: a diagnosis, or what ``pyrovae.beside_nuts`` returns.
        axes: where to draw, one for each data point; by default on a new figure.
    """
    nuts = part_of(
        source, NutsComparison, lambda diagnosis: diagnosis.guide_check.beside,
        lambda: left_out_of("a comparison with NUTS", "nuts_rows"),
    )  # fmt: skip
    count, units = nuts.mean.shape[0], min(nuts.mean.shape[1], MOST_UNITS)
    columns = min(2, count)
    rows = -(-count // columns)
    panel = panels_of(count, axes, columns=columns, height=0.6 + 2.1 * rows)
    axes = panel.axes
    position = np.arange(units)
    sides = (
        ("NUTS", nuts.mean, nuts.sd, -0.15, COLOURS["ex_post"], "o"),
        ("guide", nuts.guide_mean, nuts.guide_sd, 0.15, FURTHER, "s"),
    )
    for datum, ax in enumerate(axes):
        for name, mean, sd, offset, colour, marker in sides:
            ax.errorbar(
                position + offset, mean[datum, :units].double().cpu().numpy(),
                yerr=2 * sd[datum, :units].double().cpu().numpy(),
                color=colour, marker=marker, markersize=4, linestyle="none", label=name,
            )  # fmt: skip
        ax.set_title(f"data point {datum}")
        ticks(ax.xaxis, min(units, 6), integer=True)
        ax.grid(visible=False, axis="x")
    for ax in axes[max(0, count - columns) :]:
        ax.set_xlabel("unit")
    panel.legend(axes[0], columns=2)
    return axes
