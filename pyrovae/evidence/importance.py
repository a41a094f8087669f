"""log p(x) from below by importance sampling from the guide, or from the prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.evidence.result import Evidence, join, summarise
from pyrovae.mixture.families import declared
from pyrovae.models import Prior
from pyrovae.pairs import Encoded, Pair, Weighted, drawn_from, weigh
from pyrovae.randomness import derived_seed, seeded

Proposal = Literal["guide", "prior"]

BLOCK = 16  # data points whose draws share one random stream
STRIDE = 1024  # draws of each of them that are held at once
PROBES = 1000  # draws from the prior that the guide's support is tried on


@torch.no_grad()
def importance_evidence(
    pair: Pair,
    x: Tensor,
    *,
    draws: int,
    prior: dist.Distribution | None = None,
    proposal: Proposal = "guide",
    seed: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> Evidence:
    """K-sample bound log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x) (Burda et al. 2016).

    Its expectation is at most log p(x), and rises to it with K.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        draws: K ≥ 2.
        prior: stands in the place of the model's own p(z).
        proposal: where z_k is drawn from; with ``"prior"`` the weights are the likelihoods, and the
            bound is the infinite mixture p(x) = E_p(z)[p(x|z)] cut off at K components, with draws
            of its own for each data point, so that errors of different data are independent.
        seed: names the draws; the result depends on it and on nothing else.
        tick: called with the number of rows that are done, block by block.
    """
    if proposal == "guide":
        return compare_priors(pair, x, {"": prior}, draws=draws, seed=seed, tick=tick)[""]
    check_draws(draws)
    source = pair.prior(x) if prior is None else prior
    seed = derived_seed(seed, "draws from the prior")
    blocks: list[Evidence] = []
    sources = [source.expand((len(rows),)) for rows in _blocks(pair, x)]
    for parts in weighted_blocks(pair, x, sources, draws=draws, seed=seed):
        weights = torch.cat([w.log_likelihood for w in parts])
        blocks.append(summarise(weights.T, first=len(blocks) * BLOCK))
        tick(len(blocks[-1].values))
    return replace(join(blocks), cost=torch.full((len(x),), draws, device=x.device))


@torch.no_grad()
def compare_priors(
    pair: Pair,
    x: Tensor,
    priors: Mapping[str, dist.Distribution | None],
    *,
    draws: int,
    encoded: Encoded | None = None,
    seed: int = 0,
    tick: Callable[[int], None] = lambda _: None,
) -> dict[str, Evidence]:
    """log p(x) under several priors with the same draws, so that their differences are paired.

    Args:
        pair, x, draws, seed: as :func:`importance_evidence`.
        priors: p(z) by name; ``None`` is the model's own.
        encoded: q(z | x) of the rows, if it is known.
        tick: called with the number of rows that are done, block by block.

    Raises:
        InputError: with fewer than two draws.
    """
    check_draws(draws)
    columns: dict[str, list[Evidence]] = {name: [] for name in priors}
    sources = _sources(pair, x, encoded)
    for rows, parts in zip(
        _blocks(pair, x), weighted_blocks(pair, x, sources, draws=draws, seed=seed), strict=True
    ):
        weights: dict[str, list[Tensor]] = {name: [] for name in priors}
        for part in parts:
            for name, prior in priors.items():
                weights[name].append(log_weights_of_guide(part, prior))
        for name, blocks in columns.items():
            blocks.append(summarise(torch.cat(weights[name]).T, first=len(blocks) * BLOCK))
        tick(len(rows))
    notes = support_notes(pair, x, priors, sources[0])
    cost = torch.full((len(x),), draws, device=x.device)
    results = {
        name: replace(join(blocks), notes=notes[name], cost=cost)
        for name, blocks in columns.items()
    }
    rows = _blocks(pair, x)[0]
    if not pair.traits.has_other_latents(rows) or not (points := pair.traits.points(rows)):
        return results
    note = (
        f"The guide has a point at {', '.join(points)} and no density: log p(x) is that given its "
        "value there, whose prior is left out, and no bound on log p(x) as such. Use a guide with "
        "a density there, such as a Normal."
    )
    return {
        name: replace(result, bound=None, notes=(*result.notes, note))
        for name, result in results.items()
    }


def check_draws(draws: int) -> None:
    """Raise for fewer draws than a standard error takes."""
    if draws < 2:
        raise InputError(f"expected at least 2 draws for a standard error; got {draws}.")


def log_weights_of_guide(part: Weighted, prior: dist.Distribution | None) -> Tensor:
    """log p(x, z) − log q(z|x) of draws, ``(S, B)``, with ``prior`` for p(z) if there is one."""
    log_prior = part.log_prior if prior is None else prior.log_prob(part.z)
    return part.log_likelihood + log_prior - part.log_guide


@torch.no_grad()
def support_notes(
    pair: Pair,
    x: Tensor,
    priors: Mapping[str, dist.Distribution | None],
    guide: dist.Distribution | None,
) -> dict[str, tuple[str, ...]]:
    """A sentence for each prior that gives mass to a part of the space the guide leaves out.

    Args:
        pair, x, priors: as :func:`compare_priors`.
        guide: q(z | x) of the first ``BLOCK`` of rows, as `drawn_from` has it.
    """
    rows = _blocks(pair, x)[0]
    # Then there is no one density a row to compare with p(z).
    if pair.traits.has_other_latents(rows) or pair.traits.draws_for_all(rows):
        return dict.fromkeys(priors, ())
    with seeded(0, "support notes"):
        if guide is None:  # something is left out by a mask
            guide = pair.guide_density.of((rows,), filled=False)
        own = None
        if None in priors.values():
            own = pair.prior(rows[:1] if pair.traits.takes_any_number_of_rows(rows) else rows)
    sources = {name: own if prior is None else prior for name, prior in priors.items()}
    return {name: _support_note(guide, p) for name, p in sources.items() if p is not None}


def as_density(prior: Prior, units: int) -> dist.Distribution:
    """The density that stands in the prior's place.

    Args:
        prior: p(z) for one row, a module whose forward returns it, or a result that has it as its
            ``distribution``.
        units: number of latent units at the pair's sites.

    Returns:
        the density, in its own dtype.

    Raises:
        InputError: if it is none of these, or not over as many units.
    """
    density: object = prior
    if isinstance(prior, nn.Module):
        density = prior()
    elif not isinstance(prior, torch.distributions.Distribution):
        density = getattr(prior, "distribution", None)
    if not isinstance(density, torch.distributions.Distribution):
        raise InputError(
            "expected a distribution as prior=, a module whose forward returns one, or the result "
            f"of fit_ex_post_prior; got {type(prior).__name__}. Give one of these."
        )
    batch, event = tuple(density.batch_shape), tuple(density.event_shape)
    if batch not in ((), (1,)) or event != (units,):
        raise InputError(
            f"expected as prior= a distribution with batch shape () and event shape ({units},), as "
            f"many as the pair has latent units; got {batch} and {event}. Declare the units as "
            "event dimensions with .to_event(1), or name the sites that are meant with site=."
        )
    return declared(density)


@torch.no_grad()
def latent_units(pair: Pair, x: Tensor) -> int:
    """Number of latent units at the pair's sites."""
    return sum(pair.traits.units(_blocks(pair, x)[0]))


