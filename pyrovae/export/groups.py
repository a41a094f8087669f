"""Draws of a pair in the groups, dimensions and coordinates of ArviZ's schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.arviz_adapter import Array, dimension_names, to_arviz, variable_names
from pyrovae.evidence import weighted_draws
from pyrovae.pairs import Pair, Weighted
from pyrovae.randomness import derived_seed, seeded

EVENT_DIMS = {0: (), 1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}
OURS = ("log_weight", "log_p_x_given_z")  # variables beside those of the sites
ESTIMATES, OF_DRAWS = 25, 40  # of log p(x) for each row, as many as give a k̂, and draws of each
NOTE = (
    "log p(x) of each row with the model's parameters as they are, estimated anew for each draw "
    f"from {OF_DRAWS} importance draws of its own. As there is one draw of the parameters, "
    "leave-one-out and WAIC are the sum of log p(x) over the rows, less the noise of the "
    "estimates: they compare models on data not seen in training, and say nothing of what a row "
    "that was seen has taught. log p(x | z) is log_p_x_given_z of sample_stats."
)


@dataclass(frozen=True)
class Labelled:
    """Arrays of one pair on some rows of data, ready to be labelled.

    Args:
        groups: ArviZ group → variable → array.
        dims: variable → names of the dimensions after ``(chain, draw)``.
        coords: dimension → labels.
        attrs: what the draws are.
        notes: group → what its reader has to know.
    """

    groups: Mapping[str, Mapping[str, Array]]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, list[int]]
    attrs: Mapping[str, str | int | float]
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_arviz(self) -> Any:
        """``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x."""
        return to_arviz(
            self.groups, dims=self.dims, coords=self.coords, attrs=self.attrs, notes=self.notes
        )


@torch.no_grad()
def label(
    pair: Pair,
    x: Tensor,
    *,
    draws: int,
    prior: dist.Distribution | None = None,
    numbers: list[int] | None = None,
    seed: int = 0,
) -> Labelled:
    """Draws from guide, likelihood and prior for rows of data.

    The draws from the guide are independent, so there is one chain. ``sample_stats`` holds the log
    importance weights log p(x|z) p(z) / q(z|x) that turn them into draws from p(z | x), and
    log p(x | z) itself. ``log_likelihood`` is log p(x) of each row, which is what leaving a row out
    is about: given its own code a row is not left out.

    Variables have the names of the pair's sites. One that ArviZ has a use for itself, such as
    "draw", ends in ``_site``, and a slash, which would make a group of its own in a file, becomes a
    point. A dimension that has the name of a site ends in ``_dim``.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        draws: draws S for each row.
        prior: what to draw from where the pair's p(z) is not one density for all rows.
        numbers: what the rows are called, as their numbers in a larger data set; by default they
            are counted from 0.
        seed: names the draws.
    """
    blocks = list(weighted_draws(pair, x, draws=draws, seed=derived_seed(seed, "exported codes")))
    posterior = Weighted(
        *(torch.cat([getattr(b, field) for b in blocks], 1) for field in Weighted.__annotations__)
    )
    with seeded(seed, "exported predictions"):
        source = pair.prior(x) if prior is None else prior
        codes = source.sample(torch.Size([draws, len(x)])).view(posterior.z.shape)
        predictive = _predict(pair, x, posterior.z)
        prior_predictive = _predict(pair, x, codes)
    log_weight = posterior.log_likelihood + posterior.log_prior - posterior.log_guide
    estimates = _estimates(pair, x, seed)
    data = pair.observe(x)
    sites = (pair.name, pair.observed_name(x))
    z, observed = variable_names(sites, reserved=OURS)
    datum, unit, *event = dimension_names(
        ("datum", "unit", *_event_dims(data.dim() - 1)), (z, observed)
    )
    groups = {
        "posterior": {z: _chain(posterior.z)},
        "log_likelihood": {observed: _chain(estimates)},
        "sample_stats": {
            "log_weight": _chain(log_weight),
            "log_p_x_given_z": _chain(posterior.log_likelihood),
        },
        "posterior_predictive": {observed: _chain(predictive)},
        "prior": {z: _chain(codes)},
        "prior_predictive": {observed: _chain(prior_predictive)},
        "observed_data": {observed: data.cpu().numpy()},
    }
    return Labelled(
        groups,
        dims={
            z: (datum, unit),
            observed: (datum, *event),
            "log_weight": (datum,),
            "log_p_x_given_z": (datum,),
        },
        coords={
            datum: numbers or list(range(len(x))),
            unit: list(range(posterior.z.shape[-1])),
        },
        attrs={"inference_library": "pyrovae", "draws_from": "guide", "seed": seed},
        notes={"log_likelihood": NOTE},
    )


def _estimates(pair: Pair, x: Tensor, seed: int) -> Tensor:
    """Independent estimates of log p(x) of each row, shape ``(ESTIMATES, N)``."""
    blocks = weighted_draws(
        pair, x, draws=ESTIMATES * OF_DRAWS, seed=derived_seed(seed, "exported log p(x)")
    )
    columns = []
    for block in blocks:
        log_weight = block.log_likelihood + block.log_prior - block.log_guide
        of_draws = log_weight.unflatten(0, (ESTIMATES, OF_DRAWS))
        columns.append(of_draws.logsumexp(1) - math.log(OF_DRAWS))
    return torch.cat(columns, 1)


def _predict(pair: Pair, x: Tensor, z: Tensor) -> Tensor:
    return torch.stack([pair.decode(x, codes).sample() for codes in z])


def _chain(draws: Tensor) -> Array:
    return draws.unsqueeze(0).cpu().numpy()


def _event_dims(count: int) -> tuple[str, ...]:
    return EVENT_DIMS.get(count, tuple(f"axis_{axis}" for axis in range(count)))
