"""Large finite mixtures as Pyro distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import InputError
from pyrovae.isolation import plain
from pyrovae.mixture import families, gradients, quantiles, screening
from pyrovae.mixture.by_row import MixtureByRow, Pushed
from pyrovae.mixture.exemplars import Responsibilities, top_scores, total_scores
from pyrovae.mixture.full_normals import FullNormals
from pyrovae.mixture.general import Components
from pyrovae.mixture.kept import Kept, usable
from pyrovae.mixture.logdensity import safe_log
from pyrovae.mixture.normals import DiagonalNormals
from pyrovae.mixture.reparametrised import reparametrised
from pyrovae.mixture.support import OfAnyComponent

#: Components that are averaged over at once.
ROWS = 1 << 16


class Mixture(dist.MixtureSameFamily):
    r"""A mixture of N components of one family, for N from one to millions.

    .. math:: q(z) = \sum_n w_n q_n(z)

    It is a ``pyro.distributions.MixtureSameFamily`` and takes the same arguments. For components
    that are diagonal normals, `log_prob` is one pass with an error of at most 1e-4 nats in
    float32 (1e-9 relative to the size of the terms in float64) whatever the scales; other families
    are evaluated in float64, block by block, ``MultivariateNormal`` by products of matrices.
    Neither holds a number for every pair of point and component. `sample` draws an index first and
    then that component only. `expand` is lazy: a plate of B points costs nothing. What is kept of
    the components is made anew when they change in place, but not if by way of ``tensor.data``.

    Args:
        mixture_distribution: ``Categorical`` over the components, batch shape ``()``. Weights of
            zero leave components out exactly.
        component_distribution: batch shape ``(N,)``, any event shape.

    Raises:
        InputError: if the components have more than one batch dimension, or the weights any.

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
        if mixture_distribution.batch_shape:
            raise InputError(
                "expected one set of weights, a Categorical of batch shape (); got "
                f"{tuple(mixture_distribution.batch_shape)}. Build one mixture per batch entry."
            )
        super().__init__(mixture_distribution, component_distribution, validate_args)
        self.has_rsample = families.diagonal_normal(component_distribution) is not None
        self._kept = Kept()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same mixture for a batch of independent points; no tensor is expanded."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        shape = torch.Size(batch_shape)
        old = self.batch_shape
        aligned = zip(reversed(old), reversed(shape), strict=False)
        if len(old) > len(shape) or any(a not in (1, b) for a, b in aligned):
            raise InputError(f"expected a shape that {tuple(old)} expands to; got {tuple(shape)}.")
        new._batch_shape = shape
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles build their own evaluator: theirs are other tensors."""
        return {**self.__dict__, "_kept": Kept()}

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
        """Normalised log weights, shape ``(N,)``; −inf where the weight is zero."""
        categorical = self.mixture_distribution
        if categorical._param is vars(categorical).get("probs"):  # logits would not keep a zero
            return safe_log(categorical.probs)
        return categorical.logits.log_softmax(-1)

    @property
    def weights(self) -> Tensor:
        """Normalised weights, shape ``(N,)``."""
        return self.log_weights.exp()

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of the components where it is one for all, which Pyro can transform."""
        of_components = self.component_distribution.support
        inner = of_components
        while isinstance(inner, constraints.independent):
            inner = inner.base_constraint
        if any(isinstance(bound, Tensor | dist.Distribution) for bound in vars(inner).values()):
            return OfAnyComponent(of_components)
        return of_components

    @property
    def mean(self) -> Tensor:
        """E[z], batch shape + event shape."""
        means = self.component_distribution.mean
        return self._average(means).to(means.dtype).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """Var[z] per unit: the mean variance of the components plus the variance of their means."""
        within = self.component_distribution.variance
        return (self._average(within).to(within.dtype) + self.mean_variance).expand(self.shape())

    @property
    def mean_variance(self) -> Tensor:
        """Var_n[μ_n] per unit, the variance of the component means, shape of an event."""
        means = self.component_distribution.mean
        return self._average(means, self._average(means)).to(means.dtype)

    def _average(self, values: Tensor, centre: Tensor | None = None) -> Tensor:
        """Σ_n w_n v_n in float64, shape of an event; of (v_n − centre)² with a centre."""
        total, weights = torch.zeros_like(values[0], dtype=torch.float64), self.weights.double()
        for start in range(0, self.size, ROWS):
            weight, part = weights[start : start + ROWS], values[start : start + ROWS].double()
            if centre is not None:
                part = (part - centre).square()
            shape = (-1, *(1,) * (part.dim() - 1))
            part = torch.where(weight.view(shape) > 0, part, 0.0)  # where 0 · ∞ is nothing too
            total = total + torch.tensordot(weight, part, 1)
        return total

    @plain()
    def log_prob(self, value: Tensor) -> Tensor:
        """log q(z), differentiable in z and in the parameters.

        Args:
            value: points, shape ``(..., *event_shape)``.

        Returns:
            shape ``(...)``, broadcast with the batch shape.
        """
        if self._validate_args and value.numel():
            self._validate_sample(value)
        if (simpler := self._simpler()) is not None:
            return self._shaped(simpler.log_prob(value).to(self._dtype(value)), value)
        normal = families.diagonal_normal(self.component_distribution)
        if normal is None:
            found = self._components().log_prob(self._rows(value))
            return self._shaped(found.to(self._dtype(value)), value)
        lasting = not self._learns(normal) and self._kept.asked_again(self._tensors())
        parameters = None if lasting else [usable(t) for t in (*normal, self.log_weights)]
        points = value if value.dim() == 2 and self.event_dim == 1 else self._flat(value)
        found = gradients.log_density(points, lambda: self._diagonal(normal), parameters)
        return self._shaped(found, value)

    @plain()
    def score(self, z: Tensor) -> Tensor:
        r"""∇_z log q(z) = Σ_n r_n(z) ∇ log q_n(z), shape of ``z``; without gradient.

        Raises:
            InputError: if the points are not of the event shape, or the components are discrete.
        """
        rows = self._rows(z).to(self._dtype(z))
        if self.component_distribution.support.is_discrete:
            raise InputError(
                "expected a mixture with a density, to have a score; got discrete components, "
                f"{families.family(self.component_distribution)}."
            )
        if not len(rows):
            return torch.zeros_like(z)
        if (simpler := self._simpler()) is not None:
            with torch.enable_grad():
                points = usable(rows.detach()).requires_grad_()
                (found,) = torch.autograd.grad(simpler.log_prob(points).sum(), points)
            return found.reshape(z.shape)
        with torch.no_grad():  # the parameters take no part
            components = self.diagonal_normals() or self._components()
        if isinstance(components, DiagonalNormals):
            flat = rows.reshape(-1, components.dim)
            return gradients.score(flat, components).reshape(z.shape)
        return components.score(rows).reshape(z.shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws: an index, then that component; memory in proportion to the draws."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            index = self.sample_index(math.prod(shape))
            drawn: Tensor = families.take(self.component_distribution, index).sample()
            return drawn.reshape(shape + self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients in the parameters, weights among them, for diagonal normals.

        They are the same draws as those of `sample`. Gradients are those of implicit
        reparametrisation, in any number of units (Graves 2016; Figurnov et al. 2018), and visit all
        pairs of draw and component.

        Raises:
            NotImplementedError: if the components are not diagonal normals, saying what to use.
        """
        normal = families.diagonal_normal(self.component_distribution)
        if normal is None:
            raise NotImplementedError(
                "expected diagonal normals, whose draws have gradients in the parameters; got "
                f"{families.family(self.component_distribution)}. Use sample(), and the score "
                "function: the gradient of E[f(z)] is that of E[f(z) * log_prob(z)], f(z) held."
            )
        z = self.sample(sample_shape)
        if not self._learns(normal):
            return z
        parameters = (usable(tensor) for tensor in (*normal, self.log_weights))
        return reparametrised(self._flat(z), *parameters).reshape(z.shape)

    def sample_index(self, count: int) -> Tensor:
        """Component numbers drawn by weight, shape ``(count,)``; any number of components."""
        weights = self.log_weights.detach()
        if bool((weights == weights[0]).all()):
            return torch.randint(len(weights), (count,), device=weights.device)
        cumulative = weights.double().exp().cumsum(0)
        uniform = torch.rand(count, dtype=torch.float64, device=weights.device)
        return torch.searchsorted(cumulative / cumulative[-1], uniform, right=True)

    def component(self, n: int) -> dist.Distribution:
        """The component number n, batch shape ``()``."""
        if not -self.size <= n < self.size:
            raise IndexError(f"expected a component from 0 to {self.size - 1}; got {n}.")
        return families.take(self.component_distribution, torch.tensor(n % self.size))

    def marginal(self, units: int | Sequence[int]) -> Mixture:
        """The mixture of some units: event shape ``()`` for one index, ``(k,)`` for a list of k."""
        return Mixture(
            self.mixture_distribution, families.marginal(self.component_distribution, units)
        )

    def entropy(self) -> Tensor:
        """Not known in closed form."""
        raise NotImplementedError(
            "expected an entropy in closed form; got a mixture. Use pyrovae.entropy(mixture), an "
            "estimate with its standard error, or pyrovae.entropy_bounds(mixture)."
        )

    @plain()
    def cdf(self, value: Tensor) -> Tensor:
        """P(z ≤ value) of a mixture over numbers, in blocks of components."""
        components = self._over_numbers()
        total = quantiles.cdf(components, self.weights, value.to(self._dtype(value)))
        return total.expand(broadcast_shape(total.shape, self.batch_shape))

    def icdf(self, value: Tensor) -> Tensor:
        """The z with P(z' ≤ z) = value of a mixture over numbers; differentiable.

        Raises:
            InputError: for a value that is not from 0 to 1, or a mixture over vectors.
            NotImplementedError: for a family without quantiles, saying what to use.
        """
        components = self._over_numbers()
        found = quantiles.icdf(components, self.weights, value).to(self._dtype(value))
        return found.expand(broadcast_shape(found.shape, self.batch_shape))

    def _over_numbers(self) -> dist.Distribution:
        if self.event_shape:
            raise InputError(
                f"expected a mixture over numbers, event shape (); got {tuple(self.event_shape)}. "
                "Take .marginal(d) first."
            )
        return self.component_distribution

    @plain()
    def responsibilities(self, z: Tensor, *, top: int) -> Responsibilities:
        """The components that explain each point best, r_n(z) = w_n q_n(z) / q(z).

        Args:
            z: points, shape ``(..., *event_shape)``.
            top: how many components to return.

        Returns:
            indices and weights, shape ``(..., min(top, N))``; B × N numbers are never held.

        Raises:
            InputError: if ``top`` is less than 1, or the points are not of the event shape or NaN.
        """
        if top < 1:
            raise InputError(f"expected at least one component to return; got top={top}.")
        if bool(z.isnan().any()):
            raise InputError("expected points without NaN; got some. Leave these out.")
        with torch.no_grad():
            evaluator = self.diagonal_normals() or self._components()
            rows, k = self._rows(z), min(top, evaluator.size)
            if isinstance(evaluator, DiagonalNormals):
                rows = rows.reshape(len(rows), evaluator.dim)
            if isinstance(evaluator, DiagonalNormals) and k <= evaluator.groups and len(rows):
                index, score, total = screening.top(evaluator, rows, k)
            else:
                (index, score), total = top_scores(evaluator, rows, k), self._total(rows)
            if evaluator.index is not None:
                index = evaluator.index[index]
            weight = (score - total.unsqueeze(-1)).exp()
            shape = z.shape[: z.dim() - len(self.event_shape)] + index.shape[-1:]
            return Responsibilities(index.reshape(shape), weight.to(self._dtype(z)).reshape(shape))

    @plain()
    def effective_components(self, z: Tensor) -> Tensor:
        r"""How many components share a point: exp of the entropy of its responsibilities.

        .. math:: \exp\Big(-\sum_n r_n(z) \log r_n(z)\Big) ∈ [1, N]

        Args:
            z: points, shape ``(..., *event_shape)``.

        Returns:
            shape ``(...)``; without gradient.
        """
        with torch.no_grad():
            rows, normals = self._rows(z), self.diagonal_normals()
            if normals is None:
                total, expected = total_scores(self._components(), rows)
            else:
                found = screening.evaluate(normals, rows.reshape(len(rows), normals.dim))
                total, expected = found.log_prob, found.expected
            return self._plain((total - expected).clamp(min=0.0).exp(), z)

    @plain()
    def leave_one_out_log_prob(self, z: Tensor, n: Tensor) -> Tensor:
        r"""log density of the mixture without component n, a different one for every point.

        .. math:: \log \sum_{m ≠ n} \frac{w_m}{1 - w_n} q_m(z)

        The component is left out of the sum, not subtracted from it: the result is exact also where
        it carries all the mass.

        Args:
            z: points, shape ``(..., *event_shape)``.
            n: component numbers, shape ``(...)`` or one that expands to it.

        Returns:
            shape ``(...)``; without gradient.

        Raises:
            InputError: if a number is not that of a component, or component n is all there is.
        """
        with torch.no_grad():
            shape = z.shape[: z.dim() - len(self.event_shape)]
            number = torch.as_tensor(n, device=z.device).expand(shape).flatten()
            if bool(((number < 0) | (number >= self.size)).any()):
                raise InputError(f"expected components from 0 to {self.size - 1}; got {n}.")
            weights = torch.nn.functional.pad(self.weights.double(), (1, 1))
            before, after = weights.cumsum(0)[:-2], weights.flip(0).cumsum(0).flip(0)[2:]
            rest = (before + after).log()[number]
            if bool((rest == -math.inf).any()):
                raise InputError(
                    "expected another component with a weight above zero; got a mixture of one."
                )
            return self._plain(self._total(self._rows(z), number) - rest, z)

    def _simpler(self) -> dist.Distribution | None:
        """The same density of plainer components, where these are mixtures or share a flow."""
        of = self.component_distribution
        if isinstance(of, MixtureByRow):
            within, components = families.unroll(of)
            logits = (self.log_weights.unsqueeze(-1) + within).flatten()
            return Mixture(dist.Categorical(logits=logits), components)
        if isinstance(of, Pushed):
            return Pushed(Mixture(self.mixture_distribution, of.base_dist), of.transforms)
        return None

    def _total(self, rows: Tensor, exclude: Tensor | None = None) -> Tensor:
        """log q(z) in float64, shape ``(B,)``, without one component for each point if asked."""
        evaluator = self.diagonal_normals() or self._components()
        if exclude is not None and evaluator.index is not None:
            position = torch.full((self.size,), -1, device=rows.device)
            position[evaluator.index] = torch.arange(evaluator.size, device=rows.device)
            exclude = position[exclude]
        if isinstance(evaluator, DiagonalNormals):
            return screening.log_prob(
                evaluator, rows.reshape(len(rows), evaluator.dim), exclude=exclude
            )
        return total_scores(evaluator, rows, exclude)[0]

    def _plain(self, values: Tensor, z: Tensor) -> Tensor:
        return values.to(self._dtype(z)).reshape(z.shape[: z.dim() - len(self.event_shape)])

    def _rows(self, z: Tensor) -> Tensor:
        dims = len(self.event_shape)
        if z.shape[max(0, z.dim() - dims) :] != self.event_shape:
            raise InputError(
                f"expected points of shape (..., {', '.join(map(str, self.event_shape))}); got "
                f"{tuple(z.shape)}."
            )
        return z.reshape(-1, *self.event_shape)

    def _flat(self, z: Tensor) -> Tensor:
        return z.reshape(-1, self.event_shape.numel())

    def _shaped(self, values: Tensor, z: Tensor) -> Tensor:
        shape = z.shape[: z.dim() - len(self.event_shape)]
        if values.shape != shape:
            values = values.reshape(shape)
        if not self.batch_shape:
            return values
        return values.expand(broadcast_shape(values.shape, self.batch_shape))

    def _dtype(self, z: Tensor) -> torch.dtype:
        return torch.promote_types(z.dtype, self.log_weights.dtype)

    def diagonal_normals(self) -> DiagonalNormals | None:
        """The evaluator of the components, if they are diagonal normals."""
        normal = families.diagonal_normal(self.component_distribution)
        return None if normal is None else self._diagonal(normal)

    def _diagonal(self, normal: tuple[Tensor, Tensor]) -> DiagonalNormals:
        return self._kept.get(self._tensors(), lambda: DiagonalNormals(*normal, self.log_weights))

    def _components(self) -> Components:
        full = families.full_normal(self.component_distribution)
        if full is None or self._learns(full):
            return Components(self.component_distribution, self.log_weights)
        return self._kept.get(
            (*full, self.mixture_distribution._param),
            lambda: FullNormals(self.component_distribution, self.log_weights),
        )

    def _learns(self, parameters: tuple[Tensor, Tensor]) -> bool:
        """Whether gradients in the parameters are asked for."""
        raw = (*parameters, self.mixture_distribution._param)
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in raw)

    def _tensors(self) -> tuple[Tensor, ...]:
        """What diagonal normals are made of, and not the copies that reshaping may have made."""
        given: Any = families.innermost(self.component_distribution)
        return given.loc, given.scale, self.mixture_distribution._param
