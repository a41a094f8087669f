"""Files that version 0.1.0 has written are read: each kind of result, with what it said then."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrovae as pv

FILES = Path(__file__).parent / "files_of_0_1_0"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
ORIGIN = torch.zeros(3, 2)


def test_an_aggregated_posterior() -> None:
    agg = pv.load(FILES / "aggregated_posterior.pt")
    assert isinstance(agg, pv.AggregatedPosterior)
    assert np.allclose(agg.log_prob(ORIGIN), EXPECTED["aggregated_posterior.log_prob"], rtol=1e-12)


def test_an_ex_post_prior() -> None:
    density = pv.load(FILES / "ex_post_prior.pt").distribution
    assert np.allclose(density.log_prob(ORIGIN), EXPECTED["ex_post_prior.log_prob"], rtol=1e-12)


def test_log_p_x() -> None:
    mean = pv.load(FILES / "evidence.pt").mean()
    assert mean.value == pytest.approx(EXPECTED["evidence.mean"], rel=1e-12)


def test_a_diagnosis() -> None:
    diagnosis = pv.load(FILES / "diagnosis.pt")
    rows = diagnosis.summary().to_dict("records")
    assert len(rows) == len(EXPECTED["diagnosis.summary"])
    for row, same in zip(EXPECTED["diagnosis.summary"], rows, strict=True):
        assert same["data"] == row["data"]
        if not same["unresolved"]:
            assert same["value"] == pytest.approx(row["value"], rel=1e-12)
            assert same["standard_error"] == pytest.approx(row["standard_error"], rel=1e-12)
    assert diagnosis.advice and diagnosis.to_arviz() is not None


@pytest.mark.parametrize("name", ["marginal", "reduction", "estimate"])
def test_the_rest(name: str) -> None:
    assert pv.load(FILES / f"{name}.pt") is not None
