"""The processes that train one pair together, as ``torchrun`` starts them: its ranks.

Every rank runs the same script. All hold the same parameters, go through the same minibatches, and
each takes its own part of the rows of every one. One sum over the ranks makes a step.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from pyrovae.data import Batch, Batches
from pyrovae.errors import InputError
from pyrovae.randomness import seeded_everywhere
from pyrovae.training.gradient_sum import Sum, over_ranks
from pyrovae.training.replay import NotRepeatable
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
        # Imported later, it would hold this group in its defaults, and the group's threads with it.
        importlib.import_module("torch.distributed.nn.functional")
        distributed.init_process_group(None if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return distributed.get_rank(), distributed.get_world_size()


def _leave() -> None:
    """Leave the group in order: a process that ends with its threads aborts now and then."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


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
        batch_rows: rows in a full minibatch, of all ranks.
    """

    trainable: Trainable
    rank: int = 0
    count: int = 1
    batch_rows: int = 1
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
        (all_rows, *known), total = self._exchange(rows)
        if all_rows != self.batch_rows:
            total.mul_(self.batch_rows / all_rows)
        for parameter, gradient, any_rank in zip(*self._places(total), known, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if any_rank else None

    def total(self, *numbers: float) -> list[float]:
        """The sums of numbers over all ranks, in double precision."""
        if self.count == 1:
            return list(numbers)
        self._exchange()
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._sum.own.device)
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
    def failing_together(self, kind: type[Exception] = Exception) -> Iterator[None]:
        """End all ranks with the error of the first one that fails so inside.

        Of errors at the same time those that end the run come first.
        """
        try:
            yield
        except kind as error:
            if self.count > 1 and not self._over:
                self._exchange(error=error)
            raise

    def go_on(self) -> None:
        """Exchange numbers again, after an error that all ranks have heard of."""
        self._over = False

    def _exchange(
        self, rows: int = 0, *, error: Exception | None = None
    ) -> tuple[list[float], Tensor]:
        """Sum over ranks: failed or not, rows, known gradients, and gradients by share of rows.

        Returns:
            the number of rows, and the number of ranks that know each gradient; and the sum of the
            gradients, each times b_r / b for a full minibatch of b rows.
        """
        numbers = [float(error is not None), float(rows)]
        share = rows / self.batch_rows
        for parameter, place in zip(*self._places(self._sum.own), strict=True):
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
            torch.mul(gradient.flatten(), share, out=place)
        self._over = True  # if this very exchange fails, there is no other
        (failed, *known), total = self._sum(numbers)
        if failed:
            self._raise_first(error)
        self._over = False
        return known, total

    def _raise_first(self, error: Exception | None) -> None:
        """Raise the error of the first rank that has one, unless this rank has one like it."""
        errors: list[Exception | None] = [None] * self.count
        distributed.all_gather_object(errors, error and _portable(error))
        failed = [(r, e) for r, e in enumerate(errors) if e is not None]
        rank, first = min(failed, key=lambda pair: isinstance(pair[1], NotRepeatable))
        if error is None or isinstance(error, NotRepeatable) > isinstance(first, NotRepeatable):
            first.add_note(f"This happened on rank {rank}.")
            raise first

    @cached_property
    def _sum(self) -> Sum:
        """What adds up the gradients of all parameters."""
        parameters = self.trainable.parameters.values()
        dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
        return over_ranks(
            sum(parameter.numel() for parameter in parameters),
            dtype,
            next(iter(parameters)).device,
            count=2 + len(parameters),
            rank=self.rank,
            ranks=self.count,
        )

    def _places(self, vector: Tensor) -> tuple[list[Tensor], Sequence[Tensor]]:
        """The parameters, and the place of each one's gradient in a vector of all."""
        parameters = list(self.trainable.parameters.values())
        return parameters, vector.split([p.numel() for p in parameters])


def _portable(error: Exception) -> Exception:
    """An error that another process can raise."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever someone else's class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
