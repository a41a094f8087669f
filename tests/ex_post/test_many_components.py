"""Where there are many components, candidates are tried on a part of them first."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.data import load
from pyrovae.ex_post import Candidate, ExPostPrior, Inflated, Reduced, fit_ex_post_prior, selection
from pyrovae.ex_post.candidates import Recipe
from pyrovae.mixture import AggregatedPosterior

TRAINING = 1200
RECIPES: list[Recipe] = [
    *(Inflated(amount) for amount in (0.0, 0.05, 0.1, 0.2, 0.5)),
    *(Reduced(size, shrinkage=3.0) for size in (10, 25, 50, 100)),
    *(Reduced(size, "full", 5.0) for size in (1, 10, 25, 50, 100)),
    *(Reduced(size, "full", 3.0, starts=2) for size in (25, 75)),
]


def principal_components() -> Tensor:
    """Eight scores of the digits, in random order."""
    images = load("digits").single().values.flatten(1).double()
    centred = images - images.mean(0)
    scores = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:8].mT
    return scores[torch.randperm(len(scores))] / scores.std()


def clusters() -> Tensor:
    centre = 3.0 * torch.randn(12, 6)
    return centre[torch.randint(12, (1600,))] + 0.3 * torch.randn(1600, 6)


def surface() -> Tensor:
    return torch.sin(2 * torch.randn(1600, 2) @ torch.randn(2, 6)) + 0.1 * torch.randn(1600, 6)


CLOUDS = {"digits": principal_components, "clusters": clusters, "surface": surface}


def chosen(ex_post_prior: ExPostPrior) -> Candidate:
    return next(row for row in ex_post_prior.table if row.name == ex_post_prior.choice)


def encoding(loc: Tensor) -> dist.Distribution:
    return dist.Normal(loc, 0.1 + 0.2 * torch.rand_like(loc)).to_event(1)


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with 20,000 components, at a part of one in four and a half of the held-out points."""
    monkeypatch.setattr(selection, "MANY", TRAINING - 1)
    monkeypatch.setattr(selection, "PART", TRAINING // 4)
    monkeypatch.setattr(selection, "ROWS", 200)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_choice_is_as_good_as_that_of_the_full_search(
    cloud: str, request: pytest.FixtureRequest
) -> None:
    """Its held-out log density is at most one standard error lower."""
    loc = CLOUDS[cloud]()
    agg = AggregatedPosterior(encoding(loc[:TRAINING]))
    held_out = encoding(loc[TRAINING:1600])
    full = fit_ex_post_prior(agg, held_out=held_out, candidates=RECIPES)
    request.getfixturevalue("few_are_many")
    halved = fit_ex_post_prior(agg, held_out=held_out, candidates=RECIPES)
    best = chosen(full).held_out
    assert chosen(halved).held_out.value >= best.value - best.standard_error
    assert [row.name for row in halved.table] == [row.name for row in full.table]
    on_part = [row for row in halved.table if row.part]
    assert 0 < len(on_part) <= len(halved.table) - selection.FINALISTS
    assert {(row.part, row.held_out.size) for row in on_part} == {(TRAINING // 4, 200)}
    assert chosen(halved).part == 0
    # What is fitted to all is what the full search has of it.
    of_all = {row.name: row.held_out for row in full.table}
    assert all(row.held_out == of_all[row.name] for row in halved.table if not row.part)


@pytest.mark.usefixtures("few_are_many")
def test_the_next_larger_reduction_than_the_best_is_a_finalist() -> None:
    loc = surface()
    agg, held_out = AggregatedPosterior(encoding(loc[:TRAINING])), encoding(loc[TRAINING:])
    recipes: list[Recipe] = [Inflated(h) for h in (0.0, 5.0, 9.0)]
    recipes += [Reduced(size, shrinkage=3.0) for size in (1, 2, 4, 50, 120, 100)]
    first, second = (
        fit_ex_post_prior(agg, held_out=held_out, candidates=recipes) for _ in range(2)
    )
    assert first.table == second.table
    assert first.table[-2].part == 0  # with more than a third of the part, it isn't tried there
    best = max(first.table, key=lambda row: row.held_out.value)
    assert best.part == 0 and first.table[1].part == first.table[2].part == TRAINING // 4


@pytest.mark.usefixtures("few_are_many")
def test_enough_codes_score_the_finalists(monkeypatch: pytest.MonkeyPatch) -> None:
    """All data points have their say, by one draw each; the mean is that of more draws."""
    loc = clusters()
    agg, held_out = AggregatedPosterior(encoding(loc[:TRAINING])), encoding(loc[TRAINING:])
    recipes: list[Recipe] = [Reduced(size) for size in (2, 6, 12, 24)]
    more = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    monkeypatch.setattr(selection, "CODES", 1)
    one = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes)
    assert one.choice == more.choice
    for ours, theirs in zip(one.table, more.table, strict=True):
        error = ours.held_out.standard_error
        assert ours.held_out.size == theirs.held_out.size
        assert abs(ours.held_out.value - theirs.held_out.value) < 4 * error
    assert chosen(one).held_out.size == len(loc) - TRAINING
    assert chosen(one).held_out.standard_error > chosen(more).held_out.standard_error


@pytest.mark.usefixtures("few_are_many")
def test_few_candidates_are_all_fitted_to_all_components() -> None:
    loc = clusters()
    agg, held_out = AggregatedPosterior(encoding(loc[:TRAINING])), encoding(loc[TRAINING:])
    recipes: list[Recipe] = [Inflated(), Inflated(0.1), Reduced(5)]
    table = fit_ex_post_prior(agg, held_out=held_out, candidates=recipes).table
    assert [row.part for row in table] == [0, 0, 0]
