"""Annealing against the exact log p(x), from both sides, with guides that are bad on purpose."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evidence.annealed import Annealing, Tuning, annealed_evidence, path_for, tune
from pyrovae.evidence.hmc import move
from pyrovae.evidence.importance import importance_evidence
from pyrovae.evidence.result import Evidence
from pyrovae.evidence.sandwich import sandwich_evidence
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.simulation import simulate
from pyrovae.randomness import seeded
from pyrovae.testing import LinearGaussian, linear_gaussian_vae

# A few draws are enough for what is tested here; that they are too few for a k̂ is said elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:(.|\n)*k̂:UserWarning")

SHORT = Annealing(temperatures=40, leapfrog=3)


def bad_pair(exact: LinearGaussian) -> Pair:
    vae = exact.vae(scale=0.5, shift=2.0)
    return Pair(vae.model, vae.guide)


def errors(result: Evidence, exact: LinearGaussian, x: Tensor) -> tuple[float, float]:
    """Mean of values − log p(x), and its standard error over data and chains."""
    error = result.values - exact.log_prob(x)
    return float(error.mean()), float(error.std()) / len(x) ** 0.5


def test_both_sides_meet_where_importance_sampling_is_lost() -> None:
    # D = 10, a guide with half the scales and means two standard deviations off.
    exact = linear_gaussian_vae(12, 10, noise=0.3)
    pair, chains = bad_pair(exact), 16
    annealing = Annealing(temperatures=600, leapfrog=3)
    both = sandwich_evidence(pair, torch.zeros(48, 12), chains=chains, annealing=annealing)
    below, error = errors(both.lower, exact, both.x)
    above, upper_error = errors(both.upper, exact, both.x)
    assert -0.1 < below < 4 * error
    assert -4 * upper_error < above < 0.1
    assert both.gap().value <= 0.1
    # the same number of evaluations of the likelihood: pilot, forwards, backwards
    evaluations = (8 + 2 * chains) * annealing.temperatures * (annealing.leapfrog + 1)
    with_weights = importance_evidence(pair, both.x[:8], draws=evaluations)
    assert float((with_weights.values - exact.log_prob(both.x[:8])).mean()) < -3.0


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_mean_weight_is_the_evidence(start: str) -> None:
    # One path of few temperatures, where neither side is tight: w and 1/w are still unbiased.
    exact = linear_gaussian_vae(4, 2)
    temperatures = 10 if start == "guide" else 60  # with fewer 1/w has no variance
    annealing = Annealing(  # type: ignore[arg-type]
        start=start, temperatures=temperatures, leapfrog=2, schedule="linear"
    )
    vae = exact.vae(scale=1.5, shift=0.5)
    both = sandwich_evidence(
        Pair(vae.model, vae.guide), torch.zeros(1000, 4), chains=4, annealing=annealing
    )
    truth = exact.log_prob(both.x)
    for ratio in ((both.lower.values - truth).exp(), (truth - both.upper.values).exp()):
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 1000**0.5
    assert errors(both.lower, exact, both.x)[0] < 0
    assert errors(both.upper, exact, both.x)[0] > 0


def test_gap_shrinks_with_the_number_of_temperatures() -> None:
    exact = linear_gaussian_vae(6, 4)
    gaps = [
        sandwich_evidence(
            bad_pair(exact),
            torch.zeros(160, 6),
            chains=4,
            annealing=Annealing(temperatures=t, leapfrog=3),
        ).gap()
        for t in (10, 80)
    ]
    assert gaps[0].value - 4 * gaps[0].standard_error > gaps[1].value


def test_rows_that_only_say_the_shape_may_hold_anything() -> None:
    exact = linear_gaussian_vae(6, 4)
    both = sandwich_evidence(
        bad_pair(exact),
        torch.full((4, 6), 1e3),
        chains=2,
        annealing=Annealing(temperatures=4, leapfrog=2),
    )
    assert both.x.isfinite().all()


def test_moves_leave_the_posterior_invariant() -> None:
    exact = linear_gaussian_vae(4, 2)
    x = exact.sample(3)
    path = path_for(bad_pair(exact), x, SHORT, None)
    posterior = exact.posterior(x)
    with seeded(3, "draws"):
        point = path.at(posterior.sample((4000,)), 1.0)
        for _ in range(3):
            point, probability = move(
                path, point, 1.0, step=torch.full((3,), 1.6), scale=posterior.stddev, leapfrog=2
            )
    z = (point.u - posterior.mean) / posterior.stddev
    assert 0.3 < float(probability.mean()) < 0.9  # coarse steps: rejection has to repair them
    assert float(z.mean(0).abs().max()) < 4.5 / 4000**0.5
    assert float((z.var(0) - 1).abs().max()) < 4.5 * (2 / 4000) ** 0.5


def test_pilot_reaches_the_requested_acceptance_and_finds_the_scales() -> None:
    exact = linear_gaussian_vae(4, 2)
    x = exact.sample(20)
    annealing = Annealing(temperatures=100, acceptance=0.7)
    pair = bad_pair(exact)
    result = annealed_evidence(pair, x, chains=8, annealing=annealing)
    assert result.acceptance is not None
    assert float(result.acceptance.mean()) == pytest.approx(0.7, abs=0.06)
    tuning: Tuning = tune(path_for(pair, x, annealing, None), annealing, seed=0, tick=lambda: None)
    ratio = tuning.scales[-1] / exact.posterior(x).stddev
    assert float(ratio.log().mean().abs()) < 0.2


def test_another_prior_and_a_mixture_prior_are_bracketed() -> None:
    # A mixture of two Gaussians over z makes p(x) a mixture of two Gaussians over x.
    exact = linear_gaussian_vae(4, 2)
    loc, scale = torch.tensor([[-2.0, 0.5], [1.5, -1.0]]), 0.6
    prior = pv.GaussianMixture(2, 2)
    with torch.no_grad():
        prior.loc.copy_(loc)
        prior.log_scale.fill_(torch.tensor(scale).log())
    covariance = scale**2 * exact.weight @ exact.weight.T + exact.noise**2 * torch.eye(4)
    components = dist.MultivariateNormal(loc @ exact.weight.T + exact.bias, covariance)
    truth = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components)
    own = exact.vae(scale=1.5).with_prior(prior)
    standard = exact.vae(scale=1.5)
    annealing = Annealing(temperatures=80, leapfrog=3)
    for pair, other in (
        (Pair(own.model, own.guide), None),
        (Pair(standard.model, standard.guide), prior()),
    ):
        both = sandwich_evidence(
            pair, torch.zeros(48, 4), chains=8, annealing=annealing, prior=other
        )
        for side in (both.lower, both.upper):
            error = side.values - truth.log_prob(both.x)
            assert abs(float(error.mean())) < 4 * float(error.std()) / 48**0.5 + 0.02
        assert both.gap().value < 0.1


def test_positive_codes_move_in_unconstrained_coordinates() -> None:
    # z ~ Exponential(1), x | z ~ Poisson(z): p(x) = 2^−(x+1), a geometric distribution.
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(torch.ones(len(x), 1)).to_event(1))
            pyro.sample("x", dist.Poisson(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros(len(x), 1), 1.0).to_event(1))

    x = torch.arange(8.0).unsqueeze(-1)
    result = pv.log_evidence(model, guide, x, method=Annealing(temperatures=60), draws=200)
    z = (result.values + (x[:, 0] + 1) * torch.tensor(2.0).log()) / result.standard_error
    assert float(z.square().sum()) < 32  # χ² with 8 degrees of freedom: false alarm 1e-4
    both = sandwich_evidence(Pair(model, guide), x, chains=4, annealing=SHORT)
    assert both.x.shape == (8, 1)
    assert both.gap().value < 1.0


def test_front_door_returns_both_sides() -> None:
    exact = linear_gaussian_vae(3, 1)
    vae, like = exact.vae(), torch.zeros(3, 3)
    both = pv.sandwich(vae.model, vae.guide, like=like, chains=2)
    quick = pv.sandwich(vae.model, vae.guide, like=like, annealing=SHORT, chains=2)
    assert torch.allclose(quick.lower.values, both.lower.values)
    assert both.lower.bound == "lower" and both.upper.bound == "upper"
    assert both.gap().bound == "upper"
    assert torch.allclose(both.lower.values, exact.log_prob(both.x))  # the guide is exact
    assert torch.allclose(both.upper.values, exact.log_prob(both.x))
    assert "over 3 simulated data points" in str(both)


def test_result_depends_on_seed_alone_and_leaves_no_trace() -> None:
    exact = linear_gaussian_vae(4, 2)
    vae, x = exact.vae(scale=1.5), exact.sample(70)  # more than one block
    state = torch.get_rng_state()
    results = [
        pv.log_evidence(vae.model, vae.guide, x, method=SHORT, draws=4, seed=s) for s in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert pyro.distributions.is_validation_enabled()
    assert torch.equal(results[0].values, results[1].values)
    assert not torch.equal(results[0].values, results[2].values)


def test_simulated_codes_are_draws_from_the_posterior_of_their_data() -> None:
    exact = linear_gaussian_vae(4, 2)
    (x,), z = simulate(bad_pair(exact), torch.zeros(4000, 4))
    posterior = exact.posterior(x)
    score = (z - posterior.mean) / posterior.stddev
    assert float(score.mean(0).abs().max()) < 4.5 / 4000**0.5
    assert float((score.var(0) - 1).abs().max()) < 4.5 * (2 / 4000) ** 0.5


def counts(total_is_given: bool) -> tuple[Callable[..., object], ...]:
    """Counts with one latent unit; their total is taken from the row, or an argument of its own."""
    weight = torch.tensor([2.0, -1.0, 0.5])

    def model(x: Tensor, total: Tensor | None = None) -> None:
        total = x.sum(-1) if total is None else total
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            mean = total.unsqueeze(-1) * (z * weight).softmax(-1)
            pyro.sample("x", dist.NegativeBinomial(2.0, logits=(mean / 2).log()).to_event(1), obs=x)

    def guide(x: Tensor, total: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.2).to_event(1))

    if total_is_given:
        return model, guide
    return (lambda x: model(x)), (lambda x: guide(x))


def test_totals_of_simulated_rows_are_held_or_their_rows_refused() -> None:
    total, like = torch.full((200,), 15.0), torch.full((200, 3), 5.0)
    for rows in (like, torch.ones(200, 3)):  # some rows simulated like the latter have no counts
        for call in (
            lambda x, pair: pv.sandwich(*pair, like=x, annealing=SHORT, chains=4),
            lambda x, pair: pv.calibrate(*pair, x, simulations=100),
        ):
            with pytest.raises(ValueError, match=r"not to depend on x itself.*model\(x, total\)"):
                call(rows, counts(total_is_given=False))
    model, guide = counts(total_is_given=True)
    both = pv.sandwich(model, guide, like=(like, total), annealing=SHORT, chains=4)
    x, simulated_total = both.x
    assert torch.equal(simulated_total, total) and not torch.equal(x.sum(-1), total)
    line = torch.linspace(-9.0, 9.0, 2001).unsqueeze(-1)
    shares = (line * torch.tensor([2.0, -1.0, 0.5])).softmax(-1)
    likelihood = dist.NegativeBinomial(2.0, logits=(15 * shares / 2).log()).to_event(1)
    joint = likelihood.log_prob(x.unsqueeze(1)) + dist.Normal(0.0, 1.0).log_prob(line[:, 0])
    truth = joint.logsumexp(1) + torch.tensor(18 / 2000).log()
    for ratio in ((both.lower.values - truth).exp(), (truth - both.upper.values).exp()):
        assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 200**0.5 < 0.5


@pytest.mark.parametrize("total", [3.0, 60.0])
def test_a_vae_of_counts_is_not_simulated(total: float) -> None:
    decoder = pv.mlp_decoder(2, (6,), "negative_binomial", hidden=(8,))
    vae = pv.VAE(pv.mlp_encoder((6,), 2, hidden=(8,)), decoder, pv.StandardNormal(2))
    x = torch.full((20, 6), total / 6).ceil()
    with pytest.raises(ValueError, match="as a row's total"):
        pv.sandwich(vae.model, vae.guide, like=x, chains=4)
    diagnosis = pv.diagnose(
        vae.model, vae.guide, x.repeat(3, 1), held_out=x, progress=False,
        effort=pv.Effort(
            codes=40, evidence_rows=4, evidence_draws=20, export_rows=2, export_draws=4, pictures=2,
            simulations=100, two_sample=20,
        ),
    )  # fmt: skip
    assert diagnosis.guide_check.calibration is None
    reason, *others = (
        concern
        for concern in diagnosis.concerns
        if concern.startswith("Simulation-based calibration could not")
    )
    assert not others and "as a row's total" in reason


class Decoder(nn.Module):
    """A decoder from a function of the code."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(self.function(z), 0.1).to_event(1)


