"""Columns of a table: what kind each is, its values as numbers, and which cells are missing."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any, Literal

import numpy as np
import torch

from pyrovae.data.arrays import column_numbers, from_numpy, narrowed
from pyrovae.display import by_number
from pyrovae.errors import InputError, nearest

Array = np.ndarray[Any, Any]
Kind = Literal["real", "boolean", "categorical", "date"]

MOST_CATEGORIES = 1024
FEW_CATEGORIES = 20  # so many texts are categories however few rows there are
ROWS_EACH = 10  # rows for each text that more categories need, on average
SHOWN = 3  # row numbers that a fault names
DAY = 86_400  # seconds
EPOCH = "1970-01-01"  # the day from which dates are counted
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?")
_TRUTH = {"true": 1.0, "false": 0.0}
REMEDY = (
    "Leave columns out (drop=), keep one as ids of rows (id=) or as labels (label=), or correct "
    "the cells: empty ones are taken for missing."
)


@dataclass(frozen=True)
class Column:
    """What one column of a table holds.

    Args:
        name: its name.
        kind: ``"real"`` for numbers, ``"boolean"`` for truth values as 0 and 1, ``"date"`` for days
            since 1970-01-01, ``"categorical"`` for texts, of which the number in ``categories``
            stands.
        categories: the texts of a categorical column, in the order of their numbers.
        whole_days: whether all dates are days without a time.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    whole_days: bool = True


@dataclass(frozen=True)
class TableOptions:
    """Which columns of a table are data, and how a file is laid out.

    Args:
        columns: the only columns to take, in this order; all others by default.
        drop: columns to leave out.
        id: a column that names the rows and is no data.
        label: a column of classes, which no model sees.
        index: whether the first column names the rows; found out if not given.
        header: whether the first line names the columns; found out if not given.
        delimiter: the character between cells; found out if not given.
    """

    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    id: str | None = None
    label: str | None = None
    index: bool | None = None
    header: bool | None = None
    delimiter: str | None = None

    def given(self) -> dict[str, Any]:
        """The options that say something, by name."""
        return {name: value for name, value in vars(self).items() if value not in (None, ())}


@dataclass(frozen=True)
class TableInfo:
    """What is known of a table besides its numbers.

    Args:
        columns: those that are data, in their order.
        left_out: names of the other columns of the file.
        id: name of the column of row ids, if there is one.
        label: name of the column of labels, if there is one.
        label_names: the classes, in the order of their numbers.
    """

    columns: tuple[Column, ...]
    left_out: tuple[str, ...] = ()
    id: str | None = None
    label: str | None = None
    label_names: tuple[str, ...] = ()

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """What the categories of each column of texts are called, in the order of their numbers."""
        return {c.name: c.categories for c in self.columns if c.kind == "categorical"}


def as_plain(info: TableInfo) -> dict[str, Any]:
    """What is known of a table as dicts, tuples and text, which a file can hold."""
    columns = tuple(vars(column) for column in info.columns)
    return {**vars(info), "columns": columns}


def from_plain(held: Mapping[str, Any]) -> TableInfo:
    """What `as_plain` was made of."""
    columns = tuple(Column(**column) for column in held["columns"])
    return TableInfo(**{**held, "columns": columns})


@dataclass(frozen=True)
class Table:
    """The content of a file: real numbers, one row per data point.

    Args:
        name: what to call it in an error or a report.
        array: the numbers, shape ``(N, *event_shape)``, of any real dtype; NaN where one is
            missing.
        columns: one name per column, or ``None`` if the file names none.
        labels: one integer per row, shape ``(N,)``, if the file has labels beside the array.
        info: what kind each column is, of a table.
        ids: the name of each row, as text, shape ``(N,)``.
    """

    name: str
    array: Array
    columns: tuple[str, ...] | None = None
    labels: Array | None = None
    info: TableInfo | None = None
    ids: Array | None = field(default=None, repr=False)


class Fault(ValueError):
    """What is wrong with one column, in words."""


def row_and_column(row: int, column: str) -> str:
    """Where a cell of a table stands, in words; ``row`` counts from 0, the words from 1.

    >>> row_and_column(4, "age")
    "row 5, column 'age' (rows counted from 1, below the header)"
    """
    return f"row {row + 1}, column {column!r} (rows counted from 1, below the header)"


