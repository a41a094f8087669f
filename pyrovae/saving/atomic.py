"""Files that are written whole or not at all, and archives that notice when a bit has changed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from pyrovae.errors import InputError

SEAL = b"blake2b "  # what the comment at the end of an archive begins with
SEALED = len(SEAL) + 64


def replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a draft beside ``path``; once it is whole and on disk, put it there.

    Whatever happens, ``path`` holds what it held before or all that was written. Of HDF5, which
    ends the process where a disk is full, see first that there is room (:func:`check_room`).

    Raises:
        InputError: saying what is in the way: no such folder, no room in it, no permission.
    """
    partial = draft(path)
    try:
        write(partial)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def draft(path: Path) -> Path:
    """The file that a file is written to before it is whole; a killed process leaves it behind."""
    return path.with_name(path.name + ".partial")


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a file or folder that can't be written."""
    reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    return InputError(
        f"expected to write {str(path)!r}; got: {reason}. Make room there, or name a folder that "
        "exists and may be written to."
    )


def check_folder(folder: Path) -> None:
    """Raise unless files can be written to a folder.

    Raises:
        InputError: saying what is in the way.
    """
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def check_room(folder: Path, needed: int) -> None:
    """Raise unless a disk has room.

    Args:
        folder: where files are to be written.
        needed: how much they take at least, in bytes.

    Raises:
        InputError: with both sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"expected {needed / 1e6:,.1f} MB of room in {str(folder)!r} for what is to be "
            f"written; got {free / 1e6:,.1f} MB. Make room there, or name another folder."
        )


# -- archives ------------------------------------------------------------------------------------


def to_archive(content: Any) -> bytes:
    """Tensors, numbers and names as ``torch.save`` writes them, with a checksum at the end.

    The checksum is the comment of the zip archive that such a file is: ``torch.load`` reads it too.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(-2, io.SEEK_END)
    buffer.write(SEALED.to_bytes(2, "little"))  # the length of the comment
    buffer.write(_seal(buffer.getvalue()))
    return buffer.getvalue()


def write_archive(content: Any, path: Path) -> Path:
    """Write an archive, whole or not at all.

    Raises:
        InputError: as :func:`replace`.
    """
    archive = to_archive(content)
    return replace(path, lambda draft: draft.write_bytes(archive))


def from_archive(archive: bytes, *, sealed: bool = True, known: Sequence[Any] = ()) -> Any:
    """What :func:`to_archive` was given; nothing is unpickled but tensors, numbers and names.

    Args:
        archive: all bytes of a file.
        sealed: whether one without a checksum is refused, too.
        known: classes that may stand in it.

    Raises:
        ValueError: saying what is wrong with it.
    """
    comment = archive[-SEALED:]
    if comment.startswith(SEAL):
        if _seal(memoryview(archive)[:-SEALED]) != comment:
            raise ValueError("damaged, as its checksum shows")
    elif sealed:
        raise ValueError("another one or damaged, as it has no checksum")
    else:
        _check_entries(archive)
    try:
        with warnings.catch_warnings(), _known(known):
            warnings.simplefilter("ignore")  # of other protocols of pickles, refused here anyway
            return torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:  # torch's own message advises to run whatever the file holds
        raise ValueError(f"of another kind ({type(error).__name__})") from None


_UNREADABLE = (
    RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError, ValueError, OSError,
    pickle.UnpicklingError,
)  # fmt: skip


def _seal(archive: bytes | memoryview) -> bytes:
    return SEAL + hashlib.blake2b(archive, digest_size=32).hexdigest().encode()


def _check_entries(archive: bytes) -> None:
    """Of a zip archive without a checksum of its own, look at those that its entries have."""
    file = io.BytesIO(archive)
    if not zipfile.is_zipfile(file):
        return
    try:
        damaged = zipfile.ZipFile(file).testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError):
        damaged = "all of it"
    if damaged is not None:
        raise ValueError(f"damaged, as the checksum of {damaged} shows")


@contextmanager
def _known(classes: Sequence[Any]) -> Iterator[None]:
    """Let ``torch.load`` read objects of these classes."""
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([*classes])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
