"""Large finite mixtures as Pyro distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import InputError
from pyrovae.isolation import plain
from pyrovae.mixture import families, quantiles
from pyrovae.mixture.families.nested import MixtureByRow, Pushed
from pyrovae.mixture.families.weights import safe_log
from pyrovae.mixture.kernel import gradients, search, support, torch_transforms
from pyrovae.mixture.kernel.any_family import Components, weighted
from pyrovae.mixture.kernel.cache import Kept, usable
from pyrovae.mixture.kernel.component_scores import Responsibilities, top_shares, total_scores
from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.full_normals import FullNormals
from pyrovae.mixture.reparametrised import reparametrised

Made = TypeVar("Made")

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
    then that component only. `expand` is lazy: a plate of B points costs nothing. What is made
    of components that ask for no gradient is kept, and made anew when their numbers change.

    Args:
        mixture_distribution: ``Categorical`` over the components, batch shape ``()``. Weights of
            zero leave components out exactly, whatever their parameters.
        component_distribution: batch shape ``(N,)``, any event shape. Where their supports differ,
            a component has the density 0 outside of its own.

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
        families.full_normal(component_distribution)  # torch makes its factor once, and here
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
        if support.differs(self.component_distribution):
            return support.OfAnyComponent(self._weighted()[0])
        return self.component_distribution.support

    @property
    def mean(self) -> Tensor:
        """E[z], batch shape + event shape."""
        means = self._weighted()[0].mean
        return self._average(means).to(means.dtype).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """Var[z] per unit: the mean variance of the components plus the variance of their means."""
        within = self._weighted()[0].variance
        return (self._average(within).to(within.dtype) + self.mean_variance).expand(self.shape())

    @property
    def mean_variance(self) -> Tensor:
        """Var_n[μ_n] per unit, the variance of the component means, shape of an event."""
        means = self._weighted()[0].mean
        return self._average(means, self._average(means)).to(means.dtype)

    def _weighted(self) -> tuple[dist.Distribution, Tensor]:
        """The components that have a weight above zero, and their log weights."""
        _, components, log_weights = weighted(self.component_distribution, self.log_weights)
        return components, log_weights

    def _average(self, values: Tensor, centre: Tensor | None = None) -> Tensor:
        """Σ_n w_n v_n in float64, shape of an event; of (v_n − centre)² with a centre.

        Args:
            values: of the components with a weight above zero.
        """
        total = torch.zeros_like(values[0], dtype=torch.float64)
        weights = self._weighted()[1].double().softmax(-1)  # where 1e-50 is above zero
        for start in range(0, len(values), ROWS):
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

        Raises:
            InputError: if points are not of the event shape or, where arguments are validated, NaN
                or outside of the support that all components share.
        """
        support.check_shape(value, self.event_shape)
        normal = families.diagonal_normal(self.component_distribution)
        if self._validate_args:
            if normal is None:
                support.check_points(value, self._weighted()[0])
            else:
                support.check_numbers(value, self.event_shape)
        if (simpler := self._simpler()) is not None:
            return self._shaped(simpler.log_prob(value).to(self._dtype(value)), value)
        if normal is None:
            found = self._components().log_prob(value.reshape(-1, *self.event_shape))
            return self._shaped(found.to(self._dtype(value)), value)
        points = value if value.dim() == 2 and self.event_dim == 1 else self._flat(value)
        evaluator = self._lasting(normal)
        if evaluator is not None:
            return self._shaped(gradients.log_density(points, lambda: evaluator), value)
        components, log_weights = self._weighted()
        whole = components is self.component_distribution
        others = normal if whole else families.diagonal_normal(components) or normal
        parameters = [usable(tensor) for tensor in (*others, log_weights)]
        found = gradients.log_density(points, lambda: self._diagonal(normal), parameters)
        return self._shaped(found, value)

    @plain()
    def score(self, z: Tensor) -> Tensor:
        r"""∇_z log q(z) = Σ_n r_n(z) ∇ log q_n(z), shape of ``z``; without gradient.

        Raises:
            InputError: if the points are not of the event shape or NaN, or the components are
                discrete.
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
        if not any(map(torch_transforms.moving, self._tensors())):
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
        components, weights = self._over_numbers()
        support.check_numbers(value, self.event_shape)
        total = quantiles.cdf(components, weights, value.to(self._dtype(value)))
        return total.expand(broadcast_shape(total.shape, self.batch_shape))

    def icdf(self, value: Tensor) -> Tensor:
        """The z with P(z' ≤ z) = value of a mixture over numbers; differentiable.

        Raises:
            InputError: for a value that is not from 0 to 1, or a mixture over vectors.
            NotImplementedError: for a family without quantiles, saying what to use.
        """
        components, weights = self._over_numbers()
        found = quantiles.icdf(components, weights, value).to(self._dtype(value))
        return found.expand(broadcast_shape(found.shape, self.batch_shape))

    def _over_numbers(self) -> tuple[dist.Distribution, Tensor]:
        """The components with a weight above zero, if they are over numbers, and the weights."""
        if self.event_shape:
            raise InputError(
                f"expected a mixture over numbers, event shape (); got {tuple(self.event_shape)}. "
                "Take .marginal(d) first."
            )
        components, log_weights = self._weighted()
        return components, log_weights.double().exp()

    @plain()
    def responsibilities(self, z: Tensor, *, top: int) -> Responsibilities:
        """The components that explain each point best, r_n(z) = w_n q_n(z) / q(z).

        Args:
            z: points, shape ``(..., *event_shape)``.
            top: how many components to return.

        Returns:
            indices and weights, shape ``(..., min(top, N))``; B × N numbers are never held.

        Raises:
            InputError: if ``top`` is less than 1, or the points are not of the event shape, NaN, or
                where the density is 0.
        """
        if top < 1:
            raise InputError(f"expected at least one component to return; got top={top}.")
        with torch.no_grad():
            evaluator = self.diagonal_normals() or self._components()
            rows, k = self._rows(z), min(top, evaluator.size)
            if isinstance(evaluator, DiagonalNormals):
                rows = rows.reshape(len(rows), evaluator.dim)
            if isinstance(evaluator, DiagonalNormals) and k <= evaluator.groups and len(rows):
                index, weight = search.top(evaluator, rows, k)
            else:
                index, weight = top_shares(evaluator, rows, k)
            if evaluator.index is not None:
                index = evaluator.index[index]
            if k < min(top, self.size):  # the others have no weight
                without = (self.log_weights == -math.inf).nonzero().squeeze(-1)
                without = without[: min(top, self.size) - k].expand(len(rows), -1)
                index = torch.cat([index, without], -1)
                weight = torch.nn.functional.pad(weight, (0, without.shape[-1]))
            weight = self._plain(weight, z)
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
            InputError: if the points are not of the event shape, NaN, or where the density is 0.
        """
        with torch.no_grad():
            rows, normals = self._rows(z), self.diagonal_normals()
            if normals is None:
                entropy = total_scores(self._components(), rows)[1]
            else:
                entropy = search.evaluate(normals, rows.reshape(len(rows), normals.dim)).entropy
            return self._plain(entropy.clamp(min=0.0).exp(), z)  # below 0 by its rounding

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
            InputError: if a number is not that of a component, component n is all there is, or the
                points are not of the event shape or NaN.
        """
        with torch.no_grad():
            shape = z.shape[: z.dim() - len(self.event_shape)]
            number = torch.as_tensor(n, device=z.device).expand(shape).flatten()
            if bool(((number < 0) | (number >= self.size)).any()):
                raise InputError(f"expected components from 0 to {self.size - 1}; got {n}.")
            weights = torch.nn.functional.pad(self.log_weights.double().exp(), (1, 1))
            before, after = weights.cumsum(0)[:-2], weights.flip(0).cumsum(0).flip(0)[2:]
            rest = (before + after).log()[number]
            if bool((rest == -math.inf).any()):
                raise InputError(
                    "expected another component with a weight above zero; got a mixture of one."
                )
            return self._shaped((self._without(self._rows(z), number) - rest).to(self._dtype(z)), z)

    def _simpler(self) -> dist.Distribution | None:
        """The same density of plainer components, where these are mixtures or share a flow."""
        if isinstance(self.component_distribution, MixtureByRow):
            of, log_weights = self._weighted()
            within, components = families.unroll(of)
            logits = (log_weights.unsqueeze(-1) + within).flatten()
            return Mixture(dist.Categorical(logits=logits), components)
        if isinstance(of := self.component_distribution, Pushed):
            return Pushed(Mixture(self.mixture_distribution, of.base_dist), of.transforms)
        return None

    def _without(self, rows: Tensor, exclude: Tensor) -> Tensor:
        """log Σ_m w_m q_m(z) over all but one component for each point, in float64, ``(B,)``."""
        evaluator = self.diagonal_normals() or self._components()
        if evaluator.index is not None:
            position = torch.full((self.size,), -1, device=rows.device)
            position[evaluator.index] = torch.arange(evaluator.size, device=rows.device)
            exclude = position[exclude]
        if isinstance(evaluator, DiagonalNormals):
            return search.log_prob(
                evaluator, rows.reshape(len(rows), evaluator.dim), exclude=exclude
            )
        return total_scores(evaluator, rows, exclude)[0]

    def _plain(self, values: Tensor, z: Tensor) -> Tensor:
        """What is told of responsibilities, which there are none of where the density is 0."""
        batch = support.check_shape(z, self.event_shape)
        values = values.to(self._dtype(z)).reshape(*batch, *values.shape[1:])
        unknown = values.isnan()
        if bool(unknown.any()):
            where = support.named(unknown.reshape(*batch, -1).any(-1))
            raise InputError(
                f"expected points with a density above 0; got others{where}. Leave these out."
            )
        return values

    def _rows(self, z: Tensor) -> Tensor:
        """Points as rows, none of them NaN."""
        support.check_shape(z, self.event_shape)
        support.check_numbers(z, self.event_shape)
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
        return self._made_of(self._tensors(), lambda: DiagonalNormals(*normal, self.log_weights))

    def _lasting(self, normal: tuple[Tensor, Tensor]) -> DiagonalNormals | None:
        """The evaluator, if it may be kept and this is not the first question."""
        tensors = self._tensors()
        if torch_transforms.active() or any(map(_changes, tensors)):
            return None
        asked, self._kept.asked = self._kept.asked, True
        kept: DiagonalNormals | None = self._kept.find(tensors)
        return self._diagonal(normal) if asked and kept is None else kept

    def _components(self) -> Components:
        full = families.full_normal(self.component_distribution)
        tensors = () if full is None else (*full, self.mixture_distribution._param)
        if full is None or any(map(torch_transforms.moving, tensors)):
            return Components(self.component_distribution, self.log_weights)
        return self._made_of(
            tensors, lambda: FullNormals(self.component_distribution, self.log_weights)
        )

    def _made_of(self, tensors: Sequence[Tensor], make: Callable[[], Made]) -> Made:
        """What is made of tensors, kept if it may be."""
        if any(map(_changes, tensors)):
            return make()
        kept: Made | None = self._kept.find(tensors)
        return self._kept.make(tensors, make) if kept is None else kept

    def _tensors(self) -> tuple[Tensor, ...]:
        """What diagonal normals are made of, and not the copies that reshaping may have made."""
        given: Any = families.innermost(self.component_distribution)
        return given.loc, given.scale, self.mixture_distribution._param


def _changes(tensor: Tensor) -> bool:
    """Whether to keep what is made of a tensor would not pay, or lose derivatives."""
    return tensor.requires_grad or torch_transforms.moving(tensor)