def test_moves_that_are_never_accepted_are_an_error_in_words() -> None:
    exact = linear_gaussian_vae(2, 2)
    vae, x = exact.vae(), exact.sample(5)
    # constant but for a gradient that is not a number
    vae.decoder = Decoder(lambda z: 0 * (z - z).abs().sqrt())
    with pytest.raises(ValueError, match=r"moves to be accepted; got a share"):
        pv.log_evidence(vae.model, vae.guide, x, method=SHORT, draws=4)


def test_chains_of_some_data_that_hardly_move_are_named() -> None:
    result = Evidence(
        torch.zeros(3), torch.ones(3), torch.zeros(3), 8, acceptance=torch.tensor([0.8, 0.02, 0.7])
    )
    assert "For 1 of 3 data points fewer than 10% of the Hamiltonian moves" in str(result)


def test_a_guide_without_the_prior_s_support_is_refused() -> None:
    exact = linear_gaussian_vae(4, 2)
    vae, x = exact.vae(), exact.sample(3)

    def guide(rows: Tensor) -> None:
        with pyro.plate("data", len(rows)):
            pyro.sample("z", dist.Uniform(-torch.ones(len(rows), 2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"Annealing\(start='prior'\)"):
        pv.log_evidence(vae.model, guide, x, method="annealed")
    prior = Annealing(start="prior", temperatures=100)
    result = pv.log_evidence(vae.model, guide, x, method=prior, draws=32)
    assert float((result.values - exact.log_prob(x)).abs().max()) < 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperatures": 1},
        {"leapfrog": 0},
        {"acceptance": 1.0},
        {"start": "nowhere"},
        {"schedule": "cosine"},
    ],
)
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected .*got"):
        Annealing(**settings)  # type: ignore[arg-type]


