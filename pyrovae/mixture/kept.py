"""What is made of a mixture's parameters once and kept, inside of inference mode and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class Kept:
    """One thing made of some tensors, for as long as these hold the same numbers.

    That is told by where they lie and by the version that torch counts up with every change in
    place; changes that it does not count, those of ``tensor.data``, are not seen.
    """

    def __init__(self) -> None:
        self._held: tuple[tuple[Any, ...], Any] | None = None

    def asked_again(self, tensors: Sequence[Tensor]) -> bool:
        """Whether this is not the first question about the tensors as they are."""
        key, held = _key(tensors), self._held
        if held is not None and held[0] == key:
            return True
        self._held = key, None
        return False

    def get(self, tensors: Sequence[Tensor], make: Callable[[], Made]) -> Made:
        """What ``make`` returned for the tensors as they are."""
        key, held = _key(tensors), self._held
        if held is None or held[0] != key or held[1] is None:
            held = self._held = key, make()  # never read again here: another thread may replace it
        made: Made = held[1]
        return made


def _key(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((_place(t), 0 if t.is_inference() else t._version) for t in tensors)


def _place(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # inside of torch.func there is no memory to point to
        return id(tensor)


def usable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made in inference mode, which autograd would refuse to save."""
    return tensor.clone() if tensor.is_inference() else tensor
