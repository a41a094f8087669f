"""log p(x) of held-out rows under densities that take no network and seconds to fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Data, all_rows, as_batch, units
from pyrovae.diagnostics.advice import change_from
from pyrovae.display import Result
from pyrovae.errors import InputError, nearest
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.evidence import Evidence
from pyrovae.extras import MissingPackage, needed_for
from pyrovae.mixture import families
from pyrovae.models import takes_totals
from pyrovae.pairs import Pair, modules_of, observe
from pyrovae.randomness import check_seed, derived_seed, seeded

#: The likelihoods of entries whose values can be listed or counted, by family.
FAMILIES = {
    "Bernoulli": "bernoulli",
    "Categorical": "categorical",
    "DiscretizedLogistic": "logistic",
    "NegativeBinomial": "negative_binomial",
    "Poisson": "negative_binomial",
}
#: What each likelihood is compared with: densities, or probabilities of values one can list.
KINDS = {
    "normal": "density",
    "bernoulli": "categories",
    "categorical": "categories",
    "logistic": "categories",
    "negative_binomial": "counts",
}
COMPONENTS = (2, 5, 10, 20)  # of the mixtures that one is chosen among
MOST_ROWS = 5_000  # that a mixture is fitted to
WIDEST_FULL = 100  # entries of a row up to which components have a full covariance
MOST_LEVELS = 10_000  # entries of a row times their categories, for a mixture
AT_ONCE = 1 << 21  # of these that are in memory at a time
ROUNDS = 40  # of expectation and maximisation
KEPT_BACK = 0.2  # share of the training rows by which the number of components is chosen
FLOORS = (1e-3, 3e-2)  # added to the variances of a mixture's Gaussians, in those of the data
DISPERSIONS = 1e-2, 1e6  # least and greatest inverse dispersion of an entry
WIDEST_COUNTS = 500  # entries of a row up to which counts get a mixture
TOO_WIDE = "a row has too many entries for a mixture that takes seconds"
NO_DENSITY = (
    "a density can't be compared with the probability of values that can be listed, so Gaussians "
    "have no place here"
)


@dataclass(frozen=True, repr=False)
class Baselines(Result):
    """log p(x) of held-out rows under simple densities fitted to the training rows, in nats.

    Args:
        values: log p(x) of each row under each of them, exact, shape ``(N,)``.
        names: what each of them is, in words.
        left_out: what has no place here, or could not be fitted, with the reason.
    """

    values: Mapping[str, Tensor]
    names: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def means(self) -> dict[str, Estimate]:
        """Mean log p(x) under each of them; the standard error is over data."""
        return {name: mean_estimate(values) for name, values in self.values.items()}

    def gains(self, model: Evidence) -> dict[str, Estimate]:
        """Mean of log p(x) under a model less that under each of them, paired by row.

        It can't be told where k̂ rejects the model's log p(x) at more than 5 % of the rows. Where
        the model's is a lower bound, so is the difference.

        Args:
            model: log p(x) of the same rows, in their order.

        Raises:
            InputError: for another number of rows.
        """
        zeros = torch.zeros_like(model.values)
        gains = {}
        for name, values in self.values.items():
            exact = replace(
                model, values=values.to(zeros), standard_error=zeros, pareto_k=zeros, needed=0.0
            )
            gains[name] = replace(change_from(exact, model), bound=model.bound)
        return gains

    @property
    def best(self) -> str | None:
        """The one with the highest mean log p(x); ``None`` if there is none."""
        means = {name: float(values.mean()) for name, values in self.values.items()}
        return max(means, key=lambda name: means[name]) if means else None


def baselines(
    train: Data,
    held_out: Data,
    *,
    likelihood: str = "normal",
    latent: int = 10,
    totals: bool = False,
    seed: int = 0,
) -> Baselines:
    r"""Fit simple densities to training rows, and evaluate them at held-out rows.

    A model with a latent space is worth its trouble if it explains new rows better than these. Of
    continuous rows they are a Gaussian with full covariance (shrunk as Ledoit & Wolf say),
    probabilistic PCA with as many units as the model, and a mixture of Gaussians; of zeros and
    ones, categories and grey levels independent entries, and a mixture of such:

    .. math:: p(x) = \sum_k w_k \prod_j \theta_{kj x_j}

    of counts the same with negative binomials. The number of components is chosen by a fifth of the
    training rows; held-out rows choose nothing. Mixtures are fitted to 5,000 rows at most.

    Args:
        train, held_out: rows, shapes ``(N, ...)`` and ``(M, ...)``.
        likelihood: what the model says of an entry: ``"normal"``, which stands for every density,
            ``"bernoulli"``, ``"categorical"``, ``"logistic"`` or ``"negative_binomial"``.
        latent: D, the units of probabilistic PCA.
        totals: whether p(x) is given the total of each row, as that of a VAE of counts is.
        seed: names the rows kept back and where the mixtures start.

    Returns:
        log p(x) of each held-out row, in nats, and in the units of the rows as they were given.

    Raises:
        InputError: for another likelihood, or fewer than 10 training rows.
        MissingPackage: if scikit-learn is not installed.

    Tipping & Bishop 1999, "Probabilistic principal component analysis"; Ledoit & Wolf 2004.

    >>> import pyrovae as pv, torch
    >>> rows = torch.randn(120, 3)
    >>> list(pv.baselines(rows[:100], rows[100:], latent=2).names)
    ['gaussian', 'ppca', 'mixture']
    """
    check_seed(seed)
    if likelihood not in KINDS:
        hint = nearest(likelihood, KINDS) or " Choose one of them."
        raise InputError(f"expected one of {', '.join(KINDS)}; got {likelihood!r}.{hint}")
    given, others = (all_rows(data)[0].detach().cpu() for data in (train, held_out))
    image = given.dim() > 2
    rows, new = given.double().flatten(1), others.double().flatten(1)
    if len(rows) < 10 or rows.shape[1] != new.shape[1]:
        raise InputError(
            f"expected at least 10 training rows, and held-out rows as wide; got {len(rows)} of "
            f"{rows.shape[1]} entries and {len(new)} of {new.shape[1]}. Give other rows."
        )
    kind = KINDS[likelihood]
    whole = all(bool(((x % 1 == 0) & (x >= 0)).all()) for x in (rows, new))
    if kind != "density" and not whole:
        raise InputError(
            f"expected whole numbers, 0, 1, …, with the likelihood {likelihood!r}; got others. "
            "Draw grey values as zeros and ones, or name the likelihood normal."
        )
    if kind == "density":
        return _densities(rows, new, latent, seed, image=image)
    if kind == "counts":
        return _counts(rows, new, totals=totals, seed=seed)
    return _categories(rows.long(), new.long(), seed)


def _kept_back(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the rows to fit mixtures to, and of those that choose among them."""
    with seeded(seed, "rows kept back from baselines"):
        order = torch.randperm(size)
    last = max(1, int(KEPT_BACK * size))
    return order[last : last + MOST_ROWS], order[:last][:MOST_ROWS]


