"""Two candidates at most are in memory at once, and the density returned is the one scored."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.ex_post import selection
from pyrovae.ex_post.candidates import Flow, Inflated, InflatedByUnit, Recipe, Reduced
from pyrovae.ex_post.selection import fit_ex_post_prior
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.kernel import gradients
from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals

RECIPES: list[Recipe] = [
    Inflated(),
    Inflated(0.2),
    InflatedByUnit(steps=5),
    Reduced(5, shrinkage=1.0),
    Reduced(5, "full", 2.0, 2),
    Flow(steps=5),
]


def encoding(size: int) -> dist.Distribution:
    return dist.Normal(torch.randn(size, 3), 0.05 + 0.1 * torch.rand(size, 3)).to_event(1)


def scripted(monkeypatch: pytest.MonkeyPatch, values: dict[str, list[float]]) -> None:
    """Put scores in the place of log densities, by name of the candidate."""

    def score(_: dist.Distribution, codes: Tensor, recipe: Recipe) -> Tensor:
        return torch.tensor(values[recipe.name])

    monkeypatch.setattr(selection, "_mean_log_density", score)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_what_is_returned_is_what_was_scored(recipe: Recipe) -> None:
    agg, held_out = AggregatedPosterior(encoding(60)), encoding(20)
    ex_post_prior = fit_ex_post_prior(agg, held_out=held_out, candidates=[recipe], seed=3)
    codes = selection._held_out_codes(agg, held_out, draws=4, seed=3)
    score = float(ex_post_prior.distribution.log_prob(codes).double().mean())
    assert score == pytest.approx(ex_post_prior.table[0].held_out.value, rel=1e-12)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_choice_that_is_brought_back_is_fitted_as_before(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second clearly beats the first; the third beats both, by less than its error.
    later: list[Recipe] = [Flow(steps=2, hidden=(64, 64)), Flow(steps=3, hidden=(64, 64))]
    scripted(
        monkeypatch,
        {
            recipe.name: 40 * [0.0],
            later[0].name: 20 * [1.0, 1.1],
            later[1].name: 20 * [52.0, -48.0],
        },
    )
    agg, held_out = AggregatedPosterior(encoding(60)), encoding(20)
    alone = fit_ex_post_prior(agg, held_out=held_out, candidates=[recipe])
    led = fit_ex_post_prior(agg, held_out=held_out, candidates=[recipe, later[0]])
    back = fit_ex_post_prior(agg, held_out=held_out, candidates=[recipe, *later])
    assert led.choice == later[0].name and back.choice == recipe.name
    z = torch.randn(9, 3)
    first, second = (prior.distribution.log_prob(z) for prior in (alone, back))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_one_candidate_is_held_beside_the_one_that_is_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit, alive = selection._fit, []
    references: list[weakref.ref[Any]] = []

    def counting(*arguments: Any) -> Any:
        alive.append(sum(reference() is not None for reference in references))
        density, amount = fit(*arguments)
        references.append(weakref.ref(density))
        return density, amount

    monkeypatch.setattr(selection, "_fit", counting)
    inflations = [Inflated(h) for h in (0.01, 0.02, 0.05, 0.1, 0.2)]
    candidates: list[Recipe] = [*inflations, Reduced(20), Reduced(10), Reduced(5)]
    agg, held_out = AggregatedPosterior(encoding(200)), encoding(40)
    fit_ex_post_prior(agg, held_out=held_out, candidates=candidates)
    assert len(alive) >= len(candidates) and max(alive) == 1


def evaluators() -> int:
    gc.collect()
    return sum(type(thing) is DiagonalNormals for thing in gc.get_objects())


def test_what_evaluation_leaves_behind_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)  # as with many components
    agg, held_out, before = AggregatedPosterior(encoding(60)), encoding(20), evaluators()
    ex_post_prior = fit_ex_post_prior(
        agg, held_out=held_out, candidates=[Inflated(), Inflated(0.2)]
    )
    assert evaluators() == before
    ex_post_prior.distribution.log_prob(torch.zeros(3))
    assert evaluators() > before  # so the count does see them
