"""Reading data: what is read is what was written, and bad input is one line of error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from pyrovae.data.datasets import (
    LIKELIHOODS,
    Dataset,
    as_dataset,
    check,
    check_values,
    default_likelihood,
    load,
    numbers_of_parts,
    split,
)
from pyrovae.errors import InputError
from pyrovae.models.likelihoods import LIKELIHOODS as DECODERS

TABLE = np.arange(60.0).reshape(30, 2) / 7


def write_csv(path: Path, **options: object) -> Path:
    pd.DataFrame(TABLE, columns=["age", "height"]).to_csv(path, index=False, **options)  # type: ignore[call-overload]
    return path


def text_csv(path: Path, first: str, *replaced: tuple[int, str]) -> Path:
    """A file with 30 rows of two columns, some replaced; row 1 is below the first line."""
    lines = [first, *(f"{a},{b}" for a, b in TABLE)]
    for row, line in replaced:
        lines[row] = line
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# -- what is read is what was written --------------------------------------------------------------


def test_digits_are_the_images_of_scikit_learn_as_intensities() -> None:
    data = load("digits")
    assert data.values.dtype == torch.float32
    assert data.image and data.event_shape == (8, 8)
    torch.testing.assert_close(data.values.double() * 16, torch.from_numpy(load_digits().images))
    assert data.labels is not None and data.labels.tolist() == load_digits().target.tolist()


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", ">f8", "uint8", "int64", "bool"]
)
def test_npy_of_any_real_dtype_reads_as_float32_if_that_is_exact(
    tmp_path: Path, dtype: str
) -> None:
    array = (np.arange(120).reshape(30, 2, 2) % 5).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data = load(tmp_path / "a.npy")
    assert data.values.dtype == torch.float32
    assert data.values.numpy().tolist() == array.astype(float).tolist()


@pytest.mark.parametrize(
    "array",
    [
        TABLE,
        TABLE * 1e-27,
        TABLE * 1e33,
        TABLE + 1e9,
        np.arange(60).reshape(30, 2) + 1_700_000_000,
        TABLE.astype(np.longdouble),
    ],
)
def test_no_digit_that_float64_holds_is_lost(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    values = load(tmp_path / "a.npy").values
    assert values.dtype == torch.float64
    assert values.numpy().tolist() == array.astype(np.float64).tolist()
    pd.DataFrame(array, columns=["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    assert load(tmp_path / "t.csv").values.tolist() == values.tolist()


def test_rows_that_only_float64_tells_apart_are_refused_in_float32(tmp_path: Path) -> None:
    seconds = np.arange(60)[:, None] + 1_700_000_000
    np.save(tmp_path / "a.npy", seconds)
    data = load(tmp_path / "a.npy")
    assert len(data.values.unique()) == 60
    with pytest.raises(InputError, match="float32 can tell apart"):
        data.single()
    np.save(tmp_path / "a.npy", seconds - seconds.mean())
    assert load(tmp_path / "a.npy").single().values.dtype == torch.float32


def test_one_axis_is_one_column(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE[:, 0])
    assert load(tmp_path / "a.npy").values.shape == (30, 1)


def test_npz_takes_the_only_the_named_or_the_usual_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", codes=TABLE)
    np.savez(tmp_path / "two.npz", x_train=TABLE, y_train=np.arange(30), x_test=TABLE + 1)
    assert load(tmp_path / "one.npz").values.shape == (30, 2)
    usual, named = load(tmp_path / "two.npz"), load(f"{tmp_path}/two.npz:x_test")
    torch.testing.assert_close(named.values, usual.values + 1)
    assert usual.labels is not None and usual.labels.tolist() == list(range(30))
    assert named.labels is None and named.name == "two.npz:x_test"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_with_a_header_keeps_its_column_names(tmp_path: Path, separator: str) -> None:
    data = load(write_csv(tmp_path / "t.csv", sep=separator))
    assert data.columns == ("age", "height")
    np.testing.assert_allclose(data.values.numpy(), TABLE, rtol=1e-6)


def test_csv_without_a_header_loses_no_row(tmp_path: Path) -> None:
    data = load(write_csv(tmp_path / "t.csv", header=False))
    assert data.columns == ("1", "2")
    np.testing.assert_allclose(data.values.numpy(), TABLE, rtol=1e-6)


def test_csv_headed_by_column_numbers_has_a_header(tmp_path: Path) -> None:
    pd.DataFrame(TABLE).to_csv(tmp_path / "t.csv", index=False)
    assert len(load(tmp_path / "t.csv")) == 30


def test_csv_from_a_spreadsheet(tmp_path: Path) -> None:
    """A byte order mark, quotes, spaces after commas and Windows line ends."""
    text = '"age", "height"\r\n' + "".join(f"{a}, {b}\r\n" for a, b in TABLE)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = load(tmp_path / "t.csv")
    assert data.columns == ("age", "height")
    np.testing.assert_allclose(data.values.numpy(), TABLE, rtol=1e-6)


def test_true_and_false_are_one_and_zero(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [True, False] * 15, "b": [1, 0] * 15})
    frame.to_csv(tmp_path / "t.csv", index=False)
    values = load(tmp_path / "t.csv").values
    assert torch.equal(values[:, 0], values[:, 1])


def test_parquet_equals_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame(TABLE, columns=["age", "height"]).assign(count=pd.array([1] * 30, "Int64"))
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    parquet, csv = load(tmp_path / "t.parquet"), load(tmp_path / "t.csv")
    assert parquet.columns == csv.columns
    torch.testing.assert_close(parquet.values, csv.values)


# -- bad input is one line of error ----------------------------------------------------------------


def bad_npy(value: object, *index: int) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        array = TABLE.copy()
        array[index] = value
        np.save(folder / "bad.npy", array)
        return str(folder / "bad.npy")

    return make


def bad_array(array: np.ndarray) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.save(folder / "bad.npy", array, allow_pickle=True)
        return str(folder / "bad.npy")

    return make


def bad_csv(first: str, *replaced: tuple[int, str]) -> Callable[[Path], str]:
    return lambda folder: str(text_csv(folder / "bad.csv", first, *replaced))


def bad_bytes(name: str, content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


def bad_npz(**arrays: np.ndarray) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / "bad.npz", **arrays)  # type: ignore[arg-type]
        return str(folder / "bad.npz")

    return make


def bad_frame(**columns: object) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        pd.DataFrame(columns).to_parquet(folder / "bad.parquet")
        return str(folder / "bad.parquet")

    return make


BAD_SOURCES = {
    "no such file": (lambda f: str(f / "none.npy"), ["does not exist", "none.npy"]),
    "no such name": (lambda f: "mnist", ["'digits' or a file", "'mnist'"]),
    "directory": (lambda f: str(f), ["got a directory"]),
    "suffix": (bad_bytes("a.xlsx", b"1"), [".npy, .npz, .csv, .parquet", "'.xlsx'"]),
    "not npy": (bad_bytes("a.npy", b"hello"), ["readable .npy", "complete"]),
    "empty npy": (bad_bytes("a.npy", b""), ["readable .npy"]),
    "not npz": (bad_bytes("a.npz", b"PK\x03\x04junk"), ["readable .npz"]),
    "not parquet": (bad_bytes("a.parquet", b"hello"), ["readable .parquet"]),
    "binary csv": (bad_bytes("a.csv", b"\xff\xfe\x00\x81" * 30), ["readable .csv"]),
    "empty csv": (bad_bytes("a.csv", b"\n\n"), ["empty file"]),
    "pickled": (
        bad_array(np.array([{}] * 30, dtype=object)),
        ["real numbers", "pickled Python objects"],
    ),
    "array inf": (bad_npy(-np.inf, 3, 0), ["finite", "got -inf", "row 3, column 0"]),
    "too large": (bad_npy(1e101, 4, 1), ["below 1e+100", "row 4, column 1", "power of ten"]),
    "too close": (bad_array(TABLE * 1e-150), ["vary by more than 1e-100", "row 0, column 0"]),
    "nanoseconds": (
        bad_array(np.arange(30)[:, None] + 1_700_000_000_000_000_000),
        ["float64 can tell apart", "entry (0,) of bad.npy", "Subtract its mean"],
    ),
    "image NaN": (
        bad_array(np.where(np.arange(270).reshape(30, 3, 3) == 100, np.nan, 1.0)),
        ["row 11, position (0, 1)"],
    ),
    "few rows": (bad_array(TABLE[:19]), ["at least 20 rows", "got 19"]),
    "no rows": (bad_array(TABLE[:0]), ["at least 20 rows", "got 0"]),
    "no columns": (bad_array(TABLE[:, :0]), ["at least one column"]),
    "scalar": (bad_array(np.array(1.0)), ["single value"]),
    "constant": (bad_array(np.ones((30, 2))), ["differ", "30 times"]),
    "string array": (bad_array(np.array([["a", "b"]] * 30)), ["real numbers", "strings", "'a'"]),
    "complex array": (bad_array(TABLE * 1j), ["real numbers", "complex"]),
    "records": (bad_array(np.zeros(30, dtype=[("a", float)])), ["real numbers"]),
    "several arrays": (bad_npz(a=TABLE, b=TABLE), ["a, b", "bad.npz:a"]),
    "no arrays": (bad_npz(), ["(none)"]),
    "wrong array": (lambda f: bad_npz(a=TABLE)(f) + ":b", ["'b', which is not among them"]),
    "csv string": (bad_csv("a,b", (7, "1,tall")), ["column 'b': 'tall' among numbers, in row 7"]),
    "csv empty row": (bad_csv("a,b", (9, ",")), ["no value in any column in row 9"]),
    "csv inf": (bad_csv("a,b", (9, "inf,1")), ["finite", "got inf", "row 9, column 'a'"]),
    "csv short row": (bad_csv("a,b", (9, "1")), ["2 cells in each row", "got 1: 1.", "Write ','"]),
    "csv long row": (bad_csv("a,b", (9, "1,2,3")), ["readable .csv", "line 10"]),
    "csv long rows": (bad_csv("a"), ["more cells than the header"]),
    "csv mixed header": (bad_csv("id,2020"), ["got both: id, 2020", "such as id, c2020"]),
    "csv two bad cells": (
        bad_csv("a,b", (3, "x,1"), (5, "y,z")),
        ["column 'a': 'x' among numbers, in rows 3, 5;", "column 'b': 'z' among numbers, in row 5"],
    ),
    "csv ids": (
        bad_csv("a,b", *((i, f"1,n{i}") for i in range(1, 31))),
        ["column 'b': 30 different texts in 30 rows", "ids of rows (id=)"],
    ),
    "csv the same text": (
        bad_csv("a,b", *((i, f"{i},n") for i in range(1, 31))),
        ["one and the same text in every row"],
    ),
    "csv no such date": (
        bad_csv("a,b", *((i, f"{i},2020-02-{i:02}") for i in range(1, 31))),
        ["column 'b': a date that there is not"],
    ),
    "csv nanoseconds": (
        bad_csv("a,t", *((i, f"1,{1_700_000_000_000_000_000 + i}") for i in range(1, 31))),
        ["float64 can tell apart", "column 't' of bad.csv"],
    ),
    "parquet string": (
        bad_frame(a=range(30), b=["1"] * 29 + ["x"]),
        ["column 'b': 'x' among numbers, in row 30"],
    ),
    "parquet missing": (bad_frame(a=[1.0] * 29 + [None]), ["no value", "row 30"]),
    "parquet lists": (bad_frame(a=[[1, 2]] * 30), ["column 'a': a ndarray in rows 1, 2, 3 and 27"]),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_one_line_of_error(tmp_path: Path, case: str) -> None:
    make, words = BAD_SOURCES[case]
    with pytest.raises(InputError) as caught:
        load(make(tmp_path))
    message = str(caught.value)
    assert message.startswith("expected ") and "; got " in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    np.save(tmp_path / "a.npy", TABLE)
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(InputError, match=r"a\.npy': Permission denied\. .*may read it"):
        load(tmp_path / "a.npy")


# -- likelihoods -----------------------------------------------------------------------------------


def images(high: int) -> Dataset:
    grey = torch.arange(30 * 15).reshape(30, 3, 5) % (high + 1)
    return Dataset("grey", grey.to(torch.float32))


@pytest.mark.parametrize(
    ("values", "likelihood", "words"),
    [
        (
            images(255).values,
            "bernoulli",
            ["in [0, 1]", "got 2", "row 0", "Divide the values by 255"],
        ),
        (images(16).values, "bernoulli", ["Divide the values by 16"]),
        (images(1).values - 0.5, "bernoulli", ["got -0.5", "Scale the values"]),
        (images(1).values + 0.5, "categorical", ["0, 1, 2, …", "got 0.5"]),
        (images(3).values - 1, "categorical", ["got -1", "Number the categories from 0"]),
        (images(1).values * 5000, "categorical", ["at most 1,024 categories", "got 5,001"]),
        (images(1).values, "gaussian", ["bernoulli, normal, categorical", "'gaussian'"]),
        (images(1).values, "Bernouli", ["Did you mean 'bernoulli'?"]),
    ],
)
def test_values_that_do_not_suit_the_likelihood(
    values: torch.Tensor, likelihood: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        check(Dataset("d", values), likelihood)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("values", "likelihoods"),
    [
        (images(1).values, ["bernoulli", "categorical", "normal"]),
        (images(1).values / 2, ["bernoulli", "normal"]),
        (images(255).values, ["categorical", "normal"]),
        (images(3).values - 1.5, ["normal"]),
    ],
)
def test_values_that_suit(values: torch.Tensor, likelihoods: list[str]) -> None:
    for likelihood in likelihoods:
        check(Dataset("d", values), likelihood)


def test_an_unknown_likelihood_is_found_before_the_file_is_read() -> None:
    with pytest.raises(InputError, match="as likelihood"):
        load("no-such-file.npy", likelihood="poisson")


def test_default_likelihood_never_fails_its_own_check() -> None:
    for data in (images(1), images(255), Dataset("d", images(1).values - 0.5), load("digits")):
        check(data, default_likelihood(data))
    assert default_likelihood(images(255)) == "normal"
    grey = Dataset("d", torch.rand(30, 8, 8))
    assert default_likelihood(grey) == "normal"
    assert default_likelihood(Dataset("d", grey.values.round())) == "bernoulli"


def test_every_likelihood_has_a_decoder() -> None:
    assert {*LIKELIHOODS} - {"mixed"} == {*DECODERS}  # a mixed one is made of several of these


def test_counts_are_checked() -> None:
    counts = torch.randint(0, 50, (40, 4)).float() + 1
    check(Dataset("d", counts), "negative_binomial")
    for wrong in (-1.0, 0.5):
        spoilt = counts.clone()
        spoilt[3, 2] = wrong
        with pytest.raises(InputError, match=rf"expected counts .* got {wrong:g} .*neither"):
            check(Dataset("d", spoilt), "negative_binomial")
    empty = counts.clone()
    empty[7] = 0
    with pytest.raises(InputError, match="a count above 0 in each row"):
        check(Dataset("d", empty), "negative_binomial")


def test_grey_levels_are_checked() -> None:
    check(Dataset("d", torch.arange(160.0).view(40, 4)), "logistic")
    with pytest.raises(InputError, match="grey levels"):
        check(Dataset("d", torch.arange(160.0).view(40, 4) * 2), "logistic")


# -- splitting -------------------------------------------------------------------------------------


@given(n=st.integers(20, 200), seed=st.integers(0, 2**63 - 1))
def test_split_is_a_partition_and_repeats_by_seed(n: int, seed: int) -> None:
    data = Dataset("d", torch.arange(float(n))[:, None], labels=torch.arange(n))
    parts = split(data, seed=seed)
    rows = torch.cat([part.values for part in parts]).flatten()
    assert sorted(rows.tolist()) == list(range(n))
    for part, repetition in zip(parts, split(data, seed=seed), strict=True):
        assert torch.equal(part.values, repetition.values)
        assert part.labels is not None and torch.equal(part.labels, part.values.flatten().long())


def test_the_numbers_of_the_parts_are_those_of_their_rows() -> None:
    data = Dataset("d", torch.arange(50.0)[:, None])
    numbers = numbers_of_parts(50, seed=3)
    for part, rows in zip(split(data, seed=3), numbers, strict=True):
        assert torch.equal(part.values[:, 0], rows.float())


def test_rows_may_be_few_and_of_any_kind(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5], "b": [2.0]})
    frame.to_csv(tmp_path / "one.csv", index=False)
    for rows in (frame, tmp_path / "one.csv", str(tmp_path / "one.csv")):
        found = as_dataset(rows)
        assert found.columns == ("a", "b") and found.values.tolist() == [[1.5, 2.0]]
        check_values(found, "normal")
    assert as_dataset(np.ones(3)).event_shape == (1,)
    assert as_dataset(torch.ones(2, 4, 4)).event_shape == (4, 4)
    with pytest.raises(InputError, match="a single number"):
        as_dataset(torch.tensor(1.0))
    with pytest.raises(InputError, match=r"values in \[0, 1\].*got 1\.5.*column 'a'"):
        check_values(as_dataset(frame), "bernoulli")


def test_split_depends_on_the_seed_and_leaves_the_global_one_alone() -> None:
    data, state = load("digits"), torch.get_rng_state()
    assert not torch.equal(split(data, seed=1).train.values, split(data, seed=2).train.values)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.2, 0.0), (0.9, 0.1), (-0.2, 0.1), (0.8, 0.9)])
def test_split_refuses_empty_parts(shares: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="at least 2"):
        split(load("digits"), held_out=shares[0], validation=shares[1])
