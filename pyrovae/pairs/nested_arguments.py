"""Arguments that are lists or dicts, turned into the tuple of tensors that the measures take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from pyrovae.errors import InputError
from pyrovae.pairs.restore import PyroFunction


class WithArguments(NamedTuple):
    """A pair that takes tensors as its arguments, and a function that lays out data for it.

    Args:
        model, guide: called with the tensors that ``rows`` returns.
        rows: turns data in the form of the original arguments into a tuple of tensors or arrays,
            and a ``Dataset`` of such items into one of tuples.
    """

    model: PyroFunction
    guide: PyroFunction
    rows: Callable[[Any], Any]


def with_arguments(model: PyroFunction, guide: PyroFunction, like: Any) -> WithArguments:
    """A pair whose arguments are lists or dicts as one of tensors, which every function here takes.

    Args:
        model, guide: called as ``model(like)``, or as ``model(*like)`` if that is a tuple.
        like: arguments as the pair takes them: a dict, a list, or a tuple of these and of tensors
            and arrays, nested in any way, all with one row for each datum. Anything else (``None``,
            a number, a text) is a constant, which the pair gets as it is.

    Returns:
        model, guide, and ``rows``, to which every data set has to be given first.

    Raises:
        InputError: if there is no tensor or array; and by ``rows``, for data with other keys,
            lengths or constants.

    >>> import pyro, pyro.distributions as dist, pyrovae as pv, torch
    >>> def guide(batch):
    ...     with pyro.plate("data", len(batch["x"])):
    ...         pyro.sample("z", dist.Normal(batch["x"] + batch["shift"], 1.0).to_event(1))
    >>> train = {"x": torch.zeros(5, 2), "shift": torch.ones(5, 2)}
    >>> _, by_tensor, rows = pv.with_arguments(guide, guide, train)
    >>> pv.aggregate(by_tensor, rows(train))
    AggregatedPosterior(components=5, event_shape=(2,), family=Normal)
    """
    form = _form(like)
    if not _holds_rows(form):
        raise InputError(
            f"expected tensors or arrays among the arguments; got {like!r}. Give the data as the "
            "pair takes it."
        )
    return WithArguments(_ByTensor(model, form), _ByTensor(guide, form), _Rows(form))


class _Marker:
    """Marks the place of a tensor in nested arguments."""

    def __repr__(self) -> str:
        return "a tensor"

    def __reduce__(self) -> str:
        return "ROWS"


ROWS = _Marker()


class _ByTensor:
    """A function of nested arguments, to be called with their tensors."""

    def __init__(self, function: PyroFunction, form: Any) -> None:
        self.fn, self.form = function, form

    def __call__(self, *tensors: Tensor) -> Any:
        arguments = _filled(self.form, iter(tensors))
        return self.fn(*arguments) if isinstance(arguments, tuple) else self.fn(arguments)


class _Rows:
    """Lays out data of one form as a tuple."""

    def __init__(self, form: Any) -> None:
        self.form = form

    def __call__(self, data: Any) -> Any:
        if isinstance(data, Dataset):
            return _Items(data, self)
        return tuple(_tensors(self.form, data, "the data"))


class _Items(Dataset[Any]):
    """A data set of nested items as one of tuples."""

    def __init__(self, dataset: Any, rows: _Rows) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.rows(self.dataset[index])


def _form(value: Any) -> Any:
    """Nested arguments with a marker in the place of every tensor and array."""
    if isinstance(value, Mapping):
        return {name: _form(value[name]) for name in value}
    if isinstance(value, tuple | list):
        return _like(value, [_form(part) for part in value])
    return ROWS if isinstance(value, Tensor | np.ndarray) else value


def _like(value: Any, parts: Sequence[Any]) -> Any:
    """Other parts as a list, tuple or named tuple, of the type that ``value`` has."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _holds_rows(form: Any) -> bool:
    if isinstance(form, dict):
        return any(map(_holds_rows, form.values()))
    return any(map(_holds_rows, form)) if isinstance(form, tuple | list) else form is ROWS


def _tensors(form: Any, data: Any, where: str) -> Iterator[Any]:
    """The tensors and arrays of nested data, in the order of the markers of a form."""
    if isinstance(form, dict):
        if not isinstance(data, Mapping) or data.keys() != form.keys():
            raise _mismatch(f"a dict of {list(form)}", where, data)
        for name in form:
            yield from _tensors(form[name], data[name], f"{where}[{name!r}]")
    elif isinstance(form, tuple | list):
        if not isinstance(data, tuple | list) or len(data) != len(form):
            raise _mismatch(f"a {type(form).__name__} of {len(form)} parts", where, data)
        for number, part in enumerate(form):
            yield from _tensors(part, data[number], f"{where}[{number}]")
    elif form is ROWS:
        if not isinstance(data, Tensor | np.ndarray | np.generic | int | float):
            raise _mismatch("a tensor or an array", where, data)
        yield data
    elif isinstance(data, Tensor | np.ndarray) or (data is not form and data != form):
        raise _mismatch(f"the constant {form!r}", where, data)


def _mismatch(expected: str, where: str, data: Any) -> InputError:
    kind = type(data).__name__
    if isinstance(data, Mapping):
        kind = f"a dict of {list(data)}"
    elif isinstance(data, tuple | list):
        kind = f"a {kind} of {len(data)} parts"
    return InputError(
        f"expected {expected} in {where}, as in the arguments the pair was wrapped with; got "
        f"{kind}. Give all data sets one form: the same keys, lengths and constants, and in place "
        "of a DataLoader its dataset."
    )


def _filled(form: Any, tensors: Iterator[Tensor]) -> Any:
    """Nested arguments with tensors in the place of the markers."""
    if isinstance(form, dict):
        return {name: _filled(part, tensors) for name, part in form.items()}
    if isinstance(form, tuple | list):
        return _like(form, [_filled(part, tensors) for part in form])
    return next(tensors) if form is ROWS else form
