"""Do intervals hold for few held-out rows? Coverage and false alarms at 30 to 500 of them.

Every number that a diagnosis states is estimated again and again from so many rows, and two things
are counted: how often its 95 % interval covers the exact answer, among the repetitions in which
the number is told at all, and, where there is nothing to be found, how often something is found
beyond doubt. Answers are closed forms of the linear-Gaussian VAE, integrals on a grid over its two
units, and of bounds their own expectation.

Numbers over data are means over rows, so that rows are drawn once and each repetition takes some of
them at random; what is over draws is drawn anew with the rows held fixed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyro.distributions as dist
import torch
from exact_problems import PRIOR, Correlated, Grid, grid, pair_of, some_gaps, some_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.calibration import ALARM, calibrate
from pyrovae.diagnostics.active_units import collapse
from pyrovae.diagnostics.advice import change_from
from pyrovae.diagnostics.code_densities import rows_needed
from pyrovae.diagnostics.draws import draw_codes, moments
from pyrovae.diagnostics.elbo_terms import surgery
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.diagnostics.holes import share_below
from pyrovae.diagnostics.information import information
from pyrovae.diagnostics.two_sample import two_sample_test
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.evidence.importance import compare_priors
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction import reduce
from pyrovae.pairs import Pair, elbo_terms
from pyrovae.randomness import seeded
from pyrovae.testing import LinearGaussian, linear_gaussian_vae

SIZES = (30, 50, 100, 200, 500)
COVERAGE = (0.90, 0.99)  # of intervals of 95 %
STATED = 0.025  # rate of false alarms on one side of such an interval
TRAINING = 300  # rows that q_agg is made of
POOL = 20_000  # rows that repetitions take some of
WEIGHED = 8_000  # those of them whose log p(x) is estimated
ADVANTAGE = "log q_agg − log p of codes"
GUIDES = {"exact guide": (1.0, 0.0), "guide × 0.8, off by 0.3 sd": (0.8, 0.3)}


@dataclass(frozen=True)
class Cell:
    """How one number did at one number of rows.

    Args:
        told: share of repetitions in which it was told.
        coverage: share of these in which the interval covered the answer.
        alarms: share of all repetitions in which something was found where nothing is; ``None``
            where there is something.
        stated: the rate of such alarms that is claimed.
    """

    told: float
    coverage: float
    alarms: float | None = None
    stated: float = STATED

    @property
    def passed(self) -> bool:
        """Whether coverage is 90 to 99 % and alarms are within twice the stated rate."""
        covered = math.isnan(self.coverage) or COVERAGE[0] <= self.coverage <= COVERAGE[1]
        return covered and (self.alarms is None or self.alarms <= 2 * self.stated)

    def __str__(self) -> str:
        if self.told == 0:
            return "too few"
        text = f"{self.coverage:.1%}" if not math.isnan(self.coverage) else ""
        if self.told < 1:
            text += f" (told {self.told:.0%})"
        if self.alarms is not None:
            text += f" / {self.alarms:.1%}"
        failed = " +" if self.coverage > COVERAGE[1] else " !"
        return text.strip(" /") + ("" if self.passed else failed)


def judge(
    estimates: list[Estimate], truth: float | None, alarm: Callable[[Estimate], bool] | None = None
) -> Cell:
    """Count; with no truth, the mean of the estimates stands in its place."""
    told = [e for e in estimates if not e.unresolved]
    if not told:
        return Cell(0.0, math.nan)
    centre = sum(e.value for e in told) / len(told) if truth is None else truth
    covered = sum(e.interval[0] <= centre <= e.interval[1] for e in told) / len(told)
    alarms = None if alarm is None else sum(map(alarm, told)) / len(estimates)
    return Cell(len(told) / len(estimates), covered, alarms)


def above(level: float) -> Callable[[Estimate], bool]:
    """Whether an estimate lies beyond doubt above a level."""
    return lambda estimate: estimate.interval[0] > level


# -- a pair whose every answer is known --------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """The linear-Gaussian VAE with a guide of which scale and shift are known factors."""

    exact: LinearGaussian
    pair: Pair
    scale: float
    shift: float
    seen: AggregatedPosterior
    fitted: Mixture
    cells: Grid

    def encode(self, x: Tensor) -> dist.Distribution:
        """q(z | x)."""
        return self.pair.encode(x)

    def population(self) -> dist.Distribution:
        """The aggregated posterior of all data to come, which is a normal."""
        sd = self.exact.posterior(torch.zeros(1, len(self.exact.bias))).stddev[0]
        variance = 1 - sd**2 + (self.scale * sd) ** 2
        return dist.Normal(self.shift * sd, variance.sqrt()).to_event(1)

    def loss(self) -> float:
        """KL(q(z|x)‖p(z|x)), the same for every x."""
        unit = (self.scale**2 + self.shift**2 - 1) / 2 - math.log(self.scale)
        return 2 * unit

    def distortion(self) -> float:
        """E[−log p(x|z)] over data and draws of the guide."""
        weight, noise = self.exact.weight, self.exact.noise
        entries, lengths = len(weight), weight.square().sum(0)
        variance = self.exact.posterior(torch.zeros(1, entries)).variance[0]
        spread = float((lengths * variance).sum())
        shift = weight @ (self.shift * variance.sqrt())
        squares = noise**2 * entries - spread + self.scale**2 * spread + float(shift @ shift)
        return squares / (2 * noise**2) + entries * math.log(noise * math.sqrt(2 * math.pi))


def problem(guide: str) -> Problem:
    """The problem of one guide."""
    scale, shift = GUIDES[guide]
    exact = linear_gaussian_vae(6, 2)
    pair = pair_of(exact, scale=scale, shift=shift)
    seen = AggregatedPosterior(pair.encode(exact.sample(TRAINING, seed=1)))
    fitted = reduce(seen, 10, shrinkage=3.0).mixture
    return Problem(exact, pair, scale, shift, seen, fitted, grid())


def parts(size: int, repetitions: int, pool: int = POOL) -> Iterator[Tensor]:
    """Numbers of rows of the pool, some at random for each repetition."""
    for repetition in range(repetitions):
        with seeded(repetition, "rows of a repetition", size):
            yield torch.randint(pool, (size,))


Cells = dict[str, dict[int, Cell]]


def of_rows(p: Problem, repetitions: int) -> Cells:
    """Means over held-out rows."""
    x = p.exact.sample(POOL, seed=2)
    codes = draw_codes(p.encode(x), size=4 * POOL)
    like = torch.stack([elbo_terms(p.pair, x, z)[0] for z in codes.z.unbind(1)], 1)
    log_p, log_q, log_r = (d.log_prob(codes.z) for d in (PRIOR, p.seen, p.fitted))
    population = p.population().log_prob(p.cells.z)

    def on_grid(values: Tensor) -> float:
        return p.cells.mean(population, values)

    at = {name: d.log_prob(p.cells.z) for name, d in
          {"p": PRIOR, "q": p.seen, "r": p.fitted}.items()}  # fmt: skip
    elbo = -float(p.exact.evidence().entropy()) - p.loss()
    entropy = float(p.encode(x[:1]).entropy())
    units = dist.Normal(p.encode(x).mean, p.encode(x).stddev)
    rates = kl_divergence(units, dist.Normal(0.0, 1.0))
    sd = p.exact.posterior(x[:1]).stddev[0, 0]
    # E over x of KL(N(m, s²)‖N(0, 1)), where m² has the mean 1 − sd² + (shift · sd)²
    unit = float(
        (1 - sd**2 + (p.shift * sd) ** 2 + (p.scale * sd) ** 2 - 1) / 2 - (p.scale * sd).log()
    )
    values = {
        "ELBO": (like + log_p - codes.log_guide, elbo),
        "distortion": (-like, p.distortion()),
        "rate": (codes.log_guide - log_p, -elbo - p.distortion()),
        "log p of codes": (log_p, on_grid(at["p"])),
        "log q_agg of codes": (log_q, on_grid(at["q"])),
        "log ex-post of codes": (log_r, on_grid(at["r"])),
        ADVANTAGE: (log_q - log_p, on_grid(at["q"] - at["p"])),
        "I(x; z) from above": (codes.log_guide - log_r, -entropy - on_grid(at["r"])),
        "effective components": (
            p.seen.effective_components(codes.z),
            on_grid(p.seen.effective_components(p.cells.z)),
        ),
        "rate of a unit": (rates[:, :1], unit),
    }
    needed = rows_needed(p.seen, PRIOR, p.fitted)

    def estimate(name: str, of: Tensor) -> Estimate:
        mean = mean_estimate(of)
        few = name == ADVANTAGE and len(of) < needed
        return mean.unresolve("too few rows to tell") if few else mean

    return {
        name: {
            size: judge(
                [estimate(name, of.mean(1)[rows]) for rows in parts(size, repetitions)], truth
            )
            for size in SIZES
        }
        for name, (of, truth) in values.items()
    }


def of_evidence(p: Problem, repetitions: int) -> Cells:
    """Means of log p(x) and of its paired differences under three densities."""
    priors = {"prior": None, "q_agg": p.seen, "ex-post": p.fitted}
    found = compare_priors(p.pair, p.exact.sample(WEIGHED, seed=2), priors, draws=200)
    found["q_agg"] = replace(found["q_agg"], needed=rows_needed(p.seen, PRIOR, p.fitted))
    many = p.exact.sample(200_000, seed=3)
    own = -float(p.exact.evidence().entropy())
    truth = {"prior": own}
    for name, density in (("q_agg", p.seen), ("ex-post", p.fitted)):
        change = decoded(p.exact, density).log_prob(many) - p.exact.log_prob(many)
        truth[name] = own + float(change.mean())
    cells: Cells = {}
    for size in SIZES:
        rows = list(parts(size, repetitions, WEIGHED))
        for name, result in found.items():
            means = [some_rows(result, some).mean() for some in rows]
            cells.setdefault(f"log p(x) | {name}", {})[size] = judge(means, truth[name])
            if name != "prior":
                changes = [
                    change_from(some_rows(found["prior"], some), some_rows(result, some))
                    for some in rows
                ]
                change = truth[name] - truth["prior"]
                cells.setdefault(f"log p(x) | {name} − prior", {})[size] = judge(changes, change)
    return cells


def decoded(exact: LinearGaussian, mixture: Mixture) -> dist.Distribution:
    """p(x) under a mixture of diagonal normals in the prior's place: another mixture of normals."""
    components = mixture.component_distribution
    means = components.mean @ exact.weight.T + exact.bias
    covariance = torch.einsum("pd,nd,rd->npr", exact.weight, components.variance, exact.weight)
    noise = exact.noise**2 * torch.eye(len(exact.bias), dtype=means.dtype)
    normals = dist.MultivariateNormal(means, covariance + noise)
    return dist.MixtureSameFamily(dist.Categorical(logits=mixture.log_weights), normals)


