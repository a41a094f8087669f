"""What a batch is, and data sets as minibatches of rows: shuffled by torch's state, or in order."""

from __future__ import annotations

import hashlib
import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
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
    """A data set, one minibatch at a time; each minibatch holds the arguments of one pair call."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of minibatches in one pass."""

    @property
    @abstractmethod
    def row_counts(self) -> tuple[int, int] | None:
        """Rows in a full minibatch and in one pass; ``None`` where they aren't known beforehand."""

    @property
    def changes_order(self) -> bool:
        """Whether the data themselves change the order of rows, as a loader that shuffles does."""
        return False

    @abstractmethod
    def ordered(self) -> Iterator[Batch]:
        """One pass in the order of the data, every row once.

        Raises:
            InputError: if the data have no such order.
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

    @abstractmethod
    def part(self, index: int, count: int) -> Batches:
        """One of ``count`` parts of every minibatch, which together are the whole.

        A pass skips minibatches of which this part has no row: the last one at most.

        Raises:
            InputError: if minibatches can't be divided.
        """


@dataclass(frozen=True)
class ArrayBatches(Batches):
    """Tensors that share their first dimension, cut into minibatches of rows."""

    arrays: tuple[Rows, ...]
    batch_size: int
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return -(-len(self.arrays[0]) // self.batch_size)

    @property
    def row_counts(self) -> tuple[int, int]:
        """Rows in a full minibatch and in one pass."""
        return self.batch_size, len(self.arrays[0])

    def ordered(self) -> Iterator[Batch]:
        if self.share == (0, 1):
            return zip(*(array.split(self.batch_size) for array in self.arrays), strict=True)
        return self._batches(torch.arange(len(self.arrays[0])))

    def shuffled(self) -> Iterator[Batch]:
        return self._batches(torch.randperm(len(self.arrays[0])))

    def fingerprint(self) -> str:
        blocks = ArrayBatches(self.arrays, 8192)
        return f"{_digest(blocks.ordered())}, batches of {self.batch_size}"

    def part(self, index: int, count: int) -> ArrayBatches:
        _check_parts(self.batch_size, count)
        return replace(self, share=(index, count))

    def _batches(self, order: Tensor) -> Iterator[Batch]:
        """Minibatches of the rows with these numbers."""
        order = order.to(self.arrays[0].device)
        for indices in _parts(order, self.batch_size, self.share):
            yield tuple(array.index_select(0, indices) for array in self.arrays)


@dataclass(frozen=True)
class DatasetBatches(Batches):
    """A map-style data set whose items are rows, or tuples of the arguments for one row."""

    dataset: Dataset[Any]
    size: int
    batch_size: int
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    @property
    def row_counts(self) -> tuple[int, int]:
        """Rows in a full minibatch and in one pass."""
        return self.batch_size, self.size

    def ordered(self) -> Iterator[Batch]:
        for indices in _parts(torch.arange(self.size), self.batch_size, self.share):
            batch = self._batch(indices)
            for array in batch:
                check_finite(array, "the data set", first=int(indices[0]))
            yield batch

    def shuffled(self) -> Iterator[Batch]:
        order = torch.randperm(self.size)
        return map(self._batch, _parts(order, self.batch_size, self.share))

    def fingerprint(self) -> str:
        with seeded_everywhere(0, "rows of a data set"):  # items may be random
            return f"{_digest(self.ordered())}, batches of {self.batch_size}"

    def part(self, index: int, count: int) -> DatasetBatches:
        _check_parts(self.batch_size, count)
        return replace(self, share=(index, count))

    def _batch(self, indices: Tensor) -> Batch:
        """The rows with these numbers."""
        items = [self.dataset[i] for i in indices.tolist()]
        for item in items:
            for array in item if isinstance(item, tuple) else (item,):
                if isinstance(array, np.ma.MaskedArray):
                    as_rows(array, "the data set's items")  # refuses masked entries
        try:
            return _loaded_batch(default_collate(items))
        except (TypeError, RuntimeError) as error:
            kinds = sorted({type(item).__name__ for item in items})
            raise InputError(
                "expected a data set whose items are tensors of one shape, or tuples of them; got "
                f"{', '.join(kinds)}: {error}. Convert the items in a Dataset of your own."
            ) from error


@dataclass(frozen=True)
class LoaderBatches(Batches):
    """A ``DataLoader``, which keeps its own batch size and its own shuffling.

    A pass in order goes through the whole data set behind it, even if the loader shuffles or drops
    a last batch that is not full.
    """

    loader: DataLoader[Any]

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def row_counts(self) -> tuple[int, int] | None:
        """Rows in a full minibatch and in one pass; ``None`` with batches of the loader's own."""
        size, sampler = self.loader.batch_size, self.loader.sampler
        if size is None or not isinstance(sampler, Sized):
            return None
        count = len(sampler)
        return size, count - count % size if self.loader.drop_last else count

    @property
    def changes_order(self) -> bool:
        """Whether the loader's sampler does anything but count."""
        return not isinstance(self.loader.sampler, SequentialSampler)

    def ordered(self) -> Iterator[Batch]:
        if (reason := _reason_without_order(self.loader)) is not None:
            raise InputError(
                "expected a DataLoader that goes through its data set in order or shuffled, so "
                f"that row n of the answer is row n of the data set; got {reason}. Pass the rows "
                "that you mean: loader.dataset, or torch.utils.data.Subset(loader.dataset, "
                "indices)."
            )
        # A loader draws a seed for workers, even without any; this keeps it off torch's state.
        in_order = _in_order(self.loader, generator=torch.Generator())
        return _checked(map(_loaded_batch, in_order), in_order)

    def first(self) -> Batch:
        generator = self.loader.generator
        state = None if generator is None else generator.get_state()
        with torch.random.fork_rng():
            batch = _loaded_batch(next(iter(self.loader)))
        if generator is not None and state is not None:
            generator.set_state(state)
        return batch

    def shuffled(self) -> Iterator[Batch]:
        _reseed(self.loader)
        return map(_loaded_batch, self.loader)

    def fingerprint(self) -> str:
        order, content = self._order(), self._content(0)
        if order != self._order():
            raise InputError(
                "expected a DataLoader whose order can be repeated, so that the run can be "
                f"resumed; got another one each time from {type(self.loader.sampler).__name__}. "
                "Let its sampler draw from torch's random state or from a generator that it keeps "
                "as an attribute, or leave out checkpoint=."
            )
        if self.loader.persistent_workers and content != self._content(1):
            raise InputError(
                "expected the same rows each time from a DataLoader with persistent workers, so "
                "that the run can be resumed; got other rows. Set persistent_workers=False, or "
                "leave out checkpoint=."
            )
        return f"{content} in the order {order}"

    def part(self, index: int, count: int) -> Batches:
        if isinstance(self.loader.dataset, IterableDataset):
            raise _stream(self.loader.dataset, f"the data for {count} processes")
        raise InputError(
            f"expected rows that can be divided among {count} processes; got a DataLoader, which "
            "has an order of its own. Pass its data set, loader.dataset, and batch_size="
            f"{self.loader.batch_size or 100}."
        )

    def _order(self) -> str:
        """A digest of the row numbers in each batch."""
        loader, digest = self.loader, hashlib.blake2b(digest_size=16)
        if isinstance(loader.dataset, IterableDataset):
            return "of a stream"
        with seeded_everywhere(0, "order of a loader"):
            _reseed(loader)
            for index in loader.sampler if loader.batch_sampler is None else loader.batch_sampler:
                digest.update(repr(index).encode())
        return digest.hexdigest()

    def _content(self, draw: int) -> str:
        """A digest of all rows in the order of the data set, read as the loader reads them."""
        is_stream = isinstance(self.loader.dataset, IterableDataset)
        in_order = self.loader if is_stream else _in_order(self.loader)
        with seeded_everywhere(0, "rows of a loader", draw):
            _reseed(self.loader)
            return _digest(map(_loaded_batch, in_order))


