"""A density to sample codes from after training, chosen by how well it predicts held-out codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.display import Result
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
from pyrovae.mixture import AggregatedPosterior, Mixture, families
from pyrovae.pairs import PyroFunction, UnderPrior
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, seeded
from pyrovae.torch_modes import plain

INFLATIONS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
REDUCTIONS = (10, 25, 50, 100, 200, 400, 1000)
FULL_REDUCTIONS = (1, 10, 25, 50, 100, 200)
AVERAGED = (100, 400)
FULL_AVERAGED = (50, 200)
STARTS = 8
MANY = 20_000  # components; with more, each fit has enough data, and takes long
STARTS_OF_MANY = 2
PART = 5000  # of many components, on which candidates are tried first ...
ROWS = 1000  # ... and held-out data points that score them
FINALISTS = 3  # candidates that are fitted to all components then
CODES = 20_000  # that score these, if that is one of each data point at least
FLOW_UNITS = 16  # with more, a flow of so few steps can't come near the best mixtures
FLOW_POINTS = 1000  # data points; with fewer, its 1 to 3 seconds would be most of the time


@dataclass(frozen=True, repr=False)
class Candidate(Result):
    """One density that was tried.

    Args:
        name: the density in words.
        family: "inflated", "reduced", "reduced, full" or "flow".
        amount: the inflation h of the variances; for amounts by unit their geometric mean, which
            is the single amount that widens narrow kernels to the same volume; 0 if nothing was
            added.
        components: number of components; 0 for a flow.
        parameters: how many numbers describe the density; fewer is simpler.
        held_out: mean log density of held-out codes, with its standard error over held-out data.
        difference: ``held_out`` minus that of the best candidate, paired by data point.
        part: number of components on which it was tried and then left out, at a random part of the
            held-out data, by which the two numbers above are; 0 if it was fitted to all components
            and scored on all held-out data.
    """

    name: str
    family: str
    amount: float
    components: int
    parameters: int
    held_out: Estimate
    difference: Estimate
    part: int = 0


@dataclass(frozen=True, repr=False)
class ExPostPrior(Result):
    """The density that was chosen, with a table of all candidates.

    Args:
        distribution: the ex-post prior, event shape ``(D,)``.
        choice: name of the chosen candidate.
        table: one row per candidate, in the order in which they were tried.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> new = dist.Normal(means[::5] + 0.01, 0.5).to_event(1)
    >>> chosen = pv.fit_ex_post_prior(pv.AggregatedPosterior(encoding), held_out=new)
    >>> chosen.distribution.sample((3,)).shape
    torch.Size([3, 1])
    """

    distribution: dist.Distribution
    choice: str
    table: tuple[Candidate, ...]

    def in_model(self, model: PyroFunction, *, site: str = "z") -> UnderPrior:
        """The model with this prior at its latent site, all else shared; the guide stays the same.

        ``log_evidence(prior.in_model(model), guide, x)`` is log p(x) under the ex-post prior. For a
        ``VAE``, ``vae.with_prior(prior)`` gives model and guide in one.

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

    mixtures of far fewer components, of diagonal or full covariance, fitted to all of them,
    averages of several such fits, and a normalising flow. `default_candidates` lists what is tried
    by default, depending on the number of data points.

    If latent sites depend on each other, the mixtures have normals in place of the components, with
    means and covariances estimated from draws.

    The choice follows the one-standard-error rule: the *simplest* candidate whose held-out mean log
    density is within one standard error of the best. The error is that of the difference to the
    best, paired by data point: some points are hard for all candidates, which cancels in the
    difference. The error of the best candidate's own mean, as used for trees, would let in far
    worse ones. With fewer than 10 held-out points there is no standard error: the table says "too
    few rows to tell" of every candidate, and the simplest of all is taken.

    Of more than 20,000 components a random 5,000 are taken first: all candidates are fitted to
    these and scored on at most 1,000 held-out data points. Only the best three are then fitted to
    all components and, as these carry larger ones, the next larger reductions than the best two so
    far, until that gains nothing. The choice is among those; the table says of the others that they
    were tried on a part. At most 20,000 codes score these few, or one code of each
    held-out data point if that is more: all data points have their say, with fewer draws of each.

    Simpler means described by fewer numbers: K(2D + 1) − 1 for K diagonal normals,
    K(D + D(D + 1)/2 + 1) − 1 for full ones, the weights of a flow; among equals, the smoother one,
    with a larger mean h.

    Args:
        agg: the aggregated posterior of the training data.
        held_out: the encoding of at least two data points that the guide was not trained on.
            They make the choice: report the chosen density on other data.
        candidates: what to try, of ``Inflated``, ``InflatedByUnit``, ``Reduced`` and ``Flow``; by
            default `default_candidates`.
        draws: codes drawn from each held-out encoding, at least one; their log densities are
            averaged before the standard error over data is taken.
        seed: seed of these draws and of the fits; equal seeds give equal tables.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: before any fit, if there are no candidates, no draws or one candidate does not
            suit the components, or if ``held_out`` is not an encoding, has fewer than two data
            points, other units or codes that are not finite; after a fit, if a log density is NaN.

    Ghosh et al. 2020, "From variational to deterministic autoencoders", for ex-post density
    estimation; Breiman et al. 1984 for the one-standard-error rule.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> new = dist.Normal(means[::5] + 0.01, 0.5).to_event(1)
    >>> chosen = pv.fit_ex_post_prior(pv.AggregatedPosterior(encoding), held_out=new)
    >>> chosen.distribution.log_prob(torch.zeros(3, 1)).shape
    torch.Size([3])
    """
    check_seed(seed)
    codes = _held_out_codes(agg, held_out, draws=draws, seed=seed)
    normals = with_normals(agg, seed=seed)
    recipes = _recipes(candidates, normals)
    tried = _try_on_part(recipes, agg, codes, seed, progress)
    if tried:
        codes = codes[: max(1, CODES // codes.shape[1])]
    waiting, fitted = _finalists(recipes, tried), list[int]()
    steps = len(waiting)
    scores: list[_Score] = []
    # Only the choice so far stays in memory: each density may be as large as the mixture.
    leader, leading_density = -1, normals
    with torch.no_grad(), progress_bar("ex-post prior", steps, progress=progress) as bar:
        while waiting:
            recipe = recipes[waiting[0]]
            bar.update(f"ex-post prior · {recipe.name}")
            density, amount = _fit(recipe, agg, normals, seed)
            scores.append(_score(recipe, density, amount, codes))
            fitted.append(waiting.pop(0))
            if _simplest(_table(scores)) == len(fitted) - 1:
                leader, leading_density = len(fitted) - 1, density
            del density
            waiting = waiting or _next_larger(recipes, fitted, scores)
            if not waiting or len(fitted) < steps:  # the last step lasts as long as larger ones do
                bar.tick()
        table = _table(scores)
        choice = _simplest(table)
        if choice != leader:  # a new best one with a larger error has brought back an earlier one
            leading_density, _ = _fit(recipes[fitted[choice]], agg, normals, seed)
    rows = tried | dict(zip(fitted, table, strict=True))
    everything = tuple(rows[i] for i in range(len(recipes)))
    return ExPostPrior(leading_density, table[choice].name, everything)


def default_candidates(agg: AggregatedPosterior) -> tuple[Recipe, ...]:
    """What is tried by default: all that is cheap and suits the components.

    - The mixture as it is, and inflated by 0.05, 0.1, 0.2, 0.5 and 1; over vectors with diagonal
      components, also unit by unit.
    - Reduced to 10, 25, 50, 100, 200, 400 and 1,000 diagonal components, and to 1, 10, 25, 50, 100
      and 200 of full covariance.
    - Averages of fits of 100 and 400 diagonal components, and of 50 and 200 full ones: eight fits
      each, or two for more than 20,000 data points, so that it takes minutes at most.
    - A flow of 2 couplings and 200 steps, if codes have 2 to 16 units and there are at least 1,000
      data points. It takes 1 to 3 seconds, whatever their number; with more units a flow needs more
      steps to be of use: try ``Flow(1000)``.

    Reductions have at least three data points for each component. Full covariances are shrunk by
    three data points for every four units, less if fits are averaged, which also smooths (amounts
    chosen on codes of silhouettes). If components are not normal, only the mixture as it is.
    """
    if not is_normal(agg.component_distribution):
        return (Inflated(),)
    recipes: list[Recipe] = [Inflated(amount) for amount in INFLATIONS]
    if len(agg.event_shape) != 1:
        return tuple(recipes)
    if families.diagonal_normal(agg.component_distribution) is not None and agg.size > 1:
        recipes.append(InflatedByUnit())
    dim = agg.event_shape.numel()
    reductions = [Reduced(size, shrinkage=3.0) for size in REDUCTIONS]
    reductions += [Reduced(size, "full", 0.75 * dim) for size in FULL_REDUCTIONS]
    starts = STARTS if agg.size <= MANY else STARTS_OF_MANY
    reductions += [Reduced(size, shrinkage=1.0, starts=starts) for size in AVERAGED]
    reductions += [Reduced(size, "full", 0.4 * dim, starts) for size in FULL_AVERAGED]
    recipes += [recipe for recipe in reductions if 3 * recipe.components <= agg.size]
    if 2 <= dim <= FLOW_UNITS and agg.size >= FLOW_POINTS:
        recipes.append(Flow())
    return tuple(recipes)


def _held_out_codes(
    agg: AggregatedPosterior, held_out: dist.Distribution, *, draws: int, seed: int
) -> Tensor:
    """Codes of the held-out data, shape ``(draws, M, *event_shape)``.

    Raises:
        InputError: if they can't be scored.
    """
    if not isinstance(agg, Mixture):
        raise InputError(
            f"expected an aggregated posterior; got {type(agg).__name__}. Use aggregate(guide, "
            "train), or AggregatedPosterior(encoding)."
        )
    remedy = "Use encode(guide, validation), on data that the guide was not trained on."
    if not isinstance(held_out, torch.distributions.Distribution):
        raise InputError(
            f"expected held_out to be an encoding; got {type(held_out).__name__}. {remedy}"
        )
    batch, event = tuple(held_out.batch_shape), tuple(held_out.event_shape)
    if len(batch) != 1 or batch[0] < 2 or event != tuple(agg.event_shape):
        raise InputError(
            "expected held_out to be the encoding of at least 2 data points, batch shape (M,), "
            f"with event shape {tuple(agg.event_shape)} as the mixture's; got batch shape {batch} "
            f"and event shape {event}. {remedy}"
        )
    if not isinstance(draws, Integral) or draws < 1:
        raise InputError(f"expected draws of at least 1, a whole number; got {draws!r}. Try 4.")
    with torch.no_grad(), seeded(seed, "codes to choose on"):
        codes: Tensor = held_out.sample(torch.Size([draws]))
    faults = ~codes.isfinite().flatten(2).all(2).all(0)
    if faults.any():
        raise InputError(
            f"expected finite held-out codes; got others at {int(faults.sum())} of {len(faults)} "
            f"data points, the first in row {int(faults.nonzero()[0])}. Check these data and the "
            "guide."
        )
    return codes


def _recipes(candidates: Sequence[Recipe] | None, agg: AggregatedPosterior) -> tuple[Recipe, ...]:
    """The candidates to try, checked.

    Raises:
        InputError: before any fit, if there are none, or some that can't be fitted.
    """
    if candidates is None:
        return default_candidates(agg)
    if not isinstance(candidates, Sequence) or not candidates:
        value = repr(candidates) if candidates else "none"
        raise InputError(f"expected at least one candidate; got {value}. Try [Inflated(0.2)].")
    for recipe in candidates:
        if not isinstance(recipe, Recipe):
            raise InputError(
                "expected candidates like Inflated(0.2), InflatedByUnit(), Reduced(100) or "
                f"Flow(); got {recipe!r}. Give such values."
            )
        recipe.check(agg)
    return tuple(candidates)


def _try_on_part(
    recipes: Sequence[Recipe],
    agg: AggregatedPosterior,
    codes: Tensor,
    seed: int,
    progress: bool | None,
) -> dict[int, Candidate]:
    """Candidates fitted to a random part of many components, by number; empty if all are finalists.

    Reductions to more components than a third of the part are not tried on it.
    """
    weighted = agg.masses.nonzero().squeeze(-1)
    numbers = [
        i for i, recipe in enumerate(recipes)
        if not isinstance(recipe, Reduced) or 3 * recipe.components <= PART
    ]  # fmt: skip
    if len(weighted) <= MANY or len(numbers) <= FINALISTS:
        return {}
    with torch.no_grad(), seeded(seed, "part of the components"):
        part = agg[weighted[torch.randperm(len(weighted))[:PART].to(weighted.device)]]
        codes = codes[:, torch.randperm(codes.shape[1])[:ROWS].to(codes.device)]
    normals = with_normals(part, seed=seed)
    scores = []
    with torch.no_grad(), progress_bar("on a part", len(numbers), progress=progress) as bar:
        for recipe in (recipes[i] for i in numbers):
            bar.update(f"on a part · {recipe.name}")
            scores.append(_score(recipe, *_fit(recipe, part, normals, seed), codes))
            bar.tick()
    rows = (replace(row, part=part.size) for row in _table(scores))
    return dict(zip(numbers, rows, strict=True))


def _finalists(recipes: Sequence[Recipe], tried: Mapping[int, Candidate]) -> list[int]:
    """Numbers of the candidates to fit to all components, in the order in which they are listed."""
    left_out = sorted(tried, key=lambda i: -tried[i].held_out.value)[FINALISTS:]
    return [i for i in range(len(recipes)) if i not in left_out]


def _next_larger(
    recipes: Sequence[Recipe], fitted: Sequence[int], scores: Sequence[_Score]
) -> list[int]:
    """Numbers of the reductions next in size to the best two so far, unless they are fitted."""
    means = {i: float(score.values.mean()) for i, score in zip(fitted, scores, strict=True)}
    following = []
    for best in (recipes[i] for i in sorted(means, key=lambda i: -means[i])[:2]):
        larger = {
            recipe.components: i for i, recipe in enumerate(recipes)
            if isinstance(best, Reduced) and isinstance(recipe, Reduced)
            and recipe.components > best.components
            and replace(recipe, components=best.components) == best
        }  # fmt: skip
        following += [larger[size] for size in sorted(larger)[:1]]
    return [i for i in following if i not in fitted]


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
    density = copy(density)  # so that what evaluation caches goes away with the copy
    value: Tensor = density.log_prob(codes).double().mean(0)
    if value.isnan().any():
        raise InputError(
            f"expected log densities of held-out codes; got NaN under '{recipe.name}'. Leave it "
            "out of the candidates."
        )
    return value


class _Score(NamedTuple):
    """The columns of a table row, and mean log densities by data point, shape ``(M,)``."""

    row: dict[str, Any]
    values: Tensor


def _score(recipe: Recipe, density: dist.Distribution, amount: float, codes: Tensor) -> _Score:
    family = {Inflated: "inflated", InflatedByUnit: "inflated", Reduced: "reduced"}
    full = isinstance(recipe, Reduced) and recipe.covariance == "full"
    row = {
        "name": recipe.name,
        "family": "reduced, full" if full else family.get(type(recipe), "flow"),
        "amount": amount,
        "components": density.size if isinstance(density, Mixture) else 0,
        "parameters": _parameters(density),
    }
    return _Score(row, _mean_log_density(density, codes, recipe))


def _table(scores: Sequence[_Score]) -> tuple[Candidate, ...]:
    """Candidates, compared with the best of them."""
    best = max((values for _, values in scores), key=lambda values: float(values.mean()))
    return tuple(
        Candidate(**row, held_out=mean_estimate(values), difference=mean_estimate(values - best))
        for row, values in scores
    )


def _parameters(density: dist.Distribution) -> int:
    """How many numbers describe a density; components that are not normal count as their means."""
    if isinstance(density, torch.distributions.TransformedDistribution):
        modules = [t for t in density.transforms if isinstance(t, torch.nn.Module)]
        in_transforms = sum(p.numel() for module in modules for p in module.parameters())
        return in_transforms + _parameters(density.base_dist)
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
