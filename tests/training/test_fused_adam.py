"""Fused Adam without its bookkeeping takes the very steps of torch's own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrovae.training.fused_adam import update_of


def begun(**settings: Any) -> tuple[torch.optim.Adam, list[Tensor]]:
    """An optimizer of two groups after its first step, and its parameters."""
    torch.manual_seed(0)
    parameters: list[Tensor] = [nn.Parameter(torch.randn(n, 3)) for n in (4, 2, 1)]
    groups = [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:]}]
    optimizer = torch.optim.Adam(groups, **{"fused": True, "weight_decay": 0.1} | settings)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer, parameters


def stepped(quick: bool, **settings: Any) -> tuple[list[Tensor], dict[str, Any]]:
    optimizer, parameters = begun(**settings)
    step = update_of(optimizer) if quick else optimizer.step
    for _ in range(5):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        step()
    return parameters, deepcopy(optimizer.state_dict())


@pytest.mark.parametrize(
    "settings", [{}, {"amsgrad": True}, {"fused": False}, {"maximize": True}, {"eps": 0.1}]
)
def test_the_same_bits_and_state(settings: Any) -> None:
    (quick, state), (own, own_state) = stepped(True, **settings), stepped(False, **settings)
    assert all(map(torch.equal, quick, own))
    for place, values in own_state["state"].items():
        assert all(
            torch.equal(value, state["state"][place][name]) for name, value in values.items()
        )


def test_it_is_the_optimizer_s_own_step_where_there_is_more_to_do() -> None:
    optimizer, _ = begun()
    assert update_of(optimizer) != optimizer.step
    optimizer.register_step_pre_hook(lambda *_: None)
    assert update_of(optimizer) == optimizer.step
    fresh = torch.optim.Adam([nn.Parameter(torch.ones(1))], fused=True)
    assert update_of(fresh) == fresh.step
    for variant in ({"amsgrad": True}, {"fused": False}, {"lr": torch.tensor(0.1)}):
        other, _ = begun(**variant)
        assert update_of(other) == other.step


def test_a_parameter_without_gradient_stays() -> None:
    optimizer, parameters = begun()
    step, before = update_of(optimizer), parameters[0].detach().clone()
    parameters[0].grad = None
    step()
    assert torch.equal(parameters[0], before)
    assert [float(optimizer.state[p]["step"]) for p in parameters] == [1, 2, 2]
