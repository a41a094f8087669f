"""Recipes that turn an aggregated posterior into a density that also fits new data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior, Mixture, families, fewer_components
from pyrovae.mixture.families import MixtureByRow, Pushed
from pyrovae.models import FlowPrior
from pyrovae.randomness import derived_seed, seeded

MOMENT_DRAWS = 64  # from each component, at least; four for each unit if that is more
NUMBERS_AT_ONCE = 1 << 22  # drawn at once
SCORES_AT_ONCE = 1 << 18  # of pairs of code and component: they fit the processor's cache
LEAST_SCORE = -69.0  # of all, relative to the sum: exponentials that underflow are ten times slower
CODES_AT_ONCE = 1 << 13  # drawn at once to train a flow; a guide may have to be run for them
STEEP = 5.0  # norm of a gradient above which a flow's step is shortened


@dataclass(frozen=True)
class Inflated:
    """Every component with a multiple of the variance of the means added to its own.

    Args:
        amount: h ≥ 0, in units of Var_m(μ_m), per unit; 0 is the mixture as it is.

    Raises:
        InputError: for an amount that is negative or not finite.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> new = dist.Normal(means[::5] + 0.01, 0.5).to_event(1)
    >>> agg = pv.AggregatedPosterior(encoding)
    >>> chosen = pv.fit_ex_post_prior(agg, held_out=new, candidates=[pv.Inflated(0.1)])
    >>> chosen.choice
    'variances inflated by 0.1 Var(μ)'
    """

    amount: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise InputError(f"expected a finite amount of at least 0; got {self.amount}. Try 0.2.")

    @property
    def name(self) -> str:
        """The candidate in words."""
        return f"variances inflated by {self.amount:g} Var(μ)" if self.amount else "as it is"

    def check(self, agg: Mixture) -> None:
        """Raises ``InputError`` if components other than normal ones are to be inflated."""
        if self.amount:
            _need_normals(agg)

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density."""
        return inflate(agg, self.amount)