def of_holes(p: Problem, repetitions: int) -> Cells:
    """Shares outside of the other density; equal densities where the guide is exact."""
    codes = draw_codes(p.encode(p.exact.sample(POOL, seed=2)), size=4 * POOL).z[:, 0]
    with seeded(0, "prior draws"):
        draws = PRIOR.sample(torch.Size([20 * POOL]))
    log_q, log_p = p.seen.log_prob(p.cells.z), PRIOR.log_prob(p.cells.z)
    population = p.population().log_prob(p.cells.z)
    lowest_q, lowest_p = (
        p.cells.quantile(of, values, 0.01) for of, values in ((population, log_q), (log_p, log_p))
    )
    prior_outside = p.cells.mean(log_p, (log_q < lowest_q).double())
    codes_outside = p.cells.mean(population, (log_p < lowest_p).double())
    of_codes = {d: d.log_prob(codes) for d in (p.seen, PRIOR)}
    of_draws = {d: d.log_prob(draws) for d in (p.seen, PRIOR)}
    alarm = above(0.01) if p.scale == 1 else None
    cells: Cells = {"share of prior draws outside q_agg": {}, "share of codes outside p": {}}
    for size in SIZES:
        first, second = [], []
        for repetition, rows in enumerate(parts(size, repetitions)):
            with seeded(repetition, "some prior draws", size):
                some = torch.randint(len(draws), (8192,))
            first.append(share_below(of_draws[p.seen][some], of_codes[p.seen][rows], over="data"))
            second.append(share_below(of_codes[PRIOR][rows], of_draws[PRIOR][some]))
        for name, estimates, truth in zip(
            cells, (first, second), (prior_outside, codes_outside), strict=True
        ):
            cells[name][size] = judge(estimates, truth, alarm)
    return cells


