"""Data sets: from a name or a file to a tensor, checked before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import cells, images
from pyrovae.data.arrays import Annotated, as_rows, from_numpy, narrowed
from pyrovae.data.columns import (
    Column,
    Table,
    TableInfo,
    TableOptions,
    as_frame,
    classes_of,
    from_frame,
    row_and_column,
)
from pyrovae.data.files import expanded, listed, read, shown
from pyrovae.errors import InputError, nearest
from pyrovae.extras import needed_for
from pyrovae.randomness import check_seed, derived_seed

__all__ = [
    "LIKELIHOODS",
    "Dataset",
    "Split",
    "as_dataset",
    "categories_of",
    "check",
    "check_near",
    "check_values",
    "default_likelihood",
    "load",
    "needs_mixed",
    "numbers_of_parts",
    "read_table",
    "split",
    "units",
    "with_obs_mask",
]

LIKELIHOODS = (
    "bernoulli", "normal", "categorical", "logistic", "negative_binomial", "mixed",
)  # fmt: skip
#: What others call them.
CALLED = {
    "gaussian": "normal",
    "binary": "bernoulli",
    "softmax": "categorical",
    "multinomial": "categorical",
    "counts": "negative_binomial",
    "poisson": "negative_binomial",
    "nb": "negative_binomial",
}
MINIMUM_ROWS = 20
MAXIMUM_CATEGORIES = 1024
FARTHEST = 1e12  # standard deviations: a code's log density out there is of order 1e24
LARGEST = 1e100  # float64 still holds the squares of this and of its inverse


@dataclass(frozen=True)
class Dataset:
    """N data points of one shape, with names of columns and labels if there are any.

    Args:
        name: what to call the data in a report.
        values: the data points, shape ``(N, *event_shape)``: float32 if that holds every number
            exactly, else float64.
        columns: one name per column of a table, or ``None``.
        labels: one integer per data point, for colouring plots only, shape ``(N,)``; or ``None``.
        obs_mask: which cells of a table have a value, of the shape of ``values``, which are 0 where
            one is missing; ``None`` if none is.
        ids: the name of each row, as text, as those of image files and of cells; or ``None``.
        info: what each column of a table holds, and what its labels are called.
        channels: where a file or an array had the channels of its images, ``"first"`` or
            ``"last"``; ``values`` have them first. ``None`` for rows without channels.
        likelihood: the one that such data ask for, if what they are tells; else ``None``.
        note: what was taken from where, in words, for the report.
        label_names: what the labels are called, in the order of their numbers.

    >>> Dataset("toy", torch.zeros(100, 8, 8))
    Dataset('toy', 100 points of shape (8, 8))
    """

    name: str
    values: Tensor
    columns: tuple[str, ...] | None = None
    labels: Tensor | None = None
    obs_mask: Tensor | None = None
    ids: tuple[str, ...] | None = None
    info: TableInfo | None = None
    channels: str | None = None
    likelihood: str | None = None
    note: str = ""
    label_names: tuple[str, ...] = ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one data point."""
        return tuple(self.values.shape[1:])

    @property
    def image(self) -> bool:
        """Whether a data point can be looked at as an image, with 1 or 3 channels or none."""
        return images.is_image(self.event_shape)

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self):,} points of shape {self.event_shape})"

    def single(self) -> Dataset:
        """The same data in float32, for a pair in float32 that doesn't standardise its input.

        Raises:
            InputError: if rounding would make data points hard to tell apart.
        """
        return replace(self, values=narrowed(self.values, torch.float32, self.name))

    def rows(self, index: Tensor) -> Dataset:
        """The data points at ``index``, shape ``(M,)``, in that order."""
        labels = None if self.labels is None else self.labels[index]
        mask = None if self.obs_mask is None else self.obs_mask[index]
        ids = None if self.ids is None else tuple(self.ids[row] for row in index.tolist())
        return replace(self, values=self.values[index], labels=labels, obs_mask=mask, ids=ids)

    @property
    def kinds(self) -> tuple[Column, ...]:
        """What each column of a table holds; numbers where nothing else is known.

        Raises:
            InputError: if the rows are not those of a table.
        """
        if self.info is not None:
            return self.info.columns
        if len(self.event_shape) != 1:
            raise InputError(
                f"expected a table; got rows of shape {self.event_shape} in {self.name}. Give rows "
                "of one axis."
            )
        names = self.columns or tuple(str(place) for place in range(self.event_shape[0]))
        return tuple(Column(name, "real") for name in names)

    def frame(self) -> Any:
        """The rows of a table as a pandas ``DataFrame``, as they were before they were numbers."""
        values = self.values.double()
        if self.obs_mask is not None:
            values = values.where(self.obs_mask, torch.nan)
        return as_frame(values.numpy(), self.kinds)

    def place(self, index: Sequence[int]) -> str:
        """Where the value at ``index`` stands, in words: its row and its column or position.

        >>> Dataset("toy", torch.zeros(30, 2), columns=("age", "height")).place((4, 1))
        "row 5, column 'height' (rows counted from 1, below the header)"
        >>> Dataset("toy", torch.zeros(30, 8, 8)).place((4, 1, 7))
        'row 4, position (1, 7) (counted from 0)'
        """
        row, *position = (int(i) for i in index)
        if self.columns is not None:
            return row_and_column(row, self.columns[position[0]])
        where = f"column {position[0]}" if len(position) == 1 else f"position {tuple(position)}"
        return f"row {row}, {where} (counted from 0)"


