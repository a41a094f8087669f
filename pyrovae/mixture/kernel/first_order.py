"""Gradients that refuse to be differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FirstOrderOnly(torch.autograd.Function):
    """A gradient that refuses a second derivative instead of passing for a constant.

    Called as ``FirstOrderOnly.apply(value, limit, *inputs)``, with the inputs that the value was
    computed from and with words for the problem sizes that do have second derivatives.
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
        raise _second_derivative_error(ctx.limit)

    @staticmethod
    def jvp(ctx: Any, value: Tensor, limit: None, *inputs: Tensor | None) -> Tensor:
        if any(tangent is not None for tangent in inputs):
            raise _second_derivative_error(ctx.limit)
        return value.clone()


def _second_derivative_error(limit: str) -> RuntimeError:
    return RuntimeError(
        "expected one derivative of this log density; got a request for a second one, which is "
        f"available {limit}. Use fewer points at once."
    )


def forbid_second(
    gradients: list[Tensor | None], limit: str, inputs: list[Tensor]
) -> list[Tensor | None]:
    """The gradients; if autograd records them, linked to their inputs by `FirstOrderOnly`."""
    if not torch.is_grad_enabled():
        return gradients
    return [
        None if gradient is None else FirstOrderOnly.apply(gradient, limit, *inputs)  # type: ignore[no-untyped-call]
        for gradient in gradients
    ]
