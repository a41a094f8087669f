"""One row of the table: a model trained, and measured under each prior."""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor

import pyrovae as pv
from studies.vampprior.data import SOURCES, Images, load
from studies.vampprior.networks import INITIAL, LATENT, NormalizedAdam, build
from studies.vampprior.results import CANDIDATE, PRIORS, WAYS, Result, find

TRAINED_WITH = "standard", "vamp", "vamp-random"
FEW = 20  # draws for each test image where most have no more
# What the library tries by default, less what would take hours to weigh millions of draws by.
CANDIDATES = (
    *(pv.Inflated(amount) for amount in (0.0, 0.1, 0.2, 0.5)),
    pv.InflatedByUnit(),
    *(pv.Reduced(size, shrinkage=3.0) for size in (100, 400)),
    pv.Reduced(400, shrinkage=1.0, starts=8),
    *(pv.Reduced(size, "full", 0.4 * LATENT, starts=4) for size in (50, 100)),
)

# Beyond the largest of those, and of another kind: what would be chosen if time did not count.
WIDER = (
    *CANDIDATES,
    *(pv.Reduced(size, "full", 0.4 * LATENT, starts=4) for size in (200, 400)),
    *(pv.Flow(steps=steps) for steps in (200, 1000)),
)


@dataclass(frozen=True)
class Row:
    """One model: data, latent layers, prior in training, seed, learning rate, initial weights."""

    data: str
    layers: int
    prior: str
    seed: int
    rate: str = "5e-4"
    weights: str = "he"

    @classmethod
    def parse(cls, text: str) -> Row:
        """``caltech:1:vamp:0`` as a row; ``caltech:1:vamp:0:1e-4:glorot`` departs from it."""
        match text.split(":"):
            case [data, "1" | "2" as layers, prior, seed, *more] if (
                data in SOURCES
                and prior in TRAINED_WITH
                and seed.isdigit()
                and len(more) < 3
                and INITIAL.keys() >= set(more[1:])
            ):
                return cls(data, int(layers), prior, int(seed), *more)
        raise argparse.ArgumentTypeError(
            "expected DATA:LAYERS:PRIOR:SEED[:RATE[:WEIGHTS]] with DATA in "
            f"{', '.join(SOURCES)}, LAYERS 1 or 2, PRIOR in {', '.join(TRAINED_WITH)} and WEIGHTS "
            f"in {', '.join(INITIAL)}; got {text!r}"
        )

    @property
    def site(self) -> str:
        """The latent site that the prior stands at."""
        return "z" if self.layers == 1 else "z2"

    @property
    def latents(self) -> str | tuple[str, ...]:
        """All latent sites."""
        return "z" if self.layers == 1 else ("z2", "z1")


