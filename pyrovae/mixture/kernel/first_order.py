"""Gradients that can be taken once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated again instead of being taken for a constant.

    Called as ``Once.apply(value, limit, *inputs)`` with what it was computed from and what to say
    of problems that are small enough.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, limit: str, *inputs: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise _second(ctx.limit)

    @staticmethod
    def jvp(ctx: Any, value: Tensor, limit: None, *inputs: Tensor | None) -> Tensor:
        if any(tangent is not None for tangent in inputs):
            raise _second(ctx.limit)
        return value.clone()


def _second(limit: str) -> RuntimeError:
    return RuntimeError(
        "expected one derivative of this log density; got a request for a second one, which is "
        f"available {limit}. Use fewer points at once."
    )


def once(found: list[Tensor | None], limit: str, inputs: list[Tensor]) -> list[Tensor | None]:
    """Gradients that are linked to their inputs, if a graph of them is asked for."""
    if not torch.is_grad_enabled():
        return found
    return [None if f is None else Once.apply(f, limit, *inputs) for f in found]  # type: ignore[no-untyped-call]
