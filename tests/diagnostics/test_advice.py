"""Advice follows held-out log p(x), and among equals prefers the density that memorises less."""

import pytest
import torch

from pyrovae.diagnostics.advice import advise
from pyrovae.evidence.importance import compare_priors
from pyrovae.evidence.result import Evidence
from pyrovae.models.pair import Pair
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
