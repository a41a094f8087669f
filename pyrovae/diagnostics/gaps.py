"""What the ELBO of a data point loses to the guide's family, and what to amortization."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Data
from pyrovae.display import Result
from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence, automatic_evidence, smooth, weighted_draws
from pyrovae.mixture import families
from pyrovae.pairs import (
    Encoded,
    Pair,
    PyroFunction,
    check_refinable,
    elbo_draws,
    measuring,
    over_rows,
    refine,
)
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain


@dataclass(frozen=True, repr=False)
class Gaps(Result):
    """ELBOs of some data points under better and better distributions over their codes.

    Args:
        guide: under the amortized q(z|x).
        family: under the best member of the guide's family, optimised for each data point alone.
        full: under the best Gaussian with full covariance; ``None`` where codes are constrained.
        evidence: log p(x), by proposals of its own for each data point where the guide is not
            good enough.
    """

    guide: Evidence
    family: Evidence
    full: Evidence | None
    evidence: Evidence

    def amortization(self) -> Estimate:
        """Mean loss because the encoder misses the best member of its family."""
        return replace(self.family.minus(self.guide), bound="lower")

    def approximation(self) -> Estimate:
        """Mean loss because the posterior is not in the family."""
        return self.evidence.minus(self.family)

    def inference(self) -> Estimate:
        """Both: the mean of log p(x) − ELBO, which is that of KL(q(z|x)‖p(z|x))."""
        return gap_below(self.evidence, self.guide)

    def beyond_gaussian(self) -> Estimate | None:
        """Mean loss that no Gaussian recovers."""
        return None if self.full is None else self.evidence.minus(self.full)

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on why log p(x), and so the gaps, should not be trusted."""
        return self.evidence.concerns


@plain()
def inference_gaps(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    steps: int = 200,
    draws: int = 2000,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Gaps:
    r"""Split log p(x) − ELBO of a few data points into approximation and amortization gap.

    .. math:: \log p(x) - L(q) = \underbrace{\log p(x) - L(q^*)}_\text{approximation}
              + \underbrace{L(q^*) - L(q)}_\text{amortization}

    q* maximises the ELBO of that data point within the family. An optimiser that stops early makes
    the first gap too large and the second too small; their sum stays right.

    Args:
        model, guide: any Pyro pair whose guide can be drawn from with gradients.
        data: a few rows, shape ``(N, ...)`` with N ≥ 2.
        steps: of Adam, for all data points together.
        draws: from each distribution, to estimate its ELBO.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names the draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: if the guide's draws have no gradients in its parameters, or the pair takes
            one number of rows only.

    Cremer et al. 2018, "Inference suboptimality in variational autoencoders".

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(4)
    >>> gaps = pv.inference_gaps(vae.model, vae.guide, x, steps=5, draws=50, progress=False)
    >>> abs(gaps.amortization().value) < 0.1  # an exact guide
    True
    """
    check_seed(seed)
    pair, (x,) = over_rows(Pair(model, guide, site, observed, data_plate), data)
    with measuring(model, guide), torch.no_grad():
        with seeded(seed, "guide to climb from"):
            encoded = pair.guide_density.encode((x,))
        return gaps_of_pair(
            pair, x, encoded, steps=steps, draws=draws, seed=seed, progress=progress
        )


@torch.no_grad()
def gaps_of_pair(
    pair: Pair,
    x: Tensor,
    encoded: Encoded,
    *,
    steps: int,
    draws: int,
    seed: int = 0,
    progress: bool | None = None,
) -> Gaps:
    """As :func:`inference_gaps`, of a pair that is being measured.

    Args:
        pair: model and guide over rows.
        x: rows, shape ``(N, ...)``.
        encoded: q(z | x) of them.
        steps, draws, seed, progress: as :func:`inference_gaps` has them.
    """
    start = families.convert(encoded.density, torch.Tensor.detach)
    check_refinable(pair, (x,), start)
    elbo_seed = derived_seed(seed, "ELBO")  # shared, so that differences are paired
    gaussian = families.family(start) in ("Normal", "MultivariateNormal")
    with progress_bar("optimising q(z|x)", steps * (1 + gaussian), progress=progress) as bar:
        climb_seed = derived_seed(seed, "best of the family")
        best = refine(pair, (x,), start, steps=steps, seed=climb_seed, tick=bar.tick)
        full = None
        if gaussian:
            middle, deviation = best.mean, best.stddev  # of two precisions in some guides
            wide: dist.Distribution = dist.MultivariateNormal(
                middle, scale_tril=torch.diag_embed(deviation.to(middle.dtype))
            )
            climb_seed = derived_seed(seed, "best of full covariance")
            wide = refine(pair, (x,), wide, steps=steps, seed=climb_seed, tick=bar.tick)
            full = _estimate_elbo(pair, x, wide, draws, seed=elbo_seed)
    amortized, family = (_estimate_elbo(pair, x, q, draws, seed=elbo_seed) for q in (start, best))
    evidence_seed = derived_seed(seed, "log p(x) beside ELBO")
    with progress_bar("log p(x)", len(x), progress=progress) as bar:
        evidence = automatic_evidence(
            pair, x, draws=draws, encoded=encoded, seed=evidence_seed, tick=bar.tick
        )
    return Gaps(amortized, family, full, evidence)


def elbo_of_guide(
    pair: Pair, x: Tensor, *, draws: int, seed: int, encoded: Encoded | None = None
) -> Evidence:
    """The ELBO of each data point by draws from the guide, of any pair.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        draws: at each of them.
        seed: names them.
        encoded: q(z | x) of the rows, if it is known.
    """
    seed = derived_seed(seed, "ELBO alone")
    parts = [
        weighted.log_likelihood + weighted.log_prior - weighted.log_guide
        for weighted in weighted_draws(pair, x, draws=draws, encoded=encoded, seed=seed)
    ]
    return _mean_log_weights(torch.cat(parts, 1))


def gap_below(evidence: Evidence, elbo: Evidence) -> Estimate:
    """The mean of log p(x) − ELBO, which errs to the side to which log p(x) errs."""
    return replace(evidence.minus(elbo), bound=evidence.bound)


def _estimate_elbo(
    pair: Pair, x: Tensor, q: dist.Distribution, draws: int, *, seed: int
) -> Evidence:
    """The ELBO of each data point under q."""
    with seeded(seed, "log weights"):
        return _mean_log_weights(elbo_draws(pair, (x,), q, draws))


def _mean_log_weights(log_weights: Tensor) -> Evidence:
    """Mean log weight of each data point, and k̂ of the weights (Yao et al. 2018), ``(S, N)``."""
    by_row = log_weights.T.double()
    draws = by_row.shape[1]
    return Evidence(by_row.mean(1), by_row.std(1) / math.sqrt(draws), smooth(by_row)[1], draws)
