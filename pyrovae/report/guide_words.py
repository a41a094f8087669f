"""The checks of the guide in sentences and tables."""

from __future__ import annotations

from pyrovae.diagnostics import Diagnosis, Gaps, NutsComparison, change_from
from pyrovae.report.numbers import count, number, plain, show
from pyrovae.report.tables import Cell, Row, cell

HOW = (
    "How the guide compares with the exact posterior was not measured, since that takes minutes. "
    "To add it: "
)
COMMAND = "pyrovae analyze … --check-guide"


def missing(diagnosis: Diagnosis) -> bool:
    """Whether NUTS was neither run nor tried."""
    check = diagnosis.guide_check
    return check.beside is None and "comparison with NUTS" not in check.refused


def calibration(diagnosis: Diagnosis) -> str:
    """The verdict on calibration, and how it was reached."""
    result = diagnosis.guide_check.calibration
    if result is None:
        return "No data were simulated to test the guide's calibration."
    return (
        f"{result.statement} Each simulation draws a code from the prior and data from the "
        "decoder, and ranks the code among 99 draws of the guide: by each unit, by log densities, "
        "and by its distance to a reference point. The verdict is that of exact tests of uniform "
        "ranks, with Bonferroni's correction."
    )


def inference_gap(diagnosis: Diagnosis) -> str:
    """How far the ELBO lies below log p(x), and what another density over z changes in that."""
    gap, gain = diagnosis.inference_gap, None
    if gap is None:
        return ""
    if gap.unresolved:
        return f"How far the ELBO lies below log p(x): {gap}."
    text = (
        f"On {count(gap.size)} held-out data points the ELBO lies {show(gap)} nats below log p(x): "
        "that is lost by the guide, whatever the density over z."
    )
    if diagnosis.evidence:
        gain = change_from(diagnosis.evidence["prior"], diagnosis.evidence["ex_post"])
    if gain is None or gain.unresolved:
        return text
    return (
        f"{text} Under the ex-post prior in the place of the model's own, log p(x) itself changes "
        f"by {show(gain, signed=True)}: that is what the density over z accounts for."
    )


def gaps(result: Gaps) -> str:
    """Which part of what the guide loses is the encoder's, and what would win it back."""
    total, amortization, family = result.inference(), result.amortization(), result.approximation()
    start = (
        f"For {count(len(result.guide.values))} held-out data points the best member of the "
        f"guide's family was sought. There the ELBO lies {show(total)} nats below log p(x). "
    )
    if total.unresolved:
        return f"What the encoder loses of it, and what the family: {total}."
    if not total.excludes(0.0) or total.value < 0:
        return start + "That is no clear loss."
    share = plain(100 * min(max(amortization.value / total.value, 0.0), 1.0), ".0f")
    remedy = (
        "an encoder with more capacity, or longer training of it, would win most of that back"
        if amortization.value > family.value
        else "a richer family, such as full covariance or a flow, would win most of that back"
    )
    return (
        f"{start}{share} % of it is amortization: what the encoder loses against the best member "
        f"of its own family for each data point. The rest is due to the family: {remedy}."
    )


def gap_table(result: Gaps) -> list[Row]:
    """ELBOs under better and better distributions, and the differences between them."""
    beyond_gaussian = result.beyond_gaussian()
    rows = [
        ("ELBO of the guide", result.guide.mean(), False),
        ("amortization gap", result.amortization(), True),
        ("ELBO of the best of its family", result.family.mean(), False),
        ("approximation gap", result.approximation(), True),
        ("log p(x)", result.evidence.mean(), False),
    ]
    if beyond_gaussian is not None:
        rows.append(("of the approximation gap, beyond any Gaussian", beyond_gaussian, True))
    return [Row(name, (cell(value, signed=signed),)) for name, value, signed in rows]


def beside(nuts: NutsComparison) -> str:
    """How the guide compares with NUTS, in a sentence."""
    shift = ((nuts.guide_mean - nuts.mean).abs() / nuts.sd).amax()
    ratio = nuts.guide_sd / nuts.sd
    low, high = plain(float(ratio.min()), ".2f"), plain(float(ratio.max()), ".2f")
    return (
        f"Over all units of these {len(nuts.kl)} data points the guide's means lie at most "
        f"{plain(float(shift), '.2f')} posterior standard deviations off, and its standard "
        f"deviations are {low} to {high} times those of the posterior."
    )


def beside_table(nuts: NutsComparison) -> list[Row]:
    """One row for each data point: KL, k̂, the guide's errors, and how well NUTS has mixed."""
    rows = []
    for datum in range(len(nuts.kl)):
        k = float(nuts.pareto_k[datum])
        cells = (
            Cell(number(float(nuts.kl[datum]), float(nuts.kl_error[datum]))),
            Cell(plain(k, ".2f") + (" !" if k > nuts.evidence.k_limit else "")),
            Cell(plain(float((nuts.guide_mean - nuts.mean)[datum].abs().max()), ".3f")),
            Cell(plain(float((nuts.guide_sd / nuts.sd)[datum].log().abs().max().exp()), ".2f")),
            Cell(plain(float(nuts.r_hat[datum].max()), ".3f")),
            Cell(count(round(float(nuts.ess[datum].min())))),
        )
        rows.append(Row(str(datum), cells))
    return rows
