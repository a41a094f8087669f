"""What is made of a mixture's parameters once and kept, inside of inference mode and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.mixture.kernel import torch_transforms

Made = TypeVar("Made")


class Kept:
    """One thing made of some tensors, for as long as these hold the same numbers.

    They are compared with a copy, bit by bit. Torch's count of changes in place would cost less,
    but leaves out those of fused optimizers, of ``tensor.data`` and of arrays that share the
    memory.
    """

    def __init__(self) -> None:
        self._held: tuple[list[_Copy], Any] | None = None
        #: Whether anything was asked for before, so that to keep it would have paid.
        self.asked = False

    def find(self, tensors: Sequence[Tensor]) -> Any | None:
        """What was made of the tensors, if they hold the numbers that they had then."""
        held = self._held  # never read again here: another thread may replace it
        if held is None or torch_transforms.active():  # where no memory can be looked at
            return None
        copies, made = held
        same = all(copy.of(tensor) for copy, tensor in zip(copies, tensors, strict=True))
        return made if same else None

    def make(self, tensors: Sequence[Tensor], make: Callable[[], Made]) -> Made:
        """What ``make`` returns, kept as made of the tensors, which ask for no gradient."""
        if torch_transforms.active():  # by torch.func, which may have marked what is made
            return make()
        self._held = None  # before the next takes as much memory
        copies = [_Copy(tensor) for tensor in tensors]
        made = make()
        self._held = copies, made
        return made


class _Copy:
    """The numbers of a tensor, of which what is expanded counts once."""

    def __init__(self, tensor: Tensor) -> None:
        self.place = _place(tensor)
        self.once = tuple(slice(0, 1 if step == 0 else None) for step in tensor.stride())
        self.array: NDArray[Any] | None = None
        if tensor.device.type != "cpu":
            self.numbers: Any = tensor[self.once].clone()
            return
        if tensor.dtype == torch.bfloat16:  # which NumPy does not have
            tensor = tensor.view(torch.int16)
        self.array = tensor[self.once].numpy()
        self.numbers = self.array.tobytes()

    def of(self, tensor: Tensor) -> bool:
        """Whether the tensor is in the same place and holds these numbers."""
        if _place(tensor) != self.place:
            return False
        if self.array is None:
            return torch.equal(tensor[self.once], self.numbers)
        # of equal length, compared where they lie
        same: bool = self.numbers.startswith(np.ascontiguousarray(self.array))
        return same


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def usable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made in inference mode, which autograd would refuse to save."""
    return tensor.clone() if tensor.is_inference() else tensor
