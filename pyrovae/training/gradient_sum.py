"""The sum of a vector over ranks: by the memory that ranks of one machine share, or by messages.

Messages of gloo go through the system's sockets: each number is copied several times. Ranks of one
machine write into memory that all of them see, and each adds up what is there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, distributed

SHARED = Path("/dev/shm")
#: Each rank reads what all have written: of more ranks than this messages are faster.
MOST_RANKS = 8


class Sum(Protocol):
    """What adds up vectors of the same length, with a few numbers in front that all learn first."""

    @property
    def own(self) -> Tensor:
        """Where this rank's next vector is to be written."""

    def __call__(self, numbers: Sequence[float]) -> tuple[list[float], Tensor]:
        """The sums over all ranks, of the numbers and of the vectors.

        The next call writes over the vector. If the first of the numbers isn't 0 in every rank,
        the vector is not looked at, and what is returned for it means nothing.
        """


@dataclass
class ByMessages:
    """The sum by torch's all-reduce.

    Args:
        size: of the vector.
        dtype, device: of the vector.
        count: how many numbers go in front.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    count: int
    _whole: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._whole = torch.zeros(self.count + self.size, dtype=self.dtype, device=self.device)

    @property
    def own(self) -> Tensor:
        return self._whole[self.count :]

    def __call__(self, numbers: Sequence[float]) -> tuple[list[float], Tensor]:
        self._whole[: self.count] = torch.tensor(numbers)
        distributed.all_reduce(self._whole)
        return self._whole[: self.count].tolist(), self.own


class ByMemory:
    """The sum by memory that all ranks see.

    Each rank has two places there, which take turns: one can be written into while a rank that is
    late still reads the other. None can be two sums ahead, as the numbers in front are a message
    that each waits for.

    Args:
        slots: shape ``(2, R, n)``, the same memory in all R ranks.
        rank: number of this one.
    """

    def __init__(self, slots: Tensor, rank: int) -> None:
        self._slots, self._rank, self._turn = slots, rank, 0
        self._total = torch.empty_like(slots[0, 0])

    @property
    def own(self) -> Tensor:
        return self._slots[self._turn, self._rank]

    def __call__(self, numbers: Sequence[float]) -> tuple[list[float], Tensor]:
        front = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(front)
        sums = front.tolist()
        first, second, *others = self._slots[self._turn]
        self._turn = 1 - self._turn
        if not sums[0]:
            torch.add(first, second, out=self._total)
            for other in others:
                self._total.add_(other)
        return sums, self._total


def over_ranks(
    size: int, dtype: torch.dtype, device: torch.device, *, count: int, rank: int, ranks: int
) -> Sum:
    """The fastest sum that these ranks have; all of them have to ask for it."""
    if device.type == "cpu" and 1 < ranks <= MOST_RANKS:
        slots = _shared(2 * ranks * size, dtype, rank, ranks)
        if slots is not None:
            return ByMemory(slots.view(2, ranks, size), rank)
    return ByMessages(size, dtype, device, count)


def _shared(size: int, dtype: torch.dtype, rank: int, ranks: int) -> Tensor | None:
    """Memory that all ranks see; none if they run on several machines, or there is no room.

    The file behind it has a name only until all have opened it, so that nothing is left of it
    however they end.
    """
    number_of_bytes = size * torch.empty((), dtype=dtype).element_size()
    path = _new_file(number_of_bytes) if rank == 0 else None
    letters = torch.zeros(100, dtype=torch.uint8)
    if path is not None:
        letters[: len(path.name)] = torch.tensor(list(path.name.encode()))
    distributed.broadcast(letters, 0)
    name = bytes(letters.tolist()).rstrip(b"\0").decode()
    seen = torch.tensor(float(bool(name) and (SHARED / name).exists()))
    distributed.all_reduce(seen)
    shared = None
    if int(seen) == ranks:
        shared = torch.from_file(str(SHARED / name), shared=True, size=size, dtype=dtype)
    distributed.barrier()
    if path is not None:
        path.unlink()
    return shared


def _new_file(number_of_bytes: int) -> Path | None:
    """A file of zeros in memory with a name that no other machine has; none if there is no room."""
    if not SHARED.is_dir() or not hasattr(os, "posix_fallocate"):
        return None
    try:
        number, name = tempfile.mkstemp(prefix="pyrovae-", dir=SHARED)
    except OSError:
        return None
    try:
        os.posix_fallocate(number, 0, number_of_bytes)
    except OSError:
        Path(name).unlink()
        return None
    finally:
        os.close(number)
    return Path(name)
