"""Plots of training, log densities, log p(x), Pareto k̂ and the candidates for the ex-post prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.diagnostics import Baselines, Diagnosis, Memorisation, left_out_of
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence
from pyrovae.ex_post import Candidate, ExPostPrior
from pyrovae.plots.style import (
    COLOURS,
    LINES,
    MARKERS,
    MUTED,
    TRAINING,
    VALIDATION,
    bar,
    canvas,
    colours_by_name,
    label_of,
    part_of,
    styled,
    ticks,
    wrapped,
)
from pyrovae.training import Fit, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def training_curve(source: Fit, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Training objective and validation ELBO by epoch, epoch kept, and KL weight if it varies.

    Args:
        source: what ``pyrovae.fit`` returns.
        axes: where to draw: one, or two where the KL weight is to be seen, too; by default on a new
            figure.
    """
    if not isinstance(source, Fit):
        raise InputError(
            f"expected a Fit; got {type(source).__name__}. Give what pyrovae.fit returns."
        )
    fit, history = source, source.history
    has_warmup = bool((history.kl_weight != 1.0).any()) and (axes is None or len(axes) > 1)
    panel = canvas(axes, 2 if has_warmup else 1, height=4.4 if has_warmup else 3.4)
    axes = panel.axes
    ax = axes[0]
    marker = "o" if len(history) == 1 else ""
    ax.plot(history.epoch, history.train, color=TRAINING, marker=marker, label="training objective")
    if not np.isnan(history.validation).all():
        ax.plot(
            history.epoch, history.validation, "--", color=VALIDATION, marker=marker,
            label="validation ELBO",
        )  # fmt: skip
    for one in axes:
        one.axvline(fit.best_epoch, color=MUTED, linewidth=1, linestyle=":")
        one.set_xlim(0, len(history) + 1)
        ticks(one.xaxis, 8, integer=True)
    label = f"epoch kept: {fit.best_epoch}"
    axes[-1].plot([], [], color=MUTED, linewidth=1, linestyle=":", label=label)
    ax.set_ylim(*_range_after_start(history))
    ax.set_ylabel("nats per data point")
    if has_warmup:
        axes[1].plot(history.epoch, history.kl_weight, color="#000000")
        axes[1].set_ylabel("KL weight")
    axes[-1].set_xlabel("epoch")
    panel.legend(*axes, columns=3)
    return axes


def _range_after_start(history: History) -> tuple[float, float]:
    """The range of the curves after the first, steep twentieth of the epochs."""
    curves = [c for c in (history.train, history.validation) if not np.isnan(c).all()]
    start = len(history) // 20 + (1 if len(history) > 4 else 0)
    later = np.concatenate([c[start:] for c in curves])
    low, high = float(np.nanmin(later)), float(np.nanmax(np.concatenate(curves)))
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


@styled
def held_out_densities(source: Diagnosis | Memorisation, *, ax: Axes | None = None) -> Axes:
    """log q_agg against log p at the codes of held-out data, with the diagonal of equality.

    Args:
        source: a diagnosis, or its ``memorisation``.
        ax: where to draw; by default on a new figure.
    """
    memory = part_of(source, Memorisation, lambda diagnosis: diagnosis.memorisation)
    prior = memory.log_prior.double().cpu().numpy()
    aggregated = memory.log_aggregated.double().cpu().numpy()
    finite = np.isfinite(prior) & np.isfinite(aggregated)
    panel = canvas(ax, height=3.8)
    ax = panel.axes[0]
    share_above = float((aggregated > prior).mean())
    ax.scatter(
        prior[finite], aggregated[finite], s=9, alpha=0.45, linewidths=0,
        color=COLOURS["q_agg"], rasterized=True,
        label=f"held-out data point ({100 * share_above:.0f} % above the line)",
    )  # fmt: skip
    median = float(np.median(prior[finite])) if finite.any() else 0.0
    ax.axline((median, median), slope=1, color=MUTED, linestyle="--", label="equal density")
    ax.set(xlabel="log p(z), nats", ylabel=r"log $q_\mathrm{agg}(z)$, nats")
    panel.legend(ax, columns=2)
    return ax


EvidenceOf = Diagnosis | Evidence | Mapping[str, Evidence]


