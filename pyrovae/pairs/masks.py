"""Masks at sample sites: which parts of a row are there.

A part that a mask leaves out of a latent site, in model and guide alike, is one that the row does
not have, such as a step after the end of a sequence. Only its prior is known: so its prior is its
posterior too, and its log density counts the same in p and in q.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture import families


def unmasked(distribution: dist.Distribution) -> dist.Distribution:
    """The same distribution without masks.

    >>> unmasked(dist.Normal(torch.zeros(3), 1.0).mask(False).to_event(1)).log_prob(torch.ones(3))
    tensor(-4.2568)
    """
    inner, dims, masked = distribution, [], False
    while isinstance(inner, dist.MaskedDistribution | torch.distributions.Independent):
        if isinstance(inner, dist.MaskedDistribution):
            masked = True
        else:
            dims.append(inner.reinterpreted_batch_ndims)
        inner = inner.base_dist
    if not masked:
        return distribution
    return inner.to_event(sum(dims)) if dims else inner


def elements(site: Any) -> tuple[dist.Distribution, Tensor | None]:
    """The parts of a sample site that a mask can leave out one by one.

    Args:
        site: a message of Pyro's, or a node of a trace.

    Returns:
        the distribution without ``.to_event`` and masks, whose batch shape has an entry for each
        part, and a mask of that shape, true where the part is present; ``None`` if all are.
    """
    fn = site["fn"]
    masks = [(site["mask"], len(fn.batch_shape))]  # each with the batch rank it was made for
    while isinstance(fn, dist.MaskedDistribution | torch.distributions.Independent):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, len(fn.batch_shape)))
        fn = fn.base_dist
    present: Tensor | None = None
    for mask, rank in masks:
        if mask is None or mask is True:
            continue
        full = torch.as_tensor(mask)
        full = full.reshape(full.shape + (1,) * (len(fn.batch_shape) - rank))
        present = full if present is None else present.to(full.device) & full
    if present is None or bool(present.all()):
        return fn, None
    return fn, present.expand(fn.batch_shape)


def redrawn(site: Any, value: Tensor) -> Tensor:
    """A value of a site, with the parts that a mask leaves out drawn anew, without the mask."""
    base, present = elements(site)
    if present is None:
        return value
    present = present.reshape(present.shape + (1,) * len(base.event_shape))
    return torch.where(present.to(value.device), value, unmasked(site["fn"])())


def masked_like(new: dist.Distribution, old: dist.Distribution) -> dist.Distribution | None:
    """A distribution with the masks of another; ``None`` if single units of it can't be masked.

    Args:
        new: of the batch and event shape of ``old``, without a mask.
        old: a distribution that may have masks, for whole rows or for single units.
    """
    if isinstance(old, dist.MaskedDistribution):
        inner = masked_like(new, old.base_dist)
        return None if inner is None else inner.mask(old._mask)
    if not isinstance(old, torch.distributions.Independent) or unmasked(old) is old:
        return new
    dims = old.reinterpreted_batch_ndims
    if not families.factorised(new) or dims != new.reinterpreted_batch_ndims:
        return None
    inner = masked_like(new.base_dist, old.base_dist)
    return None if inner is None else dist.Independent(inner, dims)
