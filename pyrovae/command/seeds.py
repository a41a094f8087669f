"""Several trainings that differ by their seed alone, and the spread of every number over them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children, get_context
from typing import TYPE_CHECKING

import torch

from pyrovae.command.analysis import AnalysisOptions, analyze, settled
from pyrovae.command.run_checks import SEEDS, check_no_run, is_done, memory
from pyrovae.command.terminal import encodable, spelling_out
from pyrovae.command.wording import warnings_in_words
from pyrovae.data import Dataset
from pyrovae.diagnostics import LABELS
from pyrovae.errors import InputError
from pyrovae.progress import Bar, progress_bar
from pyrovae.runs import compare, digest_of_data, load_run
from pyrovae.saving import replace as written

if TYPE_CHECKING:
    import pandas as pd

# Bytes that an analysis takes, as measured: with a small data set, and for each row beside its own.
PROCESS, ROW = 700_000_000, 2500
COPIES = 4  # of the data


def analyze_seeds(
    data: Dataset, options: AnalysisOptions, seeds: int, *, say: Callable[[str], object]
) -> None:
    """Analyze data once for each seed, into folders of their own, and show the spread.

    A seed fixes the split of the data, initial weights, minibatches and draws, so that the spread
    has all of these in it. On several cores the seeds run at the same time, in processes that share
    the cores.

    Args:
        data: the data set.
        options: those of the first, whose ``out`` gets a folder for each seed.
        seeds: how many.
        say: takes a line for each run.
    """
    if not options.resume:
        check_no_run(options.out, resume=False, force=options.force)
    runs = [
        replace(options, seed=seed, out=options.out / f"seed-{seed}")
        for seed in range(options.seed, options.seed + seeds)
    ]
    digest = digest_of_data(data)
    left = [run for run in runs if run.force or not run.resume or not _is_done(run, data, digest)]
    with _analyses(data, left) as done:
        for run in runs:
            if run in left:
                next(done)
            say(f"seed {run.seed}: {run.out / 'report.html'}")
    spread = compare([load_run(run.out) for run in runs]).spread()
    path = written(options.out / SEEDS, lambda draft: spread.to_csv(draft, index=False))
    _show(spread, seeds)
    say(f"the spread over seeds: {path}")


def _is_done(run: AnalysisOptions, data: Dataset, digest: str) -> bool:
    return is_done(run.out, settled(data, run).by_name(), digest)


@contextmanager
def _analyses(data: Dataset, runs: list[AnalysisOptions]) -> Iterator[Iterator[object]]:
    """Analyze data by each run, in order: one after the other, or in processes of their own.

    Yields:
        an item for each run, once it is done.
    """
    cores = torch.get_num_threads()
    on_cpu = all(run.device in (None, "cpu") for run in runs)
    processes = min(len(runs), _processes(data, cores))
    if processes < 2 or cores == 1 or not on_cpu:
        yield (analyze(data, run) for run in runs)
        return
    threads = max(1, cores // processes)
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (threads,))
    with _threads_of_children(threads):
        jobs = [pool.submit(_analyze, data, replace(run, progress=False)) for run in runs]
    try:
        with progress_bar("seeds", len(runs), progress=runs[0].progress) as bar:
            yield _finished(jobs, bar)
    except BrokenProcessPool as error:
        raise InputError(
            "expected all processes to live until their seeds are done; got one that was killed, "
            "perhaps for want of memory. Go on with --resume; with OMP_NUM_THREADS=1 in the "
            "environment one seed runs after the other."
        ) from error
    except BaseException:
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _processes(data: Dataset, cores: int) -> int:
    """How many analyses of data run at the same time: what cores and memory have room for."""
    each = PROCESS + ROW * len(data) + COPIES * data.values.nbytes
    # more than cores, as the last ones leave some idle
    return min(2 * cores + 1, (memory() or sys.maxsize) // each)


def _finished(jobs: list[Future[None]], bar: Bar) -> Iterator[None]:
    for job in jobs:
        yield job.result()
        bar.tick()


@contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Let libraries that a child process loads take so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _begin(threads: int) -> None:
    """What a process does first: Ctrl-C, which reaches it too, is for its parent to answer."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _analyze(data: Dataset, options: AnalysisOptions) -> None:
    with spelling_out(), warnings_in_words():
        analyze(data, options)


def _show(spread: pd.DataFrame, seeds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"Over {seeds} seeds (nats, unless it says bits)", title_justify="left")
    table.add_column("measure")
    table.add_column("data")
    for title in ("mean", "sd over seeds", "standard error"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in spread.itertuples():
        numbers = (f"{value:.4g}".replace("-", "−") for value in (row.mean, row.sd, row.error))
        cells = (LABELS[str(row.measure)], str(row.data), *numbers)
        table.add_row(*(encodable(cell, console.encoding) for cell in cells))
    console.print(table)
    sys.stdout.flush()
