"""The numbers of a diagnosis as rows of text for the report."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from pyrovae.diagnostics import (
    HELD_OUT,
    LABELS,
    QUALITY,
    TERMS,
    Baselines,
    Diagnosis,
    Quality,
    SampleQuality,
    Surgery,
    change_from,
)
from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence
from pyrovae.mixture import families
from pyrovae.report.numbers import MINUS, count, number, plain, show

MISSING = "–"


class Cell(NamedTuple):
    """A number in a table, and the size of the sample behind it."""

    text: str
    sample: str = ""


class Row(NamedTuple):
    """A name and the numbers beside it."""

    name: str
    cells: tuple[Cell, ...]


def density_name(name: str) -> str:
    """What a density over z is called in a table."""
    names = {
        "prior": "prior p(z)",
        "q_agg": "raw q_agg",
        "ex_post": "ex-post prior",
        "held_out": "held-out data",
        "reconstructions": "their reconstructions",
    }
    return names.get(name, name.replace("_", " "))


def cell(estimate: Estimate | None, *, signed: bool = False) -> Cell:
    """An estimate as text, with its sample size."""
    if estimate is None:
        return Cell(MISSING)
    unit = "draws" if estimate.over == "draws" else "data points"
    return Cell(show(estimate, signed=signed), f"{count(estimate.size)} {unit}")


def terms(diagnosis: Diagnosis) -> list[Row]:
    """The terms of the ELBO for training and held-out data, with log N below index-code MI."""
    sides = (diagnosis.training, diagnosis.held_out)
    rows = []
    for term in TERMS:
        rows.append(Row(LABELS[term], tuple(cell(getattr(side, term)) for side in sides)))
        if term == "index_code_mi":
            limits = tuple(Cell(f"{side.log_n:.3f}") for side in sides)
            rows.append(Row("log N, its upper limit", limits))
    return rows


def code_densities(diagnosis: Diagnosis) -> list[Row]:
    """Mean log densities of the codes of both data sets, and the share of draws that copy."""
    memory = diagnosis.memorisation
    shares = {} if diagnosis.copies is None else diagnosis.copies.shares
    rows = [
        Row(
            density_name(name),
            (cell(memory.training[name]), cell(memory.held_out.get(name)), cell(shares.get(name))),
        )
        for name in memory.training
    ]
    if HELD_OUT in shares:
        none = Cell(MISSING)
        rows.append(Row("held-out codes themselves", (none, none, cell(shares[HELD_OUT]))))
    return rows


def evidence(diagnosis: Diagnosis) -> list[Row]:
    """log p(x) by density: mean bound, Pareto-smoothed, change from the prior, rejected rows."""
    base = diagnosis.evidence["prior"]
    rows = []
    for name, result in diagnosis.evidence.items():
        gain = Cell(MISSING) if name == "prior" else cell(change_from(base, result), signed=True)
        rejected_count, size = int(result.unresolved.sum()), len(result.values)
        rejected = Cell(f"{count(rejected_count)} of {count(size)}")
        cells = (cell(result.mean()), cell(_smoothed(result)), gain, rejected)
        rows.append(Row(density_name(name), cells))
    return rows


def baselines(diagnosis: Diagnosis, found: Baselines) -> list[Row]:
    """log p(x) of the same rows under the model and under simple densities, the best first."""
    gains = found.gains(diagnosis.evidence["prior"])
    rows = [
        (mean.value, Row(found.names[name], (cell(mean), cell(gains[name], signed=True))))
        for name, mean in found.means().items()
    ]
    ordered = [row for _, row in sorted(rows, key=lambda pair: -pair[0])]
    mean = cell(diagnosis.evidence["prior"].mean())
    return [Row("this model, prior p(z)", (mean, Cell(MISSING))), *ordered]


def _smoothed(result: Evidence) -> Estimate | None:
    if result.smoothed is None:
        return None
    return replace(result, values=result.smoothed, bound=None).mean()


SAMPLE_HEADS = ("samples", "log p(x), difference from prior", *QUALITY.values())


def sample_quality(diagnosis: Diagnosis, found: SampleQuality) -> list[Row]:
    """Decoded samples of each density beside what log p(x) says, and the two references."""
    rows = []
    for name, quality in found.densities.items():
        gain = Cell(MISSING)
        if name != "prior" and name in diagnosis.evidence:
            change = change_from(diagnosis.evidence["prior"], diagnosis.evidence[name])
            gain = cell(change, signed=True)
        rows.append(Row(density_name(name), (gain, *_measures(quality))))
    for name, quality in found.references.items():
        rows.append(Row(density_name(name), (Cell(MISSING), *_measures(quality))))
    known = {"density": "1", "nearer_to_training": "0.5"}
    known["coverage"] = f"{found.coverage_if_equal:.3f}"
    expected = tuple(Cell(known.get(measure, MISSING)) for measure in QUALITY)
    return [*rows, Row("if both were alike", (Cell(MISSING), *expected))]


def _measures(quality: Quality) -> tuple[Cell, ...]:
    estimates = dict(quality.estimates())
    return tuple(
        Cell(show(estimates[measure])) if measure in estimates else Cell(MISSING)
        for measure in QUALITY
    )


def units(diagnosis: Diagnosis) -> list[Row]:
    """Activity, rate and marginal KL of every latent unit of the training data."""
    activity, kl = diagnosis.collapse, diagnosis.training.unit_kl
    rates, by_rate = activity.unit_rate, activity.active_by_rate
    variances, rows = activity.variances, []
    for unit, active in enumerate(activity.active.tolist()):
        cells = (
            Cell(_state(active, None if by_rate is None else bool(by_rate[unit]))),
            Cell(show(variances[unit])),
            Cell(MISSING) if rates is None else Cell(show(rates[unit])),
            Cell(MISSING) if kl is None else Cell(show(kl[unit])),
            Cell(number(float(activity.mean_scale[unit]), 0.0)),
        )
        rows.append(Row(str(unit), cells))
    return rows


def _state(active_by_variance: bool, active_by_rate: bool | None) -> str:
    if active_by_rate is None or active_by_rate == active_by_variance:
        return "active" if active_by_variance else "collapsed"
    return f"active by {'variance' if active_by_variance else 'KL'} only"


def information(diagnosis: Diagnosis) -> list[Row]:
    """Bounds on the population's I(x; z) from both sides, and the limit of the lower one."""
    bounds = diagnosis.information
    return [
        Row("I(x; z), bound from below", (cell(bounds.lower),)),
        Row("log N, the limit of the bound from below", (Cell(f"{bounds.log_n:.3f}"),)),
        Row("I(x; z), bound from above", (cell(bounds.upper),)),
    ]


