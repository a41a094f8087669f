"""From data to a report in one call: split, train, diagnose, write."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.arviz_adapter import arviz, write_netcdf
from pyrovae.command.run_checks import (
    CHECKPOINT,
    check_memory,
    check_no_run,
    only_run,
    training_saved,
    writable,
)
from pyrovae.command.terminal import quoted
from pyrovae.command.wording import for_command
from pyrovae.data import (
    Data,
    Dataset,
    TableOptions,
    Transform,
    all_rows,
    check,
    check_near,
    default_likelihood,
    in_words,
    is_image,
    needs_mixed,
    numbers_of_parts,
    size_in_words,
    split,
    take_rows,
)
from pyrovae.diagnostics import Diagnosis, Effort, check_pair, diagnose
from pyrovae.errors import InputError, nearest
from pyrovae.explorer import NAME
from pyrovae.extras import EXTRAS, check_packages
from pyrovae.models import VAE, binarise
from pyrovae.pairs import Pair, PyroFunction, measuring, over_rows
from pyrovae.randomness import check_seed, seeded
from pyrovae.report import SHARED_NOISE, render, write
from pyrovae.runs import (
    COMPONENTS,
    NETWORKS,
    NOISES,
    PRIORS,
    Outcome,
    OwnPair,
    PairOptions,
    Recipe,
    Run,
    colouring,
    finish,
    location_and_scale,
    make_pair,
    recommended_source,
    table_recipe,
    unfinish,
)
from pyrovae.runs import build as build_vae
from pyrovae.runs import in_words as prior_in_words
from pyrovae.saving import check_room, replace, write_archive
from pyrovae.training import Fit, adam, check_device, fit

PRIORS_CALLED = {  # by others
    "vampprior": "vamp", "normal": "standard", "gaussian": "standard", "gmm": "mixture",
    "mog": "mixture", "realnvp": "flow", "maf": "flow",
}  # fmt: skip
NETWORKS_CALLED = {"cnn": "conv", "convolutional": "conv", "dense": "mlp", "perceptron": "mlp"}
FLOW_SIZE = 4_000  # parameters of the flow for each latent unit
EXPORTED = 30_000_000  # bytes of the draws for ArviZ, at most
FEWEST_DRAWS = 20  # of each row that is exported, where all of them would be more than that
MARGIN = 1_000_000  # bytes that a file of arrays needs beside the arrays
EPOCHS = (20, 300)  # by default, by the number of rows
ROWS_IN_ALL = 5_000_000  # that go through the networks in training, by default
BATCH = (100, 1_000)  # rows in a minibatch by default, by the number of rows
STEPS = 300  # in an epoch, if neither bound of BATCH says otherwise
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
        hidden: units of the hidden layers, or channels of convolutions, from the data inwards; by
            default as ``NETWORKS`` has them.
        network: ``"mlp"``, or for images ``"conv"``.
        noise: of a normal likelihood: ``"shared"`` by all entries of a row, or ``"each"`` its own.
        channels: where a file has the channels of its images, ``"first"`` or ``"last"``, if its
            shape leaves that open.
        layer: which layer of an ``.h5ad`` file, in the place of ``X``.
        epochs: largest number of passes over the training data; training may stop earlier. By
            default 300, or as many as take 5 million rows in all, but at least 20.
        batch_size: rows in a minibatch. By default a 300th of the rows, from 100 to 1,000.
        learning_rate: of Adam.
        kl_warmup: epochs over which the weight on the KL grows to 1.
        average: epochs after these over whose steps the parameters are averaged.
        seed: fixes the split, initial weights, minibatches and all draws.
        out: folder for report, draws, table and checkpoint.
        device: where to train, such as ``"cpu"`` or ``"cuda"``.
        resume: go on from the checkpoint in ``out``.
        force: write over another run in ``out``.
        progress: show a progress bar; by default if standard error is a terminal.
        effort: how much the diagnosis computes.
        pair: the user's own pair instead of a VAE; ``likelihood``, ``latent``, ``hidden``,
            ``network``, ``prior`` and ``components`` then have no effect.
        source: where the data are from, as :func:`pyrovae.data.load` takes it; without it they are
            copied into ``out``.
        command: the command in words.
        table: how the data were read, if they are a table.
    """

    likelihood: str | None = None
    latent: int = 10
    prior: str = "standard"
    components: int | None = None
    hidden: tuple[int, ...] | None = None
    network: str = "mlp"
    noise: str = "shared"
    channels: str | None = None
    layer: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 1e-3
    kl_warmup: int = 0
    average: int = 0
    seed: int = 0
    out: Path = Path("pyrovae-report")
    device: str | None = None
    resume: bool = False
    force: bool = False
    progress: bool | None = None
    effort: Effort = field(default_factory=Effort)
    pair: PairOptions | None = None
    source: str | None = None
    command: str = "pyrovae.command.analysis.analyze"
    table: TableOptions = field(default_factory=TableOptions)

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden layers, those that are not given as the network has them by default."""
        return NETWORKS.get(self.network, ()) if self.hidden is None else self.hidden

    def by_name(self) -> dict[str, Any]:
        """What decides the numbers of a run, under the names of the command line's options."""
        of_vae = ("likelihood", "latent", "prior", "components", "hidden", "network", "noise")
        trained = ("epochs", "batch_size", "learning_rate", "kl_warmup", "average")
        names = (*(of_vae if self.pair is None else ()), *trained, "seed", "device")
        names = (*names, "channels", "layer")
        options = {name: getattr(self, name) for name in names}
        if self.pair is None:
            options["hidden"] = self.layers
        options |= {"draws": self.effort.evidence_draws, "method": self.effort.method}
        if self.effort.nuts_rows:
            options["check_guide"] = True
        own = {n: getattr(self.effort, n) for n in ("evidence_draws", "method", "nuts_rows")}
        if self.effort == replaced(Effort.quick(), **own):
            options["quick"] = True
        if self.pair is not None:
            options |= self.pair.by_name()
        options |= self.table.given()
        return {name: value for name, value in options.items() if value is not None}


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
        saved: the run, to go on with.
    """

    vae: VAE | None
    run: Fit | None
    diagnosis: Diagnosis
    report: Path
    netcdf: Path | None
    table: Path
    parameters: Path
    saved: Run


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
    options = settled(data, options or AnalysisOptions())
    check_seed(options.seed)
    likelihood = str(options.likelihood)
    check(data, likelihood if options.pair is None else None)
    check_prior_options(options)
    if options.pair is None:
        check_network(data, options)
        check_noise(likelihood, options)
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
        check_no_run(options.out, resume=options.resume, force=options.force)
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
            effort=within_limits(options.effort, data),
            seed=options.seed,
            progress=options.progress,
            **task.sites,
        )
        facts = {"data": in_short(data)} | about_table(data)
        facts |= task.facts | _environment(options, time.perf_counter() - start)
        with training_saved(options.out):
            unfinish(options.out)
            paths = _write(options.out, diagnosis, run, facts, data, seed=options.seed)
            parameters = options.out / "parameters.pt"
            task.save(parameters)
            saved = finish(options.out, _outcome(data, task, options, diagnosis, run, facts))
        (options.out / CHECKPOINT).unlink(missing_ok=True)
    return Analysis(task.vae, run, diagnosis, *paths, parameters, saved)


def in_short(data: Dataset) -> str:
    """What the data are, in words.

    >>> in_short(Dataset("toy", torch.zeros(100, 13)))
    'toy, 100 rows of 13 columns'
    """
    note = f" ({data.note})" if data.note else ""
    return f"{data.name}, {len(data):,} {_kind_of_rows(data.event_shape)}{note}"


def _kind_of_rows(shape: tuple[int, ...]) -> str:
    """What each row is, in words.

    >>> _kind_of_rows((13,)), _kind_of_rows((1,)), _kind_of_rows((8, 8))
    ('rows of 13 columns', 'rows of 1 column', 'rows of shape 8 × 8')
    """
    if len(shape) == 3 and is_image(shape):
        return size_in_words(shape)
    if len(shape) == 1:
        return f"rows of {shape[0]:,} column{'' if shape[0] == 1 else 's'}"
    return f"rows of shape {' × '.join(map(str, shape))}"


def about_table(data: Dataset) -> dict[str, str]:
    """What a report says of a table's columns and missing cells, by name."""
    info = data.info
    plain = info is None or (
        not info.left_out and all(column.kind == "real" for column in info.columns)
    )
    if plain and data.obs_mask is None:
        return {}
    about = {"columns": in_words(data.kinds)}
    if data.obs_mask is not None:
        gone = (~data.obs_mask).sum(0)
        columns = [
            f"{column.name} {count:,}"
            for column, count in zip(data.kinds, gone.tolist(), strict=True)
            if count
        ]
        more = f" and {len(columns) - 8} more columns" if len(columns) > 8 else ""
        about["missing cells"] = (
            f"{int(gone.sum()):,} of {data.obs_mask.numel():,}, in {', '.join(columns[:8])}{more}: "
            "log p(x) is that of the others. Samples are not compared with rows, some of which are "
            "not whole"
        )
    if info is not None and info.left_out:
        about["left out"] = ", ".join(
            f"{name} ({role})" if role else name
            for name in info.left_out
            for role in [{info.id: "ids of rows", info.label: "labels"}.get(name, "")]
        )
    return about


