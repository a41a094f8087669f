"""The discretised logistic distribution, for images of 256 grey levels, and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrovae.estimates import Bound, Estimate


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic distribution over the real line, binned to the levels 0, 1, …, L − 1.

    Level x gets the mass of its bin of width one around it; the outer bins reach to infinity:

    .. math:: P(x) = s(b) - s(a), \quad b = (x + 1/2 - m)/τ, \; a = (x - 1/2 - m)/τ

    with s the sigmoid. The difference is computed as s(b) s(−a) (1 − e^{a−b}), which does not
    cancel (Kingma et al. 2016; Salimans et al. 2017).

    Args:
        loc: m in units of levels.
        scale: τ > 0 in units of levels.
        levels: L.

    >>> d = DiscretizedLogistic(torch.tensor(100.3), torch.tensor(4.0))
    >>> round(float(d.log_prob(torch.arange(256.0)).exp().sum()), 5)
    1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(
        self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The levels."""
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def mean(self) -> Tensor:
        r"""E[x] in units of levels, which is m only where the outer bins have little mass.

        .. math:: E[x] = \sum_{k=0}^{L-2} P(x > k) = \sum_{k=0}^{L-2} s((m - k - 1/2)/τ)
        """
        total = torch.zeros_like(self.loc)
        for level in range(self.levels - 1):  # one by one, to save the memory of L numbers an entry
            total = total + torch.sigmoid((self.loc - level - 0.5) / self.scale)
        return total

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """The same distribution for a larger batch."""
        return DiscretizedLogistic(
            self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels, False
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Levels, shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            loc = self.loc.expand(self._extended_shape(torch.Size(sample_shape)))
            draw = loc + self.scale * torch.logit(torch.rand_like(loc))
            return draw.round().clamp(0, self.levels - 1)  # the outer bins reach to infinity

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(x), differentiable in the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        upper = (value + 0.5 - self.loc) / self.scale
        lower = (value - 0.5 - self.loc) / self.scale
        inner = logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1(-1 / self.scale))
        edge = torch.where(value <= 0, logsigmoid(upper), logsigmoid(-lower))
        return torch.where((value <= 0) | (value >= self.levels - 1), edge, inner)


def bits_per_dimension(log_p: Estimate, event_shape: Sequence[int]) -> Estimate:
    r"""−log₂ p(x) for each entry of a row: the code length of an image of grey levels.

    .. math:: b = -\frac{\log p(x)}{P \log 2}

    Args:
        log_p: log p(x) of one row in nats, such as ``log_evidence(...).mean()``, under a likelihood
            of levels such as :class:`DiscretizedLogistic`: a density can't be measured in bits.
        event_shape: shape of one row, of P entries.

    Returns:
        an estimate in bits; a lower bound of log p(x) makes it an upper bound.

    >>> bits_per_dimension(Estimate(-784.0, 7.84, 100, "data", "lower"), (28, 28))
    Estimate(≤ 1.443 ± 0.014, size=100)
    """
    unit = math.prod(event_shape) * math.log(2)
    opposite: dict[Bound | None, Bound | None] = {"lower": "upper", "upper": "lower", None: None}
    return replace(
        log_p,
        value=-log_p.value / unit,
        standard_error=log_p.standard_error / unit,
        bound=opposite[log_p.bound],
        ends=log_p.ends and (-log_p.ends[1] / unit, -log_p.ends[0] / unit),
    )