def against_prior(diagnosis: Diagnosis) -> list[Row]:
    """Holes on either side and the two-sample test, beside their values for equal densities."""
    holes, test = diagnosis.holes, diagnosis.two_sample
    level = Cell(f"{holes.level:g}")
    return [
        Row("share of prior draws outside q_agg", (cell(holes.prior_outside), level)),
        Row("share of held-out codes outside the prior", (cell(holes.aggregated_outside), level)),
        Row("classifier's accuracy, codes against prior draws", (cell(test.accuracy), Cell("0.5"))),
        Row("classifier's AUC, codes against prior draws", (cell(test.auc), Cell("0.5"))),
    ]


def everything(diagnosis: Diagnosis) -> list[Row]:
    """All rows of ``diagnosis.summary()``."""
    rows = []
    for data, measure, estimate in diagnosis.estimates():
        number_cell = cell(estimate)
        cells = (Cell(data), Cell(number_cell.text), Cell(number_cell.sample))
        rows.append(Row(LABELS[measure], cells))
    return rows


def identities(diagnosis: Diagnosis) -> list[Row]:
    """The equations between the terms, with the numbers of training and held-out data filled in.

    Marginal KL is total correlation + dimension-wise KL only if the prior's units are independent:
    with a mixture or a flow that equation is left out.
    """
    factorised = families.factorised(diagnosis.prior)
    sides = (diagnosis.training, diagnosis.held_out)
    equations = [_equations(side, factorised=factorised) for side in sides]
    return [
        Row(_names(pair[0]), tuple(Cell(_values(e), f"off by {_error(e)}") for e in pair))
        for pair in zip(*equations, strict=True)
    ]


class _Equation(NamedTuple):
    """left = sign · right + …; names and values."""

    left: tuple[str, float]
    right: tuple[tuple[str, float], ...]
    sign: int = 1


def _equations(surgery: Surgery, *, factorised: bool) -> list[_Equation]:
    def named(*terms: str) -> tuple[tuple[str, float], ...]:
        return tuple((LABELS[term], getattr(surgery, term).value) for term in terms)

    equations = [
        _Equation(named("rate")[0], named("index_code_mi", "marginal_kl")),
        _Equation(named("elbo")[0], named("distortion", "rate"), -1),
    ]
    has_units = surgery.total_correlation is not None and surgery.dimension_wise_kl is not None
    if factorised and has_units:
        right = named("total_correlation", "dimension_wise_kl")
        equations.append(_Equation(named("marginal_kl")[0], right))
    return equations


def _names(equation: _Equation) -> str:
    return f"{equation.left[0]} = {_sum([name for name, _ in equation.right], equation.sign)}"


def _values(equation: _Equation) -> str:
    right = [plain(value, ".4f") for _, value in equation.right]
    right = [f"({text})" if text.startswith(MINUS) else text for text in right]
    return f"{plain(equation.left[1], '.4f')} = {_sum(right, equation.sign)}"


def _sum(terms: list[str], sign: int) -> str:
    operator = f" {MINUS} " if sign < 0 else " + "
    return (f"{MINUS}\u2060" if sign < 0 else "") + operator.join(terms)


def _error(equation: _Equation) -> str:
    right = equation.sign * sum(value for _, value in equation.right)
    error = abs(equation.left[1] - right)
    return plain(error, ".0e") if error else "0"
