"""Draws of the guide's latent sites, with the terms of their importance weights and of the ELBO."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch, repeat_rows, row_count, take_rows
from pyrovae.pairs.guide_density import Encoded
from pyrovae.pairs.joint_sites import code_at
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.shared_draws import together
from pyrovae.pairs.site_scores import masked_sites, total
from pyrovae.randomness import seeded

ROWS = 16_384  # rows that go through the model at once, at most
ROWS_BYTES = 1 << 24  # of data that go through the model at once; more is slow to allocate


@dataclass(frozen=True)
class Weighted:
    """Draws from the guide at some data points, with the terms of their importance weights.

    The weight of a draw is p(x|z) p(z) / q(z|x).

    Args:
        z: draws, shape ``(S, B, D)``.
        log_likelihood, log_prior, log_guide: log p(x|z), log p(z), log q(z|x), each ``(S, B)``. If
            the guide has other latent sites, their p/q is a factor of the likelihood.
    """

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor


def drawn_from(
    pair: Pair, x: Tensor | Batch, encoded: Encoded | None = None
) -> dist.Distribution | None:
    """What codes are drawn from to be weighed: q(z | x), batch shape ``(B,)``.

    It is none where the guide has other latent sites, or where a mask leaves something out: then
    all sites are drawn together, in a run of the guide for each draw.

    Args:
        pair: model and guide.
        x: rows, shape ``(B, ...)``.
        encoded: q(z | x) of these rows, if it is known.
    """
    batch = as_batch(x)
    if pair.traits.has_other_latents(batch):
        return None
    if encoded is not None:
        return None if encoded.masked else encoded.density
    with seeded(0, "source of codes"):
        readings = pair.guide_reader.read(batch)
        if pair.guide_density.leaves_out(readings):
            return None
        return pair.guide_density.of(batch, readings)


def weigh(
    pair: Pair, x: Tensor | Batch, draws: int, *, source: dist.Distribution | None
) -> Weighted:
    """Draws for each row, with the terms of their importance weights.

    Without a source all latent sites of the guide are drawn together. Those that only the model has
    are drawn from it, or summed over if they are discrete.

    Args:
        pair: model and guide.
        x: rows, shape ``(B, ...)``.
        draws: number S of draws for each row.
        source: what z is drawn from, batch shape ``(B,)``: as `drawn_from` has it, or another one.
    """
    batch = as_batch(x)
    repeatable = pair.traits.takes_any_number_of_rows(batch)
    if pair.traits.draws_for_all(batch):  # anew for each of the draws
        repeatable = False
    at_once = max(1, rows_at_once(batch) // row_count(batch)) if repeatable else 1
    if source is None:
        columns = zip(
            *(
                [term.unflatten(0, (len(part), -1)) for term in _with_guide(pair, repeated)]
                for part in torch.arange(draws).split(at_once)
                for repeated in [repeat_rows(batch, len(part))]
            ),
            strict=True,
        )
        return Weighted(*(torch.cat(column) for column in columns))
    z = source.sample(torch.Size([draws]))
    scores: list[list[Tensor]] = []
    repeated = repeat_rows(batch, min(at_once, draws))
    for part in z.split(at_once):
        rows = take_rows(repeated, slice(0, len(part) * row_count(batch)))
        with _unchecked() if scores else nullcontext():  # the same data as in the first part
            terms = pair.log_joint(rows, part.flatten(0, 1))
        scores.append([term.view(part.shape[:2]) for term in terms])
    likelihood, prior = (torch.cat(parts) for parts in zip(*scores, strict=True))
    return Weighted(z, likelihood, prior, source.log_prob(z))


def elbo_terms(pair: Pair, x: Tensor | Batch, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x | z) as it stands in the ELBO, and log p(z), row by row, each of shape ``(B,)``.

    If the guide has other latent sites u, the first is log p(x, u | z) − log q(u | z, x) at a draw
    of u, whose mean is at most log p(x | z).

    Args:
        pair: model and guide.
        x: rows, shape ``(B, ...)``.
        z: one code for each row, shape ``(B, D)``.
    """
    batch = as_batch(x)
    if not pair.traits.has_other_latents(batch):
        return pair.log_joint(batch, z)
    blocks = together(pair.traits, batch, pair.by_site(batch, z), draw_shared=False)
    parts = [_with_guide(pair, rows, codes)[1:3] for rows, codes, _ in blocks]
    likelihood, prior = (torch.cat(column) for column in zip(*parts, strict=True))
    return likelihood, prior


def _with_guide(
    pair: Pair, batch: Batch, codes: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One draw of all sites of the guide for each row, with the terms of its weight.

    Args:
        pair: model and guide.
        batch: rows.
        codes: what to put at the latent sites; drawn too if not given.

    Returns:
        codes, log p − log q of all other sites, log p and log q of the codes.
    """
    code_sites = {name for site in pair.sites for name in (site, f"{site}_unconstrained")}
    points = pair.traits.points(batch)
    parts = []
    for reading in pair.guide_reader.read(batch, codes=codes):
        rows = slice(0, reading.batch_rows)
        values = {name: reading.nodes[name]["value"] for name in reading.latent}
        guide, complete = total(reading, set(reading.latent) & code_sites), reading
        masked = masked_sites(reading)
        if masked:
            redraw = [name for name in masked if name not in (codes or ())]
            complete = pair.scorer.fill(reading, batch, values, redraw=redraw)
            filled = [name for name in masked if name in complete.latent]
            values |= {name: complete.nodes[name]["value"] for name in filled}
            guide = guide + total(complete, code_sites, "absent")[rows]
        z = code_at(complete, pair.sites)[rows]
        likelihood, prior = pair.scorer.score(
            batch, values=values, indices=reading.indices, points=points
        )
        others = set(reading.latent) - code_sites - set(points)
        parts.append((z, likelihood[rows] - total(reading, others), prior[rows], guide))
    z, rest, prior, guide = (torch.cat(column) for column in zip(*parts, strict=True))
    return z, rest, prior, guide


def rows_at_once(batch: Batch) -> int:
    """How many rows of the size of these go through the model at once."""
    size = max(array[:1].numel() * array.element_size() for array in batch)
    return max(1, min(ROWS, ROWS_BYTES // max(1, size)))


def _unchecked() -> AbstractContextManager[object]:
    """Turn off checks of arguments, which cost as much as a likelihood itself."""
    unchecked: AbstractContextManager[object] = pyro.settings.context(
        validate_distributions_pyro=False, validate_distributions_torch=False
    )
    return unchecked
