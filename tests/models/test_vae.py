"""The VAE: an ELBO that is right for the whole data set, and parameters of its own."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pairs.pair import Pair
from pyrovae.testing import linear_gaussian_vae


def elbo(vae: pv.VAE, x: Tensor, size: int | None = None) -> float:
    return -Trace_ELBO().loss(vae.model, vae.guide, x, size=size)


def test_elbo_of_the_exact_guide_is_log_p() -> None:
    exact = linear_gaussian_vae()
    x = exact.sample(30)
    assert elbo(exact.vae(), x) == pytest.approx(float(exact.log_prob(x).sum()), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 10, 15])
def test_elbo_of_minibatches_is_unbiased_for_the_data_set(batch: int) -> None:
    # With the exact guide each minibatch's ELBO has no noise of its own, so the mean over a
    # partition into minibatches must be the full ELBO to rounding.
    exact = linear_gaussian_vae()
    x = exact.sample(30)
    parts = [elbo(exact.vae(), rows, size=30) for rows in x.split(batch)]
    assert sum(parts) / len(parts) == pytest.approx(float(exact.log_prob(x).sum()), rel=1e-12)


def test_elbo_of_minibatches_is_unbiased_under_an_inexact_guide() -> None:
    exact = linear_gaussian_vae()
    x, vae = exact.sample(12), exact.vae(scale=0.7, shift=0.5)
    parts = torch.tensor([elbo(vae, rows, size=12) for _ in range(400) for rows in x.split(3)])
    # The guide's KL to the exact posterior is known: ELBO = log p(x) − KL(q‖p(z|x)).
    q, p = vae.encoder(x), exact.posterior(x)
    expected = exact.log_prob(x) - torch.distributions.kl_divergence(q, p)
    means = parts.view(400, 4).mean(1)
    assert float(means.mean()) == pytest.approx(
        float(expected.sum()), abs=4 * float(means.std()) / 20
    )


def small(seed: int = 0, prior: nn.Module | None = None) -> pv.VAE:
    torch.manual_seed(seed)
    return pv.VAE(
        pv.mlp_encoder((4,), 2, hidden=(5,)),
        pv.mlp_decoder(2, (4,), hidden=(5,)),
        prior or pv.StandardNormal(2),
    )


def test_a_second_vae_keeps_its_own_parameters() -> None:
    x = torch.ones(3, 4)
    first, second = small(0), small(1)
    before = {name: value.clone() for name, value in second.state_dict().items()}
    first.model(x)
    second.model(x)
    first.guide(x)
    assert all(torch.equal(second.state_dict()[name], before[name]) for name in before)
    assert not torch.equal(first.encoder(x).mean, second.encoder(x).mean)


def test_plain_svi_trains_it() -> None:
    vae, x = small(), torch.bernoulli(torch.full((64, 4), 0.2))
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_another_prior_shares_the_networks() -> None:
    vae = small()
    prior = dist.Normal(torch.ones(2), 0.5).to_event(1)
    other = vae.with_prior(prior)
    assert other.decoder is vae.decoder
    x, z = torch.ones(3, 4), torch.randn(3, 2)
    _, log_prior = Pair(other.model, other.guide).log_joint(x, z)
    assert torch.allclose(log_prior, prior.log_prob(z))


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (pv.VAE(pv.mlp_encoder((4,), 3), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2)), "prior"),
        (pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (5,)), pv.StandardNormal(2)), "decoder"),
    ],
)
def test_modules_that_do_not_fit_are_named(vae: pv.VAE, message: str) -> None:
    vae = vae.double()
    with pytest.raises(ValueError, match=message):
        Trace_ELBO().loss(vae.model, vae.guide, torch.ones(3, 4))


def test_event_dimension_that_was_forgotten_is_named() -> None:
    class Forgotten(nn.Module):
        def forward(self, x: Tensor) -> dist.Distribution:
            return dist.Normal(x[:, :2], 1.0)

    vae = pv.VAE(Forgotten(), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2))
    with pytest.raises(ValueError, match="to_event"):
        vae.guide(torch.ones(3, 4))


def test_size_smaller_than_the_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="size"):
        small().model(torch.ones(3, 4), size=2)


# -- priors that do not fit, wherever the model is run --------------------------------------------

X = torch.bernoulli(torch.full((30, 4), 0.4, dtype=torch.float64))
TINY = pv.Effort(
    codes=40, evidence_rows=6, evidence_draws=20, export_rows=4, export_draws=4, pictures=4,
    simulations=0, two_sample=20, gap_rows=0, samples=30,
)  # fmt: skip
RUNS = {
    "model": lambda vae: vae.model(X),
    "log_evidence": lambda vae: pv.log_evidence(vae.model, vae.guide, X, draws=5),
    "by the prior": lambda vae: pv.log_evidence(vae.model, vae.guide, X, method="prior", draws=5),
    "sandwich": lambda vae: pv.sandwich(vae.model, vae.guide, like=X, chains=2),
    "diagnose": lambda vae: pv.diagnose(vae.model, vae.guide, X, held_out=X, effort=TINY),
    "calibrate": lambda vae: pv.calibrate(vae.model, vae.guide, X, simulations=100),
    "fit": lambda vae: pv.fit(vae.model, vae.guide, X, epochs=1),
}


class Returns(nn.Module):
    """A prior module that returns a fixed value."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> object:
        return self.value


