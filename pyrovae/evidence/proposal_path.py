"""Annealing from a refined proposal: what is left to do where its weights are too uneven."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.evidence.annealed import CHAINS_AT_ONCE, Annealing, anneal, tune
from pyrovae.evidence.hmc import Point
from pyrovae.evidence.proposal import Proposal, as_one
from pyrovae.randomness import derived_seed, seeded

# From a proposal with the right modes a few temperatures are enough: they mend its tails.
FROM_PROPOSAL = Annealing(temperatures=16, leapfrog=3)


@dataclass(frozen=True)
class ProposalPath:
    r"""The geometric path from a proposal to the target, in units of the proposal's own widths.

    .. math:: \log f_β(v) = (1 - β) \log q(u) + β \log f(u), \quad u = m + A v

    The factor |A| is left out, as it is the same at every β.

    Args:
        proposal: q of each row.
        mean: m, shape ``(B, D)``.
        factor: A, shape ``(B, D, D)``.
    """

    proposal: Proposal
    mean: Tensor
    factor: Tensor

    def sample(self, chains: int) -> Tensor:
        """Draws from the proposal, shape ``(chains, B, D)``."""
        away = (self.proposal.sample(chains) - self.mean).permute(1, 2, 0)
        return torch.linalg.solve(self.factor, away).permute(2, 0, 1)

    def inside(self, v: Tensor) -> Tensor:
        """Whether positions are finite, shape ``(C, B)``."""
        return v.isfinite().all(-1)

    def position(self, v: Tensor) -> Tensor:
        """Positions in the target's own units, shape ``(C, B, D)``."""
        return self.mean + torch.einsum("bde,sbe->sbd", self.factor, v)

    def at(self, v: Tensor, beta: float) -> Point:
        """Densities and gradient at positions of shape ``(C, B, D)``."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            u = self.position(v)
            easy, joint = self.proposal.log_prob(u), self.proposal.target.of_draws(u)
            density = beta * joint if beta > 0 else torch.zeros_like(joint)
            if beta < 1:  # a term of weight 0 counts for nothing, even where it is infinite
                density = density + (1 - beta) * easy
            (gradient,) = torch.autograd.grad(density.sum(), v)
        return Point(v.detach(), easy.detach(), joint.detach(), density.detach(), gradient)


@torch.no_grad()
def annealed_from(proposal: Proposal, chains: int, *, seed: int) -> Tensor:
    """log weights of chains from each row's proposal to its posterior, shape ``(C, B)``.

    Their mean weight is p(x), as that of the proposal's own draws, and they are less uneven. Under
    a large mixture the path leads to the density that the proposal was tuned by, and from there to
    the posterior in one step.

    Args:
        proposal: where chains start.
        chains: C at each row.
        seed: names all draws.
    """
    parts = []
    rows = torch.arange(len(proposal.mean), device=proposal.mean.device)
    for index, chosen in enumerate(rows.split(max(1, CHAINS_AT_ONCE // chains))):
        part = proposal.subset(chosen)
        path = ProposalPath(part, *as_one(part.mean, part.factor, part.log_weights[:, :-1]))
        pilot = derived_seed(seed, "pilot from a proposal", index)
        tuning = tune(path, FROM_PROPOSAL, seed=pilot, tick=_silent)
        with seeded(seed, "annealing from a proposal", index):
            start = path.sample(chains)
            log_weights, _, end = anneal(path, start, FROM_PROPOSAL, tuning, tick=_silent)
        if part.target.near is not None:  # the last weight is that of a step to the whole prior
            u = path.position(end)
            log_weights += part.target.exact().of_draws(u) - part.target.of_draws(u)
        parts.append(log_weights)
    return torch.cat(parts, 1)


def _silent() -> None:
    """Show nothing."""
