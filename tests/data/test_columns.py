"""Tables with texts, truth values, dates and missing cells: to numbers and back, nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.data import check, default_likelihood, load, read_table, with_obs_mask
from pyrovae.errors import InputError

ROWS = 40
PEOPLE = pd.DataFrame(
    {
        "name": [f"person {i}" for i in range(ROWS)],
        "age": [np.nan if i % 7 == 3 else 20.5 + i for i in range(ROWS)],
        "children": [i % 4 for i in range(ROWS)],
        "town": [None if i % 11 == 5 else ("Rome", "Oslo", "Bonn")[i % 3] for i in range(ROWS)],
        "owner": [i % 2 == 0 for i in range(ROWS)],
        "since": pd.date_range("1969-12-20", periods=ROWS, freq="D"),
        "class": ["b" if i % 5 else "a" for i in range(ROWS)],
    }
)
DATA = ["age", "children", "town", "owner", "since"]


def written(folder: Path, **options: Any) -> Path:
    PEOPLE.to_csv(folder / "people.csv", index=False, **options)
    return folder / "people.csv"


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
def test_a_table_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    source: Any = PEOPLE
    if kind == "csv":
        source = written(tmp_path)
    if kind == "parquet":
        PEOPLE.to_parquet(tmp_path / "people.parquet")
        source = tmp_path / "people.parquet"
    data = read_table(source, id="name", label="class")
    assert data.columns == tuple(DATA) and data.ids == tuple(PEOPLE["name"])
    assert data.info is not None and data.labels is not None
    assert [column.kind for column in data.info.columns] == [
        "real", "real", "categorical", "boolean", "date",
    ]  # fmt: skip
    assert [data.label_names[number] for number in data.labels] == list(PEOPLE["class"])
    assert data.info.categories == {DATA[2]: data.info.columns[2].categories}
    mask = PEOPLE[DATA].notna().to_numpy()
    assert data.obs_mask is not None and np.array_equal(data.obs_mask.numpy(), mask)
    expected = PEOPLE[DATA].astype({"children": float, "since": "datetime64[s]"})
    found = data.frame()
    for column in DATA:
        there = PEOPLE[column].notna()
        assert list(found[column][there]) == list(expected[column][there])
        assert bool(found[column][~there].isna().all())
    assert data.values[0, 4] == -12  # days before 1970-01-01


def test_missing_cells_are_zeros_that_a_mask_hides() -> None:
    data = read_table(PEOPLE[DATA])
    assert data.obs_mask is not None
    assert bool((data.values[~data.obs_mask] == 0).all()) and not bool(data.obs_mask.all())
    some = data.rows(torch.tensor([3, 0]))
    assert some.obs_mask is not None and some.obs_mask[:, 0].tolist() == [False, True]
    values, mask = with_obs_mask(np.where(data.obs_mask, data.values, np.nan))
    assert torch.equal(values, data.values.double()) and torch.equal(mask, data.obs_mask)


def test_each_kind_of_table_has_its_likelihood(tmp_path: Path) -> None:
    assert default_likelihood(read_table(PEOPLE[DATA])) == "mixed"
    assert default_likelihood(read_table(PEOPLE[["children"]])) == "normal"
    assert default_likelihood(read_table(PEOPLE[["owner"]])) == "bernoulli"
    assert default_likelihood(read_table(PEOPLE[["owner", "children"]])) == "mixed"
    for likelihood in ("normal", "bernoulli", "categorical"):
        with pytest.raises(InputError, match=r"likelihood 'mixed'.*missing cells"):
            check(read_table(PEOPLE[["age", "owner"]]), likelihood)
    with pytest.raises(InputError, match=r"vary.*'one'.*drop="):
        check(read_table(PEOPLE[DATA].assign(one=1.0)), "mixed")
    array = np.random.default_rng(0).normal(size=(30, 2))
    array[16, 1] = np.nan
    np.save(tmp_path / "a.npy", array)
    found = load(tmp_path / "a.npy", likelihood="mixed")
    assert found.obs_mask is not None and int((~found.obs_mask).sum()) == 1


def test_options_lay_out_a_file(tmp_path: Path) -> None:
    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 3)), columns=list("abc"))
    numbers.to_csv(tmp_path / "t.csv", sep=";")
    ids = load_with(tmp_path, index=True)
    assert ids.ids == tuple(map(str, range(30))) and ids.columns == ("a", "b", "c")
    assert load_with(tmp_path, index=False).columns == ("Unnamed: 0", "a", "b", "c")
    assert load_with(tmp_path, index=True, columns=["c", "a"]).columns == ("c", "a")
    assert load_with(tmp_path, index=True, drop=["b"]).columns == ("a", "c")
    numbers.to_csv(tmp_path / "t.csv", index=False, header=["2001", "2002", "2003"], sep="|")
    assert load_with(tmp_path, header=True, delimiter="|").columns == ("2001", "2002", "2003")
    without = load_with(tmp_path, header=False, delimiter="|")
    assert len(without) == 31 and without.columns == ("1", "2", "3")


def load_with(folder: Path, **options: Any) -> Any:
    return read_table(folder / "t.csv", **options)


REFUSED = {
    "a column that is not there": ({"drop": ["agee"]}, "'agee', which it does not have. Did you"),
    "all that is wrong": ({}, "column 'name': 40 different texts"),
    "two faults": ({"columns": ["name", "bad"]}, "among numbers, in row 3 (rows"),
    "two ids": ({"index": True, "id": "age"}, "one column of ids"),
    "a long delimiter": ({"delimiter": ", "}, "one character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_table_lacks_is_said_with_what_helps(tmp_path: Path, case: str) -> None:
    options, words = REFUSED[case]
    bad = [("x" if i == 2 else i) for i in range(ROWS)]
    PEOPLE.assign(bad=bad).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError) as caught:
        load_with(tmp_path, **options)
    assert words in str(caught.value)


def test_options_of_tables_are_refused_for_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((30, 2)))
    with pytest.raises(InputError, match=r"no drop= for a \.npy file"):
        read_table(tmp_path / "a.npy", drop=["a"])
    with pytest.raises(InputError, match=r"no id= for data that are no table"):
        read_table(np.ones((30, 2)), id="a")
