"""Take batches of distributions of any family apart, and put them together again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform

from pyrovae.errors import InputError
from pyrovae.mixture.families import constructors
from pyrovae.mixture.families.nested import MixtureByRow, Pushed
from pyrovae.mixture.families.undeclared import Declared, declared

Edit = constructors.Edit


@runtime_checkable
class Editable(Protocol):
    """A batch of distributions not defined by parameter tensors, which can rebuild itself."""

    @property
    def like(self) -> Tensor:
        """A floating-point tensor, for dtype and device."""

    def rebuild(self, parts: Sequence[Any], edit: Edit) -> dist.Distribution:
        """One batch whose every tensor is ``edit`` of that tensor in all parts, self included.

        The tensors have the batch dimensions first.
        """


def concatenate(distributions: Sequence[dist.Distribution]) -> dist.Distribution:
    """One distribution with the leading batch dimensions of several laid end to end.

    Args:
        distributions: of one family, batch shapes ``(N_i, ...)``.

    Raises:
        InputError: if families or shapes differ, or a family can't be rebuilt.

    >>> parts = [dist.Normal(torch.zeros(n, 3), 1.0).to_event(1) for n in (2, 5)]
    >>> concatenate(parts).batch_shape
    torch.Size([7])
    """
    if not distributions:
        raise InputError("expected at least one distribution; got none.")
    if len(distributions) == 1:
        return distributions[0]
    first, misfits = distributions[0], []
    for part in distributions:
        alike = part.batch_shape[1:] == first.batch_shape[1:]
        if not (part.batch_shape and alike and part.event_shape == first.event_shape):
            misfits.append(part)
    if misfits:
        got = [f"{tuple(p.batch_shape)} with {tuple(p.event_shape)}" for p in (first, misfits[0])]
        raise InputError(
            "expected batch shapes (N_i, ...) that differ in N_i only, with one event shape; got "
            f"{' and '.join(got)}. Encode all data by guides with the same latent units."
        )
    return _rebuild(distributions, lambda tensors: torch.cat(list(tensors)))


def take(distribution: dist.Distribution, index: Tensor | slice) -> dist.Distribution:
    """Some members of a batch, by their index along the first batch dimension.

    Raises:
        InputError: if the family can't be rebuilt.

    >>> normal = dist.Normal(torch.arange(4.0).unsqueeze(-1), 1.0).to_event(1)
    >>> take(normal, torch.tensor([3, 1])).mean.squeeze(-1)
    tensor([3., 1.])
    """
    return _rebuild([distribution], lambda tensors: tensors[0][index])


def tensors(distribution: dist.Distribution) -> list[Tensor]:
    """The tensors that `convert` converts, each with the batch dimensions first.

    Raises:
        InputError: if the distribution does not keep an argument of its constructor.
    """
    inner = innermost(distribution)
    if isinstance(inner, Pushed) or type(inner) is dist.TransformedDistribution:
        return tensors(inner.base_dist)
    if isinstance(inner, MixtureByRow):
        return [*tensors(inner.mixture_distribution), *tensors(inner.component_distribution)]
    if not isinstance(inner, Editable):
        return constructors.tensors(inner)
    result: list[Tensor] = []
    convert(inner, lambda tensor: result.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return result


def convert(distribution: dist.Distribution, to: Callable[[Tensor], Tensor]) -> dist.Distribution:
    """The same distribution with ``to`` applied to every parameter: to move, cast or detach it."""
    return _rebuild([distribution], lambda tensors: to(tensors[0]))


def replace_tensors(
    distribution: dist.Distribution, replacements: Sequence[Tensor]
) -> dist.Distribution:
    """The same family with other tensors, in the order of `tensors`."""
    remaining = iter(replacements)
    return convert(distribution, lambda _: next(remaining))


def _rebuild(parts: Sequence[dist.Distribution], edit: Edit) -> dist.Distribution:
    """One distribution whose every tensor is ``edit`` of that tensor in all parts."""
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        names = sorted({type(part).__name__ for part in parts})
        raise InputError(f"expected distributions of one family; got {', '.join(names)}.")
    if isinstance(first, torch.distributions.Independent):
        dims = sorted({part.reinterpreted_batch_ndims for part in parts})
        if len(dims) > 1:
            raise InputError(f"expected the same .to_event(k) for all; got k = {dims}. Choose one.")
        return dist.Independent(_rebuild([part.base_dist for part in parts], edit), dims[0])
    if isinstance(first, Declared):
        return declared(_rebuild([part.fn for part in parts], edit))
    if isinstance(first, Editable):
        return first.rebuild(parts, edit)
    if isinstance(first, Pushed) or type(first) is dist.TransformedDistribution:
        base, steps = _rebuild([part.base_dist for part in parts], edit), _transforms(parts)
        return type(first)(base, steps, vars(first).get("_validate_args"))
    if isinstance(first, MixtureByRow):
        mixing = _rebuild([part.mixture_distribution for part in parts], edit)
        components = _rebuild([part.component_distribution for part in parts], edit)
        return MixtureByRow(mixing, components, vars(first).get("_validate_args"))
    return constructors.rebuild(parts, edit)


def stack(distributions: Sequence[dist.Distribution], log_weights: Tensor) -> MixtureByRow:
    """A mixture at each row, of the distributions that K batches have there.

    Args:
        distributions: K batches of one family, each of batch shape ``(B,)``.
        log_weights: log weights of each row's components, shape ``(B, K)``; they get normalised.

    Raises:
        InputError: if families or shapes differ, or a family can't be rebuilt.
    """
    components = _rebuild(distributions, lambda tensors: torch.stack(list(tensors), 1))
    return MixtureByRow(dist.Categorical(logits=log_weights), components)


def unroll(mixtures: MixtureByRow) -> tuple[Tensor, dist.Distribution]:
    """The components of all rows' mixtures laid end to end, with their log weights.

    Returns:
        log weights within a row, shape ``(N, K)``; components, batch shape ``(N·K,)``.
    """
    log_weights = mixtures.mixture_distribution.logits
    components = _rebuild(
        [mixtures.component_distribution], lambda tensors: tensors[0].flatten(0, 1)
    )
    return log_weights, components


def where(chosen: Tensor, one: dist.Distribution, other: dist.Distribution) -> dist.Distribution:
    """One distribution in some rows or units, another in the rest.

    Args:
        chosen: where to take ``one``, shape ``(B, D)``.
        one, other: batch shape ``(B,)``, event shape ``(D,)``; all normals count as one family,
            whatever their covariance.

    Raises:
        InputError: if the families differ, or units are chosen that are not independent.

    >>> chosen = torch.tensor([[True, False]])
    >>> ones = dist.Normal(torch.ones(1, 2), 1.0).to_event(1)
    >>> where(chosen, ones, dist.Normal(torch.zeros(1, 2), 1.0).to_event(1)).mean
    tensor([[1., 0.]])
    """
    parts = [one, other]
    if not all(map(factorised, parts)):
        if bool((chosen != chosen[:, :1]).any()):
            raise InputError(
                "expected independent units, to choose some of them; got "
                f"{family(one)} and {family(other)}. Choose whole rows."
            )
        chosen = chosen[:, 0]
        if factorised(one) or factorised(other):
            parts = [_with_full_covariance(part) for part in parts]

    def edit(tensors: Sequence[Tensor]) -> Tensor:
        first, second = tensors
        if first.shape != second.shape:
            raise InputError(
                f"expected parameters of the same shape, to choose from; got {tuple(first.shape)} "
                f"and {tuple(second.shape)}. Give both distributions as many components."
            )
        shape = chosen.shape + (1,) * (first.dim() - chosen.dim())
        return torch.where(chosen.reshape(shape), first, second)

    return _rebuild(parts, edit)


def _with_full_covariance(distribution: dist.Distribution) -> dist.Distribution:
    """A diagonal normal as one with a full covariance; any other as it is."""
    diagonal = diagonal_normal(distribution)
    if diagonal is None:
        return distribution
    return dist.MultivariateNormal(diagonal[0], scale_tril=torch.diag_embed(diagonal[1]))


def rows_first(
    distribution: dist.Distribution, dim: int, *, flatten: bool = True
) -> dist.Distribution:
    """The same distribution with one batch dimension, and all others as event dimensions.

    Args:
        distribution: of any batch shape.
        dim: the batch dimension that stays, counted from the right: −1 is the last.
        flatten: whether to flatten the other dimensions, so that the event shape is ``(D,)``.

    Raises:
        InputError: if that would move dimensions of a multivariate family.

    >>> rows_first(dist.Normal(torch.zeros(3, 7, 2), 1.0).to_event(1), -1).event_shape
    torch.Size([6])
    """
    axis, rows = len(distribution.batch_shape) + dim, distribution.batch_shape[dim]
    if distribution.batch_shape == (rows,) and (len(distribution.event_shape) == 1 or not flatten):
        return distribution
    base = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    rank, event = len(base.batch_shape), len(base.event_shape)
    if event and (base.batch_shape.numel() != rows or (flatten and event > 1)):
        raise InputError(
            "expected a family of independent units, whose dimensions can be reordered; got "
            f"{family(distribution)} with batch shape {tuple(distribution.batch_shape)} and event "
            f"shape {tuple(distribution.event_shape)}. Give it one vector a row: batch shape "
            "(B,), event shape (D,)."
        )

    def edit(tensors: Sequence[Tensor]) -> Tensor:
        moved = tensors[0].movedim(axis, 0)
        if event:
            return moved.reshape(rows, *moved.shape[rank:])
        return moved.reshape(rows, -1, *moved.shape[rank:]) if flatten else moved

    moved = _rebuild([base], edit)
    return dist.Independent(moved, len(moved.batch_shape) - 1)


def join(distributions: Sequence[dist.Distribution]) -> dist.Distribution:
    """Join independent vectors into one: batch shape ``(B,)``, event shape ``(D_1 + D_2 + ...,)``.

    Raises:
        InputError: unless all are independent units of one family.

    >>> parts = [dist.Normal(torch.zeros(5, d), 1.0).to_event(1) for d in (2, 3)]
    >>> join(parts).event_shape
    torch.Size([5])
    """
    if len(distributions) == 1:
        return distributions[0]
    if not joinable(distributions):
        raise InputError(
            "expected independent units of one family, to join into one vector; got "
            f"{', '.join(family(part) for part in distributions)}. Take the sites one by one."
        )
    bases = [part.base_dist for part in distributions]
    return dist.Independent(_rebuild(bases, lambda tensors: torch.cat(list(tensors), 1)), 1)


def joinable(distributions: Sequence[dist.Distribution]) -> bool:
    """Whether `join` takes these: they are vectors of independent units of one family."""
    if not all(factorised(part) and len(part.batch_shape) == 1 for part in distributions):
        return False
    return len({type(part.base_dist) for part in distributions}) == 1


def _transforms(parts: Sequence[dist.TransformedDistribution]) -> list[Any]:
    """The transforms that all parts share.

    Raises:
        InputError: if they differ, or have arguments other than numbers, which may differ by row.
    """
    first: list[Any] = parts[0].transforms
    if isinstance(parts[0], Pushed):
        if not all(parts[0].shares_with(part) for part in parts[1:]):
            raise InputError(
                f"expected the same transforms for all; got {family(parts[0])}, in several "
                "versions. Encode all data by one guide."
            )
        return first
    signatures = [
        [(type(step), _transform_arguments(step)) for step in part.transforms] for part in parts
    ]
    if not made_of_numbers(first) or any(steps != signatures[0] for steps in signatures):
        raise InputError(
            "expected transforms whose arguments are numbers, the same for all; got "
            f"{family(parts[0])}. Take transforms of pyro.distributions.transforms with numbers "
            "as arguments, and leave what differs from row to row to the base distribution."
        )
    return first


def made_of_numbers(transforms: Sequence[Transform]) -> bool:
    """Whether transforms are Pyro's own with numbers as arguments, and so the same for all rows."""
    return all(
        getattr(dist.transforms, type(step).__name__, None) is type(step)
        and all(isinstance(value, int | float) for value in _transform_arguments(step).values())
        for step in transforms
    )


