"""Tables whose columns differ in kind, and rows with missing cells: likelihoods and encoders."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.mixture.families import Edit

FLOOR = 0.01  # least deviation of a real column, in standard deviations of the data
SPEED = 10.0  # of its parameter, which the few steps of a small table would leave where it began


class MixedColumns(TorchDistribution):
    r"""Independent columns, each with a distribution of its own kind.

    .. math::
        \log p(x) = \sum_{j \in R} \log N(x_j; m_j, σ_j^2) + \sum_{j \in B} \log
        \mathrm{Bernoulli}(x_j; p_j) + \sum_{j \in K} \log \mathrm{Categorical}(x_j; π_j)

    The columns are the last batch dimension, as those of a Normal are: ``.to_event(1)`` makes a row
    of them, and a mask can leave out single cells.

    Args:
        categories: of each column the number of categories; 1 for truth values, 0 for real numbers.
        normal: of the real columns, batch shape ``(..., R)``, if there are any.
        bernoulli: of the truth values, batch shape ``(..., B)``, if there are any.
        categorical: of the others, batch shape ``(..., K)``, if there are any.

    Attributes:
        places: numbers of the real columns, of the truth values, and of the others.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real  # that each column has in common with the others

    def __init__(
        self,
        categories: Sequence[int],
        normal: dist.Normal | None,
        bernoulli: dist.Bernoulli | None,
        categorical: dist.Categorical | None,
    ) -> None:
        self.categories = tuple(categories)
        self.normal, self.bernoulli, self.categorical = normal, bernoulli, categorical
        self.places = by_kind(self.categories)
        self._order = torch.tensor(self.places[0] + self.places[1] + self.places[2]).argsort()
        batch = self._parts()[0][0].batch_shape[:-1]
        super().__init__(torch.Size((*batch, len(self.categories))), validate_args=False)

    def _parts(self) -> list[tuple[dist.Distribution, list[int]]]:
        """The distributions that there are, with the numbers of their columns."""
        kinds = (self.normal, self.bernoulli, self.categorical)
        return [
            (kind, places)
            for kind, places in zip(kinds, self.places, strict=True)
            if kind is not None
        ]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor with the columns of all kinds in their order."""
        dtype = self.like.dtype
        joined = torch.cat([part.to(dtype) for part in parts], -1)
        return joined[..., self._order.to(joined.device)]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, or log probability, of each cell, of shape ``(..., C)``."""
        return self._joined(
            [kind.log_prob(value[..., places].to(self.like)) for kind, places in self._parts()]
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, shape ``sample_shape + batch_shape``."""
        shape = torch.Size(sample_shape)
        return self._joined([kind.sample(shape) for kind, _ in self._parts()])

    @property
    def mean(self) -> Tensor:
        """E[x_j] of each column; NaN for categories, which have none."""
        return self._joined([kind.mean for kind, _ in self._parts()])

    @property
    def mode(self) -> Tensor:
        """The most probable value of each column: of a number its mean."""
        parts = []
        if self.normal is not None:
            parts.append(self.normal.mean)
        if self.bernoulli is not None:
            parts.append(self.bernoulli.probs > 0.5)
        if self.categorical is not None:
            parts.append(self.categorical.probs.argmax(-1))
        return self._joined(parts)

    @property
    def variance(self) -> Tensor:
        """Var[x_j] of each column; NaN for categories, which have none."""
        return self._joined([kind.variance for kind, _ in self._parts()])

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixedColumns:
        """The same distribution for a larger batch."""
        parts: list[Any] = [None, None, None]
        kinds = (self.normal, self.bernoulli, self.categorical)
        for number, (kind, places) in enumerate(zip(kinds, self.places, strict=True)):
            if kind is not None:
                parts[number] = kind.expand(torch.Size((*batch_shape[:-1], len(places))))
        return MixedColumns(self.categories, *parts)

    @property
    def like(self) -> Tensor:
        """A floating-point tensor, for dtype and device."""
        if self.normal is not None:
            return self.normal.loc
        kind = self.bernoulli if self.bernoulli is not None else self.categorical
        logits: Tensor = kind.logits  # type: ignore[union-attr]
        return logits

    def rebuild(self, parts: Sequence[Any], edit: Edit) -> MixedColumns:
        """One batch whose every tensor is ``edit`` of that tensor in all parts, self included."""
        normal, bernoulli, categorical = None, None, None
        if self.normal is not None:
            loc = edit([part.normal.loc for part in parts])
            normal = dist.Normal(loc, edit([part.normal.scale for part in parts]))
        if self.bernoulli is not None:
            bernoulli = dist.Bernoulli(logits=edit([part.bernoulli.logits for part in parts]))
        if self.categorical is not None:
            categorical = dist.Categorical(logits=edit([p.categorical.logits for p in parts]))
        return MixedColumns(self.categories, normal, bernoulli, categorical)


def by_kind(categories: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the columns of real numbers, of truth values, and of categories."""
    real, truth, several = (
        [place for place, count in enumerate(categories) if min(count, 2) == kind]
        for kind in range(3)
    )
    return real, truth, several


class MixedDecoder(nn.Module):
    r"""p(x | z) of a table's columns, each of its own kind, see :class:`MixedColumns`.

    A real column is N(x_j; m_j + s_j f_j(z), (s_j σ_j)²) with m and s the units of the data and one
    σ_j = 0.01 + softplus(10 a_j) learned for each: without that floor the density of a column in
    which one value occurs often would grow without bound. A column of K categories is the softmax
    of K outputs.

    Args:
        network: f, maps codes ``(..., D)`` to one output for each real number and truth value and K
            for each column of K categories, ``outputs_of(categories)`` in all.
        categories: as for :class:`MixedColumns`.
        location, scale: m and s of all columns, shape ``(C,)``; those of real ones are used. The
            density is computed in their dtype.
    """

    location: Tensor
    scale: Tensor
    outputs: Tensor

    def __init__(
        self, network: nn.Module, categories: Sequence[int], location: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.network = network
        self.categories = tuple(categories)
        self.event_shape = torch.Size((len(self.categories),))
        self._kinds = by_kind(self.categories)
        real = self._kinds[0]
        self.raw_scale = nn.Parameter(
            torch.full((len(real),), math.log(math.expm1(1 - FLOOR)) / SPEED)
        )
        self.register_buffer("location", location[real])
        self.register_buffer("scale", scale[real])
        outputs = _outputs(self.categories)
        self.register_buffer("outputs", outputs, persistent=False)

    def forward(self, z: Tensor) -> dist.Distribution:
        outputs = self.network(z)
        real, truth, several = self._kinds
        padded = torch.cat([outputs, outputs.new_full((*outputs.shape[:-1], 1), -math.inf)], -1)
        normal, bernoulli, categorical = None, None, None
        if real:
            dtype = torch.promote_types(outputs.dtype, self.location.dtype)
            loc = self.location + self.scale * outputs[..., self.outputs[real, 0]].to(dtype)
            deviation = FLOOR + nn.functional.softplus(SPEED * self.raw_scale)
            normal = dist.Normal(loc, (self.scale * deviation.to(dtype)).expand_as(loc))
        if truth:
            bernoulli = dist.Bernoulli(logits=outputs[..., self.outputs[truth, 0]])
        if several:
            categorical = dist.Categorical(logits=padded[..., self.outputs[several]])
        return MixedColumns(self.categories, normal, bernoulli, categorical).to_event(1)


class BesideLinear(nn.Module):
    """W z + f(z): a linear map, which few rows suffice to learn, and a network f that begins small.

    Args:
        network: f, whose last layer is linear.
        inputs, outputs: numbers of units.
    """

    start = 0.1  # of the last layer's weights, beside those of other networks

    def __init__(self, network: nn.Sequential, inputs: int, outputs: int) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.Linear(inputs, outputs, bias=False)
        with torch.no_grad():
            next(network[-1].parameters()).mul_(self.start)

    def forward(self, z: Tensor) -> Tensor:
        outputs: Tensor = self.linear(z) + self.network(z)
        return outputs


def outputs_of(categories: Sequence[int]) -> int:
    """How many outputs of its network a :class:`MixedDecoder` needs."""
    return sum(max(1, count) for count in categories)


def _outputs(categories: Sequence[int]) -> Tensor:
    """The outputs of each column, shape ``(C, K)`` with K the most; one too many for none."""
    most, total = max(1, *categories), outputs_of(categories)
    rows, start = [], 0
    for count in categories:
        used = max(1, count)
        rows.append([*range(start, start + used), *[total] * (most - used)])
        start += used
    return torch.tensor(rows, device="cpu")


class WithMask(nn.Module):
    """The entries of a row, 0 for those that are missing, and which are there, side by side."""

    def forward(self, x: Tensor, obs_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(x) if obs_mask is None else obs_mask.to(x)
        return torch.cat([(x * mask).flatten(1), mask.flatten(1)], -1)


class TableInputs(nn.Module):
    """What an encoder sees of a table: standardised numbers, one-hot categories, and the mask.

    Args:
        categories: of each column the number of categories; 1 for truth values, 0 for real numbers.
        location, scale: by which numbers are standardised, shape ``(C,)``.
        masked: whether cells may be missing: they are 0, and the mask is an input, too.
        dtype: of the output, that of the network.
    """

    location: Tensor
    scale: Tensor
    column: Tensor
    category: Tensor
    _like: Tensor

    def __init__(
        self,
        categories: Sequence[int],
        location: Tensor,
        scale: Tensor,
        *,
        masked: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.masked = masked
        self.register_buffer("location", location)
        self.register_buffer("scale", scale)
        inputs = [
            (place, category if count > 1 else -1)
            for place, count in enumerate(categories)
            for category in range(max(1, count))
        ]
        column, category = torch.tensor(inputs, device="cpu").T
        self.register_buffer("column", column, persistent=False)
        self.register_buffer("category", category, persistent=False)
        self.register_buffer("_like", torch.empty((), dtype=dtype), persistent=False)

    @property
    def size(self) -> int:
        """Number of outputs."""
        return len(self.column) + (len(self.location) if self.masked else 0)

    def forward(self, x: Tensor, obs_mask: Tensor | None = None) -> Tensor:
        dtype = torch.promote_types(x.dtype, self.location.dtype)
        standard = (x.to(dtype) - self.location) / self.scale
        cells = x[:, self.column]
        inputs = torch.where(
            self.category < 0, standard[:, self.column], (cells == self.category).to(dtype)
        )
        if obs_mask is not None:
            inputs = inputs * obs_mask[:, self.column]
        if self.masked:
            mask = torch.ones_like(x) if obs_mask is None else obs_mask
            inputs = torch.cat([inputs, mask.to(dtype)], -1)
        return inputs.to(self._like.dtype)


class MaskedEncoder(nn.Module):
    """q(z | x, m) for rows x of which a mask m says what is there.

    Args:
        encoder: maps what ``inputs`` returns, shape ``(B, F)``, to q, batch shape ``(B,)``.
        inputs: maps rows and mask to the inputs of the encoder; by default the entries, 0 where one
            is missing, and the mask: F is twice the number of entries.

    >>> import pyrovae as pv
    >>> encoder = pv.MaskedEncoder(pv.mlp_encoder((6,), 2))
    >>> encoder(torch.zeros(5, 3), torch.ones(5, 3, dtype=torch.bool)).event_shape
    torch.Size([2])
    """

    def __init__(self, encoder: nn.Module, inputs: nn.Module | None = None) -> None:
        super().__init__()
        self.inputs = WithMask() if inputs is None else inputs
        self.encoder = encoder

    def forward(self, x: Tensor, obs_mask: Tensor | None = None) -> dist.Distribution:
        encoding: dist.Distribution = self.encoder(self.inputs(x, obs_mask))
        return encoding


def masked(likelihood: dist.Distribution, obs_mask: Tensor) -> dist.Distribution:
    """p(x | z) of the entries of a row that are there: the others are integrated out.

    Args:
        likelihood: of independent entries, event shape that of a row.
        obs_mask: true where there is an entry, shape ``(B, ...)``.

    Raises:
        InputError: for a likelihood of entries that depend on each other.
    """
    base, dims = likelihood, 0
    while isinstance(base, torch.distributions.Independent):
        dims += base.reinterpreted_batch_ndims
        base = base.base_dist
    if dims < obs_mask.dim() - 1:
        raise InputError(
            "expected a likelihood of independent entries, of which some can be left out by "
            f"obs_mask=; got {type(base).__name__} with event shape {tuple(base.event_shape)}. "
            "Take a Normal or Bernoulli with .to_event(1), say."
        )
    return base.mask(obs_mask).to_event(dims)


def check_mask(encoder: nn.Module, x: Tensor, obs_mask: Tensor) -> None:
    """Raise unless a mask has an entry for each of the rows', and the encoder takes it.

    Raises:
        InputError: saying what it is.
    """
    if obs_mask.dtype != torch.bool or obs_mask.shape != x.shape:
        raise InputError(
            f"expected obs_mask as truth values of the rows' shape {tuple(x.shape)}; got "
            f"{obs_mask.dtype} of shape {tuple(obs_mask.shape)}. pyrovae.with_obs_mask(x) makes "
            "one of rows with NaN."
        )
    kinds = [p.kind for p in inspect.signature(encoder.forward).parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if inspect.Parameter.VAR_POSITIONAL not in kinds and sum(k in positional for k in kinds) < 2:
        raise InputError(
            "expected an encoder that takes the rows and obs_mask; got one of rows alone. Wrap it: "
            "pyrovae.MaskedEncoder(encoder), with twice as many inputs."
        )
