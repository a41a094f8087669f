"""p(z): the model's density at the latent sites, where it is one for all rows."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.pairs.site_density import SiteDensity, fixing
from pyrovae.pairs.trace_reader import Reader


def prior_for_all(model: Reader, sites: tuple[str, ...], batch: Batch) -> dist.Distribution:
    """p(z), batch shape ``(1,)``, checked to be the same for some rows.

    Args:
        model: runs the model.
        sites: the latent sites that make up a code.
        batch: at least two rows.

    Raises:
        InputError: as :meth:`~pyrovae.pairs.pair.Pair.prior`.
    """
    in_model = SiteDensity(model, sites)
    readings = model.read(batch)
    density = in_model.find(batch, readings, parts=1)
    first = readings[0]
    code = in_model.codes(first)[:1]
    if density is None or not _same_for_all(density, code):
        others = [name for name in first.latent if name not in sites]
        shared = [name for name in others if name in first.shared]
        remedy = f" {fixing('model', shared)}" if shared else ""
        raise InputError(
            f"expected one prior p({', '.join(sites)}) for all rows; got one that depends "
            f"on the data{f' or on the sites {others}' if others else ''}. Compare the "
            f"aggregated posterior with a prior of your own by passing prior=.{remedy}"
        )
    try:
        return families.take(density, slice(0, 1))
    except ValueError:  # not made of parameter tensors: a mixture, a flow
        return in_model.at_sites(model.read(take_rows(batch, slice(0, 1)))[0])


def _same_for_all(density: dist.Distribution, code: Tensor) -> bool:
    """Whether all rows have the same density at a code, shape ``(1, D)``."""
    values = density.log_prob(code.expand(*density.batch_shape, -1))
    return torch.allclose(values, values[:1].expand_as(values))
