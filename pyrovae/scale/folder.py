"""The folder that holds the encodings of a data set: two arrays, and what is known of them.

    manifest.json     the settings, which stay
    means.npy         locations of all components, shape (N, D)
    scales.npy        their standard deviations
    shards/7.json     of each shard that is done: digests of its data and of what it holds

A shard is a range of rows of both arrays. It counts once its record is there, which is written
whole or not at all, after the rows are on the disk: so a process may be killed at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.saving import check_room, replace, unwritable

FORMAT = 1
MANIFEST, MEANS, SCALES, RECORDS = "manifest.json", "means.npy", "scales.npy", "shards"


@dataclass(frozen=True)
class Settings:
    """What all shards of a folder have in common.

    Args:
        rows: N, in all shards.
        units: D.
        dtype: of the arrays, as numpy names it.
        shard_rows: rows in each shard but the last.
        site: of the guide.
    """

    rows: int
    units: int
    dtype: str
    shard_rows: int
    site: str

    @property
    def shards(self) -> tuple[slice, ...]:
        """The range of rows of each shard."""
        starts = range(0, self.rows, self.shard_rows)
        return tuple(slice(start, min(start + self.shard_rows, self.rows)) for start in starts)


@dataclass(frozen=True)
class Folder:
    """A folder of encodings.

    Args:
        path: where it is.
    """

    path: Path

    @property
    def exists(self) -> bool:
        """Whether it has a manifest, without which nothing in it counts."""
        return (self.path / MANIFEST).exists()

    @property
    def is_free(self) -> bool:
        """Whether there is nothing in it but what a process that was killed has begun."""
        if not self.path.exists():
            return True
        own = {MEANS, SCALES, RECORDS, *(f"{n}.partial" for n in (MANIFEST, MEANS, SCALES))}
        records = any((self.path / RECORDS).glob("*.json"))  # of another manifest
        return (
            self.path.is_dir()
            and own >= {found.name for found in self.path.iterdir()}
            and not records
        )

    @cached_property
    def settings(self) -> Settings:
        """The settings that it was begun with.

        Raises:
            InputError: if it has none that can be read.
        """
        content = _read_json(self.path / MANIFEST)
        try:
            version = content.pop("format")
            if version != FORMAT:
                raise ValueError(f"format {version}, not {FORMAT}")
            return _checked(Settings(**content))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"expected a folder that encode_to has written at {self.path}; got one with a "
                f"manifest of another kind: {error}. Name another folder."
            ) from None

    def begin(self, settings: Settings) -> None:
        """Write the manifest, and arrays of zeros that take no room on the disk yet."""
        try:
            (self.path / RECORDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        shape = settings.rows, settings.units
        check_room(self.path, 2 * math.prod(shape) * np.dtype(settings.dtype).itemsize)
        for name in (MEANS, SCALES):
            replace(self.path / name, lambda draft: _zeros(draft, settings.dtype, shape))
        _write_json(self.path / MANIFEST, {"format": FORMAT, **asdict(settings)})

    # -- shards --------------------------------------------------------------------------------

    def record(self, number: int) -> dict[str, str] | None:
        """The digests of a shard's data and of what it holds; ``None`` if it is not done."""
        path = self.path / RECORDS / f"{number}.json"
        if not path.exists():
            return None
        record = _read_json(path)
        if not {"data", "codes"} <= record.keys():
            raise InputError(
                f"expected the digests of shard {number} in {path}; got a file without them. "
                "Delete it, and call encode_to again, which writes that shard anew."
            )
        return record

    def missing(self) -> list[int]:
        """Numbers of the shards that are not done."""
        return [
            number for number in range(len(self.settings.shards)) if self.record(number) is None
        ]

    def write(self, number: int, means: NDArray[Any], scales: NDArray[Any], data: str) -> None:
        """Write the rows of a shard and then, once they are on the disk, its record.

        Args:
            number: of the shard.
            means, scales: its rows, in the dtype of the arrays.
            data: a digest of the data that they are encodings of.
        """
        start = self.settings.shards[number].start
        for name, rows in ((MEANS, means), (SCALES, scales)):
            _write_rows(self.path / name, start, rows)
        path = self.path / RECORDS / f"{number}.json"
        _write_json(path, {"data": data, "codes": digest(means, scales)})

    def check_codes(self) -> None:
        """Raise unless every shard holds what was written; this reads all of them.

        Raises:
            InputError: naming the first that doesn't.
        """
        mapped = [self.open(name)[0] for name in (MEANS, SCALES)]
        for number, rows in enumerate(self.settings.shards):
            found = digest(*(tensor[rows].numpy() for tensor in mapped))
            if found != (self.record(number) or {}).get("codes"):
                raise InputError(
                    f"expected shard {number} of {self.path} as it was written; got other numbers, "
                    f"as its digest shows. Delete {RECORDS}/{number}.json, and call encode_to "
                    "again, which writes that shard anew."
                )

    def open(self, name: str) -> tuple[Tensor, Callable[[], object]]:
        """An array as a tensor over the file, and what lets go of the pages that were read.

        Raises:
            InputError: if it is not of the manifest's shape and dtype.
        """
        path, shape = self.path / name, (self.settings.rows, self.settings.units)
        try:
            array = np.load(path, mmap_mode="c")  # in mode "r" torch warns that it is not writable
        except (OSError, ValueError) as error:
            raise InputError(
                f"expected an array of numpy at {path}; got a file that is none: {error}. Encode "
                "the data anew, into another folder."
            ) from error
        if array.shape != shape or array.dtype != self.settings.dtype:
            raise InputError(
                f"expected {path} to be of shape {shape} and dtype {self.settings.dtype}, as the "
                f"manifest says; got {array.shape} and {array.dtype}. Encode the data anew, into "
                "another folder."
            )
        mapping: Any = array.base

        def let_go() -> None:
            if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system decides by itself
                mapping.madvise(mmap.MADV_DONTNEED)

        return torch.from_numpy(array), let_go


def _checked(settings: Settings) -> Settings:
    """Settings, if they can be those of a folder.

    Raises:
        ValueError: otherwise.
    """
    for name in ("rows", "units", "shard_rows"):
        number = getattr(settings, name)
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} {number!r}, not a whole number of at least 1")
    return settings


def digest(*arrays: NDArray[Any]) -> str:
    """A digest of all numbers of some arrays."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _zeros(path: Path, dtype: str, shape: tuple[int, int]) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def _write_rows(path: Path, start: int, rows: NDArray[Any]) -> None:
    """Write rows into an array by the file, not by memory: a full disk is then an error."""
    offset = np.load(path, mmap_mode="r").offset
    try:
        with path.open("r+b") as file:
            file.seek(offset + start * math.prod(rows.shape[1:]) * rows.itemsize)
            file.write(np.ascontiguousarray(rows).data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace(path, lambda draft: draft.write_text(json.dumps(content), encoding="utf-8"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a folder that encode_to has written; got none that can be read: {path}: "
            f"{error}. Name another folder, or encode the data with encode_to."
        ) from None
    if not isinstance(content, dict):
        raise InputError(
            f"expected a folder that encode_to has written; got another file in {path}. Name "
            "another folder."
        )
    return content
