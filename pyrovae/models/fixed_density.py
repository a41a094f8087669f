"""A density as a module that can be moved, cast, copied and saved, with nothing to learn."""

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
    """A distribution as a module: p(z) with nothing to learn.

    It holds a copy of the density as it is now. Its tensors are buffers and the networks of a flow
    are submodules, as in any module: ``.to(...)``, ``.double()`` and ``state_dict()`` work on them.
    A density that can't be taken apart into tensors, such as one that runs a guide, is stored
    itself: it is not part of ``state_dict()``, and moving or casting it is an error.

    Args:
        distribution: of any family.

    Raises:
        InputError: if one that can't be taken apart is moved to another device or dtype.
    """

    def __init__(self, distribution: dist.Distribution) -> None:
        super().__init__()
        self.networks = nn.ModuleList()
        self._density, self._tensors = distribution, list[Tensor]()
        tensors: list[Tensor] = []

        def copy_tensor(tensor: Tensor) -> Tensor:
            tensors.append(tensor.detach().clone())
            return tensors[-1]

        def copy_network(network: nn.Module) -> nn.Module:
            self.networks.append(_detached_copy(network).requires_grad_(False))
            return self.networks[-1]

        try:
            with torch.inference_mode(False), torch.no_grad():
                self._density = edit_density(distribution, copy_tensor, copy_network)
        except InputError:
            self.networks, tensors = nn.ModuleList(), []
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"tensor_{number}", tensor)
        self._tensors = [tensor.clone() for tensor in tensors]

    def forward(self) -> dist.Distribution:
        buffers = list(self.buffers(recurse=False))
        if not same_numbers(self._tensors, buffers):
            with torch.inference_mode(False), torch.no_grad():
                self._tensors = [tensor.clone() for tensor in buffers]
                copies = iter([tensor.clone() for tensor in buffers])
                self._density = edit_density(
                    self._density, lambda _: next(copies), lambda network: network
                )
        return self._density

    def __deepcopy__(self, memo: dict[int, Any]) -> Fixed:
        density = copy.deepcopy(self._density, memo) if self._in_one_piece else self()
        return Fixed(density).train(self.training)

    @property
    def _in_one_piece(self) -> bool:
        """Whether the density could not be taken apart."""
        return not self._tensors and not self.networks

    def _apply(self, fn: Edit, recurse: bool = True) -> Fixed:
        if self._in_one_piece:
            like = _like(self._density)
            moved = fn(like)
            if (moved.dtype, moved.device) != (like.dtype, like.device):
                raise InputError(
                    "expected a prior made of parameter tensors, to be moved or cast with the "
                    f"module; got {families.family(self._density)}. Give one that already has the "
                    "device and dtype, or a module whose forward returns it."
                )
        applied: Fixed = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied


def same_numbers(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors have the same numbers, dtypes and devices."""
    return len(before) == len(after) and all(
        old.device == new.device and old.dtype == new.dtype and torch.equal(old, new)
        for old, new in zip(before, after, strict=True)
    )


def edit_density(
    density: dist.Distribution, edit: Edit, edit_network: EditNetwork
) -> dist.Distribution:
    """The same density with edited tensors and networks; of mixtures and flows too.

    Raises:
        InputError: if it can't be taken apart.
    """

    def edit_part(part: dist.Distribution) -> dist.Distribution:
        return edit_density(part, edit, edit_network)

    kind: Any = type(density)
    if kind is AggregatedPosterior:
        new = kind(edit_part(density.encoding), edit(density.weights * density.mass))
    elif kind in (Mixture, dist.MixtureSameFamily, MixtureSameFamily):
        mixing = families.convert(density.mixture_distribution, edit)
        new = kind(mixing, edit_part(density.component_distribution))
    elif kind is dist.TransformedDistribution:
        steps = [_edit_transform(step, edit, edit_network) for step in density.transforms]
        new = kind(edit_part(density.base_dist), steps)
    else:
        return families.convert(density, edit)
    return new if new.batch_shape == density.batch_shape else new.expand(density.batch_shape)


def _edit_transform(step: Any, edit: Edit, edit_network: EditNetwork) -> Any:
    if isinstance(step, nn.Module):
        return edit_network(step)
    if isinstance(step, ComposeTransform):
        parts = [_edit_transform(part, edit, edit_network) for part in step.parts]
        return ComposeTransform(parts)
    names = [name for name in inspect.signature(type(step)).parameters if name != "cache_size"]
    arguments = {name: getattr(step, name, NotImplemented) for name in names}
    tensors = {name for name, value in vars(step).items() if isinstance(value, Tensor)}
    if not tensors:
        return step
    from_pyro = getattr(dist.transforms, type(step).__name__, None) is type(step)
    if any(value is NotImplemented for value in arguments.values()) or not (
        from_pyro or tensors <= set(names)
    ):
        raise InputError(
            "expected transforms that have their arguments as attributes; got "
            f"{type(step).__name__}."
        )
    return type(step)(**{n: edit(v) if isinstance(v, Tensor) else v for n, v in arguments.items()})


def _detached_copy(network: nn.Module) -> nn.Module:
    """A copy, also of a transform that caches its last result with the graph of it."""
    values = [value for module in network.modules() for value in vars(module).values()]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    results = [part for part in flat if isinstance(part, Tensor) and not part.is_leaf]
    return copy.deepcopy(network, {id(result): result.detach() for result in results})


def _like(density: dist.Distribution) -> Tensor:
    """A tensor of the dtype and on the device of a density, as far as that can be told."""
    try:
        return families.floating_parameter(density)
    except InputError:
        return torch.zeros(())
