"""Do the standard errors hold? Every estimator on problems whose answers are known exactly.

Each estimator is repeated, and two things are counted: its bias in units of its own standard error,
and how often its 95 % interval covers the exact answer. Bounds are
held to the side that they promise, in expectation. Answers are closed forms of the linear-Gaussian
VAE, or integrals on a grid over its two latent units.

    python benchmarks/estimator_calibration.py                     # ten minutes
    python benchmarks/estimator_calibration.py --bracket           # only the bad guide
    python benchmarks/estimator_calibration.py --rows rows.json    # by number of held-out rows
    python benchmarks/estimator_calibration.py --repetitions 1000 --json calibration.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyro.distributions as dist
import torch
from exact_problems import PRIOR, Correlated, grid, one_normal, pair_of, some_gaps, some_rows
from few_rows import by_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.calibration import calibrate
from pyrovae.diagnostics.active_units import collapse, unit_rates
from pyrovae.diagnostics.code_densities import memorisation
from pyrovae.diagnostics.draws import draw_codes, moments
from pyrovae.diagnostics.elbo_terms import Surgery, surgery
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.diagnostics.holes import holes
from pyrovae.diagnostics.information import information
from pyrovae.diagnostics.nuts import beside_nuts
from pyrovae.diagnostics.two_sample import two_sample_test
from pyrovae.estimates import Bound, Estimate
from pyrovae.evidence.annealed import Annealing, annealed_evidence
from pyrovae.evidence.importance import importance_evidence
from pyrovae.evidence.sandwich import sandwich_evidence
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.randomness import seeded
from pyrovae.testing import linear_gaussian_vae

COVERAGE = (0.92, 0.98)


@dataclass(frozen=True)
class Row:
    """How one estimator did.

    Args:
        estimator: what was estimated, and how.
        repetitions: their number.
        bias: mean error in units of the mean standard error claimed.
        significance: mean error in units of its own standard error over repetitions.
        ratio: standard error claimed, divided by the standard deviation over repetitions.
        coverage: share of repetitions in which the interval held the exact answer; for a bound that
            is not tight here, its own expectation.
        bound: the side that the estimator promises to err on.
        passed: coverage within 92 – 98 %, and the bound holds in expectation to 3 standard errors.
    """

    estimator: str
    repetitions: int
    bias: float
    significance: float
    ratio: float
    coverage: float
    bound: Bound | None
    passed: bool


def row(
    estimator: str,
    values: Tensor,
    errors: Tensor,
    truth: Tensor | float,
    *,
    bound: Bound | None = None,
    loose: bool = False,
    ends: tuple[Tensor, Tensor] | None = None,
) -> Row:
    """Compare values and claimed standard errors, each ``(R,)``, with the exact answer.

    Intervals are ± 1.96 standard errors, unless their ends are given.
    """
    wrong = (values - truth).double()
    count, spread = len(wrong), float(wrong.std())
    mean = float(wrong.mean())
    significance = mean / max(spread / math.sqrt(count), 1e-12)
    centre = mean if loose else 0.0
    low, high = (values - 1.96 * errors, values + 1.96 * errors) if ends is None else ends
    centre = centre + truth
    coverage = float(((low <= centre) & (centre <= high)).double().mean())
    holds = {None: True, "lower": significance < 3, "upper": significance > -3}[bound]
    return Row(
        estimator,
        count,
        mean / float(errors.mean()),
        significance,
        float(errors.mean()) / spread,
        coverage,
        bound,
        COVERAGE[0] <= coverage <= COVERAGE[1] and holds,
    )


def of(name: str, found: Iterable[Estimate], truth: float, *, loose: bool = False) -> Row:
    """The same from estimates."""
    estimates = list(found)
    values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
    errors = torch.tensor([e.standard_error for e in estimates], dtype=torch.float64)
    low, high = torch.tensor([e.interval for e in estimates], dtype=torch.float64).T
    bound = estimates[0].bound
    return row(name, values, errors, truth, bound=bound, loose=loose, ends=(low, high))


# -- log p(x) --------------------------------------------------------------------------------------


def evidence(repetitions: int) -> list[Row]:
    """log p(x) datum by datum; every data point is one repetition."""
    exact = linear_gaussian_vae(6, 2, noise=1.0)
    x, pair = exact.sample(repetitions), pair_of(exact, scale=1.2, shift=0.3)
    truth = exact.log_prob(x)
    weighted = importance_evidence(pair, x, draws=1000)
    rows = [
        row(
            "importance, K = 1,000", weighted.values, weighted.standard_error, truth, bound="lower"
        ),
        row("importance, Pareto-smoothed", weighted.smoothed, weighted.standard_error, truth),
    ]
    plain = importance_evidence(pair, x, draws=5000, proposal="prior")
    kept = plain.pareto_k < 0.5
    rows.append(
        row(
            f"prior draws, K = 5,000 (k̂ < 0.5: {int(kept.sum())})",
            plain.values[kept],
            plain.standard_error[kept],
            truth[kept],
            bound="lower",
        )
    )
    bad = pair_of(exact, scale=0.5, shift=1.0)
    short = Annealing(temperatures=150, leapfrog=3)
    annealed = annealed_evidence(bad, x, chains=64, annealing=short)
    rows.append(row("annealed", annealed.values, annealed.standard_error, truth, bound="lower"))
    both = sandwich_evidence(bad, x, chains=64, annealing=short, seed=1)
    simulated = exact.log_prob(both.x)
    for name, side in (("below", both.lower), ("above", both.upper)):
        rows.append(
            row(
                f"sandwich, from {name}",
                side.values,
                side.standard_error,
                simulated,
                bound=side.bound,
            )
        )
    return rows


def evidence_means(repetitions: int, size: int = 100) -> list[Row]:
    """Means over data and paired differences; every ``size`` data points are one repetition."""
    exact = linear_gaussian_vae(6, 2, noise=1.0)
    x, pair = exact.sample(repetitions * size), pair_of(exact, scale=1.2)
    shifted = dist.Normal(torch.tensor([0.2, -0.1], dtype=torch.float64), 0.8).to_event(1)
    covariance = 0.64 * exact.weight @ exact.weight.T + torch.eye(6, dtype=torch.float64)
    other = dist.MultivariateNormal(exact.weight @ shifted.mean + exact.bias, covariance)
    own = importance_evidence(pair, x, draws=400)
    changed = importance_evidence(pair, x, draws=400, prior=shifted)
    parts = [
        (some_rows(own, slice(i, i + size)), some_rows(changed, slice(i, i + size)))
        for i in range(0, len(x), size)
    ]
    entropy = float(exact.evidence().entropy())
    divergence = float(kl_divergence(exact.evidence(), other))
    return [
        of("mean log p(x) over data", [a.mean() for a, _ in parts], -entropy),
        of("paired difference of two priors", [b.minus(a) for a, b in parts], -divergence),
    ]


# -- the terms of the ELBO -------------------------------------------------------------------------


def terms(repetitions: int) -> list[Row]:
    """Terms of the ELBO of a data set at hand, of which a part of the points is drawn."""
    exact = linear_gaussian_vae(6, 2)
    x = exact.sample(150)
    encoding, cells = exact.posterior(x), grid()
    aggregated = AggregatedPosterior(encoding)
    log_q = aggregated.log_prob(cells.z)
    log_units = sum(aggregated.marginal(d).log_prob(cells.z[:, d]) for d in range(2))
    marginal = cells.mean(log_q, log_q - PRIOR.log_prob(cells.z))
    correlation = cells.mean(log_q, log_q - log_units)
    mi = float(encoding.entropy().mean()) * -1 - cells.mean(log_q, log_q)
    fit = dist.Normal(encoding.mean @ exact.weight.T + exact.bias, exact.noise)
    spread = (encoding.variance @ exact.weight.T.square()) / (2 * exact.noise**2)
    distortion = float((spread - fit.log_prob(x)).sum(1).mean())
    truth = {
        "rate": mi + marginal,
        "distortion": distortion,
        "index_code_mi": mi,
        "marginal_kl": marginal,
        "total_correlation": correlation,
        "dimension_wise_kl": marginal - correlation,
    }
    pair = pair_of(exact)
    found: list[Surgery] = []
    for seed in range(repetitions):
        codes = draw_codes(encoding, size=150, seed=seed)
        likelihood = torch.stack(
            [pair.log_joint(x[codes.index], z)[0] for z in codes.z.unbind(1)], 1
        )
        found.append(surgery(codes, likelihood, aggregated, PRIOR))
    return [
        of(f"{name.replace('_', ' ')}, data at hand", [getattr(s, name) for s in found], value)
        for name, value in truth.items()
    ]


def population(repetitions: int, size: int = 2000) -> list[Row]:
    """What is said of data to come, from a new data set each time."""
    exact = linear_gaussian_vae(6, 2)
    pair, cells = pair_of(exact), grid()
    seen = AggregatedPosterior(exact.posterior(exact.sample(300, seed=10**6)))
    log_prior = PRIOR.log_prob(cells.z)
    unit_variance = exact.posterior(exact.sample(2)).variance[0]
    units = -0.5 * unit_variance.log()
    mi = float(units.sum())
    elbo = -float(exact.evidence().entropy())
    columns: dict[str, list[Estimate]] = {}
    for seed in range(repetitions):
        x = exact.sample(size, seed=seed)
        encoding = exact.posterior(x)
        codes = draw_codes(encoding, size=2 * size, seed=seed)
        aggregated = AggregatedPosterior(encoding)
        likelihood = torch.stack(
            [pair.log_joint(x[codes.index], z)[0] for z in codes.z.unbind(1)], 1
        )
        terms = surgery(codes, likelihood, aggregated, PRIOR, unseen=True)
        bracket = information(codes, aggregated, one_normal())
        memory = memorisation(codes, codes, {"prior": PRIOR, "q_agg": seen}, seen)
        activity = collapse(moments(encoding), unit_rates(encoding, PRIOR, codes))
        outside = holes(codes, seen, PRIOR, draws=2000, seed=seed)
        for name, estimate in {
            "elbo": terms.elbo,
            "rate": terms.rate,
            "distortion": terms.distortion,
            "I(x; z) from below": bracket.lower,
            "I(x; z) from above": bracket.upper,
            "log p of codes": memory.held_out["prior"],
            "log q_agg of codes": memory.held_out["q_agg"],
            "log q_agg − log p, paired": memory.advantage,
            "effective components": memory.components["held-out"],
            "rate of unit 0": (activity.unit_rate or ())[0],
            "variance of means of unit 0": activity.variances[0],
            "share of prior draws outside": outside.prior_outside,
            "share of codes outside": outside.aggregated_outside,
        }.items():
            columns.setdefault(name, []).append(estimate)
    log_q = seen.log_prob(cells.z)
    truth = {
        "elbo": elbo,
        "rate": mi,
        "distortion": -elbo - mi,
        "I(x; z) from below": mi,
        "I(x; z) from above": mi,
        "log p of codes": cells.mean(log_prior, log_prior),
        "log q_agg of codes": cells.mean(log_prior, log_q),
        "log q_agg − log p, paired": cells.mean(log_prior, log_q - log_prior),
        "effective components": cells.mean(log_prior, seen.effective_components(cells.z)),
        "rate of unit 0": float(units[0]),
        "variance of means of unit 0": 1 - float(unit_variance[0]),
        "share of prior draws outside": 0.01,
        "share of codes outside": 0.01,
    }
    return [
        of(f"{name}, data to come", estimates, truth[name], loose=name == "I(x; z) from below")
        for name, estimates in columns.items()
    ]


# -- the guide -------------------------------------------------------------------------------------


def guides(repetitions: int) -> list[Row]:
    """ELBO and KL(q‖p(z|x)) datum by datum, and the false alarms of calibration."""
    exact = linear_gaussian_vae(6, 2)
    vae, x = exact.vae(scale=0.8, shift=0.3), exact.sample(repetitions)
    divergence = 2 * float(kl_divergence(dist.Normal(0.3, 0.8), dist.Normal(0.0, 1.0)))
    gaps = inference_gaps(vae.model, vae.guide, x, steps=1, draws=500)
    truth = exact.log_prob(x) - divergence
    nuts = beside_nuts(vae.model, vae.guide, x, draws=100, warmup=60, chains=2)
    good = exact.vae()
    alarms = torch.tensor(
        [
            not calibrate(good.model, good.guide, x[:1], simulations=200, seed=seed).calibrated
            for seed in range(repetitions)
        ]
    ).double()
    rate = float(alarms.mean())
    limit = 0.01 + 3 * math.sqrt(0.01 * 0.99 / repetitions)
    return [
        row("ELBO of one datum", gaps.guide.values, gaps.guide.standard_error, truth, bound="lower",
            loose=True),
        row("the same against log p(x) − KL", gaps.guide.values, gaps.guide.standard_error, truth),
        row("KL(q‖p(z|x)) beside NUTS", nuts.kl, nuts.kl_error, divergence),
        Row(f"calibration: {rate:.1%} alarms at 1 %", repetitions, 0, 0, 1, 1 - rate, None,
            rate <= limit),
    ]  # fmt: skip


def inference(repetitions: int, size: int = 40, at_once: int = 50) -> list[Row]:
    """Where the ELBO is lost; every ``size`` data points are one repetition."""
    problem = Correlated()
    names = ("amortization", "approximation", "inference")
    found: dict[str, list[Estimate]] = {name: [] for name in names}
    for start in range(0, repetitions, at_once):
        x = problem.sample(at_once * size, seed=start)
        gaps = inference_gaps(problem.model, problem.guide, x, draws=500, seed=start)
        for i in range(0, len(x), size):
            part = some_gaps(gaps, slice(i, i + size))
            for name, column in found.items():
                column.append(getattr(part, name)())
    truth = problem.losses()
    return [of(f"{name} gap", estimates, truth[name]) for name, estimates in found.items()]


def activity(repetitions: int, units: int = 400, size: int = 5000) -> list[Row]:
    """The number of active units, where half of them lie closely above the limit of 0.01."""
    variance = torch.linspace(0.007, 0.013, units)
    found = []
    for seed in range(repetitions):
        with seeded(seed, "means"):
            means = variance.sqrt() * torch.randn(size, units)
        encoding = dist.Normal(means, torch.ones(size, units)).to_event(1)
        found.append(collapse(moments(encoding)).active_units)
    return [of(f"active units, {units // 2} of {units}", found, units / 2)]


def classifier(repetitions: int) -> list[Row]:
    """The two-sample test between samples of the same density."""
    generator = torch.Generator().manual_seed(0)
    found = [
        two_sample_test(*torch.randn(2, 150, 2, generator=generator), size=150, seed=seed)
        for seed in range(repetitions)
    ]
    alarms = sum(result.differ for result in found) / repetitions
    return [
        of("classifier accuracy, equal samples", [f.accuracy for f in found], 0.5),
        of(f"classifier AUC ({alarms:.1%} alarms at 1 %)", [f.auc for f in found], 0.5),
    ]


def bracket(size: int = 64, chains: int = 16) -> dict[str, str]:
    """D = 10 and a guide with half the scales, two standard deviations off: who finds log p(x)?"""
    exact = linear_gaussian_vae(12, 10, noise=0.3)
    pair = pair_of(exact, scale=0.5, shift=2.0)
    settings = Annealing(temperatures=1000, leapfrog=3)
    both = sandwich_evidence(pair, torch.empty(size, 12), chains=chains, annealing=settings)
    # pilot and one direction: what an annealed estimate spends at each data point
    evaluations = (8 + chains) * settings.temperatures * (settings.leapfrog + 1)
    weighted = importance_evidence(pair, both.x, draws=evaluations)
    truth = exact.log_prob(both.x)

    def error(values: Tensor) -> str:
        wrong = values - truth
        return f"{float(wrong.mean()):+.3f} ± {float(wrong.std()) / math.sqrt(size):.3f}"

    return {
        "likelihood evaluations for each data point": f"{evaluations:,}",
        "importance sampling − log p(x)": error(weighted.values),
        "   data points with k̂ > 0.7": f"{int((weighted.pareto_k > 0.7).sum())} of {size}",
        "annealed (sandwich from below) − log p(x)": error(both.lower.values),
        "sandwich from above − log p(x)": error(both.upper.values),
        "gap": str(both.gap()),
    }


PROBLEMS: dict[str, Callable[[int], list[Row]]] = {
    "evidence": evidence,
    "means": evidence_means,
    "terms": terms,
    "population": population,
    "guides": guides,
    "inference": inference,
    "activity": activity,
    "classifier": classifier,
}


def main() -> None:
    """Run the problems and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=400, help="of each (default 400)")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--bracket", action="store_true", help="only the case with a bad guide")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="only the table by number of held-out rows, 30 to 500, for every number that a "
        "diagnosis states; what is in this file is not run again",
    )
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore", UserWarning)  # Pyro's, on plates of one draw
    if options.rows:
        sys.exit(0 if by_rows(options.repetitions, options.rows) else 1)
    table = Table(title=f"{options.repetitions} repetitions of each estimator")
    for column in ("estimator", "bias / SE", "z of bias", "SE / sd", "coverage", "bound", ""):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    rows = []
    for name in [] if options.bracket else options.problems:
        start = time.perf_counter()
        for one in PROBLEMS[name](options.repetitions):
            rows.append(one)
            table.add_row(
                one.estimator,
                f"{one.bias:+.2f}",
                f"{one.significance:+.1f}",
                f"{one.ratio:.2f}",
                f"{one.coverage:.1%}",
                one.bound or "",
                "" if one.passed else "FAILS",
            )
        table.add_section()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if rows:
        Console(width=100).print(table)
    found = bracket()
    print("A bad guide with 10 latent units:")
    for name, value in found.items():
        print(f"  {name:44s} {value}")
    if options.json:
        content = {"rows": [asdict(row) for row in rows], "bracket": found}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