def of_draws(p: Problem, repetitions: int) -> Cells:
    """Terms with q_agg of the held-out rows themselves, which are held fixed; and InfoNCE."""
    cells: Cells = {}
    smooth = grid(points=281)  # enough for integrals without an edge
    for size in SIZES:
        x = p.exact.sample(size, seed=4)
        encoding = p.encode(x)
        aggregated = AggregatedPosterior(encoding)
        log_q = aggregated.log_prob(smooth.z)
        log_units = sum(aggregated.marginal(d).log_prob(smooth.z[:, d]) for d in range(2))
        marginal = smooth.mean(log_q, log_q - PRIOR.log_prob(smooth.z))
        correlation = smooth.mean(log_q, log_q - log_units)
        truth = {
            "index_code_mi": -float(encoding.entropy().mean()) - smooth.mean(log_q, log_q),
            "marginal_kl": marginal,
            "total_correlation": correlation,
            "dimension_wise_kl": marginal - correlation,
        }
        found = []
        for seed in range(repetitions):
            codes = draw_codes(encoding, size=4 * size, seed=seed)
            nothing = torch.zeros_like(codes.log_guide)  # in the likelihood's place
            found.append(surgery(codes, nothing, aggregated, PRIOR, unseen=True))
        for name, value in truth.items():
            label = f"{name.replace('_', ' ')} of the rows"
            cells.setdefault(label, {})[size] = judge([getattr(s, name) for s in found], value)
        lower, variances = [], []
        for seed in range(repetitions):
            x = p.exact.sample(size, seed=1000 + seed)
            encoding = p.encode(x)
            codes = draw_codes(encoding, size=2 * size, seed=seed)
            lower.append(information(codes, AggregatedPosterior(encoding), p.fitted).lower)
            variances.append(collapse(moments(encoding)).variances[1])
        variance = float(1 - p.exact.posterior(x).variance[0, 1])
        cells.setdefault("I(x; z) from below", {})[size] = judge(lower, None)
        cells.setdefault("variance of means of a unit", {})[size] = judge(variances, variance)
    return cells


