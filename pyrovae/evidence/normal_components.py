"""The components of a mixture by their moments, as normals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture import families


@dataclass(frozen=True)
class NormalComponents:
    """N normals with the moments of a mixture's components, in the components' own dtype.

    Args:
        mean, variance: by unit, shape ``(N, D)``.
        factor: lower Cholesky factors of the covariances, shape ``(N, D, D)``, if they are full.
        log_weight: normalised, in float64, shape ``(N,)``.
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor | None
    log_weight: Tensor

    def precision(self, number: Tensor) -> Tensor:
        """The inverse covariances of some of them in float64, shape ``(n, D, D)``."""
        if self._full_precision is not None:
            return self._full_precision[number]
        return torch.diag_embed(1 / self.variance[number].double())

    @cached_property
    def _full_precision(self) -> Tensor | None:
        return None if self.factor is None else torch.cholesky_inverse(self.factor.double())

    def log_scale(self, number: Tensor) -> Tensor:
        """Half the log determinants of the covariances of some of them, shape ``(n,)``."""
        if self.factor is not None:
            diagonal = self.factor[number].diagonal(dim1=-2, dim2=-1)
            return diagonal.double().log().sum(-1)
        return self.variance[number].double().log().sum(-1) / 2

    def log_prob(self, z: Tensor, number: Tensor, precision: Tensor) -> Tensor:
        """log densities of points, each of one component, without its weight, shape ``(n,)``.

        Args:
            z: shape ``(n, D)``.
            number: of the components, shape ``(n,)``.
            precision: of these, shape ``(n, D, D)``.
        """
        away = (z - self.mean[number].double()).unsqueeze(-1)
        square = (away * (precision @ away)).sum((-2, -1))
        return -square / 2 - self.log_scale(number) - z.shape[-1] / 2 * math.log(2 * math.pi)


def normal_components(mixture: dist.Distribution) -> NormalComponents:
    """The components of a mixture over vectors whose components have moments."""
    components = mixture.component_distribution
    n, d = components.batch_shape[-1], mixture.event_shape[0]
    mean, variance = (m.reshape(n, d) for m in (components.mean, components.variance))
    log_weight = mixture.mixture_distribution.logits.reshape(n).double().log_softmax(0)
    full = families.full_normal(components)
    return NormalComponents(mean, variance, None if full is None else full[1], log_weight)
