"""What may be done with tensors inside of ``torch.func`` and of forward-mode derivatives.

This is the only file that asks for a flag private to torch, by which `torch.autograd.Function`
itself tells whether a transform of ``torch.func`` is active.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether this runs inside of a transform of ``torch.func``: ``vmap``, ``grad``, ``jvp``."""
    inside: bool = torch._C._are_functorch_transforms_active()
    return inside


def forward_mode(tensor: Tensor) -> bool:
    """Whether a derivative is carried along with the tensor."""
    return forward_ad.unpack_dual(tensor).tangent is not None


def moving(tensor: Tensor) -> bool:
    """Whether derivatives in the tensor may be asked for, or it stands for many in ``vmap``."""
    if (tensor.requires_grad and torch.is_grad_enabled()) or forward_mode(tensor):
        return True
    if not active():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # what torch.func wraps has no memory of its own
        return True
    return False


def some(mask: Tensor) -> bool:
    """Whether any entry is true; inside of ``torch.vmap``, of all that it stands for."""
    return bool(_Largest.apply(mask.detach()) if active() else mask.any())  # type: ignore[no-untyped-call]


def largest(number: Tensor) -> float:
    """A tensor of one number; inside of ``torch.vmap``, the largest that it stands for, or NaN."""
    return float(_Largest.apply(number.detach()) if active() else number)  # type: ignore[no-untyped-call]


class _Largest(torch.autograd.Function):
    """The largest entry as one number, also inside of ``torch.vmap``."""

    @staticmethod
    def forward(entries: Tensor) -> Tensor:
        return entries.max() if entries.numel() else entries.any()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], entries: Tensor) -> tuple[Tensor, None]:
        return _Largest.apply(entries), None  # type: ignore[no-untyped-call]
