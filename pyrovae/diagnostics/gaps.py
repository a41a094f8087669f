"""What the ELBO of a data point loses to the guide's family, and what to amortization."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyrovae.data import Data
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence, log_joint_of_draws, smooth, summarise
from pyrovae.mixture import families
from pyrovae.mixture.families import Pushed
from pyrovae.pairs import Pair, PyroFunction, measuring, over_rows
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

LEARNING_RATE = 0.05  # at the first step; falls to 0 along a cosine
STEP_DRAWS = 16  # in one step of the optimisation

Family = Callable[[list[Tensor]], dist.Distribution]


@dataclass(frozen=True, repr=False)
class Gaps(Result):
    """ELBOs of some data points under better and better distributions over their codes.

    Args:
        guide: under the amortized q(z|x).
        family: under the best member of the guide's family, optimised for each data point alone.
        full: under the best Gaussian with full covariance; ``None`` where codes are constrained.
        evidence: log p(x), importance-weighted with the best of these distributions.
    """

    guide: Evidence
    family: Evidence
    full: Evidence | None
    evidence: Evidence

    def amortization(self) -> Estimate:
        """Mean loss because the encoder misses the best member of its family."""
        return self.family.minus(self.guide)

    def approximation(self) -> Estimate:
        """Mean loss because the posterior is not in the family."""
        return self.evidence.minus(self.family)

    def inference(self) -> Estimate:
        """Both: the mean of log p(x) − ELBO, which is that of KL(q(z|x)‖p(z|x))."""
        return self.evidence.minus(self.guide)

    def beyond_gaussian(self) -> Estimate | None:
        """Mean loss that no Gaussian recovers."""
        return None if self.full is None else self.evidence.minus(self.full)

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on why log p(x), and so the gaps, should not be trusted."""
        return self.evidence.concerns


