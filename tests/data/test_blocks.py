"""Rows that stay in their file come a block at a time, as they would come from an array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.data import all_rows, as_blocks
from pyrovae.errors import InputError

X = np.random.default_rng(0).standard_normal((25, 3))


def rows(data: Any, size: int = 10) -> Tensor:
    """All rows in one tensor, of which no block has more than so many."""
    blocks = as_blocks(data, size)
    found = [batch[0] for batch in blocks.ordered()]
    assert max(map(len, found)) <= size and sum(map(len, found)) == blocks.count
    return torch.cat(found)


def parquet(path: Path, **columns: Any) -> Path:
    pytest.importorskip("pyarrow")
    import pandas as pd

    pd.DataFrame(columns).to_parquet(path, row_group_size=7)
    return path


def hdf5(path: Path, array: Any) -> Any:
    file = pytest.importorskip("h5py").File(path, "w")
    file["x"] = array
    return file["x"]


def test_blocks_are_the_rows_in_their_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    table = parquet(tmp_path / "x.parquet", a=X[:, 0], b=X[:, 1], c=X[:, 2])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for data in (X, tmp_path / "x.npy", str(table), mapped, hdf5(tmp_path / "x.h5", X)):
        assert torch.equal(rows(data), all_rows(X)[0])
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=4, shuffle=True)
    assert torch.equal(rows(loader), torch.from_numpy(X))


def test_numbers_get_the_dtype_that_they_get_in_memory(tmp_path: Path) -> None:
    for dtype in (np.float32, np.int64, np.uint8, ">f8", bool):
        array = (10 * X).astype(dtype)
        np.save(tmp_path / "x.npy", array)
        expected = all_rows(array)[0]
        for data in (tmp_path / "x.npy", hdf5(tmp_path / f"{array.dtype.name}.h5", array)):
            found = rows(data)
            assert found.dtype == expected.dtype and torch.equal(found, expected)
    counts = parquet(tmp_path / "x.parquet", a=[1, 2], b=[3, 4])
    assert rows(counts).dtype == torch.get_default_dtype()  # as those of a DataFrame


def test_several_arguments_are_cut_alike(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    pairs = list(as_blocks((mapped, torch.arange(25)), 10).ordered())
    assert [len(y) for _, y in pairs] == [10, 10, 5]
    assert torch.equal(torch.cat([y for _, y in pairs]), torch.arange(25))
    with pytest.raises(InputError, match=r"same number of rows .* \[25, 24\]"):
        as_blocks((mapped, torch.arange(24)), 10)


def test_the_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    wrong = X.copy()
    wrong[13, 1] = np.nan
    np.save(tmp_path / "x.npy", wrong)
    with pytest.raises(InputError, match="nan in row 13"):
        rows(tmp_path / "x.npy")


def test_a_table_that_is_not_all_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one row"):
        as_blocks(parquet(tmp_path / "x.parquet", x=np.zeros(0)), 10)
    for column, says in ((["a", "b"], "string"), ([1.0, None], "empty cells")):
        path = parquet(tmp_path / "x.parquet", x=[0.0, 1.0], y=column)
        with pytest.raises(InputError, match=rf"{says} in the column 'y'"):
            rows(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_text("nothing")
    (tmp_path / "x.parquet").write_text("nothing")
    for name in ("x.npy", "x.parquet", "missing.npy", "x.csv"):
        with pytest.raises(InputError, match=r"expected a \.npy or \.parquet file"):
            as_blocks(tmp_path / name, 10)


def test_a_loader_whose_rows_can_not_be_counted_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=None)
    with pytest.raises(InputError, match="rows can be counted"):
        as_blocks(loader, 10)
    assert len(rows(loader.dataset)) == 25  # the remedy
