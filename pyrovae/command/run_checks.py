"""What can be checked before an analysis begins, not after an hour of training."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyrovae.errors import InputError
from pyrovae.saving import check_folder, check_room

CHECKPOINT = "checkpoint.pt"  # in the output folder while training goes on
LOCK = ".pyrovae.lock"  # in the output folder while a run writes to it
LEAST_ROOM = 4_000_000  # bytes of a report and the files beside it, of a few columns
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def check_no_run(out: Path, *, resume: bool) -> None:
    """Raise if an interrupted run lies in the folder and isn't to be gone on with.

    Raises:
        InputError: naming the checkpoint.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise InputError(
            f"expected no interrupted run in --out; got {str(checkpoint)!r}. "
            "Go on with it by --resume, delete that file, or name another folder."
        )


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """No other process writes to the folder; the system forgets a process that is killed.

    Where the file system knows no locks, nothing is checked.

    Raises:
        InputError: if another run is at work there.
    """
    path = out / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        if not _lock(file):
            os.close(file)
            raise InputError(
                f"expected one run at a time in --out; got {str(out)!r}, to which another one is "
                "writing. Wait until it is done, or name another folder."
            )
        with suppress(FileNotFoundError):  # the other run has just ended and removed its file
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)
    try:
        yield
    finally:
        with suppress(OSError):  # some systems don't remove a file that is open
            path.unlink()
        os.close(file)


def _lock(file: int) -> bool:
    """Whether no other process has a lock on a file; this one has it then until it is closed."""
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
    """A folder that can be written to; if nothing is written, folders made for it go again.

    Raises:
        InputError: naming the folder and what is in the way.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        _check(out)
        yield
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()


def _check(out: Path) -> None:
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
def training_kept(out: Path) -> Iterator[None]:
    """Where files can't be written after the training, say that it need not be done again."""
    try:
        yield
    except InputError as error:
        if not (out / CHECKPOINT).exists():
            raise
        raise InputError(f"{error} The training is kept: make room, and add --resume.") from error
