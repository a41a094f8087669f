"""Containers of numbers in rows, as tensors: arrays, tables, sparse and annotated matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.errors import InputError

BLOCK = 1 << 23  # numbers that are checked at once
ROUNDING = 1e-4  # largest rounding error allowed, in standard deviations of the column


@runtime_checkable
class Table(Protocol):
    """A pandas ``DataFrame`` or ``Series``, recognised by its attributes."""

    @property
    def iloc(self) -> Any: ...

    def to_numpy(self) -> Any: ...


@runtime_checkable
class SparseMatrix(Protocol):
    """A sparse matrix or array of ``scipy``, recognised by its attributes."""

    @property
    def nnz(self) -> int: ...

    def tocsr(self) -> Any: ...


@runtime_checkable
class Annotated(Protocol):
    """An ``AnnData``, recognised by its attributes."""

    @property
    def X(self) -> Any: ...

    @property
    def obs(self) -> Any: ...

    @property
    def layers(self) -> Mapping[str, Any]: ...


Array: TypeAlias = Tensor | NDArray[Any] | Table | SparseMatrix | Annotated
ARRAYS = (Tensor, np.ndarray, Table, SparseMatrix, Annotated)


class SparseRows:
    """Rows of a sparse matrix that become dense only when a minibatch takes them.

    Args:
        matrix: a ``scipy.sparse`` matrix or array of finite numbers, shape ``(N, D)``.
        dtype: of the rows.
    """

    ndim = 2
    device = torch.device("cpu")

    def __init__(self, matrix: Any, dtype: torch.dtype) -> None:
        self._matrix = matrix.tocsr()
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        rows, columns = self._matrix.shape
        return rows, columns

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, size: int) -> Iterator[Any]:
        """Blocks of rows in order, shape ``(size, D)``."""
        return (self._dense(slice(i, i + size)) for i in range(0, len(self), size))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The rows with these numbers, shape ``(M, D)``; ``dim`` must be 0."""
        if dim != 0:
            raise IndexError(f"expected dim = 0; got {dim}. Only rows can be selected.")
        return self._dense(index.numpy())

    def _dense(self, rows: Any) -> Tensor:
        return torch.as_tensor(self._matrix[rows].toarray()).to(self.dtype)


Rows = Tensor | SparseRows


def as_rows(data: Array, name: str) -> Rows:
    """The rows of an array as a tensor, or as sparse rows.

    Tensors stay as they are, and so do whole numbers in NumPy arrays and pandas Series. All other
    numbers get torch's default dtype: floating-point arrays, pandas DataFrames, ``scipy.sparse``
    matrices and the ``X`` of an AnnData.

    Args:
        data: the array; for a layer of an AnnData pass the layer, ``adata.layers["counts"]``.
        name: what to call it in an error.

    Raises:
        InputError: for anything but finite numbers, for masked entries, or for numbers that the
            default dtype can't tell apart.
    """
    if isinstance(data, Annotated):
        return as_rows(_annotated(data, name), name)
    if isinstance(data, SparseMatrix):
        return _sparse(data, name)
    if isinstance(data, Table):
        return _frame(data, name)
    if isinstance(data, np.ndarray):
        tensor = from_numpy(data, name)
        check_finite(tensor, name)
        if not tensor.is_floating_point():
            return tensor
        return narrowed(tensor, torch.get_default_dtype(), name)
    if not isinstance(data, Tensor):
        raise InputError(
            f"expected tensors or arrays of numbers in {name}; got {type(data).__name__}. Make it "
            "a tensor of one row for each data point."
        )
    if torch.masked.is_masked_tensor(data):
        raise _hidden(name, (~data.get_mask()).nonzero().tolist())
    dense = data if data.layout == torch.strided else data.to_dense()
    check_finite(dense, name)
    return dense.clone() if dense.is_inference() else dense  # autograd can't save inference tensors


