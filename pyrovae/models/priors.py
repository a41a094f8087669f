"""Priors: modules whose forward returns p(z)."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.mixture import Mixture
from pyrovae.models.checks import check_kind
from pyrovae.pairs import measuring
from pyrovae.randomness import check_seed, seeded

Bounds = tuple[Tensor | float, Tensor | float]  # least and greatest value of all entries or of each

UNIT_SLOPE = math.log(math.e - 1)  # its softplus is 1


class StandardNormal(nn.Module):
    """p(z) = N(0, I).

    Args:
        latent: number of latent units D.

    >>> import pyrovae as pv, torch
    >>> pv.StandardNormal(2)().log_prob(torch.zeros(3, 2))
    tensor([-1.8379, -1.8379, -1.8379])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class GaussianMixture(nn.Module):
    """p(z) = Σ_k π_k N(z; m_k, diag s_k²), with weights, means and scales learned.

    Args:
        latent: number of latent units D.
        components: number of components K; their means start as draws from N(0, I).

    >>> import pyrovae as pv, torch
    >>> pv.GaussianMixture(2, components=10)().log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    def __init__(self, latent: int, components: int) -> None:
        super().__init__()
        if components < 1:
            raise InputError(f"expected at least one component; got {components}.")
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))

    def forward(self) -> dist.Distribution:
        component = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return Mixture(dist.Categorical(logits=self.logits), component)


class VampPrior(nn.Module):
    """p(z) = 1/K Σ_k q(z | u_k): the aggregated posterior of K learned pseudo-inputs.

    The pseudo-inputs go through the encoder that the guide uses, so that the prior can follow the
    aggregated posterior while both are trained (Tomczak & Welling 2018). A sigmoid keeps them
    within their bounds; it has a gradient wherever they start, at the bounds too, but an entry that
    training drives far out no longer has one (in float32 from ``raw`` = 17 on, where the sigmoid
    is 1).

    Args:
        encoder: the pair's own, x → q(z | x).
        inputs: values to start from, finite floating point numbers, shape ``(K, *event_shape)``.
        bounds: least and greatest value of an entry of x, such as ``(0.0, 1.0)``, each a number or
            a tensor that broadcasts against ``event_shape``: if columns have different units, give
            bounds for each column. If not given, any real number may occur. Starting values at a
            bound begin a twentieth of the way inside it. An entry whose two bounds are equal stays
            at that value.

    Raises:
        InputError: if there are no inputs, one is not finite or outside the bounds, the encoder
            does not take them, or the bounds do not fit a row or are equal for all entries.

    >>> import pyrovae as pv, torch
    >>> encoder = pv.mlp_encoder((4,), 2)
    >>> vae = pv.VAE(encoder, pv.mlp_decoder(2, (4,)), pv.VampPrior(encoder, torch.rand(20, 4)))
    >>> vae.sample(3).shape
    torch.Size([3, 4])
    """

    low: Tensor | float | None
    high: Tensor | float | None

    def __init__(self, encoder: nn.Module, inputs: Tensor, *, bounds: Bounds | None = None) -> None:
        super().__init__()
        if len(inputs) < 1:
            raise InputError("expected at least one pseudo-input; got none. Give some rows.")
        _check_values(inputs, bounds)
        check_inputs(encoder, inputs)
        self.encoder = encoder
        for name, bound in zip(("low", "high"), bounds or (None, None), strict=True):
            if isinstance(bound, Tensor):  # goes where the module goes, and into its state_dict
                self.register_buffer(name, bound.detach().to(inputs).clone())
            else:
                setattr(self, name, bound)
        start = inputs if bounds is None else _inside(inputs, bounds)
        self.raw = nn.Parameter(start.detach().clone())

    @classmethod
    def from_data(
        cls,
        encoder: nn.Module,
        data: Tensor,
        components: int,
        *,
        bounds: Bounds | None = None,
        seed: int = 0,
    ) -> VampPrior:
        """Start from ``components`` rows of the data, chosen without replacement.

        Args:
            encoder, bounds: as for the class.
            data: rows, shape ``(N, *event_shape)``.
            components: number of pseudo-inputs K, at most N.
            seed: names the choice.

        Raises:
            InputError: if there are fewer rows than components, or any row, chosen or not, is not
                finite, not of floating point or outside the bounds.
        """
        check_seed(seed)
        if not 1 <= components <= len(data):
            raise InputError(
                f"expected 1 to {len(data)} pseudo-inputs, one row of the data each; got "
                f"{components}. Use fewer, or start from values of your own: VampPrior(encoder, "
                "inputs)."
            )
        _check_values(data, bounds)
        with seeded(seed, "rows as pseudo-inputs"):
            rows = torch.randperm(len(data))[:components]
        return cls(encoder, data[rows], bounds=bounds)

    @classmethod
    def at_random(
        cls,
        encoder: nn.Module,
        like: Tensor,
        components: int,
        *,
        bounds: Bounds | None = None,
        seed: int = 0,
    ) -> VampPrior:
        """Start from normal draws with the mean and standard deviation of each entry of the data.

        If there are bounds, the normals are truncated to them. (The paper's published code starts
        all entries near one grey instead: N(0.05, 0.01²) for MNIST, N(0.8, 0.01²) for the
        silhouettes. For such a start give values of your own: ``VampPrior(encoder, inputs)``.)

        Args:
            encoder, bounds: as for the class.
            like: rows of data, shape ``(N, *event_shape)``, N ≥ 2.
            components: number of pseudo-inputs K, which may be larger than N.
            seed: names the draws.

        Raises:
            InputError: for fewer than one pseudo-input or two rows, or rows that are not finite,
                not of floating point or outside the bounds.
        """
        check_seed(seed)
        if components < 1 or len(like) < 2:
            raise InputError(
                f"expected at least one pseudo-input and two rows to draw them like; got "
                f"{components} and {len(like)}. Give more of them."
            )
        _check_values(like, bounds)
        limits = _by_entry(bounds or (-torch.inf, torch.inf), like)
        location, scale = like.mean(0), like.std(0)
        divisor = torch.where(scale > 0, scale, 1.0)
        normal = dist.Normal(0.0, 1.0)
        with seeded(seed, "pseudo-inputs at random"):
            uniform = torch.rand(components, *location.shape, dtype=torch.float64)
        least, greatest = (normal.cdf(((limit - location) / divisor).double()) for limit in limits)
        standard = normal.icdf(least + (greatest - least) * uniform.to(location.device))
        draws = location + scale * standard.to(scale)
        return cls(encoder, draws.clamp(*limits), bounds=bounds)  # only rounding is outside

    @property
    def bounds(self) -> Bounds | None:
        """Least and greatest value of an entry, if there are bounds."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs u_k, shape ``(K, *event_shape)``."""
        if (bounds := self.bounds) is None:
            return self.raw
        low, high = bounds
        return low + (high - low) * self.raw.sigmoid()

    def forward(self) -> dist.Distribution:
        components = self.encoder(self.inputs)
        equal = torch.zeros(len(self.raw), device=self.raw.device)
        return Mixture(dist.Categorical(logits=equal), components)


