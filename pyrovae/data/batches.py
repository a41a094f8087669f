"""Data sets as minibatches of rows: shuffled by the random state in force, or in order."""

from __future__ import annotations

import hashlib
import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from pyrovae.data.arrays import ARRAYS, Array, Rows, as_rows, check_finite
from pyrovae.errors import InputError
from pyrovae.randomness import seeded_everywhere

Data = Array | tuple[Array, ...] | Dataset[Any] | DataLoader[Any]
Batch = tuple[Tensor, ...]
Transform = Callable[[Tensor, torch.Generator], Tensor]


class Batches(ABC):
    """Rows to go through, a minibatch at a time; each minibatch is what the pair is called with."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of minibatches in one pass."""

    @abstractmethod
    def ordered(self) -> Iterator[Batch]:
        """One pass in the order of the data, every row once.

        Raises:
            InputError: where there is no such order.
        """

    def first(self) -> Batch:
        """A minibatch to look at."""
        return next(self.ordered())

    @abstractmethod
    def shuffled(self) -> Iterator[Batch]:
        """One pass in an order drawn from torch's random state."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that differs between different data."""


@dataclass(frozen=True)
class ArrayBatches(Batches):
    """Tensors that share their first dimension, cut into minibatches of rows."""

    arrays: tuple[Rows, ...]
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.arrays[0]) // self.batch_size)

    def ordered(self) -> Iterator[Batch]:
        return zip(*(array.split(self.batch_size) for array in self.arrays), strict=True)

    def shuffled(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.arrays[0])).to(self.arrays[0].device)
        for rows in order.split(self.batch_size):
            yield tuple(array.index_select(0, rows) for array in self.arrays)

    def fingerprint(self) -> str:
        whole = ArrayBatches(self.arrays, 8192)
        return f"{_digest(whole.ordered())}, batches of {self.batch_size}"


@dataclass(frozen=True)
class DatasetBatches(Batches):
    """A map-style data set whose items are rows, or tuples of the arguments for one row."""

    dataset: Dataset[Any]
    size: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def ordered(self) -> Iterator[Batch]:
        return _checked(map(self._rows, torch.arange(self.size).split(self.batch_size)))

    def shuffled(self) -> Iterator[Batch]:
        return map(self._rows, torch.randperm(self.size).split(self.batch_size))

    def fingerprint(self) -> str:
        with seeded_everywhere(0, "rows of a data set"):  # items may be drawn anew each time
            return f"{_digest(self.ordered())}, batches of {self.batch_size}"

    def _rows(self, indices: Tensor) -> Batch:
        items = [self.dataset[i] for i in indices.tolist()]
        for item in items:
            for part in item if isinstance(item, tuple) else (item,):
                if isinstance(part, np.ma.MaskedArray):
                    as_rows(part, "the data set's items")  # which refuses what is hidden
        try:
            return _as_batch(default_collate(items))
        except (TypeError, RuntimeError) as error:
            kinds = sorted({type(item).__name__ for item in items})
            raise InputError(
                "expected a data set whose items are tensors of one shape, or tuples of them; got "
                f"{', '.join(kinds)}: {error}. Map the items with a Dataset of your own."
            ) from error


