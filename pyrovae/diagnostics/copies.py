"""Whether samples copy training rows: how far a single row carries a code, and which rows do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.diagnostics.decoded_samples import expected
from pyrovae.diagnostics.neighbours import share
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.mixture import Mixture
from pyrovae.pairs import Pair, observe
from pyrovae.randomness import check_seed, seeded
from pyrovae.torch_modes import plain

DRAWS = 1000  # of each density
SHOWN, CARRIERS = 5, 3  # samples in a picture, and rows beside each
HELD_OUT = "held_out"


@dataclass(frozen=True, repr=False)
class Copies(Result):
    """How many codes are carried by one training row alone.

    Args:
        shares: share of draws from each density of which one training row has more than
            ``threshold`` of the responsibility; for ``"held_out"``, if it is there, that of the
            codes of rows that q_agg is not made of.
        threshold: of the responsibility.
    """

    shares: dict[str, Estimate]
    threshold: float


@dataclass(frozen=True, repr=False)
class Attributions(Result):
    """Decoded samples, and the training rows that carry their codes.

    Args:
        density: that the codes were drawn from.
        samples: E[x | z] of each, shape ``(S, ...)``.
        rows: the training rows most responsible for each code, shape ``(S, k, ...)``.
        index: their numbers, shape ``(S, k)``.
        weight: their responsibilities, shape ``(S, k)``.
    """

    density: str
    samples: Tensor
    rows: Tensor
    index: Tensor
    weight: Tensor


@torch.no_grad()
@plain()
def sample_copies(
    aggregated: Mixture,
    densities: Mapping[str, dist.Distribution],
    *,
    held_out: Tensor | None = None,
    threshold: float = 0.5,
    draws: int = DRAWS,
    seed: int = 0,
) -> Copies:
    r"""Share of draws from each density whose responsibility is carried by one training row.

    .. math:: P\Big(\max_n \frac{w_n q(z | x_n)}{q_{agg}(z)} > t\Big)

    A draw from raw q_agg that one row carries is a copy of that row, up to its encoding's noise.
    Far from all rows the nearest one carries a code alone, too, whatever it was drawn from: compare
    with codes of held-out rows, which copy nothing. Only what exceeds their share is copying.

    Args:
        aggregated: q_agg of the training rows.
        densities: over z, by name.
        held_out: codes of rows that q_agg is not made of, one draw of each, shape ``(M, D)``.
        threshold: t, at least 1/2, so that no more than one row can exceed it.
        draws: from each density.
        seed: names them.

    Raises:
        InputError: for a threshold outside [1/2, 1), no density, or fewer than one draw.

    >>> means = 9.0 * torch.eye(3)
    >>> q = Mixture(dist.Categorical(torch.ones(3)), dist.Normal(means, 1.0).to_event(1))
    >>> sample_copies(q, {"q_agg": q}).shares["q_agg"].value
    1.0
    """
    check_seed(seed)
    if not 0.5 <= threshold < 1 or draws < 1 or not densities:
        raise InputError(
            f"expected a threshold from 0.5 to below 1, draws and densities; got {threshold}, "
            f"{draws} and {list(densities)}. Take threshold=0.5 and {{'q_agg': agg}}, say."
        )
    shares = {}
    for number, (name, density) in enumerate(densities.items()):
        with seeded(seed, "codes that may be copies", number):
            z = density.sample(torch.Size([draws])).reshape(draws, -1)
        shares[name] = replace(_share(aggregated, z, threshold), over="draws")
    if held_out is not None:
        shares[HELD_OUT] = _share(aggregated, held_out, threshold)
    return Copies(shares, threshold)


def _share(aggregated: Mixture, z: Tensor, threshold: float) -> Estimate:
    """The share of codes that one row carries; one where q_agg has no density is no copy."""
    known = z[aggregated.log_prob(z) > -math.inf]
    carried = int((aggregated.responsibilities(known, top=1).weight > threshold).sum())
    return share(carried / len(z), 0.0, len(z))


def attributions(
    pair: Pair, x: Tensor, name: str, density: dist.Distribution, aggregated: Mixture, *, seed: int
) -> Attributions | None:
    """A few decoded samples with the training rows that carry them; ``None`` if none does.

    Args:
        pair: model and guide, called with rows alone.
        x: all training rows, shape ``(N, ...)``.
        name: of the density.
        density: over z.
        aggregated: q_agg of the rows.
        seed: names the draws.
    """
    with seeded(seed, "samples to attribute"):
        z = density.sample(torch.Size([10 * SHOWN])).reshape(10 * SHOWN, -1)
    z = z[aggregated.log_prob(z) > -math.inf][:SHOWN]
    if not len(z):
        return None
    found = aggregated.responsibilities(z, top=CARRIERS)
    with seeded(seed, "means of samples to attribute"):
        samples = expected(pair.decode(x[found.index[:, 0]], z))
    rows = observe(pair, x[found.index.flatten()])[1]
    return Attributions(
        name, samples, rows.unflatten(0, found.index.shape), found.index, found.weight
    )
