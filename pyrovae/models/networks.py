"""Recipes for networks: each returns a plain module, to use or to replace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.models.likelihoods import LIKELIHOODS


class NormalEncoder(nn.Module):
    """q(z | x) = N(μ(x), diag σ²(x)), from a network with 2·D outputs.

    σ is the softplus of the second half of the outputs, plus 1e-6. Without this floor it would
    underflow to 0 for a row so far from all others that an output falls below −104.

    Args:
        network: maps rows ``(B, ...)`` to ``(B, 2·D)``.
    """

    floor = 1e-6

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, raw = self.network(x).chunk(2, dim=-1)
        return dist.Normal(loc, nn.functional.softplus(raw) + self.floor).to_event(1)


class Standardize(nn.Module):
    """(x − location)/scale, so that a network sees numbers of order one.

    It is computed in the most precise of the dtypes of rows, location and scale: in float64, a
    column of 1e-27 or one around 1e9 loses no digit.

    Args:
        location, scale: broadcast against a row; buffers, not trained.
        dtype: of the output, that of the network; the most precise one if not given.
    """

    location: Tensor
    scale: Tensor
    _like: Tensor | None

    def __init__(
        self, location: Tensor, scale: Tensor, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("location", location)
        self.register_buffer("scale", scale)
        like = None if dtype is None else torch.empty((), dtype=dtype)
        self.register_buffer("_like", like, persistent=False)  # changes with the network's dtype

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, self.location.dtype)
        standard = (x.to(dtype) - self.location) / self.scale
        return standard if self._like is None else standard.to(self._like.dtype)


class LogCounts(nn.Module):
    """log(1 + x), which turns counts of all sizes into numbers of order one.

    Raises:
        InputError: when it runs, for numbers that have no such logarithm, if arguments are
            checked.
    """

    def forward(self, x: Tensor) -> Tensor:
        if dist.is_validation_enabled() and not bool((x > -1).all()):
            raise InputError(
                f"expected counts 0, 1, 2, … in x; got {float(x.min()):g}. Give the counts "
                "themselves, neither normalised nor as logarithms."
            )
        return x.log1p()


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them.

    >>> mlp((64, 32, 4))
    Sequential(
      (0): Linear(in_features=64, out_features=32, bias=True)
      (1): SiLU()
      (2): Linear(in_features=32, out_features=4, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class GatedLinear(nn.Module):
    """(Ax + a) · sigmoid(Bx + b): a linear layer whose outputs are gated by its inputs.

    Dauphin et al. 2017; the layers of Tomczak & Welling 2018.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.linear(x), dim=-1)


