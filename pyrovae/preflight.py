"""What can be checked before an analysis begins, not after an hour of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from pyrovae.atomic import check_folder, check_room
from pyrovae.errors import InputError

CHECKPOINT = "checkpoint.pt"  # in the output folder while training goes on
LEAST_ROOM = 4_000_000  # bytes of a report and the files beside it, of a few columns


def check_device(device: str | None) -> None:
    """Raise unless torch can compute on the device.

    Raises:
        InputError: naming the devices there are.

    >>> check_device("cpu")
    """
    if device is None:
        return
    try:
        usable = torch.device(device).type != "meta"
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # unknown, not built in, not there
        usable = False
    if not usable:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(
            f"expected one of {', '.join(['cpu', *cuda, *mps])} as --device; got {device!r}, which "
            "torch can't use here. Leave --device out, or install a torch built for it."
        )


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
