"""From data to a report in one call: split, train, diagnose, write."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.arviz_adapter import arviz
from pyrovae.command.foreign_pair import PairOptions, make_pair
from pyrovae.command.run_checks import (
    CHECKPOINT,
    check_memory,
    check_no_run,
    only_run,
    training_saved,
    writable,
)
from pyrovae.command.wording import for_command
from pyrovae.data import (
    Data,
    Dataset,
    Transform,
    check,
    check_near,
    default_likelihood,
    split,
    take_rows,
    units,
)
from pyrovae.diagnostics import Diagnosis, Effort, check_pair, diagnose
from pyrovae.errors import InputError
from pyrovae.extras import EXTRAS, check_packages
from pyrovae.models import (
    VAE,
    Bounds,
    ExemplarPrior,
    FlowPrior,
    GaussianMixture,
    LogCounts,
    NormalDecoder,
    Standardize,
    StandardNormal,
    VampPrior,
    binarise,
    mlp,
    mlp_decoder,
    mlp_encoder,
)
from pyrovae.pairs import Pair, PyroFunction, measuring, over_rows
from pyrovae.randomness import check_seed, seeded
from pyrovae.report import render, write
from pyrovae.saving import check_room, replace, write_archive
from pyrovae.training import Fit, check_device, fit

PRIORS = ("standard", "mixture", "vamp", "flow", "exemplar")
COMPONENTS = {"mixture": 20, "vamp": 100}  # by default
FLOW_SIZE = 4_000  # parameters of the flow for each latent unit
NEIGHBOURS = 10  # nearest exemplars that each row uses in training
MARGIN = 1_000_000  # bytes that a file of arrays needs beside the arrays
PATIENCE = 30  # epochs without a better validation ELBO after which training stops


@dataclass(frozen=True)
class AnalysisOptions:
    """What to train and how.

    Args:
        likelihood: a name in ``pyrovae.data.datasets.LIKELIHOODS``; chosen by the data if None.
        latent: number of latent units D.
        prior: ``"standard"``, ``"mixture"``, ``"vamp"``, ``"flow"`` or ``"exemplar"``, trained with
            the rest.
        components: number of components of a mixture (by default 20) or of pseudo-inputs of a
            VampPrior (by default 100, at most a tenth of the training data).
        hidden: sizes of the hidden layers, from the data inwards.
        epochs: largest number of passes over the training data; training may stop earlier.
        seed: fixes the split, initial weights, minibatches and all draws.
        out: folder for report, draws, table and checkpoint.
        device: where to train, such as ``"cpu"`` or ``"cuda"``.
        resume: go on from the checkpoint in ``out``.
        progress: show a progress bar; by default if standard error is a terminal.
        effort: how much the diagnosis computes.
        pair: the user's own pair instead of a VAE; ``likelihood``, ``latent``, ``hidden``,
            ``prior`` and ``components`` then have no effect.
    """

    likelihood: str | None = None
    latent: int = 10
    prior: str = "standard"
    components: int | None = None
    hidden: tuple[int, ...] = (256, 256)
    epochs: int = 300
    seed: int = 0
    out: Path = Path("pyrovae-report")
    device: str | None = None
    resume: bool = False
    progress: bool | None = None
    effort: Effort = field(default_factory=Effort)
    pair: PairOptions | None = None


@dataclass(frozen=True)
class Analysis:
    """The results of an analysis and the files that it wrote.

    Args:
        vae: the trained VAE; ``None`` with the user's own pair.
        run: how training went; ``None`` without training.
        diagnosis: the measures of the pair.
        report, netcdf, table: paths of the files; no ``netcdf`` if the effort left out draws.
        parameters: path of the trained parameters, for ``vae.load_state_dict`` or, of the user's
            own pair, for ``PairOptions.params``.
    """

    vae: VAE | None
    run: Fit | None
    diagnosis: Diagnosis
    report: Path
    netcdf: Path | None
    table: Path
    parameters: Path


def analyze(data: Dataset, options: AnalysisOptions | None = None) -> Analysis:
    """Train a pair on a data set, measure its latent space and write a report.

    Args:
        data: as :func:`pyrovae.data.datasets.load` returns it.
        options: what to train and how.

    Raises:
        InputError: if a package of the extra ``report`` is not installed; the data don't suit the
            likelihood; the device or the output folder can't be
            used; another process is writing to the folder; it holds an interrupted run and
            ``resume`` is not set; or the user's own pair can't be made.
    """
    options = options or AnalysisOptions()
    check_seed(options.seed)
    likelihood = options.likelihood or default_likelihood(data)
    check(data, likelihood if options.pair is None else None)
    check_prior_options(options)
    if options.pair is None:
        check_memory(
            least_memory(data, likelihood, options),
            "the VAE in training",
            "Take smaller numbers for --latent, --hidden and --components.",
        )
    rows = min(options.effort.evidence_rows, len(data) // 5)
    check_memory(
        8 * rows * options.effort.evidence_draws,
        "the weights of all draws for log p(x)",
        "Take fewer --draws.",
    )
    check_device(options.device, "--device")
    check_packages(*EXTRAS["report"], purpose="an analysis with a report")
    arviz()  # may fail for want of a cache folder: better now than after the training
    start = time.perf_counter()
    with writable(options.out), only_run(options.out):
        check_no_run(options.out, resume=options.resume)
        if options.pair is None:
            task = _vae_task(data, likelihood, options)
        else:
            task = _own_pair_task(data, options.pair, options)
        run = _train(task, options)
        diagnosis = diagnose(
            task.model,
            task.guide,
            task.train,
            held_out=task.held_out,
            validation=task.validation,
            effort=options.effort,
            seed=options.seed,
            progress=options.progress,
            **task.sites,
        )
        facts = {"data": f"{data.name}, {len(data):,} rows of shape {data.event_shape}"}
        facts |= task.facts | _environment(options, time.perf_counter() - start)
        with training_saved(options.out):
            paths = _write(options.out, diagnosis, run, facts)
            parameters = options.out / "parameters.pt"
            task.save(parameters)
        (options.out / CHECKPOINT).unlink(missing_ok=True)
    return Analysis(task.vae, run, diagnosis, *paths, parameters)


@dataclass(frozen=True)
class _Task:
    """A pair with the rows that it is trained on and measured on.

    Args:
        model, guide: the pair.
        train, validation, held_out: rows to measure on.
        fit_rows: rows to train on and rows for early stopping; ``None`` for a pair that was
            trained elsewhere.
        move_back: moves the pair, trained on another device, to where the rows are.
        save: writes the parameters to a file.
        facts: what the report says about the pair, by name.
        sites: names of the pair's sites, as ``diagnose`` takes them.
        transform: of the minibatches in training.
        vae: the pair, if it is a VAE that was built here.
    """

    model: PyroFunction
    guide: PyroFunction
    train: Data
    validation: Data
    held_out: Data
    fit_rows: tuple[Data, Data] | None
    move_back: Callable[[], object]
    save: Callable[[Path], object]
    facts: dict[str, str]
    sites: dict[str, Any] = field(default_factory=dict)
    transform: Transform | None = None
    vae: VAE | None = None


def _train(task: _Task, options: AnalysisOptions) -> Fit | None:
    if task.fit_rows is None:
        return None
    train, validation = task.fit_rows
    run = fit(
        task.model,
        task.guide,
        train,
        validation=validation,
        transform=task.transform,
        epochs=options.epochs,
        patience=PATIENCE,
        seed=options.seed,
        device=options.device,
        checkpoint=options.out / CHECKPOINT,
        resume=options.resume,
        progress=options.progress,
    )
    if options.device is not None:
        task.move_back()
    return run


def _vae_task(data: Dataset, likelihood: str, options: AnalysisOptions) -> _Task:
    """A multilayer-perceptron VAE, to be trained."""
    if not _in_double(likelihood, options):
        data = data.single()
    parts = split(data, seed=options.seed)
    is_grey = likelihood == "bernoulli" and bool((data.values % 1 != 0).any())
    # Grey values are probabilities of a 1: training draws it anew for each minibatch, the measures
    # once.
    train, validation, held_out = (
        _binary(part.values, options.seed, number) if is_grey else part.values
        for number, part in enumerate(parts)
    )
    with seeded(options.seed, "initial weights"):
        vae = build(data, train, likelihood, options)
    return _Task(
        vae.model,
        vae.guide,
        train,
        validation,
        held_out,
        fit_rows=(_fit_rows(parts.train, options), _fit_rows(parts.validation, options)),
        move_back=vae.cpu,
        save=lambda path: write_archive(vae.state_dict(), path),
        facts={
            "likelihood": likelihood,
            "latent units": str(options.latent),
            "prior": _prior_in_words(vae.prior),
            "hidden layers": " × ".join(map(str, options.hidden)),
            "epochs at most": str(options.epochs),
        },
        transform=binarise if is_grey else None,
        vae=vae,
    )


def _own_pair_task(data: Dataset, chosen: PairOptions, options: AnalysisOptions) -> _Task:
    """The user's own pair, to be trained here or trained elsewhere."""
    parts = split(data.single(), seed=options.seed)
    with seeded(options.seed, "own pair"):
        pair = make_pair(chosen, parts.train)
    train, validation, held_out = (pair.arguments(part) for part in parts)
    measured = Pair(pair.model, pair.guide, chosen.site, chosen.observed, chosen.data_plate)
    with torch.no_grad(), measuring(pair.model, pair.guide):
        row_pair, (rows,) = over_rows(measured, train)
        check_pair(row_pair, rows)  # now, not after an hour of training
    return _Task(
        pair.model,
        pair.guide,
        train,
        validation,
        held_out,
        fit_rows=(train, validation) if chosen.fit else None,
        move_back=lambda: pair.to(train[0].device),
        save=lambda path: pair.save(path, take_rows(train, slice(2))),
        facts={
            "pair": chosen.name,
            "parameters": "as they are" if chosen.params is None else str(chosen.params),
            "trained": f"{options.epochs} epochs at most" if chosen.fit else "elsewhere",
        },
        sites={
            "site": chosen.site,
            "observed": chosen.observed,
            "data_plate": chosen.data_plate,
        },
    )