class Split(NamedTuple):
    """Three parts of one data set that share no data point."""

    train: Dataset
    validation: Dataset
    held_out: Dataset


def load(
    source: str | Path,
    *,
    likelihood: str | None = None,
    table: TableOptions | None = None,
    channels: str | None = None,
    layer: str | None = None,
) -> Dataset:
    """The built-in data set of that name, or the data in that file, checked.

    ``digits`` is scikit-learn's 1,797 images of 8 × 8 pixels, with intensities in [0, 1]. A file is
    ``.npy``, ``.npz`` (``file.npz:name`` picks one of several arrays), ``.csv`` or ``.parquet``;
    its first axis, or its rows, are the data points. So are the images of a folder or of a pattern
    such as ``"photos/*.png"``, and the cells of an ``.h5ad`` file. Numbers are taken as they are:
    nothing is scaled, filled in or left out; images in colour get their channels first. Of a table,
    see :func:`read_table`.

    Args:
        source: ``"digits"``, or the path of a file or of a folder of images.
        likelihood: a likelihood that the values must suit, see `check`; by default any may.
        table: which columns of a table to take, and how its file is laid out.
        channels: ``"first"`` or ``"last"``, where an array has the channels of its images, if its
            shape leaves that open.
        layer: which layer of an ``.h5ad`` file, in the place of ``X``.

    Returns:
        The data set, in float32 if that holds all its numbers exactly, else in float64.

    Raises:
        InputError: if there is no such file, it can't be read, it holds anything but finite
            numbers or fewer than 20 rows, or all its rows are the same.

    >>> load("digits")
    Dataset('digits', 1,797 points of shape (8, 8))
    """
    if likelihood is not None:
        _check_name(likelihood)
    data = as_dataset(source, table, channels=channels, layer=layer)
    check(data, likelihood)
    return data


def read_table(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    id: str | None = None,
    label: str | None = None,
    index: bool | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
) -> Dataset:
    """A table as people have it, as numbers: texts, truth values and dates, and missing cells.

    Texts become the numbers of categories, dates days since 1970-01-01, truth values 0 and 1, and
    missing cells are marked. ``data.frame()`` is the table again; a model of it takes
    ``(data.values, data.obs_mask)``, or ``data.values`` where nothing is missing.

    Args:
        source: the path of a ``.csv`` or ``.parquet`` file, or a pandas ``DataFrame``.
        columns: the only columns to take, in this order; all others by default.
        drop: columns to leave out.
        id: a column that names the rows and is no data.
        label: a column of classes, which no model sees: ``data.labels``, and ``label_names`` of
            ``data.info``.
        index: whether the first column of a .csv file names the rows; found out if not given.
        header: whether its first line names the columns; found out if not given.
        delimiter: the character between its cells; found out if not given.

    Raises:
        InputError: with all that is wrong, column by column.

    >>> import pandas as pd
    >>> people = pd.DataFrame({"age": [31, None], "town": ["Ulm", "Rome"], "name": ["Ann", "Bo"]})
    >>> data = read_table(people, id="name")
    >>> data.values.tolist(), data.obs_mask.tolist()
    ([[31.0, 1.0], [0.0, 0.0]], [[True, True], [False, True]])
    """
    options = TableOptions(
        None if columns is None else tuple(columns), tuple(drop), id, label, index, header,
        delimiter,
    )  # fmt: skip
    return as_dataset(source, options)


