"""log p(x) from below by importance sampling from a proposal of its own for each data point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.importance import check_draws
from pyrovae.evidence.proposal import Proposal
from pyrovae.evidence.result import Evidence, join, summarise
from pyrovae.evidence.target import target_for, whole
from pyrovae.evidence.tuning import fit_proposal
from pyrovae.pairs import Encoded, Pair
from pyrovae.randomness import derived_seed, seeded

ROWS = 64  # data points whose proposals are found together
STRIDE = 256  # draws of each of them that are held at once


@torch.no_grad()
def refined_evidence(
    pair: Pair,
    x: Tensor,
    *,
    draws: int,
    prior: dist.Distribution | None = None,
    encoded: Encoded | None = None,
    seed: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> Evidence:
    r"""K-sample bound on log p(x) by draws from a proposal around the modes of log p(x, z).

    .. math:: \log \hat p(x) = \log \tfrac1K \sum_k \frac{p(x, z_k)}{q_x(z_k)}, \quad z_k \sim q_x

    q_x is a mixture of multivariate t's, one at each mode that is found for the data point, with
    the guide as a component of small weight. It is tuned on draws that are not counted: the mean
    of the weights is p(x), and its logarithm errs to the low side, whatever the proposal.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        draws: K ≥ 2.
        prior: stands in the place of the model's own p(z).
        encoded: q(z | x) of the rows, if it is known.
        seed: names all draws; the result depends on it and the data alone.
        tick: called with the number of rows that are done, block by block.

    Raises:
        InputError: with fewer than 2 draws, or where log p(x, z) is no differentiable function of
            the code of each row.
    """
    check_draws(draws)
    entire = whole(pair, x)
    parts: list[Evidence] = []
    for index, numbers in enumerate(torch.arange(len(x), device=x.device).split(ROWS)):
        known = None if encoded is None else encoded.take(numbers)
        target = target_for(entire, x[numbers], prior, named=pair, encoded=known)
        tuning = derived_seed(seed, "refined proposal", index)
        proposal = fit_proposal(target, seed=tuning).proposal.exact()
        weights = counted(proposal, draws, seed=derived_seed(seed, "refined weights", index))
        part = summarise(weights.T, first=index * ROWS)
        parts.append(replace(part, cost=target.cost, rungs=("refined",) * len(numbers)))
        tick(len(numbers))
    return join(parts)


def counted(proposal: Proposal, draws: int, *, seed: int) -> Tensor:
    """log weights of draws that have tuned nothing, shape ``(S, B)``."""
    parts = []
    for part, start in enumerate(range(0, draws, STRIDE)):
        with seeded(seed, "counted draws", part):
            u = proposal.sample(min(STRIDE, draws - start))
            parts.append(proposal.target.of_draws(u) - proposal.log_prob(u))
    return torch.cat(parts)


@torch.no_grad()
def proposal_for(pair: Pair, x: Tensor, *, encoded: Encoded, seed: int) -> Proposal:
    """The refined proposal of each row, under the model's own prior.

    Args:
        pair: model and guide.
        x: rows, shape ``(B, ...)``.
        encoded: q(z | x) of them.
        seed: names the draws that tune it.

    Raises:
        InputError: where log p(x, z) is no differentiable function of the code of each row.
    """
    target = target_for(whole(pair, x), x, None, named=pair, encoded=encoded)
    tuning = derived_seed(seed, "proposal for other draws")
    return fit_proposal(target, seed=tuning).proposal.exact()
