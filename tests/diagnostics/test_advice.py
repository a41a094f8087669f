"""Advice follows held-out log p(x), and among equals prefers the density that memorises less."""

from dataclasses import replace

import pytest
import torch

from pyrovae.diagnostics.advice import advise, is_settled
from pyrovae.evidence.importance import compare_priors
from pyrovae.evidence.result import Evidence
from pyrovae.pairs.pair import Pair
from pyrovae.testing import linear_gaussian_vae

NAMES = {"prior": "the prior", "q_agg": "raw q_agg", "ex_post": "the ex-post prior"}


@pytest.fixture
def base() -> Evidence:
    exact = linear_gaussian_vae()
    vae = exact.vae()
    return compare_priors(Pair(vae.model, vae.guide), exact.sample(50), {"": None}, draws=5)[""]


def shifted(base: Evidence, by: float, noise: float = 0.1) -> Evidence:
    values = base.values + by + noise * torch.randn_like(base.values)
    return type(base)(**{**vars(base), "values": values})


@pytest.mark.parametrize(
    ("q_agg", "ex_post", "chosen"),
    [
        (-1.0, -0.5, "the prior"),
        (0.0, 0.0, "the prior"),
        (-1.0, 0.5, "the ex-post prior"),
        (0.5, 0.5, "the ex-post prior"),
        (1.5, 0.5, "raw q_agg"),
    ],
)
def test_advice(base: Evidence, q_agg: float, ex_post: float, chosen: str) -> None:
    torch.manual_seed(3)
    advice = advise(
        {"prior": base, "q_agg": shifted(base, q_agg), "ex_post": shifted(base, ex_post)}, NAMES
    )
    assert advice.startswith(f"Sample from {chosen}: ")
    assert "±" in advice


def evidence(values: torch.Tensor, pareto_k: float = 0.2) -> Evidence:
    return Evidence(values, torch.zeros_like(values), torch.full_like(values, pareto_k), 1000)


@pytest.mark.parametrize("rejecting", ["prior", "both others"])
def test_nothing_is_advised_where_k_rejects_the_estimates(rejecting: str) -> None:
    values = torch.randn(100)
    parts = {name: evidence(values + n) for n, name in enumerate(NAMES)}
    names = ["prior"] if rejecting == "prior" else ["q_agg", "ex_post"]
    for name in names:
        parts[name] = replace(parts[name], pareto_k=torch.full((100,), 0.9))
    advice = advise(parts, NAMES)
    assert advice.startswith("Where to sample from can't be told") and "100 of 100" in advice


def test_a_few_rejected_data_points_are_tolerated() -> None:
    values = torch.randn(100)
    parts = {name: evidence(values + n) for n, name in enumerate(NAMES)}
    for count, start in ((5, "Sample from the ex-post prior"), (6, "Where to sample from can't")):
        pareto_k = torch.full((100,), 0.2)
        pareto_k[:count] = torch.tensor([0.9, torch.inf]).repeat(3)[:count]  # known or not
        prior = replace(parts["prior"], pareto_k=pareto_k)
        assert advise(parts | {"prior": prior}, NAMES).startswith(start)


def test_a_density_by_another_name_is_not_compared_with_itself() -> None:
    values = torch.randn(100)
    parts = {name: evidence(values + shift) for name, shift in zip(NAMES, (0, -2, -2), strict=True)}
    advice = advise(parts, NAMES, same={"ex_post": "q_agg"})
    assert advice.count("changes it by") == 1
    assert "the ex-post prior is raw q_agg by another name" in advice


def test_advice_says_how_many_rows_it_rests_on_and_how_ties_go() -> None:
    torch.manual_seed(0)
    values = torch.randn(100)
    parts = {"prior": evidence(values), "q_agg": evidence(values + 1.0)}
    better = values + 1.0 - 0.05 + 0.01 * torch.randn(100)  # by less than is relevant
    advice = advise(parts | {"ex_post": evidence(better)}, NAMES)
    assert advice.startswith("Sample from the ex-post prior: over 100 rows")
    assert "that these rows don't tell apart" in advice
    clear = advise(parts | {"ex_post": evidence(values + 2.0)}, NAMES)
    assert "tell apart" not in clear


@pytest.mark.parametrize(("error", "remedy"), [(0.9, "more draws"), (0.0, "more rows")])
def test_what_would_tell_a_difference(error: float, remedy: str) -> None:
    # The noise between rows is that of the draws alone, or of the rows alone.
    torch.manual_seed(1)
    zero, noise = torch.zeros(400), torch.randn(400)
    noise = (noise - noise.mean()) / noise.std()
    own = evidence(zero)
    other = replace(evidence(0.09 + noise), standard_error=torch.full((400,), error))
    advice = advise({"prior": own, "q_agg": other}, NAMES)
    # 0.09 is 1.8 of 0.05: the squared error has to fall to (1.8 / 1.96)² = 0.8434 of itself.
    assert advice.startswith("Sample from the prior")
    number = {"more draws": "300", "more rows": "80"}[remedy]
    assert f"which {number} {remedy}" in advice


@pytest.mark.parametrize("infinite", [torch.inf, -torch.inf])
def test_no_advice_is_built_on_an_infinite_value(infinite: float) -> None:
    values = torch.randn(100)
    impossible = values.clone()
    impossible[17] = infinite
    parts = {"prior": evidence(values), "q_agg": evidence(impossible), "ex_post": evidence(values)}
    advice = advise(parts, NAMES)
    assert advice.startswith("Sample from the prior")
    assert "row 17" in advice and "inf ±" not in advice
    everywhere = dict.fromkeys(NAMES, evidence(impossible))
    assert advise(everywhere, NAMES).startswith("Where to sample from can't be told")


@pytest.mark.parametrize(
    ("look", "ex_post", "settled"),
    [
        (0, 2.0, True), (0, -2.0, True), (0, 0.23, True), (0, 0.21, False), (0, 0.1, False),
        (0, -0.01, False), (1, 0.21, True), (1, 0.2, False),
    ],
)  # fmt: skip
def test_a_look_settles_what_is_many_standard_errors_from_relevant(
    look: int, ex_post: float, settled: bool
) -> None:
    # Differences of 0.3 to either side of their mean at 100 rows: a standard error of 0.0302.
    values, noise = torch.zeros(100), torch.tensor([0.3, -0.3]).repeat(50)
    parts = {"prior": evidence(values), "ex_post": evidence(values + ex_post + noise)}
    assert is_settled(parts, ["ex_post"], look=look) == settled
    rejected = replace(parts["ex_post"], pareto_k=torch.full((100,), 0.9))
    assert not is_settled({**parts, "ex_post": rejected}, ["ex_post"], look=look)


def test_what_would_tell_densities_that_were_measured_at_other_rows() -> None:
    values = torch.randn(100)
    rows = torch.arange(100)
    prior = replace(evidence(values), rows=rows)
    few = replace(evidence((values + torch.randn(100))[::5]), rows=rows[::5])
    advice = advise({"prior": prior, "q_agg": few, "ex_post": prior}, NAMES)
    assert "over 20 of them" in advice and "would tell from none" in advice
