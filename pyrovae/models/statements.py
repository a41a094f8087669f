"""What the library's own pairs have in common: their plate, their parameters, their checks."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


def data_plate(x: Tensor, size: int | None) -> pyro.plate:
    """The plate ``"data"`` over the rows of ``x``, of ``size`` rows in all.

    Raises:
        ValueError: if there are fewer rows in all than in ``x``.
    """
    if size is None or size == len(x):
        return pyro.plate("data", len(x))
    if size < len(x):
        raise ValueError(
            f"expected size ≥ {len(x)}, the number of rows of x; got {size}. It is the number "
            "of rows of the whole data set."
        )
    return pyro.plate("data", size, subsample=torch.arange(len(x), device=x.device))


def register(name: str, module: nn.Module) -> None:
    """Tell Pyro's parameter store of a module, which goes on owning its parameters.

    ``pyro.module`` alone would give a second module of the same name the parameters of the first.
    """
    store = pyro.get_param_store()
    for own, parameter in module.named_parameters():
        key = f"{name}$$${own}"
        if key in store and store[key] is not parameter:
            del store[key]
    pyro.module(name, module)


class Fixed(nn.Module):
    """A distribution as a module: what p(z) is when nothing in it is to be learned."""

    def __init__(self, distribution: dist.Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self) -> dist.Distribution:
        return self.distribution


def as_prior(prior: nn.Module | dist.Distribution) -> nn.Module:
    """A module whose forward returns p(z), from such a module or from p(z) itself."""
    return prior if isinstance(prior, nn.Module) else Fixed(prior)


def check_rows(
    who: str,
    distribution: dist.Distribution,
    x: Tensor,
    event_shape: tuple[int | str, ...] | None = None,
) -> None:
    """Raise unless a module returned one distribution a row.

    Args:
        who: the module, for the error.
        distribution: what it returned.
        x: the rows.
        event_shape: that of one row; any vector if not given.
    """
    batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    if event_shape is None:
        event_shape = event[-1:] or ("D",)
    if event != event_shape or batch[-1:] != (len(x),):
        raise ValueError(
            f"expected the {who} to return a distribution with batch shape ({len(x)},) and event "
            f"shape {event_shape}; got {batch} and {event}. Declare the dimensions of one row as "
            "event dimensions with .to_event(...), and check the sizes of the networks."
        )


def check_codes(z: Tensor, density: dist.Distribution, *, encoder: str, prior: str) -> None:
    """Raise unless codes, drawn by the guide, have as many units as their density in the model."""
    if z.shape[-1:] != density.event_shape:
        raise ValueError(
            f"expected codes of the {prior}'s event shape {tuple(density.event_shape)}; got "
            f"{z.shape[-1]} latent units. Give {encoder} and {prior} the same number."
        )