def baselines_of(
    pair: Pair, train: Tensor, held_out: Tensor, likelihood: dist.Distribution, *, units: int,
    seed: int,
) -> Baselines | str:  # fmt: skip
    """Those that a pair's p(x) can be compared with; or, in words, why there are none.

    Args:
        pair: over rows.
        train, held_out: rows of the pair.
        likelihood: p(x | z) of some rows.
        units: of the latent space.
        seed: as for `baselines`.
    """
    sites = pair.model_reader.read(as_batch(train[:2]))[0].data_sites
    if len(sites) != 1:
        return f"p(x) is of several sites at once, {', '.join(sites)}"
    family = families.innermost(likelihood)
    name = FAMILIES.get(type(family).__name__) or _continuous(family)
    if not name:
        return f"nothing as simple is known to compare a {type(family).__name__} likelihood with"
    networks = modules_of(pair.model)
    try:
        return baselines(
            observe(pair, train)[1],
            observe(pair, held_out)[1],
            likelihood=name,
            latent=units,
            totals=any(takes_totals(network) for network in networks),
            seed=seed,
        )
    except MissingPackage as error:
        return error.remedy
    except InputError as error:
        return str(error)


def _continuous(family: dist.Distribution) -> str:
    """The name of all densities, if the family has one; else nothing."""
    if isinstance(family, dist.Delta | dist.MaskedDistribution):
        return ""
    try:
        return "" if family.support.is_discrete else "normal"
    except (AttributeError, NotImplementedError):  # as a family without a support of its own
        return ""


