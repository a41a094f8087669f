"""How often a guide is rejected: exact, of the wrong correlation, and one that is the prior.

    python benchmarks/guide_calibration.py               # 400 exact guides, 100 of each wrong one
    python benchmarks/guide_calibration.py --sbi         # beside sbi (pip install sbi)
    python benchmarks/guide_calibration.py --local       # the local tests, which take longer
    python benchmarks/guide_calibration.py --discrete    # a discrete site beside the code

With ``--sbi``, L-C2ST and TARP get the same draws as sbi's own implementation, at 5 %. sbi trains
scikit-learn's quadratic discriminant analysis there, on 100 relabellings: its default network
takes minutes for each of the 100 cases.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.calibration import exchange_test, uniformity_p_value
from pyrovae.randomness import seeded

WEIGHT = torch.tensor([[1.0, 1.0], [1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
NOISE, UNITS = 0.5, 2
LEVEL = 0.05
PRECISION = torch.eye(UNITS, dtype=torch.float64) + WEIGHT.T @ WEIGHT / NOISE**2


def model(x: Tensor) -> None:
    """z ~ N(0, I), x | z ~ N(Wz, s²I), whose posterior has correlated units."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), UNITS), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x)


def posterior_mean(x: Tensor) -> Tensor:
    """E[z | x], shape ``(B, D)``."""
    return torch.linalg.solve(PRECISION, WEIGHT.T @ x.T).T / NOISE**2


def exact(x: Tensor) -> None:
    """p(z | x)."""
    with pyro.plate("data", len(x)):
        density = dist.MultivariateNormal(posterior_mean(x), precision_matrix=PRECISION)
        pyro.sample("z", density)


def mean_field(x: Tensor) -> None:
    """The exact mean and marginal scales, without the correlation: all units are calibrated."""
    with pyro.plate("data", len(x)):
        scale = torch.linalg.inv(PRECISION).diagonal().sqrt()
        pyro.sample("z", dist.Normal(posterior_mean(x), scale).to_event(1))


