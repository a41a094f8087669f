"""Containers of numbers become the rows that they hold, or one error that says why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.data.arrays import SparseRows, as_rows, narrowed
from pyrovae.data.batches import all_rows, as_batches
from pyrovae.testing import linear_gaussian_vae

X = np.random.default_rng(0).normal(size=(30, 4)) * (np.arange(4) != 2)
COUNTS = np.random.default_rng(1).poisson(0.7, size=(30, 4))


@dataclass
class AnnData:
    """A stand-in with the attributes by which the library recognises an AnnData."""

    X: Any
    layers: dict[str, Any] = field(default_factory=dict)
    obs: Any = None
    var: Any = None
    isbacked: bool = False


SAME_ROWS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.as_tensor,
    "float32 array": lambda x: x.astype(np.float32).astype(np.float64),
    "other byte order": lambda x: x.astype(">f8"),
    "long double": lambda x: x.astype(np.longdouble),
    "reversed twice": lambda x: x[::-1].copy()[::-1],
    "Fortran order": np.asfortranarray,
    "nothing masked": lambda x: np.ma.masked_array(x),
    "DataFrame": lambda x: pd.DataFrame(x, columns=list("abcd")),
    "shuffled index": lambda x: pd.DataFrame(x, index=np.random.default_rng(2).permutation(30)),
    "columns of one name": lambda x: pd.DataFrame(x, columns=list("aabb")),
    "nullable": lambda x: pd.DataFrame(x).astype("Float64"),
    "sparse columns": lambda x: pd.DataFrame(x).astype(pd.SparseDtype(float, 0.0)),
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "coo_array": sp.coo_array,
    "torch sparse": lambda x: torch.as_tensor(x).to_sparse(),
    "AnnData": lambda x: AnnData(x),
    "AnnData, sparse": lambda x: AnnData(sp.csr_matrix(x)),
    "AnnData, a layer by name": lambda x: AnnData(None, {"counts": sp.csr_matrix(x)}).layers[
        "counts"
    ],
}


@pytest.mark.parametrize("kind", SAME_ROWS)
def test_row_n_is_row_n(kind: str) -> None:
    data = SAME_ROWS[kind](X)
    (rows,) = all_rows(data)
    atol = 1e-7 if kind == "float32 array" else 0.0
    torch.testing.assert_close(rows, torch.as_tensor(X), atol=atol, rtol=0)
    batches = as_batches(data, 7)
    assert [len(x) for (x,) in batches.ordered()] == [7, 7, 7, 7, 2]
    torch.manual_seed(3)
    shuffled = torch.cat([x for (x,) in batches.shuffled()])
    torch.manual_seed(3)
    order = torch.randperm(30)
    torch.testing.assert_close(shuffled, rows[order], atol=0, rtol=0)
    assert batches.fingerprint() == as_batches(rows, 7).fingerprint()


@pytest.mark.parametrize("kind", [kind for kind in SAME_ROWS if kind != "float32 array"])
def test_measures_and_training_take_them(kind: str) -> None:
    exact = linear_gaussian_vae(4, 2)
    vae, data = exact.vae(), SAME_ROWS[kind](X)
    values = pv.log_evidence(vae.model, vae.guide, data, draws=2).values
    torch.testing.assert_close(torch.as_tensor(values), exact.log_prob(torch.as_tensor(X)))
    assert len(pv.aggregate(vae.guide, data).weights) == 30


@pytest.mark.parametrize(
    "kind", ["uint8", "int64", "uint16", "uint32", "bool", "Int64", "csr", "AnnData"]
)
def test_counts_of_any_kind(kind: str) -> None:
    data: Any
    match kind:
        case "Int64":
            data = pd.DataFrame(COUNTS).astype("Int64")
        case "csr":
            data = sp.csr_matrix(COUNTS.astype(np.uint16))
        case "AnnData":
            data = AnnData(sp.csc_array(COUNTS))
        case _:
            data = COUNTS.astype(kind)
    (rows,) = all_rows(data)
    assert rows.double().tolist() == COUNTS.astype(kind if kind == "bool" else float).tolist()
    is_table = kind in ("Int64", "csr", "AnnData")
    assert rows.is_floating_point() == is_table  # whole numbers in arrays stay so
    assert rows.index_select(0, torch.tensor([1])).shape == (1, 4)


def test_a_series_is_one_argument_with_its_kind() -> None:
    x, labels = pd.DataFrame(X), pd.Series(np.arange(30), index=np.arange(30)[::-1])
    rows, numbers = all_rows((x, labels))
    assert numbers.tolist() == list(range(30)) and numbers.dtype == torch.int64
    assert rows.shape == (30, 4)


@pytest.mark.float32
def test_sparse_counts_train_a_minibatch_at_a_time() -> None:
    counts = np.random.default_rng(0).poisson(3.0, size=(60, 5)) + 1
    runs = []
    for data in (
        torch.as_tensor(counts).float(),
        sp.csr_matrix(counts),
        AnnData(sp.csc_matrix(counts)),
    ):
        torch.manual_seed(0)
        decoder = pv.mlp_decoder(2, (5,), "negative_binomial", hidden=(8,))
        vae = pv.VAE(pv.mlp_encoder((5,), 2, hidden=(8,)), decoder, pv.StandardNormal(2))
        runs.append(pv.fit(vae.model, vae.guide, data, epochs=2, batch_size=20).history.train)
    assert isinstance(as_rows(sp.csr_matrix(counts), "x"), SparseRows)
    assert runs[0].tolist() == runs[1].tolist() == runs[2].tolist()


def masked_tensor(x: np.ndarray) -> Any:
    with pytest.warns(UserWarning, match="prototype"):
        return torch.masked.masked_tensor(torch.as_tensor(x), torch.arange(120).view(30, 4) != 13)


def spoilt(value: float, kind: Callable[[np.ndarray], Any]) -> Callable[[], Any]:
    def make() -> Any:
        x = X.copy()
        x[3, 1] = value
        return kind(x)

    return make


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (lambda: np.ma.masked_equal(X, X[3, 1]), r"row 3, position \(1,\)\."),
    "masked twice": (lambda: np.ma.masked_greater(X, 0), r"row 0, .* and \d+ more"),
    "masked rows": (lambda: np.ma.masked_equal(np.arange(30.0), 4.0), "row 4. Leave"),
    "masked in a tuple": (lambda: (X, np.ma.masked_equal(np.arange(30), 4)), "row 4"),
    "masked in AnnData": (lambda: AnnData(np.ma.masked_greater(X, 0)), "masked"),
    "masked tensor": (lambda: masked_tensor(X), r"row 3, position \(1,\)"),
    "NaN": (spoilt(np.nan, np.asarray), r"got nan in row 3, position \(1,\)"),
    "NaN in a frame": (
        spoilt(np.nan, lambda x: pd.DataFrame(x, columns=list("abcd"))),
        r"column 'b' of \w+; got nan in row 3",
    ),
    "NA": (lambda: pd.DataFrame({"b": pd.array([*range(29), None], "Int64")}), "'b'.*row 29"),
    "inf in sparse": (spoilt(np.inf, sp.csc_matrix), r"got inf in row 3, position \(1,\)"),
    "inf in a tensor": (spoilt(np.inf, torch.as_tensor), r"row 3, position \(1,\)"),
    "words": (lambda: pd.DataFrame({"a": X[:, 0], "sex": ["f"] * 30}), r"'sex' of \w+; got dtype"),
    "dates": (lambda: pd.DataFrame({"t": pd.date_range("2020", periods=30)}), "'t'.*datetime64"),
    "categories": (lambda: pd.Series(["a", "b"] * 15, dtype="category"), "dtype category"),
    "complex": (lambda: X.astype(complex), "dtype complex128"),
    "strings": (lambda: X.astype(str), "dtype <U"),
    "complex sparse": (lambda: sp.csr_matrix(X.astype(complex)), "complex128"),
    "AnnData without X": (lambda: AnnData(None, {"counts": X}), r"'counts'.*adata.layers"),
    "AnnData on disk": (lambda: AnnData(X, isbacked=True), r"adata\.to_memory\(\)"),
    "list of tensors": (lambda: [torch.zeros(30, 4)] * 2, r"got list\. Pass a tuple"),
    "list of rows": (lambda: list(torch.zeros(30, 4)), r"torch\.stack\(rows\)"),
    "list of lists": (lambda: X.tolist(), "got list"),
    "dict": (lambda: {"x": X}, "got dict"),
    "path": (lambda: "data.csv", "got str"),
    "number": (lambda: 3.0, "got float"),
    "nothing": (lambda: None, "got NoneType"),
    "nothing in a tuple": (lambda: (X, None), "got NoneType"),
    "number in a tuple": (lambda: (X, 0.5), "got float"),
    "list in a tuple": (lambda: (X, [0.5] * 30), "got list"),
    "scalar": (lambda: np.array(3.0), "rows"),
    "unequal lengths": (lambda: (X, sp.csr_matrix(X[:9])), r"\[30, 9\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_but_an_array_of_numbers_is_refused(kind: str) -> None:
    make, words = REFUSED[kind]
    vae, data = linear_gaussian_vae(4, 2).vae(), make()
    calls = (
        lambda: pv.fit(vae.model, vae.guide, data, epochs=1),
        lambda: pv.encode(vae.guide, data),
        lambda: pv.log_evidence(vae.model, vae.guide, data),
        lambda: pv.diagnose(vae.model, vae.guide, X, held_out=data),
    )
    for call in calls:
        with pytest.raises(pv.InputError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith("expected ") and "; got " in message and "\n" not in message
        assert re.search(words, message)


def test_remedies_that_the_errors_name() -> None:
    assert all_rows(np.ma.masked_greater(X, 0).filled(0.0))[0].max() == 0
    assert all_rows(torch.stack(list(torch.zeros(30, 4))))[0].shape == (30, 4)
    assert len(all_rows((torch.zeros(30, 4), torch.zeros(30, 4)))) == 2


# -- fewer digits --------------------------------------------------------------------------------


@pytest.mark.float32
@pytest.mark.parametrize(
    "change",
    [lambda x: x + 1e9, lambda x: x * 1e39, lambda x: x * 1e-50, lambda x: x * [1, 1, 1e-30, 1e45]],
)
@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, sp.csr_matrix, sp.csc_array])
def test_digits_that_float32_would_lose_are_not_lost(change: Any, kind: Any) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(pv.InputError, match=r"float32 can tell apart.*standard deviation first"):
        as_rows(kind(change(x)), "data")
    standardised = (change(x) - change(x).mean(0)) / change(x).std(0)
    assert len(as_rows(kind(standardised), "data")) == 30  # the remedy


@pytest.mark.float32
@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).normal(size=(30, 4)) * [1e-30, 1e30, 1, 1] + [0, 0, 100, 0],
        np.full((30, 2), 0.1),  # constant in float32, too
        1990 + np.arange(30.0)[:, None],
        np.arange(30)[:, None] % 7 + (1 << 20),
        np.random.default_rng(0).poisson(2.0, size=(30, 4)),
    ],
)
def test_ordinary_numbers_are_taken(x: np.ndarray) -> None:
    for kind in (np.asarray, pd.DataFrame, sp.csr_matrix):
        rows = as_rows(kind(x), "data")
        assert len(rows) == 30


def test_whole_numbers_beyond_float64_are_refused() -> None:
    nanoseconds = torch.arange(30)[:, None] + 1_700_000_000_000_000_000
    with pytest.raises(pv.InputError, match="float64 can tell apart"):
        narrowed(nanoseconds, torch.float64, "t")
    later = nanoseconds - nanoseconds[0]
    assert narrowed(later, torch.float64, "t").tolist() == later.double().tolist()


def test_sparse_rows_have_rows_only() -> None:
    rows: Any = as_rows(sp.csr_matrix(X), "x")
    with pytest.raises(IndexError, match="dim = 0"):
        rows.index_select(1, torch.tensor([0]))
    assert isinstance(next(rows.split(3)), Tensor)
