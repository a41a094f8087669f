"""Ways to turn an aggregated posterior into a density that holds for new data, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.mixture import families
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction import reduce
from pyrovae.models.priors import FlowPrior
from pyrovae.randomness import seeded

MOMENT_DRAWS = 64  # from each component, at least; four for each unit where that is more
HELD = 1 << 22  # numbers drawn at once


@dataclass(frozen=True)
class Inflated:
    """Every component with a multiple of the variance of the means added to its own.

    Args:
        amount: h ≥ 0, in units of Var_m(μ_m), per unit; 0 is the mixture as it is.
    """

    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise ValueError(f"expected an amount of at least 0; got {self.amount}.")

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"variances inflated by {self.amount:g} Var(μ)" if self.amount else "as it is"

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density."""
        return inflate(agg, self.amount)


@dataclass(frozen=True)
class InflatedByUnit:
    r"""An amount h_d for every unit: those of the largest leave-one-out density of training codes.

    .. math:: \max_h \sum_n \log \sum_{m ≠ n} w_m N(z_n; μ_m, σ_m^2 + h \operatorname{Var}(μ)),
              \qquad z_n \sim q(z | x_n)

    No held-out code has a say in them (Duin 1976, leave-one-out bandwidths of kernel densities).

    Args:
        steps: of Adam on log h, each for some codes.
        codes: codes in a step, each against all components.
    """

    steps: int = 40
    codes: int = 128

    @property
    def name(self) -> str:
        """What it is, in words."""
        return "variances inflated unit by unit"

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density; amounts start from those that suit a normal density (Silverman 1986)."""
        amount = leave_one_out_amounts(agg, steps=self.steps, codes=self.codes, seed=seed)
        return inflate(agg, amount)


@dataclass(frozen=True)
class Reduced:
    """K components fitted to all by `pyrovae.mixture.reduction.reduce`, or an average of such fits.

    An average over starts errs less than each of them: where they differ, they err.

    Args:
        components: K.
        covariance: of the components, "diagonal" or "full".
        shrinkage: how many data points the common covariance counts for in each component.
        starts: number of fits that are averaged, each from its own random start.

    Ormoneit & Tresp 1998, "Averaging, maximum penalized likelihood and Bayesian estimation for
    improving Gaussian mixture probability density estimates".
    """

    components: int
    covariance: Literal["diagonal", "full"] = "diagonal"
    shrinkage: float = 0.0
    starts: int = 1

    def __post_init__(self) -> None:
        if min(self.components, self.starts) < 1:
            raise ValueError(
                f"expected at least 1 component and 1 start; got {self.components}, {self.starts}."
            )

    @property
    def name(self) -> str:
        """What it is, in words."""
        plural = "s" if self.components > 1 else ""
        one = f"reduced to {self.components} component{plural}"
        of = f"{one} of full covariance" if self.covariance == "full" else one
        return of if self.starts == 1 else f"{of}, {self.starts} averaged"

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density."""
        found = [
            reduce(
                agg,
                self.components,
                covariance=self.covariance,
                shrinkage=self.shrinkage,
                draws=2,
                seed=seed + start,
            ).mixture
            for start in range(self.starts)
        ]
        if self.starts == 1:
            return found[0]
        components = families.concatenate([part.component_distribution for part in found])
        logits = torch.cat([part.log_weights for part in found])
        return Mixture(dist.Categorical(logits=logits), components)


