"""The aggregated posterior: the mixture of a guide's distributions over a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.by_label import ClassMeans, class_mean, rows_by_label
from pyrovae.mixture.families.weights import safe_log
from pyrovae.mixture.kernel import torch_transforms
from pyrovae.mixture.kernel.component_scores import Responsibilities
from pyrovae.mixture.kernel.support import describe_rows, no_numbers
from pyrovae.mixture.mixture import Mixture


class AggregatedPosterior(Mixture):
    r"""q_agg(z) = Σ_n w_n q(z | x_n): a finite mixture with one component per data point.

    Args:
        encoding: the guide's distribution at N data points, batch shape ``(N,)``.
        weights: one per data point, shape ``(N,)``, with any positive total; equal by default.

    Raises:
        InputError: if the encoding is not a distribution, the weights are not N finite,
            non-negative numbers with a positive total, or the encoding of a data point with a
            weight above zero is NaN or infinite.

    Hoffman & Johnson 2016, "ELBO surgery".

    >>> encoding = dist.Normal(torch.zeros(5, 2), torch.ones(5, 2)).to_event(1)
    >>> AggregatedPosterior(encoding)
    AggregatedPosterior(components=5, event_shape=(2,), family=Normal)
    """

    def __init__(
        self, encoding: dist.Distribution, weights: Tensor | Sequence[float] | None = None
    ) -> None:
        if not isinstance(encoding, dist.Distribution | torch.distributions.Distribution):
            raise InputError(
                f"expected the distributions of N data points, one batch; got {encoding!r:.60}. "
                "Take pyrovae.aggregate(guide, data), or of means and scales "
                "Normal(means, scales).to_event(1)."
            )
        size = math.prod(encoding.batch_shape[:1])
        parameter = families.floating_parameter(encoding)
        # half precision can count no more than 65,504 data points
        weight_dtype = torch.promote_types(parameter.dtype, torch.float32)
        logits = None if weights is not None else torch.zeros(size, dtype=weight_dtype)
        if weights is None:
            weights = torch.ones(()).expand(size)  # one number in memory
        # single precision holds the logarithm of 1e-50, but not 1e-50
        weights = torch.as_tensor(weights, dtype=torch.float64, device=parameter.device)
        #: Total of the weights before normalisation, which is how much this part counts in `merge`.
        self.mass = float(weights.detach().sum())
        usable = weights.shape == (size,) and bool((weights >= 0).all())
        if not usable or not 0 < self.mass < float("inf"):
            raise InputError(
                f"expected {size} finite, non-negative weights with a positive total; got shape "
                f"{tuple(weights.shape)}, total {self.mass}."
            )
        self._check_numbers(encoding, weights)
        logits = safe_log(weights).to(weight_dtype) if logits is None else logits.to(weights.device)
        super().__init__(dist.Categorical(logits=logits), encoding)

    def _check_numbers(self, encoding: dist.Distribution, weights: Tensor) -> None:
        """Check that encodings with a weight have no NaN and, if they are normals, are finite."""
        not_finite = no_numbers(encoding)
        if not_finite is None:
            return
        not_finite = not_finite & (weights > 0)
        if torch_transforms.any_true(not_finite):
            raise InputError(
                "expected encodings with finite parameters; got NaN or infinite ones"
                f"{describe_rows(not_finite)} (counted from 0). Look at these data and the guide, "
                "and leave such rows out or give them a weight of 0."
            )

    @property
    def masses(self) -> Tensor:
        """The weights before normalisation, in float64, shape ``(N,)``."""
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

    def nearest(self, z: Tensor, k: int = 5) -> Responsibilities:
        """The data points whose encodings explain each code best, most responsible first.

        Component n is the encoding of data point n, so these are :meth:`responsibilities`: distance
        is measured in the scales of each encoding, not in those of the latent space.

        Args:
            z: codes, shape ``(..., D)``; of new rows the means ``vae.encode(rows).mean``.
            k: how many data points.

        Returns:
            ``index``, numbers of the aggregated rows, and ``weight``, q(n | z), shape ``(..., k)``.

        Raises:
            InputError: as :meth:`responsibilities`.
        """
        return self.responsibilities(z, top=k)

    def by_label(self, labels: Iterable[Any]) -> dict[Any, AggregatedPosterior]:
        r"""q_agg(z | y) of each class y: the components with that label, weights renormalised.

        .. math:: q_{agg}(z \mid y) = \sum_{n: y_n = y} w_n q(z \mid x_n) \,/ \sum_{n: y_n = y} w_n

        Args:
            labels: y_n of each data point: numbers, words, a tensor, an array, a column of a table.

        Returns:
            the mixture of each class; its ``mass`` is the weight of the class before normalisation.

        Raises:
            InputError: unless there is a label for each data point.

        >>> encoding = dist.Normal(torch.arange(4.0).view(4, 1), 1.0).to_event(1)
        >>> {y: len(part) for y, part in AggregatedPosterior(encoding).by_label("abba").items()}
        {'a': 2, 'b': 2}
        """
        return {label: self[rows] for label, rows in rows_by_label(labels, self.size).items()}

    def class_means(self, labels: Iterable[Any]) -> ClassMeans:
        """E[z | y] of each class y, with standard errors over data sets.

        Args:
            labels: as :meth:`by_label`.

        Raises:
            InputError: unless there is a label for each data point.
            NotImplementedError: for encodings whose mean is not known.
        """
        groups, means, masses = rows_by_label(labels, self.size), self.encoding.mean, self.masses
        found = [class_mean(means[rows], masses[rows]) for rows in groups.values()]
        mean, error = (torch.stack(values).to(means.dtype) for values in zip(*found, strict=True))
        sizes = [int((masses[rows] > 0).sum()) for rows in groups.values()]
        return ClassMeans(tuple(groups), mean, error, torch.tensor(sizes))

    @classmethod
    def merge(cls, parts: Sequence[AggregatedPosterior]) -> AggregatedPosterior:
        """The mixture of all components of several parts, with their weights before normalisation.

        Merging the parts of a data set that was encoded piece by piece gives the same density as
        encoding it at once.
        """
        encoding = families.concatenate([part.encoding for part in parts])
        return AggregatedPosterior(encoding, torch.cat([part.masses for part in parts]))

    def to(self, *args: Any, **kwargs: Any) -> AggregatedPosterior:
        """The same mixture on another device or in another dtype; arguments of ``Tensor.to``."""
        encoding = families.convert(self.encoding, lambda t: t.to(*args, **kwargs))
        return AggregatedPosterior(encoding, self.masses)