@dataclass(frozen=True)
class InflatedByUnit:
    r"""An amount h_d for each unit, chosen by the leave-one-out density of training codes.

    .. math:: \max_h \sum_n \log \sum_{m ≠ n} w_m N(z_n; μ_m, σ_m^2 + h \operatorname{Var}(μ)),
              \qquad z_n \sim q(z | x_n)

    No held-out code is used for them (Duin 1976, leave-one-out bandwidths of kernel densities).

    Args:
        steps: of Adam on log h, each on a batch of codes.
        codes: codes in a batch, each scored under all components.

    Raises:
        InputError: for less than one step or code.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> new = dist.Normal(means[::5] + 0.01, 0.5).to_event(1)
    >>> agg = pv.AggregatedPosterior(encoding)
    >>> ours = [pv.InflatedByUnit(steps=5)]
    >>> pv.fit_ex_post_prior(agg, held_out=new, candidates=ours).choice
    'variances inflated unit by unit'
    """

    steps: int = 40
    codes: int = 128

    def __post_init__(self) -> None:
        _need_counts(steps=self.steps, codes=self.codes)

    @property
    def name(self) -> str:
        """The candidate in words."""
        return "variances inflated unit by unit"

    def check(self, agg: Mixture) -> None:
        """Raises ``InputError`` unless there are two or more diagonal normals over vectors."""
        _two_diagonal_normals(agg)

    def amounts(self, agg: AggregatedPosterior, *, seed: int) -> Tensor:
        """h_d, shape ``(D,)``; the search starts from Silverman's rule for normals (1986)."""
        return leave_one_out_amounts(agg, steps=self.steps, codes=self.codes, seed=seed)

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density."""
        return inflate(agg, self.amounts(agg, seed=seed))


@dataclass(frozen=True)
class Reduced:
    """K components fitted by `pyrovae.mixture.reduction.reduce`, or an average of such fits.

    The log density of an average is at least the mean of its fits' log densities, at any code.

    Args:
        components: K.
        covariance: of the components, "diagonal" or "full".
        shrinkage: how many data points the common covariance counts as in each component.
        starts: number of fits that are averaged, each from its own random start. Two seeds have no
            start in common.

    Raises:
        InputError: for less than one component or start, another covariance, or a shrinkage that
            is negative or not finite.

    Ormoneit & Tresp 1998, "Averaging, maximum penalized likelihood and Bayesian estimation for
    improving Gaussian mixture probability density estimates".

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.tensor([-3.0, 0.0, 3.0]).repeat(60).view(180, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> new = dist.Normal(means[:60] + 0.01, 0.5).to_event(1)
    >>> agg = pv.AggregatedPosterior(encoding)
    >>> ours = [pv.Reduced(1, covariance="full"), pv.Reduced(3)]
    >>> pv.fit_ex_post_prior(agg, held_out=new, candidates=ours).choice
    'reduced to 3 components'
    """

    components: int
    covariance: Literal["diagonal", "full"] = "diagonal"
    shrinkage: float = 0.0
    starts: int = 1

    def __post_init__(self) -> None:
        _need_counts(components=self.components, starts=self.starts)
        if self.covariance not in ("diagonal", "full"):
            raise InputError(
                f"expected covariance 'diagonal' or 'full'; got {self.covariance!r}. Use one."
            )
        if not 0 <= self.shrinkage < math.inf:
            raise InputError(f"expected a finite shrinkage of at least 0; got {self.shrinkage}.")

    @property
    def name(self) -> str:
        """The candidate in words."""
        plural = "s" if self.components > 1 else ""
        covariance = " of full covariance" if self.covariance == "full" else ""
        average = f", {self.starts} averaged" if self.starts > 1 else ""
        return f"reduced to {self.components} component{plural}{covariance}{average}"

    def check(self, agg: Mixture) -> None:
        """Raises ``InputError`` if the mixture has fewer components, or events but vectors."""
        _need_vectors(agg)
        if self.components > agg.size:
            raise InputError(
                f"expected 1 to {agg.size} components; got {self.components}. Use fewer."
            )

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density."""
        self.check(agg)
        fits = [
            fewer_components(
                agg,
                self.components,
                covariance=self.covariance,
                shrinkage=self.shrinkage,
                seed=_start_seed(seed, start),
            )
            for start in range(self.starts)
        ]
        if self.starts == 1:
            return fits[0]
        components = families.concatenate([fit.component_distribution for fit in fits])
        logits = torch.cat([fit.log_weights for fit in fits])
        return Mixture(dist.Categorical(logits=logits), components)


@dataclass(frozen=True)
class Flow:
    """A normalising flow trained by maximum likelihood on fresh draws from all components.

    It starts near the normal with the mixture's means and standard deviations and takes all steps,
    while the learning rate falls to 0. No data are held back to stop early: the number of steps
    limits how closely it can follow the kernels of a few data points, and held-out codes choose
    among candidates with different numbers. Equal seeds give equal flows. A step takes about 10
    milliseconds, longer with more layers and if draws run a guide.

    Args:
        steps: of Adam; take more for many data points and units.
        batch: draws in a step.
        layers, hidden: of `FlowPrior`.
        learning_rate: of Adam at the start; it falls to 0 along a cosine.

    Raises:
        InputError: for less than one step, draw, layer or hidden unit, or a rate not above 0.

    >>> import pyrovae as pv
    >>> pv.Flow(steps=500, hidden=(64, 64)).steps
    500
    """

    steps: int = 200
    batch: int = 256
    layers: int = 2
    hidden: tuple[int, ...] = (32, 32)
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        _need_counts(steps=self.steps, batch=self.batch, layers=self.layers)
        _need_counts(hidden=min(self.hidden, default=0))
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"expected a finite learning rate above 0; got {self.learning_rate}. Try 1e-2."
            )

    @property
    def name(self) -> str:
        """The candidate in words."""
        plural = "s" if self.layers > 1 else ""
        return f"a flow of {self.layers} coupling{plural}, {self.steps} steps"

    def check(self, agg: Mixture) -> None:
        """Raises ``InputError`` unless codes are vectors of two units or more."""
        _need_vectors(agg)
        if agg.event_shape.numel() < 2:
            raise InputError("expected at least 2 units for a flow to couple; got 1. Use Reduced.")

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density, in units of the standard deviations of some draws."""
        self.check(agg)
        with torch.no_grad(), seeded(seed, "flow"):
            draws = agg.sample((2000,))  # moments need not be known in closed form
            standard = dist.transforms.AffineTransform(draws.mean(0), draws.std(0), event_dim=1)
            flow = FlowPrior(agg.event_shape.numel(), layers=self.layers, hidden=self.hidden)
            flow.to(draws)
            _train(flow, (standard.inv(z) for z in _batches(agg, self)), self)
        base = flow.requires_grad_(False)()
        return dist.TransformedDistribution(base, [standard])


Recipe = Inflated | InflatedByUnit | Reduced | Flow


def inflate(agg: Mixture, amount: float | Tensor) -> Mixture:
    """The mixture with ``amount`` times the variance of its means added to every component.

    Args:
        agg: a mixture with normal components.
        amount: h ≥ 0, in units of the variance of the means, unit by unit; one amount for all
            units, or one for each, shape ``(D,)``.

    Raises:
        InputError: if the components are not normal.
    """
    if not isinstance(amount, Tensor) and amount == 0:
        return agg
    _need_normals(agg)
    components = agg.component_distribution
    added = amount * agg.mean_variance
    if isinstance(components, families.CORRELATED_NORMALS):
        covariance = components.covariance_matrix + torch.diag(added)
        return Mixture(
            agg.mixture_distribution, dist.MultivariateNormal(components.mean, covariance)
        )
    wider = dist.Normal(components.mean, (components.variance + added).sqrt())
    return Mixture(agg.mixture_distribution, wider.to_event(len(agg.event_shape)))


def with_normals(agg: AggregatedPosterior, *, seed: int) -> AggregatedPosterior:
    r"""The mixture with normals in place of components without moments in closed form.

    Such components arise where latent sites depend on each other or go through a flow. Each normal
    gets the mean and the covariance of draws from its component: of all normals that one is closest
    in KL(component ‖ normal). All other components, and those that are not supported on all real
    numbers, stay as they are. Mixtures of normals at each datum become one mixture of all normals.

    Args:
        agg: a mixture over vectors.
        seed: names the draws.
    """
    components = agg.component_distribution
    if isinstance(components, MixtureByRow):
        log_shares, parts = families.unroll(components)
        weights = (agg.log_weights.unsqueeze(-1) + log_shares).exp().flatten()
        return AggregatedPosterior(parts, weights) if is_normal(parts) else agg
    if not (isinstance(components, families.Editable | Pushed) and _is_real(agg.support)):
        return agg
    dim = agg.event_shape.numel()
    draws = max(MOMENT_DRAWS, 4 * dim)
    means, factors = [], []
    with torch.no_grad(), seeded(seed, "moments of components"):
        for part in torch.arange(agg.size).split(max(1, NUMBERS_AT_ONCE // (draws * dim))):
            z = families.take(components, part).sample(torch.Size([draws]))
            centred = (z - z.mean(0)).double()
            covariance = torch.einsum("snd,sne->nde", centred, centred) / (draws - 1)
            means.append(z.mean(0))
            factors.append(torch.linalg.cholesky(covariance).to(z))
    normals = dist.MultivariateNormal(torch.cat(means), scale_tril=torch.cat(factors))
    return AggregatedPosterior(normals, agg.masses)


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def is_normal(components: dist.Distribution) -> bool:
    """Whether components are normal, with whatever covariance."""
    return families.diagonal_normal(components) is not None or isinstance(
        components, families.CORRELATED_NORMALS
    )


def leave_one_out_amounts(agg: AggregatedPosterior, *, steps: int, codes: int, seed: int) -> Tensor:
    """Amounts by unit that maximise the leave-one-out log density of codes, shape ``(D,)``.

    Raises:
        InputError: unless there are two or more diagonal normals over vectors.
    """
    loc, variance = _standardised(agg, *_two_diagonal_normals(agg))
    size, dim = loc.shape
    start = -2 / (dim + 4) * math.log(size)  # Silverman's bandwidth, squared
    log_amount = loc.new_full((dim,), start).requires_grad_()
    optimizer = torch.optim.Adam([log_amount], lr=0.15)
    with seeded(seed, "leave-one-out"), torch.enable_grad():
        for _ in range(steps):
            index = torch.randperm(size, device=loc.device)[:codes]
            z = loc[index] + variance[index].sqrt() * torch.randn_like(loc[index])
            inflated = variance + log_amount.exp()
            log_weight = agg.log_weights.detach() - 0.5 * inflated.log().sum(-1)
            precision = inflated.reciprocal()
            constants = log_weight - 0.5 * (precision * loc.square()).sum(-1)
            key = torch.cat([-0.5 * precision, precision * loc], -1)
            gradients = _leave_one_out_gradients(key.detach(), constants.detach(), z, index)
            optimizer.zero_grad()
            torch.autograd.backward((key, constants), gradients)
            optimizer.step()
    return log_amount.detach().exp()


def _leave_one_out_gradients(
    key: Tensor, constant: Tensor, z: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of minus the mean leave-one-out log density, which are minus the mean shares.

    Scores are computed twice, block by block, rather than held: so they stay in the cache.

    Args:
        key: (−p/2, pμ) of all components, shape ``(N, 2D)``.
        constant: the rest of their log densities, shape ``(N,)``.
        z: codes, shape ``(B, D)``.
        own: number of the component that is left out for each, shape ``(B,)``.
    """
    query, step = torch.cat([z.square(), z], -1), max(1, SCORES_AT_ONCE // len(z))

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(key), step):
            rows = slice(start, start + step)
            scores = torch.addmm(constant[rows], query, key[rows].mT)
            code = ((own >= start) & (own < start + step)).nonzero().squeeze(-1)
            scores[code, own[code] - start] = torch.finfo(scores.dtype).min
            yield rows, scores

    def exponentials(scores: Tensor, reference: Tensor) -> Tensor:
        return scores.sub_(reference.unsqueeze(-1)).clamp_(min=LEAST_SCORE).exp_()

    total = z.new_full((len(z),), -math.inf)
    for _, scores in blocks():
        largest = scores.amax(-1)
        total = torch.logaddexp(total, largest + exponentials(scores, largest).sum(-1).log())
    gradients = torch.zeros_like(key), torch.zeros_like(constant)
    for rows, scores in blocks():
        share = exponentials(scores, total)
        gradients[0][rows] = share.mT @ (query / -len(z))
        gradients[1][rows] = -share.mean(0)
    return gradients