def as_dataset(
    rows: Any,
    options: TableOptions | None = None,
    known: TableInfo | None = None,
    *,
    channels: str | None = None,
    layer: str | None = None,
    like: Sequence[int] | None = None,
) -> Dataset:
    """Rows as a data set, which may have any number of them: nothing is checked yet.

    Args:
        rows: ``"digits"``, the path of a file as :func:`load` takes it, a pandas table, whose
            columns keep their names, an AnnData, or an array or tensor of shape ``(N, ...)``.
        options: which columns of a table to take, and how its file is laid out.
        known: the columns that a table has to have, with their categories.
        channels, layer: as :func:`load` takes them.
        like: shape of a row, channels first, that these have to be like.

    Raises:
        InputError: if a file can't be read, or there are no real numbers in it.
    """
    if isinstance(rows, Dataset):
        return rows
    data = _rows_of(rows, layer, options, known)
    return data if data.channels else _channels_first(data, channels, like)


def _rows_of(
    rows: Any, layer: str | None, options: TableOptions | None, known: TableInfo | None
) -> Dataset:
    """Rows as they come, with channels where the source has them."""
    if layer is not None and not (isinstance(rows, Annotated) or _is_h5ad(rows)):
        raise InputError(
            "expected an .h5ad file or an AnnData with layer=; got other data. Leave it out."
        )
    if isinstance(rows, str | Path) and str(rows) != "digits":
        return _from_file(str(rows), layer, options, known)
    if hasattr(rows, "columns"):
        return _from_table(from_frame("the table", rows, None, options, known))
    is_cells = isinstance(rows, Annotated)
    label = _check_no_table(options, labelled=is_cells)
    if isinstance(rows, str | Path):
        return _digits()
    if is_cells:
        return _from_annotated(rows, layer, label)
    values = rows if isinstance(rows, Tensor) else from_numpy(np.asarray(rows), "the rows")
    if values.ndim < 1:
        raise InputError("expected one row per data point; got a single number. Give rows.")
    return _masked(Dataset("the rows", values[:, None] if values.ndim == 1 else values))


def _check_no_table(options: TableOptions | None, *, labelled: bool = False) -> str | None:
    """Raise if what stands in the options of a table was given for other data.

    Args:
        options: of a table.
        labelled: whether the data may have a column of labels, which is then returned.
    """
    if options is None:
        return None
    given = options.given()
    label: str | None = given.pop("label", None) if labelled else None
    if given:
        raise InputError(
            f"expected no {next(iter(given))}= for data that are no table; got one. Leave it out."
        )
    return label


def with_obs_mask(x: Any) -> tuple[Tensor, Tensor]:
    """Rows with NaN for missing cells as two arguments of a model: numbers, and which are there.

    Args:
        x: an array or tensor of floating-point numbers, shape ``(N, ...)``.

    Returns:
        the rows with 0 for NaN, and a mask of the same shape, true where there is a number.

    >>> with_obs_mask(torch.tensor([[1.0, torch.nan]]))
    (tensor([[1., 0.]]), tensor([[ True, False]]))
    """
    values = x if isinstance(x, Tensor) else from_numpy(np.asarray(x), "the rows")
    mask = ~values.isnan()
    return values.where(mask, 0.0), mask


def _masked(data: Dataset) -> Dataset:
    """The data with a mask in the place of NaN, if they are rows of one axis and have any."""
    if len(data.event_shape) != 1 or not bool(data.values.isnan().any()):
        return data
    values, mask = with_obs_mask(data.values)
    return replace(data, values=values, obs_mask=mask)


