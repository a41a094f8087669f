"""A density to sample codes from after training, chosen by how well it predicts held-out codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.mixture import families
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction import reduce
from pyrovae.models.state import PyroFunction
from pyrovae.models.under_prior import UnderPrior
from pyrovae.randomness import seeded

INFLATIONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
REDUCTIONS = (10, 25, 50, 100, 200, 400, 1000)
FULL_REDUCTIONS = (1, 2, 5, 10, 25, 50)
FULL_NORMALS = (
    torch.distributions.MultivariateNormal,
    torch.distributions.LowRankMultivariateNormal,
)


@dataclass(frozen=True)
class Candidate:
    """One density that was tried.

    Args:
        name: what it is, in words.
        amount: the inflation h of the variances; 0 where nothing was added.
        components: number of components.
        parameters: how many numbers describe the density; fewer is simpler.
        held_out: mean log density of held-out codes, with its standard error over held-out data.
        difference: the same minus that of the best candidate, paired by data point.
    """

    name: str
    amount: float
    components: int
    parameters: int
    held_out: Estimate
    difference: Estimate


@dataclass(frozen=True)
class ExPostPrior:
    """The density that was chosen, and everything that it was chosen from.

    Args:
        distribution: the ex-post prior, event shape ``(D,)``.
        choice: name of the chosen candidate.
        table: one row per candidate, as they were tried.
    """

    distribution: Mixture
    choice: str
    table: tuple[Candidate, ...]

    def in_model(self, model: PyroFunction, *, site: str = "z") -> UnderPrior:
        """The model with this prior at its latent site, all else shared; the guide stays the same.

        ``log_evidence(found.in_model(model), guide, x)`` is log p(x) under the ex-post prior. For a
        ``VAE``, ``vae.with_prior(found.distribution)`` gives model and guide in one.

        Args:
            model: the Pyro model whose guide was aggregated.
            site: name of its latent site.
        """
        return UnderPrior(model, self.distribution, site=site)


def fit_ex_post_prior(
    agg: AggregatedPosterior,
    *,
    held_out: dist.Distribution,
    inflations: Sequence[float] | None = None,
    reductions: Sequence[int] | None = None,
    full_reductions: Sequence[int] | None = None,
    draws: int = 4,
    seed: int = 0,
) -> ExPostPrior:
    r"""Choose a smoothed or reduced aggregated posterior by the log density of held-out codes.

    The aggregated posterior is a kernel density estimate that has memorised its data: its kernels,
    the encoder's, are far too narrow for codes of new data. Candidates are mixtures of wider ones,

    .. math:: q_h(z) = \sum_n w_n N(z; μ_n, σ_n^2 + h \operatorname{Var}_m(μ_m)),

    and mixtures of far fewer components, of diagonal or full covariance, fitted to all of them
    (`pyrovae.mixture.reduction.reduce`).

    The choice follows the one-standard-error rule: the *simplest* candidate whose held-out mean log
    density is within one standard error (of the paired difference) of the best. Simpler means fewer
    numbers that describe it: K(2D + 1) − 1 for K diagonal normals, K(D + D(D + 1)/2 + 1) − 1 for
    full ones; and with as many, smoother: a larger h.

    Args:
        agg: the aggregated posterior of the training data.
        held_out: the encoding of at least two data points that the guide was not trained on.
            The table was used for the choice: report the chosen density on other data.
        inflations: the amounts h to try, each ≥ 0; by default 0 to 1, and 0 alone where the
            components are not normal.
        reductions: the numbers K of components to try, each ≥ 1; those above a third of the number
            of data points N are left out; by default 10 to 1,000, and none where the components
            are not normal.
        full_reductions: the same for full covariances, those with K D above N/2 left out; by
            default 1 to 50.
        draws: codes drawn from each held-out encoding; their log densities are averaged before the
            standard error over data is taken.
        seed: seed of these draws.

    Raises:
        ValueError: for a negative amount, no amount, or components that cannot be inflated.

    Ghosh et al. 2020, "From variational to deterministic autoencoders", for ex-post density
    estimation; Breiman et al. 1984 for the one-standard-error rule.
    """
    normal = is_normal(agg.component_distribution)
    inflations = (INFLATIONS if normal else (0.0,)) if inflations is None else inflations
    reductions = (REDUCTIONS if normal else ()) if reductions is None else reductions
    if full_reductions is None:
        full_reductions = FULL_REDUCTIONS if normal and len(agg.event_shape) == 1 else ()
    if not inflations or min(inflations) < 0:
        raise ValueError(f"expected amounts of at least 0; got {tuple(inflations)}.")
    with seeded(seed), torch.no_grad():
        codes = held_out.sample((draws,))
    tried = {_inflated(h): (h, inflate(agg, h)) for h in sorted(inflations)}
    for size in sorted(reductions):
        if 3 * size <= agg.size:
            small = reduce(agg, size, draws=2, seed=seed).mixture
            tried[f"reduced to {size} components"] = (0.0, small)
    for size in sorted(full_reductions):
        if 2 * size * agg.event_shape.numel() <= agg.size:
            small = reduce(agg, size, covariance="full", draws=2, seed=seed).mixture
            tried[f"reduced to {size} components of full covariance"] = (0.0, small)
    candidates = [candidate for _, candidate in tried.values()]
    values = [_mean_log_density(candidate, codes) for candidate in candidates]
    best = max(range(len(values)), key=lambda i: float(values[i].mean()))
    table = tuple(
        Candidate(
            name=name,
            amount=amount,
            components=candidate.size,
            parameters=_parameters(candidate),
            held_out=mean_estimate(value),
            difference=mean_estimate(value - values[best]),
        )
        for (name, (amount, candidate)), value in zip(tried.items(), values, strict=True)
    )
    chosen = _simplest(table)
    return ExPostPrior(candidates[chosen], table[chosen].name, table)


def inflate(agg: Mixture, amount: float) -> Mixture:
    """The mixture with ``amount`` times the variance of its means added to every component.

    Args:
        agg: a mixture with normal components.
        amount: h ≥ 0, in units of the variance of the means, per unit.

    Raises:
        ValueError: if the components are not normal.
    """
    if amount == 0:
        return agg
    components = agg.component_distribution
    added = amount * agg.mean_variance
    if families.diagonal_normal(components) is not None:
        scale = (components.variance + added).sqrt()
        wider = dist.Normal(components.mean, scale).to_event(len(agg.event_shape))
    elif isinstance(components, FULL_NORMALS):
        covariance = components.covariance_matrix + torch.diag(added)
        wider = dist.MultivariateNormal(components.mean, covariance)
    else:
        raise ValueError(
            "expected normal components, whose variances can be inflated; got "
            f"{families.family(components)}."
        )
    return Mixture(agg.mixture_distribution, wider)


def is_normal(components: dist.Distribution) -> bool:
    """Whether components are normal, with whatever covariance."""
    return families.diagonal_normal(components) is not None or isinstance(components, FULL_NORMALS)


def _inflated(amount: float) -> str:
    return f"variances inflated by {amount:g} Var(μ)" if amount else "as it is"


def _parameters(mixture: Mixture) -> int:
    """How many numbers describe a mixture of normals; of others, those of their means."""
    dim = mixture.event_shape.numel()
    if isinstance(mixture.component_distribution, FULL_NORMALS):
        spread = dim * (dim + 1) // 2
    else:
        spread = dim if is_normal(mixture.component_distribution) else 0
    return mixture.size * (dim + spread + 1) - 1


def _mean_log_density(density: Mixture, codes: Tensor) -> Tensor:
    """Mean over draws of the log density of each data point's codes, shape ``(M,)``."""
    with torch.no_grad():
        return density.log_prob(codes).double().mean(0)


def _simplest(table: Sequence[Candidate]) -> int:
    """The simplest candidate within one standard error of the best."""
    close = [
        i for i, row in enumerate(table) if -row.difference.value <= row.difference.standard_error
    ]
    return min(close, key=lambda i: (table[i].parameters, -table[i].amount))
