"""log p(x) of any pair: one function over the ways to estimate it."""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch

from pyrovae.evidence.importance import Evidence, importance_evidence
from pyrovae.models.encoding import Data, batches
from pyrovae.models.pair import Pair, PyroFunction, measuring

Method = Literal["importance"]


def log_evidence(
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    method: Method = "importance",
    draws: int = 1000,
    prior: dist.Distribution | None = None,
    site: str = "z",
    observed: str | None = None,
    seed: int = 0,
) -> Evidence:
    """log p(x) of each data point, in nats, under the prior and the likelihood that the model has.

    Args:
        model, guide: any Pyro pair.
        data: rows, shape ``(N, ...)``.
        method: ``"importance"``, the K-sample lower bound with the guide as proposal.
        draws: importance draws K for each data point.
        prior: stands in the place of the model's p(z), as an ex-post prior does.
        site: name of the latent site.
        observed: name of the observed site; found by itself if there is just one.
        seed: names the draws; the result depends on it and not on how the data are batched.

    Raises:
        ValueError: for an unknown method, or a pair without the sites named.

    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(4)
    >>> estimate = log_evidence(vae.model, vae.guide, x, draws=10)
    >>> bool((estimate.values - exact.log_prob(x)).abs().max() < 1e-9)  # the guide is exact
    True
    """
    if method != "importance":
        raise ValueError(f"expected method 'importance'; got {method!r}.")
    x = torch.cat(list(batches(data, 65_536)))
    pair = Pair(model, guide, site, observed)
    with measuring(model, guide):
        return importance_evidence(pair, x, draws=draws, prior=prior, seed=seed)
