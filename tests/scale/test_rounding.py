"""Half precision in files: what is written is the mixture, and close to that of the guide."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.scale.rounding import MOST, RoundedNormal, divergences, same_normals
from pyrovae.testing import linear_gaussian_vae

ROWS, D = 1500, 4


def guide(x: Tensor) -> None:
    """Means and scales are the columns of the data."""
    with pyro.plate("data", len(x)):
        half = x.shape[1] // 2
        pyro.sample("z", dist.Normal(x[:, :half], x[:, half:]).to_event(1))


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    means, scales = torch.randn(ROWS, D), 0.05 + 0.25 * torch.rand(ROWS, D)
    return torch.cat([means, scales], 1).to(dtype)


def written(folder: Path, x: Tensor, **settings: Any) -> pv.ShardedPosterior:
    settings = {"shard_rows": 400, "dtype": torch.float16, "progress": False, **settings}
    return pv.open_aggregated(pv.encode_to(folder, guide, x, **settings), verify=True)


Both = tuple[pv.ShardedPosterior, pv.AggregatedPosterior]


@pytest.fixture
def both(tmp_path: Path) -> Both:
    """A mixture in files of half precision, and the same rounded numbers in memory."""
    x = rows()
    loc, scale = x.half().float().split(D, 1)
    return written(tmp_path / "codes", x), pv.AggregatedPosterior(
        dist.Normal(loc, scale).to_event(1)
    )


def test_the_files_hold_the_rounded_numbers_in_half_the_room(both: Both, tmp_path: Path) -> None:
    _, rounded = both
    for name, expected in (("means", rounded.encoding.mean), ("scales", rounded.encoding.stddev)):
        found = np.load(tmp_path / "codes" / f"{name}.npy")
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found.astype(np.float32), expected.numpy())


@pytest.mark.float32
def test_densities_are_those_of_the_rounded_numbers(both: Both) -> None:
    sharded, rounded = both
    z = rounded.sample((900,))
    z[0] += 30.0
    for points in (z, z[:3]):
        expected = rounded.log_prob(points)
        bound = 2 * 5e-5 + torch.finfo(torch.float32).eps * expected.abs()
        assert bool(((sharded.log_prob(points) - expected).abs() <= bound).all())
        torch.testing.assert_close(
            sharded.score(points), rounded.score(points), rtol=1e-3, atol=1e-3
        )
    assert torch.equal(
        sharded.responsibilities(z, top=1).index, rounded.responsibilities(z, top=1).index
    )


@pytest.mark.float32
def test_all_else_is_in_single_precision(both: Both) -> None:
    """Nothing is computed, or drawn, in half precision."""
    sharded, rounded = both
    drawn = []
    for agg in both:
        torch.manual_seed(3)
        drawn.append(torch.stack([agg.sample((20,)), agg.rsample((20,))]))
    assert torch.equal(*drawn) and drawn[0].dtype == torch.float32
    for moment in ("mean", "variance", "mean_variance"):
        torch.testing.assert_close(getattr(sharded, moment), getattr(rounded, moment))
    for part in (
        lambda a: a.encoding,
        lambda a: a[torch.arange(5)].encoding,
        lambda a: a.component(7),
    ):
        q, p = part(sharded), part(rounded)
        assert torch.equal(q.mean, p.mean) and torch.equal(q.variance, p.variance)
        assert q.mean.dtype == torch.float32
    merged = pv.ShardedPosterior.merge([sharded, sharded])
    assert merged.encoding.mean.dtype == torch.float32 and len(merged) == 2 * ROWS
    assert sharded.to(torch.float64).encoding.mean.dtype == torch.float64
    bounds = [pv.entropy_bounds(agg, rows=20).lower.value for agg in both]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-4)
    reduced = [pv.reduce(agg, 3, rounds=3, draws=50).bounds for agg in both]
    torch.testing.assert_close(*reduced, rtol=1e-5, atol=1e-5)


@pytest.mark.float32
@pytest.mark.parametrize("units", [2, [0, 2], [3, 1]])
def test_marginals_are_those_of_the_rounded_numbers(both: Both, units: int | list[int]) -> None:
    sharded, rounded = (agg.marginal(units) for agg in both)
    z = rounded.sample((300,))
    torch.testing.assert_close(sharded.log_prob(z), rounded.log_prob(z), rtol=0, atol=1e-4)
    assert torch.equal(sharded.component_distribution.mean, rounded.component_distribution.mean)


def test_copies_and_saved_ones_are_the_same(both: Both, tmp_path: Path) -> None:
    sharded, _ = both
    z = sharded.sample((5,))
    copied = pickle.loads(pickle.dumps(sharded))
    torch.testing.assert_close(copied.log_prob(z), sharded.log_prob(z), rtol=0, atol=0)
    pv.save(sharded, tmp_path / "saved.pt")
    loaded = pv.load(tmp_path / "saved.pt")
    torch.testing.assert_close(loaded.log_prob(z), sharded.log_prob(z), rtol=0, atol=1e-4)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    x = rows()
    x[:, :D] *= 1e-3  # below the least normal number of half precision, some of them
    written(tmp_path / "codes", x)
    (tmp_path / "codes" / "shards" / "2.json").unlink()
    written(tmp_path / "codes", x)
    with pytest.raises(pv.InputError, match="'float16'"):
        written(tmp_path / "codes", x, dtype=torch.float32)


def test_the_divergence_of_the_mixtures_is_at_most_the_mean_of_those_of_rows(
    tmp_path: Path,
) -> None:
    r"""By convexity: E_{z ~ q}[log q(z) − log q̂(z)] ≤ Σ_n w_n KL(q_n ‖ q̂_n) ≤ 0.01.

    A mean of 20,000 draws against a bound above it: the rate of false alarms at 4 standard errors
    is below 1 in 30,000.
    """
    x = rows(torch.float64)
    x[:, D:] *= 0.3  # so that rounding moves means by more of a scale
    loc, scale = x.split(D, 1)
    before = pv.AggregatedPosterior(dist.Normal(loc, scale).to_event(1))
    after = written(tmp_path / "codes", x)
    apart = divergences((loc, scale), (after.encoding.mean, after.encoding.stddev))
    z = before.sample((20_000,))
    lost = before.log_prob(z) - after.log_prob(z).double()
    assert float(lost.mean()) <= float(apart.mean()) + 4 * float(lost.std()) / math.sqrt(len(z))
    assert 0 < float(apart.mean()) <= float(apart.max()) <= MOST


def test_a_divergence_is_that_of_torch() -> None:
    one, other = rows(torch.float64).split(D, 1), rows(torch.float64).split(D, 1)
    p, q = (torch.distributions.Normal(*normal) for normal in (one, other))
    expected = torch.distributions.kl_divergence(p, q).sum(1)
    torch.testing.assert_close(divergences(one, other), expected)


@pytest.mark.parametrize("number", [math.inf, math.nan])
@pytest.mark.parametrize("of", ["means", "scales", "both"])
def test_numbers_that_are_not_finite_are_never_the_same(number: float, of: str) -> None:
    now, before = ([torch.zeros(3, 2), torch.ones(3, 2)] for _ in range(2))
    assert same_normals(now, before, torch.float32)
    now[of == "scales"][0, 0] = number
    if of == "both":
        before[0][0, 0] = number
    assert not same_normals(now, before, torch.float32)
    assert not same_normals(before, now, torch.float32)


REFUSED = {
    "too large": (0, 7e4, "an infinite number once row 777"),
    "a tiny scale": (D, 1e-9, "a scale of 0 once row 777"),
    "a scale of few digits": (D, 1.4e-7, "another normal, .* nats from it where 0.01 is the most"),
    "a mean far from 0 for its scale": (0, 300.03, "another normal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path, case: str) -> None:
    column, value, says = REFUSED[case]
    x = rows()
    x[777, column] = value
    with pytest.raises(pv.InputError, match=rf"{says}.*Use dtype=torch.float32"):
        written(tmp_path / "codes", x)
    agg = written(tmp_path / "other", x, dtype=torch.float32)  # the remedy
    assert torch.equal(agg.encoding.mean, x[:, :D])


def test_doubles_that_single_precision_would_move_are_refused(tmp_path: Path) -> None:
    x = rows(torch.float64)
    x[3, 0], x[3, D] = 1000.00003, 1e-5
    with pytest.raises(pv.InputError, match=r"another normal.*row 3 .*Use dtype=torch.float64"):
        written(tmp_path / "codes", x, dtype=torch.float32)
    written(tmp_path / "other", x, dtype=torch.float64)  # the remedy


def test_a_real_guide_s_encodings_fit(tmp_path: Path) -> None:
    exact = linear_gaussian_vae()
    x = exact.sample(300)
    folder = pv.encode_to(tmp_path / "codes", exact.vae().guide, x, dtype=torch.float16)
    q = pv.encode(exact.vae().guide, x)
    assert torch.equal(pv.open_aggregated(folder).encoding.mean, q.mean.half().float())


def test_nothing_is_widened_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(self: RoundedNormal) -> Tensor:
        raise AssertionError("all rows at once")

    for name in ("loc", "scale"):
        monkeypatch.setattr(RoundedNormal, name, property(whole))
    agg = written(tmp_path / "codes", rows())
    z = agg.sample((20,))
    agg.log_prob(z), agg.score(z), agg.responsibilities(z, top=2), agg.rsample((2,))
    agg.mean, agg.variance, agg.marginal([0, 2]).log_prob(z[:, [0, 2]]), agg.component(3)


@pytest.mark.float32
def test_a_diagnosis_takes_what_was_written_of_its_own_rows_and_no_other(tmp_path: Path) -> None:
    vae = pv.VAE(pv.mlp_encoder((6,), 2), pv.mlp_decoder(2, (6,), "normal"), pv.StandardNormal(2))
    x = 20 * torch.randn(300, 6)  # codes many scales from 0, so that rounding is seen
    effort = pv.Effort(codes=200, evidence_rows=0, simulations=0, gap_rows=0, samples=0)

    def diagnosed(name: str, rows: Tensor) -> pv.Diagnosis:
        folder = pv.encode_to(tmp_path / name, vae.guide, rows, dtype=torch.float16)
        agg = pv.open_aggregated(folder)
        return pv.diagnose(
            vae.model, vae.guide, x[:200], held_out=x[200:], aggregated=agg, effort=effort
        )

    assert diagnosed("own", x[:200]).aggregated.stored_dtype == torch.float16
    with pytest.raises(pv.InputError, match="other encodings of the first rows"):
        diagnosed("other", x[100:])
