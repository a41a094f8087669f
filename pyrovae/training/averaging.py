"""The mean of the parameters over all steps of several epochs, and statistics that belong to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_swa_multi_avg_fn


class EpochMean:
    """The mean of parameters over the steps of one epoch, 1/T Σ_t θ_t.

    It is a thing of its own, to be merged with that of other epochs by :func:`merged`: a single
    mean over tens of thousands of steps would change by less in each than single precision tells.

    Args:
        parameters: leaf tensors by name, which change in place.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.mean = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.steps = 0

    def add(self) -> None:
        """Take in the parameters as they are now."""
        update = get_swa_multi_avg_fn()
        update([*self.mean.values()], [*self.parameters.values()], self.steps)
        self.steps += 1


def merged(mean: Mapping[str, Tensor], steps: int, epoch: EpochMean) -> dict[str, Tensor]:
    """The mean over all steps, from one over earlier steps and that of one more epoch.

    Args:
        mean: over the earlier steps, by name; may hold further names, and nothing at 0 steps.
        steps: number of the earlier steps.
        epoch: the mean over an epoch.
    """
    if not steps:
        return epoch.mean
    share = epoch.steps / (steps + epoch.steps)
    return {name: mean[name].to(more).lerp(more, share) for name, more in epoch.mean.items()}


@contextmanager
def statistics_anew(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let BatchNorm's running statistics begin anew, as plain means over the batches to come."""
    layers = [
        layer for root in modules for layer in root.modules() if isinstance(layer, _BatchNorm)
    ]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
