"""log p(x) of any pair: one function over the ways to estimate it."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import pyro.distributions as dist

from pyrovae.batches import Data, all_rows
from pyrovae.evidence.importance import Proposal, importance_evidence
from pyrovae.evidence.result import Evidence
from pyrovae.models.pair import Pair, PyroFunction, measuring

Method = Literal["importance", "prior"]


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
        method: ``"importance"``, the K-sample lower bound with the guide as proposal; ``"prior"``,
            the same with draws from p(z): the infinite mixture, literally.
        draws: importance draws K for each data point.
        prior: stands in the place of the model's p(z), as an ex-post prior does.
        site: name of the latent site.
        observed: name of the observed site; found by itself if there is just one.
        seed: names the draws; the result depends on it and not on how the data are batched.

    Warns:
        UserWarning: in words, where k̂ > 0.7 or a guide's support misses the posterior.

    Raises:
        ValueError: for an unknown method, or a pair without the sites named.

    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(4)
    >>> estimate = log_evidence(vae.model, vae.guide, x, draws=10)
    >>> bool((estimate.values - exact.log_prob(x)).abs().max() < 1e-9)  # the guide is exact
    True
    """
    if method not in get_args(Method):
        raise ValueError(f"expected a method out of {get_args(Method)}; got {method!r}.")
    x = all_rows(data)[0]
    pair = Pair(model, guide, site, observed)
    with measuring(model, guide):
        proposal: Proposal = "prior" if method == "prior" else "guide"
        result = importance_evidence(
            pair, x, draws=draws, prior=prior, proposal=proposal, seed=seed
        )
    if concerns := result.concerns():
        warnings.warn("\n".join(concerns), stacklevel=2)
    return result