def _fit_rows(part: Dataset, options: AnalysisOptions) -> Data:
    """Rows to train on, with their row numbers if the prior is a mixture over them."""
    if options.prior == "exemplar":
        return part.values, torch.arange(len(part))
    return part.values


def build(data: Dataset, train: Tensor, likelihood: str, options: AnalysisOptions) -> VAE:
    """A multilayer-perceptron VAE for a data set, in the units of its training part.

    Args:
        data: the whole data set, for its shape and the values that occur in it.
        train: rows to take location and scale from, shape ``(N, ...)``.
        likelihood: as in :class:`AnalysisOptions`.
        options: number of latent units, sizes of hidden layers, and the prior.
    """
    shape, latent, hidden = data.event_shape, options.latent, options.hidden
    is_counts = likelihood == "negative_binomial"
    location, scale = units(train.log1p() if is_counts else train, image=data.image)
    if not _in_double(likelihood, options):
        location, scale = location.float(), scale.float()
    encoder = mlp_encoder(shape, latent, hidden=hidden)
    log_layers = [LogCounts()] if is_counts else []
    standardize = Standardize(location, scale, dtype=torch.get_default_dtype())
    encoder.network = nn.Sequential(*log_layers, standardize, encoder.network)
    decoder_sizes = tuple(reversed(hidden))
    decoder: nn.Module
    if likelihood == "normal":
        check_near(data, location, scale)
        network = mlp((latent, *decoder_sizes, math.prod(shape)))
        decoder = NormalDecoder(network, torch.Size(shape), location=location, scale=scale)
    else:
        categories = int(data.values.max()) + 1 if likelihood == "categorical" else None
        decoder = mlp_decoder(
            latent, shape, likelihood, hidden=decoder_sizes, categories=categories
        )
    return VAE(encoder, decoder, _prior(encoder, train, options, image=data.image))


