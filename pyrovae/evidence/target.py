"""log p(x, z) of some rows over unconstrained codes, with its gradients and its curvature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.evidence.local_mixture import LocalMixture
from pyrovae.mixture import families
from pyrovae.pairs import Encoded, Pair, masked_sites
from pyrovae.randomness import seeded

AT_ONCE = 8192  # codes that go through the model at once, at most
BYTES = 1 << 24  # of data that go through the model at once; more is slow to allocate
OF_GRADIENT = 3  # evaluations that a value with its gradient counts as: back is twice the way there
ROUNDED = 0.5  # by which a position may differ from that of its own code, for lack of digits


@dataclass(frozen=True)
class Target:
    r"""The density that a proposal for each row has to resemble, over positions u of the codes.

    .. math:: \log f(u) = \log p(x, z(u)) + \log |dz/du|

    Its integral over u is p(x). Positions are float64 whatever the model computes in, and are flat:
    any number of them, each with the number of the row that it belongs to.

    Args:
        pair: model and guide, with all latent sites of the guide as one code.
        rows: B data points, shape ``(B, ...)``.
        encoded: q(z | x) of them.
        prior: p in the place of the model's own at the sites that it is for, if given.
        code_prior: p(z) of the whole code, if it is one for all rows: where to look from.
        support: the prior's support, through whose standard bijection codes have positions.
        dtype: of the codes that the model takes.
        named: the pair with the sites alone that ``prior`` is for, the first of the code.
        sizes: units of those, and of each other site.
        numbers: of the rows among those that it was made for, shape ``(B,)``.
        cost: evaluations of log p(x, z) so far at each of those, which are counted up in place.
        near: a part of a large mixture that stands in the place of ``prior``, to tune by.
    """

    pair: Pair
    rows: Tensor
    encoded: Encoded
    prior: dist.Distribution | None
    code_prior: dist.Distribution | None
    support: torch.distributions.constraints.Constraint
    dtype: torch.dtype
    named: Pair
    sizes: tuple[int, ...]
    numbers: Tensor
    cost: Tensor
    near: LocalMixture | None = None

    def exact(self) -> Target:
        """The target whose integral is p(x), whatever was tuned by."""
        return replace(self, near=None)

    def subset(self, chosen: Tensor) -> Target:
        """The target at some of the rows, with the same count of what they cost."""
        return replace(
            self,
            rows=self.rows[chosen],
            encoded=self.encoded.take(chosen),
            numbers=self.numbers[chosen],
            near=None if self.near is None else self.near.subset(chosen),
        )

    def count(self, row: Tensor, evaluations: int = 1) -> None:
        """Add to the cost of rows, as often as their numbers come, shape ``(n,)``."""
        times = torch.bincount(row, minlength=len(self.rows))
        self.cost[self.numbers] += evaluations * times

    def positions(self, z: Tensor) -> Tensor:
        """Positions of codes."""
        positions: Tensor = torch.distributions.biject_to(self.support).inv(z)
        return positions.double()

    def codes(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of positions, log |dz/du|, and whether the code has digits enough for its position.

        Next to a boundary many positions share one code, as sigmoid(40) is 1.
        """
        bijection = torch.distributions.biject_to(self.support)
        z = bijection(u)
        jacobian = bijection.log_abs_det_jacobian(u, z)
        z = z.to(self.dtype)
        with torch.no_grad():
            back = self.positions(z)
            usable = (
                ((back - u).abs() < ROUNDED).all(-1) & self.support.check(z) & z.isfinite().all(-1)
            )
        return z, jacobian, usable

    def log_density(self, u: Tensor, row: Tensor) -> Tensor:
        """log f at positions, ``(n, D)``, each of the row with its number, ``(n,)``; ``(n,)``.

        It is −∞ at positions whose codes have no digits left.
        """
        parts = [self._log_density(*part) for part in self._parts(u, row)]
        return torch.cat(parts) if parts else u.new_zeros(0)

    def slope(self, u: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """log f and its gradient, which is 0 where it is not a number; ``(n,)`` and ``(n, D)``."""
        values, gradients = [u.new_zeros(0)], [u[:0]]
        for part, numbers in self._parts(u, row):
            with torch.enable_grad():
                at = part.detach().requires_grad_()
                value = self._log_density(at, numbers)
                (gradient,) = torch.autograd.grad(value.sum(), at)
            values.append(value.detach())
            gradients.append(torch.where(gradient.isfinite(), gradient, 0.0))
        return torch.cat(values), torch.cat(gradients)

    def curvature(self, u: Tensor, row: Tensor, step: Tensor) -> Tensor:
        """The Hessian of log f by central differences of its gradient, shape ``(n, D, D)``.

        Over a step of some size it is a mean of the curvature there, which a network with kinks has
        none of at a point.

        Args:
            u, row: positions and the numbers of their rows.
            step: half the distance between the two gradients along each unit, shape ``(n, D)``.
        """
        n, d = u.shape
        away = torch.diag_embed(step)
        both = torch.stack([u.unsqueeze(1) + away, u.unsqueeze(1) - away])
        _, gradient = self.slope(both.view(-1, d), row.repeat_interleave(d).repeat(2))
        ahead, behind = gradient.view(2, n, d, d).unbind(0)
        hessian = (ahead - behind) / (2 * step.unsqueeze(-1))
        return (hessian + hessian.mT) / 2

    def of_draws(self, u: Tensor) -> Tensor:
        """log f of S draws at each row, ``(S, B, D)``, shape ``(S, B)``."""
        s, b, d = u.shape
        row = torch.arange(b, device=u.device).repeat(s)
        return self.log_density(u.reshape(-1, d), row).view(s, b)

    def _log_density(self, u: Tensor, row: Tensor) -> Tensor:
        self.count(row, OF_GRADIENT if u.requires_grad else 1)
        z, jacobian, usable = self.codes(u)
        if not usable.all():  # somewhere inside, in their place, with no weight
            safe = torch.where(usable.unsqueeze(-1), u, 0.0)
            z, jacobian, _ = self.codes(safe)
        first, *rest = z.split(self.sizes, -1)
        names = self.pair.sites[len(self.named.sites) :]
        with pyro.validation_enabled(False):
            others = dict(zip(names, rest, strict=True))
            likelihood, own = self.named.log_joint(self.rows[row], first, others=others)
            if self.near is not None:
                prior = self.near.log_prob(first, row)
            else:
                prior = own if self.prior is None else self.prior.log_prob(first)
        density = likelihood.double() + prior.double() + jacobian
        return torch.where(usable, density, -torch.inf)

    def _parts(self, u: Tensor, row: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(1, self.rows[:1].numel() * self.rows.element_size())
        at_once = max(1, min(AT_ONCE, BYTES // size))
        yield from zip(u.split(at_once), row.split(at_once), strict=True) if len(u) else ()


def whole(pair: Pair, x: Tensor) -> Pair:
    """The pair with all latent sites of its guide as one code, those that it names first.

    Raises:
        InputError: where log p(x, z) is no function of a code alone: a pair that takes all rows or
            none, sites that are one for all rows, or points.
    """
    rows = x[:2]
    if not pair.traits.takes_any_number_of_rows(x):
        raise InputError(
            "expected a model and guide that take any number of rows, so that many codes go "
            f"through them at once; got a pair that takes all data or none. {REMEDY}"
        )
    if pair.traits.draws_for_all(rows):
        raise InputError(
            "expected latent sites with a value for each row; got one for all rows, which is drawn "
            f"anew each time. {REMEDY}"
        )
    if points := pair.traits.points(rows):
        raise InputError(
            f"expected a guide with a density at each site; got a point at {', '.join(points)}. "
            f"{REMEDY}"
        )
    if not pair.traits.has_other_latents(rows):
        return pair
    with torch.no_grad(), seeded(0, "sites of the guide"):
        reading = pair.guide_reader.read((rows,))[0]
    others = [name for name in reading.latent if not name.endswith("_unconstrained")]
    names = (*pair.sites, *(name for name in others if name not in pair.sites))
    entire = replace(pair, site=names)
    with torch.no_grad(), seeded(0, "masks of the guide"):
        readings = entire.guide_reader.read((x,), until=names)
    if any(masked_sites(reading) for reading in readings):
        raise InputError(
            f"expected latent sites {', '.join(names)} of which no mask leaves anything out; got "
            f"some left out. {REMEDY}"
        )
    return entire


REMEDY = "Use method='importance'."


@torch.no_grad()
def target_for(
    pair: Pair,
    rows: Tensor,
    prior: dist.Distribution | None,
    *,
    named: Pair | None = None,
    encoded: Encoded | None = None,
) -> Target:
    """The target at some data points, with the pair checked there.

    Args:
        pair: as :func:`whole` gives it.
        rows: B data points, shape ``(B, ...)``.
        prior: p(z) in the place of the model's own, at the sites that ``named`` names.
        named: the pair as it was given, if it has other sites.
        encoded: q(z | x) of the data points at the sites of ``named``, if it is known.

    Raises:
        InputError: where codes can't be moved through the support, or log p(x, z) is no function
            of the code.
    """
    with seeded(0, "checks of a target"):
        named = named or pair
        alone = len(named.sites) == len(pair.sites)
        code_prior = prior if alone and prior is not None else _own_prior(pair, rows)
        support = support_of(pair, rows, code_prior)
        if encoded is None or not alone:
            encoded = pair.guide_density.encode((rows,))
        z = _first_codes(encoded.density, support)
        # Here validation is still on: shapes and values are checked.
        once, again = (torch.stack(pair.log_joint(rows, z)) for _ in range(2))
        units, first = pair.traits.units(rows), len(named.sites)
        sizes = (sum(units[:first]), *units[first:])
    if not torch.allclose(once, again, equal_nan=True):
        raise InputError(
            "expected log p(x, z) to be a function of z; got two values at one z: the model draws "
            f"other latent sites too. {REMEDY}"
        )
    numbers = torch.arange(len(rows), device=rows.device)
    cost = torch.zeros_like(numbers)
    target = Target(
        pair, rows, encoded, prior, code_prior, support, z.dtype, named, sizes, numbers, cost
    )
    _check_gradient(target, target.positions(z))
    return target


def _own_prior(pair: Pair, rows: Tensor) -> dist.Distribution | None:
    """The model's p(z), if there is one for all rows."""
    try:
        return pair.prior(rows)
    except InputError:  # another one for each row
        return None


def support_of(
    pair: Pair, rows: Tensor, prior: dist.Distribution | None
) -> torch.distributions.constraints.Constraint:
    """The support of a code, which has to have a bijection from all vectors of numbers."""
    source = pair.prior(rows[:1]) if prior is None else prior
    support = source.support
    try:
        torch.distributions.biject_to(support)
    except NotImplementedError as error:
        raise InputError(
            f"expected a prior with a support that codes can be moved through; got "
            f"{families.family(source)}, supported {support}. Give its class a support such as "
            f"constraints.real_vector. {REMEDY}"
        ) from error
    return support


def _first_codes(
    guide: dist.Distribution, support: torch.distributions.constraints.Constraint
) -> Tensor:
    """A code for each row inside of the support: the guide's, or the middle where it has none."""
    z = guide.sample()
    inside = support.check(z)
    if inside.all():
        return z
    bijection = torch.distributions.biject_to(support)
    middle: Tensor = bijection(torch.zeros(bijection.inverse_shape(z.shape), dtype=z.dtype))
    return torch.where(inside.unsqueeze(-1), z, middle.to(z.device))


def _check_gradient(target: Target, u: Tensor) -> None:
    """Raise if log p(x, z) has no gradient in z."""
    try:
        target.slope(u, torch.arange(len(u), device=u.device))
    except RuntimeError as error:
        if "grad" not in str(error) and "differentiable" not in str(error):
            raise
        raise InputError(
            f"expected log p(x, z) with a gradient in z; got none: {error}. Let the model compute "
            f"in torch from its code on, without detach. {REMEDY}"
        ) from error