class FlowPrior(nn.Module):
    """p(z): a standard normal through spline couplings (Durkan et al. 2019; Pyro's transforms).

    It starts close to N(0, I); the splines act between −5 and 5.

    Args:
        latent: number of latent units D ≥ 2.
        layers: number of couplings; the order of the units is reversed between them.
        hidden: sizes of the hidden layers of the network in each coupling.

    Raises:
        InputError: for a single unit, which has no other to couple with.

    >>> import pyrovae as pv, torch
    >>> pv.FlowPrior(2)().sample((5,)).shape
    torch.Size([5, 2])
    """

    order: Tensor

    def __init__(self, latent: int, *, layers: int = 4, hidden: tuple[int, ...] = (64, 64)) -> None:
        super().__init__()
        if latent < 2:
            raise InputError(
                f"expected at least 2 latent units to couple; got {latent}. Use GaussianMixture."
            )
        self.base = StandardNormal(latent)
        self.couplings = nn.ModuleList(
            dist.transforms.spline_coupling(latent, hidden_dims=hidden, bound=5.0)
            for _ in range(layers)
        )
        for coupling in self.couplings:
            _nearly_identity(coupling)
        self.register_buffer("order", torch.arange(latent - 1, -1, -1))

    def forward(self) -> dist.Distribution:
        reverse = dist.transforms.Permute(self.order)
        steps = [step for coupling in self.couplings for step in (coupling, reverse)]
        return dist.TransformedDistribution(self.base(), steps)