def check(data: Dataset, likelihood: str | None = None) -> None:
    """Raise if the data can't be modelled at all or doesn't suit the likelihood.

    Args:
        data: the data set.
        likelihood: ``"bernoulli"`` needs values in [0, 1], ``"categorical"`` the integers 0, 1, …,
            K - 1, ``"logistic"`` the grey levels 0, …, 255, ``"negative_binomial"`` counts with
            at least one above 0 in each row, ``"normal"`` and ``None`` finite numbers. Texts and
            missing cells need ``"mixed"``, a likelihood for each column of a table.

    Raises:
        InputError: naming the first wrong value, its row and its column.
    """
    if likelihood is not None:
        _check_name(likelihood)
    _check_rows(data)
    _check_finite(data)
    if bool((data.values == data.values[:1]).all()):
        raise InputError(
            f"expected data points that differ; got the same one {len(data):,} times in "
            f"{data.name}. Give data that vary."
        )
    spread = data.values.amax(0) - data.values.amin(0)
    tiny = ((spread > 0) & (spread < 1 / LARGEST)).expand_as(data.values)
    _require(data, ~tiny, f"columns that vary by more than {1 / LARGEST:g}, or not at all",
             "Multiply them by a power of ten.")  # fmt: skip
    if likelihood == "mixed":
        _check_varied(data)
    _check_suited(data, likelihood)


def check_values(data: Dataset, likelihood: str | None = None) -> None:
    """Raise if a number can't be modelled or doesn't suit the likelihood, of however few rows.

    Args:
        data, likelihood: as :func:`check` takes them.

    Raises:
        InputError: naming the first wrong value, its row and its column.
    """
    _check_finite(data)
    _check_suited(data, likelihood)


def _check_finite(data: Dataset) -> None:
    _require(data, data.values.isfinite(), "finite numbers", "Remove or fill in such rows first.")
    _require(data, data.values.abs() <= LARGEST, f"numbers of magnitude below {LARGEST:g}",
             "Divide them by a power of ten.")  # fmt: skip


def _check_suited(data: Dataset, likelihood: str | None) -> None:
    if likelihood not in (None, "mixed") and needs_mixed(data):
        what = "missing cells" if data.obs_mask is not None else "a column of texts"
        raise InputError(
            f"expected the likelihood 'mixed', one for each column, for a table with {what}; got "
            f"{likelihood!r}. Leave --likelihood out, or leave out such columns or rows."
        )
    if likelihood == "bernoulli":
        _check_bernoulli(data)
    elif likelihood == "categorical":
        _check_categorical(data)
    elif likelihood == "logistic":
        valid = (data.values >= 0) & (data.values <= 255) & (data.values % 1 == 0)
        expected = "grey levels 0, 1, …, 255 for a logistic likelihood"
        _require(data, valid, expected, "Take --likelihood normal for other numbers.")
    elif likelihood == "negative_binomial":
        _check_counts(data)


def default_likelihood(data: Dataset) -> str:
    """The likelihood to use if none is named: Bernoulli for zeros and ones, else normal.

    For a table with texts, truth values beside numbers, or missing cells it is a likelihood for
    each column. Other integers are not taken for categories: counts and grey values are integers
    too, and only the owner of the data knows. Nor are grey values in [0, 1] taken for
    probabilities.

    Grey levels of image files and counts of cells are what they are: ``data.likelihood`` says so.

    >>> default_likelihood(load("digits"))
    'normal'
    """
    if data.likelihood is not None:
        return data.likelihood
    if needs_mixed(data):
        return "mixed"
    is_binary = (data.values == 0) | (data.values == 1)
    if bool(is_binary.all()):
        return "bernoulli"
    kinds = () if data.info is None else data.info.columns
    return "mixed" if any(column.kind == "boolean" for column in kinds) else "normal"


def needs_mixed(data: Dataset) -> bool:
    """Whether the data are a table that only a likelihood for each column can take."""
    kinds = () if data.info is None else data.info.columns
    return data.obs_mask is not None or any(column.kind == "categorical" for column in kinds)