def check_prior_options(options: AnalysisOptions) -> None:
    """Raise unless the prior is known and the other options suit it.

    Raises:
        InputError: for an unknown prior, a number of components for a prior without components,
            or a flow of a single latent unit.
    """
    if options.prior not in PRIORS:
        raise InputError(
            f"expected a prior among {', '.join(PRIORS)}; got {options.prior!r}. Choose one of "
            "them."
        )
    if options.components is not None and options.prior not in COMPONENTS:
        raise InputError(
            f"expected a number of components only with the prior {' or '.join(COMPONENTS)}; got "
            f"{options.components} with {options.prior!r}. Leave it out, or choose such a prior."
        )
    if options.prior == "flow" and options.latent < 2:
        raise InputError(
            "expected at least 2 latent units with the prior 'flow', which couples them; got "
            f"{options.latent}. Choose 'mixture'."
        )


def least_memory(data: Dataset, likelihood: str, options: AnalysisOptions) -> int:
    """Bytes of the parameters in training, and of the codes of all data points.

    Each parameter has a value, a gradient and two moments, and each code a mean and a scale.
    """
    units, shape = options.latent, data.event_shape
    inputs = math.prod(shape)
    outputs = inputs * {"logistic": 2, "categorical": int(data.values.max()) + 1}.get(likelihood, 1)
    layers = [inputs, *options.hidden, 2 * units], [units, *reversed(options.hidden), outputs]
    parameters = sum(a * b + b for sizes in layers for a, b in itertools.pairwise(sizes))
    default = COMPONENTS["mixture"] if options.prior == "mixture" else 0  # that of vamp varies
    parameters += (options.components or default) * (
        inputs if options.prior == "vamp" else 2 * units
    )
    if options.prior == "flow":
        parameters += FLOW_SIZE * units
    return 4 * (4 * parameters + 2 * units * len(data))


