"""A density as a module that is moved, cast, copied and saved, and in which nothing is learned."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, MixtureSameFamily

from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior, Mixture, families

Edit = Callable[[Tensor], Tensor]
EditNetwork = Callable[[nn.Module], nn.Module]


class Fixed(nn.Module):
    """A distribution as a module: what p(z) is when nothing in it is to be learned.

    It holds the density as it is now. Its tensors are buffers and the networks of a flow are
    submodules, which ``.to(...)``, ``.double()`` and ``state_dict()`` treat as those of any module.
    A density that can't be taken apart into tensors, such as one that runs a guide, is held as it
    is: it is not part of ``state_dict()``, and moving or casting it is an error.

    Args:
        distribution: of any family.

    Raises:
        InputError: if one that can't be taken apart is moved to another device or dtype.
    """

    def __init__(self, distribution: dist.Distribution) -> None:
        super().__init__()
        self.networks = nn.ModuleList()
        self._made, self._made_of = distribution, list[Tensor]()
        tensors: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            tensors.append(tensor.detach().clone())
            return tensors[-1]

        def register(network: nn.Module) -> nn.Module:
            self.networks.append(_copied(network).requires_grad_(False))
            return self.networks[-1]

        try:
            with torch.inference_mode(False), torch.no_grad():
                self._made = edited(distribution, note, register)
        except InputError:
            self.networks, tensors = nn.ModuleList(), []
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"tensor_{number}", tensor)
        self._made_of = [tensor.clone() for tensor in tensors]

    def forward(self) -> dist.Distribution:
        now = list(self.buffers(recurse=False))
        if not same_numbers(self._made_of, now):
            with torch.inference_mode(False), torch.no_grad():
                self._made_of = [tensor.clone() for tensor in now]
                parts = iter([tensor.clone() for tensor in now])
                self._made = edited(self._made, lambda _: next(parts), lambda network: network)
        return self._made

    def __deepcopy__(self, memo: dict[int, Any]) -> Fixed:
        whole = not self._made_of and not self.networks
        return Fixed(copy.deepcopy(self._made, memo) if whole else self()).train(self.training)

    def _apply(self, fn: Edit, recurse: bool = True) -> Fixed:
        if not self._made_of and not self.networks:
            like = _like(self._made)
            moved = fn(like)
            if (moved.dtype, moved.device) != (like.dtype, like.device):
                raise InputError(
                    "expected a prior made of parameter tensors, to be moved or cast with the "
                    f"module; got {families.family(self._made)}. Give one of the device and dtype "
                    "wanted, or a module whose forward returns it."
                )
        applied: Fixed = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied


def same_numbers(kept: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether tensors hold the same numbers of the same dtype on the same device as others."""
    return len(kept) == len(now) and all(
        one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(kept, now, strict=True)
    )


def edited(density: dist.Distribution, edit: Edit, network: EditNetwork) -> dist.Distribution:
    """The same density, mixtures and flows too, of edited tensors and networks.

    Raises:
        InputError: if it can't be taken apart.
    """
    kind: Any = type(density)
    if kind is AggregatedPosterior:
        made = kind(edited(density.encoding, edit, network), edit(density.weights * density.mass))
    elif kind in (Mixture, dist.MixtureSameFamily, MixtureSameFamily):
        mixing = families.convert(density.mixture_distribution, edit)
        made = kind(mixing, edited(density.component_distribution, edit, network))
    elif kind is dist.TransformedDistribution:
        steps = [_edited_step(step, edit, network) for step in density.transforms]
        made = kind(edited(density.base_dist, edit, network), steps)
    else:
        return families.convert(density, edit)
    return made if made.batch_shape == density.batch_shape else made.expand(density.batch_shape)


def _edited_step(step: Any, edit: Edit, network: EditNetwork) -> Any:
    if isinstance(step, nn.Module):
        return network(step)
    if isinstance(step, ComposeTransform):
        return ComposeTransform([_edited_step(part, edit, network) for part in step.parts])
    names = [name for name in inspect.signature(type(step)).parameters if name != "cache_size"]
    held = {name: getattr(step, name, NotImplemented) for name in names}
    tensors = {name for name, value in vars(step).items() if isinstance(value, Tensor)}
    if not tensors:
        return step
    known = getattr(dist.transforms, type(step).__name__, None) is type(step)
    if any(value is NotImplemented for value in held.values()) or not (
        known or tensors <= set(names)
    ):
        raise InputError(
            f"expected transforms that keep what they are made of; got {type(step).__name__}."
        )
    return type(step)(**{n: edit(v) if isinstance(v, Tensor) else v for n, v in held.items()})


def _copied(network: nn.Module) -> nn.Module:
    """A copy, also where a transform keeps what it computed last with its graph."""
    kept = [value for module in network.modules() for value in vars(module).values()]
    flat = [part for value in kept for part in (value if isinstance(value, tuple) else (value,))]
    results = [part for part in flat if isinstance(part, Tensor) and not part.is_leaf]
    return copy.deepcopy(network, {id(result): result.detach() for result in results})


def _like(density: dist.Distribution) -> Tensor:
    """A tensor of the dtype and on the device of a density, as far as that can be told."""
    try:
        return families.floating_parameter(density)
    except InputError:
        return torch.zeros(())