def from_numpy(array: NDArray[Any], name: str) -> Tensor:
    """An array of numbers as a tensor of its dtype, or of the nearest one that torch computes with.

    Args:
        array: whole or floating-point numbers, of any byte order and layout.
        name: what to call them in an error.

    Raises:
        InputError: for anything but numbers, or for masked entries.
    """
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise _hidden(name, np.argwhere(np.ma.getmaskarray(array)).tolist())
        array = array.data
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"expected tensors or arrays of numbers in {name}; got dtype {array.dtype}. Turn them "
            "into numbers first."
        )
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size > 1:  # torch has few operations for these dtypes
        fits = size < 8 or not array.size or int(array.max()) < 1 << 63
        array = array.astype(np.int64 if fits else np.float64)
    elif (kind == "f" and size > 8) or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("=") if size <= 8 else np.float64)
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.as_tensor(array)


def check_finite(tensor: Tensor, name: str, *, first: int = 0) -> None:
    """Raise unless all numbers are finite.

    Args:
        tensor: rows, shape ``(N, ...)``.
        name: what to call them in an error.
        first: the number of the first row.

    Raises:
        InputError: naming the row and position of the first number that isn't finite.
    """
    if not tensor.is_floating_point() or tensor.ndim == 0:
        return
    for start, block in _blocks(tensor):
        finite = block.isfinite()
        if not bool(finite.all()):
            row, *position = (~finite).nonzero()[0].tolist()
            value = float(block[(row, *position)])
            raise _not_finite(name, value, first + start + row, position)


