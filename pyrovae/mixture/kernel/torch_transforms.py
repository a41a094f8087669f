"""Look at tensors inside ``torch.func`` transforms and forward-mode derivatives.

This is the only file that reads a flag private to torch, by which `torch.autograd.Function` itself
tells whether a transform of ``torch.func`` is active.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether this runs inside a transform of ``torch.func``: ``vmap``, ``grad``, ``jvp``."""
    inside: bool = torch._C._are_functorch_transforms_active()
    return inside


def transformed(*tensors: Tensor) -> bool:
    """Whether this is inside such a transform, or a tensor carries a forward-mode derivative."""
    inside: bool = torch._C._are_functorch_transforms_active()
    return inside or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def need_derivatives(*tensors: Tensor) -> bool:
    """Whether derivatives in one of them may be needed, or it stands for many in ``vmap``."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return True
    if torch._C._are_functorch_transforms_active():
        try:
            for tensor in tensors:
                tensor.data_ptr()
        except RuntimeError:  # a tensor wrapped by torch.func has no memory of its own
            return True
    return False


def any_true(mask: Tensor) -> bool:
    """Whether any entry is true; inside ``torch.vmap``, of all the tensors that it stands for."""
    return bool(_Largest.apply(mask.detach()) if active() else mask.any())  # type: ignore[no-untyped-call]


def largest(number: Tensor) -> float:
    """The value of a one-number tensor; inside ``torch.vmap``, the largest of all, or NaN."""
    return float(_Largest.apply(number.detach()) if active() else number)  # type: ignore[no-untyped-call]


class _Largest(torch.autograd.Function):
    """The largest entry as one number, inside ``torch.vmap`` too."""

    @staticmethod
    def forward(entries: Tensor) -> Tensor:
        return entries.max() if entries.numel() else entries.any()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], entries: Tensor) -> tuple[Tensor, None]:
        return _Largest.apply(entries), None  # type: ignore[no-untyped-call]
