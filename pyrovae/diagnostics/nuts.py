"""The guide compared with the exact posterior of a few data points, drawn by NUTS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyrovae.arviz_adapter import convergence, dimension_names, to_arviz, variable_names
from pyrovae.data import Data
from pyrovae.diagnostics.draws import moments
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.evidence import (
    Annealing,
    Evidence,
    Path,
    path_for,
    proposal_for,
    smooth,
    summarise,
)
from pyrovae.pairs import Encoded, Pair, PyroFunction, measuring, over_rows
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

if TYPE_CHECKING:
    import pandas as pd

CONVERGED = 1.01  # r-hat above which chains have not mixed (Vehtari et al. 2021)
ENOUGH = 100  # effective draws of a unit below which its mean and sd are rough
WIDENING = 1.3  # of the covariance of the Gaussian proposal for log p(x)


@dataclass(frozen=True, repr=False)
class NutsComparison(Result):
    """The guide compared with NUTS at N data points with D latent units.

    Args:
        mean, sd: of the posterior by NUTS, each ``(N, D)``.
        guide_mean, guide_sd: of q(z|x), each ``(N, D)``.
        r_hat, ess: of NUTS, for each unit, each ``(N, D)``.
        kl: KL(q(z|x)‖p(z|x)) = log p(x) − ELBO with its standard error, each ``(N,)``.
        kl_error: see ``kl``.
        pareto_k: k̂ of importance weights from the guide to the posterior, shape ``(N,)``.
        evidence: log p(x), importance-weighted from a Gaussian fitted to the draws of NUTS.
        draws: codes drawn by NUTS, shape ``(chains, S, N, D)``.
        site: name of the latent site.
    """

    mean: Tensor
    sd: Tensor
    guide_mean: Tensor
    guide_sd: Tensor
    r_hat: Tensor
    ess: Tensor
    kl: Tensor
    kl_error: Tensor
    pareto_k: Tensor
    evidence: Evidence
    draws: Tensor
    site: str = "z"

    def table(self) -> pd.DataFrame:
        """One row for each data point and unit."""
        import pandas as pd

        n, units = self.mean.shape
        columns = {
            "datum": torch.arange(n).repeat_interleave(units),
            "unit": torch.arange(units).repeat(n),
        }
        for name in ("mean", "guide_mean", "sd", "guide_sd", "r_hat", "ess"):
            columns[name] = getattr(self, name).flatten()
        for name in ("kl", "kl_error", "pareto_k"):
            columns[name] = getattr(self, name).repeat_interleave(units)
        return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on why some of the numbers should not be trusted."""
        n, sentences = len(self.kl), []
        if unmixed := int((~(self.r_hat <= CONVERGED)).any(1).sum()):
            sentences.append(
                f"For {unmixed} of {n} data points r-hat exceeds {CONVERGED}: the chains have not "
                "mixed, and the posterior may have several modes. Take more warm-up and draws."
            )
        if few := int((~(self.ess >= ENOUGH)).any(1).sum()):
            sentences.append(
                f"For {few} of {n} data points NUTS has fewer than {ENOUGH} effective draws of a "
                "unit: its means and standard deviations are rough. Take more draws."
            )
        limit = self.evidence.k_limit
        if poor := int((~(self.pareto_k <= limit)).sum()):
            sentences.append(
                f"For {poor} of {n} data points k̂ > {limit:.2g}: the guide is too far from the "
                "posterior for importance weights to repair it."
            )
        return (*sentences, *self.evidence.concerns)

    def to_arviz(self) -> Any:
        """The draws of NUTS as ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x)."""
        n, units = self.mean.shape
        (name,) = variable_names([self.site])
        datum, unit = dimension_names(("datum", "unit"), (name,))
        return to_arviz(
            {"posterior": {name: self.draws.cpu().numpy()}},
            dims={name: (datum, unit)},
            coords={datum: list(range(n)), unit: list(range(units))},
            attrs={"inference_library": "pyrovae", "draws_from": "NUTS"},
        )


