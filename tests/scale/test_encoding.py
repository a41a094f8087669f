"""Encodings in files are the guide's, row for row, however often the process is killed."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyrovae as pv
from pyrovae.scale.folder import Folder
from pyrovae.testing import linear_gaussian_vae

ROWS = 250
EXACT = linear_gaussian_vae()
X = EXACT.sample(ROWS)
GUIDE = EXACT.vae().guide


def files(folder: Path) -> dict[str, bytes]:
    """What stands in all files, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def written(folder: Path, data: Any = X, **settings: Any) -> Path:
    return pv.encode_to(folder, GUIDE, data, **{"shard_rows": 60, "batch_size": 25, **settings})


def test_a_folder_holds_the_guide_s_encodings(tmp_path: Path) -> None:
    agg = pv.open_aggregated(written(tmp_path / "codes", dtype=torch.float64), verify=True)
    q = pv.encode(GUIDE, X)
    assert torch.equal(agg.encoding.mean, q.mean) and torch.equal(agg.encoding.stddev, q.stddev)
    assert len(list(agg.in_parts())) == 5


def test_single_precision_rounds_once(tmp_path: Path) -> None:
    agg, q = pv.open_aggregated(written(tmp_path / "codes")), pv.encode(GUIDE, X)
    assert torch.equal(agg.encoding.mean, q.mean.float())
    assert torch.equal(agg.encoding.stddev, q.stddev.float())


def test_anyone_can_read_the_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "codes")
    means = np.load(folder / "means.npy", mmap_mode="r")
    np.testing.assert_array_equal(means, pv.encode(GUIDE, X).mean.float().numpy())


def test_a_copy_needs_no_files(tmp_path: Path) -> None:
    agg = pv.open_aggregated(written(tmp_path / "codes"))
    copied, z = pickle.loads(pickle.dumps(agg)), agg.sample((5,))
    for path in tmp_path.rglob("*.npy"):
        path.unlink()
    torch.testing.assert_close(copied.log_prob(z), agg.log_prob(z), rtol=0, atol=0)


def test_weights_count(tmp_path: Path) -> None:
    folder, w, z = written(tmp_path / "codes", dtype=torch.float64), torch.rand(ROWS), X[:5, :2]
    expected = pv.aggregate(GUIDE, X, weights=w).log_prob(z)
    torch.testing.assert_close(pv.open_aggregated(folder, weights=w).log_prob(z), expected)


@pytest.mark.parametrize("settings", [{"batch_size": 7}, {"batch_size": 1000}])
def test_batches_make_no_difference(tmp_path: Path, settings: dict[str, int]) -> None:
    one = files(written(tmp_path / "one", dtype=torch.float64))
    other = files(written(tmp_path / "other", dtype=torch.float64, **settings))
    for name in ("means.npy", "scales.npy"):
        before, after = (np.frombuffer(f[name][128:]) for f in (one, other))
        np.testing.assert_allclose(after, before, rtol=1e-12)
    assert json.loads(one["shards/1.json"])["data"] == json.loads(other["shards/1.json"])["data"]


# -- where the data lie ----------------------------------------------------------------------------


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, n: int) -> Tensor:
        return X[n]


def npy(folder: Path) -> Path:
    np.save(folder / "x.npy", X.numpy())
    return folder / "x.npy"


def hdf5(folder: Path) -> Any:
    h5py = pytest.importorskip("h5py")
    file = h5py.File(folder / "x.h5", "w")
    file["x"] = X.numpy()
    return file["x"]


def parquet(folder: Path) -> Path:
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame(X.numpy(), columns=[f"x{i}" for i in range(X.shape[1])])
    frame.to_parquet(folder / "x.parquet", row_group_size=40)
    return folder / "x.parquet"


