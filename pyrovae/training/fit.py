"""Stochastic variational inference on any Pyro pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro.infer
import torch

from pyrovae.data import (
    ArrayBatches,
    Batches,
    Data,
    Transform,
    as_batches,
    check_arguments,
    row_count,
    row_kinds,
)
from pyrovae.errors import InputError
from pyrovae.pairs import AsFound, PyroFunction, check_parameters, modules_of
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, seeded_everywhere
from pyrovae.torch_modes import plain
from pyrovae.training.captured import Capture, check_capture
from pyrovae.training.checkpoint import check_path
from pyrovae.training.checks import (
    OptimizerFactory,
    check_before,
    check_device,
    check_optimizer,
    explained_single_row,
    make_optimizer,
)
from pyrovae.training.distributed import Ranks, join, own_device
from pyrovae.training.fingerprint import of_pair
from pyrovae.training.history import Fit
from pyrovae.training.loop import Evaluator, Settings, Trainer
from pyrovae.training.objectives import Objective, as_objective, elbo


def adam(lr: float = 1e-3, **settings: Any) -> OptimizerFactory:
    """Adam over all parameters at once, its update fused into one kernel (Kingma & Ba 2015).

    Args:
        lr: learning rate.
        settings: further arguments of ``torch.optim.Adam``.

    >>> import pyrovae as pv, torch
    >>> vae = pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2))
    >>> rows = torch.rand(40, 4).round()
    >>> optimizer = pv.adam(3e-4)
    >>> pv.fit(vae.model, vae.guide, rows, epochs=1, optimizer=optimizer, progress=False).best_epoch
    1
    """
    return partial(torch.optim.Adam, lr=lr, **({"fused": True} | settings))


@plain()
@torch.enable_grad()
def fit(  # noqa: PLR0913 - the one flat front door; every setting is a keyword with a default
    model: PyroFunction,
    guide: PyroFunction,
    train: Data,
    *,
    validation: Data | None = None,
    epochs: int = 100,
    batch_size: int = 100,
    objective: Objective | pyro.infer.ELBO = elbo,
    optimizer: OptimizerFactory | None = None,
    transform: Transform | None = None,
    kl_warmup: int = 0,
    clip_norm: float | None = None,
    patience: int | None = None,
    average: int = 0,
    lr_schedule: Callable[[int], float] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    capture: Capture = "auto",
    compile: bool = False,
) -> Fit:
    """Train a Pyro pair by maximising the mean of an objective, the ELBO, per datum.

    A step is one update of all parameters, by the gradient of one minibatch; an epoch is one pass
    over the data, ⌈N / batch_size⌉ steps.

    The pair is trained in place, both its modules and its parameters in Pyro's store; trained are
    the parameters that it uses on the first batch. Torch's random state, the train/eval modes and
    the validation flags are left as they were. Pyro's and torch's argument checks, if they are on,
    run in the first epoch, which sees every row, and are off after it.

    Started by ``torchrun``, or with a group of ``torch.distributed`` that the script has made, all
    processes train the pair together. Each takes its part of the rows of every minibatch, and a
    step follows the mean gradient over all of these: ``batch_size`` is that of the whole. What an
    objective adds for a minibatch as a whole, such as a penalty on parameters, each process adds
    for its part, and a mean over rows is over this part. Latents are drawn from a stream for each
    process. What follows in the script runs in every one of them; ``if os.environ.get("RANK", "0")
    == "0":`` lets one do it.

    In a run of 1,000 steps and more, 4 in an epoch, those from the second epoch on are replayed: a
    step's tensor operations, random draws among them, are recorded once, and run without the pair's
    Python, Pyro's handlers and autograd. Each number is the same to the last bit, or the pair
    computes its steps itself; ``capture`` of the result says which, and why: because it takes
    numbers out of tensors (``.item()``, ``x[x > 0]``), draws from NumPy, can reach an iterator, or
    changes attributes or variables that outlast a step, as where it counts steps or logs to a list.
    A condition such as ``if x.sum() > 0:`` is looked at in each step, which the pair computes if it
    has turned. What prints does so no more. The last step of each epoch is computed by the pair as
    well: if anything differs, as where a variable outside has another value now, the epoch is done
    anew by the pair alone, in all processes. Only what has come and gone within an epoch stays
    unnoticed.

    Args:
        model: a Pyro model, called as ``model(x)`` with rows ``(B, ...)`` in a plate, either
            ``pyro.plate("data", len(x))`` or one of the full size N with ``subsample=``.
        guide: its guide.
        train: rows ``(N, ...)``: a tensor, an array, a pandas table, a ``scipy.sparse`` matrix
            (whose rows become dense a minibatch at a time), an AnnData (its ``X``; for a layer give
            ``adata.layers["counts"]``), a map-style ``Dataset`` or a ``DataLoader`` (which keeps
            its own batch size and shuffling). A tuple of them is a pair with more arguments,
            ``model(x, y)``.
        validation: held-out rows, by which the best epoch is chosen; its parameters are kept.
        epochs: passes over the data.
        batch_size: rows in a minibatch.
        objective: :func:`~pyrovae.training.objectives.elbo`, a function with its signature, or one
            of Pyro's estimators, for example ``TraceEnum_ELBO()``.
        optimizer: a function that makes an optimizer from parameters; ``adam(lr=1e-3)`` by
            default.
        transform: ``transform(x, generator)`` of every minibatch, with new draws each time in
            training and the same draws each epoch in validation: dynamic binarisation, for example.
        kl_warmup: epochs over which the weight on the latent sites grows linearly to 1.
        clip_norm: bound on the norm of the gradient; by default it is not clipped.
        patience: stop after so many epochs without a better validation ELBO, counted after the
            warm-up.
        average: epochs to train on after that, over all of whose steps the parameters are averaged:
            θ̄ = 1/T Σ_t θ_t (Polyak & Juditsky 1992; Izmailov et al. 2018). They begin at the best
            epoch's parameters, the last one's without ``validation``, with a new optimizer. Then
            the pair has θ̄; if its validation ELBO is below that of the best epoch, it has the best
            epoch's parameters again, and the result says so. Parameters with a constraint are
            averaged where they have none, positive ones by their logarithms. If buffers change in
            training, such as BatchNorm's running statistics, another pass over the data without
            steps brings them up to date with θ̄ in each of these epochs; BatchNorm's begin anew.
        lr_schedule: factor on the learning rates of the optimizer in an epoch, as a function of the
            epoch's number 1, …, ``epochs``; all steps of an epoch have the same. In the epochs of
            ``average`` it stays as it was in the best epoch. ``lambda epoch: 0.99**epoch``, say.
        seed: fixes all random choices: initial values drawn by the pair, shuffling, latent draws.
        device: where to train; by default where the pair's parameters are. Among several
            processes ``"cuda"`` is a GPU for each, number ``LOCAL_RANK``.
        checkpoint: file to write after each epoch. A ``Dataset`` or ``DataLoader`` is read once
            more for it, as the file holds a digest of the data.
        resume: go on from ``checkpoint`` if it exists; ``average`` may be larger than it was, and
            before the first epoch of it ``epochs``, too. With other data, other settings or another
            pair this is refused.
        progress: show a progress bar; by default if stderr is a terminal.
        capture: ``"auto"`` replays steps where that is possible and pays, ``"graph"`` replays them
            as a CUDA graph, on a GPU, where CUDA takes them as one, ``"off"`` replays none.
        compile: let torch's Inductor compile the steps that are replayed, which takes a C++
            compiler, and half a minute at first. Random draws stay the same, and value and
            gradient may be off by rounding: by 1e-4 of their norms at most where that is looked
            at, or steps are not compiled, and ``capture`` of the result says why.

    Returns:
        the history, the best epoch and why training stopped.

    Raises:
        InputError: if data or settings can't be used, or the checkpoint is of another run.
        NonFiniteLoss: if the loss is NaN or infinite; the checkpoint stays as it was.

    >>> import pyrovae as pv
    >>> x = torch.rand(200, 8).round()
    >>> vae = pv.VAE(pv.mlp_encoder((8,), 2), pv.mlp_decoder(2, (8,)), pv.StandardNormal(2))
    >>> run = pv.fit(vae.model, vae.guide, x[:150], validation=x[150:], epochs=3)
    >>> run.history.validation.shape
    (3,)
    """
    check_seed(seed)
    check_capture(capture, compile)
    settings = Settings(
        epochs=epochs,
        kl_warmup=kl_warmup,
        clip_norm=clip_norm,
        patience=patience,
        seed=seed,
        average=average,
        lr_factors=_factors(lr_schedule, epochs),
    )
    if patience is not None and validation is None:
        raise InputError("expected validation data for patience; got none. Pass validation=.")
    path = _checkpoint_path(checkpoint, resume)
    check_device(device, "device=")
    factory = adam() if optimizer is None else optimizer
    check_optimizer(factory)
    rows = as_batches(train, batch_size)
    held_out = None if validation is None else as_batches(validation, batch_size, name="validation")
    with seeded_everywhere(seed, "training setup"):
        _check_same_kinds(rows, held_out)
        evaluator = Evaluator(model, guide, as_objective(objective), transform)
        ranks, in_order = _set_up(evaluator, rows, held_out, device)
        trainer = Trainer(
            evaluator=evaluator,
            trainable=ranks.trainable,
            new_optimizer=partial(make_optimizer, factory, ranks.trainable.parameters.values()),
            train=rows,
            validation=held_out,
            settings=settings,
            ranks=ranks,
            in_order=in_order,
            capture=capture,
            compile=compile,
        )
    return _run(trainer, path, progress)


def _set_up(
    evaluator: Evaluator, rows: Batches, held_out: Batches | None, device: torch.device | str | None
) -> tuple[Ranks, bool]:
    """Find the parameters on the first batch, check that they can be trained, move them.

    A pair that is refused is left as it was.

    Returns:
        the processes that train the pair, and whether the rows have to keep their order.
    """
    first = rows.first()
    functions = evaluator.model, evaluator.guide
    for function, who in zip(functions, ("model", "guide"), strict=True):
        check_arguments(function, first, who)
    modules = modules_of(*functions)
    home = next((p.device for module in modules for p in module.parameters()), first[0].device)
    evaluator.device = home
    check_parameters(modules)
    target = own_device(home if device is None else torch.device(device))
    rank, processes = join(target)
    snapshot = AsFound(modules)
    try:
        first = evaluator.prepared_once(first)
        with explained_single_row(rows):
            found = evaluator.survey(first)
        in_order = check_before(evaluator, found, rows, held_out, first=first, processes=processes)
    except BaseException:
        snapshot.put_back()
        raise
    if device is not None or target != home:
        evaluator.device = target
        found.trainable.to(target)
    batch_rows, _ = rows.row_counts or (1, 1)
    return Ranks(found.trainable, rank, processes, batch_rows), in_order


def _run(trainer: Trainer, path: Path | None, progress: bool | None) -> Fit:
    """Train, from a checkpoint if there is one, and leave the modes as they were."""
    settings, steps, ranks = trainer.settings, len(trainer.train), trainer.ranks
    if not ranks.is_first:
        progress = False
    ranks.check_same(partial(_facts, trainer))
    with ranks.failing_together(), trainer.trainable.modes_restored():
        ranks.align()
        if path is not None:
            trainer.begin(path)
        total = steps * (settings.epochs + settings.average)
        with progress_bar("epoch 1", total, done=steps * trainer.epoch, progress=progress) as bar:
            return trainer.run(bar, path)


def _facts(trainer: Trainer) -> dict[str, str]:
    """What all processes must have in common, as text by name."""
    facts = {name: str(value) for name, value in vars(trainer.settings).items()}
    for name, data in (("training", trainer.train), ("validation", trainer.validation)):
        if data is not None:
            with seeded_everywhere(0, "rows to compare"):  # items may be random
                first = data.first()
            digest = ArrayBatches(first, row_count(first)).fingerprint()
            facts[f"{name} rows"] = f"{digest}, {data.row_counts}"
    return facts | of_pair(trainer.trainable)


def _factors(schedule: Callable[[int], float] | None, epochs: int) -> tuple[float, ...]:
    """The factor of each epoch; none without a schedule.

    Raises:
        InputError: unless all of them are finite numbers ≥ 0.
    """
    if schedule is None:
        return ()
    if not callable(schedule):
        raise InputError(
            "expected a function of the epoch's number as lr_schedule; got "
            f"{type(schedule).__name__}. Pass lr_schedule=lambda epoch: 0.99**epoch, say."
        )
    factors = []
    for epoch in range(1, epochs + 1):
        factor = schedule(epoch)
        try:
            factors.append(float(factor))
        except (TypeError, ValueError):
            factors.append(math.nan)
        if not 0 <= factors[-1] < math.inf:
            raise InputError(
                "expected a finite factor ≥ 0 from lr_schedule for each epoch; got "
                f"{factor!r} for epoch {epoch}. Correct the function."
            )
    return tuple(factors)


def _checkpoint_path(checkpoint: str | Path | None, resume: bool) -> Path | None:
    if checkpoint is None:
        if resume:
            raise InputError("expected a file to resume from; got none. Pass checkpoint=.")
        return None
    path = Path(checkpoint)
    check_path(path, resume=resume)
    return path


def _check_same_kinds(train: Batches, validation: Batches | None) -> None:
    if validation is None:
        return
    expected, actual = row_kinds(train.first()), row_kinds(validation.first())
    if expected != actual:
        raise InputError(
            f"expected validation rows of the shape and dtype of the training rows, {expected}; "
            f"got {actual}. Reshape or convert one of them."
        )
