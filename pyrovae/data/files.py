"""Files: from a path to an array of numbers, or to one line that says what is wrong with it."""

from __future__ import annotations

import csv
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.columns import Table, TableInfo, TableOptions, from_frame, is_number
from pyrovae.errors import InputError
from pyrovae.extras import check_packages

Array = np.ndarray[Any, Any]

_ARRAY_NAMES = ("x", "X", "x_train", "X_train", "train", "data")
MANY_COLUMNS = 8  # so many random numbers are in rising order in one line of 40,000
_INTEGER, _POINTED = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?\d+\.0*")
_UNNAMED = re.compile(r"Unnamed: \d+")  # what pandas calls a column without a name
_MISSING = {"", "NA", "N/A", "n/a", "<NA>", "NULL", "null", "None", "#N/A"}  # as pandas reads them
_LABEL_NAMES = {"x": "y", "X": "y", "x_train": "y_train", "X_train": "y_train", "data": "target"}


def read(source: str, options: TableOptions | None = None, known: TableInfo | None = None) -> Table:
    """The numbers in a ``.npy``, ``.npz``, ``.csv`` or ``.parquet`` file.

    Args:
        source: the path; ``file.npz:name`` picks one of the arrays of an archive.
        options: which columns of a table to take, and how its file is laid out.
        known: the columns that a table has to have, as `from_frame` takes them.

    Raises:
        InputError: if there is no such file, it can't be read, it holds something that can't be
            taken for numbers, or there are options for a file that is no table.
    """
    chosen = options or TableOptions()
    path, array_name = expanded(source), None
    if not path.exists() and ".npz:" in source:
        head, _, array_name = source.rpartition(":")
        path = expanded(head)
    readers: dict[str, Callable[[Path], Table]] = {
        ".npy": _read_npy,
        ".npz": lambda p: _read_npz(p, array_name),
        ".csv": lambda p: _read_csv(p, chosen, known),
        ".parquet": lambda p: _read_parquet(p, chosen, known),
    }
    reader = readers.get(path.suffix.lower())
    try:
        if not path.exists():
            raise _missing(path)
        if reader is None or not path.is_file():
            raise InputError(
                f"expected a file ending in {listed(readers)}; got {_kind(path)}: {str(path)!r}. "
                "Save the data in one of these formats."
            )
        _check_options(path, chosen)
        return reader(path)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise _unreadable(path, error) from error


def expanded(source: str) -> Path:
    """A path with ``~`` and ``~user`` at its beginning replaced by a home folder.

    Raises:
        InputError: if there is no such folder.
    """
    path = Path(source)
    try:
        return path.expanduser() if source.startswith("~") and not path.exists() else path
    except RuntimeError as error:
        raise InputError(
            f"expected the home folder of a user of this machine; got {path.parts[0]!r} in "
            f"{source!r}. Write ./ before it if that is the name of a folder, or check the name."
        ) from error


def _kind(path: Path) -> str:
    """What stands at a path, in words."""
    if path.is_file():
        return f"a file ending in {path.suffix!r}"
    if path.is_dir():
        return "a directory"
    return "a named pipe" if path.is_fifo() else "a device or socket"


def listed(names: Iterable[str]) -> str:
    """The names with commas between them.

    >>> listed(["a", "b"])
    'a, b'
    """
    return ", ".join(names) or "(none)"


def _check_options(path: Path, options: TableOptions) -> None:
    """Raise for options of tables that the file is too simple for."""
    kind = path.suffix.lower()
    of_texts = ("header", "delimiter", "index")
    given = [name for name in options.given() if kind != ".parquet" or name in of_texts]
    if kind != ".csv" and given:
        raise InputError(
            f"expected no {given[0]}= for a {kind} file; got one for {str(path)!r}. Leave it out, "
            "or save the data as a table in a .csv file."
        )
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise InputError(
            f"expected one character as delimiter=; got {options.delimiter!r}. Give ';', say."
        )


