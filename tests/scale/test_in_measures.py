"""Measures take an aggregated posterior from files as they take one in memory."""

from __future__ import annotations

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae()
X, NEW = EXACT.sample(200), EXACT.sample(120, seed=1)
VAE = EXACT.vae()
TINY = pv.Effort(
    codes=64, evidence_rows=6, evidence_draws=30, export_rows=3, export_draws=30, pictures=4,
    simulations=0, gap_rows=0, samples=30,
)  # fmt: skip


@pytest.fixture
def sharded(tmp_path: Path) -> pv.ShardedPosterior:
    folder = pv.encode_to(
        tmp_path / "codes", VAE.guide, X, shard_rows=70, dtype=torch.float64, progress=False
    )
    return pv.open_aggregated(folder)


def test_an_ex_post_prior_is_chosen_from_the_same_table(sharded: pv.ShardedPosterior) -> None:
    candidates = [pv.Inflated(), pv.Inflated(0.2), pv.InflatedByUnit(5), pv.Reduced(5)]
    expected, found = (
        pv.fit_ex_post_prior(
            agg, held_out=pv.encode(VAE.guide, NEW), candidates=candidates, progress=False
        )
        for agg in (pv.aggregate(VAE.guide, X), sharded)
    )
    assert found.choice == expected.choice
    for one, other in zip(found.table, expected.table, strict=True):
        # rounds of a reduction are in float32, and rounded otherwise in parts
        bound = 1e-5 if "reduced" in one.name else 1e-8
        assert one.held_out.value == pytest.approx(other.held_out.value, abs=bound)


def test_groups_are_compared_by_the_same_densities(sharded: pv.ShardedPosterior) -> None:
    groups, donors = [n % 2 for n in range(200)], [n % 10 for n in range(200)]
    expected, found = (
        pv.compare_groups(agg, groups, replicates=donors)
        for agg in (pv.aggregate(VAE.guide, X), sharded)
    )
    torch.testing.assert_close(found.log_densities, expected.log_densities, rtol=0, atol=1e-8)


def test_a_diagnosis_takes_it_in_place_of_encoding(sharded: pv.ShardedPosterior) -> None:
    expected, found = (
        pv.diagnose(
            VAE.model, VAE.guide, X, held_out=NEW, aggregated=agg, effort=TINY, progress=False
        ).summary()
        for agg in (None, sharded)
    )
    assert (found["measure"] == expected["measure"]).all()
    values = expected["value"].to_numpy()
    assert found["value"].to_numpy() == pytest.approx(values, abs=1e-6, nan_ok=True)


def test_a_diagnosis_refuses_other_rows(sharded: pv.ShardedPosterior) -> None:
    unequal = pv.AggregatedPosterior(sharded.encoding, torch.arange(1.0, 201.0))
    moved = pv.AggregatedPosterior(dist.Normal(sharded.encoding.mean + 1, 1.0).to_event(1))
    single = sharded.to(torch.float32)
    for agg, says in (
        (sharded[:150], "150 rows"), (unequal, "unequal"), (moved, "other"),
        (single, "float32, not float64"),
    ):  # fmt: skip
        with pytest.raises(pv.InputError, match=says):
            pv.diagnose(
                VAE.model, VAE.guide, X, held_out=NEW, aggregated=agg, effort=TINY, progress=False
            )


def test_it_is_saved_as_one_in_memory(sharded: pv.ShardedPosterior, tmp_path: Path) -> None:
    pv.save(sharded, tmp_path / "agg.pt")
    loaded, z = pv.load(tmp_path / "agg.pt"), sharded.sample((20,))
    torch.testing.assert_close(loaded.log_prob(z), sharded.log_prob(z), rtol=0, atol=1e-8)
    prior = VAE.with_prior(sharded).prior()
    torch.testing.assert_close(prior.log_prob(z), sharded.log_prob(z), rtol=0, atol=1e-8)
