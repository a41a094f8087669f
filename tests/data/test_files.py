"""Tables in files: row numbers and names never become data, nor data points names."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyrovae.data.datasets import load
from pyrovae.data.files import expanded
from pyrovae.errors import InputError

TABLE = np.arange(60.0).reshape(30, 2) / 7
RANDOM = np.random.default_rng(0)
NORMAL, COUNTS = RANDOM.normal(size=(40, 3)), RANDOM.poisson(2.0, size=(40, 3))
WIDE = RANDOM.integers(0, 7, size=(40, 9))


def csv(rows: object, **options: object) -> str:
    text: str = pd.DataFrame(rows).to_csv(**options)  # type: ignore[call-overload]
    return text


INDEXED = {
    "from 0": csv(NORMAL, header=list("abc")),
    "from 1": csv(pd.DataFrame(NORMAL, index=np.arange(1, 41)), header=list("abc")),
    "shuffled": csv(pd.DataFrame(NORMAL, index=RANDOM.permutation(40)), header=list("abc")),
    "part of a split": csv(pd.DataFrame(NORMAL, index=np.arange(40) * 3), header=list("abc")),
    "words": csv(pd.DataFrame(NORMAL, index=[f"cell {i}" for i in range(40)]), header=list("abc")),
    "no names": csv(NORMAL),
    "no header": csv(NORMAL, header=False),
    "no header, from 1": csv(pd.DataFrame(NORMAL, index=np.arange(1, 41)), header=False),
    "no header, shuffled": csv(pd.DataFrame(NORMAL, index=RANDOM.permutation(40)), header=False),
    "written twice": csv(NORMAL, header=["Unnamed: 0", "b", "c"], index=False),
    "semicolons": csv(NORMAL, header=list("abc"), sep=";"),
}


@pytest.mark.parametrize("kind", INDEXED)
def test_an_index_is_not_taken_for_data(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.csv").write_text(INDEXED[kind], encoding="utf-8")
    with pytest.raises(InputError, match=r"got (a first column|row numbers).*index=False"):
        load(tmp_path / "t.csv")
    rows = NORMAL.tolist()
    (tmp_path / "t.csv").write_text(csv(rows, header=list("abc"), index=False), encoding="utf-8")
    assert len(load(tmp_path / "t.csv")) == 40  # the remedies
    named_index = csv(NORMAL, header=list("abc"), index_label="number")
    (tmp_path / "t.csv").write_text(named_index, encoding="utf-8")
    assert load(tmp_path / "t.csv").columns == ("number", "a", "b", "c")


def headed(line: str, rows: np.ndarray, form: str = "%r") -> str:
    lines = [",".join(form % value for value in row) for row in rows.tolist()]
    return "\n".join([line, *lines]) + "\n"


LIKE_NAMES = {
    "years": headed("2019,2020,2021", NORMAL),
    "two years": headed("2001,2002", NORMAL[:, :2]),
    "years above counts": headed("2019,2020,2021", COUNTS),
    "one year": headed("2019", NORMAL[:, :1]),
    "wavelengths": headed("400.0,400.5,401.0", NORMAL),
    "wavelengths among intensities": headed("400.0,400.5,401.0", 400 + 300 * NORMAL),
    "uneven wavelengths": headed("1.2,1.3,1.5,1.8,1.9,2.2,2.3,2.7,3.1", WIDE * 0.7),
    "whole numbers above others": headed("1,0,2", NORMAL),
    "0, 1 above zeros and ones": headed("0,1", COUNTS[:, :2] % 2),
    "0, 1 above shares": headed("0,1", np.abs(NORMAL[:, :2]) / 10, "%g"),
    "0, 1, 2 above counts": headed("0,1,2", COUNTS),
    "0 above counts": headed("0", COUNTS[:, :1]),
    "columns of a ranking": headed(
        "0,1,2,3,4,5,6,7,8", RANDOM.permuted(np.tile(np.arange(9), (40, 1)), axis=1)
    ),
}


@pytest.mark.parametrize("kind", LIKE_NAMES)
def test_a_first_line_of_numbers_that_may_be_names_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.csv").write_text(LIKE_NAMES[kind], encoding="utf-8")
    with pytest.raises(InputError, match=r"numbers that may be either.*write them as words"):
        load(tmp_path / "t.csv")
    line, _, rest = LIKE_NAMES[kind].partition("\n")
    names = ",".join(f"c{cell}" for cell in line.split(","))
    for text, rows in ((f"{names}\n{rest}", 40), (f"{names}\n{line}\n{rest}", 41)):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        assert len(load(tmp_path / "t.csv")) == rows  # the remedies


NUMBERED = {
    "of floats": (csv(NORMAL, index=False), 3),
    "of small counts": (csv(WIDE, index=False), 9),
    "one column": (csv(TABLE[:, 0], index=False), 1),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_column_numbers_of_pandas_are_read_as_a_header(tmp_path: Path, kind: str) -> None:
    text, columns = NUMBERED[kind]
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    data = load(tmp_path / "t.csv")
    assert data.columns == tuple(str(i) for i in range(columns))
    assert len(data) == text.count("\n") - 1


def test_first_lines_of_data_are_data(tmp_path: Path) -> None:
    """In 100 tables without a header the first line is never taken for names, nor refused."""
    random = np.random.default_rng(1)
    for number in range(100):
        shape = (int(random.integers(20, 60)), int(random.integers(2, 12)))
        rows: np.ndarray = [
            random.normal(size=shape),
            random.poisson(3.0, size=shape),
            random.integers(0, 2, size=shape),
            random.normal(size=shape).cumsum(0) + 1e3,  # random walks, over time
            random.normal(size=shape).round(2),
        ][number % 5]
        np.savetxt(tmp_path / "t.csv", rows, delimiter=",", fmt="%.17g")
        if number % 5 == 2 and rows[0].tolist() == list(range(shape[1])):
            continue  # 0, 1, … may be names
        np.testing.assert_allclose(load(tmp_path / "t.csv").values.numpy(), rows, rtol=1e-15)


# -- what is no file of numbers --------------------------------------------------------------------


def member(name: str, content: bytes) -> Callable[[Path], Path]:
    """An archive with one member."""

    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "data.npz", "w") as archive:
            archive.writestr(name, content)
        return folder / "data.npz"

    return make


def nested() -> bytes:
    inner = io.BytesIO()
    np.savez(inner, x=NORMAL)
    return inner.getvalue()


def saved(**arrays: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
        return folder / "data.npz"

    return make


def pickled(folder: Path) -> Path:
    (folder / "data.npy").write_bytes(pickle.dumps([1, 2]))
    return folder / "data.npy"


def objects(folder: Path) -> Path:
    np.save(folder / "data.npy", np.array([{}, None], dtype=object))
    return folder / "data.npy"


def too_large(folder: Path) -> Path:
    with (folder / "data.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    return folder / "data.npy"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "data.npy")
    return folder / "data.npy"


def null(folder: Path) -> Path:
    (folder / "data.csv").symlink_to(os.devnull)
    return folder / "data.csv"


OBJECT = np.array([{"a": 1}, None], dtype=object)
NO_NUMBERS = {
    "text in an archive": (member("x.txt", b"hello"), "a member of the archive that is none"),
    "text that is named an array": (member("x.npy", b"hello"), "that is none"),
    "an archive in an archive": (member("x.npz", nested()), "that is none"),
    "a pickle in an archive": (member("x.npy", pickle.dumps([1])), "that is none"),
    "objects in an archive": (saved(x=OBJECT), "pickled Python objects"),
    "objects": (objects, "pickled Python objects"),
    "a pickle": (pickled, "doesn't begin as such a file does"),
    "one number": (saved(x=np.float64(3)), "got a single value"),
    "a record": (saved(x=np.zeros(60, [("a", "f8")])), "expected real numbers"),
    "dates": (saved(x=np.arange(60).astype("M8[D]")), "expected real numbers"),
    "an empty archive": (saved(), "the name of one of the arrays"),
    "more than there is memory": (too_large, "Unable to allocate"),
    "a pipe": (pipe, "got a named pipe"),
    "a device": (null, "got a device or socket"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_array_of_numbers_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    make, words = NO_NUMBERS[kind]
    with pytest.raises(InputError, match=r"^expected") as caught:
        load(str(make(tmp_path)))
    assert words in str(caught.value) and "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize("labels", [OBJECT, np.array(["a"] * 40, dtype=object), np.float64(1)])
def test_labels_that_are_no_integers_are_not_read(tmp_path: Path, labels: object) -> None:
    data = load(str(saved(x=NORMAL, y=labels)(tmp_path)))
    assert data.labels is None and len(data) == 40


def test_a_home_folder_is_found_and_that_of_nobody_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/a") == tmp_path / "a"
    with pytest.raises(InputError, match=r"home folder .* got '~nosuchuser'"):
        load("~nosuchuser/data.npy")
    assert expanded("./~nosuchuser/a") == Path("~nosuchuser/a")
    (tmp_path / "~nosuchuser").mkdir()
    assert expanded("~nosuchuser") == Path("~nosuchuser")


def test_a_name_with_a_byte_that_is_no_text_is_shown_by_its_value(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NORMAL)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff.npy"))
    try:
        (tmp_path / "a.npy").rename(path)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert load(str(path)).name == r"d\xff.npy"