def _missing(path: Path) -> InputError:
    folder = Path.cwd() if not path.is_absolute() else path.parent
    return InputError(
        f"expected 'digits' or a file; got {str(path)!r}, which does not exist. "
        f"Check the path (looked in {str(folder)!r})."
    )


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = str(error).strip().rstrip(".") or type(error).__name__
    if "Object arrays" in reason:
        return InputError(
            f"expected real numbers; got pickled Python objects in {str(path)!r}, which are not "
            "read. Save an array of numbers instead: numpy.asarray(values, float) makes one."
        )
    if "pickle" in reason:  # NumPy's own words advise to run whatever the file holds
        reason = "it doesn't begin as such a file does"
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return InputError(
        f"expected a readable {path.suffix} file; got {str(path)!r}: {reason}. "
        "Check that the file is complete and that you may read it."
    )


def shown(path: Path) -> str:
    r"""The name of a file; bytes in it that are no text are written like ``\xff``."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


# -- arrays --------------------------------------------------------------------------------------


def _read_npy(path: Path) -> Table:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(
            f"expected one array in {str(path)!r}; got an archive of arrays. Rename it to .npz."
        )
    return Table(shown(path), _numbers(shown(path), array))


def _read_npz(path: Path, name: str | None) -> Table:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(
                f"expected an archive of arrays in {str(path)!r}; got one array. Rename it to .npy."
            )
        names = list(archive.files)
        array_name = _choose(path, names, name)
        title = f"{shown(path)}:{array_name}" if len(names) > 1 else shown(path)
        member = _member(archive, array_name)
        if member is None:
            raise InputError(
                f"expected an array as {array_name!r} in {str(path)!r}; got a member of the "
                f"archive that is none. Name an array, {shown(path)}:NAME, out of "
                f"{listed(names)}, or save the data with numpy.savez."
            )
        array = _numbers(title, member)
        label_name = _LABEL_NAMES.get(array_name, "")
        has_labels = label_name in names
        labels = _labels(archive, label_name, len(array)) if has_labels else None
    return Table(title, array, labels=labels)


def _member(archive: Any, name: str) -> Array | None:
    """An array of an archive; ``None`` if the member is something else."""
    member = archive[name]
    return member if isinstance(member, np.ndarray) else None


def _labels(archive: Any, name: str, rows: int) -> Array | None:
    """One integer for each row, if that is what the archive has under this name."""
    try:
        labels = _member(archive, name)
    except ValueError:  # Python objects, which are not read
        return None
    if labels is None or labels.shape != (rows,) or labels.dtype.kind not in "iu":
        return None
    return labels.astype(np.int64)


def _choose(path: Path, names: Sequence[str], name: str | None) -> str:
    """The name of the array to read: the one asked for, the only one, or one with a usual name."""
    if name is None:
        candidates = names if len(names) == 1 else [n for n in _ARRAY_NAMES if n in names]
    else:
        candidates = [name] if name in names else []
    if candidates:
        return candidates[0]
    problem = "no name" if name is None else f"{name!r}, which is not among them"
    raise InputError(
        f"expected the name of one of the arrays in {str(path)!r}: {listed(names)}; got {problem}. "
        f"Name one: {shown(path)}:{names[0] if names else 'x'}"
    )


def _numbers(name: str, array: Array) -> Array:
    """The array, checked to hold real numbers in rows; shape ``(N,)`` becomes ``(N, 1)``."""
    if array.ndim == 0:
        raise InputError(
            f"expected an array with one row per data point; got a single value in {name}. "
            "Save an array of two axes or more."
        )
    kind = array.dtype.kind
    if kind not in "buif":
        content = {"c": "complex numbers", "U": "strings", "S": "bytes"}.get(kind, str(array.dtype))
        if kind in "US" and array.size:
            content += f" ({array.flat[0].item()!r} in row 0)"
        raise InputError(
            f"expected real numbers; got {content} in {name}. Turn them into numbers first."
        )
    return array[:, None] if array.ndim == 1 else array


# -- tables --------------------------------------------------------------------------------------


def _exactly() -> dict[str, Any]:
    """What makes pandas read every digit: before version 3 it is off in the last here and there."""
    import pandas as pd

    return {"float_precision": "round_trip"} if int(pd.__version__.partition(".")[0]) < 3 else {}


def _read_csv(path: Path, options: TableOptions, known: TableInfo | None) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "").strip("\r\n")
    if not first:
        raise InputError(
            f"expected a table in {str(path)!r}; got an empty file. Give one row per data point."
        )
    separator = options.delimiter or max(",;\t", key=first.count)
    cells = _cells(first, separator)
    has_names = options.header
    if has_names is None:
        has_names = _has_names(shown(path), cells, indexed=options.index is not None)
    frame = _frame(path, separator, header=has_names)
    if not has_names:
        frame.columns = [str(i + 1) for i in range(frame.shape[1])]
        if options.header is None and _numbers_columns(path, separator, cells, _array(frame)):
            frame = _frame(path, separator, header=True)
        elif options.index is None and frame.shape[1] == len(cells):
            _check_first_column(shown(path), _array(frame))
    if len(frame) and bool(frame.iloc[:, -1].isna().any()):
        _check_lengths(path, separator, frame.shape[1])
    if options.index:
        frame, options = _named_rows(frame, options)
    return from_frame(shown(path), frame, None, options, known)


def _frame(path: Path, separator: str, *, header: bool) -> Any:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        try:
            return pd.read_csv(
                path,
                sep=separator,
                header=0 if header else None,
                index_col=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
                low_memory=False,
                **_exactly(),
            )
        except pd.errors.ParserWarning as warning:
            raise InputError(
                f"expected as many cells in each row of {shown(path)} as in its first line; got "
                "rows with more cells than the header has names. Name all columns, that of row "
                "numbers too, or leave it out."
            ) from warning


def _check_lengths(path: Path, separator: str, columns: int) -> None:
    """Raise if a row has fewer cells than there are columns, whose last ones pandas would add."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for cells in csv.reader(file, delimiter=separator, skipinitialspace=True):
            if 0 < len(cells) < columns and columns > 1:
                raise InputError(
                    f"expected {columns} cells in each row of {shown(path)}; got {len(cells)}: "
                    f"{shortened(cells)}. Write {separator!r} for each cell that is missing."
                )


