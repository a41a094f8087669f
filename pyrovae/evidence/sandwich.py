"""log p(x) bounded from both sides, on data that the model simulates."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.data import Batch, Data, all_rows
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.evidence.annealed import (
    CHAINS,
    Annealing,
    Tick,
    Tuning,
    anneal,
    check_moved,
    path_for,
    split_blocks,
    tune,
)
from pyrovae.evidence.hmc import Path, move
from pyrovae.evidence.importance import as_density, latent_units
from pyrovae.evidence.result import Evidence, join, summarise
from pyrovae.models import Prior
from pyrovae.pairs import Pair, PyroFunction, measuring, over_rows, simulate
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

SPREAD = 10  # moves at β = 1 that separate the backward chains of a data point


@dataclass(frozen=True, repr=False)
class Sandwich(Result):
    """log p(x) of simulated data, bounded from below and from above.

    Args:
        x: the simulated data, shape ``(N, ...)``; a tuple where the pair takes more arguments.
        z: the codes they were made from, shape ``(N, D)``: exact draws from p(z | x).
        lower: annealed forwards, from q to the posterior.
        upper: annealed backwards, from the exact posterior draw.
    """

    x: Tensor | Batch
    z: Tensor
    lower: Evidence
    upper: Evidence

    def gap(self) -> Estimate:
        """Mean of upper − lower: in expectation neither is further from log p(x) than this."""
        return mean_estimate(self.upper.values - self.lower.values, over="data", bound="upper")

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on why some of the values should not be trusted; empty if none is known."""
        return tuple(dict.fromkeys((*self.lower.concerns, *self.upper.concerns)))

    def __str__(self) -> str:
        sides = f"{self.lower.mean()}, {self.upper.mean()}; gap {self.gap()}"
        return "\n".join([f"{sides} over {len(self.z)} simulated data points", *self.concerns])


