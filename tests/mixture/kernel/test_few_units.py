"""Log densities by tiles of points, against float64 brute force."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrovae.mixture.kernel import few_units, gradients, search
from pyrovae.mixture.kernel.diagonal_normals import TOLERANCE, DiagonalNormals
from pyrovae.mixture.kernel.ordering import tile_order
from pyrovae.mixture.mixture import Mixture

Case = tuple[DiagonalNormals, Tensor]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take tiles for few points too, whether they pay or not."""
    for name, value in {"POINTS": 0, "PAIRS": 0, "SPREAD": 1.0, "NEAR": 0.0}.items():
        monkeypatch.setattr(few_units, name, value)
    monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)


def scores(normals: DiagonalNormals, z: Tensor) -> Tensor:
    """All scores in float64, shape ``(B, N)``."""
    components = dist.Normal(normals.loc.double(), normals.scale.double()).to_event(1)
    return components.log_prob(z.double().unsqueeze(1)) + normals.log_weight.double()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, dim = draw(st.sampled_from([1, 2, 100, 700])), draw(st.integers(1, 2))
    low = draw(st.floats(-4, 1))
    high = low + draw(st.sampled_from([0.0, 0.5, 2.0, 4.0]))  # scales mixed by up to 1e4

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loc = draw(st.sampled_from([0.0, 1.0, 1e3])) + 10 ** draw(st.floats(-3, 2)) * normal(n, dim)
    exponent = low + (high - low) * torch.rand(n, dim, generator=generator, dtype=torch.float64)
    scale = 10**exponent
    if draw(st.booleans()):  # duplicates
        loc[n // 2 :], scale[n // 2 :] = loc[0].clone(), scale[0].clone()
    logits = normal(n) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    if draw(st.booleans()):
        logits[1::3] = -math.inf
    chosen = torch.randint(n, (300,), generator=generator)
    near = draw(st.sampled_from([0.0, 1.0, 3.0])) * scale[chosen] * normal(300, dim)
    far = 10 ** draw(st.floats(0, 4)) * normal(40, dim)
    z = torch.cat([loc[chosen] + near, far]).float()
    return DiagonalNormals(loc.float(), scale.float(), logits.float().log_softmax(0)), z


@settings(max_examples=400, deadline=None, derandomize=True)
@given(case=cases())
def test_what_is_claimed_is_within_the_tolerance(case: Case) -> None:
    normals, z = case
    exact = scores(normals, z).logsumexp(-1)
    value, within = few_units.log_prob(normals, z)
    rounding = 1e-14 * (normals.constant.abs().max() + exact.abs())  # of the brute force
    error = (value - exact).abs() - rounding
    assert (error[within] <= TOLERANCE[torch.float32]).all()
    # all are claimed that are near, in the sense of the bound
    floor = few_units._floor(normals) + normals.largest_constant
    assert within[exact >= floor + 1e-3].all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases())
def test_what_a_tile_leaves_out_is_negligible(case: Case) -> None:
    normals, z = case
    sums = few_units._Sums(normals)
    floor = few_units._floor(normals) + normals.largest_constant
    for rows in tile_order(z, 32).split(32):
        every = scores(normals, z[rows])
        left_out = torch.ones(normals.size, dtype=torch.bool)
        left_out[sums.reaching(z[rows])] = False
        total = every.logsumexp(-1)
        share = (every[:, left_out].logsumexp(-1) - total).exp()
        assert (share[total >= floor] <= 1.001 * few_units.NEGLIGIBLE).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases())
def test_log_prob_is_within_the_tolerance_everywhere(case: Case) -> None:
    normals, z = case
    exact = scores(normals, z).logsumexp(-1)
    components = dist.Normal(normals.loc, normals.scale).to_event(1)
    mixture = Mixture(dist.Categorical(logits=normals.log_weight), components)
    tolerance = 5e-5 + 2**-23 * exact.abs() + 1e-6 * normals.log_weight.abs().max()
    assert ((mixture.log_prob(z).double() - exact).abs() <= tolerance).all()


def test_fewer_components_are_summed_near_a_tile() -> None:
    loc, scale = torch.randn(5000, 2).float(), torch.full((5000, 2), 0.02).float()
    normals = DiagonalNormals(loc, scale, torch.full((5000,), -math.log(5000)).float())
    index = few_units._Sums(normals).reaching(0.1 * torch.rand(64, 2).float())
    assert 0 < len(index) < 500


@pytest.mark.parametrize("part", ["loc", "scale", "log_weight", "z"])
def test_numbers_that_are_not_finite_are_left_to_the_search(part: str) -> None:
    parameters = {
        "loc": torch.randn(40, 2).float(),
        "scale": torch.full((40, 2), 0.3).float(),
        "log_weight": torch.full((40,), -math.log(40)).float(),
        "z": torch.randn(8, 2).float(),
    }
    parameters[part][3] = math.nan
    z = parameters.pop("z")
    normals = DiagonalNormals(**parameters)
    assert few_units.applies(normals, z) == (part in ("log_weight", "z"))
    if few_units.applies(normals, z):
        within = few_units.log_prob(normals, z)[1]
        assert not within[3] if part == "z" else not within.any()
    assert search.log_prob(normals, z)[3].isnan()


def test_scales_too_small_for_float32_are_left_to_the_search() -> None:
    normals = DiagonalNormals(
        torch.zeros(2, 1).float(), torch.full((2, 1), 1e-39).float(), torch.zeros(2).float()
    )
    assert not few_units.applies(normals, torch.zeros(5, 1).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    loc, z = torch.randn(300, 2).float(), torch.randn(200, 2).float()
    normals = DiagonalNormals(loc, 0.1 * loc.exp(), torch.full((300,), -math.log(300)).float())
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        value = few_units.log_prob(normals, z)[0]
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(value, scores(normals, z).logsumexp(-1), rtol=0, atol=1e-4)


def test_float64_and_more_units_are_left_to_the_search() -> None:
    for dtype, dim in ((torch.float64, 2), (torch.float32, 3)):
        loc = torch.randn(9, dim, dtype=dtype)
        normals = DiagonalNormals(loc, loc.exp(), torch.zeros(9, dtype=dtype))
        assert not few_units.applies(normals, loc)


def test_a_try_that_fails_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loc = torch.randn(50, 2).float()
    wide = DiagonalNormals(loc, torch.full_like(loc, 9.0), torch.zeros(50).float())
    monkeypatch.setattr(few_units, "SPREAD", 0.7)
    assert not few_units.log_prob(wide, loc)[1].any()
    monkeypatch.setattr(few_units, "SPREAD", 1.0)
    assert few_units.log_prob(wide, loc)[1].all()
    monkeypatch.setattr(few_units, "NEAR", 0.9)
    assert not few_units.log_prob(wide, 1e3 + loc)[1].any()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("points", [0, 1, 5, 64, 5000])
def test_tiles_hold_neighbours(dim: int, points: int) -> None:
    z = torch.rand(points, dim).float()
    order = tile_order(z, 64)
    assert torch.equal(order.sort().values, torch.arange(points))
    if points > 64:
        sides = [z[rows].amax(0) - z[rows].amin(0) for rows in order.split(64)]
        assert torch.stack(sides).mean() < 2 * (64 / points) ** (1 / dim)
