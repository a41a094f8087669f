"""Advice follows held-out log p(x), and among equals prefers the density that memorises less."""

from dataclasses import replace

import pytest
import torch

from pyrovae.diagnostics.advice import advise
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
    said = advise(
        {"prior": base, "q_agg": shifted(base, q_agg), "ex_post": shifted(base, ex_post)}, NAMES
    )
    assert said.startswith(f"Sample from {chosen}: ")
    assert "±" in said


def evidence(values: torch.Tensor, pareto_k: float = 0.2) -> Evidence:
    return Evidence(values, torch.zeros_like(values), torch.full_like(values, pareto_k), 1000)


@pytest.mark.parametrize("rejecting", ["prior", "both others"])
def test_nothing_is_advised_where_k_rejects_the_estimates(rejecting: str) -> None:
    values = torch.randn(100)
    parts = {name: evidence(values + n) for n, name in enumerate(NAMES)}
    names = ["prior"] if rejecting == "prior" else ["q_agg", "ex_post"]
    for name in names:
        parts[name] = replace(parts[name], pareto_k=torch.full((100,), 0.9))
    said = advise(parts, NAMES)
    assert said.startswith("Where to sample from can't be told") and "100 of 100" in said


def test_a_few_rejected_data_points_are_tolerated() -> None:
    values = torch.randn(100)
    parts = {name: evidence(values + n) for n, name in enumerate(NAMES)}
    for count, start in ((5, "Sample from the ex-post prior"), (6, "Where to sample from can't")):
        pareto_k = torch.full((100,), 0.2)
        pareto_k[:count] = torch.tensor([0.9, torch.inf]).repeat(3)[:count]  # known or not
        assert (
            advise(parts | {"prior": replace(parts["prior"], pareto_k=pareto_k)}, NAMES)[
                : len(start)
            ]
            == start
        )


@pytest.mark.parametrize("infinite", [torch.inf, -torch.inf])
def test_no_advice_is_built_on_an_infinite_value(infinite: float) -> None:
    values = torch.randn(100)
    impossible = values.clone()
    impossible[17] = infinite
    parts = {"prior": evidence(values), "q_agg": evidence(impossible), "ex_post": evidence(values)}
    said = advise(parts, NAMES)
    assert said.startswith("Sample from the prior") and "row 17" in said and "inf ±" not in said
    everywhere = dict.fromkeys(NAMES, evidence(impossible))
    assert advise(everywhere, NAMES).startswith("Where to sample from can't be told")