# -- numbers that no guide has a say in --------------------------------------------------------


def of_activity(repetitions: int, units: int = 100) -> Cells:
    """How many units are active, of variances closely around the limit of 0.01.

    They lie evenly around it, half of them above, or are drawn at random anew each time.
    """
    evenly = torch.linspace(0.007, 0.013, units)
    cells: Cells = {f"active units, {units // 2} of {units}": {}, "the same, drawn at random": {}}
    for size in SIZES:
        errors: dict[str, list[Estimate]] = {name: [] for name in cells}
        for seed in range(repetitions):
            with seeded(seed, "means", size):
                at_random = 0.007 + 0.006 * torch.rand(units)
                for name, variance in zip(cells, (evenly, at_random), strict=True):
                    means = variance.sqrt() * torch.randn(size, units)
                    encoding = dist.Normal(means, torch.ones(size, units)).to_event(1)
                    count = collapse(moments(encoding)).active_units
                    errors[name].append(_minus(count, float((variance > 0.01).sum())))
        for name in cells:
            cells[name][size] = judge(errors[name], 0.0)
    return cells


def _minus(estimate: Estimate, truth: float) -> Estimate:
    """The estimate of an error, from that of a number whose truth is known."""
    low, high = estimate.interval
    return replace(estimate, value=estimate.value - truth, ends=(low - truth, high - truth))