def check_inputs(encoder: nn.Module, rows: Tensor) -> dist.Distribution:
    """The encoding of the first two rows, batch shape ``(2,)``, event shape ``(D,)``.

    Raises:
        InputError: if the encoder does not take such rows, or returns no distribution over vectors.
    """
    first = rows[:2]
    try:
        with torch.no_grad(), measuring(encoder):
            encoding: dist.Distribution = encoder(first)
    except RuntimeError as error:
        raise InputError(
            f"expected rows that the encoder takes; got shape {tuple(first.shape[1:])}, dtype "
            f"{first.dtype}: {error}. Give rows like the data's."
        ) from error
    check_kind("encoder", encoding)
    batch, event = tuple(encoding.batch_shape), tuple(encoding.event_shape)
    if batch != (len(first),) or len(event) != 1:
        raise InputError(
            f"expected the encoder to return a distribution with batch shape ({len(first)},) and "
            f"event shape (D,); got {batch} and {event}. Declare the units of a code as event "
            "dimensions with .to_event(1)."
        )
    return encoding


@torch.no_grad()
def _nearly_identity(coupling: Any) -> None:
    """Start a coupling of linear rational splines close to the identity.

    Bins of equal width and height with slopes of 1 at their ends are the identity. The last weights
    of the network behind the other spline are divided by a hundred, and slopes are 1.001 (Pyro adds
    0.001 to all): at the identity itself, ``lambdas`` would have no gradient.
    """
    lower, network = coupling.lower_spline, coupling.upper_spline.nn
    for parameter in lower.parameters():
        parameter.zero_()
    lower.unnormalized_derivatives.fill_(UNIT_SLOPE)
    last = network.layers[-1]
    last.weight.mul_(0.01)
    last.bias.zero_()
    last.bias[network.param_slices[2]] = UNIT_SLOPE  # of widths, heights, derivatives, lambdas


def _inside(inputs: Tensor, bounds: Bounds) -> Tensor:
    """The logits of the inputs' places between the bounds, moved inwards by a twentieth."""
    low, high = _by_entry(bounds, inputs)
    room = torch.where(high > low, high - low, 1.0)  # without room, any place will do
    return torch.logit(0.05 + 0.9 * (inputs - low) / room)


def _check_values(rows: Tensor, bounds: Bounds | None) -> None:
    """Raise unless all values are finite floating point numbers within their bounds."""
    if not rows.is_floating_point():
        raise InputError(
            f"expected rows of floating point numbers, which can be learned; got {rows.dtype}. "
            "Convert them: x.float()."
        )
    if (where := _first(~rows.isfinite())) is not None:
        raise InputError(
            f"expected finite rows; got {float(rows[where])} in row {where[0]}, entry "
            f"{where[1:]}. Remove or fill in such rows first."
        )
    if bounds is None:
        return
    low, high = _by_entry(bounds, rows)
    _check_room(low, high)
    if (where := _first((rows < low) | (rows > high))) is not None:
        raise InputError(
            f"expected values in [{float(low[where[1:]])}, {float(high[where[1:]])}]; got "
            f"{float(rows[where])} in row {where[0]}, entry {where[1:]}. Give the bounds of the "
            "data, as numbers or for each entry."
        )


def _check_room(low: Tensor, high: Tensor) -> None:
    room = high - low
    if (where := _first(~(room.isfinite() & (room >= 0)))) is not None:
        raise InputError(
            f"expected finite bounds, the lower one first; got {float(low[where])} and "
            f"{float(high[where])} for entry {where}. Leave bounds= out if there are none."
        )
    if not bool((room > 0).any()):
        raise InputError(
            "expected bounds with room between them in at least one entry; got equal ones in all, "
            f"{float(low.min())} and the like. Give wider ones: nothing could be learned."
        )


def _by_entry(bounds: Bounds, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of each entry, with the shape, dtype and device of a row."""
    shape = rows.shape[1:]
    low, high = (torch.as_tensor(b, dtype=rows.dtype, device=rows.device) for b in bounds)
    try:
        return low.expand(shape), high.expand(shape)
    except RuntimeError as error:
        raise InputError(
            f"expected bounds that broadcast against a row of shape {tuple(shape)}; got shapes "
            f"{tuple(low.shape)} and {tuple(high.shape)}. Give two numbers, or tensors like a row."
        ) from error


def _first(fault: Tensor) -> tuple[int, ...] | None:
    """The index of the first fault, if there is one."""
    return tuple(fault.nonzero()[0].tolist()) if bool(fault.any()) else None