UNFIT = {
    "another number of units": (
        lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1),
        r"prior's event shape \(3,\); got 2 latent units. Give encoder and prior the same",
    ),
    "no event dimension": (
        lambda: dist.Normal(torch.zeros(2), 1.0),
        r"batch shape \(\) and event shape \(D,\); got \(2,\) and \(\).*to_event\(1\)",
    ),
    "two event dimensions": (
        lambda: dist.Normal(torch.zeros(1, 2), 1.0).to_event(2),
        r"event shape \(D,\); got \(\) and \(1, 2\)",
    ),
    "several densities": (
        lambda: dist.Normal(torch.zeros(5, 2), 1.0).to_event(1),
        r"batch shape \(\) .*; got \(5,\) and \(2,\)",
    ),
    "no distribution": (
        lambda: Returns(torch.zeros(2)),
        r"prior to return a distribution of pyro\.distributions; got torch\.Tensor",
    ),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", UNFIT)
def test_a_prior_that_does_not_fit_is_named(case: str, run: str) -> None:
    make, message = UNFIT[case]
    with pytest.raises(ValueError, match=message):
        RUNS[run](small().with_prior(make()))


def test_other_failures_of_a_decoder_are_its_own() -> None:
    vae = small()
    vae.decoder = nn.Linear(7, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vae.model(X)


def test_a_prior_is_a_module_a_density_or_what_was_found() -> None:
    vae = small()
    held_out = pv.encode(vae.guide, X[:10])
    ex_post_prior = pv.fit_ex_post_prior(
        pv.aggregate(vae.guide, X), held_out=held_out, progress=False
    )
    z = torch.randn(7, 2)
    for prior in (ex_post_prior, ex_post_prior.distribution):
        other = vae.with_prior(prior).prior()
        assert torch.equal(other.log_prob(z), ex_post_prior.distribution.log_prob(z))
        other_vae = pv.VAE(vae.encoder, vae.decoder, prior)
        assert torch.equal(other_vae.prior().log_prob(z), ex_post_prior.distribution.log_prob(z))
    assert vae.with_prior(vae.prior).prior is vae.prior


@pytest.mark.parametrize("prior", [None, 3, torch.zeros(2), torch.distributions.Normal(0.0, 1.0)])
def test_what_is_no_prior_is_refused_at_once(prior: object) -> None:
    kind = type(prior).__name__
    with pytest.raises(ValueError, match=f"expected a prior that is a module.*; got .*{kind}"):
        small().with_prior(prior)
    with pytest.raises(ValueError, match=f"expected a prior that is a module.*; got .*{kind}"):
        pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), prior)


