"""Find out which transforms of a batch of distributions are the same for all rows."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch.distributions import Transform

from pyrovae.errors import InputError
from pyrovae.mixture.families import rows
from pyrovae.mixture.families.nested import (
    MixtureByRow,
    Pushed,
    detach_transforms,
    is_identity,
    push,
)
from pyrovae.mixture.families.weights import safe_log
from pyrovae.randomness import seeded


def share(distribution: dist.Distribution) -> dist.Distribution:
    """A batch of distributions in a form that can be taken apart row by row, if there is one.

    Mixtures become a `MixtureByRow`, and distributions with transforms that all rows share a
    `Pushed`. All others stay as they are, including transforms that differ by row.

    Args:
        distribution: batch shape ``(B,)``, event shape ``(D,)``.

    Raises:
        InputError: if a transform has no inverse.
    """
    inner = rows.innermost(distribution)
    dims = len(distribution.event_shape) - len(inner.event_shape)
    if type(inner) is dist.MixtureSameFamily:
        components = share(inner.component_distribution)
        mixing = _with_zeros(inner.mixture_distribution).expand(components.batch_shape[:-1])
        by_row = MixtureByRow(mixing, components, vars(inner).get("_validate_args"))
        return by_row.to_event(dims) if dims else by_row
    if isinstance(inner, dist.MixtureOfDiagNormals | dist.MixtureOfDiagNormalsSharedCovariance):
        shared = isinstance(inner, dist.MixtureOfDiagNormalsSharedCovariance)
        scale = inner.coord_scale.unsqueeze(-2) if shared else inner.coord_scale
        normals = dist.Normal(inner.locs, scale.expand_as(inner.locs)).to_event(1)
        return MixtureByRow(dist.Categorical(logits=inner.component_logits), normals)
    if type(inner) is not dist.TransformedDistribution:
        return distribution
    base, steps = share(inner.base_dist), [t for t in inner.transforms if not is_identity(t)]
    if rows.made_of_numbers(inner.transforms) and base is inner.base_dist:
        return distribution
    base = base.to_event(dims) if dims else base
    if not steps:
        return base
    pushed = Pushed(base, steps, vars(inner).get("_validate_args"))
    check_inverse(pushed)
    return pushed if _transforms_are_shared(pushed) else distribution


def snapshot(distribution: dist.Distribution) -> dist.Distribution:
    """The same distribution with copies of its shared transforms, which training can't change."""
    checks = vars(distribution).get("_validate_args")
    if isinstance(distribution, Pushed):
        base = snapshot(distribution.base_dist)
        return Pushed(base, detach_transforms(distribution.transforms), checks)
    if isinstance(distribution, MixtureByRow):
        components = snapshot(distribution.component_distribution)
        return MixtureByRow(distribution.mixture_distribution, components, checks)
    return distribution


def _with_zeros(mixing: dist.Categorical) -> dist.Categorical:
    """The same weights as logits, in which a weight of zero is not rounded up."""
    if mixing._param is vars(mixing).get("probs"):
        return dist.Categorical(logits=safe_log(mixing.probs))
    return mixing


def check_inverse(distribution: dist.TransformedDistribution) -> None:
    """Check that the density can be evaluated at points other than its own draws.

    Raises:
        InputError: with the names of the transforms, if it can't.
    """
    if not has_inverse(distribution.transforms, distribution.base_dist):
        raise InputError(
            "expected a density that is known at every point; got "
            f"{rows.family(distribution)}, which has no inverse and is known at its own draws "
            "only. Take a transform with an inverse, such as "
            "pyro.distributions.transforms.affine_autoregressive or spline_coupling."
        )


@torch.no_grad()
def has_inverse(transforms: Sequence[Transform], base: dist.Distribution) -> bool:
    """Whether transforms can be inverted at points other than their own last output."""
    with seeded(0, "inverse"):
        z = push(transforms, base.sample()).clone()
    try:
        for step in reversed(transforms):
            z = step.inv(z)
    except (KeyError, NotImplementedError):  # Pyro's errors for transforms without inverse
        return False
    return True


@torch.no_grad()
def _transforms_are_shared(distribution: dist.TransformedDistribution) -> bool:
    """Whether every row is transformed alike, wherever it stands and when it is alone."""
    steps, rank = distribution.transforms, len(distribution.batch_shape)
    with seeded(0, "transforms"):
        u = distribution.base_dist.sample()
    rows = u.reshape(-1, *u.shape[rank:])
    try:
        all_rows = push(steps, u).flatten(0, rank - 1)
        rolled = push(steps, rows.roll(1, 0).reshape(u.shape)).flatten(0, rank - 1)
        one_row = push(steps, rows[:1])
    except (RuntimeError, ValueError, IndexError):  # the transform fits one number of rows only
        return False
    return (
        one_row.shape == all_rows[:1].shape
        and torch.allclose(one_row, all_rows[:1], equal_nan=True)
        and torch.allclose(rolled, all_rows.roll(1, 0), equal_nan=True)
    )
