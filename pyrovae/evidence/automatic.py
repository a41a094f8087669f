"""log p(x) with each data point's draws from the guide where that is enough, else refined."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.evidence.importance import (
    check_draws,
    importance_evidence,
    log_weights_of_guide,
    support_notes,
)
from pyrovae.evidence.pareto_k import smooth
from pyrovae.evidence.proposal import density_of_guide
from pyrovae.evidence.refined import ROWS, STRIDE, counted
from pyrovae.evidence.result import GUIDE_ALONE, Evidence, in_order, join, summarise
from pyrovae.evidence.target import Target, target_for, whole
from pyrovae.evidence.tuning import PILOT, UNEXPLAINED, fit_proposal, guide_inside, starting_points
from pyrovae.pairs import Pair
from pyrovae.progress import progress_bar
from pyrovae.randomness import derived_seed, seeded

ENOUGH = 0.3  # k̂ of the guide's pilot draws up to which it is good enough beyond doubt


@torch.no_grad()
def automatic_evidence(
    pair: Pair,
    x: Tensor,
    *,
    draws: int,
    prior: dist.Distribution | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Evidence:
    r"""K-sample bound on log p(x), from the guide or from a refined proposal, datum by datum.

    A data point's draws are from the guide where k̂ of 500 pilot draws is at most 0.3 and none of
    some draws from the prior has a weight 20 times the mean, which would be a part of the posterior
    that the guide does not reach. All others have a proposal of their own. Pilot draws are not
    counted, so that the choice leaves the bound a bound.

    Args:
        pair: model and guide. Where log p(x, z) is no differentiable function of the code of each
            row, all draws are from the guide, and a note says why if it is not good enough.
        x: rows, shape ``(N, ...)``.
        draws: K ≥ 2.
        prior: stands in the place of the model's own p(z).
        seed: names all draws.
        progress: whether to show a bar; ``None`` shows it if stderr is a terminal.

    Raises:
        InputError: with fewer than 2 draws.
    """
    check_draws(draws)
    try:
        entire = whole(pair, x)
        target_for(entire, x[:2], prior, named=pair)
    except InputError as reason:
        return _by_guide(pair, x, draws, prior, seed, reason)
    usable = not support_notes(pair, x, {"": prior})[""]
    parts, numbers = [], []
    with progress_bar("log p(x)", -(-len(x) // ROWS), progress=progress) as bar:
        for index, rows in enumerate(x.split(ROWS)):
            number = torch.arange(len(rows), device=x.device)
            target = target_for(entire, rows, prior, named=pair)
            enough = torch.zeros_like(number, dtype=torch.bool)
            if usable:
                piloting = derived_seed(seed, "pilot of the guide", index)
                enough = guide_is_enough(pair, target, seed=piloting)
            for rung, chosen in (("guide", number[enough]), ("refined", number[~enough])):
                if not len(chosen):
                    continue
                some, first = rows[chosen], index * ROWS
                if rung == "guide":
                    counting = derived_seed(seed, "counted draws from the guide", index)
                    weights = _guide_weights(pair, some, draws, prior, seed=counting)
                else:
                    tuning = derived_seed(seed, "proposal where the guide fails", index)
                    proposal = fit_proposal(replace(target, rows=some), seed=tuning).proposal
                    counting = derived_seed(seed, "weights where the guide fails", index)
                    weights = counted(proposal, draws, seed=counting)
                found = summarise(weights.T, numbers=first + chosen)
                parts.append(replace(found, rungs=(rung,) * len(chosen)))
                numbers.append(first + chosen)
            bar.tick()
    return in_order(join(parts), torch.cat(numbers))


def guide_is_enough(pair: Pair, target: Target, *, seed: int) -> Tensor:
    """The rows at which draws from the guide are enough, by draws that are not counted, ``(B,)``.

    Args:
        pair: whose guide is asked.
        target: rows with all latent sites as one code.
        seed: names the draws.
    """
    log_weights = _guide_weights(pair, target.rows, PILOT, target.prior, seed=seed).double()
    log_mean = log_weights.logsumexp(0) - math.log(PILOT)
    with seeded(seed, "where the guide may not reach"):
        guide = guide_inside(target)
        if guide is None:
            return torch.zeros_like(log_mean, dtype=torch.bool)
        starts, _ = starting_points(target, guide)
        density = density_of_guide(target, guide, starts)
        excess = target.of_draws(starts) - density - log_mean
    # NaN or +inf is kept for the counted draws, where it is an error that names the row.
    tame = log_weights.nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    reached = ~(excess > math.log(UNEXPLAINED)).any(0)
    return (smooth(tame.T)[1] <= ENOUGH) & reached


def _guide_weights(
    pair: Pair, rows: Tensor, draws: int, prior: dist.Distribution | None, *, seed: int
) -> Tensor:
    parts = []
    for part, start in enumerate(range(0, draws, STRIDE)):
        with seeded(seed, "draws from the guide", part):
            weighted = pair.weigh(rows, min(STRIDE, draws - start))
            parts.append(log_weights_of_guide(weighted, prior))
    return torch.cat(parts)


def _by_guide(
    pair: Pair,
    x: Tensor,
    draws: int,
    prior: dist.Distribution | None,
    seed: int,
    reason: InputError,
) -> Evidence:
    """By draws from the guide alone, with the reason if that is not good enough."""
    found = importance_evidence(pair, x, draws=draws, prior=prior, seed=seed)
    found = replace(found, rungs=("guide",) * len(x))
    if not found.unresolved.any():
        return found
    why = str(reason).partition(". ")[0].removeprefix("expected ")
    note = f"{GUIDE_ALONE}: for others it takes {why}."
    return replace(found, notes=(*found.notes, note))