def test_rows_of_another_dtype_are_named() -> None:
    with pytest.raises(ValueError, match=r"torch.float64; got torch.uint8.*x.to\(torch.float"):
        small().guide(X.to(torch.uint8))
    vae = small()
    vae.encoder = nn.Linear(7, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vae.guide(X)


class OfTorch(nn.Module):
    """Returns one of torch's distributions, which Pyro can't sample from."""

    def forward(self, x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(x[:, :2], 1.0), 1)


DOORS = {
    "guide": lambda vae: vae.guide(X),
    "encode": lambda vae: pv.encode(vae.guide, X),
    "vamp": lambda vae: pv.VampPrior(vae.encoder, X[:3]),
    **RUNS,
}


@pytest.mark.parametrize("door", [name for name in DOORS if name not in ("model", "by the prior")])
@pytest.mark.parametrize("kind", ["Tensor", "Independent"])
def test_a_network_that_returns_no_distribution_is_named(kind: str, door: str) -> None:
    vae = small()
    vae.encoder = nn.Linear(4, 4) if kind == "Tensor" else OfTorch()
    with pytest.raises(
        pv.InputError, match=f"encoder to return a distribution of.*{kind}"
    ) as caught:
        DOORS[door](vae)
    assert "\n" not in str(caught.value)  # not the shapes that Pyro appends


@pytest.mark.parametrize("door", RUNS)
def test_a_decoder_that_returns_no_distribution_is_named(door: str) -> None:
    vae = small()
    vae.decoder = nn.Linear(2, 4)
    with pytest.raises(pv.InputError, match=r"decoder to return a distribution of.*Tensor"):
        DOORS[door](vae)


def test_the_remedy_for_a_network_works() -> None:
    vae = small()
    vae.encoder = pv.models.networks.NormalEncoder(nn.Linear(4, 4))
    assert pv.encode(vae.guide, X).event_shape == (2,)


def test_a_vae_encodes_decodes_samples_and_reconstructs() -> None:
    exact = linear_gaussian_vae(data_dim=5, latent=2)
    vae, x = exact.vae(), exact.sample(50)
    assert torch.equal(vae.encode(x).mean, pv.encode(vae.guide, x).mean)
    z = torch.randn(7, 2)
    assert torch.equal(vae.decode(z).mean, vae.decoder(z).mean)
    decoded = vae.decode(vae.encode(x).mean).mean
    assert torch.allclose(vae.reconstruct(x, batch_size=8), decoded, rtol=1e-12, atol=1e-12)
    assert not vae.decode(z).mean.requires_grad


def test_samples_of_a_vae_follow_its_model() -> None:
    exact = linear_gaussian_vae(data_dim=3, latent=2)
    vae, n = exact.vae(), 20_000
    state = torch.get_rng_state()
    rows = vae.sample(n, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rows, vae.sample(n, seed=1)) and not torch.equal(rows, vae.sample(n, seed=2))
    marginal = exact.evidence()
    error = marginal.variance.sqrt() / n**0.5
    assert bool(((rows.mean(0) - marginal.mean).abs() < 4.5 * error).all())
    spread = (rows.var(0) / marginal.variance - 1).abs()
    assert bool((spread < 4.5 * (2 / n) ** 0.5).all())


def test_a_decoder_of_counts_needs_the_totals() -> None:
    vae = pv.VAE(
        pv.mlp_encoder((6,), 2), pv.mlp_decoder(2, (6,), "negative_binomial"), pv.StandardNormal(2)
    )
    counts = torch.poisson(torch.full((20, 6), 4.0))
    with pytest.raises(pv.InputError, match="expected total= for this decoder; got none"):
        vae.decode(torch.zeros(3, 2))
    total = torch.tensor([10.0, 100.0, 1000.0])
    mean = vae.decode(torch.zeros(3, 2), total=total).mean
    assert torch.allclose(mean.sum(-1), total)
    assert torch.allclose(vae.reconstruct(counts).sum(1), counts.sum(1))
    assert vae.sample(3, total=total).shape == (3, 6)
    plain = linear_gaussian_vae(data_dim=3, latent=2).vae()
    with pytest.raises(pv.InputError, match="expected no total= for this decoder"):
        plain.decode(torch.zeros(3, 2), total=total)


def test_what_a_vae_reconstructs_may_have_row_numbers_with_it() -> None:
    exact = linear_gaussian_vae(data_dim=3, latent=2)
    vae, x = exact.vae(), exact.sample(9)
    assert torch.equal(vae.reconstruct((x, torch.arange(9))), vae.reconstruct(x))


# -- on the way from one row to another -----------------------------------------------------------


def test_with_a_linear_decoder_an_interpolation_is_a_line_between_reconstructions() -> None:
    exact = linear_gaussian_vae(data_dim=5, latent=2)
    vae, x = exact.vae(), exact.sample(8)
    rows = vae.interpolate(x[:4], x[4:], steps=5)
    ends = vae.reconstruct(x)
    share = torch.linspace(0, 1, 5).view(5, 1)
    line = torch.lerp(ends[:4].unsqueeze(1), ends[4:].unsqueeze(1), share)
    torch.testing.assert_close(rows, line)


def test_with_a_linear_decoder_a_traversal_adds_a_column_of_its_weights() -> None:
    exact = linear_gaussian_vae(data_dim=5, latent=3)
    vae, z, values = exact.vae(), torch.randn(4, 3), torch.linspace(-3, 3, 7)
    rows = vae.traverse(z, 1, values)
    change = (values - z[:, 1:2]).unsqueeze(-1) * exact.weight[:, 1]
    torch.testing.assert_close(rows, vae.decode(z).mean.unsqueeze(1) + change)
    assert torch.equal(vae.traverse(z, -2, values), rows)


def test_of_counts_the_totals_go_along() -> None:
    vae = pv.VAE(
        pv.mlp_encoder((6,), 2), pv.mlp_decoder(2, (6,), "negative_binomial"), pv.StandardNormal(2)
    )
    counts = torch.poisson(torch.tensor([[4.0], [40.0]]).expand(2, 6))
    rows = vae.interpolate(counts[:1], counts[1:], steps=3)
    ends = counts.sum(1)
    torch.testing.assert_close(rows.sum(-1)[0], torch.stack([ends[0], ends.mean(), ends[1]]))
    moved = vae.traverse(torch.zeros(2, 2), 0, torch.zeros(3), total=ends)
    torch.testing.assert_close(moved.sum(-1), ends.unsqueeze(1).expand(2, 3))


def test_an_interpolation_and_a_traversal_say_what_they_need() -> None:
    vae = small()
    with pytest.raises(pv.InputError, match="expected at least 2 steps"):
        vae.interpolate(X[:1], X[1:2], steps=1)
    with pytest.raises(pv.InputError, match="as many rows at the end as at the start; got 3 and 2"):
        vae.interpolate(X[:2], X[2:5])
    for unit in (2, -3):
        with pytest.raises(pv.InputError, match=rf"one of their D units; got .* unit {unit}"):
            vae.traverse(torch.zeros(1, 2), unit, torch.zeros(3))
    vae.decoder = pv.mlp_decoder(2, (4,), "categorical", categories=3)
    for ask in (vae.reconstruct, lambda x: vae.interpolate(x, x)):
        with pytest.raises(pv.InputError, match="expected a likelihood that has a mean"):
            ask(X)


def test_codes_of_another_width_or_dtype_are_one_sentence() -> None:
    vae = small()
    for z in (torch.zeros(3, 5), torch.zeros(7)):
        with pytest.raises(pv.InputError, match=r"codes of shape \(S, 2\).*; got \((3, 5|7,)\)"):
            vae.decode(z)
    with pytest.raises(pv.InputError, match=r"dtype torch.float64; got torch.float32.*z\.to\("):
        vae.decode(torch.zeros(3, 2, dtype=torch.float32))
    vae.decoder = nn.Linear(7, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vae.decode(torch.zeros(3, 2))
