"""What can be seen of a training run before its first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

import torch
from pyro.optim.optim import PyroOptim
from torch import Tensor
from torch.utils.data import SequentialSampler

from pyrovae.data import ArrayBatches, Batch, Batches, DatasetBatches, LoaderBatches, take_rows
from pyrovae.errors import InputError
from pyrovae.pairs import Reader, by_place, measuring
from pyrovae.training.loop import Evaluator
from pyrovae.training.trainable import Trainable

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

# How torch's BatchNorm begins to say that it takes no single row in training.
_ONE_ROW = "Expected more than 1 value per channel when training"


def check_device(device: torch.device | str | None, name: str) -> None:
    """Raise unless torch can compute on the device.

    Args:
        device: which, or None for where things are.
        name: what the device was given as, for the error.

    Raises:
        InputError: naming the devices there are.

    >>> check_device("cpu", "device=")
    """
    if device is None:
        return
    try:
        usable = torch.device(device).type != "meta"
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # unknown, not built in, not there
        usable = False
    if not usable:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(
            f"expected one of {', '.join(['cpu', *cuda, *mps])} as {name}; got {str(device)!r}, "
            f"which torch can't use here. Leave {name} out, or install a torch built for it."
        )


def check_optimizer(factory: OptimizerFactory) -> None:
    """Raise if what was given makes no optimizer from parameters, but is one.

    Raises:
        InputError: saying what to give in its place.
    """
    if isinstance(factory, PyroOptim):
        raise InputError(
            "expected a function that makes one of torch's optimizers from parameters; got one of "
            "pyro.optim, which makes its own from Pyro's parameter store. Pass optimizer=lambda "
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
    """The optimizer of some parameters.

    Raises:
        InputError: unless it is one of ``torch.optim`` that steps by gradients alone.
    """
    made = factory(list(parameters))
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            "expected optimizer= to make one of torch's optimizers from parameters; got "
            f"{type(made).__name__}. Pass optimizer=lambda parameters: "
            "torch.optim.Adam(parameters, lr=1e-3), say."
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"expected an optimizer that steps by one gradient; got {type(made).__name__}, which "
            "evaluates the objective itself. Use torch.optim.Adam, say."
        )
    return made


def check_before(
    evaluator: Evaluator,
    trainable: Trainable,
    rows: Batches,
    held_out: Batches | None,
    *,
    first: Batch,
) -> bool:
    """Raise if a step would fail, or train something else than what is meant.

    Args:
        evaluator, trainable: the pair, and what it trains.
        rows, held_out: the data.
        first: the first batch, prepared.

    Returns:
        whether the rows have to keep their order.

    Raises:
        InputError: if there is nothing to train, the pair has parameters for each place in a batch
            and the batches are several, shuffled or held-out ones, or a layer takes no single row
            and a minibatch has just one.
    """
    if not trainable.parameters:
        raise InputError(
            "expected parameters to train; got none that requires a gradient. Declare them with "
            "pyro.param or pyro.module."
        )
    _check_single_row(evaluator, trainable, rows, first)
    placed = _placed(evaluator, first)
    if placed:
        _check_one_batch(placed[0], rows, held_out)
    return bool(placed)


def _placed(evaluator: Evaluator, first: Batch) -> list[Tensor]:
    """Parameters for each place in a batch; none where that can't be read off the pair."""
    model, guide = Reader(evaluator.model, "model"), Reader(evaluator.guide, "guide")
    try:
        with measuring(evaluator.model, evaluator.guide):
            return by_place(model, guide, first)
    except ValueError:  # a NaN, say: the step that follows says where
        return []


def _check_one_batch(parameter: Tensor, rows: Batches, held_out: Batches | None) -> None:
    loader = rows.loader if isinstance(rows, LoaderBatches) else None
    ordered = loader is None or isinstance(loader.sampler, SequentialSampler)
    if len(rows) == 1 and ordered and held_out is None:
        return
    got = f"{len(rows)} minibatches" if len(rows) > 1 else "held-out rows"
    if len(rows) == 1 and not ordered:
        got = "a loader that changes their order"
    raise InputError(
        f"expected all rows in one batch, in their order, for a pair that has parameters for each "
        f"place in it, of shape {tuple(parameter.shape)}; got {got}. Train with batch_size= the "
        "number of rows and without validation=, or write a guide that computes them from the row."
    )


def _check_single_row(
    evaluator: Evaluator, trainable: Trainable, rows: Batches, first: Batch
) -> None:
    """Raise if the last minibatch has one row, and a layer takes no single one in training."""
    size, count = _sizes(rows)
    if count == 0 or count % size != 1 % size:
        return
    with _rehearsal(trainable), single_rows(rows):
        try:
            evaluator.objective(evaluator.model, evaluator.guide, *take_rows(first, slice(0, 1)))
        except ValueError as error:
            if str(error).startswith(_ONE_ROW):
                raise
            # what else is wrong is seen, and said, in the step itself


@contextmanager
def single_rows(rows: Batches) -> Iterator[None]:
    """Say what to do where a layer refuses a minibatch of one row.

    Raises:
        InputError: in the place of the layer's own error.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_ONE_ROW):
            raise
        size, count = _sizes(rows)
        first = max(size, 2)
        fitting = next((n for n in range(first, first + 3) if count > 1 and count % n != 1), None)
        sizes = f"give batch_size={fitting} or, to a DataLoader, drop_last=True, "
        raise InputError(
            "expected at least 2 rows in every minibatch, for a layer such as BatchNorm; got "
            f"{count} rows in minibatches of {size}, so that one has a single row. Leave out or "
            f"add a row, {sizes if fitting else ''}or take LayerNorm in its place."
        ) from error


def _sizes(rows: Batches) -> tuple[int, int]:
    """Rows in a minibatch, and in all minibatches; 0 where that is not known beforehand."""
    if isinstance(rows, ArrayBatches):
        return rows.batch_size, len(rows.arrays[0])
    if isinstance(rows, DatasetBatches):
        return rows.batch_size, rows.size
    if isinstance(rows, LoaderBatches):
        loader, size = rows.loader, rows.loader.batch_size
        if size is not None and isinstance(loader.sampler, Sized):
            count = len(loader.sampler)
            return size, count - count % size if loader.drop_last else count
    return 1, 0


@contextmanager
def _rehearsal(trainable: Trainable) -> Iterator[None]:
    """In training mode, but without a trace in buffers, modes or the random state."""
    state = trainable.state()
    with torch.random.fork_rng(), torch.no_grad(), trainable.modes_kept():
        trainable.train(True)
        try:
            yield
        finally:
            trainable.load(state)


def _call(optimizer: PyroOptim) -> str:
    """How torch's own optimizer behind one of Pyro's is made."""
    kind, settings = optimizer.pt_optim_constructor, optimizer.pt_optim_args
    given = settings if isinstance(settings, dict) else {"lr": 1e-3}
    words = "".join(f", {name}={value!r}" for name, value in given.items())
    own = getattr(torch.optim, kind.__name__, None) is kind
    return f"{'torch.optim' if own else kind.__module__}.{kind.__name__}(parameters{words})"
