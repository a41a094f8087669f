"""Cache what is computed from a mixture's parameters, inside inference mode and outside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.mixture.kernel import torch_transforms

Value = TypeVar("Value")


class Cache:
    """One value computed from some tensors, valid as long as these hold the same numbers.

    The numbers are compared with a copy, bit by bit. Torch's counter of changes in place would cost
    less, but misses changes by fused optimizers, through ``tensor.data`` and through arrays that
    share the memory.
    """

    def __init__(self) -> None:
        self._entry: tuple[list[_Copy], Any] | None = None
        #: Whether a value was needed before, so that caching it would have paid.
        self.used_before = False

    def find(self, tensors: Sequence[Tensor]) -> Any | None:
        """The value, if the tensors still hold the numbers that it was computed from; else None."""
        entry = self._entry  # read once: another thread may replace it
        if entry is None or torch_transforms.active():  # inside torch.func memory can't be read
            return None
        copies, value = entry
        same = all(copy.matches(tensor) for copy, tensor in zip(copies, tensors, strict=True))
        return value if same else None

    def store(self, tensors: Sequence[Tensor], compute: Callable[[], Value]) -> Value:
        """What ``compute`` returns, cached for these tensors, which need no gradient."""
        if torch_transforms.active():  # torch.func may have wrapped the value
            return compute()
        self._entry = None  # frees its memory before the next value takes as much
        copies = [_Copy(tensor) for tensor in tensors]
        value = compute()
        self._entry = copies, value
        return value


class _Copy:
    """A copy of the numbers of a tensor, without the repetitions of expanded dimensions."""

    def __init__(self, tensor: Tensor) -> None:
        self.layout = _memory_layout(tensor)
        self.distinct = tuple(slice(0, 1 if step == 0 else None) for step in tensor.stride())
        self.array: NDArray[Any] | None = None
        if tensor.device.type != "cpu":
            self.numbers: Any = tensor[self.distinct].clone()
            return
        if tensor.dtype == torch.bfloat16:  # NumPy does not have it
            tensor = tensor.view(torch.int16)
        self.array = tensor[self.distinct].numpy()
        self.numbers = self.array.tobytes()

    def matches(self, tensor: Tensor) -> bool:
        """Whether the tensor has the same memory layout and holds these numbers."""
        if _memory_layout(tensor) != self.layout:
            return False
        if self.array is None:
            return torch.equal(tensor[self.distinct], self.numbers)
        # both have one length, so this compares all bytes without a copy
        same: bool = self.numbers.startswith(np.ascontiguousarray(self.array))
        return same


def _memory_layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def leave_inference_mode(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if it was made in inference mode: autograd can't save those."""
    return tensor.clone() if tensor.is_inference() else tensor
