"""What kind of pair it is: which rows it takes, and what it draws besides the latent sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, as_batch, row_kinds, take_rows
from pyrovae.errors import InputError
from pyrovae.pairs.delta_sites import points_at
from pyrovae.pairs.position_parameters import by_place
from pyrovae.pairs.site_density import at_own_draws
from pyrovae.pairs.site_scores import supports
from pyrovae.pairs.trace_reader import Reader, Reading, innermost

FEW = 2  # rows that tell as much as all, where the pair takes any number of them

T = TypeVar("T")


@dataclass(frozen=True)
class Traits:
    """What model and guide do with rows of one kind, that is of the same shapes and dtypes.

    Every question is answered by running the two on the first rows of a kind, and once.

    Args:
        model, guide: readers of the two.
        sites: the latent sites that make up a code.
    """

    model: Reader
    guide: Reader
    sites: tuple[str, ...]
    # By question and kind of rows.
    _answers: dict[tuple[object, ...], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

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
        return self._once(
            "points", x, lambda: points_at(self.model, self.guide, as_batch(x), self.sites)
        )

    def _once(self, question: str, x: Tensor | Batch, answer: Callable[[], T]) -> T:
        """An answer about rows of one kind (their shapes and dtypes), found out at the first."""
        key = (question, *row_kinds(x))
        if key not in self._answers:
            self._answers[key] = answer()
        known: T = self._answers[key]
        return known

    def _takes_any_number(self, batch: Batch) -> bool:
        any_number = all(r.takes_any_number_of_rows(batch) for r in (self.guide, self.model))
        return any_number and not by_place(self.model, self.guide, batch, few=True)

    def _look(self, question: str, x: Tensor | Batch) -> Any:
        """What one look at guide and model tells about rows of one kind."""
        kinds = row_kinds(x)
        if (question, *kinds) not in self._answers:
            batch = as_batch(x)
            if self._answers.get(("any number of rows", *kinds), False):
                batch = take_rows(batch, slice(0, FEW))
            with torch.no_grad(), torch.random.fork_rng():
                guide, model = (r.read(batch)[0] for r in (self.guide, self.model))
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
