"""The density of an aggregated posterior from files, a shard at a time, beside one in memory.

    python benchmarks/shards.py                            # N = 1e6, from files and in memory
    python benchmarks/shards.py --components 10000000      # N = 1e7, from files
    python benchmarks/shards.py --dtype float16            # of half precision
    python benchmarks/shards.py --kills 20                 # kills while a folder is written

Codes of D units with scales from 0.05 to 0.3 are simulated straight into a folder, and points are
drawn from the mixture. Each way runs in a process of its own, which says how much memory it took:
``VmHWM`` of Linux, the most pages that were in memory at a time, pages of mapped files included.
Ways are run in turn, ``--repeats`` times, and the least processor time of each counts: with other
work on the machine, the time on the clock says little. ``--cold`` drops the
files from the system's cache first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.scale.folder import MEANS, RECORDS, SCALES, Folder, Settings

ROWS = 1 << 18  # simulated at once, and in a shard by default


def simulate(path: Path, rows: int, units: int, shard_rows: int, dtype: str) -> None:
    """A folder as ``encode_to`` writes it, of simulated codes."""
    store = Folder(path)
    store.begin(Settings(rows, units, dtype, shard_rows, "z"))
    generator = np.random.default_rng(0)
    for number, part in enumerate(store.settings.shards):
        shape = part.stop - part.start, units
        means = generator.standard_normal(shape, dtype=np.float32)
        scales = 0.05 + 0.25 * generator.random(shape, dtype=np.float32)
        store.write(number, means.astype(dtype), scales.astype(dtype), "simulated")


def points(path: Path, count: int) -> Tensor:
    """Draws from a folder's mixture, the same for every way."""
    torch.manual_seed(1)
    return pv.open_aggregated(path).sample((count,))


def in_memory(path: Path) -> pv.AggregatedPosterior:
    """The same mixture, all of it in memory."""
    arrays = (np.load(path / name) for name in (MEANS, SCALES))
    loc, scale = (torch.from_numpy(array).float() for array in arrays)
    return pv.AggregatedPosterior(dist.Normal(loc, scale).to_event(1))


def peak() -> float:
    """The most memory that this process has had, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def drop_from_cache(path: Path) -> None:
    """Ask the system to forget the files."""
    for name in (MEANS, SCALES):
        with (path / name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path, way: str, count: int, method: str) -> dict[str, float]:
    """Seconds and memory of one way, in this process; its log densities go to a file."""
    z = points(path, count)
    mixture = in_memory(path) if way == "memory" else pv.open_aggregated(path)
    if way == "memory":  # lays the components out, which it does once
        start = time.perf_counter()
        getattr(mixture, method)(z[:40]), getattr(mixture, method)(z[:40])
        print(f"laid out in {time.perf_counter() - start:.2f} s", file=sys.stderr)
    start, processor = time.perf_counter(), time.process_time()
    values = getattr(mixture, method)(z)
    seconds, busy = time.perf_counter() - start, time.process_time() - processor
    np.save(path / f"{way}.npy", values.double().numpy())
    return {"seconds": seconds, "processor": busy, "GB": peak()}


def compare(path: Path, options: argparse.Namespace) -> None:
    """Run the ways in turn, and print a line for each."""
    pairs = options.components * options.points
    size = sum((path / name).stat().st_size for name in (MEANS, SCALES))
    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    for _ in range(options.repeats):
        for way in options.ways:
            if options.cold:
                drop_from_cache(path)
            command = [
                sys.executable, __file__, "--measure", way, "--folder", str(path),
                "--points", str(options.points), "--method", options.method,
            ]  # fmt: skip
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    least = {way: min(run["processor"] for run in runs) for way, runs in found.items()}
    case = f"N = {options.components:,}, D = {options.units}, {options.points} points"
    print(f"{options.method}, {case}")
    for way, runs in found.items():
        seconds = ", ".join(f"{run['processor']:.2f} ({run['seconds']:.2f})" for run in runs)
        print(
            f"{way}: {seconds} s of the processor (on the clock); "
            f"{1e9 * least[way] / pairs:.3f} s for 1e9 pairs; peak "
            f"{max(run['GB'] for run in runs):.2f} GB"
            + (f"; {size / 1e6:,.0f} MB read" if way == "files" else "")
        )
    if {"memory", "files"} <= least.keys():
        a, b = (np.load(path / f"{way}.npy") for way in ("memory", "files"))
        ratio = least["files"] / least["memory"]
        print(
            f"files / memory: {ratio:.2f}; log densities differ by {abs(a - b).max():.1e} at most"
        )


# -- kills ---------------------------------------------------------------------------------------


def encode(folder: Path, data: Path) -> None:
    """Encode rows into shards of 1,000."""
    torch.manual_seed(0)
    vae = pv.VAE(pv.mlp_encoder((8,), 2), pv.mlp_decoder(2, (8,)), pv.StandardNormal(2))
    pv.encode_to(folder, vae.guide, data, shard_rows=1000, batch_size=250, progress=False)


def kill(count: int, rows: int = 200_000) -> None:
    """Kill the process that encodes so many times; compare what it leaves with one undisturbed."""
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as place:
        data, whole, killed = (Path(place) / name for name in ("rows.npy", "whole", "killed"))
        np.save(data, np.random.default_rng(0).random((rows, 8), dtype=np.float32))
        encode(whole, data)
        records = len(list((whole / RECORDS).iterdir()))
        done = [0]
        for number in range(1, count + 2):
            child = os.fork()
            if not child:
                encode(killed, data)
                os._exit(0)
            if number <= count:
                while len(list((killed / RECORDS).glob("*.json"))) < number * records // (
                    count + 2
                ):
                    time.sleep(0.0005)
                time.sleep(0.0007 * number)  # at another moment of a shard's life
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done.append(len(list((killed / RECORDS).glob("*.json"))))
        names = [MEANS, SCALES, *(f"{RECORDS}/{number}.json" for number in range(records))]
        same = all((whole / name).read_bytes() == (killed / name).read_bytes() for name in names)
        pv.open_aggregated(killed, verify=True)
        outcome = "the same files as of one undisturbed" if same else "OTHER FILES"
        print(f"{count} kills; shards done after each: {done}; {outcome}")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--components", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=10)
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--shard-rows", type=int, default=ROWS)
    parser.add_argument("--dtype", default="float32", choices=["float16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", default="log_prob", choices=["log_prob", "score"])
    parser.add_argument("--ways", nargs="+", default=None, choices=["memory", "files"])
    parser.add_argument("--cold", action="store_true", help="drop the files from the cache first")
    parser.add_argument("--folder", type=Path, default=None, help="where to keep the files")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.folder, options.measure, options.points, options.method)))
        return None
    if options.kills:
        return kill(options.kills)
    options.ways = options.ways or (
        ["memory", "files"] if options.components <= 2_000_000 else ["files"]
    )
    path = options.folder or Path(tempfile.mkdtemp())
    try:
        if not Folder(path).exists:
            simulate(path, options.components, options.units, options.shard_rows, options.dtype)
        compare(path, options)
    finally:
        if options.folder is None:
            shutil.rmtree(path)
    return None


if __name__ == "__main__":
    main()
