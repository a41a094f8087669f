"""The aggregated posterior: the mixture of a guide's distributions over a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.families.weights import safe_log
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.support import named, no_numbers
from pyrovae.mixture.mixture import Mixture


class AggregatedPosterior(Mixture):
    r"""q_agg(z) = Σ_n w_n q(z | x_n): a finite mixture with one component per data point.

    Args:
        encoding: the guide's distribution at N data points, batch shape ``(N,)``.
        weights: of the data points, shape ``(N,)``, of any positive total; equal if not given.

    Raises:
        InputError: if the weights are not N finite, non-negative numbers with a positive total, or
            a data point with a weight above zero has an encoding that is no number.

    Hoffman & Johnson 2016, "ELBO surgery".

    >>> encoding = dist.Normal(torch.zeros(5, 2), torch.ones(5, 2)).to_event(1)
    >>> AggregatedPosterior(encoding)
    AggregatedPosterior(components=5, event_shape=(2,), family=Normal)
    """

    def __init__(
        self, encoding: dist.Distribution, weights: Tensor | Sequence[float] | None = None
    ) -> None:
        size = encoding.batch_shape[:1].numel()
        like = families.floating_parameter(encoding)
        # half precision ends at 65,504 data points
        wide = torch.promote_types(like.dtype, torch.float32)
        if weights is None:
            weights = torch.ones(size)
        # the logarithm of 1e-50 is a number of single precision, 1e-50 is not
        weights = torch.as_tensor(weights, dtype=torch.float64, device=like.device)
        #: Total of the weights as they were given: what this part counts for in `merge`.
        self.mass = float(weights.detach().sum())
        usable = weights.shape == (size,) and bool((weights >= 0).all())
        if not usable or not 0 < self.mass < float("inf"):
            raise InputError(
                f"expected {size} finite, non-negative weights with a positive total; got shape "
                f"{tuple(weights.shape)}, total {self.mass}."
            )
        _check_numbers(encoding, weights)
        super().__init__(dist.Categorical(logits=safe_log(weights).to(wide)), encoding)

    @property
    def masses(self) -> Tensor:
        """The weights as they were given, in float64, shape ``(N,)``."""
        return self.log_weights.double().softmax(-1) * self.mass

    @property
    def encoding(self) -> dist.Distribution:
        """The guide's distributions, batch shape ``(N,)``."""
        return self.component_distribution

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Tensor | slice) -> AggregatedPosterior:
        """The aggregated posterior of some of the data points, by mask, index tensor or slice."""
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            if index.shape != (self.size,):
                raise InputError(
                    f"expected a mask of shape ({self.size},); got {tuple(index.shape)}."
                )
            index = index.nonzero().squeeze(-1)
        weights = self.masses[index]
        if weights.dim() != 1 or not len(weights):
            raise InputError(
                "expected a mask, an index tensor or a slice that keeps at least one component; "
                f"got {index!r}. For a single one use .component(n)."
            )
        return AggregatedPosterior(families.take(self.encoding, index), weights)

    @classmethod
    def merge(cls, parts: Sequence[AggregatedPosterior]) -> AggregatedPosterior:
        """The mixture of all components of several parts, each with the weight it was given.

        Parts of one data set, encoded apart, give the density of the whole.
        """
        encoding = families.concatenate([part.encoding for part in parts])
        return cls(encoding, torch.cat([part.masses for part in parts]))

    def to(self, *args: Any, **kwargs: Any) -> AggregatedPosterior:
        """The same mixture on another device or in another dtype; arguments as ``Tensor.to``."""
        encoding = families.convert(self.encoding, lambda t: t.to(*args, **kwargs))
        return AggregatedPosterior(encoding, self.masses)


def _check_numbers(encoding: dist.Distribution, weights: Tensor) -> None:
    """Check that what has a weight is a number, of a normal a finite one."""
    wrong = no_numbers(encoding)
    if wrong is not None and torch_transforms.some(wrong := wrong & (weights > 0)):
        raise InputError(
            "expected encodings that are numbers; got NaN or infinite parameters"
            f"{named(wrong)} (counted from 0). Look at these data and the guide, and leave such "
            "rows out or give them a weight of 0."
        )
