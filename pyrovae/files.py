"""Files: from a path to an array of numbers, or to one line that says what is wrong with it."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.errors import InputError

Array = np.ndarray[Any, Any]

_ARRAY_NAMES = ("x", "X", "x_train", "X_train", "train", "data")
_LABEL_NAMES = {"x": "y", "X": "y", "x_train": "y_train", "X_train": "y_train", "data": "target"}


@dataclass(frozen=True)
class Table:
    """What stands in a file: real numbers, one row per data point.

    Args:
        name: what to call it.
        array: the numbers, shape ``(N, *event_shape)``, of any real dtype; NaN for a
            missing one.
        columns: one name per column, or ``None`` if the file names none.
        labels: one integer per row, shape ``(N,)``, if the file has them beside the array.
    """

    name: str
    array: Array
    columns: tuple[str, ...] | None = None
    labels: Array | None = None


def read(source: str) -> Table:
    """The numbers in a ``.npy``, ``.npz``, ``.csv`` or ``.parquet`` file.

    Args:
        source: the path; ``file.npz:name`` picks one of the arrays of an archive.

    Raises:
        InputError: if there is no such file, or it can't be read, or holds something but numbers.
    """
    path, array_name = Path(source).expanduser(), None
    if not path.exists() and ".npz:" in source:
        head, _, array_name = source.rpartition(":")
        path = Path(head).expanduser()
    readers: dict[str, Callable[[Path], Table]] = {
        ".npy": _read_npy,
        ".npz": lambda p: _read_npz(p, array_name),
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    try:
        if not path.exists():
            raise _missing(path)
        if reader is None or not path.is_file():
            found = f"a file ending in {path.suffix!r}" if path.is_file() else "a directory"
            raise InputError(
                f"expected a file ending in {listed(readers)}; got {found}: {str(path)!r}. "
                "Save the data in one of these formats."
            )
        return reader(path)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise _unreadable(path, error) from error


def listed(names: Iterable[str]) -> str:
    """The names with commas between them.

    >>> listed(["a", "b"])
    'a, b'
    """
    return ", ".join(names) or "(none)"


def row_and_column(row: int, column: str) -> str:
    """Where a cell of a table stands, in words; ``row`` counts from 0, the words from 1.

    >>> row_and_column(4, "age")
    "row 5, column 'age' (rows counted from 1, below the header)"
    """
    return f"row {row + 1}, column {column!r} (rows counted from 1, below the header)"


def _missing(path: Path) -> InputError:
    folder = Path.cwd() if not path.is_absolute() else path.parent
    return InputError(
        f"expected 'digits' or a file; got {str(path)!r}, which does not exist. "
        f"Check the path (looked in {str(folder)!r})."
    )


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = str(error).strip().rstrip(".") or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return InputError(
        f"expected a readable {path.suffix} file; got {str(path)!r}: {reason}. "
        "Check that the file is whole and that you may read it."
    )


# -- arrays --------------------------------------------------------------------------------------


def _read_npy(path: Path) -> Table:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(
            f"expected one array in {str(path)!r}; got an archive of arrays. Rename it to .npz."
        )
    return Table(path.name, _numbers(path.name, array))


def _read_npz(path: Path, name: str | None) -> Table:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(
                f"expected an archive of arrays in {str(path)!r}; got one array. Rename it to .npy."
            )
        names = list(archive.files)
        chosen = _choose(path, names, name)
        title = f"{path.name}:{chosen}" if len(names) > 1 else path.name
        array = _numbers(title, archive[chosen])
        label_name = _LABEL_NAMES.get(chosen)
        labels = archive[label_name] if label_name in names else None
    if labels is None or labels.shape != array.shape[:1] or labels.dtype.kind not in "iu":
        return Table(title, array)
    return Table(title, array, labels=labels.astype(np.int64))


def _choose(path: Path, names: Sequence[str], name: str | None) -> str:
    """Which array of an archive is meant: the one named, the only one, or one of a usual name."""
    if name is None:
        candidates = names if len(names) == 1 else [n for n in _ARRAY_NAMES if n in names]
    else:
        candidates = [name] if name in names else []
    if candidates:
        return candidates[0]
    found = "none named" if name is None else f"{name!r}, which is not among them"
    raise InputError(
        f"expected the name of one of the arrays in {str(path)!r}: {listed(names)}; got {found}. "
        f"Name one: {path.name}:{names[0] if names else 'x'}"
    )


def _numbers(name: str, array: Array) -> Array:
    """The array if it holds real numbers in rows; shape ``(N,)`` becomes ``(N, 1)``."""
    if array.ndim == 0:
        raise InputError(
            f"expected an array with one row per data point; got a single value in {name}. "
            "Save an array of two axes or more."
        )
    kind = array.dtype.kind
    if kind not in "buif":
        found = {"c": "complex numbers", "U": "strings", "S": "bytes"}.get(kind, str(array.dtype))
        if kind in "US" and array.size:
            found += f" ({array.flat[0].item()!r} in row 0)"
        raise InputError(
            f"expected real numbers; got {found} in {name}. Turn them into numbers first."
        )
    return array[:, None] if array.ndim == 1 else array


# -- tables --------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Table:
    import pandas as pd

    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "").strip("\r\n")
    if not first:
        raise InputError(
            f"expected a table in {str(path)!r}; got an empty file. Give one row per data point."
        )
    separator = max(",;\t", key=first.count)
    header = _is_header([cell.strip().strip('"') for cell in first.split(separator)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        try:
            frame = pd.read_csv(
                path,
                sep=separator,
                header=0 if header else None,
                index_col=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
                low_memory=False,
            )
        except pd.errors.ParserWarning as warning:
            raise InputError("rows have more cells than the header has names") from warning
    if header and str(frame.columns[0]).startswith("Unnamed: 0") and _counts(frame.iloc[:, 0]):
        raise InputError(
            f"expected columns of data; got row numbers in the first column of {path.name}, which "
            "has no name. Save the table without its index: to_csv(..., index=False)."
        )
    names = None if header else [str(i + 1) for i in range(frame.shape[1])]
    return _from_frame(path.name, frame, names)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether the first line of a table names its columns: no cell is a number, or 0, 1, 2, …"""
    if len(cells) > 1 and list(cells) == [str(i) for i in range(len(cells))]:
        return True
    return not any(_is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _counts(column: Any) -> bool:
    return np.array_equal(column.to_numpy(), np.arange(len(column)))


def _read_parquet(path: Path) -> Table:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise InputError(
            f"expected pyarrow for reading {str(path)!r}; got no such package. "
            "Install it: pip install 'pyrovae[parquet]'"
        ) from error
    return _from_frame(path.name, frame, None)


def _from_frame(name: str, frame: Any, names: Sequence[str] | None) -> Table:
    """The table of a pandas ``DataFrame``, all of whose columns must be numbers."""
    columns = tuple(names or [str(column) for column in frame.columns])
    arrays = [_column(name, label, frame.iloc[:, i]) for i, label in enumerate(columns)]
    array = np.stack(arrays, axis=1) if arrays else np.empty((len(frame), 0))
    return Table(name, array, columns=columns)


def _column(name: str, label: str, column: Any) -> Array:
    """One column as float64, NaN where a cell is empty, or an error naming the first non-number."""
    import pandas as pd

    kinds = pd.api.types
    if kinds.is_numeric_dtype(column.dtype) and not kinds.is_complex_dtype(column.dtype):
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    texts = column.astype(str)
    bad = np.flatnonzero((column.notna() & ~texts.map(_is_number)).to_numpy())
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"expected numbers; got {str(column.iloc[row])!r} in {name}, "
            f"{row_and_column(row, label)}. Leave the column out or turn it into numbers."
        )
    return np.asarray(texts.where(column.notna(), "nan").to_numpy(dtype=np.float64))
