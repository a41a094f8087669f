"""log p(x) of any pair: one function over the ways to estimate it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

from torch import nn

from pyrovae.data import Data
from pyrovae.errors import InputError
from pyrovae.evidence.annealed import CHAINS, Annealing, annealed_evidence
from pyrovae.evidence.automatic import automatic_evidence
from pyrovae.evidence.importance import as_density, importance_evidence, latent_units
from pyrovae.evidence.refined import refined_evidence
from pyrovae.evidence.result import Evidence
from pyrovae.models import Prior
from pyrovae.pairs import Pair, PyroFunction, measuring, over_rows
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed
from pyrovae.torch_modes import plain

Method = Literal["auto", "importance", "prior", "refined", "annealed"]

DRAWS = 1000
ESTIMATES: dict[str, Callable[..., Evidence]] = {
    "auto": automatic_evidence,
    "importance": partial(importance_evidence, proposal="guide"),
    "prior": partial(importance_evidence, proposal="prior"),
    "refined": refined_evidence,
}


@plain()
def log_evidence(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    method: Method | Annealing = "auto",
    draws: int | None = None,
    max_cost: int | None = None,
    prior: Prior | None = None,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    warn: bool = True,
    progress: bool | None = None,
) -> Evidence:
    """log p(x) of each data point, in nats, under the prior and the likelihood that the model has.

    ================== ======================================================= ============
    ``method``         what it does                                            errs
    ================== ======================================================= ============
    ``"auto"``         guide, refined or annealed, where k̂ says it is enough   low, by little
    ``"importance"``   K draws from the guide, weighted                        low
    ``"prior"``        K draws from p(z): the infinite mixture, literally      low, by most
    ``"refined"``      K draws around the modes of each log p(x, z), weighted  low, by little
    ``"annealed"``     chains from the guide to the posterior                  low, by least
    an ``Annealing``   the same, with settings of your own                     low
    ================== ======================================================= ============

    For bounds from both sides, on data that the model simulates, see
    :func:`~pyrovae.evidence.sandwich.sandwich`.

    Args:
        model, guide: any Pyro pair.
        data: rows, shape ``(N, ...)``.
        method: as above.
        draws: importance draws (by default 1000) or annealed chains (32) for each data point.
        max_cost: evaluations of log p(x, z) at a data point, one with its gradient for three, at
            which ``"auto"`` stops to look for better weights: it leaves the data point out of the
            mean and says so. A search for a proposal that was begun below it is ended, so that some
            20,000 may be added. By default there is no such cap.
        prior: stands in the place of the model's p(z): a density, a module whose forward returns
            one, or the result of :func:`pyrovae.fit_ex_post_prior`.
        site: name of the latent site, or of several as one vector. All latent sites of the guide
            are drawn and weighed together; ``site`` says where ``prior`` stands.
        observed: name of the observed site that is decoded; log p(x) is that of all of them.
        data_plate: name of the plate over the data; found by its number of rows if not given.
        seed: names the draws; the result depends on it and not on how the data are batched.
        warn: whether to warn of what ``concerns`` of the result says, which stands there anyway.
        progress: show a progress bar; by default if stderr is a terminal.

    Returns:
        one estimate a row, in the order of the data.

    Warns:
        UserWarning: in words, where k̂ is above its limit or unknown, a guide's support misses the
            posterior, or chains hardly move.

    Raises:
        InputError: for an unknown method, a pair without the sites named, a ``prior`` that is not
            over as many units as they have, or chains that never move.

    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(4)
    >>> estimate = log_evidence(vae.model, vae.guide, x, draws=10)
    >>> bool((estimate.values - exact.log_prob(x)).abs().max() < 1e-9)  # the guide is exact
    True
    """
    check_seed(seed)
    if not isinstance(method, Annealing) and method not in get_args(Method):
        raise InputError(
            f"expected a method out of {get_args(Method)} or an Annealing; got {method!r}. For "
            "bounds from both sides, on data that the model simulates, use "
            "pyrovae.sandwich(model, guide, like=data)."
        )
    if max_cost is not None and (method != "auto" or not max_cost >= 1):
        raise InputError(
            f"expected max_cost= of at least 1, and with method='auto'; got {max_cost} with "
            f"{method!r}. What the other methods cost is set by draws=, or by an Annealing."
        )
    pair, (x,) = over_rows(Pair(model, guide, site, observed, data_plate), data)
    with measuring(model, guide, *([prior] if isinstance(prior, nn.Module) else [])):
        if prior is not None:
            prior = as_density(prior, latent_units(pair, x))
        if method == "annealed" or isinstance(method, Annealing):
            annealing = method if isinstance(method, Annealing) else Annealing()
            if progress is not None:
                annealing = replace(annealing, progress=progress)
            chains = CHAINS if draws is None else draws
            result = annealed_evidence(
                pair, x, chains=chains, annealing=annealing, prior=prior, seed=seed
            )
        else:
            estimate = partial(ESTIMATES[method], draws=DRAWS if draws is None else draws)
            if method == "auto":
                estimate = partial(estimate, max_cost=max_cost)
            with progress_bar("log p(x)", len(x), progress=progress) as bar:
                result = estimate(pair, x, prior=prior, seed=seed, tick=bar.tick)
    if warn and (concerns := result.concerns):
        warnings.warn("\n".join(concerns), stacklevel=3)
    return result