@plain()
def sandwich(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    *,
    like: Data,
    annealing: Annealing | None = None,
    chains: int = CHAINS,
    prior: Prior | None = None,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Sandwich:
    r"""log p(x) from below and from above, in nats, of data points that the model simulates.

    .. math:: E[\text{lower}] \le \log p(x) \le E[\text{upper}]

    An upper bound needs a draw from p(z | x), which a row of real data does not come with. So the
    rows in ``like`` only show what to simulate, and nothing is said about them. For their own
    log p(x) use ``log_evidence(model, guide, data, method=annealing)``, which errs low; the gap
    here, with the same settings, says how far to trust it, as far as the model resembles the data.

    Args:
        model, guide: any Pyro pair.
        like: rows, shape ``(N, ...)``: as many data points are simulated, of that shape. Arguments
            that are not observed, such as labels, stay as they are, and the data are drawn given
            them.
        annealing: settings of the path, both ways; by default from the guide in 200 steps.
        chains: at each data point, at least 2; 25 or more give a k̂.
        prior: takes the place of the model's p(z), in the simulation too.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names the data and the chains.

    Returns:
        the data with their codes, ``lower``, ``upper`` and ``gap()``.

    Warns:
        UserWarning: where k̂ is above what so many chains allow, or chains hardly move.

    Raises:
        InputError: if data can't be simulated, the pair lacks a named site, the ``prior`` has
            another number of units than the sites, there are fewer than 2 chains, or chains
            never move.

    Grosse et al. 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo"; Wu et
    al. 2017, "On the quantitative analysis of decoder-based generative models".

    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, test = exact.vae(), exact.sample(4)
    >>> both = sandwich(vae.model, vae.guide, like=test, chains=2)
    >>> bool((both.upper.values - exact.log_prob(both.x)).abs().max() < 1e-9)  # the guide is exact
    True
    """
    check_seed(seed)
    pair = Pair(model, guide, site, observed, data_plate)
    rows = all_rows(like, name="like")
    with measuring(model, guide, *([prior] if isinstance(prior, nn.Module) else [])):
        if prior is not None:
            by_row, (x,) = over_rows(pair, rows)
            prior = as_density(prior, latent_units(by_row, x))
        result = sandwich_evidence(
            pair, rows, chains=chains, annealing=annealing, prior=prior, seed=seed
        )
    if concerns := result.concerns:
        warnings.warn("\n".join(concerns), stacklevel=3)
    return result


def sandwich_evidence(
    pair: Pair,
    like: Tensor | Batch,
    *,
    chains: int,
    annealing: Annealing | None = None,
    prior: dist.Distribution | None = None,
    seed: int = 0,
) -> Sandwich:
    r"""Bidirectional Monte Carlo: stochastic bounds on log p(x) that meet (Grosse et al. 2015).

    Draw z ~ p(z), x ~ p(x | z): then z is an exact draw from p(z | x). Annealing from q to the
    posterior gives w with mean p(x), and :math:`\log \bar w` errs low; annealing *from z* back to q
    gives 1/w with mean 1/p(x), and :math:`-\log \overline{1/w}` errs high. It needs an exact
    posterior draw, which real data don't offer: for those, the gap on simulated data says how far
    the lower bound of ``method="annealed"`` can be trusted, as far as the model resembles the data
    (Wu et al. 2017; Grosse et al. 2016, "Measuring the reliability of MCMC inference with
    bidirectional Monte Carlo").

    Args:
        pair: model and guide.
        like: rows, shape ``(N, ...)``, that say how many data points to simulate and of what shape.
            Arguments that are not observed, such as labels, stay as they are.
        chains, annealing, prior, seed: as :func:`~pyrovae.evidence.annealed.annealed_evidence`.
            The backward chains of a data point share their starting point; ten moves at β = 1
            separate them.
    """
    if chains < 2:
        raise InputError(f"expected at least 2 chains for a standard error; got {chains}.")
    annealing = annealing or Annealing()
    simulated, z = simulate(pair, like, prior=prior, seed=derived_seed(seed, "sandwich"))
    pair, (x,) = over_rows(pair, simulated)
    blocks = list(zip(split_blocks(x, chains), split_blocks(z, chains), strict=True))
    lower, upper = [], []
    total = len(blocks) * (3 * annealing.temperatures + 1)
    with progress_bar("annealing both ways", total, progress=annealing.progress) as bar:
        for index, (rows, codes) in enumerate(blocks):
            path = path_for(pair, rows, annealing, prior)
            tuning = tune(
                path,
                annealing,
                seed=derived_seed(seed, "pilot of a sandwich", index),
                tick=bar.tick,
            )
            with seeded(seed, "annealing forwards", index):
                log_weights, accepted, _ = anneal(
                    path, path.sample(chains), annealing, tuning, tick=bar.tick
                )
            block = summarise(log_weights.T, first=index * len(blocks[0][0]))
            lower.append(replace(block, acceptance=accepted))
            with seeded(seed, "annealing backwards", index):
                upper.append(_anneal_backwards(path, codes, chains, annealing, tuning, bar.tick))
    simulated_x = simulated[0] if len(simulated) == 1 else simulated
    return Sandwich(simulated_x, z, check_moved(join(lower)), join(upper))


def _anneal_backwards(
    path: Path, codes: Tensor, chains: int, annealing: Annealing, tuning: Tuning, tick: Tick
) -> Evidence:
    """Upper bound −log mean 1/w, with chains that start at the codes the data were made from."""
    u = path.unconstrained(codes).expand(chains, *codes.shape)
    with pyro.validation_enabled(False):
        point = path.at(u, 1.0)
        for _ in range(SPREAD):
            point, _ = move(
                path,
                point,
                1.0,
                step=tuning.steps[-1],
                scale=tuning.scales[-1],
                leapfrog=annealing.leapfrog,
            )
    log_weights, accepted, _ = anneal(path, point.u, annealing, tuning, tick=tick, backwards=True)
    inverse = summarise(-log_weights.T)
    return replace(
        inverse, values=-inverse.values, bound="upper", smoothed=None, acceptance=accepted
    )
