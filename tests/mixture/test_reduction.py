"""Fewer components: EM on components matches moments, climbs its bound and comes close.

Moments are compared in float64 to 1e-9, far above rounding and far below what a method could miss;
estimates of divergences with 4 of their standard errors, plus 1e-9 where those are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch

from pyrovae.mixture import em_rounds, full_em_rounds
from pyrovae.mixture.em_rounds import DiagonalRounds
from pyrovae.mixture.full_em_rounds import FullRounds
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction import Reduction, reduce

N, D = 400, 3


def correlated() -> Mixture:
    loc = torch.randn(N, 1) * torch.tensor([1.0, 0.9, -0.8]) + 0.1 * torch.randn(N, D) + 5.0
    components = dist.Normal(loc, 0.05 + 0.1 * torch.rand(N, D)).to_event(1)
    return Mixture(dist.Categorical(torch.rand(N)), components)


def clusters(islands: int) -> Mixture:
    centre = 30.0 * torch.randn(islands, D)
    loc = centre.repeat_interleave(-(-N // islands), 0)[:N] + 0.3 * torch.randn(N, D)
    return Mixture(dist.Categorical(torch.ones(N)), dist.Normal(loc, 0.2).to_event(1))


def islands() -> Mixture:
    return clusters(7)


def narrow(
    sigma: float, spread: float, *, size: int = 40, duplicates: bool = False, dim: int = 4
) -> Mixture:
    loc = spread * torch.randn(size, dim)
    if duplicates:
        loc[size // 2 :] = loc[0]
    scale = sigma * (0.5 + torch.rand(size, dim))
    return Mixture(dist.Categorical(torch.rand(size)), dist.Normal(loc, scale).to_event(1))


def covariance_of(mixture: Mixture) -> torch.Tensor:
    """The covariance of a mixture, by brute force from the law of total covariance."""
    components, weight = mixture.component_distribution, mixture.weights
    full = isinstance(components, dist.MultivariateNormal)
    within = components.covariance_matrix if full else torch.diag_embed(components.variance)
    centred = components.mean - weight @ components.mean
    return torch.einsum("n,nab->ab", weight, within) + (weight * centred.mT) @ centred


def assert_same_moments(reduced: Mixture, mixture: Mixture, *, full: bool) -> None:
    """Compare means and variances, or covariances if full, relative to standard deviations."""
    unit = mixture.variance.sqrt()
    torch.testing.assert_close(reduced.mean / unit, mixture.mean / unit, rtol=0, atol=1e-9)
    actual, expected = (covariance_of(m) / unit / unit.unsqueeze(-1) for m in (reduced, mixture))
    if not full:
        actual, expected = actual.diagonal(), expected.diagonal()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_component_has_the_moments_of_the_mixture(covariance: str) -> None:
    mixture = correlated()
    reduced = reduce(mixture, 1, covariance=covariance).mixture
    assert reduced.size == 1
    components = reduced.component_distribution
    torch.testing.assert_close(components.mean[0], mixture.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(components.variance[0], mixture.variance, rtol=1e-10, atol=0)
    if covariance == "full":
        full = components.covariance_matrix[0]
        torch.testing.assert_close(full, covariance_of(mixture), rtol=1e-10, atol=0)


@pytest.mark.parametrize("rounds", [1, 3, 60])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_rounds_conserve_the_moments_of_the_whole(covariance: str, rounds: int) -> None:
    """Σ π_j m_j and Σ π_j (S_j + m_j m_jᵀ) are those of the mixture, as shares sum to 1."""
    mixture = correlated()
    reduced = reduce(mixture, 7, covariance=covariance, rounds=rounds).mixture
    assert_same_moments(reduced, mixture, full=covariance == "full")


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_shrinkage_conserves_the_mean_of_the_whole(covariance: str) -> None:
    mixture = correlated()
    reduced = reduce(mixture, 7, covariance=covariance, shrinkage=5.0).mixture
    torch.testing.assert_close(reduced.mean, mixture.mean, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_narrow_and_wide_components_are_reduced_alike(
    covariance: str, spread: float, sigma: float
) -> None:
    """Moments are conserved and the KL is not negative at every ratio of σ to spread."""
    for duplicates in (False, True):
        mixture = narrow(sigma, spread, duplicates=duplicates)
        for components in (1, 3, 20, 40):
            reduction = reduce(mixture, components, covariance=covariance, draws=200)
            assert_same_moments(reduction.mixture, mixture, full=covariance == "full")
            kl = reduction.divergence
            assert math.isfinite(kl.value) and kl.value > -4 * kl.standard_error - 1e-9
            assert reduction.mixture.component_distribution.stddev.min() > 0.4 * sigma


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0])
def test_as_many_well_separated_components_lose_nothing(covariance: str, sigma: float) -> None:
    mixture = narrow(sigma, 1e6 * sigma)
    kl = reduce(mixture, mixture.size, covariance=covariance).divergence
    assert abs(kl.value) < 4 * kl.standard_error + 1e-9


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_float32_holds_a_thousand_narrow_components(covariance: str) -> None:
    loc = torch.randn(2000, 5, dtype=torch.float32)
    weights = dist.Categorical(torch.ones(2000, dtype=torch.float32))
    mixture = Mixture(weights, dist.Normal(loc, torch.full_like(loc, 1e-3)).to_event(1))
    reduction = reduce(mixture, 1000, covariance=covariance)
    assert reduction.mixture.size == 1000 and math.isfinite(reduction.divergence.value)
    assert reduction.mixture.mean.dtype == torch.float32
    torch.testing.assert_close(reduction.mixture.variance, mixture.variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_all_ways_of_a_round_agree(covariance: str, family: str) -> None:
    """Expanded scores and differences give the same round, where neither cancels."""
    mixture = correlated()
    if family == "full":
        components = mixture.component_distribution
        factor = torch.randn(N, D, D).tril(-1) + torch.diag_embed(1 + torch.rand(N, D))
        normals = dist.MultivariateNormal(components.mean, scale_tril=0.2 * factor)
        mixture = Mixture(mixture.mixture_distribution, normals)
    problem = (FullRounds if covariance == "full" else DiagonalRounds)(mixture, 0.0)
    start = problem.start(7, 0)
    fused, slow = problem.fused_round(start, torch.float64), problem.pairwise_round(start)
    assert fused is not None
    assert fused[1] == pytest.approx(slow[1], abs=1e-9)
    for name in ("log_weight", "mean", "scale"):
        by_products, by_pairs = getattr(fused[0], name), getattr(slow[0], name)
        torch.testing.assert_close(by_products, by_pairs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mixture", "dtype"), [(correlated, "float32"), (islands, "float64")])
def test_rounds_of_a_float32_mixture_are_in_float32_where_that_is_enough(
    mixture: Callable[[], Mixture], dtype: str
) -> None:
    """Variances 1e-4 of the mixture's are not told from rounding; those of 0.01 are."""
    exact = mixture().component_distribution
    parts = (getattr(exact, name).float() for name in ("mean", "stddev"))
    weights = dist.Categorical(torch.rand(N, dtype=torch.float32))
    problem = FullRounds(Mixture(weights, dist.Normal(*parts).to_event(1)), 0.0)
    assert problem.lowest_dtype == torch.float32
    start = problem.start(7, 0)
    fused, slow = problem.fused_round(start, torch.float32), problem.pairwise_round(start)
    assert fused is not None and problem.lowest_dtype == getattr(torch, dtype)
    tolerance = {"float32": 1e-4, "float64": 1e-9}[dtype]
    for name in ("log_weight", "mean", "scale"):
        by_products, by_pairs = getattr(fused[0], name), getattr(slow[0], name)
        torch.testing.assert_close(by_products, by_pairs, rtol=tolerance, atol=tolerance)
    assert fused[1] == pytest.approx(slow[1], abs=tolerance)


