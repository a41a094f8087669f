"""log p(x) by annealed importance sampling with Hamiltonian moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.evidence.hmc import Densities, Path, move
from pyrovae.evidence.result import Evidence, join, summarise
from pyrovae.evidence.target import OF_GRADIENT
from pyrovae.mixture import families
from pyrovae.pairs import Pair
from pyrovae.progress import progress_bar
from pyrovae.randomness import derived_seed, seeded

CHAINS = 32  # at each data point, by default
CHAINS_AT_ONCE = 2048  # chains that go through the model together
PILOT_CHAINS = 8  # at each data point; enough to tell 60 % from 90 % acceptance
GAIN = 0.5  # of the pilot's control of the step, in log step per unit of acceptance
MEMORY = 0.9  # share of the old estimate in the pilot's running variance
PROBES = 1000  # draws from the prior that the guide's support is tested on
STUCK = 1e-3  # share of accepted moves below which the chains have not moved at all
STEEPNESS = 4.0  # of the sigmoid schedule (Wu et al. 2017)

Tick = Callable[[], None]


@dataclass(frozen=True)
class Annealing:
    """How chains are led from an easy density to the posterior.

    Args:
        start: the easy density: the ``"guide"``'s q(z|x), or the ``"prior"`` where the guide is
            poor or leaves out a part of the space.
        temperatures: T, steps of the path from β = 0 to 1. The gap to log p(x) falls as 1/T.
        leapfrog: gradient evaluations in one Hamiltonian move; there is one move at each β.
        schedule: ``"sigmoid"``, dense at both ends of the path (Wu et al. 2017), or ``"linear"``.
        acceptance: share of accepted moves that the pilot run tunes the step sizes to.
        progress: whether to show a bar; ``None`` shows it if stderr is a terminal.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(4)
    >>> chains = Annealing(temperatures=20, leapfrog=2)
    >>> log_p = pv.log_evidence(vae.model, vae.guide, x, method=chains, draws=4)
    >>> log_p.values.shape, log_p.bound
    (torch.Size([4]), 'lower')
    """

    start: Literal["guide", "prior"] = "guide"
    temperatures: int = 200
    leapfrog: int = 5
    schedule: Literal["sigmoid", "linear"] = "sigmoid"
    acceptance: float = 0.8
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.temperatures < 2 or self.leapfrog < 1:
            raise InputError(
                "expected at least 2 temperatures and 1 leapfrog step; got "
                f"{self.temperatures} and {self.leapfrog}."
            )
        if not 0 < self.acceptance < 1:
            raise InputError(f"expected an acceptance between 0 and 1; got {self.acceptance}.")
        if self.start not in ("guide", "prior") or self.schedule not in ("sigmoid", "linear"):
            raise InputError(
                "expected start 'guide' or 'prior' and schedule 'sigmoid' or 'linear'; got "
                f"{self.start!r} and {self.schedule!r}."
            )

    def betas(self) -> list[float]:
        """Inverse temperatures from 0 to 1, T + 1 of them.

        >>> Annealing(temperatures=4, schedule="linear").betas()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        """
        even = torch.linspace(0, 1, self.temperatures + 1, dtype=torch.float64)
        if self.schedule == "linear":
            return even.tolist()
        curve = torch.sigmoid(STEEPNESS * (2 * even - 1))
        return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


@dataclass(frozen=True)
class Tuning:
    """Step sizes from a pilot run, fixed from then on.

    Args:
        steps: length of a leapfrog step at each β, T + 1 tensors of shape ``(B,)``.
        scales: unit of length of each latent unit at each β, T + 1 tensors of shape ``(B, D)``.
    """

    steps: list[Tensor]
    scales: list[Tensor]


def annealed_evidence(
    pair: Pair,
    x: Tensor,
    *,
    chains: int,
    annealing: Annealing | None = None,
    prior: dist.Distribution | None = None,
    seed: int = 0,
) -> Evidence:
    r"""Stochastic lower bound on log p(x) by annealed importance sampling (Neal 2001).

    Chains start at draws from q, and pass through f_β for rising β by moves that leave f_β
    invariant. With :math:`\log w = \sum_t (β_t - β_{t-1}) \log p(x, z_{t-1}) / q(z_{t-1})` the mean
    of w is p(x), however well the chains mix; its logarithm is too low on average. Step sizes are
    tuned for each data point and each β in a pilot run whose chains are then thrown away: tuning
    on the chains that count would break this.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        chains: C ≥ 2 at each data point; 25 or more give a k̂.
        annealing: settings of the path; by default from the guide in 200 steps.
        prior: takes the place of the model's own p(z).
        seed: names all draws; the result depends on it and not on how the data are batched.

    Raises:
        InputError: if the guide's support is not the prior's, or no move is ever accepted.

    Neal 2001, "Annealed importance sampling"; Wu et al. 2017, "On the quantitative analysis of
    decoder-based generative models".
    """
    if chains < 2:
        raise InputError(f"expected at least 2 chains for a standard error; got {chains}.")
    annealing = annealing or Annealing()
    blocks = split_blocks(x, chains)
    parts: list[Evidence] = []
    total = len(blocks) * (2 * annealing.temperatures + 1)
    with progress_bar("annealing", total, progress=annealing.progress) as bar:
        for index, rows in enumerate(blocks):
            path = path_for(pair, rows, annealing, prior)
            tuning = tune(
                path, annealing, seed=derived_seed(seed, "annealing pilot", index), tick=bar.tick
            )
            with seeded(seed, "annealing", index):
                start = path.sample(chains)
                log_weights, accepted, _ = anneal(path, start, annealing, tuning, tick=bar.tick)
            block = summarise(log_weights.T, first=index * len(blocks[0]))
            cost = torch.full((len(rows),), cost_of_chains(chains, annealing), device=x.device)
            parts.append(replace(block, acceptance=accepted, cost=cost))
    return check_moved(join(parts))


def cost_of_chains(chains: int, annealing: Annealing) -> int:
    """Evaluations of log p(x, z) at a data point, one with its gradient for three."""
    last, leapfrog = annealing.temperatures, annealing.leapfrog
    gradients = chains * (last + (last - 1) * leapfrog) + PILOT_CHAINS * (last + 1) * (1 + leapfrog)
    return OF_GRADIENT * gradients


def split_blocks(x: Tensor, chains: int) -> tuple[Tensor, ...]:
    """Blocks of data points whose chains run together, of a size set by the number of chains."""
    return x.split(max(1, min(64, CHAINS_AT_ONCE // chains)))


@torch.no_grad()
def path_for(
    pair: Pair, rows: Tensor, annealing: Annealing, prior: dist.Distribution | None
) -> Path:
    """The path at some data points, with the pair checked there.

    Raises:
        InputError: if the guide has another support than the prior, the pair takes one number of
            rows only, or log p(x, z) is not a function of z.
    """
    if not pair.traits.takes_any_number_of_rows(rows):
        raise InputError(
            "expected a model and guide that take any number of rows, so that many chains go "
            "through them at once; got a pair that takes only all data together. Use "
            "method='importance'."
        )
    with seeded(0, "probes of a path"):
        target = pair.prior(rows[:1]) if prior is None else prior
        _check_bijection(target)
        easy = target.expand((len(rows),))
        if annealing.start == "guide":
            easy = pair.encode(rows)
            prior_draws = target.sample(torch.Size([PROBES])).reshape(PROBES, 1, -1)
            inside = easy.support.check(prior_draws.expand(PROBES, len(rows), -1))
            if not (inside.all() and target.support.check(easy.sample()).all()):
                raise InputError(
                    f"expected a guide with the prior's support, {target.support}; got "
                    f"{easy.support}. Anneal from the prior: Annealing(start='prior')."
                )
        z = easy.sample()
        # Validation is still on here, so shapes and values are checked.
        first, second = (torch.stack(pair.log_joint(rows, z)) for _ in range(2))
        if not torch.allclose(first, second, equal_nan=True):
            raise InputError(
                "expected log p(x, z) to be a function of z; got two values at one z: the model "
                "draws other latent sites too. Fix with pyro.poutine.condition "
                "those that all rows share, or use log_evidence's method='importance', which "
                "weighs all sites."
            )
    return Path(pair, rows, easy, prior, target.support)


def _check_bijection(prior: dist.Distribution) -> None:
    """Raise unless the prior's support has a bijection, for chains to move in."""
    try:
        torch.distributions.biject_to(prior.support)
    except NotImplementedError as error:
        raise InputError(
            f"expected a prior with a support that chains can move in; got "
            f"{families.family(prior)} with support {prior.support}. Give its class a support such "
            "as constraints.real_vector, or use method='importance'."
        ) from error