def _transform_arguments(step: Any) -> dict[str, Any]:
    """The arguments that a transform was constructed with, by name."""
    cached = ("_cached_x_y", "_inv")
    return {name.lstrip("_"): value for name, value in vars(step).items() if name not in cached}


CORRELATED_NORMALS = (
    torch.distributions.MultivariateNormal,
    torch.distributions.LowRankMultivariateNormal,
)


def diagonal_normal(distribution: dist.Distribution) -> tuple[Tensor, Tensor] | None:
    """Location and scale, each ``(N, D)``, of diagonal normals; None for another family."""
    base, dims = innermost(distribution), len(distribution.event_shape)
    is_normal = isinstance(base, torch.distributions.Normal) and (
        type(base).log_prob is torch.distributions.Normal.log_prob
    )
    if not is_normal or len(base.batch_shape) != dims + 1:
        return None
    if dims == 1:
        return base.loc, base.scale
    return base.loc.reshape(len(base.loc), -1), base.scale.reshape(len(base.scale), -1)


def full_normal(distribution: dist.Distribution) -> tuple[Tensor, Tensor] | None:
    """Location ``(N, D)`` and Cholesky factor ``(N, D, D)`` of full normals; else None."""
    full = torch.distributions.MultivariateNormal
    if not isinstance(distribution, full) or type(distribution).log_prob is not full.log_prob:
        return None
    return distribution.loc, distribution.scale_tril


