"""log p(x) by importance sampling against the exact one of the linear-Gaussian VAE."""

import inspect
import math
from dataclasses import replace
from functools import partial
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evidence.importance import importance_evidence
from pyrovae.evidence.pareto_k import smooth
from pyrovae.evidence.result import Evidence, summarise
from pyrovae.pairs import Pair, Weighted, weigh
from pyrovae.testing import linear_gaussian_vae

importance = partial(pv.log_evidence, method="importance")

# A few draws are enough for what is tested here; that they are too few for a k̂ is said elsewhere.
FEW_DRAWS = pytest.mark.filterwarnings("ignore:(.|\n)*k̂ is not known:UserWarning")


def test_exact_guide_gives_exact_evidence() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(20)
    result = importance(vae.model, vae.guide, x, draws=3)
    assert torch.allclose(result.values, exact.log_prob(x), atol=1e-10)
    assert float(result.standard_error.max()) < 1e-10


def test_wide_guide_is_right_to_its_standard_error() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5, shift=0.3), exact.sample(400)
    result = importance(vae.model, vae.guide, x, draws=2000)
    z = (result.values - exact.log_prob(x)) / result.standard_error
    # 400 independent z-scores: their mean has standard error 0.05, their sd 0.035; 4 of each.
    assert abs(float(z.mean())) < 0.2
    assert float(z.std()) == pytest.approx(1.0, abs=0.15)


@FEW_DRAWS
def test_bound_holds_in_expectation_and_tightens() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5, shift=0.5), exact.sample(3000)
    bounds = [importance(vae.model, vae.guide, x, draws=k) for k in (2, 8)]
    truth = float(exact.log_prob(x).mean())
    gaps = [truth - float(bound.values.mean()) for bound in bounds]
    gap_errors = [float((bound.values - exact.log_prob(x)).std()) / 3000**0.5 for bound in bounds]
    assert gaps[0] > 4 * gap_errors[0]
    assert gaps[1] > 4 * gap_errors[1]
    assert gaps[0] > 2 * gaps[1]


@FEW_DRAWS
def test_narrow_guide_is_flagged() -> None:
    exact = linear_gaussian_vae(8, 4)
    x = exact.sample(50)
    narrow, good = exact.vae(scale=0.25), exact.vae(scale=1.2)
    with pytest.warns(UserWarning, match=r"of 50 data points k̂ > 0.67.*the few largest"):
        flagged = importance(narrow.model, narrow.guide, x, draws=1000).pareto_k > 0.7
    passed = importance(good.model, good.guide, x, draws=1000).pareto_k < 0.7
    assert float(flagged.double().mean()) > 0.9
    assert bool(passed.all())


@FEW_DRAWS
def test_result_depends_on_seed_and_data_alone() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5), exact.sample(40)
    before = torch.get_rng_state()
    whole = importance(vae.model, vae.guide, x, draws=10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = importance(vae.model, vae.guide, x.numpy(), draws=10, seed=1)
    other = importance(vae.model, vae.guide, x, draws=10, seed=2)
    assert torch.equal(whole.values, again.values)
    assert not torch.equal(whole.values, other.values)


def test_rows_scored_in_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5), exact.sample(20)
    whole = importance(vae.model, vae.guide, x, draws=50)
    monkeypatch.setattr("pyrovae.pairs.weighing.ROWS", 40)
    chunked = importance(vae.model, vae.guide, x, draws=50)
    assert torch.allclose(whole.values, chunked.values, rtol=1e-12)


def test_another_prior_takes_the_place_of_the_models_own() -> None:
    # p(z) = N(m, s²I) makes p(x) = N(Wm + b, s²WWᵀ + noise²I).
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.3), exact.sample(300)
    prior = dist.Normal(torch.tensor([0.2, -0.1]), 0.8).to_event(1)
    covariance = 0.64 * exact.weight @ exact.weight.T + exact.noise**2 * torch.eye(6)
    truth = dist.MultivariateNormal(exact.weight @ prior.mean + exact.bias, covariance)
    result = importance(vae.model, vae.guide, x, draws=2000, prior=prior)
    z = (result.values - truth.log_prob(x)) / result.standard_error
    assert abs(float(z.mean())) < 4 / 300**0.5