def _evidence(source: EvidenceOf) -> Mapping[str, Evidence]:
    """Evidence by density, or by any other name; that of one alone under what it is."""
    found: Any = {"log p(x)": source} if isinstance(source, Evidence) else source
    if isinstance(source, Diagnosis):
        found = source.evidence
        if not found:
            raise left_out_of("estimates of log p(x)", "evidence_rows")
    if not isinstance(found, Mapping) or not found:
        raise InputError(
            "expected a Diagnosis, an Evidence or several by name; got "
            f"{type(source).__name__}. Give what pyrovae.log_evidence returns, or a dict such as "
            "{'guide': one, 'refined': other}."
        )
    for name, result in found.items():
        if not isinstance(result, Evidence):
            raise InputError(
                f"expected an Evidence under every name; got {type(result).__name__} under "
                f"{name!r}. Give what pyrovae.log_evidence returns."
            )
    return found


@styled
def evidence(source: EvidenceOf, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Mean log p(x) under each density in the prior's place, and the paired differences.

    Bars are two standard errors to either side. Differences are from ``"prior"``, or from the first
    if there is none of that name.

    Args:
        source: a diagnosis, its ``evidence``, or what ``pyrovae.log_evidence`` returns: one result,
            or several on the same rows in a dict with names of your own.
        axes: where to draw, two, or one for a single result; by default on a new figure.

    Raises:
        InputError: for anything else, or results on other numbers of rows.
    """
    found = _evidence(source)
    first = "prior" if "prior" in found else next(iter(found))
    colours = colours_by_name(found)
    means = {name: result.mean() for name, result in found.items()}
    gains = {name: e.minus(found[first]) for name, e in found.items() if name != first}
    panel = canvas(axes, 2 if gains else 1, height=3.6 if gains else 1.6)
    axes = panel.axes
    _intervals(axes[0], means, colours)
    axes[0].set_xlabel("mean log p(x), nats per data point")
    if gains:
        _intervals(axes[1], gains, colours)
        axes[1].axvline(0.0, color=colours[first], linestyle="--", linewidth=1)
        name = "the prior" if first == "prior" else label_of(first)
        axes[1].set_xlabel(f"paired difference from {name}, nats")
    return axes


@styled
def baselines(source: Diagnosis, *, ax: Axes | None = None) -> Axes:
    """Mean held-out log p(x) of the model less that of simple densities, paired by row.

    Bars are two standard errors to either side; right of the line the model is better.

    Args:
        source: a diagnosis.
        ax: where to draw; by default on a new figure.
    """
    found = part_of(
        source, Baselines,
        lambda diagnosis: diagnosis.baselines,
        lambda: left_out_of("simple densities", "baseline_rows"),
    )  # fmt: skip
    panel = canvas(ax, height=0.9 + 0.55 * len(found.names))
    ax = panel.axes[0]
    gains = found.gains(_evidence(source)["prior"])
    names = {name: wrapped(found.names[name]) for name in gains}
    _intervals(ax, gains, dict.fromkeys(gains, COLOURS["prior"]), names)
    ax.axvline(0.0, color=MUTED, linestyle="--", linewidth=1)
    ax.set_xlabel("log p(x), model − density, nats")
    return ax


def _intervals(
    ax: Axes,
    estimates: Mapping[str, Estimate],
    colours: Mapping[str, str],
    names: Mapping[str, str] | None = None,
) -> None:
    """Estimates one below the other, with bars of two standard errors to either side."""
    labels = []
    for row, (name, estimate) in enumerate(estimates.items()):
        is_finite = math.isfinite(estimate.value) and math.isfinite(estimate.standard_error)
        label = label_of(name) if names is None else names[name]
        labels.append(label + ("" if is_finite else f":\n{estimate.unresolved or 'not finite'}"))
        if is_finite:
            ax.errorbar(
                estimate.value, row, xerr=2 * estimate.standard_error,
                color=colours[name],
                marker=MARKERS.get(name, "o"), markersize=6, capsize=3, linestyle="none",
            )  # fmt: skip
    ax.set_yticks(range(len(estimates)), labels)
    ax.set_ylim(len(estimates) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ticks(ax.xaxis, 6)


@styled
def pareto_k(source: EvidenceOf, *, ax: Axes | None = None) -> Axes:
    """Histogram of the k̂ of data points under each density, with the limit for k̂.

    The limit depends on the number of draws; see :attr:`pyrovae.Evidence.k_limit`.

    Args:
        source: a diagnosis, its ``evidence``, or what ``pyrovae.log_evidence`` returns: one result,
            or several in a dict with names of your own.
        ax: where to draw; by default on a new figure.

    Raises:
        InputError: for anything else.
    """
    found = _evidence(source)
    panel = canvas(ax)
    ax = panel.axes[0]
    colours = colours_by_name(found)
    values = {n: e.pareto_k.double().cpu().numpy() for n, e in found.items()}
    finite = np.concatenate([k[np.isfinite(k)] for k in values.values()] + [np.array([0.0, 0.8])])
    edges = np.linspace(finite.min(), finite.max(), 31)
    for name, k in values.items():
        style: dict[str, Any] = {"color": colours[name], "linestyle": LINES.get(name, "-")}
        ax.hist(
            k[np.isfinite(k)], bins=list(edges), histtype="step", linewidth=1.6, **style
        )  # fmt: skip
        above = int((~(k <= found[name].k_limit)).sum())
        ax.plot([], [], label=f"{label_of(name)}: {above} of {len(k)} above", **style)
    for limit in sorted({result.k_limit for result in found.values()}):
        ax.axvline(limit, color="#000000", linewidth=1, linestyle=":", label=f"{limit:.2g}")
    rows = "held-out data points" if isinstance(source, Diagnosis) else "data points"
    ax.set(xlabel=r"Pareto $\hat{k}$ of the importance weights", ylabel=rows)
    panel.legend(ax, columns=2)
    return ax


@styled
def ex_post_candidates(
    source: Diagnosis | ExPostPrior, *, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Mean log density of held-out codes under each candidate, against its amount of smoothing.

    Args:
        source: a diagnosis, or what ``pyrovae.fit_ex_post_prior`` returns.
        axes: where to draw, two; by default on a new figure.
    """
    ex_post = part_of(source, ExPostPrior, lambda diagnosis: diagnosis.ex_post)
    table = ex_post.table
    panel = canvas(axes, 2, height=5.2)
    axes = panel.axes
    inflated = [row for row in table if row.family == "inflated"]
    amounts = sorted({row.amount for row in inflated})
    _candidates(axes[0], inflated, [amounts.index(row.amount) for row in inflated], "o", "inflated")
    axes[0].set_xticks(range(len(amounts)), [f"{amount:.2g}" for amount in amounts])
    axes[0].set(xlabel="added variance, in units of the variance of the means")
    families = dict.fromkeys(row.family for row in table if row.components)
    for family, marker in zip([f for f in families if f != "inflated"], "sDv^P", strict=False):
        rows = sorted((r for r in table if r.family == family), key=lambda row: row.components)
        _candidates(axes[1], rows, [row.components for row in rows], marker, family)
    for row in (row for row in table if not row.components):
        axes[1].axhline(row.held_out.value, color=MUTED, linestyle=":", label=row.family)
    axes[1].set(xscale="log", xlabel="components")
    for row in table:
        if row.name == ex_post.choice:
            x = amounts.index(row.amount) if row.family == "inflated" else row.components or 1
            ax = axes[0] if row.family == "inflated" else axes[1]
            ax.plot(
                x, row.held_out.value, "o", color="#000000", markersize=12,
                markerfacecolor="none", label="chosen",
            )  # fmt: skip
    for ax in axes:
        ax.set_ylabel("held-out log density")
    panel.legend(*axes, columns=2)
    return axes


def _candidates(
    ax: Axes, rows: Sequence[Candidate], x: Sequence[int], marker: str, name: str
) -> None:
    colour = MUTED if "full" in name else COLOURS["ex_post"]
    for on_part in (False, True):
        chosen = [i for i, row in enumerate(rows) if bool(row.part) == on_part]
        if not chosen:
            continue
        ax.errorbar(
            [x[i] for i in chosen], [rows[i].held_out.value for i in chosen],
            yerr=[bar(rows[i].held_out) for i in chosen],
            color=colour, markerfacecolor="none" if on_part else colour, marker=marker,
            markersize=5, capsize=2, linestyle="none",
            label=f"{name}, tried on a part" if on_part else name,
        )  # fmt: skip