def student_t(distribution: dist.Distribution) -> tuple[Tensor, Tensor, Tensor] | None:
    """Degrees of freedom, location and scale, each ``(N, D)``, of Student-t units; else None."""
    student = torch.distributions.StudentT
    base: Any = distribution.base_dist if factorised(distribution) else None
    if not isinstance(base, student) or type(base).log_prob is not student.log_prob:
        return None
    return (base.df, base.loc, base.scale) if len(base.batch_shape) == 2 else None


def factorised(distribution: dist.Distribution) -> bool:
    """Whether it is a vector of independent units: a family over numbers with ``.to_event(1)``."""
    return (
        isinstance(distribution, torch.distributions.Independent)
        and distribution.reinterpreted_batch_ndims == 1
        and not distribution.base_dist.event_shape
    )


def has_marginals(distribution: dist.Distribution) -> bool:
    """Whether `marginal` knows the marginals of single units."""
    if isinstance(distribution, MixtureByRow):
        return has_marginals(distribution.component_distribution)
    return factorised(distribution) or isinstance(distribution, CORRELATED_NORMALS)


def marginal(distribution: dist.Distribution, units: int | Sequence[int]) -> dist.Distribution:
    """The marginal of some units of a vector: event shape ``()`` for one index, ``(k,)`` for k.

    Raises:
        InputError: if the units are not numbers of different units, or the marginals of the family
            are not known.
    """
    if len(distribution.event_shape) != 1:
        raise InputError(
            "expected components over vectors, event shape (D,); got event shape "
            f"{tuple(distribution.event_shape)}."
        )
    index = unit_numbers(units, distribution.event_shape[0])
    single = index.dim() == 0
    if factorised(distribution):
        unit = len(distribution.base_dist.batch_shape) - 1
        base = _rebuild([distribution.base_dist], lambda tensors: _select(tensors[0], unit, index))
        return base if single else dist.Independent(base, 1)
    if isinstance(distribution, MixtureByRow):
        components = marginal(distribution.component_distribution, units)
        return MixtureByRow(distribution.mixture_distribution, components)
    if isinstance(distribution, CORRELATED_NORMALS):
        loc, covariance = distribution.mean[..., index], distribution.covariance_matrix
        validate_args = vars(distribution).get("_validate_args")
        if single:
            return dist.Normal(
                loc, covariance[..., index, index].sqrt(), validate_args=validate_args
            )
        factor = _cholesky(covariance[..., index, :][..., index])
        return dist.MultivariateNormal(loc, scale_tril=factor, validate_args=validate_args)
    raise InputError(
        f"expected normal components or independent units; got {family(distribution)}, "
        "whose marginals are not known in closed form. Use draws of the units instead."
    )