def how_to_sample(out: Path, recommended: str | None) -> str:
    """What to run to draw new rows from the density that the advice names.

    Args:
        out: the folder of the run.
        recommended: that density; ``None`` where the advice names none.
    """
    words = f"pyrovae sample {quoted(str(out))} -n 1000"
    if recommended is None:
        return f"{words} --from DENSITY (prior, ex-post or q_agg)"
    return words if recommended == "ex-post" else f"{words} --from {recommended}"


def settled(data: Dataset, options: AnalysisOptions) -> AnalysisOptions:
    """The options with the likelihood and the epochs that the data ask for, if they name none."""
    return replaced(
        options,
        likelihood=options.likelihood or default_likelihood(data),
        epochs=options.epochs or default_epochs(len(data)),
        batch_size=options.batch_size or default_batch_size(len(data)),
    )


def default_epochs(rows: int) -> int:
    """Passes over the training part of so many rows at most, if no number is given.

    >>> default_epochs(1797), default_epochs(200_000), default_epochs(10_000_000)
    (300, 35, 20)
    """
    fewest, most = EPOCHS
    return max(fewest, min(most, ROWS_IN_ALL * 10 // (7 * rows)))


def default_batch_size(rows: int) -> int:
    """Rows in a minibatch, if no number is given.

    >>> default_batch_size(1797), default_batch_size(60_000), default_batch_size(10_000_000)
    (100, 200, 1000)
    """
    fewest, most = BATCH
    return max(fewest, min(most, rows // STEPS))


def _outcome(
    data: Dataset,
    task: _Task,
    options: AnalysisOptions,
    diagnosis: Diagnosis,
    run: Fit | None,
    facts: Mapping[str, str],
) -> Outcome:
    """What the run folder is written from."""
    return Outcome(
        data=data,
        source=options.source,
        rows=numbers_of_parts(len(data), seed=options.seed),
        recipe=task.recipe,
        own=None if task.own is None or options.pair is None else (task.own, options.pair),
        diagnosis=diagnosis,
        fit=run,
        facts=facts,
        options=options.by_name(),
        command=options.command,
    )


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
        vae, recipe: the pair and how it was built, if it is a VAE that was built here.
        own: the user's own pair, if it is one.
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
    recipe: Recipe | None = None
    own: OwnPair | None = None


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
        epochs=options.epochs or EPOCHS[1],
        batch_size=options.batch_size or BATCH[0],
        optimizer=adam(options.learning_rate),
        kl_warmup=options.kl_warmup,
        average=options.average,
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
    """A VAE, to be trained."""
    recipe = recipe_for(data, likelihood, options)
    parts = split(data if recipe.double else data.single(), seed=options.seed)
    # Grey values are probabilities of a 1: training draws it anew for each minibatch, the measures
    # once.
    train, validation, held_out = (
        recipe.as_measured(part, number) for number, part in enumerate(parts)
    )
    with seeded(options.seed, "initial weights"):
        rows, *mask = all_rows(train)
        vae = build(data, rows, likelihood, options, *mask)
    return _Task(
        vae.model,
        vae.guide,
        train,
        validation,
        held_out,
        fit_rows=(train, validation)
        if recipe.missing
        else (_fit_rows(parts.train, options), _fit_rows(parts.validation, options)),
        move_back=vae.cpu,
        save=lambda path: write_archive(vae.state_dict(), path),
        facts={
            "likelihood": _likelihood_in_words(data, likelihood),
            "latent units": str(options.latent),
            "prior": prior_in_words(vae.prior),
            "hidden layers": _layers_in_words(options),
            **_noise_in_words(likelihood, options),
            "epochs at most": str(options.epochs),
        },
        transform=binarise if recipe.grey else None,
        vae=vae,
        recipe=recipe,
    )


def _layers_in_words(options: AnalysisOptions) -> str:
    layers = " × ".join(map(str, options.layers))
    return f"convolutions of {layers} channels" if options.network == "conv" else layers


def _likelihood_in_words(data: Dataset, likelihood: str) -> str:
    values = data.values
    if likelihood != "normal" or bool(((values < 0) | (values % 1 != 0)).any()):
        return likelihood
    return f"{likelihood}; for whole numbers that are counts: --likelihood negative_binomial"


def _noise_in_words(likelihood: str, options: AnalysisOptions) -> dict[str, str]:
    if likelihood != "normal":
        return {}
    return {"noise": SHARED_NOISE if options.noise == "shared" else "of its own for each entry"}


def _own_pair_task(data: Dataset, chosen: PairOptions, options: AnalysisOptions) -> _Task:
    """The user's own pair, to be trained here or trained elsewhere."""
    if needs_mixed(data):
        what = "missing cells" if data.obs_mask is not None else "a column of texts"
        raise InputError(
            f"expected a table of numbers for a pair of your own; got {what} in {data.name}. Leave "
            "them out (drop=), or make them numbers."
        )
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
        own=pair,
    )


def _fit_rows(part: Dataset, options: AnalysisOptions) -> Data:
    """Rows to train on, with their row numbers if the prior is a mixture over them."""
    if options.prior == "exemplar":
        return part.values, torch.arange(len(part))
    return part.values


def build(
    data: Dataset,
    train: Tensor,
    likelihood: str,
    options: AnalysisOptions,
    obs_mask: Tensor | None = None,
) -> VAE:
    """A VAE for a data set, in the units of its training part.

    Args:
        data: the whole data set, for its shape and the values that occur in it.
        train: rows to take location and scale from, shape ``(N, ...)``.
        likelihood: as in :class:`AnalysisOptions`.
        options: number of latent units, sizes of hidden layers, and the prior.
        obs_mask: which cells of the rows count; all if not given.
    """
    recipe = recipe_for(data, likelihood, options)
    if likelihood in ("normal", "mixed"):
        check_near(data, *location_and_scale(recipe, train, obs_mask))
    return build_vae(recipe, train, obs_mask)


def recipe_for(data: Dataset, likelihood: str, options: AnalysisOptions) -> Recipe:
    """What kind of VAE the options ask for, on these data."""
    is_grey = likelihood == "bernoulli" and bool((data.values % 1 != 0).any())
    recipe = Recipe(
        likelihood=likelihood,
        event_shape=data.event_shape,
        latent=options.latent,
        hidden=options.layers,
        network=options.network,
        noise=options.noise,
        prior=options.prior,
        components=options.components,
        categories=int(data.values.max()) + 1 if likelihood == "categorical" else None,
        grey=is_grey,
        double=_in_double(likelihood, options),
        seed=options.seed,
    )
    return table_recipe(recipe, data) if likelihood == "mixed" else recipe


def check_prior_options(options: AnalysisOptions) -> None:
    """Raise unless the prior is known and the other options suit it.

    Raises:
        InputError: for an unknown prior, a number of components for a prior without components,
            or a flow of a single latent unit.
    """
    if options.prior not in PRIORS:
        hint = nearest(options.prior, PRIORS, PRIORS_CALLED) or " Choose one of them."
        raise InputError(
            f"expected a prior among {', '.join(PRIORS)}; got {options.prior!r}.{hint}"
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


def check_network(data: Dataset, options: AnalysisOptions) -> None:
    """Raise unless the network is known and suits the data.

    Raises:
        InputError: for an unknown network, or convolutions of rows that are no images.
    """
    if options.network not in NETWORKS:
        hint = nearest(options.network, NETWORKS, NETWORKS_CALLED) or " Choose one of them."
        raise InputError(
            f"expected a network among {', '.join(NETWORKS)}; got {options.network!r}.{hint}"
        )
    if options.network == "conv" and len(data.event_shape) not in (2, 3):
        raise InputError(
            f"expected images with the network 'conv'; got {_kind_of_rows(data.event_shape)} in "
            f"{data.name}. Take --network mlp."
        )


def check_noise(likelihood: str, options: AnalysisOptions) -> None:
    """Raise unless the kind of noise is known and suits the likelihood.

    Raises:
        InputError: for an unknown kind, or noises of their own where there is no normal noise.
    """
    if options.noise not in NOISES:
        hint = nearest(options.noise, NOISES) or " Choose one of them."
        raise InputError(f"expected a noise of {' or '.join(NOISES)}; got {options.noise!r}.{hint}")
    if options.noise == "each" and likelihood != "normal":
        raise InputError(
            f"expected the likelihood 'normal' with the noise 'each'; got {likelihood!r}. Leave "
            "out --noise."
        )


def least_memory(data: Dataset, likelihood: str, options: AnalysisOptions) -> int:
    """Bytes of the parameters in training, and of the codes of all data points.

    Each parameter has a value, a gradient and two moments, and each code a mean and a scale.
    """
    units, shape = options.latent, data.event_shape
    inputs = math.prod(shape)
    if likelihood == "mixed":
        inputs += sum(max(1, len(column.categories)) for column in data.kinds)
    each = {"logistic": 2, "categorical": int(data.values.max()) + 1}.get(likelihood, 1)
    if options.network == "conv":
        parameters = _parameters_of_convolutions(shape, units, options.layers, each)
    else:
        ends = [inputs, *options.layers, 2 * units], [units, *options.layers[::-1], inputs * each]
        parameters = sum(a * b + b for sizes in ends for a, b in itertools.pairwise(sizes))
    default = COMPONENTS["mixture"] if options.prior == "mixture" else 0  # that of vamp varies
    parameters += (options.components or default) * (
        inputs if options.prior == "vamp" else 2 * units
    )
    if options.prior == "flow":
        parameters += FLOW_SIZE * units
    return 4 * (4 * parameters + 2 * units * len(data))


def _parameters_of_convolutions(
    shape: tuple[int, ...], units: int, channels: tuple[int, ...], each: int
) -> int:
    """Weights of 3 × 3 there and back, and of the linear layers between image and code."""
    depth = 1 if len(shape) == 2 else shape[0]
    pixels = math.prod(-(-side // 2 ** len(channels)) for side in shape[-2:])
    there = sum(9 * a * b for a, b in itertools.pairwise((depth, *channels)))
    back = sum(9 * a * b for a, b in itertools.pairwise((*channels[::-1], depth * each)))
    return there + back + 3 * units * channels[-1] * pixels


def _in_double(likelihood: str, options: AnalysisOptions) -> bool:
    """Whether to keep rows in float64: with normal columns, on a device that has float64."""
    return likelihood in ("normal", "mixed") and torch.device(options.device or "cpu").type != "mps"


def within_limits(effort: Effort, data: Dataset) -> Effort:
    """The effort with fewer draws for ArviZ, then fewer rows of them, where they would fill a disk.

    Of each row there are the draws themselves and as many from the prior, in 8 bytes a number.
    """
    if data.obs_mask is not None:  # rows that are not whole have no distances to samples
        effort = replaced(effort, samples=0)
    each = 2 * 8 * math.prod(data.event_shape)
    if not effort.export_rows or effort.export_rows * effort.export_draws * each <= EXPORTED:
        return effort
    fewest = min(FEWEST_DRAWS, effort.export_draws)
    draws = max(fewest, min(effort.export_draws, EXPORTED // (effort.export_rows * each)))
    rows = max(1, min(effort.export_rows, EXPORTED // (draws * each)))
    return replaced(effort, export_draws=draws, export_rows=rows)


def _environment(options: AnalysisOptions, seconds: float) -> dict[str, str]:
    packages = ("pyrovae", "torch", "pyro-ppl", "arviz")
    return {
        "seed": str(options.seed),
        "device": options.device or "cpu",
        "wall time": f"{seconds:.0f} s",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def _write(
    out: Path,
    diagnosis: Diagnosis,
    run: Fit | None,
    facts: Mapping[str, str],
    data: Dataset,
    *,
    seed: int,
) -> tuple[Path, Path | None, Path]:
    """Write report, draws and table, each completely or not at all."""
    draws = diagnosis.exported
    groups = draws.groups.values() if draws else ()
    check_room(out, MARGIN + sum(array.nbytes for group in groups for array in group.values()))
    (out / NAME).unlink(missing_ok=True)  # that of an earlier run
    netcdf = None
    if draws is None:  # the draws of an earlier run would be taken for this one's
        (out / "diagnosis.nc").unlink(missing_ok=True)
    else:
        netcdf = replace(
            out / "diagnosis.nc", lambda path: write_netcdf(diagnosis.to_arviz(), path)
        )
    table = replace(
        out / "measures.csv", lambda path: diagnosis.summary().to_csv(path, index=False)
    )
    train = numbers_of_parts(len(data), seed=seed)[0]
    report = write(
        out / "report.html",
        render(
            diagnosis,
            run=run,
            facts=facts,
            how=how_to_sample(out, recommended_source(diagnosis)),
            wording=for_command,
            columns=data.columns or (),
            categories={} if data.info is None else data.info.categories,
            labels=None if data.labels is None else colouring(data.labels[train], data.label_names),
        ),
    )
    return report, netcdf, table
