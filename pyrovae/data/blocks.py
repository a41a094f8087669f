"""Rows of data that stay where they are, a block at a time: mapped arrays, HDF5, Zarr, Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.data.arrays import check_finite, from_numpy, narrowed
from pyrovae.data.batches import Batch, Data, all_rows, as_batches
from pyrovae.errors import InputError
from pyrovae.extras import check_packages


@runtime_checkable
class Sliced(Protocol):
    """An array whose rows are read when they are asked for, as those of h5py and Zarr are."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def chunks(self) -> Any: ...

    def __getitem__(self, rows: slice) -> Any: ...


@dataclass(frozen=True)
class Blocks:
    """All rows in order, a block at a time.

    Args:
        count: how many rows there are.
        ordered: makes one pass over them.
    """

    count: int
    ordered: Callable[[], Iterator[Batch]]


def as_blocks(data: Data | Sliced | str | Path, size: int, *, name: str = "data") -> Blocks:
    """The rows of data in order, of which only some are in memory at a time.

    Args:
        data: what :func:`as_batches` takes; an array that is mapped into memory
            (``numpy.load(path, mmap_mode="r")``) or is read by slices (h5py, Zarr), or a tuple of
            these; or the path of a ``.npy`` or ``.parquet`` file. All columns of a Parquet file
            have to be numbers.
        size: rows in a block, at most.
        name: what to call the data in an error.

    Raises:
        InputError: as :func:`as_batches`, some of it only when the rows are read.
    """
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if path.suffix == ".parquet":
            return _of_parquet(path, size, name)
        data = _of_npy(path, name)
    arrays = data if isinstance(data, tuple) else (data,)
    if any(map(_stays, arrays)):
        return _of_slices(arrays, size, name)
    batches = as_batches(data, size, name=name)  # type: ignore[arg-type]
    if not isinstance(data, DataLoader):
        return Blocks((batches.row_counts or (0, 0))[1], batches.ordered)
    if data.batch_size is None:
        raise InputError(
            f"expected {name} whose rows can be counted; got a DataLoader with batches of its own. "
            "Give its data set, of one row for each item."
        )
    return Blocks(len(data.dataset), batches.ordered)  # type: ignore[arg-type]


def _stays(array: Any) -> bool:
    """Whether an array lies in a file."""
    sliced = isinstance(array, Sliced) and not isinstance(array, np.ndarray | Tensor)
    return isinstance(array, np.memmap) or sliced


def _of_slices(arrays: tuple[Any, ...], size: int, name: str) -> Blocks:
    lengths = [array.shape[0] if array.shape else 0 for array in arrays]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise InputError(
            f"expected arrays with the same number of rows in {name}, at least one; got {lengths}. "
            "Pass the same rows of each."
        )

    def ordered() -> Iterator[Batch]:
        for start in range(0, lengths[0], size):
            rows = slice(start, start + size)
            yield tuple(_as_tensor(array[rows], name, start) for array in arrays)

    return Blocks(lengths[0], ordered)


def _of_parquet(path: Path, size: int, name: str) -> Blocks:
    check_packages("pyarrow", purpose=f"reading {str(path)!r}")
    import pyarrow.parquet as parquet

    try:
        count = parquet.ParquetFile(path).metadata.num_rows
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise _unreadable(path, error) from error
    if not count:
        raise InputError(f"expected at least one row in {path}; got none. Pass data with rows.")

    def ordered() -> Iterator[Batch]:
        start = 0
        with parquet.ParquetFile(path) as file:
            for block in file.iter_batches(batch_size=size):
                columns = [_column(block, i, path) for i in range(block.num_columns)]
                rows = _as_tensor(np.stack(columns, 1), name, start)
                yield (narrowed(rows, torch.get_default_dtype(), name),)  # as of a DataFrame
                start += block.num_rows

    return Blocks(count, ordered)


def _column(block: Any, number: int, path: Path) -> Any:
    column = block.column(number)
    numbers = column.to_numpy(zero_copy_only=False)
    if column.null_count or numbers.dtype.kind not in "fiub":
        kind = "empty cells" if column.null_count else str(column.type)
        raise InputError(
            f"expected numbers in every column of {path}; got {kind} in the column "
            f"{block.schema.names[number]!r}. Read it with pyrovae.read_table, which knows words, "
            "dates and missing cells."
        )
    return numbers


def _of_npy(path: Path, name: str) -> Any:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"expected a .npy or .parquet file at {path}; got none that can be read: {error}. Name "
        "such a file, or pass the data themselves."
    )


def _as_tensor(block: Any, name: str, first: int) -> Tensor:
    """A block of rows as a tensor, as `as_rows` makes it of an array in memory."""
    if not isinstance(block, np.ndarray):
        return all_rows(block, name=name)[0]
    tensor = from_numpy(np.array(block), name)
    check_finite(tensor, name, first=first)
    if not tensor.is_floating_point():
        return tensor
    return narrowed(tensor, torch.get_default_dtype(), name)
