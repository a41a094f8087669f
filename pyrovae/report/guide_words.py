"""What the checks of the guide say, in sentences and tables."""

from __future__ import annotations

from pyrovae.diagnostics import Beside, Diagnosis, Gaps
from pyrovae.report.numbers import count, number, plain, show
from pyrovae.report.tables import Cell, Row, cell

HOW = (
    "Where the ELBO is lost, and how the guide compares with the exact posterior, was not "
    "measured, since it takes minutes. To have it here: "
)
COMMAND = "pyrovae analyze … --check-guide"


def missing(diagnosis: Diagnosis) -> bool:
    """Whether gaps and NUTS were not asked for."""
    found = diagnosis.guide
    return found.gaps is None and found.beside is None and not set(found.refused) & {
        "gaps of the ELBO", "comparison with NUTS",
    }  # fmt: skip


def calibration(diagnosis: Diagnosis) -> str:
    """The verdict on calibration, and what it speaks of."""
    found = diagnosis.guide.calibration
    if found is None:
        return "No data were simulated to test the guide's calibration."
    return (
        f"{found.statement} Each simulation draws a code from the prior and data from the decoder, "
        "and asks where the code lies among 99 draws of the guide; the verdict is that of a χ² "
        "test of uniform ranks for each unit, with Holm's correction."
    )


def gaps(found: Gaps) -> str:
    """Where the ELBO is lost, and what would win it back."""
    whole, amortized, family = found.inference(), found.amortization(), found.approximation()
    start = (
        f"On {count(len(found.guide.values))} held-out data points the ELBO lies {show(whole)} "
        "nats below log p(x). "
    )
    if whole.unresolved:
        return f"How far the ELBO lies below log p(x): {whole}."
    if not whole.excludes(0.0) or whole.value < 0:
        return start + "That is no loss beyond doubt."
    share = plain(100 * min(max(amortized.value / whole.value, 0.0), 1.0), ".0f")
    remedy = (
        "an encoder with more capacity, or longer training of it, would win most of that back"
        if amortized.value > family.value
        else "a richer family, such as full covariance or a flow, would win most of that back"
    )
    return (
        f"{start}{share} % of it is amortization, which the encoder loses against the best member "
        f"of its own family for each data point; the rest is the family's: {remedy}."
    )


def gap_table(found: Gaps) -> list[Row]:
    """ELBOs under better and better distributions, and the differences between them."""
    beyond = found.beyond_gaussian()
    rows = [
        ("ELBO of the guide", found.guide.mean(), False),
        ("amortization gap", found.amortization(), True),
        ("ELBO of the best of its family", found.family.mean(), False),
        ("approximation gap", found.approximation(), True),
        ("log p(x)", found.evidence.mean(), False),
    ]
    if beyond is not None:
        rows.append(("of the approximation gap, beyond any Gaussian", beyond, True))
    return [Row(name, (cell(value, signed=signed),)) for name, value, signed in rows]


def beside(found: Beside) -> str:
    """How the guide compares with NUTS, in a sentence."""
    shift = ((found.guide_mean - found.mean).abs() / found.sd).amax()
    ratio = found.guide_sd / found.sd
    low, high = plain(float(ratio.min()), ".2f"), plain(float(ratio.max()), ".2f")
    return (
        f"Over all units of these {len(found.kl)} data points the guide's means lie at most "
        f"{plain(float(shift), '.2f')} posterior standard deviations off, and its standard "
        f"deviations are {low} to {high} times those of the posterior."
    )


def beside_table(found: Beside) -> list[Row]:
    """One row for each data point: KL, k̂, and how far NUTS can be trusted."""
    rows = []
    for datum in range(len(found.kl)):
        k = float(found.pareto_k[datum])
        cells = (
            Cell(number(float(found.kl[datum]), float(found.kl_error[datum]))),
            Cell(plain(k, ".2f") + (" !" if k > found.evidence.k_limit else "")),
            Cell(plain(float((found.guide_mean - found.mean)[datum].abs().max()), ".3f")),
            Cell(plain(float((found.guide_sd / found.sd)[datum].log().abs().max().exp()), ".2f")),
            Cell(plain(float(found.r_hat[datum].max()), ".3f")),
            Cell(count(round(float(found.ess[datum].min())))),
        )
        rows.append(Row(str(datum), cells))
    return rows
