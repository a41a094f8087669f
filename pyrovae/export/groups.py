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
from pyrovae.display import Result
from pyrovae.evidence import weighted_draws
from pyrovae.pairs import Encoded, Pair, Weighted, observe
from pyrovae.randomness import derived_seed, seeded

EVENT_DIMS = {0: (), 1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}
RESERVED = ("log_weight", "log_p_x_given_z")  # names of variables that are no sites
ESTIMATES = 25  # of log p(x) for each row: the fewest that give a k̂
DRAWS = 40  # importance draws in each of these estimates
NOTE = (
    "log p(x) of each row with the model's parameters as they are, estimated for each draw from "
    f"{DRAWS} importance draws of its own. As there is one draw of the parameters, leave-one-out "
    "and WAIC are the sum of log p(x) over the rows, less the noise of the estimates: they compare "
    "models on data not seen in training, and say nothing about how much a training row has taught "
    "the model. log p(x | z) is log_p_x_given_z of sample_stats."
)


@dataclass(frozen=True, repr=False)
class ExportedDraws(Result):
    """Draws of one pair at some rows of data, with all that ArviZ labels them by.

    Args:
        groups: ArviZ group → variable → array.
        dims: variable → names of the dimensions after ``(chain, draw)``.
        coords: dimension → labels.
        attrs: what the draws are.
        notes: group → what a reader has to know about it.
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
def export_draws(
    pair: Pair,
    x: Tensor,
    *,
    draws: int,
    encoded: Encoded | None = None,
    prior: dist.Distribution | None = None,
    numbers: list[int] | None = None,
    seed: int = 0,
) -> ExportedDraws:
    """Draws from guide, likelihood and prior for rows of data.

    The draws from the guide are independent, so there is one chain. ``sample_stats`` holds the log
    importance weights log p(x|z) p(z) / q(z|x) that turn them into draws from p(z | x), and
    log p(x | z) itself. ``log_likelihood`` is log p(x) of each row, as leaving a row out requires:
    log p(x | z) is given the row's own code, which leaves nothing out.

    Variables have the names of the pair's sites. A name that ArviZ itself uses, such as "draw",
    gets ``_site`` at its end, and a slash, which would make a group of its own in a file, becomes a
    dot. A dimension with the name of a site gets ``_dim`` at its end.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        draws: S, for each row.
        encoded: q(z | x) of the rows, if it is known.
        prior: p(z) to draw from where the pair's own is not the same for all rows.
        numbers: of the rows in a larger data set, to label them by; by default 0, …, N − 1.
        seed: names the draws.
    """
    codes_seed = derived_seed(seed, "exported codes")
    blocks = list(weighted_draws(pair, x, draws=draws, encoded=encoded, seed=codes_seed))
    posterior = Weighted(
        *(
            torch.cat([getattr(block, name) for block in blocks], 1)
            for name in Weighted.__annotations__
        )
    )
    with seeded(seed, "exported predictions"):
        source = pair.prior(x) if prior is None else prior
        codes = source.sample(torch.Size([draws, len(x)])).view(posterior.z.shape)
        predictive = _predict(pair, x, posterior.z)
        prior_predictive = _predict(pair, x, codes)
    log_weight = posterior.log_likelihood + posterior.log_prior - posterior.log_guide
    estimates = _estimate_log_p(pair, x, encoded, seed)
    observed_site, data = observe(pair, x)
    z, observed = variable_names((pair.name, observed_site), reserved=RESERVED)
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
    return ExportedDraws(
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


def _estimate_log_p(pair: Pair, x: Tensor, encoded: Encoded | None, seed: int) -> Tensor:
    """Independent estimates of log p(x) of each row, shape ``(ESTIMATES, N)``."""
    seed = derived_seed(seed, "exported log p(x)")
    blocks = weighted_draws(pair, x, draws=ESTIMATES * DRAWS, encoded=encoded, seed=seed)
    columns = []
    for block in blocks:
        log_weight = block.log_likelihood + block.log_prior - block.log_guide
        by_estimate = log_weight.unflatten(0, (ESTIMATES, DRAWS))
        columns.append(by_estimate.logsumexp(1) - math.log(DRAWS))
    return torch.cat(columns, 1)


def _predict(pair: Pair, x: Tensor, z: Tensor) -> Tensor:
    return torch.stack([pair.decode(x, codes).sample() for codes in z])


def _chain(draws: Tensor) -> Array:
    return draws.unsqueeze(0).cpu().numpy()


def _event_dims(count: int) -> tuple[str, ...]:
    return EVENT_DIMS.get(count, tuple(f"axis_{axis}" for axis in range(count)))