def as_batches(data: Data, batch_size: int, *, name: str = "train") -> Batches:
    """Minibatches of an array, a tuple of them, a ``Dataset`` or a ``DataLoader``.

    An array is a tensor, a NumPy array, a pandas table, a ``scipy.sparse`` matrix or an AnnData;
    :func:`~pyrovae.data.arrays.as_rows` says which dtype its numbers get.

    Args:
        data: rows, shape ``(N, ...)``; a tuple gives several arguments to the pair.
        batch_size: rows in a minibatch; a ``DataLoader`` keeps its own.
        name: what to call the data in an error.

    Raises:
        InputError: if there are no rows, arrays differ in length, entries are masked or not
            finite, or it is not a data set but a list, a dict or a stream without a length.

    >>> [len(x) for (x,) in as_batches(torch.zeros(5, 2), 2).ordered()]
    [2, 2, 1]
    """
    if batch_size < 1:
        raise InputError(f"expected batch_size ≥ 1; got {batch_size}. Try 100.")
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


def _parts(order: Tensor, size: int, share: tuple[int, int]) -> Iterator[Tensor]:
    """Row numbers of one part of each minibatch, without those of which it has none."""
    index, count = share
    parts = (numbers.tensor_split(count)[index] for numbers in order.split(size))
    return (part for part in parts if len(part))


