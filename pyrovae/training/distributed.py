"""The processes that train one pair together, as ``torchrun`` starts them: its ranks.

Every rank runs the same script. All hold the same parameters, go through the same minibatches, and
each takes its own part of the rows of every one. One sum over the ranks makes a step.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from pyrovae.data import Batch, Batches
from pyrovae.errors import InputError
from pyrovae.randomness import seeded_everywhere
from pyrovae.training.trainable import Trainable

T = TypeVar("T")


def join(device: torch.device) -> tuple[int, int]:
    """Join the other ranks, and tell the rank of this process and how many there are.

    Args:
        device: where the pair is trained; ``nccl`` exchanges numbers between GPUs, ``gloo`` others.

    Returns:
        ``(0, 1)`` if ``torchrun`` did not start this process and the script joined no group.
    """
    if not distributed.is_available():
        return 0, 1
    if not distributed.is_initialized():
        if processes_started() == 1:
            return 0, 1
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group(None if device.type == "cuda" else "gloo")
    return distributed.get_rank(), distributed.get_world_size()


def processes_started() -> int:
    """How many processes ``torchrun`` has started, this one among them; 1 without it."""
    by_torchrun = distributed.is_available() and distributed.is_torchelastic_launched()
    return int(os.environ["WORLD_SIZE"]) if by_torchrun else 1


def own_device(device: torch.device) -> torch.device:
    """The GPU of this rank, where a script that ``torchrun`` starts means "a GPU" on every rank."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or local_rank is None or device.index:
        return device
    return torch.device("cuda", int(local_rank))


