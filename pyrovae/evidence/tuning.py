"""How the proposal of each row is found: its modes, their widths, and what improves it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.evidence.full_covariance import climb_elbo
from pyrovae.evidence.modes import find_modes
from pyrovae.evidence.pareto_k import smooth
from pyrovae.evidence.proposal import Proposal, log_t, mixture_weights
from pyrovae.evidence.target import Target
from pyrovae.evidence.tilted import mixture_of, tilted_components
from pyrovae.randomness import seeded

ROOM = 2  # modes of a row that a proposal has room for beside the first
ROUNDS = 3  # of looking for modes that are not explained
OF_GUIDE, OF_PRIOR = 32, 128  # draws at which a mode may be missed by the proposal
UNEXPLAINED = 20.0  # times its share by which a single draw speaks of another mode
VALLEY = 1.0  # nats by which log f is lower halfway to a mode than at both ends
NEGLIGIBLE = 7.0  # nats by which a mode's mass is smaller where it is left out
SEPARATE = 2.0  # standard deviations that part two modes
PILOT = 500  # draws that judge a proposal and tune its tails; none of them is counted
MATCHING = 2000  # draws whose weighted moments a proposal is matched to
MATCHES = 3  # rounds of that
MATCHED = 16  # rows whose draws are held at once for it
DEGREES = (3.0, 5.0, 10.0, 20.0, 50.0)  # of freedom, out of which each row takes its own
WIDTHS = (0.85, 1.0, 1.15, 1.35)
DEARER, SPARED = 1.25, 0.05  # of the least relative variance, that heavier tails may cost
HEAVY = 3.0  # degrees of freedom of pilot draws, which all others are judged by


@dataclass(frozen=True)
class Fitted:
    """A proposal with what its pilot draws say of it.

    Args:
        proposal: with degrees of freedom and width chosen; under a large mixture its target is the
            one that it was tuned by, near each row.
        pareto_k: k̂ of the pilot's weights, shape ``(B,)``.
        log_mean: log of the mean weight, shape ``(B,)``.
        u: the pilot's positions, shape ``(S, B, D)``.
        log_weights: shape ``(S, B)``.
    """

    proposal: Proposal
    pareto_k: Tensor
    log_mean: Tensor
    u: Tensor
    log_weights: Tensor


@torch.no_grad()
def fit_proposal(target: Target, *, seed: int) -> Fitted:
    """A proposal for each row, as far improved as its own pilot draws ask for.

    First a t around each mode that is found; then, where k̂ of the pilot draws is above 0.5,
    Gaussians of full covariance that climb the ELBO from there; then, where it is above 0.6, rounds
    of matching the moments of weighted draws (Cappé et al. 2008; Paananen et al. 2021). A stage is
    kept at the rows where it lowers k̂. Both limits are below 0.7, as a pilot's k̂ is rough.

    Args:
        target: the densities.
        seed: names all draws that tune; those that are counted have to come from elsewhere.
    """
    with seeded(seed, "modes of a target"):
        fitted = fit_modes(target)
    stages = (0.5, by_climbing, len(target.rows)), (0.6, by_matching, MATCHED)
    for stage, (limit, improve, at_once) in enumerate(stages):
        number = (~(fitted.pareto_k <= limit)).nonzero().squeeze(1)
        if not len(number):
            break
        with seeded(seed, "improved proposal", stage):
            if fitted.proposal.guide is not None:
                target.encoded.take(number).advance()
            for part in number.split(at_once):
                fitted = _put(fitted, part, improve(subset(fitted, part)))
    return fitted


def fit_modes(target: Target) -> Fitted:
    """A t around each mode that draws from guide and prior lead to."""
    guide = guide_inside(target)
    starts, scale = starting_points(target, guide)
    heights = target.of_draws(starts).nan_to_num(nan=-torch.inf)
    proposal = first_proposal(target, guide, starts, heights, scale)
    target = proposal.target
    proposal = beyond_valleys(proposal, starts, heights, scale)
    fitted = judge(proposal, PILOT)
    for _ in range(ROUNDS):
        u = torch.cat([starts, fitted.u])
        from_starts = heights - fitted.proposal.log_prob(starts)
        log_weights = torch.cat([from_starts, fitted.log_weights])
        excess, index = (log_weights - fitted.log_mean).nan_to_num(nan=-torch.inf).max(0)
        room = fitted.proposal.log_weights[:, -2] == -torch.inf
        number = ((excess > math.log(UNEXPLAINED)) & room).nonzero().squeeze(1)
        if not len(number):
            break
        modes = find_modes(target, u[index[number], number], number, scale[number])
        proposal, added = add_modes(fitted.proposal, modes.u, modes.factor, number)
        if not added:
            break
        fitted = judge(proposal, PILOT)
    return fitted


def beyond_valleys(proposal: Proposal, starts: Tensor, heights: Tensor, scale: Tensor) -> Proposal:
    """The proposal with a mode added where one lies beyond a valley from the first.

    Args:
        proposal: with one component for each row; one with many is left as it is.
        starts: positions, shape ``(S, B, D)``.
        heights: log f there, shape ``(S, B)``.
        scale: unit of length, shape ``(B, D)``.
    """
    if proposal.mean.shape[1] > 1 + ROOM:
        return proposal
    target, first = proposal.target, proposal.mean[:, 0]
    top = target.of_draws(first.unsqueeze(0))
    beyond = across_a_valley(target, starts, heights, first)
    height, index = torch.where(beyond, heights, -torch.inf).max(0)
    number = height.isfinite().nonzero().squeeze(1)
    if not len(number):
        return proposal
    modes = find_modes(target, starts[index[number], number], number, scale[number])
    log_mass = top[0] + proposal.log_scale[:, 0]
    heavy = (modes.log_mass() > log_mass[number] - NEGLIGIBLE).nonzero().squeeze(1)
    if not len(heavy):
        return proposal
    u, factor = modes.u[heavy], modes.factor[heavy]
    return add_modes(proposal, u, factor, number[heavy])[0]


def across_a_valley(target: Target, starts: Tensor, heights: Tensor, first: Tensor) -> Tensor:
    """The starts that are nearer to another mode, ``(S, B)``: log f is lower halfway to the first.

    That is seen from afar, where no draw is near enough to another mode to outweigh its share.

    Args:
        starts: positions, shape ``(S, B, D)``.
        heights: log f there, shape ``(S, B)``.
        first: a position near the first mode, shape ``(B, D)``.
    """
    halfway = target.of_draws((starts + first) / 2)
    lower_end = torch.minimum(heights, target.of_draws(first.unsqueeze(0)))
    return halfway < lower_end - VALLEY


def first_proposal(
    target: Target,
    guide: dist.Distribution | None,
    starts: Tensor,
    heights: Tensor,
    scale: Tensor,
) -> Proposal:
    """A t around the mode that the starts lead to, or around those of the prior's components.

    Args:
        target: the densities.
        guide: q(z | x), or none.
        starts: positions, the guide's first, shape ``(S, B, D)``.
        heights: log f there, shape ``(S, B)``.
        scale: unit of length, shape ``(B, D)``.
    """
    row = torch.arange(starts.shape[1], device=starts.device)
    highest = starts[heights.argmax(0), row]
    start = highest if guide is None else starts[:OF_GUIDE].mean(0)
    if (mixture := mixture_of(target, target.code_prior)) is not None:
        found = tilted_components(target, mixture, start, scale, highest)
        target = replace(target, near=found.near)
        mean, factor, log_mass = found.mean, found.factor, found.log_mass
    else:
        modes = find_modes(target, start, row, scale)
        mean, factor = modes.u.unsqueeze(1), modes.factor.unsqueeze(1)
        log_mass = torch.zeros_like(mean[..., 0])
    masses = log_mass.nan_to_num(nan=-torch.inf, posinf=-torch.inf).softmax(1).nan_to_num(nan=1.0)
    masses = torch.cat([masses.clamp_min(1e-12), masses.new_zeros(len(row), ROOM)], 1)
    mean, factor = (
        torch.cat([part, part[:, :1].repeat_interleave(ROOM, 1)], 1) for part in (mean, factor)
    )
    ones = torch.ones_like(masses[:, 0])
    weights = mixture_weights(masses, guided=guide is not None)
    return Proposal(target, guide, weights, mean, factor, HEAVY * ones, ones)


def guide_inside(target: Target) -> dist.Distribution | None:
    """The guide, or none where some of its draws leave the target's support."""
    target.encoded.advance()
    guide = target.encoded.density
    z = guide.sample(torch.Size([OF_GUIDE]))
    return guide if bool(target.support.check(z).all()) else None


