"""How good the samples are that a pair decodes from each density over z."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.data import Data, units
from pyrovae.diagnostics.decoded_samples import expected
from pyrovae.diagnostics.frechet import frechet_distance
from pyrovae.diagnostics.neighbours import (
    NEIGHBOURS,
    coverage_if_equal,
    nearer_to_training,
    neighbour_measures,
)
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, name_rows
from pyrovae.evidence import BLOCK, as_density, latent_units
from pyrovae.models import Prior
from pyrovae.pairs import Pair, PyroFunction, measuring, observe, over_rows
from pyrovae.randomness import check_seed, seeded
from pyrovae.torch_modes import plain

if TYPE_CHECKING:
    import pandas as pd

Features = Literal["data", "codes"] | Callable[[Tensor], Tensor]
Decoded = Literal["mean", "draw"]

SAMPLES = 1000  # of each density
FEWEST = 30  # rows of each data set, for an error from halves of them
MOST_COMPARED = 10_000  # rows of each data set among which samples look for the nearest
COMPARED_BYTES = 1 << 27  # of their features, unless there are as many samples


@dataclass(frozen=True, repr=False)
class Quality(Result):
    """One set of samples beside as many rows of data that it was not made of.

    Args:
        frechet: Fréchet distance between the features, taken for normal, in their squared units;
            too high on average, by more the fewer rows and the more features there are.
        precision: share of samples that lie among the data.
        recall: share of the data that lie among the samples.
        density: how densely the data lie around the samples, 1 if both are alike.
        coverage: share of the data with a sample nearby.
        nearer_to_training: share of samples nearer to a training than to a held-out row, of as many
            of both; 1/2 if nothing is copied, 1 if everything is; ``None`` for held-out rows and
            their reconstructions.
    """

    frechet: Estimate
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    nearer_to_training: Estimate | None

    def estimates(self) -> Iterator[tuple[str, Estimate]]:
        """The names of the measures and what there is of them."""
        for field in fields(self):
            if (estimate := getattr(self, field.name)) is not None:
                yield field.name, estimate


@dataclass(frozen=True, repr=False)
class SampleQuality(Result):
    """The quality of decoded samples, of all densities at equal sizes.

    Args:
        densities: samples of each density, beside held-out rows.
        references: what no density need exceed: ``"held_out"``, the held-out rows themselves, and
            ``"reconstructions"`` of these, both beside training rows.
        size: number of samples, and of rows beside them.
        compared: number of training, and of held-out, rows for ``nearer_to_training``.
        training_rows: number of training rows in all, of which ``compared`` are chosen at random:
            copies of the others don't show in ``nearer_to_training``.
        neighbours: k, of the balls up to the k-th nearest neighbour.
        decoded: whether samples are means of p(x | z) or draws from it.
    """

    densities: dict[str, Quality]
    references: dict[str, Quality]
    size: int
    compared: int
    training_rows: int
    neighbours: int
    decoded: Decoded

    @property
    def coverage_if_equal(self) -> float:
        """The coverage to expect of samples from the very density of the data."""
        return coverage_if_equal(self.size, self.neighbours)

    def estimates(self) -> Iterator[tuple[str, str, Estimate]]:
        """The names of measure and samples, and the estimate."""
        for name, quality in (self.densities | self.references).items():
            for measure, estimate in quality.estimates():
                yield measure, name, estimate

    def table(self) -> pd.DataFrame:
        """One row for each set of samples and measure, with the ends of the 95 % interval."""
        import pandas as pd

        rows = [
            (name, measure, e.value, e.standard_error, *e.interval, e.bound or "")
            for measure, name, e in self.estimates()
        ]
        columns = ["samples", "measure", "value", "standard_error", "low", "high", "bound"]
        return pd.DataFrame(rows, columns=columns)

    def disagreement(self, chosen: str, names: Mapping[str, str]) -> str:
        """A sentence where another density's samples are nearer to the data beyond doubt; or none.

        The errors of the two Fréchet distances are added up as if they were independent, although
        both are of the same held-out rows: this errs on the side of no sentence.

        Args:
            chosen: the density that log p(x) is for.
            names: what each density is called in a sentence.
        """
        best = min(self.densities, key=lambda name: self.densities[name].frechet.value)
        ours, other = self.densities[chosen], self.densities[best]
        doubt = math.hypot(ours.frechet.standard_error, other.frechet.standard_error)
        if ours.frechet.value - other.frechet.value <= 1.96 * doubt:
            return ""
        said = (
            f"By decoded samples {names[best]} is closer to held-out data: Fréchet distance "
            f"{other.frechet.value:.3g} ± {other.frechet.standard_error:.2g} against "
            f"{ours.frechet.value:.3g} ± {ours.frechet.standard_error:.2g}"
        )
        if (copies := other.nearer_to_training) is not None:
            said += (
                f"; {100 * copies.value:.0f} ± {100 * copies.standard_error:.0f} % of these are "
                "nearer to a training than to a held-out row (50 % if none is copied)"
            )
        return f"{said}."


@torch.no_grad()
@plain()
def sample_quality(  # noqa: PLR0913 - a flat front door, where most arguments have defaults
    model: PyroFunction,
    guide: PyroFunction,
    densities: Mapping[str, Prior | None],
    train: Data,
    held_out: Data,
    *,
    features: Features = "data",
    decoded: Decoded = "mean",
    samples: int = SAMPLES,
    neighbours: int = NEIGHBOURS,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> SampleQuality:
    """How good the samples are that are decoded from each of several densities over z.

    Nothing is compared with what it was made of: samples, which come from a model of the training
    rows, stand beside held-out rows; held-out rows and their reconstructions, the references,
    beside training rows. All sets have the same size. What the decoder loses, such as sharpness,
    shows in the reconstructions too: it is by them that densities are to be judged.

    Args:
        model, guide: any Pyro pair.
        densities: name → what z is drawn from: a density, a module whose forward returns one, the
            result of :func:`pyrovae.fit_ex_post_prior`, or ``None`` for the model's own p(z).
        train: the rows that the pair was trained on, shape ``(N, ...)``.
        held_out: rows not seen in training.
        features: what distances are between. ``"data"``: the values at the observed site, as they
            are or, in a table, in units of each column's standard deviation over the training rows,
            unless all are whole numbers or between 0 and 1. ``"codes"``: means of the guide, which
            are few and know what the model knows, and are blind to what the guide overlooks: not
            the default, as the pair would be its own judge. Or a function of rows ``(n, ...)`` that
            returns ``(n, F)``, such as the last layer of a classifier.
        decoded: ``"mean"``, E[x | z] as the pictures show it, or ``"draw"`` from p(x | z), which
            has the noise of the likelihood as well: it is the same for all densities, and hides
            how they differ.
        samples: of each density; fewer if there are fewer rows of either data set.
        neighbours: k, of the balls up to the k-th nearest neighbour.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names all draws.

    Returns:
        Fréchet distance, precision, recall, density, coverage, and the share of samples that are
        nearer to a training than to a held-out row, each with its standard error over samples and
        data. Takes 8 n² bytes of memory at a time, n = ``samples``.

    Raises:
        InputError: with fewer than 30 rows of either data set, or than 2 k + 4; without densities;
            or for features that are not finite numbers, one row for each row of data.

    Kynkäänniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797; Heusel et al.
    2017, arXiv:1706.08500; Meehan et al. 2020, arXiv:2004.05675, on copies.

    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(200)
    >>> found = sample_quality(vae.model, vae.guide, {"prior": None}, x[:100], x[100:])
    >>> sorted(found.references), found.size
    (['held_out', 'reconstructions'], 100)
    """
    check_seed(seed)
    pair, (train_x, held_out_x) = over_rows(
        Pair(model, guide, site, observed, data_plate), train, held_out
    )
    _check(pair, densities, train_x, held_out_x, samples, neighbours, decoded)
    modules = [prior for prior in densities.values() if isinstance(prior, nn.Module)]
    with measuring(model, guide, *modules):
        drawn = {
            name: pair.prior(train_x) if prior is None else as_density(prior, count)
            for count in [latent_units(pair, train_x)]
            for name, prior in densities.items()
        }
        return measure_samples(
            pair,
            drawn,
            train_x,
            held_out_x,
            features=features,
            decoded=decoded,
            samples=samples,
            neighbours=neighbours,
            seed=seed,
        )


def _check(
    pair: Pair,
    densities: Mapping[str, Prior | None],
    train: Tensor,
    held_out: Tensor,
    samples: int,
    neighbours: int,
    decoded: str,
) -> None:
    """Raise unless there are densities, a pair that takes all rows, and sensible settings."""
    if not densities:
        raise InputError(
            "expected at least one density to draw z from; got none. Give a dictionary of them, "
            "such as {'prior': None} for the model's own."
        )
    if decoded not in get_args(Decoded):
        raise InputError(f"expected decoded= out of {get_args(Decoded)}; got {decoded!r}.")
    if not isinstance(neighbours, Integral) or neighbours < 1:
        raise InputError(f"expected a whole number of neighbours ≥ 1; got {neighbours}. Try 5.")
    if not isinstance(samples, Integral) or samples < FEWEST:
        raise InputError(
            f"expected a whole number of samples ≥ {FEWEST}; got {samples}. Take {SAMPLES}, say."
        )
    if not all(pair.traits.takes_any_number_of_rows(rows) for rows in (train, held_out)):
        raise InputError(
            "expected a pair that takes any number of rows, so that held-out data can be encoded; "
            "got one with a plate or parameters of fixed size. Write an amortized guide."
        )


def measure_samples(
    pair: Pair,
    densities: Mapping[str, dist.Distribution],
    train: Tensor,
    held_out: Tensor,
    *,
    features: Features = "data",
    decoded: Decoded = "mean",
    samples: int = SAMPLES,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> SampleQuality:
    """As :func:`sample_quality`, of a pair over rows and of densities with batch shape () or (1,).

    Raises:
        InputError: as :func:`sample_quality`.
    """
    sizes = len(train), len(held_out)
    size = min(*sizes, samples)
    if size < max(FEWEST, 2 * neighbours + 4):
        raise InputError(
            f"expected at least {max(FEWEST, 2 * neighbours + 4)} training and as many held-out "
            f"rows to compare samples with; got {sizes[0]} and {sizes[1]}. Use more data."
        )
    with seeded(seed, "rows beside samples"):
        orders = [torch.randperm(n)[:MOST_COMPARED].to(train.device) for n in sizes]
    seen, unseen = train[orders[0]], held_out[orders[1]]
    describe = _describe(pair, features, seen)
    width = describe(observe(pair, seen[:2])[1]).shape[1]
    compared = min(len(seen), len(unseen), max(size, COMPARED_BYTES // (8 * width)))
    near = [describe(observe(pair, rows[:compared])[1]) for rows in (seen, unseen)]
    train_features, held_out_features = (rows[:size] for rows in near)
    options = {"neighbours": neighbours, "seed": seed}

    def quality(real: Tensor, drawn: Tensor, *, copies: bool) -> Quality:
        return Quality(
            frechet_distance(real, drawn),
            **neighbour_measures(real, drawn, **options),
            nearer_to_training=nearer_to_training(drawn, *near, seed=seed) if copies else None,
        )

    def decode(rows: Tensor, z: Tensor, number: int) -> Tensor:
        with seeded(seed, "decoded for their quality", number):
            parts = [
                expected(likelihood) if decoded == "mean" else likelihood.sample()
                for some, codes in zip(rows.split(BLOCK), z.split(BLOCK), strict=True)
                for likelihood in [pair.decode(some, codes)]
            ]
        return describe(torch.cat(parts))

    found = {}
    for number, (name, density) in enumerate(densities.items()):
        with seeded(seed, "codes for samples", number):
            z = density.sample(torch.Size([size])).view(size, -1)
        found[name] = quality(held_out_features, decode(seen[:size], z, number), copies=True)
    with seeded(seed, "codes for reconstructions"):
        z = pair.encode(unseen[:size]).sample()
    reconstructed = decode(unseen[:size], z, len(densities))
    references = {
        "held_out": quality(train_features, held_out_features, copies=False),
        "reconstructions": quality(train_features, reconstructed, copies=False),
    }
    return SampleQuality(found, references, size, compared, sizes[0], neighbours, decoded)


def _describe(pair: Pair, features: Features, seen: Tensor) -> Callable[[Tensor], Tensor]:
    """The function from rows at the observed site, shape ``(n, ...)``, to features ``(n, F)``."""
    if features == "data":
        data = observe(pair, seen)[1].double()
        pixels = bool((data % 1 == 0).all()) or bool(((data >= 0) & (data <= 1)).all())
        scale = units(data, image=False)[1] if data.dim() == 2 and not pixels else 1.0
        return _checked(lambda rows: rows.reshape(len(rows), -1) / scale)
    if features == "codes":
        observed = observe(pair, seen[:2])[1]
        if observed.shape != seen[:2].shape or not torch.equal(observed.to(seen.dtype), seen[:2]):
            raise InputError(
                "expected a pair whose one argument is what it observes, so that samples can be "
                "encoded; got another. Give a function of rows as features=."
            )
        return _checked(lambda rows: expected(pair.encode(rows.to(seen.dtype))))
    if not callable(features):
        raise InputError(
            f"expected features= to be 'data', 'codes' or a function of rows; got {features!r}."
        )
    return _checked(features)


def _checked(describe: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function, whose result is checked to be finite and of shape ``(n, F)``."""

    def features(rows: Tensor) -> Tensor:
        found = describe(rows)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(rows):
            raise InputError(
                f"expected features as a tensor of shape ({len(rows)}, F), one row for each row; "
                f"got {shape}. Flatten them."
            )
        if (broken := ~found.isfinite().all(1)).any():
            raise InputError(
                f"expected finite features, to measure distances; got others in "
                f"{name_rows(broken)} (counted from 0) of those compared. Give "
                "pyrovae.sample_quality a function from rows to features that are."
            )
        return found.double()

    return features
