"""Batches of distributions taken apart and put together again, whatever their family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

Edit = Callable[[Sequence[Tensor]], Tensor]


def concatenate(distributions: Sequence[dist.Distribution]) -> dist.Distribution:
    """One distribution with the leading batch dimensions of several laid end to end.

    Args:
        distributions: of one family, batch shapes ``(N_i, ...)``.

    Raises:
        ValueError: if the families differ, or one is not made of parameter tensors.

    >>> parts = [dist.Normal(torch.zeros(n, 3), 1.0).to_event(1) for n in (2, 5)]
    >>> concatenate(parts).batch_shape
    torch.Size([7])
    """
    if not distributions:
        raise ValueError("expected at least one distribution; got none.")
    if len(distributions) == 1:
        return distributions[0]
    return _rebuild(distributions, lambda tensors: torch.cat(list(tensors)))


def take(distribution: dist.Distribution, index: Tensor | slice) -> dist.Distribution:
    """The members of a batch that ``index`` names along the leading batch dimension.

    >>> normal = dist.Normal(torch.arange(4.0).unsqueeze(-1), 1.0).to_event(1)
    >>> take(normal, torch.tensor([3, 1])).mean.squeeze(-1)
    tensor([3., 1.])
    """
    return _rebuild([distribution], lambda tensors: tensors[0][index])


def convert(distribution: dist.Distribution, to: Callable[[Tensor], Tensor]) -> dist.Distribution:
    """The same distribution with ``to`` applied to every parameter: to move, cast or detach it."""
    return _rebuild([distribution], lambda tensors: to(tensors[0]))


def _rebuild(parts: Sequence[dist.Distribution], edit: Edit) -> dist.Distribution:
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        names = sorted({type(part).__name__ for part in parts})
        raise ValueError(f"expected distributions of one family; got {', '.join(names)}.")
    if isinstance(first, torch.distributions.Independent):
        base = _rebuild([part.base_dist for part in parts], edit)
        return dist.Independent(base, first.reinterpreted_batch_ndims)
    names = _parameters(first)
    rank = len(first.batch_shape)
    tensors = {
        name: edit([_batched(part, getattr(part, name), rank) for part in parts]) for name in names
    }
    return type(first)(**tensors)


ALTERNATIVES = (
    ("logits", "probs"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
)


def _parameters(distribution: dist.Distribution) -> list[str]:
    """The parameters a distribution is built from; of alternatives, the one that it was given."""
    names = list(getattr(distribution, "arg_constraints", {}))
    if not names:
        raise ValueError(
            "expected a family that is made of parameter tensors; got "
            f"{type(distribution).__name__}. Such components cannot be laid end to end: encode the "
            "data in one batch, or use another family."
        )
    for group in ALTERNATIVES:
        present = [name for name in group if name in names]
        given = [name for name in present if name in vars(distribution)]
        dropped = set(present) - set((given or present)[:1])
        names = [name for name in names if name not in dropped]
    return names


def _batched(part: dist.Distribution, parameter: Tensor, rank: int) -> Tensor:
    event = parameter.dim() - rank
    if tuple(parameter.shape[:rank]) == tuple(part.batch_shape):
        return parameter
    return parameter.expand(*part.batch_shape, *parameter.shape[max(event, 0) :])


def diagonal_normal(distribution: dist.Distribution) -> tuple[Tensor, Tensor] | None:
    """Location and scale, each ``(N, D)``, if the components are diagonal normals; else None."""
    base, dims = distribution, 0
    while isinstance(base, torch.distributions.Independent):
        base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
    plain = isinstance(base, torch.distributions.Normal) and (
        type(base).log_prob is torch.distributions.Normal.log_prob
    )
    if not plain or len(base.batch_shape) != dims + 1:
        return None
    return base.loc.reshape(len(base.loc), -1), base.scale.reshape(len(base.scale), -1)


def marginal(distribution: dist.Distribution, units: int | Sequence[int]) -> dist.Distribution:
    """The marginal of some units of a vector: event shape ``()`` for one index, ``(k,)`` for k.

    Raises:
        ValueError: if the family's marginals are not of a known form.
    """
    index = torch.as_tensor(units)
    single = index.dim() == 0
    if len(distribution.event_shape) != 1:
        raise ValueError(
            "expected components over vectors, event shape (D,); got event shape "
            f"{tuple(distribution.event_shape)}."
        )
    if isinstance(distribution, torch.distributions.Independent) and (
        not distribution.base_dist.event_shape
    ):
        base = _rebuild([distribution.base_dist], lambda tensors: tensors[0][..., index])
        return base if single else dist.Independent(base, 1)
    if isinstance(
        distribution,
        (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal),
    ):
        loc, covariance = distribution.mean[..., index], distribution.covariance_matrix
        if single:
            return dist.Normal(loc, covariance[..., index, index].sqrt())
        return dist.MultivariateNormal(loc, covariance[..., index, :][..., index])
    raise ValueError(
        f"expected components with independent units or normal ones; got {family(distribution)}, "
        "whose marginals are not known in closed form. Use draws of the units instead."
    )


def family(distribution: dist.Distribution) -> str:
    """The name of a family, without its wrapping: ``"Normal"`` for ``Normal(...).to_event(1)``."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return type(distribution).__name__


def floating_parameter(distribution: dist.Distribution) -> Tensor:
    """A floating-point parameter of a distribution: it knows the dtype and the device."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    for name in _parameters(distribution):
        value: Tensor = getattr(distribution, name)
        if value.is_floating_point():
            return value
    raise ValueError(f"expected floating-point parameters; got {type(distribution).__name__}.")


def to_state(distribution: dist.Distribution) -> dict[str, Any]:
    """A distribution as nested dicts of names and tensors, which load without unpickling."""
    if isinstance(distribution, torch.distributions.Independent):
        dims = distribution.reinterpreted_batch_ndims
        return {"family": "Independent", "dims": dims, "base": to_state(distribution.base_dist)}
    rank = len(distribution.batch_shape)
    tensors = {
        name: _batched(distribution, getattr(distribution, name), rank).detach().clone()
        for name in _parameters(distribution)
    }
    return {"family": type(distribution).__name__, "parameters": tensors}


def from_state(state: dict[str, Any]) -> dist.Distribution:
    """The distribution that `to_state` described.

    Raises:
        ValueError: if the family is not one of ``pyro.distributions``.
    """
    if state["family"] == "Independent":
        return dist.Independent(from_state(state["base"]), state["dims"])
    kind = getattr(dist, state["family"], None)
    if not (isinstance(kind, type) and issubclass(kind, torch.distributions.Distribution)):
        raise ValueError(f"expected a family of pyro.distributions; got {state['family']!r}.")
    return kind(**state["parameters"])