def _array(frame: Any) -> Array:
    """The numbers of a table, NaN where there is something else."""
    import pandas as pd

    columns = [pd.to_numeric(frame.iloc[:, i], errors="coerce") for i in range(frame.shape[1])]
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def _named_rows(frame: Any, options: TableOptions) -> tuple[Any, TableOptions]:
    """The table whose first column has a name, and options that take it for the ids of rows."""
    titles = [str(column) for column in frame.columns]
    if _UNNAMED.fullmatch(titles[0]):
        titles[0] = "index"
    frame = frame.set_axis(titles, axis=1)
    if options.id is not None and options.id != titles[0]:
        raise InputError(
            f"expected one column of ids; got the first, by index=, and {options.id!r}. Give one "
            "of index= and id=."
        )
    return frame, replace(options, id=titles[0])


# -- first lines and columns ---------------------------------------------------------------------


def _cells(line: str, separator: str) -> list[str]:
    """The cells of a line, without spaces and quotes around them."""
    return [cell.strip().strip('"') for cell in line.split(separator)]


def _has_names(name: str, cells: Sequence[str], *, indexed: bool = False) -> bool:
    """Whether the first line of a table names its columns; if not, it is a data point.

    Args:
        name: of the file.
        cells: the first line.
        indexed: whether it is known what the first column is.

    Raises:
        InputError: if it could be either.
    """
    words = [cell for cell in cells if not is_number(cell)]
    if not indexed and len(cells) > 1 and (not cells[0] or _UNNAMED.fullmatch(cells[0])):
        raise InputError(
            f"expected columns of data; got a first column of {name} without a name, which looks "
            "like row numbers. Take it for ids of rows with index=True, or for data with "
            "index=False; or save the table without it, to_csv(..., index=False), or name the "
            "column, or fill in the number if one is missing."
        )
    if len(words) == len(cells):
        return True
    if any(word not in _MISSING for word in words):
        raise InputError(
            f"expected names or numbers in the first line of {name}; got both: "
            f"{shortened(cells)}. Name all columns by words, such as {_worded(cells)}, or put a "
            "line of such names above it if it is a data point. Or say which it is: header=True "
            "or header=False."
        )
    return False