@dataclass(frozen=True)
class Flow:
    """A normalising flow trained by maximum likelihood on fresh draws.

    Draws are from nine tenths of the components; training keeps the flow that is best for codes of
    the last tenth. Slow: seconds to minutes, longer where draws run a guide.

    Args:
        steps: of Adam, at most.
        batch: draws in a step.
        layers, hidden: of `FlowPrior`.
        learning_rate: of Adam at the start; it falls to 0 along a cosine.
    """

    steps: int = 1000
    batch: int = 256
    layers: int = 4
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 5e-3

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"a flow of {self.layers} couplings"

    def fit(self, agg: AggregatedPosterior, *, seed: int) -> dist.Distribution:
        """The density, in units of the standard deviations of some draws."""
        with seeded(seed, 2):
            order = torch.randperm(agg.size)
            test = agg[order[: max(1, agg.size // 10)]].sample((2000,))
            source = agg[order[max(1, agg.size // 10) :]]
            flow = FlowPrior(agg.event_shape.numel(), layers=self.layers, hidden=self.hidden)
            flow.to(test)
            some = agg.sample((2000,))  # moments need not be known in closed form
            standard = dist.transforms.AffineTransform(some.mean(0), some.std(0), event_dim=1)
            _train(flow, source, standard, test, self)
        base = flow.requires_grad_(False)()
        return dist.TransformedDistribution(base, [standard])


Recipe = Inflated | InflatedByUnit | Reduced | Flow


def inflate(agg: Mixture, amount: float | Tensor) -> Mixture:
    """The mixture with ``amount`` times the variance of its means added to every component.

    Args:
        agg: a mixture with normal components.
        amount: h ≥ 0, in units of the variance of the means, per unit; one for all units, or one
            for each, shape ``(D,)``.

    Raises:
        ValueError: if the components are not normal.
    """
    if not isinstance(amount, Tensor) and amount == 0:
        return agg
    components = agg.component_distribution
    if not is_normal(components):
        raise ValueError(
            "expected normal components, whose variances can be inflated; got "
            f"{families.family(components)}."
        )
    added = amount * agg.mean_variance
    if isinstance(components, families.CORRELATED_NORMALS):
        covariance = components.covariance_matrix + torch.diag(added)
        return Mixture(
            agg.mixture_distribution, dist.MultivariateNormal(components.mean, covariance)
        )
    wider = dist.Normal(components.mean, (components.variance + added).sqrt())
    return Mixture(agg.mixture_distribution, wider.to_event(len(agg.event_shape)))


def with_normals(agg: AggregatedPosterior, *, seed: int) -> AggregatedPosterior:
    r"""The mixture with normals for components without moments in closed form; else as it is.

    Each gets the mean and the covariance of draws from the component, as where latent sites depend
    on each other: of all normals these are closest to it in KL(component ‖ normal). Components that
    do not reach over all real numbers stay as they are.

    Args:
        agg: a mixture over vectors.
        seed: names the draws.
    """
    components = agg.component_distribution
    if not (isinstance(components, families.Editable) and _real(agg.support)):
        return agg
    dim = agg.event_shape.numel()
    draws = max(MOMENT_DRAWS, 4 * dim)
    means, factors = [], []
    with torch.no_grad(), seeded(seed, 4):
        for part in torch.arange(agg.size).split(max(1, HELD // (draws * dim))):
            z = families.take(components, part).sample(torch.Size([draws]))
            centred = (z - z.mean(0)).double()
            covariance = torch.einsum("snd,sne->nde", centred, centred) / (draws - 1)
            means.append(z.mean(0))
            factors.append(torch.linalg.cholesky(covariance).to(z))
    normals = dist.MultivariateNormal(torch.cat(means), scale_tril=torch.cat(factors))
    return AggregatedPosterior(normals, agg.weights)


def _real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def is_normal(components: dist.Distribution) -> bool:
    """Whether components are normal, with whatever covariance."""
    return families.diagonal_normal(components) is not None or isinstance(
        components, families.CORRELATED_NORMALS
    )


def leave_one_out_amounts(agg: AggregatedPosterior, *, steps: int, codes: int, seed: int) -> Tensor:
    """Amounts by unit that maximise the leave-one-out log density of codes, shape ``(D,)``."""
    normal = families.diagonal_normal(agg.component_distribution)
    if normal is None or agg.size < 2:
        raise ValueError(
            "expected at least 2 diagonal normal components, to choose an amount for each unit; "
            f"got {agg.size} of {families.family(agg.component_distribution)}."
        )
    loc, variance = ((t.detach() - shift) / unit for t, shift, unit in _standard(agg, *normal))
    size, dim = loc.shape
    start = -2 / (dim + 4) * math.log(size)  # Silverman's bandwidth, squared
    log_amount = loc.new_full((dim,), start).requires_grad_()
    optimizer = torch.optim.Adam([log_amount], lr=0.15)
    with seeded(seed, 3), torch.enable_grad():
        for _ in range(steps):
            index = torch.randperm(size, device=loc.device)[:codes]
            z = loc[index] + variance[index].sqrt() * torch.randn_like(loc[index])
            wide = variance + log_amount.exp()
            log_weight = agg.log_weights.detach() - 0.5 * wide.log().sum(-1)
            precision = wide.reciprocal()
            at_means = log_weight - 0.5 * (precision * loc.square()).sum(-1)
            scores = z.square() @ (-0.5 * precision).mT + z @ (precision * loc).mT + at_means
            others = torch.ones_like(scores).scatter(1, index.unsqueeze(-1), 0.0).bool()
            loss = -scores.masked_fill(~others, -math.inf).logsumexp(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return log_amount.detach().exp()


def _standard(
    agg: AggregatedPosterior, loc: Tensor, scale: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Means and variances, each with what centres them and what they are divided by."""
    unit, centre = agg.mean_variance.flatten(), agg.mean.flatten()
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))  # nothing is added to these
    return (loc, centre, unit.sqrt()), (scale.square(), torch.zeros_like(centre), unit)


def _train(
    flow: FlowPrior,
    source: AggregatedPosterior,
    standard: dist.transforms.AffineTransform,
    test: Tensor,
    recipe: Flow,
) -> None:
    """Maximum likelihood on draws from ``source``; keeps what is best for ``test``."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    best, kept = -math.inf, {k: v.clone() for k, v in flow.state_dict().items()}
    for step in range(1, recipe.steps + 1):
        with torch.enable_grad():
            density = flow()
            loss = -density.log_prob(standard.inv(source.sample((recipe.batch,)))).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        density.clear_cache()
        if step % 50 == 0 or step == recipe.steps:
            with torch.no_grad():
                value = float(flow().log_prob(standard.inv(test)).mean())
            if value > best:
                best, kept = value, {k: v.clone() for k, v in flow.state_dict().items()}
    flow.load_state_dict(kept)