def test_one_chain_is_too_few() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(4)
    with pytest.raises(ValueError, match="at least 2 chains"):
        pv.log_evidence(vae.model, vae.guide, x, method="annealed", draws=1)
    with pytest.raises(ValueError, match="at least 2 chains"):
        pv.sandwich(vae.model, vae.guide, like=x, chains=1)


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(2)
    for progress, shown in ((True, True), (None, False)):
        method = Annealing(temperatures=3, progress=progress)
        pv.log_evidence(vae.model, vae.guide, x, method=method, draws=2)
        assert ("annealing" in capsys.readouterr().err) == shown


@pytest.mark.float32
def test_networks_of_float32_can_have_a_density_of_float64() -> None:
    # As those of a run from the command line, whose rows may need float64.
    location, scale = torch.zeros(3).double(), torch.ones(3).double()
    decoder = pv.mlp_decoder(2, (3,), "normal", hidden=(), location=location, scale=scale)
    vae = pv.VAE(pv.mlp_encoder((3,), 2, hidden=(4,)), decoder, pv.StandardNormal(2))
    x = torch.randn(8, 3)
    weight, bias = (part.detach().double() for part in decoder.network[0].parameters())
    covariance = weight @ weight.T + torch.eye(3).double()  # σ is 1 before training
    truth = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
    result = pv.log_evidence(vae.model, vae.guide, x, method=SHORT, draws=64)
    assert bool(((result.values - truth).abs() < 4 * result.standard_error).all())