def _prior(
    encoder: nn.Module, train: Tensor, options: AnalysisOptions, *, image: bool
) -> nn.Module:
    """The prior that the options name; a VampPrior stays within the range of the data."""
    if options.prior == "standard":
        return StandardNormal(options.latent)
    if options.prior == "flow":
        return FlowPrior(options.latent)
    if options.prior == "exemplar":
        return ExemplarPrior(encoder, train, neighbours=min(NEIGHBOURS, len(train) - 1))
    components = options.components or COMPONENTS[options.prior]
    if options.prior == "mixture":
        return GaussianMixture(options.latent, components)
    if options.components is None:
        components = max(1, min(components, len(train) // 10))
    bounds = _range(train, image=image)
    return VampPrior.from_data(encoder, train, components, bounds=bounds, seed=options.seed)


def _range(train: Tensor, *, image: bool) -> Bounds | None:
    """Least and greatest value of each column of a table, or of all pixels of an image."""
    if image:
        low, high = float(train.min()), float(train.max())
        return (low, high) if low < high else None
    least, greatest = train.amin(0), train.amax(0)
    # A column that is constant in training stays constant; if all are, there are no bounds.
    return (least, greatest) if bool((least < greatest).any()) else None


def _prior_in_words(prior: nn.Module) -> str:
    match prior:
        case VampPrior():
            return f"VampPrior of {len(prior.inputs)} pseudo-inputs"
        case GaussianMixture():
            return f"mixture of {len(prior.loc)} Gaussians"
        case FlowPrior():
            return "normalising flow"
        case ExemplarPrior():
            return f"{len(prior.exemplars)} exemplars"
        case _:
            return "standard normal"


def _in_double(likelihood: str, options: AnalysisOptions) -> bool:
    """Whether to keep rows in float64: with a normal likelihood, on a device that has float64."""
    return likelihood == "normal" and torch.device(options.device or "cpu").type != "mps"


def _binary(x: Tensor, seed: int, part: int) -> Tensor:
    with seeded(seed, "grey pixels", part):
        return torch.bernoulli(x)


def _environment(options: AnalysisOptions, seconds: float) -> dict[str, str]:
    packages = ("pyrovae", "torch", "pyro-ppl", "arviz")
    return {
        "seed": str(options.seed),
        "device": options.device or "cpu",
        "wall time": f"{seconds:.0f} s",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def _write(
    out: Path, diagnosis: Diagnosis, run: Fit | None, facts: Mapping[str, str]
) -> tuple[Path, Path | None, Path]:
    """Write report, draws and table, each completely or not at all."""
    draws = diagnosis.exported
    groups = draws.groups.values() if draws else ()
    check_room(out, MARGIN + sum(array.nbytes for group in groups for array in group.values()))
    netcdf = None
    if draws is None:  # the draws of an earlier run would be taken for this one's
        (out / "diagnosis.nc").unlink(missing_ok=True)
    else:
        netcdf = replace(out / "diagnosis.nc", lambda path: diagnosis.to_arviz().to_netcdf(path))
    table = replace(
        out / "measures.csv", lambda path: diagnosis.summary().to_csv(path, index=False)
    )
    report = write(
        out / "report.html", render(diagnosis, run=run, facts=facts, wording=for_command)
    )
    return report, netcdf, table
