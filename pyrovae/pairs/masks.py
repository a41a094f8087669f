"""Masks at sample sites: which parts of a row there are.

A part that a mask leaves out of a latent site, in model and guide alike, is one that the row does
not have, such as a step beyond the end of a sequence. Nothing is known of it but its prior: so its
prior is its posterior too, and its log density counts the same in p as in q.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture import families


def unmasked(distribution: dist.Distribution) -> dist.Distribution:
    """The same distribution with no mask in it.

    >>> unmasked(dist.Normal(torch.zeros(3), 1.0).mask(False).to_event(1)).log_prob(torch.ones(3))
    tensor(-4.2568)
    """
    if isinstance(distribution, dist.MaskedDistribution):
        return unmasked(distribution.base_dist)
    if isinstance(distribution, torch.distributions.Independent):
        inner = unmasked(distribution.base_dist)
        if inner is not distribution.base_dist:
            return inner.to_event(distribution.reinterpreted_batch_ndims)
    return distribution


def elements(site: Any) -> tuple[dist.Distribution, Tensor | None]:
    """The parts of a sample site that a mask can tell apart.

    Args:
        site: a message, or a node of a trace.

    Returns:
        the distribution without ``.to_event`` and masks, whose batch shape has an entry for each
        part, and a mask of that shape, true where there is one; ``None`` if there are all.
    """
    fn = site["fn"]
    masks = [(site["mask"], len(fn.batch_shape))]  # each with the rank of what it is a mask of
    while isinstance(fn, dist.MaskedDistribution | torch.distributions.Independent):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, len(fn.batch_shape)))
        fn = fn.base_dist
    present: Tensor | None = None
    for mask, rank in masks:
        if mask is None or mask is True:
            continue
        whole = torch.as_tensor(mask)
        whole = whole.reshape(whole.shape + (1,) * (len(fn.batch_shape) - rank))
        present = whole if present is None else present.to(whole.device) & whole
    if present is None or bool(present.all()):
        return fn, None
    return fn, present.expand(fn.batch_shape)


def redrawn(site: Any, value: Tensor) -> Tensor:
    """A value of a site with the parts that a mask leaves out drawn anew, without the mask."""
    base, present = elements(site)
    if present is None:
        return value
    present = present.reshape(present.shape + (1,) * len(base.event_shape))
    return torch.where(present.to(value.device), value, unmasked(site["fn"])())


def masked_like(new: dist.Distribution, old: dist.Distribution) -> dist.Distribution | None:
    """A distribution with the masks of another of its shape; ``None`` if its units are not its own.

    Args:
        new: batch and event shape of ``old``, without a mask.
        old: a distribution that may have masks, for the rows or for single units.
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
