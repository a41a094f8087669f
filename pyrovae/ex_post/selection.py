"""A density to sample codes from after training, chosen by how well it predicts held-out codes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.ex_post.candidates import (
    Flow,
    Inflated,
    InflatedByUnit,
    Recipe,
    Reduced,
    inflate,
    is_normal,
    with_normals,
)
from pyrovae.isolation import plain
from pyrovae.mixture import AggregatedPosterior, Mixture, families
from pyrovae.pairs import PyroFunction, UnderPrior
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, seeded

INFLATIONS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
REDUCTIONS = (10, 25, 50, 100, 200, 400, 1000)
FULL_REDUCTIONS = (1, 10, 25, 50, 100, 200)
AVERAGED = (100, 400)
FULL_AVERAGED = (50, 200)
STARTS = 8
MANY = 20_000  # components, from which on each fit has data enough, and takes long
STARTS_OF_MANY = 2
FLOW_UNITS = 16  # up to which so few steps can come near the best mixtures
FLOW_POINTS = 1000  # data points; with fewer, its 1 to 3 seconds would be most of the time


@dataclass(frozen=True)
class Candidate:
    """One density that was tried.

    Args:
        name: what it is, in words.
        family: "inflated", "reduced", "reduced, full" or "flow".
        amount: the inflation h of the variances; of amounts by unit, their geometric mean, which
            is the one amount that widens narrow kernels to the same volume; 0 where nothing was
            added.
        components: number of components; 0 for a flow.
        parameters: how many numbers describe the density; fewer is simpler.
        held_out: mean log density of held-out codes, with its standard error over held-out data.
        difference: the same minus that of the best candidate, paired by data point.
    """

    name: str
    family: str
    amount: float
    components: int
    parameters: int
    held_out: Estimate
    difference: Estimate


@dataclass(frozen=True)
class ExPostPrior:
    """The density that was chosen, and everything that it was chosen from.

    Args:
        distribution: the ex-post prior, event shape ``(D,)``.
        choice: name of the chosen candidate.
        table: one row per candidate, as they were tried.
    """

    distribution: dist.Distribution
    choice: str
    table: tuple[Candidate, ...]

    def in_model(self, model: PyroFunction, *, site: str = "z") -> UnderPrior:
        """The model with this prior at its latent site, all else shared; the guide stays the same.

        ``log_evidence(found.in_model(model), guide, x)`` is log p(x) under the ex-post prior. For a
        ``VAE``, ``vae.with_prior(found)`` gives model and guide in one.

        Args:
            model: the Pyro model whose guide was aggregated.
            site: name of its latent site.

        Raises:
            InputError: for several sites.
        """
        return UnderPrior(model, self.distribution, site=site)


@plain()
def fit_ex_post_prior(
    agg: AggregatedPosterior,
    *,
    held_out: dist.Distribution,
    candidates: Sequence[Recipe] | None = None,
    draws: int = 4,
    seed: int = 0,
    progress: bool | None = None,
) -> ExPostPrior:
    r"""Choose a smoothed or reduced aggregated posterior by the log density of held-out codes.

    The aggregated posterior is a kernel density estimate that has memorised its data: its kernels,
    the encoder's, are far too narrow for codes of new data. Candidates are mixtures of wider ones,

    .. math:: q_h(z) = \sum_n w_n N(z; μ_n, σ_n^2 + h \operatorname{Var}_m(μ_m)),

    mixtures of far fewer components, of diagonal or full covariance, fitted to all of them, and
    averages of several such fits, and a normalising flow. What is tried by default, as far as
    there are data points enough, is listed by `default_candidates`.

    Components of latent sites that depend on each other stand in the mixtures as normals of the
    same means and covariances, by draws from each.

    The choice follows the one-standard-error rule: the *simplest* candidate whose held-out mean log
    density is within one standard error of the best. The error is that of the difference to the
    best, paired by data point: whether a point is hard is common to all candidates and cancels,
    where the error of the best's own mean, as in trees, would let in far worse ones. With fewer
    than 10 held-out points no error can be told: the table says "too few rows to tell" of every
    candidate, and the simplest of all is taken.

    Simpler means fewer numbers that describe it: K(2D + 1) − 1 for K diagonal normals,
    K(D + D(D + 1)/2 + 1) − 1 for full ones, the weights of a flow; and with as many, smoother: a
    larger mean h.

    Args:
        agg: the aggregated posterior of the training data.
        held_out: the encoding of at least two data points that the guide was not trained on.
            The table was used for the choice: report the chosen density on other data.
        candidates: what to try, of ``Inflated``, ``InflatedByUnit``, ``Reduced`` and ``Flow``; by
            default `default_candidates`.
        draws: codes drawn from each held-out encoding, at least one; their log densities are
            averaged before the standard error over data is taken.
        seed: seed of these draws and of the fits; the same gives the same table.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: before any fit for no candidate, one that the components do not allow, no
            draws, or a held-out encoding that is none, has fewer than two data points, other units
            or codes that are not finite; after a fit for a log density that is no number.

    Ghosh et al. 2020, "From variational to deterministic autoencoders", for ex-post density
    estimation; Breiman et al. 1984 for the one-standard-error rule.
    """
    check_seed(seed)
    codes = _held_out_codes(agg, held_out, draws=draws, seed=seed)
    normals = with_normals(agg, seed=seed)
    recipes = _recipes(candidates, normals)
    tried: list[_Tried] = []
    leading, held = -1, normals  # the choice so far alone: each may be as large as the mixture
    with torch.no_grad(), progress_bar("ex-post prior", len(recipes), progress=progress) as bar:
        for number, recipe in enumerate(recipes):
            bar.update(f"ex-post prior · {recipe.name}")
            density, amount = _fit(recipe, agg, normals, seed)
            tried.append(_score(recipe, density, amount, codes))
            if _simplest(_table(tried)) == number:
                leading, held = number, density
            del density
            bar.tick()
        table = _table(tried)
        chosen = _simplest(table)
        if chosen != leading:  # a new best has brought back an earlier one
            held, _ = _fit(recipes[chosen], agg, normals, seed)
    return ExPostPrior(held, table[chosen].name, table)


def default_candidates(agg: AggregatedPosterior) -> tuple[Recipe, ...]:
    """What is tried if nothing is said: all that is cheap for the components there are.

    - The mixture as it is, and inflated by 0.05, 0.1, 0.2, 0.5 and 1; over vectors, of diagonal
      components, unit by unit too.
    - Reduced to 10, 25, 50, 100, 200, 400 and 1,000 diagonal components, and to 1, 10, 25, 50, 100
      and 200 of full covariance.
    - Averages of fits of 100 and 400 diagonal components, and of 50 and 200 full ones: of eight
      fits, or two of more than 20,000 components, to keep this to minutes.
    - A flow of 2 couplings by 200 steps, where codes have 2 to 16 units and there are at least
      1,000 data points. It takes 1 to 3 seconds, whatever their number; with more units a flow
      needs more steps than that to be of use: ask for ``Flow(1000)``.

    Reductions leave at least three data points to a component. Full covariances are shrunk by
    three data points for every four units, less where fits are averaged, which smooths too (amounts
    found on codes of silhouettes). Of components that are not normal, the mixture as it is alone.
    """
    if not is_normal(agg.component_distribution):
        return (Inflated(),)
    found: list[Recipe] = [Inflated(amount) for amount in INFLATIONS]
    if len(agg.event_shape) != 1:
        return tuple(found)
    if families.diagonal_normal(agg.component_distribution) is not None and agg.size > 1:
        found.append(InflatedByUnit())
    dim = agg.event_shape.numel()
    tried = [Reduced(size, shrinkage=3.0) for size in REDUCTIONS]
    tried += [Reduced(size, "full", 0.75 * dim) for size in FULL_REDUCTIONS]
    starts = STARTS if agg.size <= MANY else STARTS_OF_MANY
    tried += [Reduced(size, shrinkage=1.0, starts=starts) for size in AVERAGED]
    tried += [Reduced(size, "full", 0.4 * dim, starts) for size in FULL_AVERAGED]
    found += [recipe for recipe in tried if 3 * recipe.components <= agg.size]
    if 2 <= dim <= FLOW_UNITS and agg.size >= FLOW_POINTS:
        found.append(Flow())
    return tuple(found)


def _held_out_codes(
    agg: AggregatedPosterior, held_out: dist.Distribution, *, draws: int, seed: int
) -> Tensor:
    """Codes of the held-out data, shape ``(draws, M, *event_shape)``.

    Raises:
        InputError: for what cannot be scored.
    """
    if not isinstance(agg, Mixture):
        raise InputError(
            f"expected an aggregated posterior; got {type(agg).__name__}. Use aggregate(guide, "
            "train), or AggregatedPosterior(encoding)."
        )
    how = "Use encode(guide, validation), on data that the guide was not trained on."
    if not isinstance(held_out, torch.distributions.Distribution):
        raise InputError(
            f"expected held_out to be an encoding; got {type(held_out).__name__}. {how}"
        )
    batch, event = tuple(held_out.batch_shape), tuple(held_out.event_shape)
    if len(batch) != 1 or batch[0] < 2 or event != tuple(agg.event_shape):
        raise InputError(
            "expected held_out to be the encoding of at least 2 data points, batch shape (M,), "
            f"with event shape {tuple(agg.event_shape)} as the mixture's; got batch shape {batch} "
            f"and event shape {event}. {how}"
        )
    if not isinstance(draws, Integral) or draws < 1:
        raise InputError(f"expected draws of at least 1, a whole number; got {draws!r}. Try 4.")
    with torch.no_grad(), seeded(seed, "codes to choose on"):
        codes: Tensor = held_out.sample(torch.Size([draws]))
    bad = ~codes.isfinite().flatten(2).all(2).all(0)
    if bad.any():
        raise InputError(
            f"expected finite held-out codes; got others at {int(bad.sum())} of {len(bad)} data "
            f"points, the first in row {int(bad.nonzero()[0])}. Check these data and the guide."
        )
    return codes


def _recipes(candidates: Sequence[Recipe] | None, agg: AggregatedPosterior) -> tuple[Recipe, ...]:
    """What is to be tried.

    Raises:
        InputError: before any fit, if there is nothing, or something that cannot be fitted.
    """
    if candidates is None:
        return default_candidates(agg)
    if not isinstance(candidates, Sequence) or not candidates:
        given = repr(candidates) if candidates else "none"
        raise InputError(f"expected at least one candidate; got {given}. Try [Inflated(0.2)].")
    for recipe in candidates:
        if not isinstance(recipe, Recipe):
            raise InputError(
                "expected candidates like Inflated(0.2), InflatedByUnit(), Reduced(100) or "
                f"Flow(); got {recipe!r}. Give such values."
            )
        recipe.check(agg)
    return tuple(candidates)


def _fit(
    recipe: Recipe, agg: AggregatedPosterior, normals: AggregatedPosterior, seed: int
) -> tuple[dist.Distribution, float]:
    """The density, and the mean amount by which variances were inflated."""
    source = agg if isinstance(recipe, Flow) else normals  # a flow is fitted to draws
    if isinstance(recipe, InflatedByUnit):
        by_unit = recipe.amounts(source, seed=seed)
        return inflate(source, by_unit), float(by_unit.double().log().mean().exp())
    amount = recipe.amount if isinstance(recipe, Inflated) else 0.0
    return recipe.fit(source, seed=seed), amount


def _mean_log_density(density: dist.Distribution, codes: Tensor, recipe: Recipe) -> Tensor:
    """For each held-out data point the mean over its codes, shape ``(M,)``."""
    density = copy(density)  # with an evaluator of its own, which is not held on to
    value: Tensor = density.log_prob(codes).double().mean(0)
    if value.isnan().any():
        raise InputError(
            f"expected log densities of held-out codes; got NaN under '{recipe.name}'. Leave it "
            "out of the candidates."
        )
    return value


class _Tried(NamedTuple):
    """What a row of the table is made of, and mean log densities by data point, ``(M,)``."""

    row: dict[str, Any]
    values: Tensor


def _score(recipe: Recipe, density: dist.Distribution, amount: float, codes: Tensor) -> _Tried:
    family = {Inflated: "inflated", InflatedByUnit: "inflated", Reduced: "reduced"}
    full = isinstance(recipe, Reduced) and recipe.covariance == "full"
    row = {
        "name": recipe.name,
        "family": "reduced, full" if full else family.get(type(recipe), "flow"),
        "amount": amount,
        "components": density.size if isinstance(density, Mixture) else 0,
        "parameters": _parameters(density),
    }
    return _Tried(row, _mean_log_density(density, codes, recipe))


def _table(tried: Sequence[_Tried]) -> tuple[Candidate, ...]:
    """Candidates beside the best of them."""
    best = max((values for _, values in tried), key=lambda values: float(values.mean()))
    return tuple(
        Candidate(**row, held_out=mean_estimate(values), difference=mean_estimate(values - best))
        for row, values in tried
    )


def _parameters(density: dist.Distribution) -> int:
    """How many numbers describe a density; of components that are not normal, their means."""
    if isinstance(density, torch.distributions.TransformedDistribution):
        modules = [t for t in density.transforms if isinstance(t, torch.nn.Module)]
        own = sum(p.numel() for module in modules for p in module.parameters())
        return own + _parameters(density.base_dist)
    if not isinstance(density, Mixture):
        return 0  # the fixed base of a flow
    dim = density.event_shape.numel()
    if isinstance(density.component_distribution, families.CORRELATED_NORMALS):
        spread = dim * (dim + 1) // 2
    else:
        spread = dim if is_normal(density.component_distribution) else 0
    return density.size * (dim + spread + 1) - 1


def _simplest(table: Sequence[Candidate]) -> int:
    """The simplest candidate within one standard error of the best."""
    close = [
        i for i, row in enumerate(table) if -row.difference.value <= row.difference.standard_error
    ]
    return min(close, key=lambda i: (table[i].parameters, -table[i].amount))