def _check_parts(batch_size: int, count: int) -> None:
    if batch_size < count:
        raise InputError(
            f"expected a row of each minibatch for every one of {count} processes; got "
            f"batch_size={batch_size}. Pass batch_size={count} or more, or start fewer processes."
        )


def all_rows(data: Data, *, name: str = "data") -> Batch:
    """All rows of a data set in order: one tensor for each argument of the pair.

    Raises:
        InputError: as for :func:`as_batches`.
    """
    first, *rest = as_batches(data, 65_536, name=name).ordered()
    return tuple(torch.cat(arrays) for arrays in zip(first, *rest, strict=True)) if rest else first


def as_batch(rows: Tensor | Batch) -> Batch:
    """The arguments of a pair as a tuple, even if there is only one."""
    return (rows,) if isinstance(rows, Tensor) else rows


def row_count(batch: Batch) -> int:
    """The number of rows, which all arguments share.

    >>> row_count((torch.zeros(5, 2), torch.zeros(5)))
    5
    """
    return len(batch[0])


def row_kinds(rows: Tensor | Batch) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of one row of each argument, even if there is only one.

    >>> row_kinds((torch.zeros(5, 2), torch.arange(5)))
    [((2,), torch.float32), ((), torch.int64)]
    """
    batch = (rows,) if isinstance(rows, Tensor) else rows
    return [(tuple(array.shape[1:]), array.dtype) for array in batch]


def take_rows(batch: Batch, index: Tensor | slice) -> Batch:
    """The same rows of every argument."""
    return tuple(array[index] for array in batch)


def repeat_rows(batch: Batch, times: int) -> Batch:
    """All rows in order, ``times`` times over.

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

    What they draw without a generator of their own comes from the random states of torch, NumPy
    and Python.
    """
    batcher = loader.batch_sampler
    owners = (loader, loader.sampler, batcher, getattr(batcher, "sampler", None), loader.dataset)
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
        who: ``"model"`` or ``"guide"``, to name it in the error.

    Raises:
        InputError: if it takes more arguments, or fewer.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable without a signature, such as one written in C
        return
    try:
        signature.bind(*batch)
    except TypeError:
        raise InputError(
            f"expected data with one array for each argument of the {who}, which takes "
            f"{signature}; got {len(batch)} for each row. Give a tuple of as many arrays, (x, y); "
            "from a data set of rows and labels give the rows alone."
        ) from None


def _in_order(
    loader: DataLoader[Any], *, generator: torch.Generator | None = None
) -> DataLoader[Any]:
    """A loader that reads the same data set in the same way, but all of it and in order."""
    batcher = loader.batch_sampler
    return DataLoader(
        loader.dataset,
        batch_size=None if batcher is None else getattr(batcher, "batch_size", 256),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
    )


def _reason_without_order(loader: DataLoader[Any]) -> str | None:
    """Why a loader doesn't give each row of its data set once, in words; ``None`` if it does."""
    if isinstance(loader.dataset, IterableDataset):
        return f"one over a stream, {type(loader.dataset).__name__}"
    if type(loader).__iter__ is not DataLoader.__iter__:
        return f"a {type(loader).__name__}, which iterates in a way of its own"
    batcher = loader.batch_sampler
    if batcher is not None and type(batcher) is not BatchSampler:
        return f"one whose batches come from a {type(batcher).__name__}"
    sampler = loader.sampler if batcher is None else batcher.sampler
    if type(sampler) is RandomSampler and not sampler.replacement:
        complete = sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    else:
        complete = type(sampler) is SequentialSampler and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    return None if complete else f"one whose rows are chosen by a {type(sampler).__name__}"