def of_classifier(repetitions: int) -> Cells:
    """The two-sample test between samples of the same density."""
    cells: Cells = {"classifier's accuracy": {}, "classifier's AUC": {}}
    for size in SIZES:
        found = []
        for seed in range(repetitions):
            with seeded(seed, "samples", size):
                samples = torch.randn(2, size, 2)
            found.append(two_sample_test(*samples, size=size, seed=seed))
        alarms = sum(f.differ for f in found) / len(found)
        accuracy = judge([f.accuracy for f in found], 0.5)
        cells["classifier's accuracy"][size] = Cell(accuracy.told, accuracy.coverage, alarms, 0.01)
        cells["classifier's AUC"][size] = judge([f.auc for f in found], 0.5)
    return cells


def of_calibration(repetitions: int) -> Cells:
    """False alarms of calibration, by simulations instead of rows."""
    exact = linear_gaussian_vae(6, 2)
    vae, x = exact.vae(), exact.sample(1)
    cells: dict[int, Cell] = {}
    for size in SIZES:
        if size < 100:
            cells[size] = Cell(0.0, math.nan)
            continue
        alarms = sum(
            not calibrate(vae.model, vae.guide, x, simulations=size, seed=seed).calibrated
            for seed in range(repetitions)
        )
        cells[size] = Cell(1.0, math.nan, alarms / repetitions, ALARM)
    return {"calibrated units (by simulations)": cells}


def of_gaps(repetitions: int, pool: int = 8000) -> Cells:
    """Mean losses of the ELBO, which are the same at every data point."""
    problem = Correlated()
    gaps = inference_gaps(problem.model, problem.guide, problem.sample(pool, seed=0), draws=200)
    cells: Cells = {}
    for size in SIZES:
        found = [some_gaps(gaps, rows) for rows in parts(size, repetitions, pool)]
        for name, loss in problem.losses().items():
            estimates = [getattr(f, name)() for f in found]
            cells.setdefault(f"{name} gap", {})[size] = judge(estimates, loss)
    return cells


OF_A_GUIDE = {
    "rows": of_rows, "evidence": of_evidence, "holes": of_holes, "draws": of_draws,
}  # fmt: skip
OF_NONE = {
    "activity": of_activity, "calibration": of_calibration, "gaps": of_gaps,
    "classifier": of_classifier,
}  # fmt: skip


def by_rows(repetitions: int, kept: Path | None) -> bool:
    """Run all that is not in the file yet, print the table, and say whether all of it holds."""
    done: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    if kept is not None and kept.exists():
        done = json.loads(kept.read_text())
    tasks: dict[str, Callable[[], Cells]] = {
        f"{guide}: {name}": lambda run=run, guide=guide: run(problem(guide), repetitions)
        for guide in GUIDES
        for name, run in OF_A_GUIDE.items()
    } | {f"any guide: {name}": lambda run=run: run(repetitions) for name, run in OF_NONE.items()}
    for task, run in tasks.items():
        if task in done:
            continue
        start = time.perf_counter()
        done[task] = {
            name: {str(size): list(vars(cell).values()) for size, cell in cells.items()}
            for name, cells in run().items()
        }
        print(f"{task}: {time.perf_counter() - start:.0f} s", flush=True)
        if kept is not None:
            kept.write_text(json.dumps(done, indent=1, ensure_ascii=False))
    return show(done, repetitions)


def show(done: dict[str, dict[str, dict[str, list[float | None]]]], repetitions: int) -> bool:
    """Print the table; whether every cell holds."""
    table = Table(
        title=f"95 % intervals by number of rows: coverage / false alarms in {repetitions} times",
        caption="too few: said in words, no number stated; told: in what share of repetitions it "
        "was, and coverage among these; !: coverage below 90 %, or false alarms of more than twice "
        "the stated rate, 2.5 % (classifier and calibration: 1 %); +: coverage above 99 %, of an "
        "interval that is too wide",
    )
    table.add_column("number")
    for size in SIZES:
        table.add_column(str(size), justify="right")
    good = True
    for task, cells in done.items():
        table.add_section()
        table.add_row(task.partition(":")[0] + ":")
        for name, by_size in cells.items():
            row = [Cell(*by_size[str(size)]) for size in SIZES]  # type: ignore[arg-type]
            good &= all(cell.passed for cell in row)
            table.add_row(f"  {name}", *map(str, row))
    Console(width=120).print(table)
    print("All of it holds." if good else "What is marked ! or + does not hold.")
    return good
