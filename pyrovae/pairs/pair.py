"""Any Pyro model and guide as the few functions that the measures need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch, repeat_rows, row_count, row_kinds, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.families import share
from pyrovae.pairs.delta_sites import points_at
from pyrovae.pairs.joint_sites import Ancestral
from pyrovae.pairs.position_parameters import by_place
from pyrovae.pairs.restore import PyroFunction, measuring, modules_of
from pyrovae.pairs.site_density import SiteDensity, at_own_draws, fixing, settled
from pyrovae.pairs.site_scores import (
    Scorer,
    check_masks,
    masked_sites,
    supports,
    total,
    units_present,
)
from pyrovae.pairs.trace_reader import Reader, Reading, innermost

__all__ = ["Pair", "PyroFunction", "Weighted", "measuring", "modules_of"]

ROWS = 16_384  # rows that go through the model at once, at most
ROWS_BYTES = 1 << 24  # of data that go through the model at once; more is slow to allocate
TOGETHER = 16  # rows that share one draw of a site that is one for all rows
COMPARED = 100  # rows on which a prior is checked to be the same

T = TypeVar("T")


@dataclass(frozen=True)
class Weighted:
    """Draws from the guide at some data points, with the terms of their importance weights.

    The weight of a draw is p(x|z) p(z) / q(z|x).

    Args:
        z: draws, shape ``(S, B, D)``.
        log_likelihood, log_prior, log_guide: log p(x|z), log p(z), log q(z|x), each ``(S, B)``. If
            the guide has other latent sites, their p/q is a factor of the likelihood.
    """

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor


@dataclass(frozen=True)
class Pair:
    """A Pyro ``model(*batch)`` and ``guide(*batch)`` with a latent site in a data plate.

    One method for each question: `encode` is q(z | x), `prior` p(z), `decode` p(x | z), `observe`
    the data there; `log_joint` is log p(x | z) and log p(z) at given codes, `log_likelihood` what
    stands in the ELBO, `weigh` draws with the terms of their weights. What kind of pair it is
    (`units`, `points`, `takes_any_number_of_rows`, ...) is found out at the first rows of a kind.

    Every method runs one of the two functions under Pyro's own handlers and reads the sites, so a
    pair needs nothing but its ``pyro.sample`` statements. All log densities are those of the sites
    themselves: masks count, subsampling and ``poutine.scale`` do not. What a mask leaves out of a
    latent site, in model and guide alike, has its prior as posterior; it counts the same in
    log q(z | x) and in log p(z). A batch is one tensor of rows, or a tuple of tensors, one for each
    argument.

    A site in no plate over the data is one for all rows, and part of the model as a parameter is:
    it is drawn from the guide, or from the model if the guide lacks it, and neither its density
    nor the value of such a ``pyro.factor`` belongs to any row. Discrete sites with a few values are
    summed over, in the guide too if it draws no other site.

    Args:
        model: generative function.
        guide: variational function; called with the same arguments.
        site: name of the latent site, or of several that are taken as one vector.
        observed: name of the observed site to decode, if there are several; log p(x | z) counts
            all of them.
        data_plate: name of the plate over the data; by default the one with as many rows as a
            batch.
    """

    model: PyroFunction
    guide: PyroFunction
    site: str | tuple[str, ...] = "z"
    observed: str | None = None
    data_plate: str | None = None
    # What was found out about rows of one kind, by question and kind.
    _answers: dict[tuple[object, ...], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        names = (self.site,) if isinstance(self.site, str) else self.site
        several = isinstance(names, tuple | list) and len(names) > 0
        if not several or not all(isinstance(name, str) and name for name in names):
            raise InputError(
                "expected as site= the name of a latent site, or a tuple of several; got "
                f"{self.site!r}. Give one such as site='z'."
            )
        if len(set(names)) < len(names):
            raise InputError(
                f"expected every latent site once in site=; got {self.site!r}. Name each once."
            )

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The latent sites."""
        return (self.site,) if isinstance(self.site, str) else tuple(self.site)

    @property
    def name(self) -> str:
        """What to call the code: the name of its site, or of all its sites."""
        return "_".join(self.sites)

    def encode(self, x: Tensor | Batch, *, filled: bool = True) -> dist.Distribution:
        """q(z | x), batch shape ``(B,)``, event shape ``(D,)``, for rows ``x``, shape ``(B, ...)``.

        Several sites of one family that depend on the data only give a distribution of that family.
        A site that depends on discrete ones with a few values gives a mixture over these. Sites
        that depend on each other give an :class:`~pyrovae.pairs.joint_sites.Ancestral`, and so does
        a family that can't be split by row.

        Args:
            x: rows.
            filled: whether what a mask leaves out gets the model's prior, or stays as the guide
                has it.

        Raises:
            InputError: if the guide has no such site, the site is in no data plate or is discrete,
                its density is known at its own draws only, or its parameters depend on draws of
                sites that are not named.
        """
        batch = as_batch(x)
        return self._encode(batch, self.guide_reader.read(batch), filled=filled)

    def run_guide(self, batch: Batch, *, reading: Reading | None = None) -> Ancestral:
        """q(z | x) of any family: the guide itself, run for each pair of row and code.

        Args:
            batch: rows.
            reading: a run of the guide for some of these rows; a new one if not given.
        """
        return Ancestral.read(self.guide_reader, batch, self.sites, self._scorer, reading=reading)

    def log_joint(
        self, x: Tensor | Batch, z: Tensor, *, others: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) row by row, each of shape ``(B,)``.

        Discrete latent sites with a few values are summed over; continuous ones that the guide
        lacks are drawn from the model.

        Args:
            x: rows, shape ``(B, ...)``.
            z: one code for each row, shape ``(B, D)``.
            others: codes at other latent sites by name, each ``(B, units)``, whose log density is
                then a part of log p(x | z).
        """
        batch = as_batch(x)
        by_site = {**self._split(batch, z), **(others or {})}
        scores = [
            self._scorer.score(rows, codes=codes, values=values)
            for rows, codes, values in self._together(batch, by_site)
        ]
        if len(scores) == 1:
            return scores[0]
        likelihood, prior = (torch.cat(column) for column in zip(*scores, strict=True))
        return likelihood, prior

    def log_likelihood(self, x: Tensor | Batch, z: Tensor) -> Tensor:
        """log p(x | z) row by row, shape ``(B,)``, as it stands in the ELBO.

        If the guide has other latent sites u, this is log p(x, u | z) − log q(u | z, x) at a draw
        of u, whose mean is at most log p(x | z).
        """
        return self.elbo_terms(x, z)[0]

    def elbo_terms(self, x: Tensor | Batch, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z), as `log_likelihood` has it, and log p(z), each of shape ``(B,)``."""
        batch = as_batch(x)
        if not self.has_other_latents(batch):
            return self.log_joint(batch, z)
        blocks = self._together(batch, self._split(batch, z), draw_shared=False)
        parts = [self._with_guide(rows, codes)[1:3] for rows, codes, _ in blocks]
        likelihood, prior = (torch.cat(column) for column in zip(*parts, strict=True))
        return likelihood, prior

    def decode(self, x: Tensor | Batch, z: Tensor) -> dist.Distribution:
        """p(x | z), batch shape ``(B,)``: the distribution at the observed site for codes ``z``."""
        parts, batch = [], as_batch(x)
        for rows, codes, values in self._together(batch, self._split(batch, z)):
            for reading in self.model_reader.read(rows, codes=codes, values=values):
                site = self._observed_site(reading)
                parts.append(share(reading.distribution(site, flatten=False)))
        return families.concatenate(parts)

    def observe(self, x: Tensor | Batch) -> tuple[str, Tensor]:
        """The observed site that is decoded: its name, and the data there, shape ``(B, ...)``."""
        readings = self.model_reader.read(as_batch(x))
        site = self._observed_site(readings[0])
        return site, torch.cat([reading.value(site) for reading in readings])

    def prior(self, x: Tensor | Batch) -> dist.Distribution:
        """p(z), batch shape ``(1,)``, which broadcasts against any number of codes.

        Args:
            x: at least two rows, on which the prior is checked not to depend.

        Raises:
            InputError: if p(z) differs between rows, so that there is no one prior to compare with.
        """
        batch = as_batch(x)
        if self.takes_any_number_of_rows(batch):
            batch = take_rows(batch, slice(0, COMPARED))
        readings = self.model_reader.read(batch)
        density = self._in_model.find(batch, readings, parts=1)
        first = readings[0]
        code = self._in_model.codes(first)[:1]
        if density is None or not _same_for_all(density, code):
            others = [name for name in first.latent if name not in self.sites]
            shared = [name for name in others if name in first.shared]
            remedy = f" {fixing('model', shared)}" if shared else ""
            raise InputError(
                f"expected one prior p({', '.join(self.sites)}) for all rows; got one that depends "
                f"on the data{f' or on the sites {others}' if others else ''}. Compare the "
                f"aggregated posterior with a prior of your own by passing prior=.{remedy}"
            )
        try:
            return families.take(density, slice(0, 1))
        except ValueError:  # not made of parameter tensors: a mixture, a flow
            return self._in_model.at_sites(self.model_reader.read(take_rows(batch, slice(0, 1)))[0])

    def weigh(
        self, x: Tensor | Batch, draws: int, *, proposal: dist.Distribution | None = None
    ) -> Weighted:
        """Draws for each row, with the terms of their importance weights.

        All latent sites of the guide are drawn together; those that only the model has are drawn
        from it, or summed over if they are discrete.

        Args:
            x: rows, shape ``(B, ...)``.
            draws: number S of draws for each row.
            proposal: what z is drawn from in the guide's place, batch shape ``(B,)``.
        """
        batch = as_batch(x)
        repeatable = self.takes_any_number_of_rows(batch)
        if self.draws_for_all(batch):  # anew for each of the draws
            repeatable = False
        at_once = max(1, _rows_at_once(batch) // row_count(batch)) if repeatable else 1
        source = proposal
        if source is None and not self.has_other_latents(batch):
            with torch.random.fork_rng():
                readings = self.guide_reader.read(batch)
                if not self._leaves_out(readings):
                    source = self._encode(batch, readings, filled=False)
        if source is None:
            columns = zip(
                *(
                    [term.unflatten(0, (len(part), -1)) for term in self._with_guide(repeated)]
                    for part in torch.arange(draws).split(at_once)
                    for repeated in [repeat_rows(batch, len(part))]
                ),
                strict=True,
            )
            return Weighted(*(torch.cat(column) for column in columns))
        z = source.sample(torch.Size([draws]))
        scores: list[list[Tensor]] = []
        repeated = repeat_rows(batch, min(at_once, draws))
        for part in z.split(at_once):
            rows = take_rows(repeated, slice(0, len(part) * row_count(batch)))
            with _unchecked() if scores else nullcontext():  # the same data as in the first part
                terms = self.log_joint(rows, part.flatten(0, 1))
            scores.append([term.view(part.shape[:2]) for term in terms])
        likelihood, prior = (torch.cat(parts) for parts in zip(*scores, strict=True))
        return Weighted(z, likelihood, prior, source.log_prob(z))

    def takes_any_number_of_rows(self, x: Tensor | Batch) -> bool:
        """Whether model and guide take any number of any rows; if not, always give all rows."""
        return self._once("any number of rows", x, lambda: self._takes_any_number(as_batch(x)))

    def units(self, x: Tensor | Batch) -> tuple[int, ...]:
        """Number of units at each of the latent sites, in the guide."""
        units: tuple[int, ...] = self._look("units", x)
        return units

    def has_other_latents(self, x: Tensor | Batch) -> bool:
        """Whether the guide draws other latent sites along with the named ones.

        Discrete ones that can be summed over don't count. A named site whose density is known at
        its own draws only counts as such a site.

        Raises:
            InputError: if the guide draws a site that the model lacks.
        """
        return bool(self._look("other latents", x))

    def draws_for_all(self, x: Tensor | Batch) -> bool:
        """Whether guide or model draws a site that is one for all rows.

        Raises:
            InputError: if a site is one for all rows in only one of the two.
        """
        return bool(self._look("draws for all", x))

    def points(self, x: Tensor | Batch) -> tuple[str, ...]:
        """Other latent sites at which the guide has a value but no density; see `points_at`."""
        model, guide = self.model_reader, self.guide_reader
        return self._once("points", x, lambda: points_at(model, guide, as_batch(x), self.sites))

    @cached_property
    def model_reader(self) -> Reader:
        """Runs the model."""
        return Reader(self.model, "model", self.data_plate)

    @cached_property
    def guide_reader(self) -> Reader:
        """Runs the guide."""
        return Reader(self.guide, "guide", self.data_plate)

    @cached_property
    def _in_guide(self) -> SiteDensity:
        return SiteDensity(self.guide_reader, self.sites)

    @cached_property
    def _in_model(self) -> SiteDensity:
        return SiteDensity(self.model_reader, self.sites)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.model_reader, self.guide_reader, self.sites)

    def _encode(
        self, batch: Batch, readings: Sequence[Reading], *, filled: bool
    ) -> dist.Distribution:
        """As `encode`, from a complete run of the guide."""
        density = self._in_guide.find(batch, readings)
        if density is None:
            raise self._in_guide.undetermined(batch)
        if filled and self._leaves_out(readings):
            return self._filled(batch, density)
        if isinstance(density, Ancestral):
            return self.run_guide(batch, reading=readings[0])
        if type(families.innermost(density)) is dist.Normal:
            return density
        try:
            families.take(density, slice(0, 1))
        except InputError:  # it can't be split by row
            if not self.guide_reader.takes_any_number_of_rows(batch):
                raise
            return self.run_guide(batch, reading=readings[0])
        return density

    def _leaves_out(self, readings: Sequence[Reading]) -> bool:
        """Whether a mask leaves something out of the latent sites in some runs of the guide."""
        return any(r.present(site) is not None for r in readings for site in self.sites)

    def _once(self, question: str, x: Tensor | Batch, answer: Callable[[], T]) -> T:
        """An answer about rows of one kind (their shapes and dtypes), found out at the first."""
        key = (question, *row_kinds(x))
        if key not in self._answers:
            self._answers[key] = answer()
        known: T = self._answers[key]
        return known

    def _takes_any_number(self, batch: Batch) -> bool:
        model, guide = self.model_reader, self.guide_reader
        any_number = all(r.takes_any_number_of_rows(batch) for r in (guide, model))
        return any_number and not by_place(model, guide, batch, few=True)

    def _look(self, question: str, x: Tensor | Batch) -> Any:
        """What one look at guide and model tells about rows of one kind."""
        kinds = row_kinds(x)
        if (question, *kinds) not in self._answers:
            batch = as_batch(x)
            with torch.no_grad(), torch.random.fork_rng():
                guide, model = (r.read(batch)[0] for r in (self.guide_reader, self.model_reader))
            for other, answer in (
                ("units", self._units),
                ("draws for all", _draws_for_all),
                ("other latents", self._draws_others),
            ):
                with nullcontext() if other == question else suppress(InputError):
                    self._answers[other, *kinds] = answer(guide, model)
        return self._answers[question, *kinds]

    def _units(self, guide: Reading, _: Reading) -> tuple[int, ...]:
        """Number of units at each of the latent sites."""
        for site in self.sites:
            guide.node(site)
        return tuple(guide.code(site).shape[1] for site in self.sites)

    def _draws_others(self, guide: Reading, model: Reading) -> bool:
        """Whether the guide draws other latent sites, which can't be summed over."""
        others = [name for name in guide.latent if name not in self.sites]
        if others and not self._summed(guide, model, others):
            _check_weighed(guide, model, others)
            return True
        return any(at_own_draws(guide.node(site)["fn"]) for site in self.sites)

    def _summed(self, guide: Reading, model: Reading, others: Sequence[str]) -> bool:
        """Whether other sites of the guide can be summed over, there and in the model."""
        by_row = [n for n in model.latent if n not in (*self.sites, *model.shared)]
        in_model = supports(model, by_row)
        return len(supports(guide, others)) == len(others) and all(
            name in in_model for name in others if name in by_row
        )

    def _filled(self, batch: Batch, density: dist.Distribution) -> dist.Distribution:
        """The guide's density, with the prior for what masks leave out of the latent sites.

        Args:
            batch: rows.
            density: the guide's, with what it draws there itself.
        """
        with torch.no_grad(), torch.random.fork_rng():
            guide, model = (
                r.read(batch, until=self.sites) for r in (self.guide_reader, self.model_reader)
            )
        if missing := [site for site in self.sites if site not in model[0].latent]:
            raise InputError(
                f"expected a model that draws {', '.join(missing)} too, to get the prior of what "
                "a mask leaves out of the guide there; got none. Give the model with model=, or "
                "leave out the rows that are masked."
            )
        check_masks(model, guide, self.sites)
        prior = None if isinstance(density, Ancestral) else self._in_model.find(batch)
        if prior is not None:
            present = torch.cat([units_present(guide, site) for site in self.sites], -1)
            with suppress(InputError):  # guide and prior are of two families
                return families.where(present, density, prior)
        joint = self.run_guide(batch, reading=guide[0])
        if not settled([joint], torch.cat([self._in_guide.codes(reading) for reading in guide])):
            raise InputError(
                f"expected densities of {', '.join(self.sites)} in model and guide that depend on "
                "nothing but the data, where a mask leaves something out; got others. Use "
                "log_evidence, which also draws what they depend on, or leave out the rows that "
                "are masked."
            )
        return joint

    def _together(
        self, batch: Batch, codes: Mapping[str, Tensor], *, draw_shared: bool = True
    ) -> Iterator[tuple[Batch, Mapping[str, Tensor], dict[str, Tensor]]]:
        """Rows with their codes, in blocks that share one draw of what is one for all rows.

        Args:
            batch: rows.
            codes: by site.
            draw_shared: whether to draw that from the guide; it is the third of each block.
        """
        if not self._look("draws for all", batch):
            yield batch, codes, {}
            return
        rows = row_count(batch)
        size = TOGETHER if self.takes_any_number_of_rows(batch) else max(1, rows)
        for start in range(0, rows, size):
            block = slice(start, start + size)
            part = take_rows(batch, block)
            values = {}
            if draw_shared:
                guide = self.guide_reader.read(part)[0]
                values = {n: guide.nodes[n]["value"] for n in guide.latent if n in guide.shared}
            yield part, {site: code[block] for site, code in codes.items()}, values

    def _split(self, batch: Batch, z: Tensor) -> dict[str, Tensor]:
        """The part of a code that belongs to each site."""
        if len(self.sites) == 1:
            return {self.sites[0]: z}
        return dict(zip(self.sites, z.split(self.units(batch), -1), strict=True))

    def _with_guide(
        self, batch: Batch, codes: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One draw of all sites of the guide for each row, with the terms of its weight.

        Args:
            batch: rows.
            codes: what to put at the latent sites; drawn too if not given.

        Returns:
            codes, log p − log q of all other sites, log p and log q of the codes.
        """
        code_sites = {name for site in self.sites for name in (site, f"{site}_unconstrained")}
        points = self.points(batch)
        parts = []
        for reading in self.guide_reader.read(batch, codes=codes):
            rows = slice(0, reading.batch_rows)
            values = {name: reading.nodes[name]["value"] for name in reading.latent}
            guide, complete = total(reading, set(reading.latent) & code_sites), reading
            masked = masked_sites(reading)
            if masked:
                redraw = [name for name in masked if name not in (codes or ())]
                complete = self._scorer.fill(reading, batch, values, redraw=redraw)
                filled = [name for name in masked if name in complete.latent]
                values |= {name: complete.nodes[name]["value"] for name in filled}
                guide = guide + total(complete, code_sites, "absent")[rows]
            z = self._in_guide.codes(complete)[rows]
            likelihood, prior = self._scorer.score(
                batch, values=values, indices=reading.indices, points=points
            )
            others = set(reading.latent) - code_sites - set(points)
            parts.append((z, likelihood[rows] - total(reading, others), prior[rows], guide))
        z, rest, prior, guide = (torch.cat(column) for column in zip(*parts, strict=True))
        return z, rest, prior, guide

    def _observed_site(self, reading: Reading) -> str:
        names = reading.data_sites
        if self.observed is not None:
            for name in (self.observed, f"{self.observed}_observed"):
                if name in names:
                    return name
            raise InputError(
                f"expected an observed site {self.observed!r} in the model; got {names}. Name one "
                "of those with observed=."
            )
        if len(names) != 1:
            raise InputError(
                f"expected one observed site in the model; got {names}. Give the site obs=, or "
                "name the one that is meant with observed=."
            )
        return names[0]


def _draws_for_all(guide: Reading, model: Reading) -> bool:
    """Whether guide or model draws a site that is one for all rows.

    Raises:
        InputError: if a site is one for all rows in only one of the two.
    """
    for name in {*guide.latent} & {*model.nodes}:
        if (name in guide.shared) != (name in model.shared):
            # Raises the error: the plate over the data is missing there.
            (guide if name in guide.shared else model).dim(name)
    return any({*reading.latent} & {*reading.shared} for reading in (guide, model))


def _check_weighed(guide: Reading, model: Reading, others: Sequence[str]) -> None:
    """Raise if the guide draws a site that the model lacks: no weight would be right."""
    points = any(isinstance(innermost(guide.nodes[n]["fn"]), dist.Delta) for n in guide.latent)
    guide_only = [name for name in others if name not in (*model.nodes, *guide.shared)]
    if guide_only and not points:  # an autoguide's points are functions of such sites
        raise InputError(
            f"expected sites of the guide that the model has too; got {guide_only} in the guide"
            f" alone, so that p(x, z) has no density for them. Let the model draw {guide_only} "
            "given z, from any distribution: the closer to the guide's given x and z, the "
            "tighter the bound."
        )


def _rows_at_once(batch: Batch) -> int:
    size = max(array[:1].numel() * array.element_size() for array in batch)
    return max(1, min(ROWS, ROWS_BYTES // max(1, size)))


def _unchecked() -> AbstractContextManager[object]:
    """Turn off checks of arguments, which cost as much as a likelihood itself."""
    unchecked: AbstractContextManager[object] = pyro.settings.context(
        validate_distributions_pyro=False, validate_distributions_torch=False
    )
    return unchecked


def _same_for_all(density: dist.Distribution, code: Tensor) -> bool:
    """Whether all rows have the same density at a code, shape ``(1, D)``."""
    values = density.log_prob(code.expand(*density.batch_shape, -1))
    return torch.allclose(values, values[:1].expand_as(values))