def _checked(batches: Iterator[Batch], loader: DataLoader[Any]) -> Iterator[Batch]:
    """Batches of a loader in order, checked to be finite and to have one row for each item."""
    start, size = 0, loader.batch_size
    for batch in batches:
        for array in batch:
            check_finite(array, "the data set", first=start)
        if size is not None:
            item_count = min(size, len(loader.dataset) - start)  # type: ignore[arg-type]
            if any(len(array) != item_count for array in batch):
                raise InputError(
                    "expected a DataLoader whose collate_fn makes one row of each item; got "
                    f"{[len(array) for array in batch]} rows from {item_count} items. Leave the "
                    "items that it drops out of the data set."
                )
        start += row_count(batch)
        yield batch


def _check_length(loader: DataLoader[Any], name: str) -> None:
    try:
        len(loader)
    except TypeError as error:
        raise _stream(loader.dataset, name) from error


def _stream(dataset: object, name: str) -> InputError:
    return InputError(
        f"expected {name} to be a data set with a length and numbered rows; got "
        f"{type(dataset).__name__}, a stream. Collect its rows with torch.stack(list(dataset)) if "
        "they are tensors, or pass a map-style Dataset."
    )


def _check_dataset(data: object, name: str) -> None:
    """Raise unless the data are a map-style data set."""
    if isinstance(data, IterableDataset):
        raise _stream(data, name)
    has_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, list | Mapping | str) or not has_items:
        raise InputError(
            f"expected {name} to be a tensor, an array, a table, a tuple of them, a map-style "
            f"Dataset or a DataLoader; got {type(data).__name__}. Pass a tuple for several "
            "arguments of the pair, (x, y), or stack rows into one tensor, torch.stack(rows)."
        )


def _not_empty(batches: Batches, name: str) -> Batches:
    if len(batches) == 0:
        raise InputError(f"expected at least one row in {name}; got none. Pass data with rows.")
    return batches


def _check_arrays(arrays: Sequence[Rows], name: str) -> None:
    if not arrays or any(array.ndim == 0 for array in arrays):
        raise InputError(
            f"expected {name} to have rows, shape (N, ...); got a scalar or nothing. Pass one row "
            "for each data point."
        )
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise InputError(
            f"expected arrays with the same number of rows in {name}; got {lengths}. Pass the "
            "same rows of each."
        )


def _loaded_batch(content: Any) -> Batch:
    """A batch as a ``DataLoader`` yields it, if it is made of tensors."""
    arrays = tuple(content) if isinstance(content, list | tuple) else (content,)
    if not arrays or not all(isinstance(array, Tensor) for array in arrays):
        raise InputError(
            "expected batches that are a tensor or a tuple of tensors; got "
            f"{[type(array).__name__ for array in arrays]}. Convert the items in a Dataset of "
            "your own."
        )
    return arrays