def gated_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Gated linear layers of the given sizes, and a plain linear one at the end.

    >>> gated_mlp((64, 32, 4))
    Sequential(
      (0): GatedLinear(
        (linear): Linear(in_features=64, out_features=64, bias=True)
      )
      (1): Linear(in_features=32, out_features=4, bias=True)
    )
    """
    gated = [GatedLinear(*pair) for pair in itertools.pairwise(sizes[:-1])]
    return nn.Sequential(*gated, nn.Linear(sizes[-2], sizes[-1]))


def mlp_encoder(
    data_shape: Sequence[int],
    latent: int,
    *,
    hidden: Sequence[int] = (256, 256),
    gated: bool = False,
) -> NormalEncoder:
    """A multilayer perceptron from a flattened row to a diagonal Gaussian over ``latent`` units.

    Args:
        data_shape: shape of one row.
        latent: number of latent units D.
        hidden: sizes of the hidden layers, from the row inwards.
        gated: whether the hidden layers are gated.

    Raises:
        InputError: for sizes that are not whole numbers ≥ 1.

    >>> import pyrovae as pv, torch
    >>> encoder = pv.mlp_encoder((8, 8), 2, hidden=(64,))
    >>> encoder(torch.rand(5, 8, 8)).mean.shape
    torch.Size([5, 2])
    """
    _check_sizes(data_shape, latent, hidden=hidden)
    sizes = (math.prod(data_shape), *hidden, 2 * latent)
    return NormalEncoder(nn.Sequential(nn.Flatten(), *_perceptron(sizes, gated)))


def mlp_decoder(
    latent: int,
    data_shape: Sequence[int],
    likelihood: str = "bernoulli",
    *,
    hidden: Sequence[int] = (256, 256),
    gated: bool = False,
    categories: int | None = None,
    **options: Any,
) -> nn.Module:
    """A multilayer perceptron from a code to a distribution over one row.

    Args:
        latent: number of latent units D.
        data_shape: shape of one row.
        likelihood: ``"bernoulli"``, ``"normal"``, ``"categorical"``, ``"logistic"`` or
            ``"negative_binomial"``.
        hidden: sizes of the hidden layers, from the code outwards.
        gated: whether the hidden layers are gated.
        categories: number of categories of a categorical likelihood.
        options: further arguments of the likelihood in :mod:`pyrovae.models.likelihoods`, such as
            ``per_unit=True`` for a normal one.

    Raises:
        InputError: for sizes that are not whole numbers ≥ 1, an unknown likelihood, or categories
            that are missing or given for another likelihood.

    >>> import pyrovae as pv, torch
    >>> decoder = pv.mlp_decoder(2, (4,), "normal")
    >>> decoder(torch.zeros(5, 2)).mean.shape
    torch.Size([5, 4])
    """
    _check_sizes(data_shape, latent, hidden=hidden)
    outputs = math.prod(data_shape) * _outputs(likelihood, categories)
    network = _perceptron((latent, *hidden, outputs), gated)
    return LIKELIHOODS[likelihood](network, torch.Size(data_shape), **options)


def conv_encoder(
    data_shape: Sequence[int], latent: int, *, channels: Sequence[int] = (32, 64)
) -> NormalEncoder:
    """Convolutions from an image to a diagonal Gaussian over ``latent`` units.

    Each layer halves height and width, rounded up.

    Args:
        data_shape: shape of one image, ``(H, W)`` or ``(C, H, W)``, of any size.
        latent: number of latent units D.
        channels: of the layers, from the image inwards.

    Raises:
        InputError: for rows that are not images, or sizes that are not whole numbers ≥ 1.

    >>> import pyrovae as pv, torch
    >>> encoder = pv.conv_encoder((28, 28), 2)
    >>> encoder(torch.rand(5, 28, 28)).mean.shape
    torch.Size([5, 2])
    """
    _check_sizes(data_shape, latent, channels=channels)
    depth, sizes = _pyramid(data_shape, channels)
    layers: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, (depth, *sizes[0]))]
    for inputs, outputs in itertools.pairwise((depth, *channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.SiLU()]
    layers += [nn.Flatten(), nn.Linear(channels[-1] * math.prod(sizes[-1]), 2 * latent)]
    return NormalEncoder(nn.Sequential(*layers))


def conv_decoder(
    latent: int,
    data_shape: Sequence[int],
    likelihood: str = "bernoulli",
    *,
    channels: Sequence[int] = (64, 32),
    categories: int | None = None,
    **options: Any,
) -> nn.Module:
    """Transposed convolutions from a code to a distribution over one image.

    Each layer doubles height and width, back through the sizes of :func:`conv_encoder`.

    Args:
        latent: number of latent units D.
        data_shape: shape of one image, ``(H, W)`` or ``(C, H, W)``, of any size.
        likelihood, categories, options: as :func:`mlp_decoder`.
        channels: of the layers, from the code outwards.

    Raises:
        InputError: for rows that are not images, and as :func:`mlp_decoder`.

    >>> import pyrovae as pv, torch
    >>> decoder = pv.conv_decoder(2, (28, 28))
    >>> decoder(torch.zeros(5, 2)).mean.shape
    torch.Size([5, 28, 28])
    """
    _check_sizes(data_shape, latent, channels=channels)
    depth, sizes = _pyramid(data_shape, channels)
    outputs = _outputs(likelihood, categories)
    sizes = sizes[::-1]
    layers: list[nn.Module] = [
        nn.Linear(latent, channels[0] * math.prod(sizes[0])),
        nn.Unflatten(1, (channels[0], *sizes[0])),
    ]
    ends = zip(
        itertools.pairwise((*channels, depth * outputs)), itertools.pairwise(sizes), strict=True
    )
    for (inner, outer), (small, large) in ends:
        extra = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
        grow = nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=extra)
        layers += [nn.SiLU(), grow]
    network = FromCodes(nn.Sequential(*layers), outputs)
    return LIKELIHOODS[likelihood](network, torch.Size(data_shape), **options)


class FromCodes(nn.Module):
    """A network that returns images, as one from ``(..., D)`` to ``(..., C·H·W·outputs)``."""

    def __init__(self, network: nn.Module, outputs: int) -> None:
        super().__init__()
        self.network = network
        self.outputs = outputs

    def forward(self, z: Tensor) -> Tensor:
        images = self.network(z.reshape(-1, z.shape[-1]))
        by_pixel = images.unflatten(1, (-1, self.outputs)).movedim(2, -1)
        return by_pixel.reshape(*z.shape[:-1], -1)


def _check_sizes(data_shape: Sequence[int], latent: int, **layers: Sequence[int]) -> None:
    """Raise unless all sizes are whole numbers ≥ 1, and the shape and layers tuples of them."""
    if not _is_size(latent):
        raise InputError(
            f"expected a whole number of latent units ≥ 1; got {latent!r}. Take latent=10, say."
        )
    for name, sizes in {"data_shape": data_shape, **layers}.items():
        several = isinstance(sizes, Sequence) and not isinstance(sizes, str)
        if not several or not all(map(_is_size, sizes)):
            example = "(64,) for rows of 64 numbers" if name == "data_shape" else "(256, 256)"
            raise InputError(
                f"expected {name} as a tuple of whole numbers ≥ 1; got {sizes!r}. Give {example}, "
                "say."
            )


def _is_size(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool) and int(value) >= 1


def _perceptron(sizes: Sequence[int], gated: bool) -> nn.Sequential:
    return gated_mlp(sizes) if gated else mlp(sizes)


def _outputs(likelihood: str, categories: int | None) -> int:
    """How many outputs of the network each entry of a row needs."""
    if likelihood not in LIKELIHOODS:
        raise InputError(
            f"expected a likelihood among {', '.join(LIKELIHOODS)}; got {likelihood!r}."
        )
    if (likelihood == "categorical") != (categories is not None):
        raise InputError(
            f"expected categories= with a categorical likelihood and with no other; got "
            f"categories={categories} with {likelihood!r}."
        )
    return 2 if likelihood == "logistic" else categories or 1


def _pyramid(
    data_shape: Sequence[int], channels: Sequence[int]
) -> tuple[int, list[tuple[int, int]]]:
    """Channels of an image, and its height and width before and after each layer."""
    if len(data_shape) not in (2, 3) or not channels:
        raise InputError(
            "expected images of shape (H, W) or (C, H, W) and at least one layer of channels; got "
            f"shape {tuple(data_shape)} and channels {tuple(channels)}. For other rows take "
            "mlp_encoder and mlp_decoder."
        )
    depth = 1 if len(data_shape) == 2 else data_shape[0]
    sizes = [(data_shape[-2], data_shape[-1])]
    for _ in channels:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return depth, sizes