def _standardised(agg: AggregatedPosterior, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances in units in which the means have mean 0 and variance 1."""
    variance = agg.mean_variance.flatten()
    variance = torch.where(variance > 0, variance, torch.ones_like(variance))  # never inflated
    standard = (loc.detach() - agg.mean.flatten()) / variance.sqrt()
    return standard, scale.square().detach() / variance


def _train(flow: FlowPrior, batches: Iterator[Tensor], recipe: Flow) -> None:
    """Maximum likelihood on batches of draws, one for each step."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for z in batches:
        with torch.enable_grad():
            density = flow()
            loss = -density.log_prob(z).mean()
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), STEEP)
        optimizer.step()
        schedule.step()
        density.clear_cache()
        if not loss.isfinite():
            raise InputError(f"expected a finite loss; got {float(loss)}. Lower the learning_rate.")


def _batches(source: AggregatedPosterior, recipe: Flow) -> Iterator[Tensor]:
    """Draws for every step, made for several steps at once."""
    steps_at_once = max(1, CODES_AT_ONCE // recipe.batch)
    for start in range(0, recipe.steps, steps_at_once):
        steps = min(steps_at_once, recipe.steps - start)
        yield from source.sample((steps * recipe.batch,)).split(recipe.batch)


def _start_seed(seed: int, start: int) -> int:
    """The seed of a start; with seed + start, neighbouring seeds would share starts."""
    return derived_seed(seed, "averaged start", start)


def _need_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise InputError(f"expected {name} of at least 1, a whole number; got {value!r}.")


def _need_vectors(agg: Mixture) -> None:
    if len(agg.event_shape) != 1:
        raise InputError(
            f"expected codes that are vectors, event shape (D,); got {tuple(agg.event_shape)}. "
            "Use Inflated, which takes any shape."
        )


def _need_normals(agg: Mixture) -> None:
    if not is_normal(agg.component_distribution):
        raise InputError(
            "expected normal components, whose variances can be inflated; got "
            f"{families.family(agg.component_distribution)}. Use Inflated(0)."
        )


def _two_diagonal_normals(agg: Mixture) -> tuple[Tensor, Tensor]:
    """Their means and scales."""
    normal = families.diagonal_normal(agg.component_distribution)
    _need_vectors(agg)
    if normal is None or agg.size < 2:
        raise InputError(
            "expected at least 2 diagonal normal components, to choose an amount for each unit; "
            f"got {agg.size} of {families.family(agg.component_distribution)}. Use Inflated."
        )
    return normal