def unit_numbers(units: int | Sequence[int], count: int) -> Tensor:
    """Numbers of units, 0 to ``count`` - 1: shape ``()`` for one, ``(k,)`` for a list of k.

    Raises:
        InputError: unless they are whole numbers in that range, -1 being the last, and all differ.
    """
    try:
        index = torch.as_tensor(units)
    except (TypeError, ValueError, RuntimeError):
        index = torch.empty(0)
    whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
    counted = index % count if whole else index
    in_range = whole and bool(((index >= -count) & (index < count)).all())
    differ = counted.numel() and len(counted.unique()) == counted.numel()
    if not (in_range and differ and index.dim() <= 1):
        raise InputError(
            f"expected the number of a unit, 0 to {count - 1}, or a list of different ones; got "
            f"{units!r}."
        )
    return counted


def _cholesky(covariance: Tensor) -> Tensor:
    """Cholesky factors; NaN for a covariance that is not finite, as one without weight may be."""
    numbers = covariance.isfinite().all(-1).all(-1)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool((numbers & (failed > 0)).any()):
        number = int((numbers & (failed > 0)).flatten().nonzero()[0])
        raise InputError(
            "expected positive definite covariances; got one that is not, for these units of "
            f"component {number}. Use float64, or take the units one by one."
        )
    return torch.where(numbers[..., None, None], factor, math.nan)


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """Some entries along a dimension, or a single one without that dimension."""
    if not index.dim():
        return tensor.select(dim, int(index))
    return tensor.movedim(dim, 0)[index].movedim(0, dim)


