"""One contract for all priors: a line in the registry is all that a new one adds."""

from collections.abc import Callable
from functools import cache

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.diagnostics.effort import Effort
from pyrovae.models.fixed_density import Fixed
from pyrovae.models.priors import Bounds
from pyrovae.pairs.pair import Pair
from pyrovae.report import html
from pyrovae.training.objectives import elbo

LATENT, SHAPE, ROWS = 2, (2, 4), 12
DRAWS = 20_000


def encoder(latent: int = LATENT) -> nn.Module:
    return pv.mlp_encoder(SHAPE, latent, hidden=(6,))


def data(rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(rows, *SHAPE, generator=generator).round()


def pseudo_inputs(
    components: int, bounds: tuple[float, float] | None, latent: int = LATENT
) -> pv.VampPrior:
    return pv.VampPrior(encoder(latent), data(components), bounds=bounds)


PRIORS: dict[str, Callable[[int], nn.Module]] = {
    "standard normal": pv.StandardNormal,
    "mixture of one": lambda latent: pv.GaussianMixture(latent, 1),
    "mixture": lambda latent: pv.GaussianMixture(latent, 4),
    "VampPrior": lambda latent: pseudo_inputs(5, (0.0, 1.0), latent),
    "VampPrior of one": lambda latent: pseudo_inputs(1, None, latent),
    "VampPrior at random": lambda latent: pv.VampPrior.at_random(
        encoder(latent), data(), 5, bounds=(0.0, 1.0)
    ),
    "exemplars": lambda latent: pv.ExemplarPrior(encoder(latent), data()),
    "neighbours": lambda latent: pv.ExemplarPrior(encoder(latent), data(), neighbours=3),
    "subsample": lambda latent: pv.ExemplarPrior(encoder(latent), data(), subsample=6),
    "flow": lambda latent: pv.FlowPrior(latent, layers=2, hidden=(8,)),
}
EVALUATED = [name for name in PRIORS if name not in ("neighbours", "subsample")]  # as "exemplars"
PLAIN = ("standard normal", "mixture", "VampPrior", "exemplars", "flow")


def shaken(name: str, latent: int = LATENT) -> nn.Module:
    """A prior with random parameters, in evaluation mode."""
    torch.manual_seed(0)
    prior, size = PRIORS[name](latent), 0.1 if name == "flow" else 0.4
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += size * torch.randn_like(parameter)
    return prior.eval()


@cache
def grid(name: str) -> tuple[Tensor, Tensor]:
    """Points of the plane, and the density's mass in the cell around each.

    Sums over a grid converge faster than any power for normals. The flow has kinks, and needs finer
    cells, but no mass beyond 6 units.
    """
    half, number = (6.4, 401) if name == "flow" else (16.0, 161)
    line = torch.linspace(-half, half, number, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    with torch.no_grad():
        return points, shaken(name)().log_prob(points).exp() * (line[1] - line[0]) ** 2


def slack(name: str) -> float:
    """The error of the grid itself."""
    return 5e-3 if name == "flow" else 1e-6


# -- draws and density -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_shapes(name: str) -> None:
    density = shaken(name, 3)()
    assert (density.batch_shape, density.event_shape) == ((), (3,))
    assert density.sample(torch.Size([7])).shape == (7, 3)
    assert density.expand([4]).sample().shape == (4, 3)
    assert density.log_prob(torch.randn(5, 4, 3)).shape == (5, 4)


@pytest.mark.parametrize("name", EVALUATED)
def test_it_integrates_to_one(name: str) -> None:
    assert float(grid(name)[1].sum()) == pytest.approx(1.0, abs=slack(name))


@pytest.mark.parametrize("name", EVALUATED)
def test_draws_are_of_the_law_of_the_density(name: str) -> None:
    # Each of the means is within 4.5 standard errors of the integral: a right prior fails for 4 of
    # 100,000 seeds. The product tells a joint mixture from a product of mixtures.
    points, mass = grid(name)
    density = shaken(name)()
    z = density.sample(torch.Size([DRAWS]))
    statistics: list[Callable[[Tensor], Tensor]] = [
        lambda z: z[:, 0],
        lambda z: z[:, 1],
        lambda z: z[:, 0] * z[:, 1],
        lambda z: z.square().sum(1),
        lambda z: (z - 0.3).prod(1).tanh(),
        lambda z: density.log_prob(z).clamp(min=-40.0),
    ]
    with torch.no_grad():
        for statistic in statistics:
            observed, expected = statistic(z), (mass * statistic(points)).sum()
            error = 4.5 * float(observed.std()) / DRAWS**0.5
            assert float(observed.mean()) == pytest.approx(
                float(expected), abs=error + 4 * slack(name) + 1e-6
            )


# -- in a pair -------------------------------------------------------------------------------------


def in_a_pair(name: str, *, guide: nn.Module | None = None, seed: int = 0) -> pv.VAE:
    prior = shaken(name)
    torch.manual_seed(seed)
    own = getattr(prior, "encoder", None) or encoder()
    return pv.VAE(guide or own, pv.mlp_decoder(LATENT, SHAPE, "normal", hidden=(6,)), prior).eval()


@pytest.mark.parametrize("name", PRIORS)
def test_gradients_reach_every_parameter(name: str) -> None:
    vae = in_a_pair(name, guide=encoder()).train()
    elbo(vae.model, vae.guide, data(), torch.arange(ROWS)).backward()
    for parameter_name, parameter in vae.prior.named_parameters():
        if (name, parameter_name) != ("mixture of one", "logits"):  # one weight is always 1
            assert parameter.grad is not None and bool(parameter.grad.ne(0).any()), parameter_name


@pytest.mark.parametrize("name", PRIORS)
def test_it_learns_where_the_codes_are(name: str) -> None:
    vae, x = in_a_pair(name).train(), data()
    numbers = torch.arange(ROWS)
    with torch.no_grad():
        before = float(elbo(vae.eval().model, vae.guide, x, particles=50))
    run = pv.fit(
        vae.model,
        vae.guide,
        (x, numbers),
        validation=(x, numbers),
        epochs=10,
        batch_size=5,
        optimizer=pv.adam(0.02),
    )
    assert run.validation * ROWS > before


@pytest.mark.parametrize("name", PRIORS)
def test_a_pair_shows_it_as_it_is(name: str) -> None:
    vae, x = in_a_pair(name), data()
    z = torch.randn(ROWS, LATENT)
    with torch.no_grad():
        expected = vae.prior().log_prob(z)
        for batch in (x, (x, torch.arange(ROWS))):
            pair = Pair(vae.model, vae.guide)
            assert torch.allclose(pair.prior(batch).log_prob(z), expected)
            assert torch.allclose(pair.log_joint(batch, z)[1], expected)


class Wide(nn.Module):
    """A guide that does not look at the data and is wider than any posterior."""

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(len(x), LATENT), 3.0).to_event(1)


@pytest.mark.filterwarnings("ignore:For . of 2 data points k̂:UserWarning")  # the weights are noisy
@pytest.mark.parametrize("name", EVALUATED)
def test_log_evidence_is_the_integral(name: str) -> None:
    vae, x = in_a_pair(name, guide=Wide()), data(2)
    points, mass = grid(name)
    with torch.no_grad():
        log_p = vae.decoder(points.unsqueeze(1)).log_prob(x)
        exact = (log_p + mass.log().unsqueeze(1)).logsumexp(0)
    evidence = pv.log_evidence(vae.model, vae.guide, x, draws=5000)
    assert bool(
        ((evidence.values - exact).abs() <= 4 * evidence.standard_error + slack(name)).all()
    )


@pytest.mark.parametrize("name", PLAIN)
def test_nuts_finds_the_posterior(name: str) -> None:
    vae, x = in_a_pair(name), data(1)
    points, mass = grid(name)
    with torch.no_grad():
        log_p = vae.decoder(points.unsqueeze(1)).log_prob(x).squeeze(1)
        mean = (log_p + mass.log()).softmax(0) @ points
    torch.manual_seed(0)
    mcmc = MCMC(NUTS(vae.model, max_tree_depth=3), 80, 40, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"].squeeze(1)
    assert bool(z.isfinite().all())
    effective = torch.as_tensor(mcmc.diagnostics()["z"]["n_eff"]).flatten()
    error = 4 * z.std(0) / effective.clamp(max=len(z)).sqrt() + 10 * slack(name)
    assert bool(((z.mean(0) - mean).abs() <= error).all())


EFFORT = Effort(
    codes=60, evidence_rows=6, evidence_draws=20, export_rows=4, export_draws=4, pictures=4
)


@pytest.mark.filterwarnings("ignore:Fewer than .* effective:UserWarning")
@pytest.mark.parametrize("name", ["VampPrior", "exemplars"])  # tests/report has the others
def test_the_report_takes_it(name: str) -> None:
    vae, x = in_a_pair(name), data(60)
    diagnosis = pv.diagnose(
        vae.model, vae.guide, x[:30], held_out=x[30:50], validation=x[50:], effort=EFFORT
    )
    z = torch.randn(5, LATENT)
    assert torch.allclose(diagnosis.prior.log_prob(z), vae.prior().log_prob(z))
    assert diagnosis.training.marginal_kl is not None
    assert "</html>" in html.render(diagnosis, facts={})


@pytest.mark.parametrize("name", PRIORS)
def test_another_number_of_units_than_the_encoder_s_is_named(name: str) -> None:
    prior = PRIORS[name](3).train()
    vae = pv.VAE(encoder(2), pv.mlp_decoder(2, SHAPE, hidden=(6,)), prior)
    with pytest.raises(ValueError, match="the prior's event shape"):
        elbo(vae.model, vae.guide, data(), torch.arange(ROWS))


# -- of each kind ----------------------------------------------------------------------------------


def test_mixture_prior_needs_a_component() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pv.GaussianMixture(2, 0)


def test_flow_needs_units_to_couple() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        pv.FlowPrior(1)


@pytest.mark.parametrize("latent", [2, 3, 10])
def test_a_flow_starts_at_the_standard_normal_with_every_gradient(latent: int) -> None:
    prior, normal = pv.FlowPrior(latent), pv.StandardNormal(latent)()
    z = torch.randn(2000, latent)
    difference = prior().log_prob(z) - normal.log_prob(z)
    assert float(difference.detach().abs().mean()) < 0.01 * latent
    assert float(difference.detach().mean().abs()) < 1e-3 * latent
    prior().log_prob(2 * z + 1).sum().backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.ne(0).any()), name


def test_vamp_prior_is_the_aggregated_posterior_of_its_inputs() -> None:
    prior = pseudo_inputs(7, (0.0, 1.0))
    z = torch.randn(9, LATENT)
    encoded = prior.encoder(prior.inputs)
    assert torch.allclose(prior().log_prob(z), pv.AggregatedPosterior(encoded).log_prob(z))


def test_vamp_prior_of_one_is_the_posterior_of_its_input() -> None:
    prior, z = pseudo_inputs(1, None), torch.randn(9, LATENT)
    assert torch.allclose(prior().log_prob(z), prior.encoder(data(1)).log_prob(z))


def test_pseudo_inputs_keep_their_bounds_and_their_gradients() -> None:
    binary = torch.bernoulli(torch.full((30, *SHAPE), 0.3))  # every value at a bound
    prior = pv.VampPrior.from_data(encoder(), binary, 10, bounds=(0.0, 1.0))
    assert bool(((prior.inputs > 0) & (prior.inputs < 1)).all())
    assert torch.equal(prior.inputs.round(), pv.VampPrior.from_data(encoder(), binary, 10).inputs)
    prior().log_prob(torch.randn(4, LATENT)).sum().backward()
    assert bool(prior.raw.grad.ne(0).all())


def test_pseudo_inputs_at_random_are_like_the_data() -> None:
    like = 3 + torch.tensor([0.0, 0.1, 1.0, 5.0]) * torch.randn(200, 2, 4)
    prior = pv.VampPrior.at_random(encoder(), like, 5000)  # more than rows
    error = 4 * like.std(0) / 5000**0.5
    assert bool(((prior.inputs.mean(0) - like.mean(0)).abs() <= error + 1e-12).all())
    # The standard error of a normal's standard deviation is σ/√(2K).
    assert bool(((prior.inputs.std(0) - like.std(0)).abs() <= error / 2**0.5 + 1e-12).all())
    again = pv.VampPrior.at_random(encoder(), like, 5000)
    assert torch.equal(prior.inputs, again.inputs)
    other = pv.VampPrior.at_random(encoder(), like, 5000, seed=1)
    assert not torch.equal(prior.inputs, other.inputs)


@pytest.mark.float32
def test_pseudo_inputs_at_random_stay_within_bounds_with_live_gradients() -> None:
    like = torch.rand(50, *SHAPE).round()
    like[:, 0, 0] = 0.0  # an entry that is the same in all rows, at a bound
    prior = pv.VampPrior.at_random(encoder(), like, 400, bounds=(0.0, 1.0))
    assert bool(((prior.inputs > 0) & (prior.inputs < 1)).all())
    prior().log_prob(torch.randn(40, LATENT)).sum().backward()
    assert float(prior.raw.grad.ne(0).float().mean()) > 0.99  # the rest underflows in float32


STARTS = {
    "from_data": lambda x, bounds: pv.VampPrior.from_data(encoder(), x, 20, bounds=bounds),
    "at_random": lambda x, bounds: pv.VampPrior.at_random(encoder(), x, 20, bounds=bounds),
}


@pytest.mark.parametrize("start", STARTS)
def test_the_unit_of_an_entry_does_not_matter(start: str) -> None:
    # The pseudo-inputs of a·x + b are a·u + b, if each entry has its own bounds.
    x = torch.rand(30, *SHAPE)
    unit, shift = 10.0 ** torch.arange(-4.0, 4.0).view(SHAPE), torch.linspace(-5.0, 5.0, 4)
    prior = STARTS[start](unit * x + shift, (shift.expand(SHAPE), unit + shift))
    expected = unit * STARTS[start](x, (0.0, 1.0)).inputs + shift
    assert torch.allclose(prior.inputs, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", STARTS)
def test_an_entry_without_room_is_held_and_the_others_learn(start: str) -> None:
    x = torch.rand(30, *SHAPE) * torch.tensor([1.0, 1e4, 1.0, 0.0]) + 0.1
    low, high = x.amin(0), x.amax(0)
    prior = STARTS[start](x, (low, high))
    assert bool((prior.inputs[..., 3] == x[0, 0, 3]).all())
    assert bool(((prior.inputs > low) & (prior.inputs < high))[..., :3].all())
    (1e-3 * prior.inputs).square().sum().backward()
    assert bool(prior.raw.grad[..., :3].ne(0).all()) and bool(prior.raw.grad[..., 3].eq(0).all())


def test_bounds_of_each_entry_go_where_the_module_goes() -> None:
    x = 3 * torch.rand(30, *SHAPE)
    prior = pv.VampPrior(encoder(), x, bounds=(x.amin(0), 3.0))
    again = pv.VampPrior(encoder(), x / 2, bounds=(torch.zeros(SHAPE), 3.0))
    again.load_state_dict(prior.state_dict())
    assert torch.equal(again.inputs, prior.inputs)
    low, high = prior.float().bounds or (None, None)
    assert isinstance(low, Tensor) and low.dtype == prior.inputs.dtype == torch.float32
    assert high == 3.0 and pseudo_inputs(3, None).bounds is None


class Unshaped(nn.Module):
    """An encoder whose units are batch dimensions."""

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x.flatten(1)[:, :2], 1.0)


@pytest.mark.parametrize("make", [pv.VampPrior, pv.ExemplarPrior])
def test_rows_that_the_encoder_does_not_take_are_named(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"rows that the encoder takes; got shape \(3, 3\)"):
        make(encoder(), torch.rand(5, 3, 3))
    with pytest.raises(ValueError, match="to_event"):
        make(Unshaped(), data())


def test_bad_pseudo_inputs() -> None:
    with pytest.raises(ValueError, match="1 to 5 pseudo-inputs"):
        pv.VampPrior.from_data(encoder(), torch.rand(5, *SHAPE), 6)
    with pytest.raises(ValueError, match="1 to 5 pseudo-inputs"):
        pv.VampPrior.from_data(encoder(), torch.rand(5, *SHAPE), 0)
    with pytest.raises(ValueError, match="at least one pseudo-input"):
        pv.VampPrior(encoder(), torch.rand(0, *SHAPE))
    with pytest.raises(ValueError, match="at least one pseudo-input and two rows"):
        pv.VampPrior.at_random(encoder(), torch.rand(1, *SHAPE), 6)


def with_value(value: float) -> Tensor:
    rows = torch.full((6, *SHAPE), 0.5)
    rows[4, 1, 2] = value
    return rows


ROW = torch.arange(8.0).view(SHAPE)
BAD_VALUES: dict[str, tuple[Tensor, Bounds | None, str]] = {
    "bytes": (data().to(torch.uint8), None, r"floating point.*got torch\.uint8.*x\.float\(\)"),
    "NaN": (with_value(torch.nan), None, r"finite rows; got nan in row 4, entry \(1, 2\)"),
    "inf": (with_value(torch.inf), (0.0, 1.0), r"finite rows; got inf in row 4"),
    "above": (with_value(1.5), (0.0, 1.0), r"in \[0\.0, 1\.0\]; got 1\.5 in row 4, entry \(1, 2\)"),
    "below": (with_value(-9.0), (-ROW, ROW + 1), r"in \[-6\.0, 7\.0\]; got -9\.0 in row 4"),
    "other than held": (with_value(0.6), (ROW * 0 + 0.5, 0.5 + (ROW == 0)), r"in \[0\.5, 0\.5\]"),
    "all below": (data() - 9, (0.0, 1.0), r"in \[0\.0, 1\.0\]; got -[89]\.0 in row 0"),
    "reversed": (data(), (1.0, 0.0), r"lower one first; got 1\.0 and 0\.0 for entry \(0, 0\)"),
    "NaN bound": (data(), (ROW / 0, 9.0), r"finite bounds.*got nan and 9\.0 for entry \(0, 0\)"),
    "no upper bound": (data(), (0.0, torch.inf), r"finite bounds.*got 0\.0 and inf"),
    "no room": (
        torch.ones(6, *SHAPE),
        (1.0, 1.0),
        r"room between them.*got equal ones in all, 1\.0",
    ),
    "of other rows": (data(), (torch.zeros(3), 1.0), r"a row of shape \(2, 4\); got shapes \(3,\)"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_values_that_pseudo_inputs_cannot_have_are_named(case: str) -> None:
    rows, bounds, words = BAD_VALUES[case]
    for make in (
        lambda: pv.VampPrior(encoder(), rows, bounds=bounds),
        lambda: pv.VampPrior.from_data(encoder(), rows, 1, bounds=bounds),
        lambda: pv.VampPrior.at_random(encoder(), rows, 3, bounds=bounds),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_density_is_a_prior_too() -> None:
    mixture = shaken("mixture")()
    vae = in_a_pair("standard normal").with_prior(mixture)
    z = torch.randn(5, *mixture.event_shape)
    assert isinstance(vae.prior, Fixed)
    assert torch.equal(vae.prior().log_prob(z), mixture.log_prob(z))
    elbo(vae.model, vae.guide, data(), torch.arange(ROWS))