def starting_points(target: Target, guide: dist.Distribution | None) -> tuple[Tensor, Tensor]:
    """Draws from guide and prior, ``(S, B, D)``, and the unit of length of each row, ``(B, D)``.

    That is how far the prior's draws lie apart; without one prior for all rows, three times what
    the guide's do.
    """
    b = len(target.rows)
    draws = []
    if guide is not None:
        draws.append(target.positions(guide.sample(torch.Size([OF_GUIDE]))))
    prior = target.code_prior
    if prior is None and guide is None:
        with torch.random.fork_rng():
            prior = target.pair.prior(target.rows[:1])
    if prior is not None:
        z = prior.sample(torch.Size([OF_PRIOR]))
        z = z.reshape(OF_PRIOR, 1, -1)
        draws.append(target.positions(z).expand(OF_PRIOR, b, -1))
    spread = _spread(draws[-1]) if prior is not None else 3 * _spread(draws[-1])
    usable = torch.cat(draws)
    usable = torch.where(usable.isfinite().all(-1, keepdim=True), usable, 0.0)
    return usable, spread


def _spread(u: Tensor) -> Tensor:
    """A standard deviation by the middle half of some draws, shape ``(B, D)``."""
    low, high = u.quantile(torch.tensor([0.25, 0.75], dtype=u.dtype, device=u.device), 0)
    return ((high - low) / 1.35).clamp_min(1e-6)