def is_number(cell: str) -> bool:
    """Whether a text is written as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def from_frame(
    name: str,
    frame: Any,
    names: Sequence[str] | None = None,
    options: TableOptions | None = None,
    known: TableInfo | None = None,
) -> Table:
    """A table from a pandas ``DataFrame``.

    Args:
        name: what to call it in errors.
        frame: the table.
        names: of its columns, in the place of its own.
        options: which columns to take, and as what.
        known: the columns of a table that this one has to be like, in their order; the frame may
            have those that were left out of it, too.

    Raises:
        InputError: with all that is wrong, column by column.
    """
    options = options or TableOptions()
    titles = tuple(names or [str(column) for column in frame.columns])
    _check_named(name, titles, options)
    data = _data_columns(titles, options) if known is None else _known_columns(name, titles, known)
    found, arrays, faults, first = [], [], [], None
    for index, column in enumerate(data):
        as_known = None if known is None else known.columns[index]
        try:
            kind, numbers = parsed(frame.iloc[:, titles.index(column)], column, as_known, name)
        except (Fault, InputError) as error:
            first = first or error
            faults.append(f"column {column!r}: {error}")
            continue
        found.append(kind)
        arrays.append(numbers)
    faults += _repeated(titles, data) + (_empty_rows(arrays) if not faults else [])
    if isinstance(first, InputError) and len(faults) == 1:
        raise first
    if faults:
        raise InputError(
            f"expected columns of numbers, truth values, dates or texts in few categories in "
            f"{name}; got {'; '.join(faults)} (rows counted from 1, below the header). "
            f"{REMEDY if known is None else 'Correct such cells, or leave such rows out.'}"
        )
    array = np.stack(arrays, axis=1) if arrays else np.empty((len(frame), 0))
    ids = _texts_of(frame, titles, (known.id if known else options.id) or "")
    labels, classes = _labels(frame, titles, (known.label if known else options.label) or "")
    info = known or TableInfo(
        tuple(found),
        tuple(title for title in titles if title not in data),
        options.id,
        options.label,
        classes,
    )
    return Table(name, array, tuple(data), None if known else labels, info, ids)


def parsed(values: Any, label: str, known: Column | None, table: str) -> tuple[Column, Array]:
    """What a column holds, and its values as float64, with NaN for missing cells.

    Raises:
        Fault: saying what is wrong with it.
        InputError: for numbers that float64 can't hold.
    """
    if values.dtype.kind == "O":
        _check_cells(values)
        values = values.mask(values.astype(str).str.strip() == "")
    if known is None and not len(values.dropna()) and len(values):
        raise Fault("no cell has a value")
    kind = _kind(values) if known is None else known.kind
    if kind == "categorical":
        return _categories(values, label, known)
    if kind == "real":
        numbers = _reals(values, label, table)
    else:
        numbers = _truths(values) if kind == "boolean" else _days(values)
    whole = kind != "date" or not bool((numbers[np.isfinite(numbers)] % 1).any())
    return known or Column(label, kind, whole_days=whole), numbers


def as_frame(values: Array, columns: Sequence[Column]) -> Any:
    """Numbers as a pandas table with categories, truth values and dates in their places.

    Args:
        values: shape ``(N, C)``; NaN for a missing cell.
        columns: what each of the C columns holds.
    """
    import pandas as pd

    frame = {}
    for numbers, column in zip(np.asarray(values, dtype=np.float64).T, columns, strict=True):
        there = np.isfinite(numbers)
        filled = np.where(there, numbers, 0.0)
        series: Any = pd.Series(numbers)
        if column.kind == "categorical":
            names = np.array([*column.categories], dtype=object)
            series = pd.Series(names[filled.astype(int)], dtype=object).where(there, None)
        elif column.kind == "boolean" and set(np.unique(filled)) <= {0.0, 1.0}:
            series = pd.Series(filled.astype(bool), dtype=bool if there.all() else object)
            series = series.where(there, None)
        elif column.kind == "date":
            seconds = np.round(filled if column.whole_days else filled * DAY).astype("int64")
            start = np.datetime64(EPOCH, "s")
            step = DAY if column.whole_days else 1
            series = pd.Series(start + (seconds * step).astype("m8[s]")).where(there, pd.NaT)
        frame[column.name] = series
    return pd.DataFrame(frame)


def in_words(columns: Sequence[Column]) -> str:
    """How many columns there are of each kind.

    >>> in_words([Column("a", "real"), Column("b", "categorical", ("x", "y"))])
    '1 of numbers, 1 of texts (2 categories)'
    """
    sorts: dict[Kind, str] = {
        "real": "numbers", "boolean": "truth values", "date": f"dates, as days since {EPOCH}",
        "categorical": "texts",
    }  # fmt: skip
    parts = []
    for kind, words in sorts.items():
        of_kind = [column for column in columns if column.kind == kind]
        count = sum(len(column.categories) for column in of_kind)
        more = f" ({count} categories)" if kind == "categorical" else ""
        parts += [f"{len(of_kind)} of {words}{more}"] if of_kind else []
    return ", ".join(parts)


# -- which columns -------------------------------------------------------------------------------


def _check_named(name: str, titles: Sequence[str], options: TableOptions) -> None:
    """Raise if options name columns that there are not."""
    single = [column for column in (options.id, options.label) if column is not None]
    named = [*(options.columns or ()), *options.drop, *single]
    absent = [column for column in dict.fromkeys(named) if column not in titles]
    if absent:
        hint = nearest(absent[0], titles) if len(absent) == 1 else ""
        raise InputError(
            f"expected columns of {name}; got {_short(absent)}, which it does not have.{hint} It "
            f"has {_short(titles, 20)}."
        )


def _data_columns(titles: Sequence[str], options: TableOptions) -> tuple[str, ...]:
    others = {*options.drop, options.id, options.label}
    return tuple(column for column in (options.columns or titles) if column not in others)


def _known_columns(name: str, titles: Sequence[str], known: TableInfo) -> tuple[str, ...]:
    columns = tuple(column.name for column in known.columns)
    missing = [column for column in columns if column not in titles]
    others = [title for title in titles if title not in (*columns, *known.left_out)]
    if missing or others:
        parts = [
            f"{words} {_short(found)}"
            for words, found in (("none called", missing), ("others,", others))
            if found
        ]
        raise InputError(
            f"expected the columns of the run in {name}; got {' and '.join(parts)}. Give the "
            f"columns {_short(columns)}."
        )
    return columns


def _short(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _repeated(titles: Sequence[str], data: Sequence[str]) -> list[str]:
    twice = [title for title in dict.fromkeys(data) if list(titles).count(title) > 1]
    return [f"column {title!r}: the name of several columns" for title in twice]


def _empty_rows(arrays: Sequence[Array]) -> list[str]:
    if not arrays:
        return []
    empty = np.flatnonzero(np.isnan(np.stack(arrays, 1)).all(1))
    return [f"no value in any column in {_rows(empty)}"] if len(empty) else []


def _texts_of(frame: Any, titles: Sequence[str], column: str) -> Array | None:
    if column not in titles:
        return None
    values = frame.iloc[:, titles.index(column)]
    return np.asarray(values.astype(str).to_numpy(dtype=object))


def _labels(frame: Any, titles: Sequence[str], column: str) -> tuple[Array | None, tuple[str, ...]]:
    """The number of each row's class, and the classes; a missing label is a class, too."""
    texts = _texts_of(frame, titles, column)
    if texts is None:
        return None, ()
    there = frame.iloc[:, titles.index(column)].notna().to_numpy()
    return classes_of(texts, there)