@dataclass(eq=False)
class Ranks:
    """What the ranks exchange during training; with one rank, nothing.

    Each exchange begins with the sum of a vector that has the same length whatever it is for, and
    whose first number says that a rank has failed. So a rank that fails anywhere takes part in the
    sum that the others wait for next, and all end with its error.

    Args:
        trainable: the pair.
        rank: number of this one, from 0.
        count: how many there are.
    """

    trainable: Trainable
    rank: int = 0
    count: int = 1
    _over: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and shows progress for all."""
        return self.rank == 0

    @contextmanager
    def batches(self, data: Batches, *, in_order: bool) -> Iterator[Iterator[Batch]]:
        """One pass over this rank's part of every minibatch.

        The order is drawn from torch's random state, the same on all ranks. What is drawn inside,
        such as latents, comes from a stream of this rank's own.
        """
        own = data.part(self.rank, self.count) if self.count > 1 else data
        one_pass = own.ordered() if in_order else own.shuffled()
        if self.count == 1:
            yield one_pass
            return
        with seeded_everywhere(int(torch.randint(1 << 62, ())), "draws of a rank", self.rank):
            yield one_pass

    def steps_without_rows(self, steps: int, all_steps: int) -> range:
        """Steps of a pass that are left to the ranks that have a row of the last minibatch."""
        return range(steps, all_steps if self.count > 1 else steps)

    def average_gradients(self, rows: int) -> None:
        """Give every parameter the gradient of the mean over the rows of all ranks.

        Σ_r b_r ∇_r / Σ_r b_r, where ∇_r is the gradient of the mean over the b_r rows of rank r. A
        parameter that no rank has a gradient for has none afterwards either.

        Args:
            rows: b_r, 0 if this rank had no part in the minibatch.

        Raises:
            InputError: if a gradient is sparse.
            Exception: that of another rank that failed.
        """
        if self.count == 1:
            return
        all_rows, *known = self._exchange(rows)
        self._sums.div_(all_rows)
        for parameter, place, any_rank in zip(*self._places, known, strict=True):
            parameter.grad = place.view_as(parameter).to(parameter.dtype) if any_rank else None

    def total(self, *numbers: float) -> list[float]:
        """The sums of numbers over all ranks, in double precision."""
        if self.count == 1:
            return list(numbers)
        self._exchange()
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._sums.device)
        distributed.all_reduce(sums)
        return cast("list[float]", sums.tolist())

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, for all of them; the others wait for it."""
        made = [make() if self.is_first else None]
        if self.count > 1:
            self._exchange()
            with warnings.catch_warnings():  # torch 2.4 warns of how it reads its own tensors
                warnings.simplefilter("ignore", FutureWarning)
                distributed.broadcast_object_list(made)
        return cast(T, made[0])

    def align(self) -> None:
        """Give every rank the parameters and buffers of the first one."""
        if self.count > 1:
            self.trainable.load(self.from_first(self.trainable.state))

    def check_same(self, describe: Callable[[], Mapping[str, str]]) -> None:
        """Raise unless all ranks train the same pair on the same data.

        Args:
            describe: says what must be the same, as text by name.

        Raises:
            InputError: naming what differs.
        """
        if self.count == 1:
            return
        facts = describe()
        gathered: list[Mapping[str, str]] = [{}] * self.count
        distributed.all_gather_object(gathered, facts)
        names = list(dict.fromkeys(name for theirs in gathered for name in theirs))
        differing = [n for n in names if len({theirs.get(n) for theirs in gathered}) > 1]
        if differing:
            raise InputError(
                f"expected the same in all {self.count} processes; got other "
                f"{', '.join(differing[:4])} in some. Give each of them all rows in one order, and "
                "the same settings: fit takes each one's part itself. To train a pair of its own "
                "in each process, start them without torchrun."
            )

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """End all ranks with the error of the first one that fails inside."""
        try:
            yield
        except Exception as error:
            if self.count > 1 and not self._over:
                self._exchange(error=error)
            raise

    def _exchange(self, rows: int = 0, *, error: Exception | None = None) -> list[float]:
        """Sum over ranks: failed or not, rows, known gradients, and rows × gradients.

        Returns:
            the number of rows, and the number of ranks that know each gradient. The sums of the
            gradients are left in their places.
        """
        numbers = [float(error is not None), float(rows)]
        for parameter, place in zip(*self._places, strict=True):
            gradient = parameter.grad if rows else None
            numbers.append(float(gradient is not None))
            if gradient is None:
                place.zero_()
                continue
            if gradient.is_sparse:
                raise InputError(
                    f"expected dense gradients in {self.count} processes; got a sparse one, of "
                    f"shape {tuple(parameter.shape)}. Make the Embedding with sparse=False."
                )
            torch.mul(gradient.flatten(), rows, out=place)
        self._sums[: len(numbers)] = torch.tensor(numbers)
        self._over = True  # if this very exchange fails, there is no other
        distributed.all_reduce(self._sums)
        failed, *known = self._sums[: len(numbers)].tolist()
        if failed:
            self._raise_first(error)
        self._over = False
        return known

    def _raise_first(self, error: Exception | None) -> None:
        """Raise the error of the first rank that has one, unless this rank has one itself."""
        errors: list[Exception | None] = [None] * self.count
        distributed.all_gather_object(errors, error and _portable(error))
        rank, first = next((r, e) for r, e in enumerate(errors) if e is not None)
        if error is None:
            first.add_note(f"This happened on rank {rank}.")
            raise first

    @cached_property
    def _sums(self) -> Tensor:
        """The vector that is summed; it is the same memory in every exchange."""
        parameters = self.trainable.parameters.values()
        dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
        size = 2 + sum(1 + parameter.numel() for parameter in parameters)
        return torch.zeros(size, dtype=dtype, device=next(iter(parameters)).device)

    @cached_property
    def _places(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters, and the place of each one's gradient in the vector."""
        parameters = list(self.trainable.parameters.values())
        gradients = self._sums[2 + len(parameters) :]
        return parameters, list(gradients.split([p.numel() for p in parameters]))


def _portable(error: Exception) -> Exception:
    """An error that another process can raise."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever someone else's class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