@pytest.mark.parametrize("thin", [1e-3, 2e-4])
def test_one_round_in_float32_tells_units_that_are_nearly_one(thin: float) -> None:
    """Units cancel in each other's covariances though their means are at 0."""
    loc = torch.randn(5000, 1) + thin * torch.randn(5000, 6)
    found = []
    for dtype in (torch.float32, torch.float64):
        normal = dist.Normal(loc.float().to(dtype), torch.full_like(loc, 0.1 * thin).to(dtype))
        weights = dist.Categorical(torch.ones(5000, dtype=dtype))
        mixture = Mixture(weights, normal.to_event(1))
        reduced = reduce(mixture, 1, covariance="full", rounds=1, draws=2).mixture
        parts = reduced.component_distribution
        found.append(
            dist.MultivariateNormal(parts.loc.double(), scale_tril=parts.scale_tril.double())
        )
    assert float(torch.distributions.kl_divergence(found[1], found[0])) < 1e-4


def test_rounds_over_few_pairs_are_complete_ones_where_no_other_has_a_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shares below 1e-8 are left out, of N = 400 and 8."""
    monkeypatch.setattr(full_em_rounds, "LARGE", 1)
    monkeypatch.setattr(full_em_rounds, "SPARSE", 0.1)
    problem = FullRounds(clusters(8), 5.0)
    normals, _ = problem.round(problem.start(8, 0), torch.float64)
    assert problem.pairs is not None and len(problem.pairs.row) < N * 8
    few, every = problem.near_round(normals, problem.pairs), problem.pairwise_round(normals)
    assert few is not None
    assert few[1] == pytest.approx(every[1], abs=1e-6)
    for name in ("log_weight", "mean", "scale"):
        ours, exact = getattr(few[0], name), getattr(every[0], name)
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)


def test_few_pairs_are_found_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight groups at the corners of a cube, of a hundredth of its variance."""
    monkeypatch.setattr(full_em_rounds, "LARGE", 1)
    monkeypatch.setattr(full_em_rounds, "SPARSE", 0.1)
    corners = torch.cartesian_prod(*[torch.tensor([-3.0, 3.0])] * D)
    loc = (corners.repeat(N // 8, 1) + 0.3 * torch.randn(N, D)).float()
    weights = dist.Categorical(torch.rand(N, dtype=torch.float32))
    problem = FullRounds(
        Mixture(weights, dist.Normal(loc, torch.full_like(loc, 0.2)).to_event(1)), 0.0
    )
    start = problem.start(8, 0)
    found, every = problem.fused_round(start, torch.float32), problem.pairwise_round(start)
    assert problem.pairs is not None and len(problem.pairs.row) < N * 2
    assert found is not None and problem.lowest_dtype == torch.float32
    assert found[1] == pytest.approx(every[1], abs=1e-4)
    for name in ("log_weight", "mean", "scale"):
        ours, exact = getattr(found[0], name), getattr(every[0], name)
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_rounds_over_few_pairs_end_where_complete_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = clusters(40)
    complete = reduce(mixture, 40, covariance="full", tolerance=1e-9)
    monkeypatch.setattr(full_em_rounds, "LARGE", 1)
    monkeypatch.setattr(full_em_rounds, "SPARSE", 0.1)
    few = reduce(mixture, 40, covariance="full", tolerance=1e-9)
    assert (torch.tensor(few.bounds).diff() > -1e-6).all()
    assert few.bounds[-1] == pytest.approx(complete.bounds[-1], abs=1e-6)
    assert_same_moments(few.mixture, mixture, full=True)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_part_shortens_the_rounds_over_all(
    covariance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is drawn by weight and in the same units; the end is as good, and of all components."""
    mixture = correlated()
    whole = reduce(mixture, 4, covariance=covariance)
    monkeypatch.setattr(em_rounds, "FEW", 80)
    monkeypatch.setattr(em_rounds, "EACH", 3)
    problem = (FullRounds if covariance == "full" else DiagonalRounds)(mixture, 0.0)
    (stage,) = problem.stages(4, 0)
    assert len(stage.log_weight) == 80
    assert float(stage.log_weight.exp() @ stage.moments(slice(None))[0].norm(dim=-1)) < 3
    staged = reduce(mixture, 4, covariance=covariance)
    assert len(staged.bounds) < len(whole.bounds)
    assert staged.bounds[-1] > whole.bounds[-1] - 0.1
    assert_same_moments(staged.mixture, mixture, full=covariance == "full")


@pytest.mark.parametrize("light", [-30.0, -150.0, -700.0])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_components_that_carry_the_mass_are_found(covariance: str, light: float) -> None:
    """Only six of 2,000 have a weight that counts: six components lose nothing, more do no harm."""
    log_weight = torch.full((2000,), light)
    log_weight[torch.arange(6) * 300] = torch.arange(6.0)
    components = dist.Normal(10.0 * torch.randn(2000, D), 0.3).to_event(1)
    mixture = Mixture(dist.Categorical(logits=log_weight), components)
    for size in (6, 30):
        reduction = reduce(mixture, size, covariance=covariance)
        assert abs(reduction.divergence.value) < 4 * reduction.divergence.standard_error + 1e-6
        heavy = reduction.mixture.weights.sort(descending=True).values[:6]
        torch.testing.assert_close(heavy, torch.arange(6.0).flip(0).softmax(0), rtol=1e-6, atol=0)


def test_twins_count_as_one() -> None:
    loc = torch.randn(5, D).repeat(4, 1)
    mixture = Mixture(dist.Categorical(torch.rand(20)), dist.Normal(loc, 1e-3).to_event(1))
    reduction = reduce(mixture, 20)
    assert reduction.mixture.size == 5
    assert abs(reduction.divergence.value) < 4 * reduction.divergence.standard_error + 1e-6


def test_components_at_one_place_differ_by_their_variances() -> None:
    scale = torch.tensor([1e-3, 1.0, 1e3]).unsqueeze(-1).expand(3, D)
    mixture = Mixture(
        dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(3, D), scale).to_event(1)
    )
    kl = reduce(mixture, 3).divergence
    assert abs(kl.value) < 4 * kl.standard_error + 1e-6  # they share a billionth of the mass


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_every_round_climbs_a_bound_on_the_expected_log_density(covariance: str) -> None:
    mixture = correlated()
    reduction = reduce(mixture, 6, covariance=covariance, rounds=40)
    gains = torch.tensor(reduction.bounds).diff()
    assert (gains > -1e-4).all() and reduction.bounds[-1] > reduction.bounds[0] + 0.1
    z = mixture.sample((4000,))
    log_prob = reduction.mixture.log_prob(z)
    assert reduction.bounds[-1] < log_prob.mean() + 4 * log_prob.std() / math.sqrt(4000)
    assert reduction.mixture.size == 6


def test_divergence_is_that_of_the_draws() -> None:
    """Against 20,000 other draws, within 4 standard errors of the difference."""
    mixture = correlated()
    reduction = reduce(mixture, 3)
    z = mixture.sample((20_000,))
    values = mixture.log_prob(z) - reduction.mixture.log_prob(z)
    error = math.hypot(reduction.divergence.standard_error, values.std() / math.sqrt(20_000))
    assert abs(reduction.divergence.value - values.mean()) < 4 * error
    assert reduction.divergence.over == "draws" and reduction.divergence.size == 4096


def test_islands_are_found() -> None:
    """Eight islands of near-normal shape: eight components lose little, four lose log 2 or more."""
    mixture = clusters(8)
    eight, four = reduce(mixture, 8), reduce(mixture, 4)
    assert eight.converged and eight.divergence.value < 0.5
    assert four.divergence.value > eight.divergence.value + math.log(2) - 0.1


def test_as_many_components_as_there_are_lose_nothing() -> None:
    loc = 20.0 * torch.randn(12, D)
    mixture = Mixture(dist.Categorical(torch.rand(12)), dist.Normal(loc, 0.5).to_event(1))
    assert abs(reduce(mixture, 12).divergence.value) < 1e-4


def test_full_covariances_fit_correlated_codes_better() -> None:
    mixture = correlated()
    full = reduce(mixture, 2, covariance="full").divergence.value
    assert full < reduce(mixture, 2).divergence.value - 0.1


def test_full_components_can_be_reduced() -> None:
    diagonal = correlated()
    loc, variance = diagonal.component_distribution.mean, diagonal.component_distribution.variance
    full = Mixture(
        diagonal.mixture_distribution, dist.MultivariateNormal(loc, torch.diag_embed(variance))
    )
    for covariance in ("diagonal", "full"):
        first, second = (reduce(m, 4, covariance=covariance, rounds=5) for m in (diagonal, full))
        torch.testing.assert_close(first.mixture.mean, second.mixture.mean)
        torch.testing.assert_close(torch.tensor(first.bounds), torch.tensor(second.bounds))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_shrinkage_pulls_towards_one_common_covariance(covariance: str) -> None:
    mixture = correlated()
    spread = []
    for shrinkage in (0.0, 20.0, 1e9):
        reduced = reduce(mixture, 8, covariance=covariance, shrinkage=shrinkage).mixture
        components = reduced.component_distribution
        covariances = components.covariance_matrix if covariance == "full" else components.variance
        spread.append(float(covariances.std(0).mean()))
        assert reduced.size == 8
    assert spread[0] > spread[1] > spread[2] and spread[2] < 1e-6


def test_shrunk_full_covariances_hold_for_other_draws() -> None:
    """Few old components for each new one: held-out density gains by 10 standard errors."""
    loc = torch.randn(2 * N, 8) @ torch.randn(8, 8)
    seen, unseen = loc[:N], loc[N:]
    mixture = Mixture(dist.Categorical(torch.ones(N)), dist.Normal(seen, 0.1).to_event(1))
    raw, pulled = (
        reduce(mixture, 40, covariance="full", shrinkage=s).mixture.log_prob(unseen)
        for s in (0.0, 20.0)
    )
    gain = pulled - raw
    assert gain.mean() > 10 * gain.std() / math.sqrt(N)


def test_components_of_weight_zero_have_no_say() -> None:
    loc = torch.cat([torch.zeros(5, D), torch.full((5, D), 1e3)])
    weights = torch.cat([torch.ones(5), torch.zeros(5)])
    mixture = Mixture(dist.Categorical(weights), dist.Normal(loc, 1.0).to_event(1))
    assert reduce(mixture, 2).mixture.mean.abs().max() < 1e-5


def test_seed_decides() -> None:
    mixture = correlated()
    runs: list[Reduction] = [reduce(mixture, 5, seed=seed, rounds=3) for seed in (0, 0, 1)]
    assert runs[0].bounds == runs[1].bounds != runs[2].bounds


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 400 components; got 401"):
        reduce(correlated(), 401)
    with pytest.raises(ValueError, match="shrinkage of at least 0; got -1"):
        reduce(correlated(), 2, shrinkage=-1.0)
    with pytest.raises(ValueError, match="at least 1 round; got 0"):
        reduce(correlated(), 2, rounds=0)
    with pytest.raises(ValueError, match="'diagonal' or 'full'; got 'tied'"):
        reduce(correlated(), 2, covariance="tied")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one mixture; got batch shape \(4,\)"):
        reduce(correlated().expand([4]), 2)
    numbers = Mixture(dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="over vectors"):
        reduce(numbers, 2)


def of_three(components: dist.Distribution) -> Mixture:
    return Mixture(dist.Categorical(torch.ones(3)), components)


def test_components_without_the_moments_are_refused() -> None:
    freedom = torch.tensor([[3.0], [1.5], [0.5]]).expand(3, D)
    heavy = of_three(dist.StudentT(freedom, torch.randn(3, D), 1.0).to_event(1))
    with pytest.raises(ValueError, match="got 2 of 3 components without, the first at index 1"):
        reduce(heavy, 2)
    squashed = dist.TransformedDistribution(
        dist.Normal(torch.randn(3, D), 1.0).to_event(1), [dist.transforms.TanhTransform()]
    )
    with pytest.raises(ValueError, match="known means and variances"):
        reduce(of_three(squashed), 2)
    with pytest.raises(ValueError, match="got Dirichlet"):
        reduce(of_three(dist.Dirichlet(torch.ones(3, D))), 2, covariance="full")


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_points_are_refused(covariance: str) -> None:
    points = of_three(dist.Normal(torch.randn(3, D), 1e-160).to_event(1))
    with pytest.raises(ValueError, match="components with a variance"):
        reduce(points, 3, covariance=covariance)
    same = of_three(dist.Normal(torch.zeros(3, D), 1e-200).to_event(1))
    with pytest.raises(ValueError, match="units that vary"):
        reduce(same, 1, covariance=covariance)
