"""What the library's own pairs have in common: their plate, their parameters, their checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.models.fixed_density import Fixed


def data_plate(x: Tensor, size: int | None) -> pyro.plate:
    """The plate ``"data"`` over the rows of ``x``, of ``size`` rows in all.

    Raises:
        InputError: if there are fewer rows in all than in ``x``.
    """
    if size is None or size == len(x):
        return pyro.plate("data", len(x))
    if size < len(x):
        raise InputError(
            f"expected size ≥ {len(x)}, the number of rows of x; got {size}. It is the number "
            "of rows of the whole data set."
        )
    return pyro.plate("data", size, subsample=torch.arange(len(x), device=x.device))


def register(name: str, module: nn.Module) -> None:
    """Enter a module's parameters into Pyro's parameter store; the module still owns them.

    ``pyro.module`` alone would give a second module of the same name the parameters of the first.
    """
    store = pyro.get_param_store()
    for parameter_name, parameter in module.named_parameters():
        key = f"{name}$$${parameter_name}"
        if key in store and store[key] is not parameter:
            del store[key]
    pyro.module(name, module)


class HasDistribution(Protocol):
    """A result that holds a density, as an ex-post prior does."""

    @property
    def distribution(self) -> dist.Distribution:
        """The density."""


Prior: TypeAlias = nn.Module | dist.Distribution | HasDistribution


def as_prior(prior: Prior) -> nn.Module:
    """A module whose forward returns p(z).

    Args:
        prior: such a module, p(z) itself, or a result with p(z) as its ``distribution``.

    Raises:
        InputError: for anything else.
    """
    if isinstance(prior, nn.Module):
        return prior
    is_density = isinstance(prior, dist.Distribution)
    density = prior if is_density else getattr(prior, "distribution", None)
    if not isinstance(density, dist.Distribution):
        kind = f"{type(prior).__module__}.{type(prior).__qualname__}".removeprefix("builtins.")
        raise InputError(
            "expected a prior that is a module whose forward returns p(z), a distribution of "
            f"pyro.distributions, or the result of fit_ex_post_prior; got {kind}. Give one of "
            "these, such as StandardNormal(latent)."
        )
    return Fixed(density)


def check_prior_shape(prior: dist.Distribution, x: Tensor) -> None:
    """Raise unless a prior is a density over vectors, one for all rows or one for each.

    Args:
        prior: what the prior's module returned.
        x: the rows.

    Raises:
        InputError: with its shapes, and how to declare event dimensions.
    """
    check_kind("prior", prior)
    batch, event = tuple(prior.batch_shape), tuple(prior.event_shape)
    if len(event) != 1 or batch not in ((), (1,), (len(x),)):
        raise InputError(
            f"expected the prior to return a distribution with batch shape () and event shape "
            f"(D,); got {batch} and {event}. Declare the units of a code as event dimensions with "
            ".to_event(1)."
        )


def encoding_of(name: str, encoder: nn.Module, x: Tensor, *codes: Tensor) -> dist.Distribution:
    """What an encoder returns for rows, checked to be a distribution over vectors for each row.

    Args:
        name: what to call the encoder in errors.
        encoder: maps rows, and the codes of layers above, to a distribution.
        x: the rows.
        codes: of layers above.

    Raises:
        InputError: if it returns something else, or fails on rows of another dtype than its own.
    """
    try:
        encoding: dist.Distribution = encoder(x, *codes)
    except RuntimeError as error:
        dtype = next((p.dtype for p in encoder.parameters()), x.dtype)
        if x.dtype == dtype:
            raise
        raise InputError(
            f"expected rows that the {name} takes, of its dtype {dtype}; got {x.dtype}: {error}. "
            f"Convert them: x.to({dtype}), of a tensor x."
        ) from error
    check_rows(name, encoding, x)
    return encoding


@contextmanager
def decoding(
    density: dist.Distribution,
    posterior: Callable[[], dist.Distribution],
    *,
    encoder: str,
    prior: str,
) -> Iterator[None]:
    """If decoding fails because encoder and prior differ in their number of units, say so.

    A model that is run by itself draws its codes from the prior: `check_codes`, meant for codes of
    the guide, has nothing to compare them with, and the decoder fails inside a matrix product.

    Args:
        density: p(z), which the codes may have been drawn from.
        posterior: returns q(z | x); called only after a failure.
        encoder, prior: what to call the two in the error.

    Raises:
        InputError: if they differ.
    """
    try:
        yield
    except RuntimeError as error:
        event_shape = posterior().event_shape
        if event_shape == density.event_shape:
            raise
        units = event_shape.numel()
        raise _units_differ(density, units, encoder=encoder, prior=prior) from error


@contextmanager
def decoded_codes(
    z: Tensor, event_shape: Callable[[], torch.Size], dtype: torch.dtype | None = None
) -> Iterator[None]:
    """If decoding codes fails because of their width or their dtype, say so.

    Args:
        z: codes, shape ``(S, D)``.
        event_shape: returns that of a code; called only after a failure.
        dtype: of the decoder.

    Raises:
        InputError: if the codes have another width, or another dtype.
    """
    try:
        yield
    except RuntimeError as error:
        shape = event_shape()
        if z.shape[-1:] != shape:
            raise InputError(
                f"expected codes of shape (S, {shape.numel()}), one number for each latent unit; "
                f"got {tuple(z.shape)}. Give codes as encode returns them: vae.encode(x).mean."
            ) from error
        if dtype not in (None, z.dtype):
            raise InputError(
                f"expected codes of the decoder's dtype {dtype}; got {z.dtype}. Convert them: "
                f"z.to({dtype})."
            ) from error
        raise


def check_rows(
    name: str,
    distribution: dist.Distribution,
    x: Tensor,
    event_shape: tuple[int | str, ...] | None = None,
) -> None:
    """Raise unless a module returned one distribution for each row.

    Args:
        name: what to call the module in the error.
        distribution: what it returned.
        x: the rows.
        event_shape: that of one row; a vector of any length if not given.

    Raises:
        InputError: saying what it returned.
    """
    check_kind(name, distribution)
    batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    if event_shape is None:
        event_shape = event[-1:] or ("D",)
    if event != event_shape or batch[-1:] != (len(x),):
        raise InputError(
            f"expected the {name} to return a distribution with batch shape ({len(x)},) and event "
            f"shape {event_shape}; got {batch} and {event}. Declare the dimensions of one row as "
            "event dimensions with .to_event(...), and check the sizes of the networks."
        )


def check_kind(name: str, distribution: object) -> None:
    """Raise unless a module returned a distribution that Pyro can sample from.

    Raises:
        InputError: saying what it returned.
    """
    if isinstance(distribution, dist.Distribution):
        return
    kind = f"{type(distribution).__module__}.{type(distribution).__qualname__}"
    by_network = "encoder" in name and isinstance(distribution, Tensor)
    recipe = "pyrovae.models.networks.NormalEncoder(network), of two outputs for each latent unit"
    raise InputError(
        f"expected the {name} to return a distribution of pyro.distributions; got {kind}. Return "
        f"one from its forward{f', as by {recipe}' if by_network else ''}: "
        "dist.Normal(loc, scale).to_event(1), say."
    )


def check_codes(z: Tensor, density: dist.Distribution, *, encoder: str, prior: str) -> None:
    """Raise unless the guide's codes have as many units as their density in the model."""
    if z.shape[-1:] != density.event_shape:
        raise _units_differ(density, z.shape[-1], encoder=encoder, prior=prior)


def _units_differ(
    density: dist.Distribution, units: int, *, encoder: str, prior: str
) -> InputError:
    return InputError(
        f"expected codes of the {prior}'s event shape {tuple(density.event_shape)}; got "
        f"{units} latent units. Give {encoder} and {prior} the same number."
    )