@dataclass(frozen=True)
class Settings:
    """How a row is run.

    Args:
        data: folder with the data sets.
        checkpoints: folder for models, from which a row is resumed.
        epochs, warmup: passes over the data at most, and those of the KL warm-up.
        average: passes after these, from the best epoch, over whose steps weights are averaged;
            that takes out the noise of the steps (Polyak & Juditsky 1992).
        draws: importance draws for each test image.
        test: test images that have so many draws, the others having ``FEW``; all if not given.
        compared: test images that are measured by importance sampling and by proposals of their
            own, by as many draws.
        annealed, temperatures: test images on which annealing, in so many steps, checks importance
            sampling.
        matmul: precision of matrix products in training, as torch names it; all measuring is done
            by the highest.
    """

    data: Path
    checkpoints: Path
    epochs: int = 2000
    warmup: int = 100
    average: int = 0
    draws: int = 5000
    test: int | None = None
    compared: int = 0
    annealed: int = 0
    temperatures: int = 300
    matmul: str = "highest"

    def model(self, row: Row) -> str:
        """What a row's model is called: one cut short by the number of epochs is another."""
        rate = "" if row.rate == Row.rate else f"-{row.rate}"
        weights = "" if row.weights == Row.weights else f"-{row.weights}"
        short = "" if self.epochs == Settings.epochs else f"-{self.epochs}epochs"
        averaged = f"-averaged{self.average}" if self.average else ""
        return f"{row.data}-{row.layers}-{row.prior}-{row.seed}{rate}{weights}{short}{averaged}"

    def checkpoint(self, row: Row) -> Path:
        """The file of a row's model."""
        return self.checkpoints / f"{self.model(row)}.pt"

    def key(self, row: Row) -> Result:
        """What tells a row apart from others in the table, but for how many images it is of."""
        return {
            "program": "pyrovae",
            **asdict(row),
            "most_epochs": self.epochs,
            "averaged_epochs": self.average,
        }

    def result(self, row: Row) -> Result | None:
        """A row's figures, by all the draws for all test images or for the first, if it has any."""
        images = load(row.data, self.data).test[: self.test]
        return find({**self.key(row), "images_with_all_draws": len(images)})


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Matrix products of this precision, and of the highest again afterwards."""
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


Trained = tuple[pv.VAE | pv.HierarchicalVAE, list[pv.Fit], Images]


def train(row: Row, settings: Settings) -> Trained:
    """Train a row's model by the paper's protocol, or go on with it.

    Returns:
        the model, how its training went, before the average and with it, and the images.
    """
    torch.manual_seed(row.seed)
    images, source = load(row.data, settings.data), SOURCES[row.data]
    pair = build(
        row.layers,
        row.prior,
        row.weights,
        images.train,
        levels=source.levels,
        grey=source.grey,
        seed=row.seed,
    )
    settings.checkpoints.mkdir(parents=True, exist_ok=True)
    plain = replace(settings, average=0)
    fits = [_fit(row, plain, pair, images)]
    if settings.average:
        # The plain model keeps its checkpoint, for averages over other numbers of epochs.
        averaged = settings.checkpoint(row)
        if not averaged.exists():
            partly = averaged.with_suffix(".part")
            shutil.copyfile(plain.checkpoint(row), partly)
            partly.replace(averaged)
        fits.append(_fit(row, settings, pair, images))
    return pair, fits, images


def _fit(row: Row, settings: Settings, pair: pv.VAE | pv.HierarchicalVAE, images: Images) -> pv.Fit:
    with products(settings.matmul):
        return pv.fit(
            pair.model,
            pair.guide,
            images.train,
            validation=images.validation,
            epochs=settings.epochs,
            optimizer=partial(NormalizedAdam, lr=float(row.rate)),
            transform=images.transform,
            kl_warmup=settings.warmup,
            patience=50,
            average=settings.average,
            seed=row.seed,
            checkpoint=settings.checkpoint(row),
            resume=True,
        )


def ex_post_prior(
    row: Row, pair: pv.VAE | pv.HierarchicalVAE, images: Images, candidates: Sequence[Any]
) -> tuple[pv.AggregatedPosterior, pv.ExPostPrior]:
    """The aggregated posterior of the training images, and what is chosen on validation codes."""
    known = images.train
    if images.transform is not None:
        known = images.transform(known, torch.Generator().manual_seed(row.seed))
    agg = pv.aggregate(pair.guide, known, site=row.site)
    held_out = pv.encode(pair.guide, images.validation, site=row.site)
    ex_post = pv.fit_ex_post_prior(agg, held_out=held_out, candidates=candidates, seed=row.seed)
    return agg, ex_post


def run(row: Row, settings: Settings) -> Result:
    """Train and measure a row: its figures, by column of the table."""
    pair, fits, images = train(row, settings)
    fitted = fits[0]
    started = time.perf_counter()
    agg, ex_post = ex_post_prior(row, pair, images, CANDIDATES)
    priors = {"own": None, "q_agg": agg, "ex_post": ex_post.distribution}
    test = images.test[: settings.test]
    at_first = time.process_time()
    many = under_each(row, pair, test, priors, draws=settings.draws)
    importance_seconds = (time.process_time() - at_first) / len(test)
    few = many
    if len(test) < len(images.test):
        few = under_each(row, pair, images.test, priors, draws=FEW)
    return {
        **settings.key(row),
        "images_with_all_draws": len(test),
        "epochs": fitted.epochs,
        "warmup_epochs": settings.warmup,
        "best_epoch": fitted.best_epoch,
        "stopped_by": fitted.stopped,
        "matmul": settings.matmul,
        "validation_elbo": _elbo(pair, images.validation),
        "chosen": ex_post.choice,
        "test_images": len(images.test),
        "draws": settings.draws,
        **_of_evidence(many, few),
        **compare_ways(row, settings, pair, test[: settings.compared], priors, many),
        "importance_seconds": importance_seconds,
        **_annealed(row, settings, pair, test[: settings.annealed], priors, many),
        "training_seconds": float(fits[-1].history.seconds.sum()),
        "measuring_seconds": time.perf_counter() - started,
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        **{name: version(name) for name in ("pyrovae", "torch", "pyro-ppl")},
        **_columns({f"{CANDIDATE}{c.name}": c.held_out for c in ex_post.table}, error=" error"),
    }


def under_each(
    row: Row,
    pair: pv.VAE | pv.HierarchicalVAE,
    x: Tensor,
    priors: Mapping[str, Distribution | None],
    *,
    draws: int,
) -> dict[str, pv.Evidence]:
    """log p(x) of each image under each prior, by the same draws, so that differences are paired.

    Args:
        row: the site that the priors stand at, and the seed of the draws.
        pair: a trained model.
        x: images.
        priors: by name; ``None`` is the model's own.
        draws: for each image.
    """
    return {
        name: pv.log_evidence(
            pair.model,
            pair.guide,
            x,
            method="importance",
            prior=prior,
            draws=draws,
            site=row.site,
            seed=row.seed,
        )
        for name, prior in priors.items()
    }


def _of_evidence(many: dict[str, pv.Evidence], few: dict[str, pv.Evidence]) -> Result:
    """log p(x) under each prior by many draws for some images and few for all, by column."""
    values = {name: (many[name].values, few[name].values) for name in PRIORS}
    of: Result = _columns({f"log_p_{name}": over_all(*both) for name, both in values.items()})
    for name in PRIORS[1:]:
        gain = (a - b for a, b in zip(values[name], values["own"], strict=True))
        of |= _columns({f"gain_{name}": over_all(*gain)})
    for name, result in many.items():
        of[f"error_if_images_are_given_{name}"] = error_of_part(*values[name])
        of[f"error_of_draws_{name}"] = float(result.standard_error.norm() / len(result.values))
        of[f"share_k_above_0.7_{name}"] = float((result.pareto_k > 0.7).double().mean())
    return of


def _columns(estimates: dict[str, pv.Estimate], error: str = "_error") -> Result:
    """Values and standard errors, each in a column of its own."""
    of: Result = {}
    for name, estimate in estimates.items():
        of |= {name: estimate.value, f"{name}{error}": estimate.standard_error}
    return of


def over_all(many: Tensor, few: Tensor) -> pv.Estimate:
    """The mean over all test images, by few draws for each and many for the first ones.

    Double sampling (Cochran 1977, ch. 12): images differ much more in log p(x) than in what many
    draws add to few. The standard error is over test images.

    Args:
        many: values of the first n images, shape ``(n,)``.
        few: values of all N, shape ``(N,)``; those of ``many`` if these are all.
    """
    value = float(few.mean() + (many - few[: len(many)]).mean())
    error = math.hypot(float(many.std()) / math.sqrt(len(few)), error_of_part(many, few))
    return pv.Estimate(value, error, len(few), "data")


def error_of_part(many: Tensor, few: Tensor) -> float:
    """The share of that error which is left if the test images are what they are."""
    added = many - few[: len(many)]
    return float(added.std()) * math.sqrt(1 / len(many) - 1 / len(few))


@torch.no_grad()
def _elbo(pair: pv.VAE | pv.HierarchicalVAE, x: Tensor) -> float:
    loss: float = pyro.infer.Trace_ELBO().loss(pair.model, pair.guide, x)
    return -loss / len(x)


def compare_ways(
    row: Row,
    settings: Settings,
    pair: pv.VAE | pv.HierarchicalVAE,
    x: Tensor,
    priors: dict[str, Any],
    found: dict[str, pv.Evidence],
) -> Result:
    """log p(x) of the same images by the guide's draws and by their own proposals, by column.

    Seconds are of the processor, for one image.
    """
    if not len(x):
        return {}
    of: Result = {"compared_images": len(x)}
    values: dict[tuple[str, str], Tensor] = {}
    for name, prior in priors.items():
        with torch.no_grad():  # a learned prior is computed once, not anew for each draw
            under = pair.with_prior(pair.prior() if prior is None else prior)
        started = time.process_time()
        refined = pv.log_evidence(
            under.model,
            under.guide,
            x,
            draws=settings.draws,
            site=row.latents,
            seed=row.seed,
        )
        of[f"auto_seconds_{name}"] = (time.process_time() - started) / len(x)
        for way, result in zip(WAYS, (found[name], refined), strict=True):
            rejected = result.pareto_k[: len(x)] > 0.7
            of[f"{way}_share_k_above_0.7_{name}"] = float(rejected.double().mean())
            values[way, name] = result.values[: len(x)]
            of |= _columns({f"{way}_log_p_{name}": pv.mean_estimate(values[way, name])})
            if name != "own":
                gain = pv.mean_estimate(values[way, name] - values[way, "own"])
                of |= _columns({f"{way}_gain_{name}": gain})
        more = pv.mean_estimate(values["auto", name] - values["importance", name])
        of |= _columns({f"auto_minus_importance_{name}": more})
    return of


def _annealed(
    row: Row,
    settings: Settings,
    pair: pv.VAE | pv.HierarchicalVAE,
    x: Tensor,
    priors: dict[str, Any],
    weighted: dict[str, pv.Evidence],
) -> Result:
    """What annealing finds above importance sampling, on the same images, by column."""
    if not len(x):
        return {}
    gains: Result = {"annealed_images": len(x), "annealing_temperatures": settings.temperatures}
    for name in ("own", "ex_post"):
        under = pair if priors[name] is None else pair.with_prior(priors[name])
        difference = by_annealing(row, settings, under, x).values - weighted[name].values[: len(x)]
        gains |= _columns({f"annealing_gain_{name}": pv.mean_estimate(difference)})
    return gains


def by_annealing(
    row: Row, settings: Settings, pair: pv.VAE | pv.HierarchicalVAE, x: Tensor
) -> pv.Evidence:
    """log p(x) of each image by annealing, over all latent layers at once."""
    return pv.log_evidence(
        pair.model,
        pair.guide,
        x,
        method=pv.Annealing(temperatures=settings.temperatures),
        draws=16,
        site=row.latents,
        seed=row.seed,
    )
