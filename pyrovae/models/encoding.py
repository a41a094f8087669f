"""From data to the guide's distributions, and from those to the aggregated posterior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.batches import Data, as_batches, check_arguments
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.families import concatenate, convert
from pyrovae.models.pair import Pair
from pyrovae.models.state import PyroFunction, measuring


def encode(
    guide: PyroFunction,
    data: Data,
    *,
    site: str | tuple[str, ...] = "z",
    data_plate: str | None = None,
    batch_size: int = 4096,
) -> dist.Distribution:
    """q(z | x_n) for every data point, a batch at a time.

    Args:
        guide: any Pyro guide with a latent site in a data plate.
        data: rows, shape ``(N, ...)``, as :func:`pyrovae.fit` takes them; a tuple where the guide
            takes more arguments, ``guide(x, y)``. Of a ``DataLoader`` the data set is encoded, in
            its order.
        site: name of the latent site; of several, to take them as one vector. Where one of these
            depends on the draws of another, the result is an
            :class:`~pyrovae.models.ancestral.Ancestral`, which goes on running the guide.
        data_plate: name of the plate over the data; by default the one with as many rows as a
            batch.
        batch_size: rows that go through the guide at once; the result does not depend on it. A
            guide with a plate of fixed size takes all rows: give it their number.

    Returns:
        the guide's distribution, batch shape ``(N,)``, event shape ``(D,)``, without gradient. An
        event of more dimensions, or more plates than the data's, are laid out as one vector.

    Raises:
        InputError: for data that are refused or have other arguments than the guide, rows without
            an order of their own, as a loader that draws them again and again has them; if the
            guide has no such site, the site depends on draws at one that is not
            named, or its family cannot be concatenated.
    """
    pair = Pair(_no_model, guide, site, data_plate=data_plate)
    parts = []
    with torch.no_grad(), measuring(guide):
        for batch in as_batches(data, batch_size, name="data").ordered():
            check_arguments(guide, batch, "guide")
            parts.append(convert(pair.encode(batch), torch.Tensor.detach))
    return concatenate(parts)


def _no_model(*batch: Tensor) -> None:
    """What stands in a pair of which only the guide is run."""


def aggregate(
    guide: PyroFunction,
    data: Data,
    *,
    site: str | tuple[str, ...] = "z",
    data_plate: str | None = None,
    weights: Tensor | None = None,
    batch_size: int = 4096,
) -> AggregatedPosterior:
    """The aggregated posterior q_agg(z) = Σ_n w_n q(z | x_n) of a data set.

    Args:
        guide, data, site, data_plate, batch_size: as :func:`encode`.
        weights: w_n, shape ``(N,)``, normalised by the mixture; equal if not given.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae(data_dim=6, latent=2)
    >>> agg = pv.aggregate(exact.vae().guide, exact.sample(100))
    >>> agg.log_prob(agg.sample((3,))).shape
    torch.Size([3])
    """
    encoding = encode(guide, data, site=site, data_plate=data_plate, batch_size=batch_size)
    return AggregatedPosterior(encoding, weights)