@dataclass(frozen=True)
class LoaderBatches(Batches):
    """A ``DataLoader``, which keeps its own batch size and its own way to shuffle.

    In order, it is its data set that is gone through, all of it, whether or not the loader shuffles
    and leaves out a last batch that is not full.
    """

    loader: DataLoader[Any]

    def __len__(self) -> int:
        return len(self.loader)

    def ordered(self) -> Iterator[Batch]:
        if (reason := _without_order(self.loader)) is not None:
            raise InputError(
                "expected a DataLoader that goes through its data set in order or shuffled, so "
                f"that row n of the answer is row n of the data set; got {reason}. Give the rows "
                "that are meant themselves: loader.dataset, or "
                "torch.utils.data.Subset(loader.dataset, indices)."
            )
        # A loader draws seeds for its workers, used or not.
        in_order = _in_order(self.loader, generator=torch.Generator())
        return _checked(map(_as_batch, in_order), in_order)

    def first(self) -> Batch:
        generator = self.loader.generator
        state = None if generator is None else generator.get_state()
        with torch.random.fork_rng():
            batch = _as_batch(next(iter(self.loader)))
        if generator is not None and state is not None:
            generator.set_state(state)
        return batch

    def shuffled(self) -> Iterator[Batch]:
        _reseed(self.loader)
        return map(_as_batch, self.loader)

    def fingerprint(self) -> str:
        order, rows = self._order(), self._rows(0)
        if order != self._order():
            raise InputError(
                "expected a DataLoader whose order can be had again, for a run that can be gone on "
                f"with; got another one each time from {type(self.loader.sampler).__name__}. Let "
                "its sampler draw from torch's random state or from a generator that it keeps as "
                "an attribute, or leave checkpoint= out."
            )
        if self.loader.persistent_workers and rows != self._rows(1):
            raise InputError(
                "expected the same rows each time from a DataLoader whose workers persist, for a "
                "run that can be gone on with; got others. Set persistent_workers=False, or leave "
                "checkpoint= out."
            )
        return f"{rows} in the order {order}"

    def _order(self) -> str:
        """A digest of the numbers of the rows in each batch."""
        loader, digest = self.loader, hashlib.blake2b(digest_size=16)
        if isinstance(loader.dataset, IterableDataset):
            return "of a stream"
        with seeded_everywhere(0, "order of a loader"):
            _reseed(loader)
            for rows in loader.sampler if loader.batch_sampler is None else loader.batch_sampler:
                digest.update(repr(rows).encode())
        return digest.hexdigest()

    def _rows(self, draws: int) -> str:
        """A digest of all rows in the order of the data set, read as the loader reads them."""
        stream = isinstance(self.loader.dataset, IterableDataset)
        in_order = self.loader if stream else _in_order(self.loader)
        with seeded_everywhere(0, "rows of a loader", draws):
            _reseed(self.loader)
            return _digest(map(_as_batch, in_order))


def as_batches(data: Data, batch_size: int, *, name: str = "train") -> Batches:
    """Minibatches of an array, a tuple of them, a ``Dataset`` or a ``DataLoader``.

    An array is a tensor, a NumPy array, a pandas table, a ``scipy.sparse`` matrix or an AnnData;
    :func:`~pyrovae.data.arrays.as_rows` says what becomes of its numbers.

    Args:
        data: rows, shape ``(N, ...)``; a tuple gives several arguments to the pair.
        batch_size: rows in a minibatch; a ``DataLoader`` keeps its own.
        name: what to call the data in an error.

    Raises:
        InputError: for no rows, arrays of different length, entries that are hidden or not finite,
            or something that is no data set: a list, a dict, a stream without a length.

    >>> [len(x) for (x,) in as_batches(torch.zeros(5, 2), 2).ordered()]
    [2, 2, 1]
    """
    if batch_size < 1:
        raise InputError(f"expected batch_size ≥ 1; got {batch_size}. Use 100, say.")
    if isinstance(data, DataLoader):
        _check_length(data, name)
        return _not_empty(LoaderBatches(data), name)
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, ARRAYS):
        data = (data,)
    if isinstance(data, tuple):
        arrays = tuple(as_rows(array, name) for array in data)
        _check_arrays(arrays, name)
        return _not_empty(ArrayBatches(arrays, batch_size), name)
    _check_dataset(data, name)
    return _not_empty(DatasetBatches(data, len(data), batch_size), name)  # type: ignore[arg-type]


def all_rows(data: Data, *, name: str = "data") -> Batch:
    """All rows of a data set in order: one tensor for each argument of the pair.

    Raises:
        InputError: as :func:`as_batches`.
    """
    parts = list(as_batches(data, 65_536, name=name).ordered())
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def as_batch(rows: Tensor | Batch) -> Batch:
    """The arguments of a pair as a tuple, whether or not there is more than one."""
    return (rows,) if isinstance(rows, Tensor) else rows


def take_rows(batch: Batch, index: Tensor | slice) -> Batch:
    """The same rows of every argument."""
    return tuple(array[index] for array in batch)


def repeat_rows(batch: Batch, times: int) -> Batch:
    """All rows, and all of them again, ``times`` in all.

    >>> repeat_rows((torch.tensor([1, 2]),), 2)
    (tensor([1, 2, 1, 2]),)
    """
    return tuple(array.expand(times, *array.shape).flatten(0, 1) for array in batch)