def classes_of(texts: Array, there: Array) -> tuple[Array, tuple[str, ...]]:
    """The number of each row's class, and the classes; a missing label is a class, too.

    Args:
        texts: the label of each row, shape ``(N,)``.
        there: whether it has one, shape ``(N,)``.
    """
    classes = sorted(set(texts[there]), key=by_number)
    classes += ["(missing)"] if not there.all() else []
    places = {text: place for place, text in enumerate(classes)}
    named = [text if known else "(missing)" for text, known in zip(texts, there, strict=True)]
    return np.array([places[text] for text in named], dtype=np.int64), tuple(classes)


# -- cells ---------------------------------------------------------------------------------------


def _check_cells(values: Any) -> None:
    """Raise unless every cell that has a value can be written as a word."""
    single = (str, bool, Number, np.generic, datetime.date)
    there = values.notna().to_numpy()
    bad = np.flatnonzero(
        [known and not isinstance(v, single) for v, known in zip(values, there, strict=True)]
    )
    if len(bad):
        raise Fault(f"a {type(values.iloc[int(bad[0])]).__name__} in {_rows(bad)}")


def _kind(values: Any) -> Kind:
    """What kind of column it is; one that is mostly numbers or dates is taken for one of these."""
    import pandas as pd

    kinds, dtype = pd.api.types, values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "categorical"
    if kinds.is_bool_dtype(dtype):
        return "boolean"
    if kinds.is_datetime64_any_dtype(dtype):
        return "date"
    if kinds.is_numeric_dtype(dtype) or dtype.kind in "cmfiu":
        return "real"
    texts = _texts(values)
    if set(texts.str.lower()) <= _TRUTH.keys():
        return "boolean"
    if 2 * int(texts.map(is_number).sum()) >= len(texts):
        return "real"
    return "date" if 2 * int(texts.map(_is_date).sum()) >= len(texts) else "categorical"