def test_plain_monte_carlo_over_the_prior_agrees() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(shift=9.0), exact.sample(200)  # the guide is not used
    with pytest.warns(UserWarning, match=r"k̂ > 0\."):
        result = pv.log_evidence(vae.model, vae.guide, x, method="prior", draws=5000)
    usable = result.pareto_k < 0.7
    z = ((result.values - exact.log_prob(x)) / result.standard_error)[usable]
    assert int(usable.sum()) > 150
    assert abs(float(z.mean())) < 4 / 150**0.5


def test_smoothing_lowers_the_error_of_heavy_tails() -> None:
    exact = linear_gaussian_vae(8, 4)
    vae, x = exact.vae(scale=0.75), exact.sample(400)
    pair = Pair(vae.model, vae.guide)
    result = importance_evidence(pair, x, draws=500)
    assert result.smoothed is not None
    raw, smoothed = (v - exact.log_prob(x) for v in (result.values, result.smoothed))
    assert float(smoothed.square().mean()) < float(raw.square().mean())
    # and against arviz's unnormalised smoothed weights, datum by datum
    has_psislw = hasattr(az, "psislw")  # with normalize= from 0.21 until 1.0
    if has_psislw and "normalize" in inspect.signature(az.psislw).parameters:
        weights = torch.randn(3, 200) * 2
        direct = [torch.as_tensor(az.psislw(w.numpy(), normalize=False)[0]) for w in weights]
        expected = torch.stack([d.logsumexp(0) for d in direct]) - math.log(200)
        assert torch.allclose(smooth(weights)[0], expected, rtol=1e-12)


def test_one_data_point_s_weights_do_not_touch_another_s() -> None:
    weights = torch.randn(5, 300)
    weights[0] *= 30
    together, alone = summarise(weights), summarise(weights[1:])
    for field in ("values", "standard_error", "pareto_k", "smoothed"):
        assert torch.equal(getattr(together, field)[1:], getattr(alone, field))


def test_thousands_of_draws_are_held_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.3), exact.sample(20)
    block_sizes: list[int] = []

    def recorded(pair: Pair, rows: Tensor, draws: int, **rest: object) -> Weighted:
        block_sizes.append(len(rows) * draws)
        return weigh(pair, rows, draws, **rest)

    monkeypatch.setattr("pyrovae.evidence.importance.weigh", recorded)
    result = importance(vae.model, vae.guide, x, draws=20_000)
    assert max(block_sizes) <= 16 * 1024
    assert sum(block_sizes) == 20 * 20_000
    z = (result.values - exact.log_prob(x)) / result.standard_error
    assert float(z.square().sum()) < 55  # χ² with 20 degrees of freedom: false alarm below 1e-4


class Box(nn.Module):
    """A guide that is uniform on a box of half width ``width`` around ``loc``."""

    def __init__(self, loc: float, width: float) -> None:
        super().__init__()
        self.loc, self.width = loc, width

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        loc = torch.full((len(x), 2), self.loc)
        return dist.Uniform(loc - self.width, loc + self.width).to_event(1)


def test_a_guide_whose_support_misses_the_posterior_is_named() -> None:
    exact = linear_gaussian_vae()
    x = exact.sample(10)
    vae = exact.vae()
    vae.encoder = Box(0.0, 0.5)
    with pytest.warns(UserWarning, match="support leaves out .* of the prior's draws"):
        importance(vae.model, vae.guide, x, draws=200)


@FEW_DRAWS
def test_draws_without_any_weight_are_not_hidden_in_a_mean() -> None:
    weights = torch.randn(3, 100)
    weights[1] = -math.inf
    result = summarise(weights)
    assert float(result.values[1]) == -math.inf
    assert float(result.standard_error[1]) == math.inf
    assert result.mean().value == -math.inf
    assert "For 1 of 3 data points no draw has any weight" in str(result)
    assert torch.isfinite(result.values[[0, 2]]).all()
    weights[2, 5] = math.nan
    with pytest.raises(ValueError, match=r"NaN .* in row 2"):
        summarise(weights)


def test_a_latent_site_of_the_wrong_shape_is_named() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(4)

    def guide(rows: torch.Tensor) -> None:
        with pyro.plate("data", len(rows)):
            pyro.sample("z", dist.Normal(torch.zeros(len(rows)), 1.0))

    with pytest.raises(ValueError, match=r"codes of shape .* at the model's site 'z'"):
        importance(vae.model, guide, x)


