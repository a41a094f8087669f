"""log p(x) from below by importance sampling with the guide as proposal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.arviz_adapter import psis
from pyrovae.estimates import Bound, Estimate, mean_estimate
from pyrovae.models.pair import Pair
from pyrovae.randomness import seeded

BLOCK = 16  # data points whose draws share one random stream
ROWS = 16_384  # rows that go through the model at once


@dataclass(frozen=True)
class Evidence:
    """log p(x) for each data point, in nats.

    Args:
        values: estimates, shape ``(N,)``.
        standard_error: Monte Carlo standard error of each, shape ``(N,)``.
        pareto_k: k̂ of each data point's importance weights, shape ``(N,)``; above 0.7 the estimate
            and its standard error cannot be trusted (Vehtari et al. 2024).
        draws: importance draws for each data point.
        bound: the side on which the expectation of ``values`` errs.
    """

    values: Tensor
    standard_error: Tensor
    pareto_k: Tensor
    draws: int
    bound: Bound | None = "lower"

    def mean(self) -> Estimate:
        """Mean over the data points; its standard error is over data and draws together."""
        return mean_estimate(self.values, over="data", bound=self.bound)

    def minus(self, other: Evidence) -> Estimate:
        """Mean of the paired differences to ``other``, computed on the same data points.

        Raises:
            ValueError: if the two speak of different numbers of data points.
        """
        if self.values.shape != other.values.shape:
            raise ValueError(
                f"expected two results on the same data; got {len(self.values)} and "
                f"{len(other.values)} data points."
            )
        return mean_estimate(self.values - other.values, over="data")


@dataclass(frozen=True)
class Weighted:
    """Draws from the guide for one block of data points and the terms of their weights.

    Args:
        z: draws, shape ``(S, B, D)``.
        log_likelihood, log_prior, log_guide: log p(x|z), log p(z), log q(z|x), each ``(S, B)``.
    """

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor


def importance_evidence(
    pair: Pair, x: Tensor, *, draws: int, prior: dist.Distribution | None = None, seed: int = 0
) -> Evidence:
    """K-sample bound log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x) (Burda et al. 2016).

    Its expectation is at most log p(x), and rises to it with K.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        draws: K ≥ 2.
        prior: stands in the place of the model's own p(z).
        seed: names the draws; the result depends on it and on nothing else.
    """
    return compare_priors(pair, x, {"": prior}, draws=draws, seed=seed)[""]


def compare_priors(
    pair: Pair,
    x: Tensor,
    priors: Mapping[str, dist.Distribution | None],
    *,
    draws: int,
    seed: int = 0,
) -> dict[str, Evidence]:
    """log p(x) under several priors with the same draws, so that their differences are paired.

    Args:
        pair, x, draws, seed: as :func:`importance_evidence`.
        priors: p(z) by name; ``None`` is the model's own.

    Raises:
        ValueError: with fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"expected at least 2 draws for a standard error; got {draws}.")
    columns: dict[str, list[Tensor]] = {name: [] for name in priors}
    for block in weighted_draws(pair, x, draws=draws, seed=seed):
        for name, prior in priors.items():
            log_prior = block.log_prior if prior is None else prior.log_prob(block.z)
            columns[name].append(block.log_likelihood + log_prior - block.log_guide)
    return {name: _summarise(torch.cat(blocks, 1).T) for name, blocks in columns.items()}


@torch.no_grad()
def weighted_draws(pair: Pair, x: Tensor, *, draws: int, seed: int) -> Iterator[Weighted]:
    """Draws from the guide with the three terms of their weights, block by block of ``x``."""
    for index, rows in enumerate(x.split(BLOCK)):
        with seeded(seed, index):
            guide = pair.encode(rows)
            z = guide.sample(torch.Size([draws]))
            scored = [_score(pair, rows, part) for part in z.split(max(1, ROWS // len(rows)))]
        likelihood, prior = (torch.cat(parts) for parts in zip(*scored, strict=True))
        yield Weighted(z, likelihood, prior, guide.log_prob(z))


def _score(pair: Pair, rows: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    s, b, d = z.shape
    repeated = rows.expand(s, *rows.shape).flatten(0, 1)
    likelihood, prior = pair.log_joint(repeated, z.reshape(s * b, d))
    return likelihood.view(s, b), prior.view(s, b)


def _summarise(log_weights: Tensor) -> Evidence:
    """K-sample bounds from log weights of shape ``(N, K)``."""
    k = log_weights.shape[1]
    log_weights = log_weights.double()
    values = log_weights.logsumexp(1) - math.log(k)
    relative = (log_weights - values[:, None]).exp()  # mean 1 in each row
    standard_error = relative.std(1) / math.sqrt(k)  # delta method for the log of the mean
    pareto_k = torch.as_tensor(psis(log_weights.cpu().numpy())[1])
    return Evidence(values, standard_error, pareto_k, k)
