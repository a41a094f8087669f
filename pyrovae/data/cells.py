"""Cells: the matrix of an ``.h5ad`` file, as AnnData writes it, with the names of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.columns import classes_of
from pyrovae.errors import InputError
from pyrovae.extras import needed_for

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Cells:
    """A matrix of observations and variables.

    Args:
        name: what to call it in an error or a report.
        array: shape ``(N, D)``.
        columns: ``var_names``, one for each variable.
        ids: ``obs_names``, one for each row.
        labels: the number of each row's class, shape ``(N,)``, if a column of ``obs`` was named.
        label_names: the classes, in the order of their numbers.
    """

    name: str
    array: Array
    columns: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Array | None = None
    label_names: tuple[str, ...] = ()


def read_h5ad(path: Path, name: str, layer: str | None = None, label: str | None = None) -> Cells:
    """The matrix of an ``.h5ad`` file: ``X``, or one of its layers.

    Args:
        path: the file.
        name: what to call it.
        layer: which of ``layers``; ``X`` by default.
        label: a column of ``obs`` with classes.

    Raises:
        InputError: if the file is none that AnnData writes, or has no such layer or column.
    """
    with needed_for(f"reading {str(path)!r}"):
        import h5py

    try:
        with h5py.File(path) as file:
            matrix = _matrix(file, layer, name)
            names = {key: _index(file[key], name) for key in ("var", "obs")}
            classes = (None, ()) if label is None else classes_of(*_column(file, label, name))
    except (OSError, KeyError) as error:
        raise InputError(
            f"expected a file as AnnData writes it; got {str(path)!r}: {str(error).strip()!r}. "
            "Write it again: adata.write_h5ad(...)."
        ) from error
    if matrix.dtype.kind not in "buif" or matrix.shape != (len(names["obs"]), len(names["var"])):
        raise InputError(
            f"expected a matrix of numbers, a row for each of {len(names['obs']):,} obs and a "
            f"column for each of {len(names['var']):,} var, in {name}; got {matrix.dtype} of shape "
            f"{matrix.shape}. Name another layer."
        )
    return Cells(name, matrix, names["var"], names["obs"], *classes)


def _matrix(file: Any, layer: str | None, name: str) -> Array:
    """The matrix, dense."""
    layers = list(file.get("layers", ()))
    if layer is not None and layer not in layers:
        raise InputError(
            f"expected one of the layers {', '.join(map(repr, layers)) or '(none)'} in {name}; got "
            f"layer={layer!r}. Name one, or leave it out for X."
        )
    if layer is None and "X" not in file:
        raise InputError(
            f"expected a matrix X in {name}; got none. Name one of the layers with layer=: "
            f"{', '.join(map(repr, layers)) or '(none)'}."
        )
    held = file["X"] if layer is None else file["layers"][layer]
    if not hasattr(held, "keys"):
        return np.asarray(held[()])
    from scipy import sparse

    kind = str(held.attrs["encoding-type"])
    if kind not in ("csr_matrix", "csc_matrix"):
        raise KeyError(f"a matrix of the kind {kind}")
    make = sparse.csr_matrix if kind == "csr_matrix" else sparse.csc_matrix
    parts = tuple(held[part][()] for part in ("data", "indices", "indptr"))
    return np.asarray(make(parts, shape=tuple(held.attrs["shape"])).toarray())


def _index(frame: Any, name: str) -> tuple[str, ...]:
    """The names of the rows of a table of the file."""
    if "_index" not in frame.attrs:
        raise KeyError(f"a table {frame.name} without an index")
    held = frame[str(frame.attrs["_index"])]
    values = held["values"][()] if hasattr(held, "keys") else held[()]
    return tuple(map(_text, values))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _column(file: Any, label: str, name: str) -> tuple[Array, Array]:
    """The texts of a column of obs, and where it has a value, each shape ``(N,)``."""
    obs = file["obs"]
    index = str(obs.attrs["_index"])
    check_column(label, [n for n in obs if n not in (index, "__categories")], name)
    held = obs[label]
    parts = held if hasattr(held, "keys") else {}
    if "codes" in parts:  # a categorical
        codes, categories = parts["codes"][()], parts["categories"][()]
    elif not parts and label in obs.get("__categories", ()):  # one of AnnData before 0.7
        codes, categories = held[()], obs["__categories"][label][()]
    else:
        values = parts["values"][()] if parts else held[()]
        missing = parts["mask"][()] if "mask" in parts else values != values
        return np.array(list(map(_text, values)), object), ~np.asarray(missing, bool)
    known = np.append(np.array(list(map(_text, categories)), object), "")
    return known[codes], codes >= 0


def check_column(label: str, names: Iterable[str], name: str) -> None:
    """Raise unless there is a column of that name."""
    if label not in (known := tuple(names)):
        raise InputError(
            f"expected one of the columns of obs {', '.join(map(repr, known)) or '(none)'} in "
            f"{name} as labels; got {label!r}. Name one, or leave it out."
        )
