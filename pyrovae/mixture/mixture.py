"""Large finite mixtures as Pyro distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import InputError
from pyrovae.mixture import families, quantiles
from pyrovae.mixture.families.nested import MixtureByRow, Pushed
from pyrovae.mixture.families.weights import safe_log
from pyrovae.mixture.kernel import gradients, search, support, torch_transforms
from pyrovae.mixture.kernel.any_family import Components, drop_zero_weights
from pyrovae.mixture.kernel.cache import Cache, leave_inference_mode
from pyrovae.mixture.kernel.component_scores import Responsibilities, top_shares, total_scores
from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.full_normals import FullNormals
from pyrovae.mixture.kernel.parts import NormalsInParts
from pyrovae.mixture.kernel.student_t import StudentTs
from pyrovae.mixture.reparametrised import reparametrised
from pyrovae.torch_modes import plain

Value = TypeVar("Value")

#: What finds the parameters of a family, and what evaluates it faster than `Components`.
_FUSED: tuple[tuple[Callable[..., tuple[Tensor, ...] | None], type[Components]], ...] = (
    (families.full_normal, FullNormals),
    (families.student_t, StudentTs),
)

#: Components averaged in one step.
ROWS = 1 << 16


class Mixture(dist.MixtureSameFamily):
    r"""A mixture of N components of one family, for N from one to millions.

    .. math:: q(z) = \sum_n w_n q_n(z)

    It is a ``pyro.distributions.MixtureSameFamily`` and takes the same arguments. For components
    that are diagonal normals, `log_prob` is one pass with an error of at most 1e-4 nats in
    float32 (1e-9 relative to the size of the terms in float64) whatever the scales; other families
    are evaluated in float64, block by block, ``MultivariateNormal`` by matrix products. Neither
    stores a number for every pair of point and component. `sample` draws an index first and then
    from that component only. `expand` is lazy: a plate of B points costs nothing. What is computed
    from components without gradient is cached, and computed again when their numbers change.

    Args:
        mixture_distribution: ``Categorical`` over the components, batch shape ``()``. Weights of
            zero leave components out exactly, whatever their parameters.
        component_distribution: batch shape ``(N,)``, any event shape. Where supports differ, a
            component has density 0 outside its own.

    Raises:
        InputError: if the components do not have one batch dimension, or the weights have any.

    >>> components = dist.Normal(torch.tensor([[-1.0], [1.0]]), 0.5).to_event(1)
    >>> mixture = Mixture(dist.Categorical(torch.ones(2)), components)
    >>> mixture.log_prob(torch.zeros(3, 1)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        mixture_distribution: dist.Categorical,
        component_distribution: dist.Distribution,
        validate_args: bool | None = None,
    ) -> None:
        if len(component_distribution.batch_shape) != 1:
            raise InputError(
                "expected components of batch shape (N,); got "
                f"{tuple(component_distribution.batch_shape)}. Move event dimensions out of the "
                "batch with .to_event(k), or build one mixture per batch entry."
            )
        if not isinstance(mixture_distribution, torch.distributions.Categorical):
            raise InputError(
                f"expected weights as a Categorical; got {type(mixture_distribution).__name__}. "
                "Write dist.Categorical(weights)."
            )
        if mixture_distribution.batch_shape:
            raise InputError(
                "expected one set of weights, a Categorical of batch shape (); got "
                f"{tuple(mixture_distribution.batch_shape)}. Build one mixture per batch entry."
            )
        super().__init__(mixture_distribution, component_distribution, validate_args)
        self.has_rsample = self._normal() is not None
        families.full_normal(component_distribution)  # lets torch compute its Cholesky factor now
        self._cache = Cache()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same mixture with another batch shape; no tensor is expanded."""
        expanded = type(self).__new__(type(self)) if _instance is None else _instance
        expanded.__dict__.update(self.__dict__)
        shape = torch.Size(batch_shape)
        batch_shape_before = self.batch_shape
        dimension_pairs = zip(reversed(batch_shape_before), reversed(shape), strict=False)
        if len(batch_shape_before) > len(shape) or any(a not in (1, b) for a, b in dimension_pairs):
            raise InputError(
                f"expected a shape that {tuple(batch_shape_before)} expands to; got {tuple(shape)}."
            )
        expanded._batch_shape = shape
        return expanded

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache out of copies and pickles, which have tensors of their own."""
        return {**self.__dict__, "_cache": Cache()}

    def __repr__(self) -> str:
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return (
            f"{type(self).__name__}(components={self.size}, event_shape={tuple(self.event_shape)}, "
            f"family={families.family(self.component_distribution)}{batch})"
        )

    @property
    def size(self) -> int:
        """Number of components N."""
        return int(self.component_distribution.batch_shape[0])

    @property
    def log_weights(self) -> Tensor:
        """Normalised log weights, shape ``(N,)``; −inf where a weight is zero."""
        categorical = self.mixture_distribution
        if categorical._param is vars(categorical).get("probs"):  # logits would round 0 up
            return safe_log(categorical.probs)
        return categorical.logits.log_softmax(-1)

    @property
    def weights(self) -> Tensor:
        """Normalised weights, shape ``(N,)``."""
        return self.log_weights.exp()

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The components' common support, or the union of their supports where these differ."""
        if support.differs(self.component_distribution):
            return support.OfAnyComponent(self._weighted_components()[0])
        return self.component_distribution.support

    @property
    def mean(self) -> Tensor:
        """E[z], batch shape + event shape."""
        means = self._weighted_components()[0].mean
        return self._average(means).to(means.dtype).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """Var[z] per unit, the mean variance of the components plus the variance of their means."""
        within = self._weighted_components()[0].variance
        return (self._average(within).to(within.dtype) + self.mean_variance).expand(self.shape())

    @property
    def mean_variance(self) -> Tensor:
        """Var_n[μ_n] per unit, the variance of the component means; event shape."""
        means = self._weighted_components()[0].mean
        return self._average(means, self._average(means)).to(means.dtype)

    def _weighted_components(self) -> tuple[dist.Distribution, Tensor]:
        """The components that have a weight above zero, and their log weights."""
        _, components, log_weights = drop_zero_weights(
            self.component_distribution, self.log_weights
        )
        return components, log_weights

    def _average(self, values: Tensor, centre: Tensor | None = None) -> Tensor:
        """Σ_n w_n v_n in float64, event shape; with a centre, Σ_n w_n (v_n − centre)².

        Args:
            values: one for each component with a weight above zero.
            centre: what to subtract before squaring.
        """
        total = torch.zeros_like(values[0], dtype=torch.float64)
        weights = self._weighted_components()[1].double().softmax(-1)  # in float64 1e-50 is not 0
        for start in range(0, len(values), ROWS):
            weight, part = weights[start : start + ROWS], values[start : start + ROWS].double()
            if centre is not None:
                part = (part - centre).square()
            shape = (-1, *(1,) * (part.dim() - 1))
            part = torch.where(weight.view(shape) > 0, part, 0.0)  # 0 · ∞ counts as 0
            total = total + torch.tensordot(weight, part, 1)
        return total

    @plain()
    def log_prob(self, value: Tensor) -> Tensor:
        """log q(z), differentiable in z and in the parameters.

        Args:
            value: points, shape ``(..., *event_shape)``.

        Returns:
            shape ``(...)``, broadcast with the batch shape.

        Raises:
            InputError: if points do not have the event shape or, where arguments are validated, are
                NaN or outside the support that all components share.
        """
        support.check_shape(value, self.event_shape)
        normal = self._normal()
        if self._validate_args:
            if normal is None:
                support.check_points(value, self._weighted_components()[0])
            else:
                support.check_numbers(value, self.event_shape)
        if (simplified := self._simplify()) is not None:
            return self._reshape(simplified.log_prob(value).to(self._dtype(value)), value)
        if normal is None:
            log_density = self._components().log_prob(value.reshape(-1, *self.event_shape))
            return self._reshape(log_density.to(self._dtype(value)), value)
        points = value if value.dim() == 2 and self.event_dim == 1 else self._flatten(value)
        evaluator = self._cached_normals(normal)
        if evaluator is not None:
            return self._reshape(gradients.log_density(points, lambda: evaluator), value)
        components, log_weights = self._weighted_components()
        all_weighted = components is self.component_distribution
        loc_scale = normal if all_weighted else families.diagonal_normal(components) or normal
        parameters = [leave_inference_mode(tensor) for tensor in (*loc_scale, log_weights)]
        log_density = gradients.log_density(points, lambda: self._diagonal(normal), parameters)
        return self._reshape(log_density, value)

    @plain()
    def score(self, z: Tensor) -> Tensor:
        r"""∇_z log q(z) = Σ_n r_n(z) ∇ log q_n(z), shape of ``z``; without gradient.

        Raises:
            InputError: if points do not have the event shape or are NaN, or the components are
                discrete.
        """
        rows = self._as_rows(z).to(self._dtype(z))
        if self.component_distribution.support.is_discrete:
            raise InputError(
                "expected components with a density, which a score needs; got discrete components, "
                f"{families.family(self.component_distribution)}."
            )
        if not len(rows):
            return torch.zeros_like(z)
        if (simplified := self._simplify()) is not None:
            with torch.enable_grad():
                points = leave_inference_mode(rows.detach()).requires_grad_()
                (gradient,) = torch.autograd.grad(simplified.log_prob(points).sum(), points)
            return gradient.reshape(z.shape)
        with torch.no_grad():  # the score has no gradient in the parameters
            components = self._evaluator()
        if isinstance(components, DiagonalNormals | NormalsInParts):
            vectors = rows.reshape(-1, components.dim)
            return gradients.score(vectors, components).reshape(z.shape)
        return components.score(rows).reshape(z.shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws: first an index, then from that component; memory grows with the draws only."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            index = self.sample_index(math.prod(shape))
            drawn: Tensor = families.take(self.component_distribution, index).sample()
            return drawn.reshape(shape + self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients in the parameters, including the weights, for diagonal normals.

        The draws are those of `sample`. Gradients are by implicit reparametrisation, for any number
        of units (Graves 2016; Figurnov et al. 2018), and take all pairs of draw and component.

        Raises:
            NotImplementedError: if the components are not diagonal normals, saying what to use.
        """
        normal = self._normal()
        if normal is None:
            raise NotImplementedError(
                "expected diagonal normals, whose draws have gradients in the parameters; got "
                f"{families.family(self.component_distribution)}. Use sample(), and the score "
                "function: the gradient of E[f(z)] is that of E[f(z) * log_prob(z)], f(z) detached."
            )
        z = self.sample(sample_shape)
        if not torch_transforms.need_derivatives(*self._source_tensors()):
            return z
        parameters = (leave_inference_mode(tensor) for tensor in (*normal, self.log_weights))
        return reparametrised(self._flatten(z), *parameters).reshape(z.shape)

    def sample_index(self, count: int) -> Tensor:
        """Component numbers drawn by weight, shape ``(count,)``, for any number of components."""
        weights = self.log_weights.detach()
        if bool((weights == weights[0]).all()):
            return torch.randint(len(weights), (count,), device=weights.device)
        cumulative = weights.double().exp().cumsum(0)
        uniform = torch.rand(count, dtype=torch.float64, device=weights.device)
        return torch.searchsorted(cumulative / cumulative[-1], uniform, right=True)

    def component(self, n: int) -> dist.Distribution:
        """Component number n, batch shape ``()``."""
        if not -self.size <= n < self.size:
            raise IndexError(f"expected a component from 0 to {self.size - 1}; got {n}.")
        return families.take(self.component_distribution, torch.tensor(n % self.size))

    def marginal(self, units: int | Sequence[int]) -> Mixture:
        """The mixture of some units: event shape ``()`` for one index, ``(k,)`` for a list of k."""
        return Mixture(
            self.mixture_distribution, families.marginal(self.component_distribution, units)
        )

    def entropy(self) -> Tensor:
        """Refused: a mixture has no entropy in closed form."""
        raise NotImplementedError(
            "expected an entropy in closed form; got a mixture. Use pyrovae.entropy(mixture), an "
            "estimate with its standard error, or pyrovae.entropy_bounds(mixture)."
        )

    @plain()
    def cdf(self, value: Tensor) -> Tensor:
        """P(z ≤ value) of a mixture over numbers, computed in blocks of components."""
        components, weights = self._over_numbers()
        support.check_numbers(value, self.event_shape)
        total = quantiles.cdf(components, weights, value.to(self._dtype(value)))
        return total.expand(broadcast_shape(total.shape, self.batch_shape))

    def icdf(self, value: Tensor) -> Tensor:
        """The z with P(z' ≤ z) = value of a mixture over numbers; differentiable.

        Raises:
            InputError: if a value is not between 0 and 1, or the mixture is over vectors.
            NotImplementedError: for a family without quantiles, saying what to use.
        """
        components, weights = self._over_numbers()
        quantile = quantiles.icdf(components, weights, value).to(self._dtype(value))
        return quantile.expand(broadcast_shape(quantile.shape, self.batch_shape))

    def _over_numbers(self) -> tuple[dist.Distribution, Tensor]:
        """The components with a weight above zero and their weights, for a mixture over numbers."""
        if self.event_shape:
            raise InputError(
                f"expected a mixture over numbers, event shape (); got {tuple(self.event_shape)}. "
                "Take .marginal(d) first."
            )
        components, log_weights = self._weighted_components()
        return components, log_weights.double().exp()

    @plain()
    def responsibilities(self, z: Tensor, *, top: int) -> Responsibilities:
        """The components that explain each point best, r_n(z) = w_n q_n(z) / q(z).

        Args:
            z: points, shape ``(..., *event_shape)``.
            top: how many components to return.

        Returns:
            indices and weights, shape ``(..., min(top, N))``; B × N numbers are never stored.

        Raises:
            InputError: if ``top`` is less than 1, or points do not have the event shape, are NaN or
                have density 0.
        """
        if top < 1:
            raise InputError(f"expected at least one component to return; got top={top}.")
        with torch.no_grad():
            evaluator = self._evaluator()
            rows, k = self._as_rows(z), min(top, evaluator.size)
            if isinstance(evaluator, DiagonalNormals | NormalsInParts):
                index, weight = search.top(evaluator, rows.reshape(len(rows), evaluator.dim), k)
            else:
                index, weight = top_shares(evaluator, rows, k)
            if evaluator.index is not None:
                index = evaluator.index[index]
            if k < min(top, self.size):  # the others have no weight
                weightless = (self.log_weights == -math.inf).nonzero().squeeze(-1)
                weightless = weightless[: min(top, self.size) - k].expand(len(rows), -1)
                index = torch.cat([index, weightless], -1)
                weight = torch.nn.functional.pad(weight, (0, weightless.shape[-1]))
            weight = self._reshape_responsibilities(weight, z)
            return Responsibilities(index.reshape(weight.shape), weight)

    @plain()
    def effective_components(self, z: Tensor) -> Tensor:
        r"""How many components share a point: exp of the entropy of its responsibilities.

        .. math:: \exp\Big(-\sum_n r_n(z) \log r_n(z)\Big) ∈ [1, N]

        Args:
            z: points, shape ``(..., *event_shape)``.

        Returns:
            shape ``(...)``; without gradient.

        Raises:
            InputError: if points do not have the event shape, are NaN or have density 0.
        """
        with torch.no_grad():
            rows, evaluator = self._as_rows(z), self._evaluator()
            if isinstance(evaluator, DiagonalNormals | NormalsInParts):
                entropy = search.evaluate(evaluator, rows.reshape(len(rows), evaluator.dim)).entropy
            else:
                entropy = total_scores(evaluator, rows)[1]
            return self._reshape_responsibilities(
                entropy.clamp(min=0.0).exp(), z
            )  # rounding may put it below 0

    @plain()
    def leave_one_out_log_prob(self, z: Tensor, n: Tensor) -> Tensor:
        r"""Log density of the mixture without component n, which may differ between points.

        .. math:: \log \sum_{m ≠ n} \frac{w_m}{1 - w_n} q_m(z)

        The component is left out of the sum, not subtracted from it, so the result is exact even
        where it carries all the mass.

        Args:
            z: points, shape ``(..., *event_shape)``.
            n: component numbers, of a shape that expands to ``(...)``.

        Returns:
            shape ``(...)``; without gradient.

        Raises:
            InputError: if there is no component n, no other component has a weight, or points do
                not have the event shape or are NaN.
        """
        with torch.no_grad():
            shape = z.shape[: z.dim() - len(self.event_shape)]
            number = torch.as_tensor(n, device=z.device).expand(shape).flatten()
            if bool(((number < 0) | (number >= self.size)).any()):
                raise InputError(f"expected components from 0 to {self.size - 1}; got {n}.")
            weights = torch.nn.functional.pad(self.log_weights.double().exp(), (1, 1))
            before, after = weights.cumsum(0)[:-2], weights.flip(0).cumsum(0).flip(0)[2:]
            log_rest = (before + after).log()[number]
            if bool((log_rest == -math.inf).any()):
                raise InputError(
                    "expected another component with a weight above zero; got a mixture of one."
                )
            return self._reshape(
                (self._log_sum_without(self._as_rows(z), number) - log_rest).to(self._dtype(z)),
                z,
            )

    def _simplify(self) -> dist.Distribution | None:
        """The same density with simpler components, if they are mixtures or share a flow."""
        if isinstance(self.component_distribution, MixtureByRow):
            mixtures, log_weights = self._weighted_components()
            within, components = families.unroll(mixtures)
            logits = (log_weights.unsqueeze(-1) + within).flatten()
            return Mixture(dist.Categorical(logits=logits), components)
        pushed = self.component_distribution
        if isinstance(pushed, Pushed):
            return Pushed(Mixture(self.mixture_distribution, pushed.base_dist), pushed.transforms)
        return None

    def _log_sum_without(self, rows: Tensor, left_out: Tensor) -> Tensor:
        """log Σ_m w_m q_m(z) over all but one component for each point, in float64, ``(B,)``."""
        evaluator = self._evaluator()
        if evaluator.index is not None:
            position = torch.full((self.size,), -1, device=rows.device)
            position[evaluator.index] = torch.arange(evaluator.size, device=rows.device)
            left_out = position[left_out]
        if isinstance(evaluator, DiagonalNormals | NormalsInParts):
            return search.log_prob(
                evaluator, rows.reshape(len(rows), evaluator.dim), exclude=left_out
            )
        return total_scores(evaluator, rows, left_out)[0]

    def _reshape_responsibilities(self, values: Tensor, z: Tensor) -> Tensor:
        """Values for rows in the shape of the points; NaN, at points of density 0, is refused."""
        batch = support.check_shape(z, self.event_shape)
        values = values.to(self._dtype(z)).reshape(*batch, *values.shape[1:])
        undefined = values.isnan()
        if bool(undefined.any()):
            rows = support.describe_rows(undefined.reshape(*batch, -1).any(-1))
            raise InputError(
                f"expected points with a density above 0; got others{rows}. Leave these out."
            )
        return values

    def _as_rows(self, z: Tensor) -> Tensor:
        """The points as rows, checked for their shape and for NaN."""
        support.check_shape(z, self.event_shape)
        support.check_numbers(z, self.event_shape)
        return z.reshape(-1, *self.event_shape)

    def _flatten(self, z: Tensor) -> Tensor:
        return z.reshape(-1, self.event_shape.numel())

    def _reshape(self, values: Tensor, z: Tensor) -> Tensor:
        shape = z.shape[: z.dim() - len(self.event_shape)]
        if values.shape != shape:
            values = values.reshape(shape)
        if not self.batch_shape:
            return values
        return values.expand(broadcast_shape(values.shape, self.batch_shape))

    def _dtype(self, z: Tensor) -> torch.dtype:
        return torch.promote_types(z.dtype, self.log_weights.dtype)

    def in_parts(self) -> Iterator[slice]:
        """Ranges of components to have in memory one at a time: here all of them at once."""
        yield slice(0, self.size)

    def diagonal_normals(self) -> DiagonalNormals | None:
        """The components, laid out for evaluation, if they are diagonal normals; else None."""
        evaluator = self._evaluator()
        return evaluator if isinstance(evaluator, DiagonalNormals) else None

    def _evaluator(self) -> DiagonalNormals | NormalsInParts | Components:
        """What evaluates the components."""
        normal = self._normal()
        return self._components() if normal is None else self._diagonal(normal)

    def _normal(self) -> tuple[Tensor, Tensor] | None:
        """Locations and scales of diagonal normals, each ``(N, D)``; None for another family."""
        return families.diagonal_normal(self.component_distribution)

    def _diagonal(self, normal: tuple[Tensor, Tensor]) -> DiagonalNormals | NormalsInParts:
        return self._compute_once(
            self._source_tensors(), lambda: DiagonalNormals(*normal, self.log_weights)
        )

    def _cached_normals(
        self, normal: tuple[Tensor, Tensor]
    ) -> DiagonalNormals | NormalsInParts | None:
        """The evaluator, if it may be cached; None on the first call, which would not repay it."""
        tensors = self._source_tensors()
        if torch_transforms.active() or _must_recompute(*tensors):
            return None
        used_before, self._cache.used_before = self._cache.used_before, True
        evaluator: DiagonalNormals | NormalsInParts | None = self._cache.find(tensors)
        return self._diagonal(normal) if used_before and evaluator is None else evaluator

    def _components(self) -> Components:
        components = self.component_distribution
        for parameters_of, fused in _FUSED:
            if (parameters := parameters_of(components)) is None:
                continue
            tensors = (*parameters, self.mixture_distribution._param)
            if not torch_transforms.need_derivatives(*tensors):
                compute = partial(fused, components, self.log_weights)
                return self._compute_once(tensors, compute)
        return Components(components, self.log_weights)

    def _compute_once(self, tensors: Sequence[Tensor], compute: Callable[[], Value]) -> Value:
        """What ``compute`` returns for these tensors, from the cache if they allow one."""
        if _must_recompute(*tensors):
            return compute()
        value: Value | None = self._cache.find(tensors)
        return self._cache.store(tensors, compute) if value is None else value

    def _source_tensors(self) -> tuple[Tensor, ...]:
        """The parameters of diagonal normals themselves, not copies made by reshaping."""
        normal: Any = families.innermost(self.component_distribution)
        return normal.loc, normal.scale, self.mixture_distribution._param


def _must_recompute(*tensors: Tensor) -> bool:
    """Whether caching what is computed from tensors would not pay, or would lose derivatives."""
    return any(t.requires_grad for t in tensors) or torch_transforms.need_derivatives(*tensors)