KINDS = {
    "an array": lambda folder: X.numpy(),
    "a data set": lambda folder: Rows(),
    "a loader": lambda folder: DataLoader(TensorDataset(X), batch_size=13),
    "a loader that shuffles": lambda folder: DataLoader(TensorDataset(X), 13, shuffle=True),
    "a mapped array": lambda folder: np.load(npy(folder), mmap_mode="r"),
    "a tuple": lambda folder: (np.load(npy(folder), mmap_mode="r"),),
    "the path of an array": npy,
    "the path of a table": lambda folder: str(parquet(folder)),
    "HDF5": hdf5,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_files(kind: str, tmp_path: Path) -> None:
    before = files(written(tmp_path / "codes"))
    (tmp_path / "codes" / "shards" / "2.json").unlink()
    assert files(written(tmp_path / "codes", KINDS[kind](tmp_path))) == before


def test_a_mapped_array_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    asked: list[int] = []

    class Watched(np.memmap):  # type: ignore[type-arg]
        def __getitem__(self, rows: Any) -> Any:
            found = super().__getitem__(rows)
            asked.append(len(found))
            return found

    mapped = np.load(npy(tmp_path), mmap_mode="r").view(Watched)
    written(tmp_path / "codes", mapped)
    assert max(asked) == 25 and sum(asked) == ROWS + 25  # the first batch twice


# -- going on --------------------------------------------------------------------------------------


def test_it_goes_on_with_the_shards_that_are_missing(tmp_path: Path) -> None:
    before = files(written(tmp_path / "codes"))
    folder = Folder(tmp_path / "codes")
    for number in (1, 4):
        (folder.path / "shards" / f"{number}.json").unlink()
        with (folder.path / "means.npy").open("r+b") as file:
            file.seek(128 + folder.settings.shards[number].start * 2 * 4)
            file.write(b"half a shard")
    assert folder.missing() == [1, 4]
    with pytest.raises(pv.InputError, match=r"got none for 2 of them, the first number 1"):
        pv.open_aggregated(folder.path)
    assert files(written(tmp_path / "codes")) == before


def test_what_is_done_is_not_encoded_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def watched(x: Tensor) -> None:
        asked.append(len(x))
        GUIDE(x)

    written(tmp_path / "codes")
    pv.encode_to(tmp_path / "codes", watched, X, shard_rows=60, batch_size=25)
    # The first batch, which a pair reads more than once, and one of each shard to compare.
    first_of_shards = [25, 15, 5, 20, 10]
    assert sum(asked) <= 3 * 25 + sum(first_of_shards)


REFUSED = {
    "other rows": (lambda: torch.cat([X[:100], -X[100:]]), {}, "in the same order; got others for"),
    "another order": (lambda: torch.cat([X[:60], X[60:].flip(0)]), {}, "rows 60 to 119"),
    "another order from the start": (lambda: X.flip(0), {}, "encoding of the first rows"),
    "fewer rows": (lambda: X[:200], {}, r"rows 200 \(there: 250\)"),
    "other shards": (lambda: X, {"shard_rows": 50}, r"shard_rows 50 \(there: 60\)"),
    "another dtype": (lambda: X, {"dtype": torch.float64}, "'float64'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_does_not_go_on_with(name: str, tmp_path: Path) -> None:
    data, settings, says = REFUSED[name]
    before = files(written(tmp_path / "codes"))
    with pytest.raises(pv.InputError, match=says):
        written(tmp_path / "codes", data(), **settings)
    assert files(tmp_path / "codes") == before
    written(tmp_path / "other", data(), **settings)  # the remedy


def test_it_does_not_go_on_with_another_guide(tmp_path: Path) -> None:
    written(tmp_path / "codes")
    other = EXACT.vae(shift=0.1).guide
    with pytest.raises(pv.InputError, match="expected the guide and the data"):
        pv.encode_to(tmp_path / "codes", other, X, shard_rows=60, batch_size=25)


@pytest.mark.parametrize("lost", range(5))
def test_no_shard_is_mixed_with_those_of_another_guide(tmp_path: Path, lost: int) -> None:
    """Whichever is missing, the first one too; the guide that wrote the others still goes on."""
    folder = written(tmp_path / "codes")
    (folder / "shards" / f"{lost}.json").unlink()
    other = EXACT.vae(shift=0.1).guide
    for _ in range(2):
        with pytest.raises(pv.InputError, match="got another encoding of"):
            pv.encode_to(folder, other, X, shard_rows=60, batch_size=25)


def test_a_guide_that_encodes_later_rows_otherwise_is_another_one(tmp_path: Path) -> None:
    def guide(x: Tensor, moved: float = 0.0) -> None:
        with pyro.plate("data", len(x)):
            loc = x[:, :2] + moved * (x[:, :1] > 5)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = X.clone()
    x[:60, 0], x[60:, 0] = 0.0, 6.0
    pv.encode_to(tmp_path / "codes", guide, x, shard_rows=60, batch_size=25)
    (tmp_path / "codes" / "shards" / "4.json").unlink()
    with pytest.raises(pv.InputError, match="got another encoding of rows 60 to 74"):
        pv.encode_to(tmp_path / "codes", lambda x: guide(x, 1.0), x, shard_rows=60, batch_size=25)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(pv.InputError, match="holds other files"):
        written(tmp_path)
    assert files(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(pv.InputError, match="expected a folder that encode_to has written"):
        pv.open_aggregated(tmp_path)


def test_records_without_their_manifest_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "codes")
    (folder / "manifest.json").unlink()
    with pytest.raises(pv.InputError, match="holds other files"):
        written(folder)


@pytest.mark.parametrize(
    "changed", [{"shard_rows": -60}, {"shard_rows": 0}, {"rows": "250"}, {"units": 2.0}]
)
def test_a_manifest_of_no_numbers_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = written(tmp_path / "codes") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(pv.InputError, match=f"{next(iter(changed))} .*, not a whole number"):
        pv.open_aggregated(tmp_path / "codes")


def test_a_record_without_digests_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "codes")
    (folder / "shards" / "2.json").write_text("{}")
    for use in (pv.open_aggregated, written):
        with pytest.raises(pv.InputError, match="expected the digests of shard 2"):
            use(folder)


def test_it_begins_anew_where_it_was_killed_before_the_manifest(tmp_path: Path) -> None:
    before = files(written(tmp_path / "codes"))
    for path in [*(tmp_path / "codes" / "shards").iterdir(), tmp_path / "codes" / "manifest.json"]:
        path.unlink()
    (tmp_path / "codes" / "scales.npy.partial").write_bytes(b"half")
    assert files(written(tmp_path / "codes")) == before


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    folder = written(tmp_path / "codes")
    before = files(folder)
    with (folder / "scales.npy").open("r+b") as file:
        file.seek(128 + 130 * 2 * 4)
        file.write(b"\x01")
    with pytest.raises(pv.InputError, match=r"expected shard 2 .*Delete shards/2.json"):
        pv.open_aggregated(folder, verify=True)
    (folder / "shards" / "2.json").unlink()  # the remedy
    assert files(written(folder)) == before
    pv.open_aggregated(folder, verify=True)


@pytest.mark.parametrize(
    ("name", "number"), [("means.npy", math.nan), ("scales.npy", 0.0), ("scales.npy", -1.0)]
)
def test_a_number_that_can_be_no_component_s_is_refused(
    tmp_path: Path, name: str, number: float
) -> None:
    """Without reading all of the files first; units are those of the marginal that is asked for."""
    folder = written(tmp_path / "codes")
    before = files(folder)
    array = np.load(folder / name, mmap_mode="r+")
    array[130, 1] = number
    array.flush()
    agg, z = pv.open_aggregated(folder), torch.zeros(3, 2)
    for density in (agg.log_prob, agg.score, partial(agg.responsibilities, top=2)):
        with pytest.raises(pv.InputError, match=r"in row 130, unit 1 .*verify=True"):
            density(z)
    assert bool(agg.marginal([0]).log_prob(z[:, :1]).isfinite().all())
    with pytest.raises(pv.InputError, match=r"Delete shards/2\.json"):  # the remedy, and its own
        pv.open_aggregated(folder, verify=True)
    (folder / "shards" / "2.json").unlink()
    assert files(written(folder)) == before


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "codes")
    np.save(folder / "means.npy", np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(pv.InputError, match=r"shape \(250, 2\)"):
        pv.open_aggregated(folder)
    (folder / "means.npy").write_bytes(b"nothing")
    with pytest.raises(pv.InputError, match="expected an array of numpy"):
        pv.open_aggregated(folder)


def gaussian(scale: float) -> Any:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    return guide


def test_scales_that_the_dtype_rounds_to_0_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pv.InputError, match="a scale of 0 once row 0"):
        pv.encode_to(tmp_path / "codes", gaussian(1e-60), X)
    pv.encode_to(tmp_path / "other", gaussian(1e-60), X, dtype=torch.float64)  # the remedy


def test_other_families_are_refused(tmp_path: Path) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(x, 1.0).to_event(1))

    with pytest.raises(pv.InputError, match="got Laplace"):
        pv.encode_to(tmp_path / "codes", guide, X)