def categories_of(data: Dataset) -> tuple[int, ...]:
    """Of each column of a table the number of categories; 1 for truth values, 0 for real numbers.

    Numbers that are all 0 or 1 count as truth values.
    """
    binary = (data.values == 0) | (data.values == 1)
    counts = [len(column.categories) for column in data.kinds]
    truths = binary.all(0).tolist()
    return tuple(count or int(truth) for count, truth in zip(counts, truths, strict=True))


def split(data: Dataset, *, held_out: float = 0.2, validation: float = 0.1, seed: int = 0) -> Split:
    """Three disjoint parts of the data, shuffled by ``seed``.

    Args:
        data: the data set.
        held_out: the share kept for the report's held-out measures, in (0, 1).
        validation: the share kept for early stopping and for choosing the ex-post prior, in (0, 1).
        seed: the same seed gives the same parts.

    Raises:
        InputError: if a part would have fewer than two data points.

    >>> [len(part) for part in split(load("digits"))]
    [1258, 180, 359]
    """
    shares = {"held_out": held_out, "validation": validation}
    numbers = numbers_of_parts(len(data), **shares, seed=seed)
    return Split(*(data.rows(rows) for rows in numbers))


def numbers_of_parts(
    count: int, *, held_out: float = 0.2, validation: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of the rows of each part that :func:`split` makes, in the same order.

    Args:
        count: number N of data points.
        held_out, validation, seed: as :func:`split` takes them.
    """
    check_seed(seed)
    sizes = round(count * held_out), round(count * validation)
    if min(*sizes, count - sum(sizes)) < 2:
        raise InputError(
            f"expected shares that leave at least 2 of the {count:,} data points in each part; got "
            f"held_out={held_out}, validation={validation}. Choose both above 0, their sum below 1."
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, "split"))
    order = torch.randperm(count, generator=generator)
    held_out_rows, validation_rows, train_rows = order.split([*sizes, count - sum(sizes)])
    return train_rows, validation_rows, held_out_rows


def units(rows: Tensor, *, image: bool, obs_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in float64: of each column of a table, of all pixels of images.

    A constant column gets the scale 1, whatever rounding makes of its standard deviation.

    Args:
        rows: shape ``(N, *event_shape)``.
        image: whether an entry is a pixel.
        obs_mask: which cells of a table count, of the same shape; by default all.
    """
    if obs_mask is not None:
        columns = [
            units(column[there], image=False) if bool(there.any()) else (column.new_zeros(()),) * 2
            for column, there in zip(rows.double().T, obs_mask.T, strict=True)
        ]
        location, scale = (torch.stack(parts) for parts in zip(*columns, strict=True))
        return location, torch.where(scale > 0, scale, 1.0)
    values = rows.double().flatten() if image else rows.double()
    varies = (values != values[:1]).any(0)
    return values.mean(0), torch.where(varies, values.std(0), 1.0)


def check_near(data: Dataset, location: Tensor, scale: Tensor) -> None:
    """Raise if a value lies so far from the training data that networks in float32 can't take it.

    Args:
        data: the whole data set.
        location, scale: mean and standard deviation of its training part, see `units`.

    Raises:
        InputError: naming the first such value, its row and its column.
    """
    near = (data.values.double() - location).abs() <= FARTHEST * scale
    if data.obs_mask is not None:
        near |= ~data.obs_mask
    expected = f"values within {FARTHEST:g} standard deviations of the training data's mean"
    _require(data, near, expected, "Remove such rows, or correct them.")


# -- checks for each likelihood ------------------------------------------------------------------


def _check_name(likelihood: str) -> None:
    if likelihood in LIKELIHOODS:
        return
    hint = nearest(likelihood, LIKELIHOODS, CALLED) or " Choose one of them."
    raise InputError(
        f"expected one of {listed(LIKELIHOODS)} as likelihood; got {likelihood!r}.{hint}"
    )


def _check_rows(data: Dataset) -> None:
    count, size = len(data), math.prod(data.event_shape)
    if count < MINIMUM_ROWS:
        raise InputError(
            f"expected at least {MINIMUM_ROWS} rows; got {count} in {data.name}. "
            "Give more data, or check that the first axis counts the data points."
        )
    if size == 0:
        raise InputError(
            f"expected at least one column; got rows of shape {data.event_shape} in {data.name}. "
            "Give data with numbers in them."
        )


def _check_bernoulli(data: Dataset) -> None:
    valid = (data.values >= 0) & (data.values <= 1)
    low, high = (float(v) for v in data.values.aminmax())
    if low >= 0 and 1 < high <= 255 and bool((data.values == data.values.round()).all()):
        scale = 255 if high > 100 else int(high)
        remedy = f"Divide the values by {scale}, or take --likelihood normal."
    else:
        remedy = "Scale the values to [0, 1], or take --likelihood normal."
    _require(data, valid, "values in [0, 1] for a Bernoulli likelihood", remedy)


def _check_categorical(data: Dataset) -> None:
    valid = (data.values >= 0) & (data.values == data.values.round())
    expected = "integers 0, 1, 2, … for a categorical likelihood"
    _require(data, valid, expected, "Number the categories from 0, or take --likelihood normal.")
    count = int(data.values.max()) + 1
    if count > MAXIMUM_CATEGORIES:
        raise InputError(
            f"expected at most {MAXIMUM_CATEGORIES:,} categories; got {count:,} in {data.name}. "
            "Number the categories from 0 without gaps, or take --likelihood normal."
        )


def _check_counts(data: Dataset) -> None:
    valid = (data.values >= 0) & (data.values % 1 == 0)
    expected = "counts 0, 1, 2, … for a negative binomial likelihood"
    remedy = "Give the counts themselves, neither normalised nor as logarithms."
    _require(data, valid, expected, f"{remedy} Or take --likelihood normal.")
    has_counts = (data.values > 0).flatten(1).any(1).view(-1, *[1] * len(data.event_shape))
    expected = "a count above 0 in each row for a negative binomial likelihood"
    remedy = "Leave out rows without counts."
    _require(data, has_counts.expand_as(data.values), expected, remedy)


def _check_varied(data: Dataset) -> None:
    """Raise if a column of a table has one value alone, which has no scale."""
    columns = zip(data.kinds, data.values.T, _there(data).T, strict=True)
    constant = [
        column.name
        for column, values, there in columns
        if bool((values[there] == values[there][:1]).all())
    ]
    if constant:
        raise InputError(
            f"expected columns that vary, each for a likelihood of its own; got the same value in "
            f"each row of {', '.join(map(repr, constant))} in {data.name}. Leave them out (drop=)."
        )


def _there(data: Dataset) -> Tensor:
    """Which cells have a value."""
    mask = data.obs_mask
    return torch.ones_like(data.values, dtype=torch.bool) if mask is None else mask


def _require(data: Dataset, valid: Tensor, expected: str, remedy: str) -> None:
    """Raise if ``valid``, shape ``(N, *event_shape)``, is false, naming the first such place."""
    invalid = ~valid
    if not bool(invalid.any()):
        return
    index = invalid.nonzero()[0].tolist()
    value, others = float(data.values[tuple(index)]), int(invalid.sum()) - 1
    more = f" and {others:,} more" if others else ""
    raise InputError(
        f"expected {expected}; got {value:g} in {data.name}, {data.place(index)}{more}. {remedy}"
    )


def _digits() -> Dataset:
    with needed_for("the data set 'digits'"):
        from sklearn.datasets import load_digits

    digits = load_digits()
    values = torch.from_numpy(digits.images / 16.0).to(torch.float32)
    return Dataset("digits", values, labels=torch.from_numpy(digits.target).long())


def _from_table(table: Table) -> Dataset:
    """The data set of the numbers in a file, in float32 if that is exact, else in float64."""
    values = narrowed(from_numpy(table.array, table.name), torch.float64, table.name)
    single = values.float()
    is_exact = torch.equal(single.double().nan_to_num(), values.nan_to_num())
    labels = None if table.labels is None else torch.from_numpy(table.labels)
    ids = None if table.ids is None else tuple(map(str, table.ids))
    return _masked(
        Dataset(
            table.name, single if is_exact else values, columns=table.columns, labels=labels,
            ids=ids, info=table.info,
            label_names=() if table.info is None else table.info.label_names,
        )
    )  # fmt: skip


# -- images and cells ----------------------------------------------------------------------------


def _is_h5ad(rows: Any) -> bool:
    return isinstance(rows, str | Path) and Path(rows).suffix.lower() == ".h5ad"


def _from_file(
    source: str, layer: str | None, options: TableOptions | None, known: TableInfo | None
) -> Dataset:
    path = expanded(source)
    is_cells = _is_h5ad(path) and path.is_file()
    files = None if is_cells else images.find(source, path)
    if not is_cells and files is None:
        return _from_table(read(source, options, known))
    label = _check_no_table(options, labelled=is_cells)
    if files is None:
        return _of_cells(cells.read_h5ad(path, shown(path), layer, label), layer)
    pictures = images.read(files, shown(path))
    labels = None if pictures.labels is None else torch.from_numpy(pictures.labels)
    values = from_numpy(pictures.array, pictures.name)
    return _levels(
        Dataset(
            pictures.name,
            values.float(),
            labels=labels,
            ids=pictures.ids,
            channels="last" if values.ndim == 4 else None,
            note=pictures.note,
            label_names=pictures.label_names,
        ),
        likely=True,
    )


def _from_annotated(data: Any, layer: str | None, label: str | None) -> Dataset:
    """The cells of an AnnData."""
    name = "the AnnData"
    if layer is not None and layer not in data.layers:
        raise InputError(
            f"expected one of the layers {listed(map(repr, data.layers))} in {name}; got "
            f"layer={layer!r}. Name one, or leave it out for X."
        )
    rows = as_rows(data if layer is None else data.layers[layer], name)
    dense = rows if isinstance(rows, Tensor) else next(iter(rows.split(max(len(rows), 1))))
    columns, ids = (tuple(map(str, frame.index)) for frame in (data.var, data.obs))
    classes: tuple[Any, tuple[str, ...]] = None, ()
    if label is not None:
        cells.check_column(label, data.obs.columns, name)
        column = data.obs[label]
        classes = classes_of(column.astype(str).to_numpy(object), column.notna().to_numpy())
    return _of_cells(cells.Cells(name, dense.numpy(), columns, ids, *classes), layer)


def _of_cells(found: cells.Cells, layer: str | None) -> Dataset:
    """Cells, whose whole numbers are counts."""
    data = _from_table(Table(found.name, found.array, columns=found.columns))
    values = data.values
    whole = bool(((values >= 0) & (values % 1 == 0)).all())
    counts = whole and bool((values > 1).any())
    kind = "whole numbers, taken for counts" if counts else "numbers that are no counts"
    if whole and not counts:
        kind = "zeros and ones"
    return replace(
        data,
        ids=found.ids,
        labels=None if found.labels is None else torch.from_numpy(found.labels),
        label_names=found.label_names,
        likelihood="negative_binomial" if counts else None,
        note=f"{'X' if layer is None else f'the layer {layer!r}'}: {kind}",
    )


def _channels_first(data: Dataset, channels: str | None, like: Sequence[int] | None) -> Dataset:
    """The data with the channels of images first, and with what that was, in words."""
    axis = images.channel_axis(data.event_shape, data.name, channels=channels, like=like)
    if axis is None:
        return data
    values = data.values.movedim(-1, 1).contiguous() if axis == "last" else data.values
    note = f"channels: the {axis} axis of a row, of {values.shape[1]}"
    likely = images.is_image(values.shape[1:])
    return _levels(replace(data, values=values, channels=axis, note=note), likely=likely)


def _levels(data: Dataset, *, likely: bool) -> Dataset:
    """The data with the likelihood of grey levels if that is what their numbers are."""
    top = float(data.values.max()) if data.values.numel() else 0.0
    whole = bool(((data.values % 1 == 0) & (data.values >= 0)).all())
    if not likely or not whole or not 1 < top <= images.LEVELS:
        return data
    note = f"{data.note}, levels 0–{images.LEVELS}"
    return replace(data, likelihood="logistic", note=note)