def narrowed(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Finite numbers in a dtype that may have fewer digits, if it still tells them apart.

    Args:
        tensor: rows, shape ``(N, ...)``, of whole or floating-point numbers.
        dtype: the floating-point dtype.
        name: what to call them in an error.

    Raises:
        InputError: if an entry would lose more than 1e-4 of its standard deviation, as a time in
            seconds may in float32, or a number below 1e-38, which becomes 0.
    """
    narrow = tensor.to(dtype)
    is_exact = tensor.is_floating_point() and torch.promote_types(tensor.dtype, dtype) == dtype
    if is_exact or not tensor.numel():
        return narrow
    largest_error = tensor.new_zeros(tensor.shape[1:], dtype=torch.float64)
    for start, block in _blocks(tensor):
        error = (block.double() - narrow[start : start + len(block)].double()).abs()
        if not block.is_floating_point():  # beyond 2⁵³ float64 rounds whole numbers, too
            size = block.double().abs()
            error += torch.where(size > 2**53, size * 2**-53, 0.0)
        largest_error = torch.maximum(largest_error, error.amax(0))
    if bool(largest_error.any()):
        spread = tensor.double().std(0, correction=0)
        varies = (tensor != tensor[:1]).any(0)
        _check_rounding(largest_error, torch.where(varies, spread, torch.inf), dtype, name)
    return narrow


def _check_rounding(error: Tensor, spread: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raise if an entry's rounding error is too large beside its standard deviation."""
    bad = ~error.isfinite() | (error > ROUNDING * spread)
    if not bool(bad.any()):
        return
    place = tuple(bad.nonzero()[0].tolist())
    where = f"entry {place} of {name}" if place else name
    kind = str(dtype).removeprefix("torch.")
    raise InputError(
        f"expected numbers that {kind} can tell apart; got {where}, which varies by "
        f"{float(spread[place]):.3g} and would be off by up to {float(error[place]):.3g}. Subtract "
        "its mean and divide it by its standard deviation first, or give float64 tensors to a "
        "pair in float64."
    )


def _blocks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows, each with the number of its first row."""
    size = max(1, BLOCK // max(1, tensor[:1].numel()))
    return ((i, tensor[i : i + size]) for i in range(0, len(tensor), size))


def _hidden(name: str, places: list[list[int]]) -> InputError:
    row, *position = places[0] if places[0] else [0]
    more = f" and {len(places) - 1:,} more" if len(places) > 1 else ""
    return InputError(
        f"expected all entries of {name}; got a masked array that hides "
        f"{_place(row, position)}{more}. Leave such rows out, or fill the entries in: .filled(...)."
    )


def _not_finite(name: str, value: float, row: int, position: list[Any]) -> InputError:
    return InputError(
        f"expected finite numbers in {name}; got {value} in {_place(row, position)} "
        "(counted from 0). Remove or impute such rows."
    )


def _place(row: int, position: list[Any]) -> str:
    return f"row {row}" + (f", position {tuple(position)}" if position else "")


# -- tables and matrices -------------------------------------------------------------------------


def column_numbers(values: Any, label: str) -> NDArray[Any]:
    """A pandas Series of numbers as an array: of whole numbers, or float64 with NaN if missing.

    Raises:
        InputError: naming the dtype, if it isn't one of numbers.
    """
    kind = getattr(values.dtype, "kind", "O")
    if kind not in "fiub":
        raise InputError(
            f"expected numbers in {label}; got dtype {values.dtype}. Leave it out or turn it into "
            "numbers."
        )
    if kind == "f" or values.isna().any():
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(values.to_numpy(dtype={"b": bool, "u": np.uint64, "i": np.int64}[kind]))


def _annotated(data: Any, name: str) -> Any:
    """The matrix X of an AnnData."""
    if getattr(data, "isbacked", False):
        raise InputError(
            f"expected an AnnData in memory as {name}; got one backed by its file. Load it: "
            "adata.to_memory()."
        )
    if data.X is None:
        layers = ", ".join(map(repr, data.layers)) or "none"
        raise InputError(
            f"expected an AnnData with X as {name}; got one without. Give one of its layers "
            f"({layers}): adata.layers[...]."
        )
    return data.X


def _frame(data: Any, name: str) -> Rows:
    """The numbers of a DataFrame in the default dtype; a Series is treated as an array."""
    if data.ndim == 1:
        return as_rows(column_numbers(data, name), name)
    dtype = torch.get_default_dtype()
    columns = []
    for i, title in enumerate(data.columns):
        label = f"column {str(title)!r} of {name}"
        column = from_numpy(column_numbers(data.iloc[:, i], label), label)
        check_finite(column, label)
        columns.append(narrowed(column, dtype, label))
    return torch.stack(columns, 1) if columns else torch.empty(len(data), 0)


def _sparse(data: Any, name: str) -> SparseRows:
    """The rows of a sparse matrix in the default dtype."""
    if data.ndim != 2 or data.dtype.kind not in "fiub":
        raise InputError(
            f"expected a sparse matrix of rows of numbers in {name}; got {data.ndim} axes of dtype "
            f"{data.dtype}. Convert it to floating-point numbers."
        )
    matrix, dtype = data.tocsr(), torch.get_default_dtype()
    if not (finite := np.isfinite(matrix.data)).all():
        first = int(np.flatnonzero(~finite)[0])
        row = int(np.searchsorted(matrix.indptr, first, side="right")) - 1
        value = float(matrix.data[first])
        raise _not_finite(name, value, row, [int(matrix.indices[first])])
    wide = matrix.astype(np.float64)
    with np.errstate(over="ignore"):  # numbers that are too large are reported below
        narrow = wide.astype(np.float32) if dtype == torch.float32 else wide
    error = abs(wide - narrow.astype(np.float64))
    if error.nnz and error.max() > 0:
        mean, square = (np.asarray(m.mean(0)).ravel() for m in (wide, wide.multiply(wide)))
        varies = (wide.max(0) != wide.min(0)).toarray().ravel()
        spread = np.where(varies, np.sqrt(np.maximum(square - mean**2, 0)), np.inf)
        largest_error = torch.from_numpy(error.max(0).toarray().ravel())
        _check_rounding(largest_error, torch.from_numpy(spread), dtype, name)
    return SparseRows(narrow, dtype)