def test_a_guide_with_parameters_for_each_place_is_refused(tmp_path: Path) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", lambda: torch.zeros(25, 2))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with pytest.raises(pv.InputError, match="encodes each row by itself"):
        pv.encode_to(tmp_path / "codes", guide, X, shard_rows=25, batch_size=25)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shard_rows": 0}, "shard_rows"),
        ({"shard_rows": True}, "shard_rows"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_settings_out_of_range_are_refused(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(pv.InputError, match=says):
        written(tmp_path / "codes", **settings)


# -- kills -----------------------------------------------------------------------------------------

FORKS = """
import os, sys, torch, pyrovae as pv
from pyrovae.testing import linear_gaussian_vae

exact = linear_gaussian_vae()
guide, rows = exact.vae().guide, exact.sample(12_000)
pv.encode_to(sys.argv[1], guide, rows, shard_rows=150, batch_size=50, progress=False)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        pv.encode_to(sys.argv[2], guide, rows, shard_rows=150, batch_size=50, progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
SHARDS, KILLS = 80, 5


def test_after_kills_nothing_is_lost_and_nothing_double(tmp_path: Path) -> None:
    """Each kill comes at another moment of a shard's life."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-c", FORKS, str(whole), str(killed)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        done = [0]
        for number in range(1, KILLS + 2):
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            if number <= KILLS:
                deadline = time.monotonic() + 60
                while records(killed) < number * SHARDS // (KILLS + 2):
                    assert time.monotonic() < deadline
                    time.sleep(0.0005)
                time.sleep(0.0011 * number)
                os.kill(child, signal.SIGKILL)
            status = int(process.stdout.readline())
            assert status == (signal.SIGKILL if number <= KILLS else 0)
            done.append(records(killed))
        process.stdin.close()
        assert process.wait() == 0
    assert sorted(set(done)) == done and done[-1] == SHARDS  # each went on where the last was
    assert files(killed) == files(whole)
    pv.open_aggregated(killed, verify=True)


def records(folder: Path) -> int:
    return len(list((folder / "shards").glob("*.json")))
