"""log p(x) with each data point as far up as it needs: guide, refined proposal, annealed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.evidence.annealed import cost_of_chains
from pyrovae.evidence.importance import (
    BLOCK,
    check_draws,
    compare_priors,
    log_weights_of_guide,
    support_notes,
)
from pyrovae.evidence.pareto_k import k_limit, smooth
from pyrovae.evidence.proposal import Proposal, density_of_guide
from pyrovae.evidence.proposal_path import FROM_PROPOSAL, annealed_from
from pyrovae.evidence.refined import ROWS, STRIDE, counted
from pyrovae.evidence.result import GUIDE_ALONE, Evidence, join, summarise
from pyrovae.evidence.target import Target, target_for, whole
from pyrovae.evidence.tilted import under_many
from pyrovae.evidence.tuning import (
    OF_GUIDE,
    PILOT,
    UNEXPLAINED,
    across_a_valley,
    fit_proposal,
    guide_inside,
    starting_points,
)
from pyrovae.pairs import Encoded, Pair, drawn_from, weigh
from pyrovae.randomness import derived_seed, seeded

RUNGS = ("guide", "refined", "annealed")
EXACT = 1e-3  # nats by which weights may differ where the guide is the posterior
FOLDS = (1, 4, 16)  # draws whose mean is one weight, more where those of fewer are too uneven
CHAINS = len(FOLDS)  # the step after these
# By how much k̂ of draws that count may be higher than that of pilot draws, at single draws and at
# such means. Another 12 draws cost a fifteenth of a chain, so that they are taken early.
ROUGH = {1: 0.2, 4: 0.05, 16: 0.05}
TELLING = 100  # weights that count, by fewer of which k̂ is too rough to reject them
ENOUGH = 0.3  # k̂ of the guide's pilot draws up to which it is good enough beyond doubt


@torch.no_grad()
def automatic_evidence(
    pair: Pair,
    x: Tensor,
    *,
    draws: int,
    prior: dist.Distribution | None = None,
    encoded: Encoded | None = None,
    max_cost: int | None = None,
    seed: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> Evidence:
    r"""K-sample bound on log p(x), each data point as far up as it needs: guide, refined, annealed.

    The guide's draws are weighed where k̂ of 500 pilot draws is at most 0.3 and none of some draws
    from the prior has a weight 20 times the mean or lies beyond a valley of log p(x, z), which
    would be a part of the posterior that the guide does not reach. The others, and all where the
    prior is a mixture of many components, have a proposal of their own. Where k̂ of as many pilot
    draws as are to be counted, at least 500, is not below their limit by 0.2, each weight is the
    mean of four draws' weights instead of one; where k̂ of these is not below it by 0.05, that of
    16; and where k̂ of these is not either, chains are annealed from there, each of which costs as
    much as 183 draws.

    Pilot draws are not counted, so that the choice leaves the bound a bound. Where k̂ of at least
    100 weights from a proposal is above its limit after all, the data point has new ones from the
    next of these steps, up to the chains. Weights are rejected for a few that are large, so that
    this lowers the mean: on MNIST by 0.007 ± 0.002 nats at 500 draws, and 0.016 ± 0.004 at 100.

    Args:
        pair: model and guide. Where log p(x, z) is no differentiable function of the code of each
            row, all draws are from the guide, and a note says why if it is not good enough.
        x: rows, shape ``(N, ...)``.
        draws: K ≥ 2, or as many chains.
        prior: stands in the place of the model's own p(z).
        encoded: q(z | x) of the rows, if it is known.
        max_cost: evaluations of log p(x, z) at a data point, one with its gradient for three. It
            goes no further up where it has taken so many, or where chains would exceed it.
        seed: names all draws.
        tick: called with the number of rows that are done, block by block.

    Raises:
        InputError: with fewer than 2 draws.
    """
    check_draws(draws)

    def target_of(block: int) -> Target:
        rows = slice(block * ROWS, (block + 1) * ROWS)
        known = None if encoded is None else encoded.take(rows)
        return target_for(entire, x[rows], prior, named=pair, encoded=known)

    try:
        entire = whole(pair, x)
        target = target_of(0)
    except InputError as reason:
        result = compare_priors(pair, x, {"": prior}, draws=draws, encoded=encoded, seed=seed)[""]
        result = _by_guide_alone(result, reason)
        tick(len(x))
        return result
    guide = drawn_from(pair, x[:BLOCK], target.encoded.take(slice(0, BLOCK)))
    usable = not support_notes(pair, x, {"": prior}, guide)[""] and not under_many(target)
    most = math.inf if max_cost is None else max_cost
    parts = []
    for index, rows in enumerate(x.split(ROWS)):
        if index > 0:
            target = target_of(index)
        ladder = Ladder(pair, target, draws, most, derived_seed(seed, "rungs of a block", index))
        parts.append(ladder.climb(guided=usable, first=index * ROWS))
        tick(len(rows))
    return join(parts)


@dataclass(frozen=True)
class Ladder:
    """The rungs at some data points.

    Beyond the guide there are steps: single weights, means of more of them, and chains.

    Args:
        pair: model and guide.
        target: the data points' densities; it counts what they cost.
        draws: K weights that each rung gives a data point.
        most: what a data point may cost; the search for a proposal, whose price is not known
            before, is begun below that.
        seed: names all draws.
    """

    pair: Pair
    target: Target
    draws: int
    most: float
    seed: int

    def climb(self, *, guided: bool, first: int) -> Evidence:
        """Weights from the first rung that is enough for each data point.

        Args:
            guided: whether the guide's draws may count.
            first: number of the first data point in its data set.
        """
        every = torch.arange(len(self.target.rows), device=self.target.rows.device)
        log_weights = every.new_zeros((self.draws, len(every)), dtype=torch.float64)
        rung, up = torch.zeros_like(every), every
        if guided:
            enough = guide_is_enough(self.pair, self.target, seed=self.seed)
            log_weights[:, enough] = self._by_guide(every[enough])
            up = every[~enough]
        dear = self.target.cost[up] >= self.most
        stopped = torch.zeros_like(every, dtype=torch.bool)
        stopped[up[dear]] = True
        log_weights[:, up[dear]] = self._by_guide(up[dear])
        if len(up := up[~dear]):
            log_weights[:, up], annealed, stopped[up] = self._beyond_the_guide(up)
            rung[up] = 1 + annealed.long()
        names = tuple(RUNGS[index] for index in rung.tolist())
        result = summarise(log_weights.T, first=first)
        return replace(result, rungs=names, cost=self.target.cost, stopped=stopped)

    def _beyond_the_guide(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of some data points, ``(K, n)``; which are annealed; which stopped, ``(n,)``."""
        seed = derived_seed(self.seed, "proposal where the guide fails")
        tuned = fit_proposal(self.target.subset(chosen), seed=seed).proposal
        step, stopped = self._first_step(tuned, chosen)
        log_weights = tuned.mean.new_zeros((self.draws, len(chosen)))
        prices, due = self._prices(chosen), torch.arange(len(chosen), device=chosen.device)
        seeds = (derived_seed(self.seed, "weights where the guide fails", t) for t in count())
        while len(due):
            seed = next(seeds)
            for index in step[due].unique().tolist():
                number = due[step[due] == index]
                log_weights[:, number] = self._weights(tuned.subset(number), index, seed)
            due = due[_rejected(log_weights[:, due]) & (step[due] < CHAINS) & ~stopped[due]]
            affordable = self._affords(prices[step[due] + 1], chosen[due])
            stopped[due[~affordable]] = True
            due = due[affordable]
            step[due] += 1
        return log_weights, step == CHAINS, stopped

    def _first_step(self, tuned: Proposal, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The step that pilot draws find enough, 0 to `CHAINS`; which stopped; both ``(n,)``."""
        prices = self._prices(chosen)
        step, uneven = torch.zeros_like(chosen), self._too_uneven(tuned, 1)
        for index, fold in enumerate(FOLDS[1:], start=1):
            pilot = fold * max(self.draws, PILOT)
            number = (uneven & self._affords(prices[index] + pilot, chosen)).nonzero().squeeze(1)
            if len(number):
                step[number] = index
                uneven[number] = self._too_uneven(tuned.subset(number), fold)
        annealed = uneven & self._affords(prices[CHAINS], chosen)
        step = torch.where(annealed, CHAINS, torch.where(uneven, 0, step))
        return step, uneven & ~annealed

    def _weights(self, tuned: Proposal, step: int, seed: int) -> Tensor:
        """Weights of draws that have tuned nothing, or of chains, shape ``(K, n)``."""
        seed = derived_seed(seed, "weights of a step", step)
        if step == CHAINS:
            return annealed_from(tuned, self.draws, seed=seed)
        return folded_weights(tuned.exact(), self.draws, seed=seed, fold=FOLDS[step])

    def _prices(self, like: Tensor) -> Tensor:
        """What the weights of each step cost at a data point, shape ``(CHAINS + 1,)``."""
        by_draws = [fold * self.draws for fold in FOLDS]
        return like.new_tensor([*by_draws, cost_of_chains(self.draws, FROM_PROPOSAL)])

    def _affords(self, price: Tensor, chosen: Tensor) -> Tensor:
        """Whether data points may still cost so much, ``(n,)``."""
        return self.target.cost[chosen] + price <= self.most

    def _too_uneven(self, proposal: Proposal, fold: int) -> Tensor:
        """Whether means of so many weights vary too much, by draws that are not counted, ``(B,)``.

        Args:
            proposal: of the data points.
            fold: weights of which each is the mean.
        """
        draws = max(self.draws, PILOT)
        seed = derived_seed(self.seed, "verdict on a proposal", fold)
        pilot = _tame(folded_weights(proposal, draws, seed=seed, fold=fold))
        even = smooth(pilot.T)[1] <= k_limit(max(self.draws, TELLING)) - ROUGH[fold]
        return ~even & pilot.isfinite().any(0)  # without any weight there is nothing to go on from

    def _by_guide(self, chosen: Tensor) -> Tensor:
        if not len(chosen):
            return chosen.new_zeros((self.draws, 0), dtype=torch.float64)
        counting = derived_seed(self.seed, "counted draws from the guide")
        target = self.target.subset(chosen)
        return _guide_weights(self.pair, target, self.draws, seed=counting)


def folded_weights(proposal: Proposal, draws: int, *, seed: int, fold: int) -> Tensor:
    """log of means of weights, of ``fold`` draws each, shape ``(S, B)``; their mean is p(x) too."""
    parts = counted(proposal, fold * draws, seed=seed).unflatten(0, (fold, draws))
    return parts.logsumexp(0) - math.log(fold)


def guide_is_enough(pair: Pair, target: Target, *, seed: int) -> Tensor:
    """The rows at which draws from the guide are enough, by draws that are not counted, ``(B,)``.

    Args:
        pair: whose guide is asked.
        target: rows with all latent sites as one code.
        seed: names the draws.
    """
    log_weights = _guide_weights(pair, target, PILOT, seed=seed)
    log_mean = log_weights.logsumexp(0) - math.log(PILOT)
    with seeded(seed, "where the guide may not reach"):
        guide = guide_inside(target)
        if guide is None:
            return torch.zeros_like(log_mean, dtype=torch.bool)
        starts, _ = starting_points(target, guide)
        density = density_of_guide(target, guide, starts)
        heights = target.of_draws(starts)
        excess = heights - density - log_mean
        beyond = across_a_valley(target, starts, heights, starts[:OF_GUIDE].mean(0))
    exact = (excess.abs() < EXACT).all(0)  # where the guide is the posterior nothing is missed
    reached = ~((excess > math.log(UNEXPLAINED)) | beyond).any(0) | exact
    return (smooth(_tame(log_weights).T)[1] <= ENOUGH) & reached


def _rejected(log_weights: Tensor) -> Tensor:
    """Where k̂ of weights that count, ``(K, B)``, is known and above its limit, ``(B,)``.

    Not where one of them is an error, which has to be raised.
    """
    if len(log_weights) < TELLING:
        return torch.zeros_like(log_weights[0], dtype=torch.bool)
    broken = (log_weights.isnan() | (log_weights == torch.inf)).any(0)
    pareto_k = smooth(torch.where(broken, 0.0, log_weights).T)[1]
    return (pareto_k > k_limit(len(log_weights))) & pareto_k.isfinite() & ~broken


def _tame(log_weights: Tensor) -> Tensor:
    """Pilot weights without NaN and +∞, which among those that count are an error."""
    return log_weights.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _guide_weights(pair: Pair, target: Target, draws: int, *, seed: int) -> Tensor:
    """log weights of draws from the guide, shape ``(S, B)``."""
    target.count(torch.arange(len(target.rows), device=target.rows.device), draws)
    source = drawn_from(pair, target.rows, target.encoded)
    parts = []
    for part, start in enumerate(range(0, draws, STRIDE)):
        with seeded(seed, "draws from the guide", part):
            weighted = weigh(pair, target.rows, min(STRIDE, draws - start), source=source)
            parts.append(log_weights_of_guide(weighted, target.prior))
    return torch.cat(parts).double()


def _by_guide_alone(result: Evidence, reason: InputError) -> Evidence:
    """An estimate by draws from the guide, with the reason if that is not good enough."""
    rungs, stopped = ("guide",) * len(result.values), torch.zeros_like(result.unresolved)
    result = replace(result, rungs=rungs, stopped=stopped)
    if not result.unresolved.any():
        return result
    why = str(reason).partition(". ")[0].removeprefix("expected ")
    note = f"{GUIDE_ALONE}: for others it takes {why}."
    return replace(result, notes=(*result.notes, note))
