"""What can be checked before the first step of a training run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from pyro.optim.optim import PyroOptim
from torch import Tensor

from pyrovae.data import Batch, Batches, row_count, take_rows
from pyrovae.errors import InputError
from pyrovae.pairs import Reader, by_place, measuring
from pyrovae.training.loop import Evaluator
from pyrovae.training.trainable import Survey, Trainable

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

# How torch's BatchNorm begins the error that it can't train on a single row.
_ONE_ROW = "Expected more than 1 value per channel when training"


def check_device(device: torch.device | str | None, name: str) -> None:
    """Raise unless torch can compute on the device.

    Args:
        device: the device, or None to stay where things are.
        name: the argument or option that named it, for the error.

    Raises:
        InputError: naming the devices that can be used.

    >>> check_device("cpu", "device=")
    """
    if device is None:
        return
    try:
        usable = torch.device(device).type != "meta"
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError):  # unknown, not built in, not there
        usable = False
    if not usable:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(
            f"expected one of {', '.join(['cpu', *cuda, *mps])} as {name}; got {str(device)!r}, "
            f"which torch can't use here. Leave {name} out, or install a torch built for it."
        )


def check_optimizer(factory: OptimizerFactory) -> None:
    """Raise if ``optimizer=`` is an optimizer itself, not a function that makes one.

    Raises:
        InputError: saying what to pass instead.
    """
    if isinstance(factory, PyroOptim):
        raise InputError(
            "expected a function that makes one of torch's optimizers from parameters; got one of "
            "pyro.optim, which takes them from Pyro's parameter store. Pass optimizer=lambda "
            f"parameters: {_call(factory)}."
        )
    if isinstance(factory, torch.optim.Optimizer) or not callable(factory):
        raise InputError(
            "expected a function that makes an optimizer from parameters; got "
            f"{type(factory).__name__} itself. Pass optimizer=lambda parameters: "
            "torch.optim.Adam(parameters, lr=1e-3), say."
        )


def make_optimizer(
    factory: OptimizerFactory, parameters: Iterable[Tensor]
) -> torch.optim.Optimizer:
    """The optimizer of these parameters.

    Raises:
        InputError: unless it is one of ``torch.optim`` that steps by gradients alone.
    """
    optimizer = factory(list(parameters))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            "expected optimizer= to make one of torch's optimizers from parameters; got "
            f"{type(optimizer).__name__}. Pass optimizer=lambda parameters: "
            "torch.optim.Adam(parameters, lr=1e-3), say."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"expected an optimizer that steps by one gradient; got {type(optimizer).__name__}, "
            "which evaluates the objective itself. Use torch.optim.Adam, say."
        )
    return optimizer


def check_before(
    evaluator: Evaluator,
    found: Survey,
    rows: Batches,
    held_out: Batches | None,
    *,
    first: Batch,
    processes: int = 1,
) -> bool:
    """Raise if a step would fail, or would train something other than what is meant.

    Args:
        evaluator, found: the pair, and what it showed on the first batch.
        rows, held_out: the data.
        first: the first batch, prepared.
        processes: number of processes that take their part of every minibatch.

    Returns:
        whether the rows have to keep their order.

    Raises:
        InputError: if there is nothing to train; if the pair has parameters for each place in a
            batch but the rows come in several batches, shuffled or with held-out ones; if a
            layer can't train on a single row and a minibatch has just one; or if parts of a
            minibatch would not train what the whole one trains.
    """
    trainable = found.trainable
    if not trainable.parameters:
        raise InputError(
            "expected parameters to train; got none that require a gradient. Declare them with "
            "pyro.param or pyro.module."
        )
    if processes > 1:
        for data in (rows, *filter(None, [held_out])):
            data.part(0, processes)  # raises if it has no parts
    _check_single_row(evaluator, trainable, rows, first, processes)
    parameters = _parameters_by_place(evaluator, first)
    if parameters:
        _check_one_batch(parameters[0], rows, held_out, processes)
    elif processes > 1:
        _check_parts(evaluator, found, first, processes)
    return bool(parameters)


def _parameters_by_place(evaluator: Evaluator, first: Batch) -> list[Tensor]:
    """Parameters for each place in a batch; none if the pair can't be run to see."""
    model, guide = Reader(evaluator.model, "model"), Reader(evaluator.guide, "guide")
    try:
        with measuring(evaluator.model, evaluator.guide):
            return by_place(model, guide, first)
    except ValueError:  # a NaN, say: the step that follows says where
        return []