def _numbers_columns(path: Path, separator: str, cells: Sequence[str], rows: Array) -> bool:
    """Whether a first line of numbers is 0, 1, 2, …, as pandas numbers columns, not a data point.

    A line 0, 1, 2, … is taken for column numbers if there are 8 columns or more and no number
    below it is as large; or if no number below is written as an integer, and there are 3 columns
    or more or some number is written like 1.0.

    Args:
        path: the file.
        separator: the character between cells.
        cells: the first line as it stands in the file.
        rows: all lines as numbers, shape ``(N, columns)``.

    Raises:
        InputError: if that can't be decided, or if the line is unlike the other lines, as column
            names that are years or wavelengths are.
    """
    line, others = rows[0], rows[1:]
    others = others[np.isfinite(others).all(1)]
    counts_up = list(cells) == [str(i) for i in range(len(cells))]
    if len(others) < 2 or len(set(cells)) < len(cells):
        return False
    any_integer, any_pointed = True, False
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        any_integer, any_pointed = _number_styles(path, separator)
    exceeds_data = len(line) >= MANY_COLUMNS and others.max() < line[-1]
    if counts_up and (exceeds_data or (not any_integer and (any_pointed or len(line) > 2))):
        return True
    if counts_up or not any_integer or _like_names(line, others):
        raise InputError(
            f"expected a line of names or of data first in {shown(path)}; got numbers that may be "
            f"either: {shortened(cells)}. If they are names, write them as words, such as "
            f"{_worded(cells)}; if they are a data point, put a line of such names above it. Or "
            "say which it is: header=True or header=False."
        )
    return False


def _number_styles(path: Path, separator: str) -> tuple[bool, bool]:
    """Whether any number below the first line is written like 1, and whether any like 1.0."""
    any_pointed = False
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = (line for line in file if line.strip())
        next(lines)
        for line in lines:
            cells = _cells(line, separator)
            if any(_INTEGER.fullmatch(cell) for cell in cells):
                return True, any_pointed
            any_pointed = any_pointed or any(_POINTED.fullmatch(cell) for cell in cells)
    return False, any_pointed


def _like_names(line: Array, others: Array) -> bool:
    """Whether a line of numbers is unlike the other lines, as a line of years or wavelengths is.

    It is if it lies further from the others, in all columns, than they do from each other; if it
    alone rises in equal steps; or if it alone rises at all, over many columns. A line that occurs
    again further down is not.
    """
    if (others == line).all(1).any():
        return False
    low, high = others.min(0), others.max(0)
    if (np.maximum(low - line, line - high) > high - low).all():
        return True
    if len(line) < 3:
        return False
    steps, other_steps = np.diff(line), np.diff(others, axis=1)
    rounding = 1e-9 * np.abs(line).max()
    others_equal = (np.ptp(other_steps, axis=1) <= rounding) & (other_steps[:, 0] > rounding)
    if np.ptp(steps) <= rounding < steps[0] and not others_equal.any():
        return True
    is_long = len(line) >= MANY_COLUMNS
    return bool(is_long and (steps > 0).all() and not (other_steps > 0).all(1).any())


def _check_first_column(name: str, rows: Array) -> None:
    """Raise if the first of several unnamed columns holds row numbers, in any order."""
    numbers = np.sort(rows[:, 0])
    row_numbers = np.arange(len(numbers)) + (numbers[0] if len(numbers) else 0)
    if rows.shape[1] > 1 and numbers[0] in (0, 1) and np.array_equal(numbers, row_numbers):
        raise InputError(
            f"expected columns of data; got row numbers in the first column of {name}. Take it "
            "for ids of rows with index=True, or for data with index=False; or save the table "
            "without it, to_csv(..., index=False), or put a line of names above it if it is data."
        )


def shortened(cells: Sequence[str]) -> str:
    """A line of a table, cut after three cells.

    >>> shortened(["1", "2", "3", "4"])
    '1, 2, 3, …'
    """
    return ", ".join(cells[:3]) + (", …" if len(cells) > 3 else "")


def _worded(cells: Sequence[str]) -> str:
    """The same, with every number made a word."""
    return shortened([f"c{cell}" if is_number(cell) else cell for cell in cells])


def _read_parquet(path: Path, options: TableOptions, known: TableInfo | None) -> Table:
    import pandas as pd

    check_packages("pyarrow", purpose=f"reading {str(path)!r}")  # pandas' own error names no extra
    return from_frame(shown(path), pd.read_parquet(path, engine="pyarrow"), None, options, known)