@plain()
def beside_nuts(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    draws: int = 500,
    warmup: int = 300,
    chains: int = 4,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> NutsComparison:
    """Draw from p(z|x) of a few data points by NUTS and compare the guide with it.

    All data points are drawn together: their joint posterior is the product of their own, and one
    chain of Pyro's NUTS moves through all of them (Hoffman & Gelman 2014).

    Args:
        model, guide: any Pyro pair.
        data: a few rows, shape ``(N, ...)``.
        draws, warmup: of each chain.
        chains: at least 2, each started at its own draw from the heavy-tailed proposal that
            ``method="refined"`` of log p(x) weighs, or, where there is none, from the prior: far
            enough apart for r-hat to tell whether they have mixed.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names all draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: with fewer than two chains, or if a chain never moves.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(2)
    >>> few = {"draws": 20, "warmup": 10, "chains": 2, "progress": False}
    >>> pv.beside_nuts(vae.model, vae.guide, x, **few).kl.shape
    torch.Size([2])
    """
    check_seed(seed)
    if chains < 2:
        raise InputError(f"expected at least 2 chains for r-hat; got {chains}.")
    pair, (x,) = over_rows(Pair(model, guide, site, observed, data_plate), data)
    with measuring(model, guide):
        path = path_for(pair, x, Annealing(start="prior"), None)
        with torch.no_grad(), seeded(seed, "guide of NUTS's rows"):
            encoded = pair.guide_density.encode((x,))
        starts = _starts(pair, x, encoded, path, chains, seed)
        with progress_bar("NUTS", chains * (warmup + draws), progress=progress) as bar:
            u = torch.stack(
                [
                    _run_chain(path, start, draws, warmup, derived_seed(seed, "NUTS", i), bar.tick)
                    for i, start in enumerate(starts)
                ]
            )
        _check_moved(u)
        with torch.no_grad(), seeded(seed, "guide beside NUTS"):
            evidence = _estimate_evidence(path, u.flatten(0, 1))
            encoded.advance()
            q = encoded.density
            guide_moments = moments(q, draws=1000, seed=derived_seed(seed, "moments beside NUTS"))
            z = q.sample(torch.Size([evidence.draws]))
            log_weights = (path.log_joint(z) - q.log_prob(z)).T.double()
            codes, _ = path.constrained(u.flatten(0, 1))
    by_chain = codes.view(chains, draws, *codes.shape[1:])
    r_hat, ess = (torch.as_tensor(array.copy()) for array in convergence(by_chain.cpu().numpy()))
    error = log_weights.std(1) / math.sqrt(log_weights.shape[1])
    return NutsComparison(
        mean=codes.mean(0),
        sd=codes.std(0),
        guide_mean=guide_moments.mean,
        guide_sd=guide_moments.stddev,
        r_hat=r_hat,
        ess=ess,
        kl=evidence.values - log_weights.mean(1),
        kl_error=(error.square() + evidence.standard_error.square()).sqrt(),
        pareto_k=smooth(log_weights)[1],
        evidence=evidence,
        draws=by_chain,
        site=pair.name,
    )


def _check_moved(u: Tensor) -> None:
    """Raise if a chain stood still; positions have the shape ``(chains, draws, N, D)``."""
    still = int((u == u[:, :1]).flatten(1).all(1).sum())
    if still:
        raise InputError(
            f"expected NUTS to move; got {still} of {len(u)} chains in which no move was ever "
            "accepted. The warm-up was too short, or log p(x, z) jumps, or its gradient in z is "
            "wrong or NaN: take 100 steps of warm-up or more, and check the decoder for "
            "rounding, sampling or detached tensors."
        )


@torch.no_grad()
def _starts(pair: Pair, x: Tensor, encoded: Encoded, path: Path, chains: int, seed: int) -> Tensor:
    """Where the chains begin, shape ``(chains, N, D)``."""
    with seeded(seed, "prior's starts of NUTS"):
        start = path.sample(chains)
    try:
        proposal_seed = derived_seed(seed, "proposal beside NUTS")
        proposal = proposal_for(pair, x, encoded=encoded, seed=proposal_seed)
    except InputError:  # no density that a proposal could follow: the prior's draws will do
        return start
    with seeded(seed, "starts of NUTS"):
        refined = proposal.sample(chains).to(start)
    usable = path.inside(refined) & path.log_joint(path.constrained(refined)[0]).isfinite()
    return torch.where(usable.unsqueeze(-1), refined, start)


def _run_chain(
    path: Path, start: Tensor, draws: int, warmup: int, seed: int, tick: Callable[[], None]
) -> Tensor:
    """One chain of NUTS over the positions of all data points, shape ``(draws, N, D)``."""

    def potential(sites: dict[str, Tensor]) -> Tensor:
        z, jacobian = path.constrained(sites["u"].unsqueeze(0))
        # NUTS moves in the dtype of its potential, which double data would make that of the codes.
        return -(path.log_joint(z) + jacobian).sum().to(start.dtype)

    with (
        torch.enable_grad(),
        seeded(seed, "chain of NUTS"),
        pyro.validation_enabled(False),
    ):
        sampler = MCMC(
            NUTS(potential_fn=potential, max_tree_depth=8),
            num_samples=draws,
            warmup_steps=warmup,
            initial_params={"u": start},
            disable_progbar=True,
            hook_fn=lambda *_: tick(),
        )
        sampler.run()
        positions: Tensor = sampler.get_samples()["u"]
    return positions


def _estimate_evidence(path: Path, u: Tensor, draws: int = 2000) -> Evidence:
    """log p(x) from a Gaussian with the mean and 1.3 times the covariance of posterior draws."""
    centred = u - u.mean(0)
    covariance = torch.einsum("snd,sne->nde", centred, centred) / (len(u) - 1)
    proposal = dist.MultivariateNormal(u.mean(0), WIDENING * covariance)
    positions = proposal.sample(torch.Size([draws]))
    z, jacobian = path.constrained(positions)
    return summarise((path.log_joint(z) + jacobian - proposal.log_prob(positions)).T)