def prior(x: Tensor) -> None:
    """A guide that ignores x."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(len(x), UNITS), 1.0).to_event(1))


SHARE = 0.3


def labelled(x: Tensor) -> None:
    """k ~ Bernoulli(0.3), z | k ~ N(2k, 1), x | z ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(x.new_full((len(x),), SHARE)))
        z = pyro.sample("z", dist.Normal(2 * k.unsqueeze(-1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def chance(x: Tensor) -> Tensor:
    """p(k = 1 | x)."""
    first, second = (dist.Normal(2.0 * k, 2**0.5).log_prob(x[:, 0]) for k in (0, 1))
    return (second - first + torch.tensor(SHARE).logit()).sigmoid()


def labelled_by(probability: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    """A guide that is exact for z given k."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(probability(x)))
            pyro.sample("z", dist.Normal(k.unsqueeze(-1) + x / 2, 0.5**0.5).to_event(1))

    return guide


def independent(x: Tensor) -> None:
    """The exact marginals of k and of z, which don't depend on each other."""
    p = chance(x)
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(p))
        components = dist.Normal(torch.stack([x / 2, 1 + x / 2], 1), 0.5**0.5).to_event(1)
        weights = dist.Categorical(torch.stack([1 - p, p], -1))
        pyro.sample("z", dist.MixtureSameFamily(weights, components))


CONTINUOUS = {"exact": exact, "mean field": mean_field, "prior": prior}
DISCRETE = {
    "exact": labelled_by(chance),
    "odds doubled": labelled_by(lambda x: (chance(x).logit() + 0.7).sigmoid()),
    "label that ignores x": labelled_by(lambda x: x.new_full((len(x),), SHARE)),
    "label and code independent": independent,
}


def rows(count: int, seed: int) -> Tensor:
    """Draws of p(x)."""
    with seeded(seed, "rows"):
        z = torch.randn(count, UNITS, dtype=torch.float64)
        return z @ WEIGHT.T + NOISE * torch.randn(count, len(WEIGHT), dtype=torch.float64)


def rejections(arguments: argparse.Namespace) -> None:
    """Print the share of repetitions in which each guide is rejected."""
    x = torch.zeros(5, 1, dtype=torch.float64) if arguments.discrete else rows(5, 0)
    simulator, guides = (labelled, DISCRETE) if arguments.discrete else (model, CONTINUOUS)
    for name, guide in guides.items():
        count = arguments.repetitions // (1 if name == "exact" else 4)
        start, rejected, units = time.process_time(), 0, 0
        for seed in range(count):
            if arguments.local:
                result = pv.calibrate_locally(
                    model, guide, rows(5, seed), seed=seed, simulations=500, progress=False
                )
            else:
                result = pv.calibrate(
                    simulator,
                    guide,
                    x,
                    simulations=arguments.simulations,
                    seed=seed,
                    progress=False,
                )
                alone = result.units + len(result.discrete)
                units += bool((~result.passed[:alone]).any())
            rejected += not result.calibrated
        took = (time.process_time() - start) / count
        by_units = "" if arguments.local else f", by units alone {units / count:.1%}"
        share = f"{rejected} of {count} rejected ({rejected / count:.1%})"
        print(f"{name}: {share}{by_units}; {took:.2f} s each", flush=True)


def beside_sbi(arguments: argparse.Namespace) -> None:
    """Print in how many cases L-C2ST and TARP decide as sbi's implementation does."""
    from sbi.diagnostics.lc2st import LC2ST
    from sbi.diagnostics.tarp import _run_tarp, check_tarp
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

    covariance = torch.linalg.inv(PRECISION)
    root = torch.linalg.cholesky(covariance)
    tarp, local = [], []
    for case in range(arguments.cases):
        scale = (1.0, 0.5, 1.0, 1.8)[case % 4]
        with seeded(case, "case"):
            z = torch.randn(1000, UNITS, dtype=torch.float64)
            x = z @ WEIGHT.T + NOISE * torch.randn(1000, len(WEIGHT), dtype=torch.float64)
            mean = posterior_mean(x)
            noise = torch.randn(100, *mean.shape, dtype=torch.float64)
            draws = mean + scale * noise @ root.T
            points = torch.randn_like(z)
            ranks = ((draws[:99] - points).norm(dim=-1) < (z - points).norm(dim=-1)).sum(0)
            ours = (
                uniformity_p_value((ranks + torch.rand(1000, dtype=torch.float64)) / 100) <= LEVEL
            )
            theirs = (
                check_tarp(*_run_tarp(draws[:99].float(), z.float(), points.float()))[1] <= LEVEL
            )
            tarp.append((scale == 1.0, ours, bool(theirs)))
            at = (
                posterior_mean(x[:1])
                + scale * torch.randn(200, UNITS, dtype=torch.float64) @ root.T
            )
            spread = scale * covariance.diagonal().sqrt()
            alone, _ = exchange_test(
                (z[1:] - mean[1:]) / spread, (draws[99, 1:] - mean[1:]) / spread, mean[1:],
                ((at - mean[0]) / spread).unsqueeze(1), mean[:1],
            )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            test = LC2ST(
                z[1:].float(), x[1:].float(), draws[99, 1:].float(), seed=case, z_score=True,
                classifier=QuadraticDiscriminantAnalysis, classifier_kwargs={},
            )  # fmt: skip
            test.train_under_null_hypothesis(verbosity=0)
            test.train_on_observed_data(verbosity=0)
            p_value = test.p_value(at.float(), x[:1].float())
        local.append((scale == 1.0, float(alone) <= LEVEL, p_value <= LEVEL))
    for name, decisions in (("TARP", tarp), ("L-C2ST", local)):
        same = sum(ours == theirs for _, ours, theirs in decisions)
        print(f"{name}: the same decision in {same} of {len(decisions)}")
        for true in (True, False):
            kind = [d for d in decisions if d[0] == true]
            mine, other = (sum(d[i] for d in kind) for i in (1, 2))
            title = "exact guide" if true else "scales wrong"
            print(f"  {title}: rejected {mine} of {len(kind)} here, {other} by sbi")


def main() -> None:
    """Print what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--sbi", action="store_true")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--discrete", action="store_true")
    arguments = parser.parse_args()
    (beside_sbi if arguments.sbi else rejections)(arguments)


if __name__ == "__main__":
    main()
