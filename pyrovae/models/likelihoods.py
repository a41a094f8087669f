"""Decoders: a network and the distribution that its outputs parametrise, z → p(x | z)."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.mixture.families import innermost
from pyrovae.models.discretized_logistic import DiscretizedLogistic


class BernoulliDecoder(nn.Module):
    """p(x | z) = Π Bernoulli(x_j; sigmoid of the network's outputs), for x in {0, 1}.

    Args:
        network: maps codes ``(..., D)`` to logits ``(..., prod(event_shape))``.
        event_shape: shape of one row.
    """

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        logits = self.network(z).unflatten(-1, self.event_shape)
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))


class NormalDecoder(nn.Module):
    """p(x | z) = N(x; m + s·f(z), (s·σ)²): network f, learned σ, units m and s of the data.

    Args:
        network: f, maps codes ``(..., D)`` to ``(..., prod(event_shape))``.
        event_shape: shape of one row.
        location, scale: m and s, which broadcast against a row; by default 0 and 1. If they are
            float64, so is the density, whatever the dtype of the network: rows of 1e-27 or around
            1e9 are then as likely as in other units.
        per_unit: whether each entry of a row has a σ of its own; otherwise all share one.
        floor: least σ, in units of s. Without one, the density of an entry in which one value
            occurs often can grow without bound where σ is its own.

    Attributes:
        log_scale: log(σ − floor), divided by ``speed`` where each entry has its own.
    """

    speed = 10.0  # or the few steps of a small data set would leave each σ near where it began

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: torch.Size,
        *,
        location: Tensor | None = None,
        scale: Tensor | None = None,
        per_unit: bool = False,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape
        self.per_unit, self.floor = per_unit, floor
        self.log_scale = nn.Parameter(torch.zeros(event_shape if per_unit else ()))
        self.register_buffer("location", torch.zeros(()) if location is None else location)
        self.register_buffer("scale", torch.ones(()) if scale is None else scale)

    def forward(self, z: Tensor) -> dist.Distribution:
        outputs = self.network(z).unflatten(-1, self.event_shape)
        dtype = torch.promote_types(outputs.dtype, self.location.dtype)
        loc = self.location + self.scale * outputs.to(dtype)
        log_scale = self.speed * self.log_scale if self.per_unit else self.log_scale
        deviation = self.scale * (self.floor + log_scale.to(dtype).exp())
        return dist.Normal(loc, deviation.expand_as(loc)).to_event(len(self.event_shape))


class CategoricalDecoder(nn.Module):
    """p(x | z) = Π Categorical(x_j; softmax of the network's outputs), for integer x.

    Args:
        network: maps codes ``(..., D)`` to logits ``(..., prod(event_shape) · categories)``.
        event_shape: shape of one row.
    """

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        logits = self.network(z).unflatten(-1, (*self.event_shape, -1))
        return dist.Categorical(logits=logits).to_event(len(self.event_shape))


class LogisticDecoder(nn.Module):
    """p(x | z) = Π DiscretizedLogistic(x_j; m_j(z), τ_j(z)) for images of 256 grey levels 0–255.

    log(τ/256) is s = −15 + softplus(f + 15) for an output f of the network: f itself, to 3e-5, for
    f > −4.5, and never below −15, where τ is 8e-5 levels and all mass is on one level. Without a
    floor τ would underflow in float32, and its gradient would be NaN. (Tomczak & Welling 2018 cut s
    off to [−4.5, 0], which also bounds how certain a pixel can be.)

    Args:
        network: maps codes ``(..., D)`` to ``(..., prod(event_shape) · 2)``: the logit of
            (m + 1/2)/256 and f for each pixel.
        event_shape: shape of one row.
    """

    levels, floor = 256, -15.0

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        outputs = self.network(z).unflatten(-1, (*self.event_shape, 2))
        loc = self.levels * outputs[..., 0].sigmoid() - 0.5
        log_scale = self.floor + nn.functional.softplus(outputs[..., 1] - self.floor)
        scale = self.levels * log_scale.exp()
        return DiscretizedLogistic(loc, scale, self.levels).to_event(len(self.event_shape))


class NegativeBinomialDecoder(nn.Module):
    """p(x | z, ℓ) = Π NB(x_j; mean ℓ·softmax(f(z))_j, inverse dispersion θ_j), for counts x.

    The network says how a row's total ℓ, its library size, is divided among the entries. The
    variance is mean + mean²/θ, with one θ learned for each entry (Lopez et al. 2018). ℓ itself is
    not modelled: a :class:`~pyrovae.models.vae.VAE` takes it from the row, and what it calls p(x)
    is p(x | ℓ). Simulated rows would have another ℓ than they were drawn with, so a sandwich and a
    calibration refuse such a pair; they need ℓ as an argument of its own.

    Args:
        network: f, maps codes ``(..., D)`` to log shares ``(..., prod(event_shape))``, up to a
            constant for each row.
        event_shape: shape of one row.
    """

    def __init__(self, network: nn.Module, event_shape: torch.Size) -> None:
        super().__init__()
        self.network = network
        self.event_shape = event_shape
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(event_shape))

    def forward(self, z: Tensor, total: Tensor) -> dist.Distribution:
        """p(x | z, ℓ).

        Args:
            z: codes, shape ``(..., D)``.
            total: ℓ > 0, broadcasts against ``(...)``.

        Raises:
            InputError: for a total that is not positive, if arguments are checked.
        """
        if dist.is_validation_enabled() and not bool((total > 0).all()):
            raise InputError(
                f"expected a positive total in each row; got {float(total.min()):g}. Leave out "
                "rows without counts."
            )
        shares = self.network(z).log_softmax(-1).unflatten(-1, self.event_shape)
        offset = total.log().reshape(*total.shape, *[1] * len(self.event_shape))
        logits = shares + offset - self.log_inverse_dispersion
        inverse_dispersion = self.log_inverse_dispersion.exp().expand_as(logits)
        likelihood = dist.NegativeBinomial(inverse_dispersion, logits=logits)
        return likelihood.to_event(len(self.event_shape))


LIKELIHOODS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": BernoulliDecoder,
    "normal": NormalDecoder,
    "categorical": CategoricalDecoder,
    "logistic": LogisticDecoder,
    "negative_binomial": NegativeBinomialDecoder,
}
"""Likelihoods by the name they have in recipes and on the command line."""


def likelihood_of(decoder: nn.Module, *codes: Tensor, x: Tensor) -> dist.Distribution:
    """p(x | z), given the rows' totals if the decoder is one for counts.

    Args:
        decoder: maps codes to p(x | z); codes and ``total=`` if it is or contains a
            :class:`NegativeBinomialDecoder`.
        codes: of each latent layer, shape ``(..., B, D)``.
        x: rows, shape ``(B, ...)``.

    Raises:
        InputError: as :func:`check_values`, for rows that have to be counts and are not.
    """
    options: dict[str, Tensor] = {}
    if takes_totals(decoder):
        # Before the total is taken: it means nothing for rows that are not counts.
        _check("NegativeBinomial", dist.constraints.nonnegative_integer, x)
        options["total"] = x.flatten(1).sum(1)
    likelihood: dist.Distribution = decoder(*codes, **options)
    return likelihood


def takes_totals(decoder: nn.Module) -> bool:
    """Whether a decoder is one of counts, to be called with the total of each row."""
    return any(isinstance(module, NegativeBinomialDecoder) for module in decoder.modules())


def check_values(likelihood: dist.Distribution, x: Tensor) -> None:
    """Raise if a row has a value that the likelihood excludes and arguments are checked.

    Args:
        likelihood: batch shape ``(..., B)``.
        x: rows, shape ``(B, ...)``.

    Raises:
        InputError: with the values that are expected, one that is not, and what to do.
    """
    family = innermost(likelihood)
    if type(family).__name__ in _VALUES:
        _check(type(family).__name__, family.support, x)


def _check(family: str, support: dist.constraints.Constraint, x: Tensor) -> None:
    if not dist.is_validation_enabled():
        return
    inside = support.check(x)
    if not bool(inside.all()):
        expected, remedy = _VALUES[family]
        value = float(x.expand(inside.shape)[~inside][0])
        raise InputError(f"expected {expected} in x; got {value:g}. {remedy}")


_VALUES = {
    "Bernoulli": (
        "zeros and ones",
        "Draw them from grey values in [0, 1]: anew for each minibatch by fit(..., "
        "transform=pyrovae.binarise), and once for the measures.",
    ),
    "Categorical": (
        "numbers of categories, 0, 1, …",
        "Number the categories from 0 and give the decoder their count, categories=.",
    ),
    "DiscretizedLogistic": (
        "grey levels 0, 1, …, 255",
        "Multiply grey values in [0, 1] by 255 and round them, or take a normal likelihood.",
    ),
    "NegativeBinomial": (
        "counts 0, 1, 2, …",
        "Give the counts themselves, neither normalised nor as logarithms, or take a normal "
        "likelihood.",
    ),
}


def binarise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Zeros and ones, drawn with grey values as probabilities.

    As ``fit(..., transform=pyrovae.binarise)`` it is dynamic binarisation: new draws for each
    minibatch in training, and the same draws each epoch for validation (Burda et al. 2016).

    Args:
        x: grey values in [0, 1].
        generator: source of the random numbers.

    Raises:
        InputError: for other values, if arguments are checked.

    >>> binarise(torch.tensor([0.0, 1.0]), torch.Generator())
    tensor([0., 1.])
    """
    if dist.is_validation_enabled() and not bool(((x >= 0) & (x <= 1)).all()):
        value = float(x[~((x >= 0) & (x <= 1))][0])
        raise InputError(
            f"expected grey values in [0, 1] to binarise; got {value:g}. Divide levels from 0 to "
            "255 by 255."
        )
    if not x.is_floating_point():
        raise InputError(
            f"expected grey values as floating-point numbers to binarise; got {x.dtype}. Convert "
            "them, and divide levels from 0 to 255 by 255: x.float() / 255."
        )
    return torch.bernoulli(x, generator=generator)