def add_modes(
    proposal: Proposal, u: Tensor, factor: Tensor, number: Tensor
) -> tuple[Proposal, bool]:
    """The proposal with modes of some rows added that it does not have, and whether there were any.

    Args:
        u, factor: of a mode for each of the rows.
        number: of these rows.
    """
    mean, old = proposal.mean[number], proposal.factor[number]
    away = (u.unsqueeze(1) - mean).unsqueeze(-1)
    by_old = torch.linalg.solve(old, away).squeeze(-1).square().sum(-1)
    by_new = torch.linalg.solve(factor.unsqueeze(1), away).squeeze(-1).square().sum(-1)
    present = proposal.log_weights[number, :-1] > -torch.inf
    near = (torch.minimum(by_old, by_new) < SEPARATE**2) & present
    apart = ~near.any(1) & u.isfinite().all(-1)
    if not apart.any():
        return proposal, False
    number, u, factor, present = number[apart], u[apart], factor[apart], present[apart]
    slot = present.sum(1)
    new_mean, new_factor = proposal.mean.clone(), proposal.factor.clone()
    new_mean[number, slot], new_factor[number, slot] = u, factor
    masses = proposal.log_weights[:, :-1].exp()
    masses[number, slot] = masses[number].sum(1)  # as much as all the others, until it is judged
    masses = masses / masses.sum(1, keepdim=True)
    weights = mixture_weights(masses, guided=proposal.guide is not None)
    return proposal.with_components(weights, new_mean, new_factor), True


def judge(proposal: Proposal, draws: int) -> Fitted:
    """The proposal with weights, tails and width chosen on draws of its own, and their k̂.

    All choices are compared on the same draws, which are heavy-tailed: the mean of the squared
    weights under another q' is that of (f/q) (f/q') here.
    """
    ones = torch.ones_like(proposal.degrees)
    proposal = replace(proposal, degrees=HEAVY * ones, width=1.1 * ones)
    u = proposal.sample(draws)
    log_f = proposal.target.of_draws(u)
    log_f = torch.where(log_f.isnan() | (log_f == torch.inf), -torch.inf, log_f)
    log_q = proposal.log_prob(u)
    log_weights = log_f - log_q
    log_mean = log_weights.logsumexp(0) - math.log(draws)
    masses = responsibilities(proposal, u, log_weights).sum(0)
    weights = mixture_weights(masses, guided=proposal.guide is not None)
    proposal = replace(proposal, log_weights=weights)
    degrees, width = _tails(proposal, u, log_f, log_weights, log_mean)
    _, pareto_k = smooth(log_weights.T)
    return Fitted(
        replace(proposal, degrees=degrees, width=width), pareto_k, log_mean, u, log_weights
    )


