"""Checks that an analysis makes before it begins, not after an hour of training."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyrovae.errors import InputError
from pyrovae.runs import FILES, NAME, read
from pyrovae.saving import check_folder, check_room, draft

DEFAULT = Path("pyrovae-report")
CHECKPOINT = "checkpoint.pt"  # in the output folder while training goes on
SEEDS = "seeds.csv"  # the spread over the runs of several seeds
RESULTS = ("report.html", "measures.csv", "diagnosis.nc", SEEDS, *FILES)
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, on Linux
LOCK = ".pyrovae.lock"  # in the output folder while a run writes to it
LEAST_ROOM = 4_000_000  # bytes of the report and the files beside it, for a table of few columns
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def check_no_run(out: Path, *, resume: bool, force: bool = False) -> None:
    """Raise if the folder holds another run, interrupted or not, that isn't to be gone on with.

    With ``force`` an interrupted one is forgotten, unless it is to be resumed.

    Raises:
        InputError: naming the checkpoint, or a file of the finished run.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        if force and not resume:
            checkpoint.unlink()
        elif not resume:
            raise InputError(
                f"expected no interrupted run in --out; got {str(checkpoint)!r}. Go on with it "
                "(--resume), write over it (--force), or name another folder."
            )
    elif (found := results_in(out)) and not force:
        raise InputError(
            f"expected no finished run in --out; got {str(found)!r}. Name another folder, or write "
            "over it with --force."
        )


def results_in(out: Path) -> Path | None:
    """A file of a run that the folder holds; ``None`` if there is none."""
    return next((out / name for name in RESULTS if (out / name).exists()), None)


def is_taken(out: Path) -> bool:
    """Whether a folder holds a finished run, so that another one needs another folder."""
    return results_in(out) is not None and not (out / CHECKPOINT).exists()


def default_folder(*, resume: bool) -> Path:
    """The folder of a run that names none: ``pyrovae-report``, or with the next free number.

    Args:
        resume: whether to take the last one that there is.
    """
    folders = [DEFAULT, *(Path(f"{DEFAULT}-{number}") for number in range(2, 10_000))]
    free = next(n for n, folder in enumerate(folders) if not is_taken(folder))
    return folders[free - 1] if resume and free and not folders[free].exists() else folders[free]


def is_done(out: Path, options: Mapping[str, Any], digest: str) -> bool:
    """Whether the folder holds this very run, finished.

    Args:
        out: the folder.
        options: those that decide the numbers, by name.
        digest: that of the data.

    Raises:
        InputError: if it holds a finished run with other options or data.
    """
    if not (out / NAME).exists() or (out / CHECKPOINT).exists():
        return False
    before = read(out)
    theirs = {**before["options"], "data": before["data"]["digest"]}
    ours = {**options, "data": digest}
    ours = {
        name: list(value) if isinstance(value, tuple) else value for name, value in ours.items()
    }
    others = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if others:
        raise InputError(
            f"expected the data and options that the run in {str(out)!r} was made with; got others "
            f"for {', '.join(name.replace('_', '-') for name in others)}. Name another folder, or "
            "write over it with --force."
        )
    return True


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder, by a lock that the system releases if a process is killed.

    Drafts that a killed run has left are removed. Without locks in the file system nothing is
    checked.

    Raises:
        InputError: if another run is at work there.
    """
    path = out / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        if not _lock(file):
            os.close(file)
            raise InputError(
                f"expected one run at a time in --out; got {str(out)!r}, where another run is "
                "writing. Wait for its end, or name another folder."
            )
        with suppress(FileNotFoundError):  # the other run has just ended and removed its file
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)
    try:
        for name in (CHECKPOINT, *RESULTS):
            with suppress(OSError):
                draft(out / name).unlink()
        yield
    finally:
        with suppress(OSError):  # some systems don't remove a file that is open
            path.unlink()
        os.close(file)


def _lock(file: int) -> bool:
    """Lock a file until it is closed; ``False`` if another process has locked it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """Create a folder to write to; folders created for it are removed again if they stay empty.

    Raises:
        InputError: naming the folder and what is in the way.
    """
    created_folders = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        _create(out)
        yield
    finally:
        for folder in created_folders:
            with suppress(OSError):
                folder.rmdir()


def _create(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file of that name" if out.is_file() else error.strerror or "no such folder"
        raise InputError(
            f"expected a folder to write to as --out; got {str(out)!r}: {reason}. "
            "Name another folder."
        ) from error
    check_folder(out)
    check_room(out, LEAST_ROOM)


@contextmanager
def training_saved(out: Path) -> Iterator[None]:
    """If files can't be written after the training, say that it need not be repeated."""
    try:
        yield
    except InputError as error:
        if not (out / CHECKPOINT).exists():
            raise
        raise InputError(f"{error} The training is saved: make room, and add --resume.") from error


def memory() -> int | None:
    """How many bytes of memory this process may use at most; ``None`` if the system doesn't say."""
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    with suppress(OSError, ValueError):  # no limit, which is the word "max"
        size = min(size, int(MEMORY_LIMIT.read_text(encoding="ascii")))
    return size if size > 0 else None


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Raise if something takes more memory than there is.

    Args:
        needed: how much it takes at least, in bytes.
        what: what it is for.
        remedy: what to do about it.

    Raises:
        InputError: with both sizes.
    """
    there_is = memory()
    if there_is is not None and needed > there_is:
        raise InputError(
            f"expected {what} to fit into {there_is / 1e9:,.1f} GB of memory; got a need of at "
            f"least {needed / 1e9:,.1f} GB. {remedy}"
        )
