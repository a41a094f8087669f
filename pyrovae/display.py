"""How results show themselves: one line in a shell, a small table in a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHORT = 60  # characters of a text, and numbers of a sequence in a line, at most
FEW = 3  # items of a sequence that are written out, at most


class Result:
    """A dataclass that is shown by its small parts, and by the shapes of its large ones.

    A subclass is a ``@dataclass(repr=False)``.
    """

    def __repr__(self) -> str:
        parts = [f"{name}={brief(value)}" for name, value in shown(self)]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        return table(type(self).__name__, [(name, brief(value)) for name, value in shown(self)])


def draw(picture: str, *parts: Any, **options: Any) -> Any:
    """A picture by its name in the room of plots.

    That room stands above the results, and is loaded only to draw.
    """
    return getattr(import_module("pyrovae.plots"), picture)(*parts, **options)


def shown(result: Any) -> list[tuple[str, Any]]:
    """The public fields of a dataclass that hold something, with their values."""
    pairs = [(field.name, getattr(result, field.name)) for field in fields(result) if field.repr]
    return [(name, value) for name, value in pairs if value is not None and not _blank(value)]


def by_number(label: Any) -> Any:
    """A key to sort labels by: texts that are numbers come first, by their size.

    >>> sorted(["10", "b", "2", "a"], key=by_number), sorted([10, 2], key=by_number)
    (['2', '10', 'a', 'b'], [2, 10])
    """
    if not isinstance(label, str):
        return label
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    return (math.inf if math.isnan(value) else value), label


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value


def brief(value: Any) -> str:
    """A value in a few words: a number itself, an array's shape, a result's name.

    >>> brief(torch.zeros(3, 2)), brief((1, 2, 3, 4)), brief({"a": 1})
    ('tensor(3, 2)', '4 × int', "{'a'}")
    """
    match value:
        case Tensor() | np.ndarray():
            kind = "tensor" if isinstance(value, Tensor) else "array"
            return f"{kind}({', '.join(map(str, value.shape))})"
        case torch.distributions.Distribution():
            batch, event = tuple(value.batch_shape), tuple(value.event_shape)
            return f"{type(value).__name__}(batch_shape={batch}, event_shape={event})"
        case Mapping():
            return "{" + ", ".join(map(repr, list(value)[:SHORT])) + "}"
        case list() | tuple() if len(value) > FEW:
            return f"{len(value)} × {type(value[0]).__name__}"
        case list() | tuple():
            return f"({', '.join(map(brief, value))})"
        case str() if len(value) > SHORT:
            return repr(f"{value[: SHORT - 1]}…")
        case str():
            return repr(value)
        case Result() if type(value).__str__ is object.__str__:
            return type(value).__name__
        case float():
            return f"{value:.6g}"
        case _:
            return str(value).partition("\n")[0]


def table(title: str, rows: list[tuple[str, str]]) -> str:
    """A table of two columns in HTML."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rows
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"