def family(distribution: dist.Distribution) -> str:
    """The name of a family without wrappers: ``"Normal"`` for ``Normal(...).to_event(1)``."""
    inner = innermost(distribution)
    if isinstance(inner, MixtureByRow):
        return f"mixture of {family(inner.component_distribution)}"
    if not isinstance(inner, Pushed) and type(inner) is not dist.TransformedDistribution:
        return type(inner).__name__
    steps = ", ".join(type(step).__name__ for step in inner.transforms)
    return f"TransformedDistribution of {family(inner.base_dist)} by {steps or 'no transform'}"


def innermost(distribution: dist.Distribution) -> dist.Distribution:
    """A distribution without its ``Independent`` wrappers."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return distribution.fn if isinstance(distribution, Declared) else distribution


def floating_parameter(distribution: dist.Distribution) -> Tensor:
    """A floating-point parameter of a distribution, for its dtype and device."""
    distribution = innermost(distribution)
    if isinstance(distribution, Editable):
        return distribution.like
    if isinstance(distribution, Pushed) or type(distribution) is dist.TransformedDistribution:
        return floating_parameter(distribution.base_dist)
    if isinstance(distribution, MixtureByRow):
        return floating_parameter(distribution.component_distribution)
    for name in constructors.parameters(distribution):
        value: Any = getattr(distribution, name)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise InputError(f"expected floating-point parameters; got {type(distribution).__name__}.")


def to_state(distribution: dist.Distribution) -> dict[str, Any]:
    """A distribution as nested dicts of names, numbers and tensors, which load without pickle.

    Raises:
        InputError: if it can't be rebuilt from these.
    """
    if isinstance(distribution, torch.distributions.Independent):
        dims = distribution.reinterpreted_batch_ndims
        return {"family": "Independent", "dims": dims, "base": to_state(distribution.base_dist)}
    if isinstance(distribution, Editable):
        rebuilt = convert(distribution, lambda tensor: tensor)
        if not isinstance(rebuilt, Editable):
            return to_state(rebuilt)
        raise InputError(
            f"expected a family with parameter tensors; got {family(distribution)}, which is a "
            "function of the pair and has none of its own. Keep the pair and the data."
        )
    if isinstance(distribution, Pushed):
        raise InputError(
            f"expected a family with parameter tensors; got {family(distribution)}, whose "
            "transforms are code. Keep the pair and the data, and aggregate again."
        )
    if isinstance(distribution, MixtureByRow):
        return {
            "family": "MixtureByRow",
            "mixing": to_state(distribution.mixture_distribution),
            "components": to_state(distribution.component_distribution),
        }
    if type(distribution) is dist.TransformedDistribution:
        steps = [
            [type(step).__name__, _transform_arguments(step)]
            for step in _transforms([distribution])
        ]
        base = to_state(distribution.base_dist)
        settings = {"validate_args": vars(distribution).get("_validate_args")}
        return {
            "family": "TransformedDistribution",
            "base": base,
            "transforms": steps,
            "with": settings,
        }
    tensors, settings = constructors.arguments(distribution, constructors.parameters(distribution))
    kind = type(distribution)
    is_pyro = issubclass(getattr(dist, kind.__name__, object), kind)
    return {
        "family": kind.__name__ if is_pyro else f"{kind.__module__}.{kind.__name__}",
        "parameters": {name: value.detach().clone() for name, value in tensors.items()},
        "with": {
            k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in settings.items()
        },
    }


def from_state(state: dict[str, Any]) -> dist.Distribution:
    """The distribution that `to_state` described.

    Raises:
        InputError: if the family is not one of ``pyro.distributions``, or refuses its arguments.
    """
    if state["family"] == "Independent":
        return dist.Independent(from_state(state["base"]), state["dims"])
    if state["family"] == "MixtureByRow":
        return MixtureByRow(from_state(state["mixing"]), from_state(state["components"]))
    if state["family"] == "TransformedDistribution":
        steps = [
            _kind(dist.transforms, n, Transform)(**arguments)
            for n, arguments in state["transforms"]
        ]
        base = from_state(state["base"])
        return dist.TransformedDistribution(base, steps, **state.get("with", {}))
    kind = _kind(dist, state["family"], torch.distributions.Distribution)
    return constructors.build(kind, **state["parameters"], **state.get("with", {}))


def _kind(module: Any, name: str, parent: type) -> Any:
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, parent)):
        raise InputError(
            f"expected a family of pyro.distributions; got {name!r}. Only those go into files."
        )
    return kind