def _tails(
    proposal: Proposal, u: Tensor, log_f: Tensor, log_weights: Tensor, log_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Degrees of freedom and width of each row: the heaviest tails that cost little variance."""
    distances, guide = proposal.distances(u), proposal.log_guide(u).unsqueeze(-1)
    ones = torch.ones_like(proposal.degrees)
    moments = []
    for degrees in DEGREES:
        for width in WIDTHS:
            tails = degrees * ones, width * ones
            own = log_t(distances, proposal.log_scale, *tails, u.shape[-1])
            other = (proposal.log_weights + torch.cat([own, guide], -1)).logsumexp(-1)
            moments.append((log_weights + log_f - other).logsumexp(0))
    moment = torch.stack(moments) - 2 * log_mean - math.log(len(u))
    variance = moment.expm1().nan_to_num(nan=torch.inf).view(len(DEGREES), len(WIDTHS), -1)
    least, index = variance.min(1)
    cheap = least <= DEARER * least.amin(0).clamp_min(0) + SPARED
    chosen = cheap.to(torch.int8).argmax(0)  # the first, which has the heaviest tails
    by_width = torch.tensor(WIDTHS, dtype=u.dtype, device=u.device)
    by_degrees = torch.tensor(DEGREES, dtype=u.dtype, device=u.device)
    return by_degrees[chosen], by_width[index.gather(0, chosen.unsqueeze(0)).squeeze(0)]


def responsibilities(proposal: Proposal, u: Tensor, log_weights: Tensor) -> Tensor:
    """The share of each weighted draw that each component accounts for, shape ``(S, B, K)``.

    They sum to 1 over draws and components; weights above √S times their mean are cut there, as
    this only tunes (Ionides 2008).
    """
    terms = proposal.terms(u)[..., :-1]
    shares = (terms - terms.logsumexp(-1, keepdim=True)).exp().nan_to_num(nan=0.0)
    mean = log_weights.logsumexp(0) - math.log(len(u))
    relative = (log_weights - mean).exp().clamp_max(len(u) ** 0.5)
    weighted = shares * relative.nan_to_num(nan=1.0).unsqueeze(-1)
    total = weighted.sum((0, 2), keepdim=True)
    first = torch.zeros_like(weighted)
    first[..., 0] = 1 / len(u)
    return torch.where(total > 0, weighted / total, first)


def by_climbing(fitted: Fitted) -> Fitted:
    """Each component climbs the ELBO; where they are many, one more beside them."""
    proposal = fitted.proposal
    if proposal.mean.shape[1] > 1 + ROOM:
        proposal, component = with_highest_mode(fitted)
        row = torch.arange(len(component), device=component.device)
    else:
        row, component = (proposal.log_weights[:, :-1] > -torch.inf).nonzero(as_tuple=True)
    mean, factor = proposal.mean.clone(), proposal.factor.clone()
    mean[row, component], factor[row, component] = climb_elbo(
        proposal.target, mean[row, component], factor[row, component], row
    )
    return judge(replace(proposal, mean=mean, factor=factor), PILOT)


def with_highest_mode(fitted: Fitted) -> tuple[Proposal, Tensor]:
    """A component at the mode that the highest pilot draw leads to, and its number, ``(B,)``.

    Where a mixture's components overlap, or have correlations, the posterior is one mode more than
    it is theirs. It takes the place of the component that accounts for least.
    """
    proposal = fitted.proposal
    heights = fitted.log_weights + proposal.log_prob(fitted.u)
    row = torch.arange(len(proposal.mean), device=proposal.mean.device)
    highest = fitted.u[heights.nan_to_num(nan=-torch.inf).argmax(0), row]
    scale = proposal.factor[:, -1 - ROOM].square().sum(-1).sqrt()  # of all components together
    modes = find_modes(proposal.target, highest, row, scale)
    mean, factor = proposal.mean.clone(), proposal.factor.clone()
    masses = proposal.log_weights[:, :-1].exp()
    least = masses.argmin(1)
    mean[row, least], factor[row, least] = modes.u, modes.factor
    masses[row, least] = 0.0
    masses[row, least] = masses.sum(1)  # as much as all the others, until it is judged
    masses = masses / masses.sum(1, keepdim=True)
    weights = mixture_weights(masses, guided=proposal.guide is not None)
    return proposal.with_components(weights, mean, factor), least


def by_matching(fitted: Fitted) -> Fitted:
    """The components are matched to the moments of weighted draws, in rounds."""
    best = current = judge(fitted.proposal, MATCHING)
    for _ in range(MATCHES):
        current = judge(matched(current), MATCHING)
        better = current.pareto_k < best.pareto_k
        best = _where(better, current, best)
    return best


def matched(fitted: Fitted) -> Proposal:
    """Components with the moments of the draws that they account for, held near what they were.

    With few effective draws the old covariance counts for as many as there are units.
    """
    proposal, u = fitted.proposal, fitted.u
    shares = responsibilities(proposal, u, fitted.log_weights)
    total = shares.sum(0)  # (B, K)
    effective = total.square() / shares.square().sum(0).clamp_min(1e-300)
    present = (proposal.log_weights[:, :-1] > -torch.inf) & (effective > 1)
    within = shares / total.clamp_min(1e-300)
    mean = torch.einsum("sbk,sbd->bkd", within, u)
    covariance = torch.stack(
        [
            torch.einsum("sbd,sbe->bde", share.unsqueeze(-1) * (u - middle), u - middle)
            for share, middle in zip(within.unbind(-1), mean.unbind(1), strict=True)
        ],
        1,
    )
    old = proposal.factor @ proposal.factor.mT
    old_share = (u.shape[-1] / (u.shape[-1] + effective)).view(*effective.shape, 1, 1)
    covariance = (1 - old_share) * covariance + old_share * old
    factor, failed = torch.linalg.cholesky_ex(covariance)
    usable = present & (failed == 0)
    return proposal.with_components(
        proposal.log_weights,
        torch.where(usable.unsqueeze(-1), mean, proposal.mean),
        torch.where(usable.view(*usable.shape, 1, 1), factor, proposal.factor),
    )


def subset(fitted: Fitted, number: Tensor) -> Fitted:
    """What is known of some of the rows."""
    return Fitted(
        fitted.proposal.subset(number),
        fitted.pareto_k[number],
        fitted.log_mean[number],
        fitted.u[:, number],
        fitted.log_weights[:, number],
    )


def _put(fitted: Fitted, number: Tensor, better: Fitted) -> Fitted:
    """The same with other proposals for some rows, where these have a lower k̂.

    Pilot draws are those of the first proposal; they are not of use any more.
    """
    lower = better.pareto_k < fitted.pareto_k[number]
    number = number[lower]
    changed = {}
    for name in ("log_weights", "mean", "factor", "degrees", "width"):
        values = getattr(fitted.proposal, name).clone()
        values[number] = getattr(better.proposal, name)[lower]
        changed[name] = values
    pareto_k, log_mean = fitted.pareto_k.clone(), fitted.log_mean.clone()
    pareto_k[number], log_mean[number] = better.pareto_k[lower], better.log_mean[lower]
    proposal = replace(fitted.proposal, **changed)
    return replace(fitted, proposal=proposal, pareto_k=pareto_k, log_mean=log_mean)


def _where(first: Tensor, one: Fitted, other: Fitted) -> Fitted:
    return Fitted(
        one.proposal.where(first, other.proposal),
        torch.where(first, one.pareto_k, other.pareto_k),
        torch.where(first, one.log_mean, other.log_mean),
        torch.where(first.view(1, -1, 1), one.u, other.u),
        torch.where(first, one.log_weights, other.log_weights),
    )
