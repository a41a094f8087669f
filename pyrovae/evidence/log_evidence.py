"""log p(x) of any pair: one function over the ways to estimate it."""

from __future__ import annotations

import warnings
from typing import Literal, get_args, overload

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.batches import Data, all_rows
from pyrovae.errors import InputError
from pyrovae.evidence.annealed import Annealing, annealed_evidence
from pyrovae.evidence.importance import BLOCK, check_prior, importance_evidence
from pyrovae.evidence.result import Evidence
from pyrovae.evidence.sandwich import BothSides, Sandwich, sandwich_evidence
from pyrovae.isolation import plain
from pyrovae.models.pair import Pair, PyroFunction, measuring
from pyrovae.models.rows import over_rows
from pyrovae.models.sites import Reader
from pyrovae.randomness import check_seed

OneSided = Literal["importance", "prior", "annealed"]
Method = Literal["importance", "prior", "annealed", "sandwich"]

DRAWS, CHAINS = 1000, 32


@overload
def log_evidence(
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    method: OneSided | Annealing = "importance",
    draws: int | None = None,
    prior: dist.Distribution | None = None,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Evidence: ...


@overload
def log_evidence(
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    method: Literal["sandwich"] | BothSides,
    draws: int | None = None,
    prior: dist.Distribution | None = None,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Sandwich: ...


@plain()
def log_evidence(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    method: Method | Annealing | BothSides = "importance",
    draws: int | None = None,
    prior: dist.Distribution | None = None,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Evidence | Sandwich:
    """log p(x) of each data point, in nats, under the prior and the likelihood that the model has.

    ================== ======================================================= ============
    ``method``         what it does                                            errs
    ================== ======================================================= ============
    ``"importance"``   K draws from the guide, weighted                        low
    ``"prior"``        K draws from p(z): the infinite mixture, literally      low, by most
    ``"annealed"``     chains from the guide to the posterior                  low, by least
    an ``Annealing``   the same, with settings of your own                     low
    ``"sandwich"``     annealing both ways, on data that the model simulates   low and high
    ================== ======================================================= ============

    Args:
        model, guide: any Pyro pair.
        data: rows, shape ``(N, ...)``; for ``"sandwich"`` they only say how many data points to
            simulate and of what shape.
        method: as above; ``BothSides(Annealing(...))`` is a sandwich with settings of your own.
        draws: importance draws (by default 1000) or annealed chains (32) for each data point.
        prior: stands in the place of the model's p(z), as an ex-post prior does.
        site: name of the latent site, or of several as one vector. All latent sites of the guide
            are drawn and weighed together; ``site`` says where ``prior`` stands.
        observed: name of the observed site that is decoded; log p(x) is that of all of them.
        data_plate: name of the plate over the data; found by its number of rows if not given.
        seed: names the draws; the result depends on it and not on how the data are batched.

    Returns:
        :class:`Evidence`; for ``"sandwich"`` a :class:`Sandwich` with ``lower``, ``upper`` and
        ``gap()``.

    Warns:
        UserWarning: in words, where k̂ is above its limit or unknown, a guide's support misses the
            posterior, or chains hardly move.

    Raises:
        InputError: for an unknown method, a pair without the sites named, a ``prior`` that is not
            over as many units as they have, a sandwich where data cannot be simulated, or chains
            that never move.

    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(4)
    >>> estimate = log_evidence(vae.model, vae.guide, x, draws=10)
    >>> bool((estimate.values - exact.log_prob(x)).abs().max() < 1e-9)  # the guide is exact
    True
    """
    check_seed(seed)
    if not isinstance(method, Annealing | BothSides) and method not in get_args(Method):
        raise InputError(
            f"expected a method out of {get_args(Method)}, an Annealing or a BothSides; got "
            f"{method!r}."
        )
    whole = Pair(model, guide, site, observed, data_plate)
    pair, (x,) = over_rows(whole, data)
    chains = CHAINS if draws is None else draws
    result: Evidence | Sandwich
    with measuring(model, guide):
        if prior is not None:
            check_prior(prior, _units(pair, x))
        if method == "importance" or method == "prior":
            result = importance_evidence(
                pair,
                x,
                draws=DRAWS if draws is None else draws,
                prior=prior,
                proposal="guide" if method == "importance" else "prior",
                seed=seed,
            )
        elif method == "sandwich" or isinstance(method, BothSides):
            annealing = method.annealing if isinstance(method, BothSides) else None
            result = sandwich_evidence(
                whole, all_rows(data), chains=chains, annealing=annealing, prior=prior, seed=seed
            )
        else:
            annealing = method if isinstance(method, Annealing) else None
            result = annealed_evidence(
                pair, x, chains=chains, annealing=annealing, prior=prior, seed=seed
            )
    if concerns := result.concerns():
        warnings.warn("\n".join(concerns), stacklevel=3)
    return result


@torch.no_grad()
def _units(pair: Pair, x: Tensor) -> int:
    """Number of latent units at the sites, from a run of the model as far as these."""
    rows = pair.blocks(x, BLOCK)[0]
    reading = Reader(pair.model, "model", pair.data_plate).read((rows,), until=pair.sites)[0]
    return sum(reading.code(site).shape[1] for site in pair.sites)