def test_mean_and_paired_difference() -> None:
    exact = linear_gaussian_vae()
    x = exact.sample(33)  # not a multiple of the block of data points
    good = exact.vae()
    one = importance(good.model, good.guide, x, draws=5)
    assert one.mean().value == pytest.approx(float(exact.log_prob(x).mean()))
    assert one.mean().bound == "lower"
    assert one.minus(one).value == 0.0
    with pytest.raises(ValueError, match="same data"):
        one.minus(importance(good.model, good.guide, x[:4], draws=5))
    numbered = replace(one, rows=torch.arange(33))
    some, others = (
        numbered.subset(torch.tensor([4, 9, 2])),
        numbered.subset(torch.tensor([7, 2, 4])),
    )
    change = some.minus(others)
    assert (change.value, change.size) == (0.0, 2)
    with pytest.raises(ValueError, match="rows in common; got none"):
        some.minus(others.subset(torch.tensor([0])))


def test_bad_input() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(4)
    with pytest.raises(ValueError, match="at least 2 draws"):
        importance(vae.model, vae.guide, x, draws=1)
    with pytest.raises(ValueError, match="'guess'"):
        pv.log_evidence(vae.model, vae.guide, x, method="guess")  # type: ignore[arg-type]
    with pytest.raises(pv.InputError, match=r"use pyrovae\.sandwich\(model, guide, like=data\)"):
        pv.log_evidence(vae.model, vae.guide, x, method="sandwich")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["importance", "prior", "annealed"])
@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), r"got \(\) and \(3,\)"),
        (dist.Normal(torch.zeros(2), 1.0), r"got \(2,\) and \(\).*to_event"),
        (dist.Normal(torch.zeros(4, 2), 1.0).to_event(1), r"got \(4,\) and \(2,\)"),
        (3.0, r"expected a distribution as prior=, a module .*; got float"),
    ],
)
def test_a_prior_of_another_shape_is_named(method: str, prior: object, message: str) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(4)
    with pytest.raises(ValueError, match=message):
        pv.log_evidence(vae.model, vae.guide, x, method=method, draws=4, prior=prior)
    with pytest.raises(ValueError, match=message):
        pv.sandwich(vae.model, vae.guide, like=x, chains=4, prior=prior)  # type: ignore[arg-type]
    one = dist.Normal(torch.zeros(1, 2), 1.0).to_event(1)  # as a diagnosis has it
    assert importance(vae.model, vae.guide, x, draws=4, prior=one).values.isfinite().all()


def test_a_prior_of_another_shape_is_named_in_a_diagnosis() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(40)
    prior = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"event shape \(2,\), as many.*got \(\) and \(3,\)"):
        pv.diagnose(vae.model, vae.guide, x, held_out=x, prior=prior)


# -- what can't be told ----------------------------------------------------------------------------


def test_the_limit_of_k_depends_on_the_number_of_draws() -> None:
    weights = torch.randn(400, 100) * 1.2  # k̂ around 0.5
    few, many = summarise(weights), replace(summarise(weights), draws=10_000)
    assert few.k_limit == pytest.approx(0.5) and many.k_limit == 0.7
    assert int(few.unresolved.sum()) > int(many.unresolved.sum())
    assert any("k̂ > 0.5" in concern for concern in few.concerns)


@pytest.mark.parametrize("draws", [2, 5, 24])
def test_an_unknown_k_is_a_concern(draws: int) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=0.2, shift=3.0), exact.sample(40)
    with pytest.warns(UserWarning, match="k̂ is not known.*Take more draws"):
        result = importance(vae.model, vae.guide, x, draws=draws)
    assert bool(result.unresolved.all())
    with pytest.warns(UserWarning, match="k̂ > "):  # the remedy: now it is known, and bad
        importance(vae.model, vae.guide, x, draws=200)


def test_equal_weights_need_no_k() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(20)
    result = importance(vae.model, vae.guide, x, draws=5)  # no warning: the guide is exact
    assert not result.unresolved.any()