# -- densities -----------------------------------------------------------------------------------


def _densities(rows: Tensor, new: Tensor, latent: int, seed: int, *, image: bool) -> Baselines:
    """Gaussian, probabilistic PCA and mixture of Gaussians, in standardised units and back."""
    with needed_for("the comparison with simple densities"):
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA
    location, scale = units(rows, image=image)
    x, y = ((part - location).div(scale).numpy() for part in (rows, new))
    jacobian = -float(scale.log().expand(rows.shape[1]).sum())
    values, names = {}, {}
    covariance = LedoitWolf().fit(x)
    values["gaussian"] = _gaussian(y, covariance.location_, covariance.covariance_)
    names["gaussian"] = "Gaussian of full covariance"
    units_of_pca = min(latent, x.shape[1] - 1, len(x) - 1)
    if units_of_pca >= 1:
        pca = PCA(units_of_pca).fit(x)
        values["ppca"] = _gaussian(y, pca.mean_, pca.get_covariance())
        plural = "" if units_of_pca == 1 else "s"
        names["ppca"] = f"probabilistic PCA, {units_of_pca} unit{plural}"
    values["mixture"], names["mixture"] = _gaussian_mixture(x, y, seed)
    return Baselines({k: torch.as_tensor(v) + jacobian for k, v in values.items()}, names)


def _gaussian(x: Any, mean: Any, covariance: Any) -> Any:
    """log N(x; mean, covariance), whose least variance is that by which a mixture's are raised."""
    variances, axes = np.linalg.eigh(covariance)
    variances = variances.clip(min=FLOORS[0])
    squares = np.square((x - mean) @ axes) / variances
    return -0.5 * (squares + np.log(2 * math.pi * variances)).sum(1)