def tune(path: Densities, annealing: Annealing, *, seed: int, tick: Tick) -> Tuning:
    """Step sizes and units of length at every β, from one pilot run along the path."""
    with seeded(seed, "pilot"), pyro.validation_enabled(False):
        u, variance = path.sample(PILOT_CHAINS), path.sample(64).var(0)
        step = torch.full_like(variance[:, 0], variance.shape[-1] ** -0.25)
        steps, scales = [], []
        for beta in annealing.betas():
            scale = variance.sqrt()
            point, probability = move(
                path, path.at(u, beta), beta, step=step, scale=scale, leapfrog=annealing.leapfrog
            )
            u = point.u
            gain = (GAIN * (probability.mean(0) - annealing.acceptance)).exp()
            step = step * gain.to(step)  # densities may be finer than codes
            variance = MEMORY * variance + (1 - MEMORY) * u.var(0)
            steps.append(step)
            scales.append(scale)
            tick()
    return Tuning(steps, scales)


def anneal(
    path: Densities,
    u: Tensor,
    annealing: Annealing,
    tuning: Tuning,
    *,
    tick: Tick,
    backwards: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights of chains that go from β = 0 to 1, or ``backwards`` by the same moves.

    Args:
        u: where the chains start, shape ``(C, B, D)``: draws from q, or, backwards, from p(z|x).

    Returns:
        log w of each chain, shape ``(C, B)``, of which w forwards and 1/w backwards have the means
        p(x) and 1/p(x); the share of accepted moves, shape ``(B,)``; and where the chains end.
    """
    betas, last = annealing.betas(), annealing.temperatures
    log_weights = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
    accepted, order = torch.zeros_like(log_weights[0]), range(1, last + 1)
    with pyro.validation_enabled(False):
        for t in reversed(order) if backwards else order:
            level = t - 1 if backwards else t
            point = path.at(u, betas[level])
            log_weights += (betas[t] - betas[t - 1]) * (point.joint - point.easy).double()
            if 0 < level < last:
                step, scale = tuning.steps[level], tuning.scales[level]
                point, probability = move(
                    path, point, betas[level], step=step, scale=scale, leapfrog=annealing.leapfrog
                )
                accepted += probability.mean(0) / (last - 1)
            u = point.u
            tick()
    return log_weights, accepted, u


def check_moved(result: Evidence) -> Evidence:
    """The result, if any chain moved.

    Raises:
        InputError: if less than one move in a thousand was accepted.
    """
    accepted = float("nan") if result.acceptance is None else float(result.acceptance.mean())
    if accepted < STUCK:
        raise InputError(
            f"expected Hamiltonian moves to be accepted; got a share of {accepted:.4f} after "
            "tuning. log p(x, z) jumps, or its gradient in z is wrong or NaN: check the "
            "decoder for rounding, sampling or detached tensors, or use method='importance'."
        )
    return result