@pytest.mark.parametrize("draws", [200, 1000, 5000])
def test_smoothing_is_right_where_most_weights_are_zero(draws: int) -> None:
    width = 0.02
    x = torch.linspace(-2, 2, 50)[:, None]
    z = x + torch.randn(50, draws)
    inside = (z - x).abs() < width
    log_weights = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(x, 1.0).log_prob(z)
    log_weights = torch.where(inside, log_weights - math.log(2 * width), -math.inf)
    result = summarise(log_weights)
    assert result.smoothed is not None
    usable = ~result.unresolved
    error = (result.smoothed - result.values).abs()[result.values.isfinite()]
    assert float(error.max()) < 1e-3  # weights that are nearly equal, or none
    assert bool(usable.all()) == (draws == 5000)  # 80 weighted draws; 16 or 3 are too few to tell


@pytest.mark.parametrize("row", [3, 40])
def test_a_weight_that_is_no_number_is_named_by_its_row(row: int) -> None:
    x = torch.randn(60, 2)

    def model(a: Tensor) -> None:
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(a), 2), 1.0).to_event(1))
            broken = torch.where((a == x[row]).all(1), math.inf, 0.0)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=a)
            pyro.factor("broken", broken)

    def guide(a: Tensor) -> None:
        with pyro.plate("data", len(a)):
            pyro.sample("z", dist.Normal(a / 2, 0.7).to_event(1))

    with pytest.raises(pv.InputError, match=rf"in row {row} \(counted from 0\)"):
        importance(model, guide, x, draws=30)


def test_an_impossible_row_makes_the_mean_untold_and_is_named() -> None:
    values = torch.randn(30)
    values[7] = -math.inf
    zeros = torch.zeros(30)
    base = Evidence(values, zeros, zeros, 100)
    for result in (base.mean(), base.minus(replace(base, values=zeros)), base.minus(base)):
        assert result.unresolved == "log p(x) is infinite in row 7"
        assert result.standard_error == math.inf
    numbered = replace(base, rows=torch.arange(100, 130))
    assert "row 107" in numbered.mean().unresolved and "row 107" in numbered.concerns[0]
    assert "+∞, in row 7" in replace(base, values=-values).concerns[0]


def test_a_prior_is_given_as_a_vae_takes_it() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5), exact.sample(6)
    density = dist.Normal(torch.zeros(2), 1.5).to_event(1)
    result = pv.fit_ex_post_prior(
        pv.aggregate(vae.guide, exact.sample(60)),
        held_out=pv.encode(vae.guide, exact.sample(40)),
        candidates=[pv.Inflated(0.1)],
    )
    module = pv.VAE(vae.encoder, vae.decoder, density).prior
    for one, other in ((density, module), (result, result.distribution)):
        values = [
            pv.log_evidence(vae.model, vae.guide, x, method="importance", draws=1000, prior=prior)
            for prior in (one, other)
        ]
        assert torch.equal(values[0].values, values[1].values)


class Mode(torch.nn.Module):
    """A prior that is another one in training."""

    def forward(self) -> dist.Distribution:
        return dist.Normal(torch.zeros(2), 3.0 if self.training else 1.5).to_event(1)


def test_a_prior_that_is_a_module_is_measured_as_the_pair_is() -> None:
    exact = linear_gaussian_vae()
    vae, x, module = exact.vae(scale=1.5), exact.sample(6), Mode()
    density = dist.Normal(torch.zeros(2), 1.5).to_event(1)
    by_module, by_density = (
        pv.log_evidence(vae.model, vae.guide, x, method="importance", prior=prior)
        for prior in (module, density)
    )
    assert torch.equal(by_module.values, by_density.values)
    assert module.training


@pytest.mark.parametrize(
    "method", ["auto", "importance", "prior", "refined", pv.Annealing(temperatures=5)], ids=str
)
def test_progress_is_shown_where_it_is_asked_for_and_all_rows_are_counted(
    method: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.2), exact.sample(5)
    for shown in (True, False):
        pv.log_evidence(
            vae.model, vae.guide, x, method=method, draws=10, progress=shown, warn=False
        )
        said = capsys.readouterr()
        assert ("100 %" in said.err) == shown and not said.out


def test_a_warning_is_left_to_the_result_if_it_is_not_wanted() -> None:
    exact = linear_gaussian_vae(8, 4)
    vae, x = exact.vae(scale=0.25), exact.sample(10)
    result = importance(vae.model, vae.guide, x, draws=1000, warn=False)
    with pytest.warns(UserWarning) as said:
        importance(vae.model, vae.guide, x, draws=1000)
    assert [str(warning.message) for warning in said] == ["\n".join(result.concerns)]
