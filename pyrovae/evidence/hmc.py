"""The path from an easy density to the posterior, and Hamiltonian moves that leave it invariant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.importance import log_joint_of_draws
from pyrovae.pairs import Pair


@dataclass(frozen=True)
class Point:
    """Positions of the chains, and the densities there at one inverse temperature.

    Args:
        u: positions, shape ``(C, B, D)``: C chains at each of B data points, unconstrained.
        easy, joint: log density of the easy distribution, and log p(x, z), each ``(C, B)``.
        density: log density of the tempered distribution over u, shape ``(C, B)``.
        gradient: its gradient, shape ``(C, B, D)``.
    """

    u: Tensor
    easy: Tensor
    joint: Tensor
    density: Tensor
    gradient: Tensor


class Densities(Protocol):
    """The densities f_β from an easy one to p(x, z), as moves need them."""

    def sample(self, chains: int) -> Tensor:
        """Positions drawn from the easy density, shape ``(chains, B, D)``."""

    def inside(self, u: Tensor) -> Tensor:
        """Whether there is a density at positions, shape ``(C, B)``."""

    def at(self, u: Tensor, beta: float) -> Point:
        """Densities and gradient at positions of shape ``(C, B, D)``."""


@dataclass(frozen=True)
class Path:
    r"""The geometric path between an easy density q and p(x, z), in unconstrained coordinates.

    .. math:: \log f_β(z) = (1 - β) \log q(z) + β \log p(x, z)

    Args:
        pair: model and guide.
        rows: B data points, shape ``(B, ...)``.
        easy: q, batch shape ``(B,)``, that can be sampled and has the prior's support.
        prior: p(z) that takes the place of the model's own, or ``None``.
        support: the prior's support, onto which its bijection maps the positions.
    """

    pair: Pair
    rows: Tensor
    easy: dist.Distribution
    prior: dist.Distribution | None
    support: torch.distributions.constraints.Constraint

    def sample(self, chains: int) -> Tensor:
        """Positions drawn from the easy density, shape ``(chains, B, D)``."""
        return self.unconstrained(self.easy.sample(torch.Size([chains])))

    def unconstrained(self, z: Tensor) -> Tensor:
        """Positions of codes."""
        return torch.distributions.biject_to(self.support).inv(z)

    def inside(self, u: Tensor) -> Tensor:
        """Whether positions are finite and their codes lie in the support, shape ``(C, B)``."""
        finite = u.isfinite().all(-1)
        z = torch.distributions.biject_to(self.support)(u.nan_to_num())
        return finite & self.support.check(z) & self.easy.support.check(z)

    def at(self, u: Tensor, beta: float) -> Point:
        """Densities and gradient at positions of shape ``(C, B, D)``."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            z, jacobian = self.constrained(u)
            easy, joint = self.easy.log_prob(z), self.log_joint(z)
            density = jacobian
            if beta < 1:  # a term of weight 0 counts for nothing, even where it is infinite
                density = density + (1 - beta) * easy
            if beta > 0:
                density = density + beta * joint
            (gradient,) = torch.autograd.grad(density.sum(), u)
        return Point(u.detach(), easy.detach(), joint.detach(), density.detach(), gradient)

    def constrained(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of positions, and log |dz/du| there, shape ``(C, B)``."""
        bijection = torch.distributions.biject_to(self.support)
        z = bijection(u)
        return z, bijection.log_abs_det_jacobian(u, z)

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x, z) of codes of shape ``(C, B, D)``, shape ``(C, B)``."""
        likelihood, log_prior = log_joint_of_draws(self.pair, self.rows, z)
        return likelihood + (log_prior if self.prior is None else self.prior.log_prob(z))


def move(
    path: Densities, start: Point, beta: float, *, step: Tensor, scale: Tensor, leapfrog: int
) -> tuple[Point, Tensor]:
    """One Hamiltonian move of every chain, which leaves f_β invariant and is its own reverse.

    The length of a step is multiplied by a random number from 0.8 to 1.2, one for each chain, so
    that no trajectory comes back to where it began (Neal 2011, *MCMC using Hamiltonian dynamics*).

    Args:
        path: the densities.
        start: where the chains are, evaluated at ``beta``.
        step: length of a leapfrog step at each data point, shape ``(B,)``.
        scale: unit of length of each latent unit, shape ``(B, D)``.
        leapfrog: steps in a trajectory.

    Returns:
        the new positions, and the probabilities with which they were accepted, shape ``(C, B)``;
        a trajectory that leaves the support, or diverges, is rejected.
    """
    length = step.unsqueeze(-1) * scale * (0.8 + 0.4 * torch.rand_like(start.u[..., :1]))
    momentum = torch.randn_like(start.u)
    energy = start.density - 0.5 * momentum.square().sum(-1)
    momentum = momentum + 0.5 * length * start.gradient
    end, outside = start, torch.zeros_like(start.density, dtype=torch.bool)
    for number in range(leapfrog):
        u = end.u + length * momentum
        outside = outside | ~path.inside(u)
        end = path.at(torch.where(outside.unsqueeze(-1), start.u, u), beta)
        momentum = momentum + (1.0 if number < leapfrog - 1 else 0.5) * length * end.gradient
    change = end.density - 0.5 * momentum.square().sum(-1) - energy
    probability = change.exp().clamp_max(1.0)
    probability = torch.where(outside | change.isnan(), 0.0, probability)
    return _choose(torch.rand_like(probability) < probability, end, start), probability


def _choose(accepted: Tensor, end: Point, start: Point) -> Point:
    by_unit = accepted.unsqueeze(-1)
    return Point(
        torch.where(by_unit, end.u, start.u),
        torch.where(accepted, end.easy, start.easy),
        torch.where(accepted, end.joint, start.joint),
        torch.where(accepted, end.density, start.density),
        torch.where(by_unit, end.gradient, start.gradient),
    )
