"""Data sets as minibatches of rows: shuffled by the random state in force, or in order."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from pyrovae.errors import InputError
from pyrovae.randomness import seeded_everywhere

Array = Tensor | NDArray[Any]
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
        """One pass in the order of the data."""

    @abstractmethod
    def shuffled(self) -> Iterator[Batch]:
        """One pass in an order drawn from torch's random state."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short text that differs between different data."""


@dataclass(frozen=True)
class ArrayBatches(Batches):
    """Tensors that share their first dimension, cut into minibatches of rows."""

    arrays: Batch
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
        return map(self._rows, torch.arange(self.size).split(self.batch_size))

    def shuffled(self) -> Iterator[Batch]:
        return map(self._rows, torch.randperm(self.size).split(self.batch_size))

    def fingerprint(self) -> str:
        with seeded_everywhere(0, "rows of a data set"):  # items may be drawn anew each time
            return f"{_digest(self.ordered())}, batches of {self.batch_size}"

    def _rows(self, indices: Tensor) -> Batch:
        return _as_batch(default_collate([self.dataset[i] for i in indices.tolist()]))


@dataclass(frozen=True)
class LoaderBatches(Batches):
    """A ``DataLoader``, which keeps its own batch size and its own way to shuffle."""

    loader: DataLoader[Any]

    def __len__(self) -> int:
        return len(self.loader)

    def ordered(self) -> Iterator[Batch]:
        return map(_as_batch, self.loader)

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
        loader = self.loader
        if isinstance(loader.dataset, IterableDataset):
            in_order = loader
        else:
            in_order = DataLoader(
                loader.dataset,
                batch_size=loader.batch_size or (None if loader.batch_sampler is None else 256),
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                timeout=loader.timeout,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
            )
        with seeded_everywhere(0, "rows of a loader", draws):
            _reseed(loader)
            return _digest(map(_as_batch, in_order))


def as_batches(data: Data, batch_size: int, *, name: str = "train") -> Batches:
    """Minibatches of a tensor, an array, a tuple of them, a ``Dataset`` or a ``DataLoader``.

    Floating-point NumPy arrays take torch's default dtype; tensors stay as they are.

    Args:
        data: rows, shape ``(N, ...)``; a tuple gives several arguments to the pair.
        batch_size: rows in a minibatch; a ``DataLoader`` keeps its own.
        name: what to call the data in an error.

    Raises:
        InputError: for no rows, arrays of different length, or NaN or infinite entries.

    >>> [len(x) for (x,) in as_batches(torch.zeros(5, 2), 2).ordered()]
    [2, 2, 1]
    """
    if batch_size < 1:
        raise InputError(f"expected batch_size ≥ 1; got {batch_size}. Use 100, say.")
    if isinstance(data, DataLoader):
        return _not_empty(LoaderBatches(data), name)
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    if isinstance(data, tuple):
        arrays = tuple(_as_tensor(array, name) for array in data)
        _check_arrays(arrays, name)
        return _not_empty(ArrayBatches(arrays, batch_size), name)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise InputError(
            f"expected {name} to be a tensor, an array, a tuple of them, a map-style Dataset or a "
            f"DataLoader; got {type(data).__name__}. Put an iterable data set into a DataLoader."
        )
    return _not_empty(DatasetBatches(data, len(data), batch_size), name)


def all_rows(data: Data, *, name: str = "data") -> Batch:
    """All rows of a data set at once: one tensor for each argument of the pair.

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


def _not_empty(batches: Batches, name: str) -> Batches:
    if len(batches) == 0:
        raise InputError(f"expected at least one row in {name}; got none.")
    return batches


def _as_tensor(array: Any, name: str) -> Tensor:
    if isinstance(array, Tensor):
        return array.clone() if array.is_inference() else array  # autograd can't save such ones
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"expected tensors or arrays of numbers in {name}; got {kind}.")
    tensor = torch.as_tensor(array)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _check_arrays(arrays: Sequence[Tensor], name: str) -> None:
    if not arrays or any(array.ndim == 0 for array in arrays):
        raise InputError(f"expected {name} to have rows, shape (N, ...); got a scalar or nothing.")
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise InputError(
            f"expected arrays with as many rows as each other in {name}; got {lengths}."
        )
    for array in arrays:
        if not array.is_floating_point():
            continue
        for start, part in enumerate(array.split(8192)):
            if not part.isfinite().all():
                row, *rest = (int(i) for i in (~part.isfinite()).nonzero()[0])
                where = f"row {8192 * start + row}" + (f", position {tuple(rest)}" if rest else "")
                raise InputError(
                    f"expected finite numbers in {name}; got {float(part[row, *rest])} in {where} "
                    "(counted from 0). Remove or impute such rows."
                )


def _as_batch(part: Any) -> Batch:
    parts = tuple(part) if isinstance(part, list | tuple) else (part,)
    if not parts or not all(isinstance(p, Tensor) for p in parts):
        raise InputError(
            "expected batches that are a tensor or a tuple of tensors; got "
            f"{[type(p).__name__ for p in parts]}. Map the items with a Dataset of your own."
        )
    return parts
