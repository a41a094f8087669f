"""A decoder as a list of steps that a page can take, with the weights of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.explorer.arrays import pack
from pyrovae.models import (
    BernoulliDecoder,
    BesideLinear,
    CategoricalDecoder,
    FromCodes,
    GatedLinear,
    LogisticDecoder,
    MixedDecoder,
    NegativeBinomialDecoder,
    NormalDecoder,
)

Step = dict[str, Any]
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


class NotInAPage(Exception):
    """A part of a decoder that the page's program does not know."""


def program(decoder: nn.Module) -> dict[str, Any] | None:
    """The steps from a code to the parameters of p(x | z), and which likelihood they are of.

    Args:
        decoder: one of the library's, of linear and convolutional layers and plain activations.

    Returns:
        ``None`` if the page can't run it.
    """
    try:
        head = _head(decoder)
        return {"steps": _steps(decoder.network), "head": head}  # type: ignore[arg-type]
    except NotInAPage:
        return None


def _head(decoder: nn.Module) -> dict[str, Any]:
    if isinstance(decoder, BernoulliDecoder):
        return {"kind": "bernoulli"}
    if isinstance(decoder, NormalDecoder):
        units = (part.double().expand(decoder.event_shape).flatten() for part in _units(decoder))
        location, scale = units
        return {"kind": "normal", "location": location.tolist(), "scale": scale.tolist()}
    if isinstance(decoder, CategoricalDecoder):
        return {"kind": "categorical", "entries": decoder.event_shape.numel()}
    if isinstance(decoder, LogisticDecoder):
        return {"kind": "logistic", "levels": decoder.levels, "floor": decoder.floor}
    if isinstance(decoder, NegativeBinomialDecoder):
        return {"kind": "negative_binomial"}
    if isinstance(decoder, MixedDecoder):
        of_real = [part.double().tolist() for part in _units(decoder)]
        counts = list(decoder.categories)
        return {"kind": "mixed", "categories": counts, "location": of_real[0], "scale": of_real[1]}
    raise NotInAPage


def _units(decoder: NormalDecoder | MixedDecoder) -> tuple[Tensor, Tensor]:
    return decoder.location, decoder.scale


def _steps(network: nn.Module) -> list[Step]:
    kind = type(network)
    if isinstance(network, nn.Sequential):
        return [step for layer in network for step in _steps(layer)]
    if isinstance(network, GatedLinear):
        return [*_steps(network.linear), {"op": "glu"}]
    if isinstance(network, FromCodes):
        return [*_steps(network.network), {"op": "interleave", "outputs": network.outputs}]
    if isinstance(network, BesideLinear):
        return [
            {"op": "sum", "parts": [_steps(part) for part in (network.linear, network.network)]}
        ]
    if kind in ACTIVATIONS:
        return [{"op": ACTIVATIONS[kind]}]
    if isinstance(network, nn.LeakyReLU):
        return [{"op": "leaky_relu", "slope": network.negative_slope}]
    if isinstance(network, nn.ELU):
        return [{"op": "elu", "alpha": network.alpha}]
    if isinstance(network, nn.Softplus) and network.beta == 1:
        return [{"op": "softplus"}]
    if isinstance(network, nn.Dropout | nn.Identity | nn.Flatten):  # nothing, when it measures
        return []
    if isinstance(network, nn.Unflatten) and network.dim == 1:
        return [{"op": "reshape", "shape": list(network.unflattened_size)}]
    return [_weighted(network)]


def _weighted(layer: nn.Module) -> Step:
    """A layer that has weights."""
    if isinstance(layer, nn.Linear):
        return {"op": "linear", **_weights(layer.weight, layer.bias)}
    if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d):
        plain = layer.groups == 1 and tuple(layer.dilation) == (1, 1)
        if not plain or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise NotInAPage
        grows = isinstance(layer, nn.ConvTranspose2d)
        step = {"op": "grow" if grows else "conv", **_weights(layer.weight, layer.bias)}
        extra = list(layer.output_padding) if grows else [0, 0]
        return step | {"stride": list(layer.stride), "padding": list(layer.padding), "extra": extra}
    raise NotInAPage


@torch.no_grad()
def _weights(weight: Tensor, bias: Tensor | None) -> Step:
    packed = {"weight": pack(weight.float().cpu().numpy())}
    if bias is not None:
        packed["bias"] = pack(bias.float().cpu().numpy())
    return packed