@plain()
def inference_gaps(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    steps: int = 500,
    draws: int = 2000,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Gaps:
    r"""Split log p(x) − ELBO of a few data points into approximation and amortization gap.

    .. math:: \log p(x) - L(q) = \underbrace{\log p(x) - L(q^*)}_\text{approximation}
              + \underbrace{L(q^*) - L(q)}_\text{amortization}

    q* maximises the ELBO of that data point within the family. An optimiser that stops early makes
    the first gap too large and the second too small; their sum stays right.

    Args:
        model, guide: any Pyro pair whose guide can be drawn from with gradients.
        data: a few rows, shape ``(N, ...)`` with N ≥ 2.
        steps: of Adam, for all data points together.
        draws: from each distribution, to estimate its ELBO.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names the draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: if the guide's draws have no gradients in its parameters, or the pair takes
            one number of rows only.

    Cremer et al. 2018, "Inference suboptimality in variational autoencoders"; Roeder et al. 2017
    for the gradient.
    """
    check_seed(seed)
    pair, (x,) = over_rows(Pair(model, guide, site, observed, data_plate), data)
    with measuring(model, guide):
        if not pair.takes_any_number_of_rows(x):
            raise InputError(
                "expected a model and guide that take any number of rows, so that many draws go "
                "through them at once; got a pair that takes only all data together. Write an "
                "amortized guide."
            )
        with torch.no_grad(), seeded(seed, "guide to climb from"):
            start = families.convert(pair.encode(x), torch.Tensor.detach)
        if isinstance(start, families.Editable):
            raise InputError(
                "expected a q(z|x) with parameters to optimise; got one whose density is known "
                "only by running the guide. Compare it with NUTS instead: beside_nuts."
            )
        if not start.has_rsample:
            raise InputError(
                "expected a guide with reparametrised draws; got "
                f"{families.family(start)}, whose ELBO has no gradients to follow. Compare it with "
                "NUTS instead: beside_nuts."
            )
        elbo_seed = derived_seed(seed, "ELBO")  # shared, so that differences are paired
        gaussian = families.family(start) in ("Normal", "MultivariateNormal")
        with progress_bar("optimising q(z|x)", steps * (1 + gaussian), progress=progress) as bar:
            climb_seed = derived_seed(seed, "best of the family")
            best = _maximise_elbo(pair, x, start, steps=steps, seed=climb_seed, tick=bar.tick)
            wide, full = best, None
            if gaussian:
                diagonal = torch.diag_embed(best.stddev)
                wide = dist.MultivariateNormal(best.mean, scale_tril=diagonal)
                climb_seed = derived_seed(seed, "best of full covariance")
                wide = _maximise_elbo(pair, x, wide, steps=steps, seed=climb_seed, tick=bar.tick)
                full = _estimate_elbo(pair, x, wide, draws, seed=elbo_seed)
        amortized, family = (
            _estimate_elbo(pair, x, q, draws, seed=elbo_seed) for q in (start, best)
        )
        log_weights = _log_weights(
            pair, x, wide, draws, seed=derived_seed(seed, "log p(x) beside ELBO")
        )
    return Gaps(amortized, family, full, summarise(log_weights.T))


def _maximise_elbo(
    pair: Pair,
    x: Tensor,
    start: dist.Distribution,
    *,
    steps: int,
    seed: int,
    tick: Callable[[], None],
) -> dist.Distribution:
    """The member of a family with the highest ELBO, for every data point at once."""
    parameters, build = _unconstrain(start)
    with torch.enable_grad(), seeded(seed, "climb"):
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = (
                LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            )
            z = build(parameters).rsample(torch.Size([STEP_DRAWS]))
            # with log q at fixed parameters the gradient's noise vanishes where q is exact
            log_q = build([p.detach() for p in parameters]).log_prob(z)
            elbo = sum(log_joint_of_draws(pair, x, z)) - log_q
            gradients = torch.autograd.grad(-elbo.mean(0).sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            tick()
    return build([p.detach() for p in parameters])


def _unconstrain(distribution: dist.Distribution) -> tuple[list[Tensor], Family]:
    """Unconstrained parameters of a distribution, and the function that rebuilds it from them."""
    if isinstance(distribution, torch.distributions.Independent):
        parameters, build = _unconstrain(distribution.base_dist)
        dims = distribution.reinterpreted_batch_ndims
        return parameters, lambda values: dist.Independent(build(values), dims)
    if isinstance(distribution, Pushed) or type(distribution) is dist.TransformedDistribution:
        parameters, build = _unconstrain(distribution.base_dist)
        pushed, steps = type(distribution), distribution.transforms
        return parameters, lambda values: pushed(build(values), steps)
    state, family = families.to_state(distribution), type(distribution)
    names = list(state["parameters"])
    transforms = [transform_to(_constraint(distribution, name)) for name in names]
    unconstrained = [
        transform.inv(state["parameters"][name]).clone()
        for name, transform in zip(names, transforms, strict=True)
    ]

    def build_from(values: list[Tensor]) -> dist.Distribution:
        parameters = [transform(value) for transform, value in zip(transforms, values, strict=True)]
        return family(**dict(zip(names, parameters, strict=True)), **state["with"])

    return unconstrained, build_from


def _constraint(distribution: dist.Distribution, name: str) -> constraints.Constraint:
    constraint: constraints.Constraint = distribution.arg_constraints[name]
    return constraint


@torch.no_grad()
def _log_weights(pair: Pair, x: Tensor, q: dist.Distribution, draws: int, *, seed: int) -> Tensor:
    with seeded(seed, "log weights"):
        z = q.sample(torch.Size([draws]))
        likelihood, prior = log_joint_of_draws(pair, x, z)
    return likelihood + prior - q.log_prob(z)


def _estimate_elbo(
    pair: Pair, x: Tensor, q: dist.Distribution, draws: int, *, seed: int
) -> Evidence:
    """Mean of the log weights of each data point, and k̂ of the weights (Yao et al. 2018)."""
    log_weights = _log_weights(pair, x, q, draws, seed=seed).T.double()
    error = log_weights.std(1) / math.sqrt(draws)
    return Evidence(log_weights.mean(1), error, smooth(log_weights)[1], draws)