def _check_one_batch(
    parameter: Tensor, rows: Batches, held_out: Batches | None, processes: int
) -> None:
    if processes > 1:
        raise InputError(
            "expected one process for a pair that has parameters for each place in a batch, of "
            f"shape {tuple(parameter.shape)}; got {processes}. Train it without torchrun, or write "
            "a guide that computes them from the row."
        )
    if len(rows) > 1:
        obstacle = f"{len(rows)} minibatches"
    elif rows.changes_order:
        obstacle = "a loader that changes their order"
    elif held_out is not None:
        obstacle = "held-out rows"
    else:
        return
    raise InputError(
        f"expected all rows in one batch, in order, for a pair that has parameters for each place "
        f"in it, of shape {tuple(parameter.shape)}; got {obstacle}. Train with batch_size= the "
        "number of rows and without validation=, or write a guide that computes them from the row."
    )


def _check_parts(evaluator: Evaluator, found: Survey, first: Batch, processes: int) -> None:
    """Raise if the pair draws its rows itself, or counts sites for all rows once in each part."""
    if found.drawing:
        plate = found.drawing[0]
        raise InputError(
            f"expected rows that fit draws, to train in {processes} processes; got pyro.plate("
            f"{plate!r}, N, subsample_size=...), which draws them in each. Write pyro.plate("
            f"{plate!r}, N, subsample=torch.arange(len(x))) with the rows x as they come, and pass "
            "batch_size= the number to draw."
        )
    rows = -(-row_count(first) // processes)
    part = evaluator.survey(take_rows(first, slice(0, rows)))
    if part.outside and part.plate_size == rows:
        raise InputError(
            f"expected every site in the plate over the rows, or a plate of the full size N, to "
            f"train in {processes} processes; got {', '.join(part.outside[:4])} outside of a plate "
            'of a minibatch. Write pyro.plate("data", N, subsample=torch.arange(len(x))).'
        )


def _check_single_row(
    evaluator: Evaluator, trainable: Trainable, rows: Batches, first: Batch, processes: int
) -> None:
    """Raise if a part of a minibatch has one row and a layer can't train on a single row."""
    if rows.row_counts is None or not _has_single_row(*rows.row_counts, processes):
        return
    with _rehearsal(trainable), explained_single_row(rows, processes):
        try:
            evaluator.objective(evaluator.model, evaluator.guide, *take_rows(first, slice(0, 1)))
        except ValueError as error:
            if str(error).startswith(_ONE_ROW):
                raise
            # any other error comes up again in the step itself, which explains it


def _has_single_row(size: int, count: int, processes: int) -> bool:
    """Whether a part of a minibatch has one row, of ``count`` rows in minibatches of ``size``."""
    batches = {min(size, count), count % size} - {0}
    return any(1 in (rows // processes, -(-rows // processes)) for rows in batches)


@contextmanager
def explained_single_row(rows: Batches, processes: int = 1) -> Iterator[None]:
    """Say what to do where a layer refuses a minibatch, or a process's part of it, of one row.

    Raises:
        InputError: instead of the layer's own error.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_ONE_ROW):
            raise
        actual, remedy = "a minibatch with a single row", "Leave out or add a row, "
        if rows.row_counts is not None:
            size, count = rows.row_counts
            among = f" among {processes} processes" if processes > 1 else ""
            actual = f"{count} rows in minibatches of {size}{among}, so that one has a single row"
            sizes = range(size, size + 3 * processes + 1)
            fitting = next((n for n in sizes if not _has_single_row(n, count, processes)), None)
            if processes > 1:
                larger = f"raise batch_size to {fitting}, " if fitting is not None else ""
                remedy = f"Start fewer processes, {larger}"
            elif fitting is not None:
                remedy += f"give batch_size={fitting} or, to a DataLoader, drop_last=True, "
        raise InputError(
            "expected at least 2 rows in every minibatch, for a layer such as BatchNorm; got "
            f"{actual}. {remedy}or use LayerNorm instead."
        ) from error


@contextmanager
def _rehearsal(trainable: Trainable) -> Iterator[None]:
    """Training mode for a trial run; buffers, modes and the random state are restored after it."""
    state = trainable.state()
    with torch.random.fork_rng(), torch.no_grad(), trainable.modes_restored():
        trainable.train(True)
        try:
            yield
        finally:
            trainable.load(state)


def _call(optimizer: PyroOptim) -> str:
    """The call that makes torch's own optimizer behind one of Pyro's."""
    kind, settings = optimizer.pt_optim_constructor, optimizer.pt_optim_args
    keywords = settings if isinstance(settings, dict) else {"lr": 1e-3}
    words = "".join(f", {name}={value!r}" for name, value in keywords.items())
    is_torch = getattr(torch.optim, kind.__name__, None) is kind
    return f"{'torch.optim' if is_torch else kind.__module__}.{kind.__name__}(parameters{words})"