def _texts(values: Any) -> Any:
    """The cells that have a value, as texts without spaces around them."""
    return values.dropna().astype(str).str.strip()


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text) is not None


def _reals(values: Any, label: str, table: str) -> Array:
    import pandas as pd

    kinds = pd.api.types
    if kinds.is_numeric_dtype(values.dtype) or values.dtype.kind in "cm":
        place = f"column {label!r} of {table}"
        numbers = from_numpy(column_numbers(values, place), place)
        return narrowed(numbers, torch.float64, place).numpy()
    return _each(values, is_number, float, "numbers")


def _truths(values: Any) -> Array:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        numbers = np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
        bad = np.flatnonzero(~np.isnan(numbers) & ~np.isin(numbers, (0.0, 1.0)))
        if len(bad):
            raise Fault(f"{values.iloc[bad[0]]!r} among truth values, in {_rows(bad)}")
        return numbers
    return _each(values, lambda t: t.lower() in _TRUTH, lambda t: _TRUTH[t.lower()], "truth values")


def _days(values: Any) -> Array:
    import pandas as pd

    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        bad = np.flatnonzero(values.notna().to_numpy() & ~_matches(values, _is_date))
        if len(bad):
            raise _among(values, bad, "dates such as 2024-12-31")
        texts, there = values.astype("object"), values.notna()
        values = pd.to_datetime(
            texts.where(there, None), utc=True, format="ISO8601", errors="coerce"
        )
        bad = np.flatnonzero((there & values.isna()).to_numpy())
        if len(bad):
            raise Fault(f"a date that there is not, {str(texts.iloc[bad[0]])!r}, in {_rows(bad)}")
    moments = values.dt.tz_convert("UTC").dt.tz_localize(None) if values.dt.tz else values
    numbers = (moments - pd.Timestamp(EPOCH)) / pd.Timedelta(days=1)
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def _each(
    values: Any, fits: Callable[[str], bool], number: Callable[[str], float], words: str
) -> Array:
    """Texts as numbers, one by one."""
    there = values.notna().to_numpy()
    bad = np.flatnonzero(there & ~_matches(values, fits))
    if len(bad):
        raise _among(values, bad, words)
    found = np.full(len(values), np.nan)
    found[there] = [number(text) for text in _texts(values)]
    return found


def _matches(values: Any, fits: Callable[[str], bool]) -> Array:
    """Whether each cell fits, true where there is none."""
    found = np.ones(len(values), dtype=bool)
    found[values.notna().to_numpy()] = [fits(text) for text in _texts(values)]
    return found


def _among(values: Any, bad: Array, words: str) -> Fault:
    return Fault(f"{str(values.iloc[int(bad[0])])!r} among {words}, in {_rows(bad)}")


def _rows(numbers: Iterable[int]) -> str:
    """Rows in words, counted from 1."""
    found = [int(number) + 1 for number in numbers]
    more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    return f"row{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:SHOWN]))}{more}"


def _categories(values: Any, label: str, known: Column | None) -> tuple[Column, Array]:
    """Texts as numbers of categories, which are in alphabetical order, or those that are known."""
    there = values.notna().to_numpy()
    texts = np.asarray(_texts(values).to_numpy(dtype=object))
    names = sorted(set(texts), key=by_number) if known is None else list(known.categories)
    if known is None:
        _check_categories(len(names), len(texts))
    places = {name: float(place) for place, name in enumerate(names)}
    found = np.full(len(values), np.nan)
    found[there] = [places.get(text, -1.0) for text in texts]
    if (bad := np.flatnonzero(found < 0)).size:
        raise Fault(
            f"{str(values.iloc[int(bad[0])])!r} in {_rows(bad)}, which is none of the categories "
            f"{_short(names)} that the run was trained on"
        )
    return known or Column(label, "categorical", tuple(names)), found


def _check_categories(count: int, rows: int) -> None:
    if count == 1 and rows > 1:
        raise Fault("one and the same text in every row")
    if count > min(MOST_CATEGORIES, max(FEW_CATEGORIES, rows // ROWS_EACH)):
        raise Fault(f"{count:,} different texts in {rows:,} rows, too many for categories")