def left_out(guide: dist.Distribution, prior: dist.Distribution) -> float:
    """The share of the prior's draws that lie outside the guide's support, over its rows.

    Raises:
        InputError: if the prior is not over the guide's units.
    """
    prior = as_density(prior, guide.event_shape.numel())
    with seeded(0, "probes of the support"):
        z = prior.sample(torch.Size([PROBES])).reshape(PROBES, 1, -1)
    inside = guide.support.check(z.expand(PROBES, guide.batch_shape[0], -1))
    return 1 - float(inside.double().mean())


def _support_note(guide: dist.Distribution, prior: dist.Distribution) -> tuple[str, ...]:
    share = left_out(guide, prior)
    if share == 0:
        return ()
    return (
        f"The guide's support leaves out {share:.0%} of the prior's draws: posterior mass there is "
        "missed, by an amount that no importance weight shows, and log p(x) is higher than "
        "estimated. "
        "Use a guide with the prior's support, or method='prior'.",
    )


def weighted_draws(
    pair: Pair, x: Tensor, *, draws: int, seed: int, encoded: Encoded | None = None
) -> Iterator[Weighted]:
    """Draws from the guide with the three terms of their weights, block by block of ``x``.

    Args:
        pair, x, draws, seed, encoded: as :func:`compare_priors`.
    """
    for parts in weighted_blocks(pair, x, _sources(pair, x, encoded), draws=draws, seed=seed):
        whole = list(parts)
        yield Weighted(
            *(torch.cat([getattr(p, name) for p in whole]) for name in Weighted.__annotations__)
        )


def weighted_blocks(
    pair: Pair,
    x: Tensor,
    sources: Sequence[dist.Distribution | None],
    *,
    draws: int,
    seed: int,
) -> Iterator[Iterator[Weighted]]:
    """For each ``BLOCK`` of data points its draws, ``STRIDE`` at a time, made as they are read.

    The draws that are held at once grow neither with their number nor with that of data points.

    Args:
        sources: what z is drawn from in each block, as `weigh` takes it.
    """
    for index, (rows, source) in enumerate(zip(_blocks(pair, x), sources, strict=True)):
        yield _parts(pair, rows, source, draws, seed, index)


def _blocks(pair: Pair, x: Tensor) -> Sequence[Tensor]:
    """Blocks of ``BLOCK`` rows; one block of all rows if the pair takes nothing else."""
    return x.split(BLOCK) if pair.traits.takes_any_number_of_rows(x) else (x,)


@torch.no_grad()
def _sources(pair: Pair, x: Tensor, encoded: Encoded | None) -> list[dist.Distribution | None]:
    """What the codes of each block are drawn from; see `drawn_from`."""
    blocks = _blocks(pair, x)
    if encoded is None:
        return [drawn_from(pair, rows) for rows in blocks]
    starts = range(0, len(x), len(blocks[0]))
    return [
        drawn_from(pair, rows, encoded.take(slice(start, start + len(rows))))
        for start, rows in zip(starts, blocks, strict=True)
    ]


def _parts(
    pair: Pair, rows: Tensor, source: dist.Distribution | None, draws: int, seed: int, block: int
) -> Iterator[Weighted]:
    for part, start in enumerate(range(0, draws, STRIDE)):
        with torch.no_grad(), seeded(seed, "weighted draws", block, part):
            weighted = weigh(pair, rows, min(STRIDE, draws - start), source=source)
        yield weighted


def log_joint_of_draws(pair: Pair, rows: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x|z) and log p(z), each ``(S, B)``, for S draws, ``(S, B, D)``, at each of B rows."""
    s, b, d = z.shape
    repeated = rows.expand(s, *rows.shape).flatten(0, 1)
    likelihood, prior = pair.log_joint(repeated, z.reshape(s * b, d))
    return likelihood.view(s, b), prior.view(s, b)
