"""q(z | x) improved for each data point by steps on its own ELBO, within the guide's family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyrovae.data import Batch, repeat_rows, row_count
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.families import Pushed
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.weighing import elbo_terms
from pyrovae.randomness import seeded

RATE = 0.2  # of Adam at the first step; falls to 0 along a cosine
DRAWS = 16  # at each data point in one step, an even number
COMPARED = 64  # draws at each data point by which the last step is compared with the start
CODES = 8192  # that go through the model at once, at most
BYTES = 1 << 24  # of data that go through the model at once
GAUSSIAN = ("Normal", "MultivariateNormal", "LowRankMultivariateNormal")


@dataclass(frozen=True)
class Unconstrained:
    """A batch of distributions of one family as numbers without constraints, and the way back.

    Args:
        values: of each parameter, batch dimensions first.
        units: what a step of 1 is in each, broadcast against ``values``: the standard deviation for
            a location, 1 for what is a logarithm.
        build: makes the distributions from values.
    """

    values: list[Tensor]
    units: list[Tensor]
    build: Callable[[list[Tensor]], dist.Distribution]

    def at(self, steps: list[Tensor]) -> dist.Distribution:
        """The distributions some steps away from where they began."""
        parts = zip(self.values, self.units, steps, strict=True)
        return self.build([value + unit * step for value, unit, step in parts])


def refine(
    pair: Pair,
    batch: Batch,
    start: dist.Distribution,
    *,
    steps: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> dist.Distribution:
    r"""The member of a family with a high ELBO for each data point, steps of Adam from a start.

    .. math:: L_n(q) = E_q[\log p(x_n, z) - \log q(z)]

    The gradient is that of draws from q with the parameters of log q held fixed, which has no noise
    left where q is exact. A data point at which the last q is not better than the first, on draws
    that both share, keeps the first.

    Args:
        pair: model and guide.
        batch: B rows.
        start: q, batch shape ``(B,)``, event shape ``(D,)``, of any family with parameter tensors.
        steps: of Adam, for all data points together.
        seed: names the draws.
        tick: called after each step.

    Raises:
        InputError: if the ELBO has no gradient in q's parameters, or the pair takes one number of
            rows only.

    Kim et al. 2018, "Semi-amortized variational autoencoders"; Roeder et al. 2017, "Sticking the
    landing", for the gradient.
    """
    check_refinable(pair, batch, start)
    family = _unconstrain(start)
    with torch.enable_grad(), seeded(seed, "steps on the ELBO"):
        free = [torch.zeros_like(value, requires_grad=True) for value in family.values]
        optimizer = torch.optim.Adam(free, lr=RATE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
            for parameter, gradient in zip(free, _slope(pair, batch, family, free), strict=True):
                parameter.grad = -torch.where(gradient.isfinite(), gradient, 0.0)
            optimizer.step()
            tick()
        free = [parameter.detach() for parameter in free]
    begin = [torch.zeros_like(parameter) for parameter in free]
    gain = _elbo(pair, batch, family.at(free), seed=seed) - _elbo(
        pair, batch, family.at(begin), seed=seed
    )
    better = gain > 0
    kept = [torch.where(better.view(-1, *(1,) * (p.dim() - 1)), p, 0.0) for p in free]
    return family.at(kept)


def check_refinable(pair: Pair, batch: Batch, q: dist.Distribution) -> None:
    """Raise unless the ELBO has a gradient in the parameters of q at each data point."""
    if not pair.traits.takes_any_number_of_rows(batch):
        raise InputError(
            "expected a model and guide that take any number of rows, so that many draws go "
            "through them at once; got a pair that takes only all data together. Write an "
            "amortized guide."
        )
    if isinstance(q, families.Editable):
        raise InputError(
            "expected a q(z|x) with parameters to optimise; got one whose density is known "
            "only by running the guide. Name the site that is drawn first alone, or compare the "
            "guide with NUTS instead: beside_nuts."
        )
    fixed = [] if q.has_rsample else [families.family(q)]
    if pair.traits.has_other_latents(batch):
        with torch.no_grad(), torch.random.fork_rng():
            reading = pair.guide_reader.read(batch)[0]
        others = [name for name in reading.latent if name not in pair.sites]
        fixed += [f"other draws of {n}" for n in others if not reading.nodes[n]["fn"].has_rsample]
    if fixed:
        raise InputError(
            f"expected a guide with reparametrised draws; got {', '.join(fixed)}, whose ELBO has "
            "no gradients to follow. Compare it with NUTS instead: beside_nuts."
        )


def elbo_draws(pair: Pair, batch: Batch, q: dist.Distribution, draws: int) -> Tensor:
    """log p(x, z) − log q(z) of draws z ~ q, whose mean is the ELBO, shape ``(S, B)``."""
    parts = []
    for size in _split(batch, draws):
        z = q.sample(torch.Size([size]))
        parts.append(_log_joint(pair, batch, z) - q.log_prob(z))
    return torch.cat(parts)


def _log_joint(pair: Pair, batch: Batch, z: Tensor) -> Tensor:
    """log p(x, z) of draws of shape ``(S, B, D)``, shape ``(S, B)``."""
    likelihood, prior = elbo_terms(pair, repeat_rows(batch, len(z)), z.flatten(0, 1))
    return (likelihood + prior).view(z.shape[:2])


def _split(batch: Batch, draws: int) -> list[int]:
    """How many draws at each row go through the model at once."""
    size = max(array[:1].numel() * array.element_size() for array in batch)
    at_once = max(1, min(CODES, BYTES // max(1, size)) // row_count(batch))
    return [min(at_once, draws - first) for first in range(0, draws, at_once)]


def _slope(pair: Pair, batch: Batch, family: Unconstrained, free: list[Tensor]) -> list[Tensor]:
    """The gradient of all rows' ELBOs together."""
    total = [torch.zeros_like(parameter) for parameter in free]
    fixed = family.at([parameter.detach() for parameter in free])
    for size in _split(batch, DRAWS // 2):  # a graph for each part, so that memory is bounded
        z = _pairs_of_draws(family.at(free), size)
        elbo = (_log_joint(pair, batch, z) - fixed.log_prob(z)).sum() / DRAWS
        gradients = torch.autograd.grad(elbo, free)
        total = [one + other for one, other in zip(total, gradients, strict=True)]
    return total


def _pairs_of_draws(q: dist.Distribution, count: int) -> Tensor:
    """Reparametrised draws, twice as many; those of a Gaussian in pairs with q's mean between."""
    if families.family(q) not in GAUSSIAN:
        return q.rsample(torch.Size([2 * count]))
    z = q.rsample(torch.Size([count]))
    return torch.cat([z, 2 * q.mean - z])


@torch.no_grad()
def _elbo(pair: Pair, batch: Batch, q: dist.Distribution, *, seed: int) -> Tensor:
    """The ELBO of each row, by draws that are the same for every q of a family, shape ``(B,)``."""
    with seeded(seed, "ELBO before and after"):
        return elbo_draws(pair, batch, q, COMPARED).mean(0)


def _unconstrain(distribution: dist.Distribution) -> Unconstrained:
    if isinstance(distribution, torch.distributions.Independent):
        inner, dims = _unconstrain(distribution.base_dist), distribution.reinterpreted_batch_ndims
        return Unconstrained(
            inner.values, inner.units, lambda values: dist.Independent(inner.build(values), dims)
        )
    if isinstance(distribution, Pushed) or type(distribution) is dist.TransformedDistribution:
        base, pushed = _unconstrain(distribution.base_dist), type(distribution)
        transforms = distribution.transforms
        return Unconstrained(
            base.values, base.units, lambda values: pushed(base.build(values), transforms)
        )
    state, family = families.to_state(distribution), type(distribution)
    names = list(state["parameters"])
    bijections = [transform_to(_constraint(distribution, name)) for name in names]
    values = [
        bijection.inv(state["parameters"][name]).clone()
        for name, bijection in zip(names, bijections, strict=True)
    ]

    def build(values: list[Tensor]) -> dist.Distribution:
        parameters = [bijection(value) for bijection, value in zip(bijections, values, strict=True)]
        return family(**dict(zip(names, parameters, strict=True)), **state["with"])

    units = [_unit(distribution, name, value) for name, value in zip(names, values, strict=True)]
    return Unconstrained(values, units, build)


def _unit(distribution: dist.Distribution, name: str, value: Tensor) -> Tensor:
    """What a step of 1 is in a parameter: a standard deviation or the like for a location."""
    ones = torch.ones_like(value)
    if isinstance(distribution, families.CORRELATED_NORMALS):
        if name == "loc":
            return distribution.stddev
        below = ones.tril(-1) > 0 if name == "scale_tril" else ones < 0
        return torch.where(below, distribution.stddev.unsqueeze(-1), ones)
    scale = getattr(distribution, "scale", None) if name == "loc" else None
    return scale if isinstance(scale, Tensor) and scale.shape == value.shape else ones


def _constraint(distribution: dist.Distribution, name: str) -> constraints.Constraint:
    constraint: constraints.Constraint = distribution.arg_constraints[name]
    return constraint
