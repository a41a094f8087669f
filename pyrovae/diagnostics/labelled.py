"""Draws of a pair in the groups, dimensions and coordinates of ArviZ's schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.arviz_adapter import Array, to_arviz
from pyrovae.evidence.importance import weighted_draws
from pyrovae.models.pair import Pair, Weighted
from pyrovae.randomness import derived_seed, seeded

EVENT_DIMS = {0: (), 1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}


@dataclass(frozen=True)
class Labelled:
    """Arrays of one pair on some rows of data, ready to be labelled.

    Args:
        groups: ArviZ group → variable → array.
        dims: variable → names of the dimensions after ``(chain, draw)``.
        coords: dimension → labels.
        attrs: what the draws are.
    """

    groups: Mapping[str, Mapping[str, Array]]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, list[int]]
    attrs: Mapping[str, str | int | float]

    def to_arviz(self) -> Any:
        """``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x."""
        return to_arviz(self.groups, dims=self.dims, coords=self.coords, attrs=self.attrs)


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
    importance weights log p(x|z) p(z) / q(z|x) that turn them into draws from p(z | x).

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
    data = pair.observe(x)
    z, event = pair.name, _event_dims(data.dim() - 1)
    groups = {
        "posterior": {z: _chain(posterior.z)},
        "log_likelihood": {"x": _chain(posterior.log_likelihood)},
        "sample_stats": {"log_weight": _chain(log_weight)},
        "posterior_predictive": {"x": _chain(predictive)},
        "prior": {z: _chain(codes)},
        "prior_predictive": {"x": _chain(prior_predictive)},
        "observed_data": {"x": data.cpu().numpy()},
    }
    return Labelled(
        groups,
        dims={z: ("datum", "unit"), "x": ("datum", *event), "log_weight": ("datum",)},
        coords={
            "datum": numbers or list(range(len(x))),
            "unit": list(range(posterior.z.shape[-1])),
        },
        attrs={"inference_library": "pyrovae", "draws_from": "guide", "seed": seed},
    )


def _predict(pair: Pair, x: Tensor, z: Tensor) -> Tensor:
    return torch.stack([pair.decode(x, codes).sample() for codes in z])


def _chain(draws: Tensor) -> Array:
    return draws.unsqueeze(0).cpu().numpy()


def _event_dims(count: int) -> tuple[str, ...]:
    return EVENT_DIMS.get(count, tuple(f"axis_{axis}" for axis in range(count)))
