"""Matrices of cells in ``.h5ad`` files, which AnnData writes, and in its objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pyrovae.data import TableOptions, as_dataset, default_likelihood, load
from pyrovae.errors import InputError

RANDOM = np.random.default_rng(0)
COUNTS = RANDOM.poisson(2.0, (40, 5)).astype("float32")
COUNTS[:, 0] += 1
LOGS = np.log1p(COUNTS)
CELLS, GENES = [f"cell {i}" for i in range(40)], ["CD3", "CD4", "µ", "MS4A1", "x,y"]


def put(parent: Any, name: str, matrix: Any) -> None:
    """A matrix as the format has it: dense, or in its three parts."""
    if not sparse.issparse(matrix):
        parent[name] = matrix
        return
    group = parent.create_group(name)
    group.attrs["encoding-type"] = f"{matrix.format}_matrix"
    group.attrs["shape"] = matrix.shape
    for part in ("data", "indices", "indptr"):
        group[part] = getattr(matrix, part)


def written(path: Path, x: Any, layers: Mapping[str, Any], index: str = "_index") -> Path:
    with h5py.File(path, "w") as file:
        if x is not None:
            put(file, "X", x)
        group = file.create_group("layers")
        for name, matrix in layers.items():
            put(group, name, matrix)
        for key, names in (("obs", CELLS), ("var", GENES)):
            frame = file.create_group(key)
            frame.attrs["_index"] = index
            frame[index] = np.array(names, dtype=h5py.string_dtype())
    return path


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_the_matrix_and_its_layers_come_with_their_names(tmp_path: Path, make: Any) -> None:
    path = written(tmp_path / "cells.h5ad", make(LOGS), {"counts": make(COUNTS)})
    data = load(path)
    assert np.array_equal(data.values.numpy(), LOGS) and data.values.dtype == torch.float32
    assert data.columns == tuple(GENES) and data.ids == tuple(CELLS)
    assert (default_likelihood(data), data.note) == ("normal", "X: numbers that are no counts")
    layer = load(path, layer="counts")
    assert np.array_equal(layer.values.numpy(), COUNTS)
    assert default_likelihood(layer) == "negative_binomial"
    assert layer.note == "the layer 'counts': whole numbers, taken for counts"
    assert "column 'CD4'" in layer.place((0, 1))


def test_zeros_and_ones_are_no_counts(tmp_path: Path) -> None:
    data = load(written(tmp_path / "cells.h5ad", (COUNTS > 2).astype("int8"), {}))
    assert (default_likelihood(data), data.note) == ("bernoulli", "X: zeros and ones")


def test_an_index_may_have_another_name(tmp_path: Path) -> None:
    path = written(tmp_path / "cells.h5ad", LOGS, {}, index="barcode")
    assert load(path).ids == tuple(CELLS)


class Cells(SimpleNamespace):
    """What an AnnData in memory looks like."""


def test_an_object_in_memory_gives_the_same_as_its_file(tmp_path: Path) -> None:
    path = written(tmp_path / "cells.h5ad", LOGS, {"counts": sparse.csr_matrix(COUNTS)})
    held = Cells(
        X=LOGS,
        layers={"counts": sparse.csr_matrix(COUNTS)},
        obs=pd.DataFrame(index=CELLS),
        var=pd.DataFrame(index=GENES),
    )
    for layer in (None, "counts"):
        one, other = as_dataset(held, layer=layer), load(path, layer=layer)
        assert torch.equal(one.values, other.values.to(one.values))
        assert (one.columns, one.ids, one.likelihood, one.note) == (
            other.columns, other.ids, other.likelihood, other.note
        )  # fmt: skip
    with pytest.raises(
        InputError, match="one of the layers 'counts' in the AnnData; got layer='c'"
    ):
        as_dataset(held, layer="c")


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = written(tmp_path / "cells.h5ad", LOGS, {"counts": COUNTS, "scaled": LOGS})
    with pytest.raises(
        InputError, match=r"layers 'counts', 'scaled' in cells\.h5ad; got layer='raw'"
    ):
        load(path, layer="raw")
    path = written(tmp_path / "layers.h5ad", None, {"counts": COUNTS})
    with pytest.raises(InputError, match=r"matrix X in layers\.h5ad; got none.*layer=: 'counts'"):
        load(path)
    assert len(load(path, layer="counts")) == 40
    np.save(tmp_path / "a.npy", LOGS)
    with pytest.raises(InputError, match=r"an \.h5ad file or an AnnData with layer="):
        load(tmp_path / "a.npy", layer="counts")


def test_a_file_that_is_damaged_or_another_s_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "words.h5ad").write_text("no HDF5")
    with h5py.File(tmp_path / "others.h5ad", "w") as file:
        file["X"] = LOGS
    written(tmp_path / "narrow.h5ad", LOGS[:, :4], {})
    cases = {
        "words": "as AnnData writes it",
        "others": "as AnnData writes it",
        "narrow": "for each",
    }
    for name, said in cases.items():
        with pytest.raises(InputError, match=said) as caught:
            load(tmp_path / f"{name}.h5ad")
        assert "\n" not in str(caught.value)


KINDS = ["B"] * 12 + ["T"] * 27 + [None]
BATCHES = [str(n % 11 + 1) for n in range(40)]


def labelled(path: Path) -> Path:
    """The same cells with columns of obs in each of the ways that AnnData has written them."""
    written(path, LOGS, {})
    with h5py.File(path, "a") as file:
        obs, codes = file["obs"], np.array([("B", "T").index(k) if k else -1 for k in KINDS])
        group = obs.create_group("kind")
        group.attrs["encoding-type"] = "categorical"
        group["codes"] = codes.astype("int8")
        group["categories"] = np.array(["B", "T"], dtype=h5py.string_dtype())
        old = obs.create_group("__categories")
        old["kind before 0.7"] = np.array(["B", "T"], dtype=h5py.string_dtype())
        obs["kind before 0.7"] = codes.astype("int8")
        obs["batch"] = np.array(BATCHES, dtype=h5py.string_dtype())
        obs["number"] = np.array(BATCHES, dtype=int)
        nullable = obs.create_group("nullable")
        nullable["values"], nullable["mask"] = np.arange(40) % 2, np.arange(40) == 39
    return path


@pytest.mark.parametrize(
    ("column", "names", "expected"),
    [
        ("kind", ("B", "T", "(missing)"), KINDS),
        ("kind before 0.7", ("B", "T", "(missing)"), KINDS),
        ("batch", tuple(str(n) for n in range(1, 12)), BATCHES),
        ("number", tuple(str(n) for n in range(1, 12)), BATCHES),
        ("nullable", ("0", "1", "(missing)"), [*(str(n % 2) for n in range(39)), None]),
    ],
)
def test_a_column_of_obs_labels_the_cells_and_is_no_data(
    tmp_path: Path, column: str, names: tuple[str, ...], expected: list[str | None]
) -> None:
    data = load(labelled(tmp_path / "cells.h5ad"), table=TableOptions(label=column))
    assert data.columns == tuple(GENES) and data.label_names == names
    assert data.labels is not None
    found = [names[number] for number in data.labels.tolist()]
    assert found == [label or "(missing)" for label in expected]
    held = Cells(
        X=LOGS, layers={}, obs=pd.DataFrame({column: expected}, index=CELLS),
        var=pd.DataFrame(index=GENES),
    )  # fmt: skip
    same = as_dataset(held, TableOptions(label=column))
    assert same.label_names == names and torch.equal(same.labels, data.labels)


def test_labels_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    path = labelled(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match=r"columns of obs 'batch', 'kind', .* got 'type'"):
        load(path, table=TableOptions(label="type"))
    with pytest.raises(InputError, match="expected no drop= for data that are no table"):
        load(path, table=TableOptions(label="kind", drop=("CD3",)))
