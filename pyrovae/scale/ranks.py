"""The processes of a group of torch, each with components of its own, as one mixture."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

from pyrovae.errors import InputError
from pyrovae.mixture.kernel import Sum

Part = TypeVar("Part")


class Ranks:
    """This process among the others of torch's process group.

    Args:
        rank: its number.
        count: how many there are.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    @classmethod
    def of_group(cls) -> Ranks | None:
        """The ranks of the group that the script has initialised; None for one process alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        count = distributed.get_world_size()
        return cls(distributed.get_rank(), count) if count > 1 else None

    @classmethod
    def to_write(cls) -> Ranks | None:
        """The same, for what several processes must not write unless they know of each other.

        Raises:
            InputError: if ``torchrun`` started several, and the script initialised no group.
        """
        if distributed.is_available() and distributed.is_torchelastic_launched():
            count = int(os.environ["WORLD_SIZE"])
            if count > 1 and not distributed.is_initialized():
                raise InputError(
                    f"expected a process group, so that each of the {count} processes that "
                    "torchrun started writes its own shards; got none. Call "
                    'torch.distributed.init_process_group("gloo") first.'
                )
        return cls.of_group()

    def own(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The parts of this process: every k-th."""
        return parts[self.rank :: self.count]

    def check_points(self, z: Tensor) -> None:
        """Raise unless all processes have these points.

        Raises:
            InputError: on every process, if one has others.
        """
        numbers = z.detach().cpu().double().contiguous().numpy().tobytes()
        found = self.gather((tuple(z.shape), hashlib.blake2b(numbers, digest_size=16).digest()))
        if any(other != found[0] for other in found):
            raise InputError(
                "expected the same points in all processes, each of which evaluates components of "
                f"its own; got shapes {[shape for shape, _ in found]}, with different numbers. "
                "Draw them with the same seed, or send those of one process to all: "
                "torch.distributed.broadcast(z, 0)."
            )

    def add_up(self, total: Sum) -> None:
        """Make each process's sums the sums over all of them."""
        largest = total.largest.clone()
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        nothing = torch.full_like(largest, -math.inf)  # makes the sums relative to the largest
        means = torch.zeros_like(total.score), torch.zeros_like(largest)
        total.add(torch.arange(len(largest), device=largest.device), largest, nothing, means)
        for sums in (total.mass, total.excess, total.score):
            if sums.numel():
                distributed.all_reduce(sums)

    def join(self, index: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """The columns of all processes side by side, each of shape ``(B, k)``."""
        found = self.gather((index.cpu(), score.cpu()))
        return (
            torch.cat([number for number, _ in found], 1).to(index.device),
            torch.cat([value for _, value in found], 1).to(score.device),
        )

    def gather(self, value: Part) -> list[Part]:
        """What each process has, in the order of their numbers."""
        found: list[Part | None] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]