def _gaussian_mixture(x: Any, y: Any, seed: int) -> tuple[Any, str]:
    """log p of new rows under a mixture of Gaussians, and its name."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    fitted, choosing = (part.numpy() for part in _kept_back(len(x), seed))
    kinds = ("full", "diag") if x.shape[1] <= WIDEST_FULL else ("diag",)
    sizes = [count for count in COMPONENTS if count <= len(fitted) // 5] or [1]
    candidates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the rows that choose see the result
        for kind, floor in product(kinds, FLOORS):
            reached = -math.inf
            for components in sizes:
                mixture = GaussianMixture(
                    components, covariance_type=kind, reg_covar=floor, max_iter=ROUNDS,
                    random_state=derived_seed(seed, "mixture of Gaussians", bits=32),
                )  # fmt: skip
                score = mixture.fit(x[fitted]).score(x[choosing])
                candidates.append((score, mixture))
                if score < reached:
                    break  # more components would be worse still
                reached = score
    best = max(candidates, key=lambda candidate: candidate[0])[1]
    covariance = {"full": "full", "diag": "diagonal"}[best.covariance_type]
    name = f"mixture of {best.n_components} Gaussians of {covariance} covariance"
    return best.score_samples(y), name


# -- values that can be listed -------------------------------------------------------------------


def _categories(rows: Tensor, new: Tensor, seed: int) -> Baselines:
    """Independent entries, and a mixture of such, by the shares of each category."""
    levels = int(torch.cat([rows, new]).max()) + 1
    size = max(1, AT_ONCE // (rows.shape[1] * levels))

    def marked(x: Tensor) -> Iterator[Tensor]:
        """1 at the category of each entry, some rows at a time, shape ``(n, levels · J)``."""
        for some in x.split(size):
            yield torch.cat([some == level for level in range(levels)], 1).double()

    def independent(x: Tensor, weights: Tensor) -> Tensor:
        """log θ of each component, category and entry: one imagined row of equal shares more."""
        counts = torch.full((weights.shape[1], levels * x.shape[1]), 1 / levels).double()
        for some, of_some in zip(marked(x), weights.split(size), strict=True):
            counts += of_some.T @ some
        counts = counts.unflatten(1, (levels, -1))
        return (counts / counts.sum(1, keepdim=True)).log()

    def log_density(x: Tensor, log_theta: Tensor) -> Tensor:
        return torch.cat([some @ log_theta.flatten(1).T for some in marked(x)])

    alone = independent(rows[:MOST_ROWS], torch.ones(len(rows[:MOST_ROWS]), 1).double())
    noun = "zeros and ones" if levels == 2 else "categories"
    values = {"independent": log_density(new, alone)[:, 0]}
    names = {"independent": f"independent {noun}, entry by entry"}
    left_out = {"gaussian": NO_DENSITY}
    if rows.shape[1] * levels > MOST_LEVELS:
        left_out["mixture"] = TOO_WIDE
    else:
        values["mixture"], count = _mixture(rows, new, independent, log_density, seed)
        names["mixture"] = f"mixture of {count} components of independent {noun}"
    return Baselines(values, names, left_out)


def _counts(rows: Tensor, new: Tensor, *, totals: bool, seed: int) -> Baselines:
    """Independent negative binomials of each entry, and a mixture of such."""

    def exposure(x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) if totals else x.new_ones(len(x), 1)

    shares = rows.mean(0) / exposure(rows).mean()
    imagined = shares.clamp(min=0.5 / float(exposure(rows).sum()))  # for entries without counts

    def independent(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of the total by component, with one imagined row more; dispersion by moments."""
        one = exposure(x).mean()
        rate = (weights.T @ x + one * imagined) / (weights.T @ exposure(x) + one)
        mean = weights @ rate * exposure(x)
        excess = (x - mean).square().sum(0) - mean.sum(0)
        inverse = mean.square().sum(0) / excess.clamp(min=1e-9)
        return rate, inverse.clamp(*DISPERSIONS)

    def log_density(x: Tensor, found: tuple[Tensor, Tensor]) -> Tensor:
        rate, inverse = found
        mean = exposure(x) * rate[:, None]
        logits = mean.log() - inverse.log()
        density = dist.NegativeBinomial(inverse, logits=logits, validate_args=False)
        return density.log_prob(x).sum(-1).T

    fitted = rows[:MOST_ROWS]
    alone = independent(fitted, fitted.new_ones(len(fitted), 1))
    values = {"independent": log_density(new, alone)[:, 0]}
    names = {"independent": "independent negative binomials, entry by entry"}
    left_out = {"gaussian": NO_DENSITY}
    if rows.shape[1] > WIDEST_COUNTS:
        left_out["mixture"] = TOO_WIDE
    else:
        values["mixture"], count = _mixture(rows, new, independent, log_density, seed)
        names["mixture"] = f"mixture of {count} components of independent negative binomials"
    return Baselines(values, names, left_out)


def _mixture(
    rows: Tensor,
    new: Tensor,
    fit: Callable[[Tensor, Tensor], Any],
    log_density: Callable[[Tensor, Any], Tensor],
    seed: int,
) -> tuple[Tensor, int]:
    """log p of new rows under a mixture by expectation and maximisation, and its components.

    Args:
        rows, new: shapes ``(N, J)`` and ``(M, J)``.
        fit: the parameters of K components for rows and their weights, ``(N, K)``.
        log_density: of rows under each of them, ``(N, K)``.
        seed: names the rows kept back, and where the components start.
    """
    fitted, choosing = (rows[numbers] for numbers in _kept_back(len(rows), seed))
    candidates: list[tuple[float, int, Tensor]] = []
    for count in [count for count in COMPONENTS if count <= len(fitted) // 5] or [1]:
        with seeded(seed, "start of a mixture", count):
            starts = fitted[torch.randperm(len(fitted))[:count]]
        near = torch.cdist(fitted.double(), starts.double()).argmin(1)
        weights = torch.nn.functional.one_hot(near, count).double()
        for _ in range(ROUNDS):
            found, shares = fit(fitted, weights), (weights.sum(0) + 1) / (len(fitted) + count)
            weights = (log_density(fitted, found) + shares.log()).softmax(1)

        def log_prob(x: Tensor, found: Any = found, shares: Tensor = shares) -> Tensor:
            return (log_density(x, found) + shares.log()).logsumexp(1)

        score = float(log_prob(choosing).mean())
        if candidates and score < candidates[-1][0]:
            break  # more components would be worse still
        candidates.append((score, count, log_prob(new)))
    _, count, values = candidates[-1]
    return values, count
