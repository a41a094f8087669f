"""Flows as nested dicts of names, numbers and tensors, which load without unpickling objects."""

from __future__ import annotations

import inspect
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import DenseNN
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.randomness import seeded

LAYOUT = ("split_dim", "input_dim", "hidden_dims", "count_bins", "bound")

#: Of which a flow is made: Pyro's own, and that of a prior as a pair has read it.
KINDS = (dist.TransformedDistribution, families.Pushed)


def is_flow(density: dist.Distribution) -> bool:
    """Whether a density is another one through transforms that hold tensors or modules."""
    return type(density) in KINDS and (
        is_flow(density.base_dist)
        or any(isinstance(v, Tensor) for step in density.transforms for v in vars(step).values())
        or any(isinstance(step, nn.Module) for step in density.transforms)
    )


def to_state(density: dist.Distribution) -> dict[str, Any]:
    """What a flow of `FlowPrior` or the candidate `Flow` is made of.

    Raises:
        InputError: for other modules than spline couplings.
    """
    if type(density) not in KINDS:
        return {"base": families.to_state(density)}
    return {
        "base": to_state(density.base_dist),
        "steps": [_step_state(step) for step in density.transforms],
        "pushed": isinstance(density, families.Pushed),
    }


def from_state(state: dict[str, Any]) -> dist.Distribution:
    """The flow that `to_state` described, without gradients in its parameters."""
    if "steps" not in state:
        return families.from_state(state["base"])
    kind = families.Pushed if state.get("pushed") else dist.TransformedDistribution
    return kind(from_state(state["base"]), [_step(held) for held in state["steps"]])


def _step_state(step: Any) -> dict[str, Any]:
    if isinstance(step, dist.transforms.SplineCoupling):
        return _coupling_state(step)
    if isinstance(step, nn.Module):
        raise _unknown(type(step).__name__)
    names = [name for name in inspect.signature(type(step)).parameters if name != "cache_size"]
    return {"name": type(step).__name__, "with": {name: _plain(step, name) for name in names}}


def _plain(step: Any, name: str) -> Any:
    value = getattr(step, name)
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, bool | int | float):
        return value
    raise _unknown(type(step).__name__)


def _coupling_state(step: Any) -> dict[str, Any]:
    lower, upper = step.lower_spline, step.upper_spline
    network = upper.nn
    usual = isinstance(network, DenseNN) and isinstance(network.f, nn.ReLU) and not step.identity
    if not usual or lower.order != "linear":
        raise _unknown("SplineCoupling with a network of its own")
    values = (
        step.split_dim, step.split_dim + upper.input_dim, list(network.hidden_dims),
        lower.count_bins, lower.bound,
    )  # fmt: skip
    tensors = {name: value.detach().cpu().clone() for name, value in step.state_dict().items()}
    return {"coupling": dict(zip(LAYOUT, values, strict=True)), "tensors": tensors}


def _step(held: dict[str, Any]) -> Any:
    if "coupling" in held:
        with seeded(0, "coupling that is replaced"):  # what is drawn to start from is replaced
            coupling = dist.transforms.spline_coupling(**held["coupling"])
        coupling.to(next(iter(held["tensors"].values())))
        coupling.load_state_dict(held["tensors"])
        return coupling.requires_grad_(False)
    kind = getattr(dist.transforms, held["name"], None)
    if not (isinstance(kind, type) and issubclass(kind, torch.distributions.Transform)):
        raise InputError(f"expected a transform of pyro.distributions; got {held['name']!r}.")
    return kind(**held["with"])


def _unknown(name: str) -> InputError:
    return InputError(
        f"expected a flow of spline couplings, as of FlowPrior; got {name}. Keep the state_dict "
        "of its module and build it anew, or choose a density without it."
    )
