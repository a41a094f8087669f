"""Cells: the matrix of an ``.h5ad`` file, as AnnData writes it, with the names of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    """

    name: str
    array: Array
    columns: tuple[str, ...]
    ids: tuple[str, ...]


def read_h5ad(path: Path, name: str, layer: str | None = None) -> Cells:
    """The matrix of an ``.h5ad`` file: ``X``, or one of its layers.

    Args:
        path: the file.
        name: what to call it.
        layer: which of ``layers``; ``X`` by default.

    Raises:
        InputError: if the file is none that AnnData writes, or has no such layer.
    """
    with needed_for(f"reading {str(path)!r}"):
        import h5py

    try:
        with h5py.File(path) as file:
            matrix = _matrix(file, layer, name)
            names = {key: _index(file[key], name) for key in ("var", "obs")}
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
    return Cells(name, matrix, names["var"], names["obs"])


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
    return tuple(v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values)