def _digest(batches: Iterable[Batch]) -> str:
    """A digest of all numbers of all batches."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for array in batch:
            digest.update(f"{tuple(array.shape)} {array.dtype}".encode())
            numbers = array.detach().cpu().contiguous().flatten()
            digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _reseed(loader: DataLoader[Any]) -> None:
    """Seed every generator that a loader, its samplers and its data set keep, from torch's state.

    Whatever else they draw, they draw from the random states of torch, NumPy and Python.
    """
    batches = loader.batch_sampler
    owners = (loader, loader.sampler, batches, getattr(batches, "sampler", None), loader.dataset)
    values = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
    for generator in {id(v): v for v in values if isinstance(v, _GENERATORS)}.values():
        seed = int(torch.randint(1 << 62, ()))
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            bits.state = type(bits)(seed).state
        else:
            generator.seed(seed % (1 << 32))


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def check_arguments(function: Callable[..., Any], batch: Batch, who: str) -> None:
    """Raise unless a function can be called with a batch.

    Args:
        function: the model or the guide.
        batch: its arguments.
        who: which of the two, for the error.

    Raises:
        InputError: if it takes more or fewer of them.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # nothing is known of what it takes
        return
    try:
        signature.bind(*batch)
    except TypeError:
        raise InputError(
            f"expected data with one array for each argument of the {who}, which takes "
            f"{signature}; got {len(batch)} for each row. Give a tuple of as many arrays, (x, y); "
            "of a data set of rows and labels give the rows alone."
        ) from None


def _in_order(
    loader: DataLoader[Any], *, generator: torch.Generator | None = None
) -> DataLoader[Any]:
    """A loader of all items of the same data set in their order, read in the same way."""
    batches = loader.batch_sampler
    return DataLoader(
        loader.dataset,
        batch_size=None if batches is None else getattr(batches, "batch_size", 256),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
    )


def _without_order(loader: DataLoader[Any]) -> str | None:
    """Why a loader's rows are not those of its data set, each once; ``None`` if they are."""
    if isinstance(loader.dataset, IterableDataset):
        return f"one over a stream, {type(loader.dataset).__name__}"
    if type(loader).__iter__ is not DataLoader.__iter__:
        return f"a {type(loader).__name__}, which has a way of its own"
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        return f"one whose batches a {type(batches).__name__} makes"
    sampler = loader.sampler if batches is None else batches.sampler
    if type(sampler) is RandomSampler and not sampler.replacement:
        whole = sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    else:
        whole = type(sampler) is SequentialSampler and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    return None if whole else f"one whose rows a {type(sampler).__name__} chooses"


def _checked(parts: Iterator[Batch], loader: DataLoader[Any] | None = None) -> Iterator[Batch]:
    """Batches in order, whose numbers are finite, and of a loader as many as it asked for."""
    start = 0
    size = None if loader is None else loader.batch_size
    for batch in parts:
        for array in batch:
            check_finite(array, "the data set", first=start)
        if loader is not None and size is not None:
            asked = min(size, len(loader.dataset) - start)  # type: ignore[arg-type]
            if any(len(array) != asked for array in batch):
                raise InputError(
                    "expected a DataLoader whose collate_fn makes one row of each item; got "
                    f"{[len(array) for array in batch]} rows of {asked} items. Give the data set "
                    "without the items that it leaves out."
                )
        start += len(batch[0])
        yield batch


def _check_length(loader: DataLoader[Any], name: str) -> None:
    try:
        len(loader)
    except TypeError as error:
        raise _stream(loader.dataset, name) from error


def _stream(dataset: object, name: str) -> InputError:
    return InputError(
        f"expected {name} to be a data set with a length, whose rows go by number; got "
        f"{type(dataset).__name__}, a stream. Collect its rows: torch.stack(list(dataset)) of "
        "tensors, or give a map-style Dataset."
    )


def _check_dataset(data: object, name: str) -> None:
    """Raise unless something is a map-style data set."""
    if isinstance(data, IterableDataset):
        raise _stream(data, name)
    itemised = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, list | Mapping | str) or not itemised:
        raise InputError(
            f"expected {name} to be a tensor, an array, a table, a tuple of them, a map-style "
            f"Dataset or a DataLoader; got {type(data).__name__}. Pass a tuple for several "
            "arguments of the pair, (x, y), or stack rows into one tensor, torch.stack(rows)."
        )


def _not_empty(batches: Batches, name: str) -> Batches:
    if len(batches) == 0:
        raise InputError(f"expected at least one row in {name}; got none.")
    return batches


def _check_arrays(arrays: Sequence[Rows], name: str) -> None:
    if not arrays or any(array.ndim == 0 for array in arrays):
        raise InputError(f"expected {name} to have rows, shape (N, ...); got a scalar or nothing.")
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise InputError(
            f"expected arrays with as many rows as each other in {name}; got {lengths}."
        )


def _as_batch(part: Any) -> Batch:
    parts = tuple(part) if isinstance(part, list | tuple) else (part,)
    if not parts or not all(isinstance(p, Tensor) for p in parts):
        raise InputError(
            "expected batches that are a tensor or a tuple of tensors; got "
            f"{[type(p).__name__ for p in parts]}. Map the items with a Dataset of your own."
        )
    return parts
