"""Torch's fused Adam without what it looks up again before every update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as hooks


def update_of(optimizer: Optimizer) -> Callable[[], object]:
    """What ``optimizer.step`` does, to the last bit, and where that is fused Adam nothing else.

    The function holds for as long as nobody changes the settings or the state in the optimizer.
    """
    updates = [_update(optimizer, group) for group in optimizer.param_groups]
    if not _is_fused_adam(optimizer) or None in updates:
        return optimizer.step

    @torch.no_grad()
    def step() -> None:
        if any(p.grad is None for group in optimizer.param_groups for p in group["params"]):
            optimizer.step()
        else:
            for update in updates:
                update()  # type: ignore[misc]

    return step


def _is_fused_adam(optimizer: Optimizer) -> bool:
    """Whether this is torch's Adam, and nobody has hooked into it."""
    hooked = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        hooks._global_optimizer_pre_hooks,
        hooks._global_optimizer_post_hooks,
    )
    replaced = "step" in vars(optimizer) or hasattr(optimizer, "grad_scale")
    return type(optimizer) is torch.optim.Adam and not any(hooked) and not replaced


def _update(optimizer: Optimizer, group: dict[str, Any]) -> Callable[[], None] | None:
    """The update of one group, if it has begun and is a plain one."""
    variants = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
    parameters = group["params"]
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    numbers = (group.get("lr"), *group.get("betas", ()))
    if (
        not group.get("fused")
        or any(group.get(name) for name in variants)
        or not all(isinstance(number, float) for number in numbers)
        or not all("exp_avg" in state for state in states)
        or len(kinds) != 1
    ):
        return None
    means, squares, counts = (
        [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
    )
    settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
    settings |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))

    def update() -> None:
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_add_(counts, 1)
        torch._fused_adam_(parameters, gradients, means, squares, [], counts, **settings)

    return update
