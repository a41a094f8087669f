"""Two latent layers against their exact answers: log p(x), the top latent, and both as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence
from two_layers import INNER, TOP, Z2, X, two_layers

import pyrovae as pv
from pyrovae.diagnostics.draws import draw_codes
from pyrovae.estimates import two_stage_mean
from pyrovae.evidence.annealed import Annealing
from pyrovae.evidence.importance import compare_priors
from pyrovae.ex_post.candidates import MOMENT_DRAWS, with_normals
from pyrovae.mixture.divergence import divergence
from pyrovae.models.likelihoods import NegativeBinomialDecoder
from pyrovae.pairs import Pair, measuring
from pyrovae.pairs.joint_sites import Ancestral
from pyrovae.randomness import seeded
from pyrovae.report.html import render
from pyrovae.training.objectives import elbo

BOTH = ("z2", "z1")
ROWS = 10
EXACT = two_layers()
DATA = EXACT.sample(ROWS)


def brute_force(components: dist.Distribution, z: Tensor) -> Tensor:
    """log density of an equally weighted mixture, computed in one go."""
    return components.log_prob(z.unsqueeze(-2)).logsumexp(-1) - math.log(ROWS)


# -- log p(x) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 50])
def test_the_elbo_of_the_exact_guide_is_log_p(size: int | None) -> None:
    pair = EXACT.pair()
    elbo = -Trace_ELBO().loss(pair.model, pair.guide, DATA, size=size)
    expected = float(EXACT.log_prob(DATA).sum()) * (1 if size is None else size / ROWS)
    assert elbo == pytest.approx(expected, rel=1e-12)


def test_the_objective_of_fit_is_log_p_less_the_divergence_of_each_layer() -> None:
    other, exact = EXACT.pair(widen=1.3, shift=0.2), EXACT.pair()
    z2 = torch.zeros(ROWS, TOP)  # any value does: it shifts both inner posteriors alike
    lost = kl_divergence(other.encoder(DATA), exact.encoder(DATA))
    lost = lost + kl_divergence(other.inner_encoder(DATA, z2), exact.inner_encoder(DATA, z2))
    expected = float((EXACT.log_prob(DATA) - lost).mean())
    rows = DATA.repeat(500, 1)
    values = torch.stack([elbo(other.model, other.guide, rows) for _ in range(30)]) / len(rows)
    assert abs(float(values.mean()) - expected) < 4.5 * float(values.std()) / math.sqrt(30)


@pytest.mark.parametrize("site", ["z2", "z1", BOTH, ("z1", "z2")])
def test_importance_under_the_exact_guide_is_exact(site: Any) -> None:
    pair = EXACT.pair()
    evidence = pv.log_evidence(pair.model, pair.guide, DATA, site=site, draws=5)
    assert torch.allclose(evidence.values, EXACT.log_prob(DATA), rtol=0, atol=1e-9)


@pytest.mark.parametrize("site", ["z2", BOTH])
def test_importance_under_another_guide(site: Any) -> None:
    pair = EXACT.pair(widen=1.3, shift=0.2)
    evidence = pv.log_evidence(pair.model, pair.guide, DATA, site=site, draws=4000)
    z = (evidence.values - EXACT.log_prob(DATA)) / evidence.standard_error
    assert float(z.abs().max()) < 4.5
    assert float(z.abs().max()) > 0.1  # the exact guide would have no errors


def test_another_prior_stands_at_the_top() -> None:
    pair = EXACT.pair(widen=1.2)
    other = dist.Normal(torch.tensor([0.5, -1.0]), 1.0).to_event(1)
    truth = two_layers(prior=other.mean).log_prob(DATA)
    replaced = pair.with_prior(other)
    assert replaced.decoder is pair.decoder
    weighted = partial(pv.log_evidence, method="importance", site="z2", draws=4000)
    by_prior = weighted(pair.model, pair.guide, DATA, prior=other)
    by_pair = weighted(replaced.model, pair.guide, DATA)
    with measuring(pair.model, pair.guide):
        several = compare_priors(
            Pair(pair.model, pair.guide, "z2"), DATA, {"own": None, "other": other}, draws=4000
        )
    assert torch.equal(by_prior.values, several["other"].values)
    assert torch.allclose(by_prior.values, by_pair.values, rtol=0, atol=1e-9)
    z = (by_prior.values - truth) / by_prior.standard_error
    assert float(z.abs().max()) < 4.5
    z = (several["own"].values - EXACT.log_prob(DATA)) / several["own"].standard_error
    assert float(z.abs().max()) < 4.5


def test_annealing_takes_both_layers_as_one() -> None:
    pair = EXACT.pair(widen=1.5, shift=0.3)
    short = Annealing(temperatures=40, leapfrog=2, progress=False)
    bounds = pv.sandwich(
        pair.model, pair.guide, like=DATA[:3], site=BOTH, annealing=short, chains=200, seed=1
    )
    truth = EXACT.log_prob(bounds.x)
    z = (bounds.lower.values - truth) / bounds.lower.standard_error
    assert float(z.abs().max()) < 4.5
    # backward chains of one row start from one point, so that their errors are not independent
    assert float((bounds.upper.values - truth).abs().max()) < 0.6


@pytest.mark.parametrize(
    "call",
    [
        lambda pair: pv.log_evidence(*pair, DATA, site="z2", method="annealed", draws=4),
        lambda pair: pv.log_evidence(*pair, DATA, site="z2", method="prior", draws=4),
        lambda pair: pv.sandwich(*pair, like=DATA, site="z2", chains=4),
    ],
)
def test_what_needs_both_layers_says_so(call: Callable[[Any], object]) -> None:
    pair = EXACT.pair()
    with pytest.raises(ValueError, match=r"got also \['z1'\].*site=\('z2', 'z1'\)"):
        call((pair.model, pair.guide))


# -- the top latent --------------------------------------------------------------------------------


def test_the_top_latent_is_encoded_and_aggregated() -> None:
    pair = EXACT.pair()
    top = EXACT.conditional(Z2, X, DATA)
    encoding = pv.encode(pair.guide, DATA, site="z2", batch_size=4)
    assert torch.allclose(encoding.mean, top.mean, atol=1e-12)
    assert torch.allclose(encoding.covariance_matrix, top.covariance_matrix, atol=1e-12)
    agg = pv.aggregate(pair.guide, DATA, site="z2")
    z = agg.sample((20,))
    assert torch.allclose(agg.log_prob(z), brute_force(top, z), atol=1e-12)


def test_the_top_latent_is_diagnosed() -> None:
    pair = EXACT.pair()
    tiny = pv.Effort(
        codes=64, evidence_rows=4, evidence_draws=30, export_rows=3, export_draws=30, pictures=4
    )
    held_out = EXACT.sample(12)
    diagnosis = pv.diagnose(pair.model, pair.guide, DATA, held_out=held_out, site="z2", effort=tiny)
    truth = float(EXACT.log_prob(held_out[diagnosis.evidence["prior"].rows]).mean())
    assert diagnosis.evidence["prior"].mean().value == pytest.approx(truth, abs=1e-9)
    # The exact guide: elbo = log p(x) at every draw, where the inner layer counts as observed.
    assert diagnosis.held_out.elbo.value == pytest.approx(
        float(EXACT.log_prob(held_out[diagnosis.measured]).mean()), abs=1e-9
    )
    assert diagnosis.to_arviz() is not None


# -- both layers as one ----------------------------------------------------------------------------


def test_both_layers_are_diagnosed_as_one() -> None:
    pair, x, held_out = EXACT.pair(), EXACT.sample(200, seed=1), EXACT.sample(80, seed=2)
    effort = pv.Effort(
        codes=200, evidence_rows=4, evidence_draws=30, export_rows=3, export_draws=30,
        simulations=100, two_sample=100, gap_rows=2,
    )  # fmt: skip
    diagnosis = pv.diagnose(
        pair.model, pair.guide, x, held_out=held_out, site=BOTH, effort=effort, progress=False
    )
    # The exact guide: elbo = log p(x) at every draw.
    truth = EXACT.log_prob(held_out[diagnosis.measured])
    exact_of_rows = EXACT.log_prob(held_out[diagnosis.evidence["prior"].rows])
    assert diagnosis.held_out.elbo.value == pytest.approx(float(truth.mean()), abs=1e-9)
    assert torch.allclose(diagnosis.evidence["prior"].values, exact_of_rows, atol=1e-9)
    rate, terms = kl_divergence(EXACT.posterior(x), EXACT.prior()).mean(), diagnosis.training
    assert abs(terms.rate.value - float(rate)) < 4.5 * terms.rate.standard_error
    assert terms.rate.value == pytest.approx(terms.index_code_mi.value + terms.marginal_kl.value)
    exact = EXACT.posterior(x)
    by_hand = (brute_force(exact, diagnosis.codes.z) + math.log(ROWS) - math.log(200)).mean()
    assert float(by_hand) == pytest.approx(diagnosis.memorisation.training["q_agg"].value)
    # Units are neither independent given x nor of a known density.
    assert terms.total_correlation is terms.unit_kl is diagnosis.collapse.unit_rate is None
    spread = exact.mean.var(0)
    error = exact.mean.std(0) * 2 * exact.stddev.mean(0) / math.sqrt(64 * len(x))
    assert float(((diagnosis.collapse.variance_of_means - spread) / error).abs().max()) < 4.5
    assert torch.allclose(diagnosis.collapse.mean_scale, exact.stddev.mean(0), rtol=0.05)
    assert "beside_nuts" in diagnosis.guide_check.refused["gaps of the ELBO"]
    page = render(diagnosis, facts={"data": "drawn"})
    assert "of which some depend on others" in page


def test_what_would_take_hours_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.diagnostics.given.MANY_PAIRS", 10.0)
    pair = EXACT.pair()
    with pytest.warns(UserWarning, match="may take hours.*smaller effort="):
        pv.diagnose(
            pair.model, pair.guide, DATA, held_out=EXACT.sample(30), site=BOTH,
            effort=pv.Effort(
                codes=20, evidence_rows=2, evidence_draws=5, export_rows=2, export_draws=5,
                simulations=0, two_sample=40,
            ),
        )  # fmt: skip


def test_nuts_stands_beside_the_guide_of_both_layers() -> None:
    pair = EXACT.pair()
    comparison = pv.beside_nuts(
        pair.model, pair.guide, DATA[:2], site=BOTH, draws=80, warmup=60, chains=2, progress=False
    )
    exact = EXACT.posterior(DATA[:2])
    assert (
        float(((comparison.guide_mean - exact.mean) / exact.stddev).abs().max()) < 4.5 / 1000**0.5
    )
    error = exact.stddev / comparison.ess.sqrt()
    assert float(((comparison.mean - exact.mean) / error).abs().max()) < 4.5
    assert float(((comparison.kl / comparison.kl_error).abs()).max()) < 4.5


@pytest.mark.parametrize("widen", [1.0, 1.4])
def test_the_joint_encoding_is_the_joint_posterior(widen: float) -> None:
    pair = EXACT.pair(widen=widen)
    encoding = pv.encode(pair.guide, DATA, site=BOTH, batch_size=4)
    assert isinstance(encoding, Ancestral)
    assert (encoding.batch_shape, encoding.event_shape) == ((ROWS,), (TOP + INNER,))
    z = encoding.sample(torch.Size([3]))
    if widen == 1.0:
        assert torch.allclose(encoding.log_prob(z), EXACT.posterior(DATA).log_prob(z), atol=1e-10)
    top = EXACT.conditional(Z2, X, DATA)
    wide = dist.MultivariateNormal(top.mean, widen**2 * top.covariance_matrix)
    inner = pair.inner_encoder(DATA, z[0][:, :TOP])
    by_hand = wide.log_prob(z[0][:, :TOP]) + inner.log_prob(z[0][:, TOP:])
    assert torch.allclose(encoding.log_prob(z[0]), by_hand, atol=1e-10)


def test_draws_of_the_joint_encoding_have_its_moments() -> None:
    posterior = EXACT.posterior(DATA[:2])
    z = pv.encode(EXACT.pair().guide, DATA[:2], site=BOTH).sample(torch.Size([20_000]))
    error = posterior.stddev / math.sqrt(len(z))
    assert float(((z.mean(0) - posterior.mean) / error).abs().max()) < 4.5
    centred = z - posterior.mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    error = products.std(0) / math.sqrt(len(z))
    assert float(((products.mean(0) - posterior.covariance_matrix) / error).abs().max()) < 4.5


def test_the_joint_aggregated_posterior_is_brute_force() -> None:
    guide = EXACT.pair().guide
    agg = pv.aggregate(guide, DATA, site=BOTH, batch_size=3)
    posterior = EXACT.posterior(DATA)
    z = agg.sample((6, 5))
    assert torch.allclose(agg.log_prob(z), brute_force(posterior, z), atol=1e-10)
    turned = pv.aggregate(guide, DATA, site=("z1", "z2"))
    swapped = torch.cat([z[..., TOP:], z[..., :TOP]], -1)
    assert torch.allclose(turned.log_prob(swapped), agg.log_prob(z), atol=1e-10)
    shares = (posterior.log_prob(z.unsqueeze(-2)) - math.log(ROWS)).softmax(-1)
    best = agg.responsibilities(z, top=2)
    assert torch.allclose(best.weight, shares.topk(2).values, atol=1e-10)
    assert torch.equal(best.index[..., 0], shares.argmax(-1))
    parts = [agg[:4], agg[4:]]
    assert torch.allclose(pv.AggregatedPosterior.merge(parts).log_prob(z), agg.log_prob(z))
    assert not agg.log_prob(z).requires_grad  # though the guide's parameters require one
    z = z.requires_grad_()
    (gradient,) = torch.autograd.grad(agg.log_prob(z).sum(), z)
    (expected,) = torch.autograd.grad(brute_force(posterior, z).sum(), z)
    assert torch.allclose(gradient, expected, atol=1e-8)
    assert torch.allclose(agg.score(z.detach()), expected, atol=1e-8)


def test_the_joint_prior_is_exact() -> None:
    pair = EXACT.pair()
    prior = Pair(pair.model, pair.guide, BOTH).prior(DATA)
    z = EXACT.prior().sample(torch.Size([7]))
    assert torch.allclose(prior.log_prob(z), EXACT.prior().log_prob(z), atol=1e-12)
    assert prior.expand((7,)).log_prob(z).shape == (7,)
    assert prior.sample(torch.Size([3, 4])).shape == (3, 4, 1, TOP + INNER)


def test_the_terms_of_the_joint_are_those_of_the_normals() -> None:
    pair = EXACT.pair()
    encoding = pv.encode(pair.guide, DATA, site=BOTH)
    agg = pv.aggregate(pair.guide, DATA, site=BOTH)
    prior = Pair(pair.model, pair.guide, BOTH).prior(DATA)
    posterior, exact_prior = EXACT.posterior(DATA), EXACT.prior()
    draws = posterior.sample(torch.Size([20_000]))
    log_agg = brute_force(posterior, draws)
    by_draw = {
        "mi": (posterior.log_prob(draws) - log_agg).mean(1),
        "kl": (log_agg - exact_prior.log_prob(draws)).mean(1),
    }
    mi, kl, log_prior = [], [], []
    for seed in range(60):  # two draws at each of a few rows, again and again
        codes = draw_codes(encoding, size=2 * ROWS, seed=seed)
        mi.append(codes.log_guide - agg.log_prob(codes.z))
        kl.append(agg.log_prob(codes.z) - prior.log_prob(codes.z))
        log_prior.append(codes.log_guide - prior.log_prob(codes.z))
    for values, truth in ((mi, by_draw["mi"]), (kl, by_draw["kl"])):
        estimate = two_stage_mean(torch.cat(values, 1), population=ROWS)
        error = math.hypot(estimate.standard_error, float(truth.std()) / math.sqrt(len(truth)))
        assert abs(estimate.value - float(truth.mean())) < 4.5 * error
    rate = two_stage_mean(torch.cat(log_prior, 1), population=ROWS)
    expected = float(kl_divergence(posterior, exact_prior).mean())
    assert abs(rate.value - expected) < 4.5 * rate.standard_error
    overall = divergence(agg, prior, draws=4000)
    error = math.hypot(overall.standard_error, float(by_draw["kl"].std()) / math.sqrt(20_000))
    assert abs(overall.value - float(by_draw["kl"].mean())) < 4.5 * error


def test_a_joint_density_leaves_the_pair_as_it_is() -> None:
    vae = small()
    network = nn.Sequential(nn.Dropout(0.5), vae.encoder.network)
    vae.encoder.network = network
    agg = pv.aggregate(vae.guide, IMAGES[:6], site=BOTH)
    z = agg.sample((3,))
    assert not torch.equal(z, agg.sample((3,)))
    pyro.clear_param_store()
    before = torch.get_rng_state()
    assert torch.equal(agg.log_prob(z), agg.log_prob(z))  # nothing is dropped
    assert torch.equal(before, torch.get_rng_state())
    assert not dict(pyro.get_param_store().items())
    assert network.training


def test_a_joint_density_has_gradients_in_codes_and_in_nothing_else() -> None:
    vae = small()
    agg = pv.aggregate(vae.guide, IMAGES[:6], site=BOTH)
    assert not agg.sample((2,)).requires_grad
    assert not agg.encoding.rsample(torch.Size([2])).requires_grad
    z = agg.sample((3,))
    assert not agg.log_prob(z).requires_grad
    (gradient,) = torch.autograd.grad(agg.log_prob(z.requires_grad_()).sum(), z)
    step = 1e-6 * torch.randn_like(z)
    with torch.no_grad():
        rise = agg.log_prob(z + step) - agg.log_prob(z - step)
    assert torch.allclose(rise, 2 * (gradient * step).sum(-1), rtol=1e-4, atol=1e-12)


def test_a_joint_density_goes_without_data_or_moments() -> None:
    vae = small()
    agg = pv.aggregate(vae.guide, IMAGES[:6], site=BOTH)
    assert agg.encoding.log_prob(torch.zeros(0, 6, 5)).shape == (0, 6)
    assert agg.sample((0,)).shape == (0, 5)
    assert agg.component(2).batch_shape == ()
    assert agg.component(2).log_prob(torch.zeros(4, 5)).shape == (4,)
    assert agg.to(dtype=torch.float64).log_prob(torch.zeros(1, 5)).isfinite().all()
    with pytest.raises(NotImplementedError, match="Average draws"):
        _ = agg.mean
    with pytest.raises(ValueError, match="marginals are not known"):
        agg.marginal(0)
    with pytest.raises(ValueError, match="Keep the pair"):
        pv.save(agg, "nowhere.pt")
    with pytest.raises(ValueError, match="one guide"):
        pv.AggregatedPosterior.merge([agg, pv.aggregate(small(1).guide, IMAGES[:6], site=BOTH)])


def test_a_joint_density_stands_in_another_model() -> None:
    agg = pv.aggregate(EXACT.pair().guide, DATA, site=BOTH)

    def model() -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", agg)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(4, TOP + INNER))

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert set(trace.stochastic_nodes) == {"z", "data"}
    assert not trace.param_nodes
    assert torch.equal(trace.nodes["z"]["log_prob"], agg.log_prob(trace.nodes["z"]["value"]))
    assert trace.nodes["x"]["log_prob"].shape == (4,)


def test_normals_for_the_joint_have_the_moments_of_its_components() -> None:
    agg = pv.aggregate(EXACT.pair().guide, DATA, site=BOTH)
    normals = with_normals(agg, seed=0).encoding
    assert isinstance(normals, dist.MultivariateNormal)
    posterior = EXACT.posterior(DATA)
    error = posterior.stddev / math.sqrt(MOMENT_DRAWS)
    assert float(((normals.mean - posterior.mean) / error).abs().max()) < 4.5
    covariance, variance = posterior.covariance_matrix, posterior.variance
    products = variance.unsqueeze(-1) * variance.unsqueeze(-2) + covariance.square()
    error = (products / (MOMENT_DRAWS - 1)).sqrt()
    # of a sum of squares of normals, whose upper tail is heavier: less than 1e-6 beyond 6.5
    assert float(((normals.covariance_matrix - covariance) / error).abs().max()) < 6.5
    top = pv.aggregate(EXACT.pair().guide, DATA, site="z2")
    assert with_normals(top, seed=0) is top


def test_an_ex_post_prior_of_the_joint_is_kept(tmp_path: Path) -> None:
    pair, data = EXACT.pair(), EXACT.sample(300)
    agg = pv.aggregate(pair.guide, data[:200], site=BOTH)
    held_out = pv.encode(pair.guide, data[200:], site=BOTH)
    recipes = [pv.Inflated(0.0), pv.Reduced(1, "full"), pv.Flow(20, layers=2, hidden=(8,))]
    ex_post_prior = pv.fit_ex_post_prior(agg, held_out=held_out, candidates=recipes, progress=False)
    # The aggregated posterior of the exact pair is the prior, up to the sample: one normal.
    assert ex_post_prior.choice == "reduced to 1 component of full covariance"
    codes = EXACT.posterior(EXACT.sample(2000, seed=1)).sample()
    lost = EXACT.prior().log_prob(codes) - ex_post_prior.distribution.log_prob(codes)
    # of a fitted normal: half its number of parameters for each data point it was fitted to
    assert float(lost.mean()) < 2 * 0.5 * 20 / 200
    pv.save(ex_post_prior, tmp_path / "ex_post_prior.pt")
    again = pv.load(tmp_path / "ex_post_prior.pt")
    assert torch.equal(
        again.distribution.log_prob(codes), ex_post_prior.distribution.log_prob(codes)
    )
    with pytest.raises(ValueError, match=r"expected one latent site.*prior= to log_evidence"):
        ex_post_prior.in_model(pair.model, site=BOTH)
    flow = pv.fit_ex_post_prior(
        agg, held_out=held_out, candidates=recipes[2:], progress=False
    ).distribution
    pv.save(flow, tmp_path / "flow.pt")
    assert torch.equal(pv.load(tmp_path / "flow.pt").log_prob(codes), flow.log_prob(codes))


# -- training --------------------------------------------------------------------------------------

with seeded(0, "draws"):
    SHARES = torch.rand(4, 9, dtype=torch.float64)[torch.arange(160) % 4]
    IMAGES = torch.bernoulli(SHARES).view(160, 3, 3)


def small(seed: int = 0, *, pseudo_inputs: int = 0, **changed: nn.Module) -> pv.HierarchicalVAE:
    torch.manual_seed(seed)
    encoder = pv.mlp_encoder((3, 3), 2, hidden=(8,))
    prior: nn.Module = pv.StandardNormal(2)
    if pseudo_inputs:
        prior = pv.VampPrior.from_data(encoder, IMAGES, pseudo_inputs, bounds=(0.0, 1.0))
    modules = {
        "encoder": encoder,
        "decoder": pv.Branches(
            (nn.Identity(), nn.Identity()), pv.mlp_decoder(5, (3, 3), hidden=(8,))
        ),
        "prior": prior,
        "inner_encoder": pv.Branches(
            (nn.Flatten(), nn.Identity()), pv.mlp_encoder((11,), 3, hidden=(8,))
        ),
        "conditional": pv.mlp_encoder((2,), 3, hidden=(8,)),
    }
    return pv.HierarchicalVAE(**(modules | changed)).to(torch.get_default_dtype())


@pytest.mark.parametrize("pseudo_inputs", [0, 5])
def test_fit_improves_the_elbo(pseudo_inputs: int) -> None:
    vae = small(pseudo_inputs=pseudo_inputs)
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    run = pv.fit(
        vae.model,
        vae.guide,
        IMAGES[:128],
        validation=IMAGES[128:],
        epochs=12,
        batch_size=16,
        optimizer=pv.adam(1e-2),
        progress=False,
    )
    assert run.history.train[-1] > run.history.train[0] + 0.2
    assert not any(torch.equal(*both) for both in zip(before, vae.parameters(), strict=True))
    found = pv.log_evidence(vae.model, vae.guide, IMAGES[128:], site="z2", draws=1000)
    assert found.mean().value > run.history.train[0]


def test_gradients_reach_every_parameter() -> None:
    vae = small(pseudo_inputs=4)
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, IMAGES[:10]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_a_vamp_prior_is_the_top_prior() -> None:
    vae = small(pseudo_inputs=4)
    with torch.no_grad():
        prior = Pair(vae.model, vae.guide, "z2").prior(IMAGES[:3])
        z = torch.randn(6, 2)
        components = vae.encoder(vae.prior.inputs)
        expected = components.log_prob(z.unsqueeze(1)).logsumexp(-1) - math.log(4)
    assert torch.allclose(prior.log_prob(z), expected, atol=1e-12)


def test_an_exemplar_prior_is_the_top_prior() -> None:
    vae = small()
    vae.prior = pv.ExemplarPrior(vae.encoder, IMAGES[:20], neighbours=3)
    rows, numbers = IMAGES[:20], torch.arange(20)
    with pytest.raises(ValueError, match="numbers of the rows"):
        vae.model(rows)
    run = pv.fit(vae.model, vae.guide, (rows, numbers), epochs=3, batch_size=5, progress=False)
    assert all(math.isfinite(value) for value in run.history.train)
    assert float(vae.prior.log_scale.detach()) != 0.0
    with measuring(vae.model, vae.guide):
        prior = Pair(vae.model, vae.guide, "z2").prior(rows)
    z = torch.randn(5, 2)
    components = dist.Normal(vae.encoder(rows).mean, vae.prior.log_scale.exp()).to_event(1)
    expected = components.log_prob(z.unsqueeze(1)).logsumexp(-1) - math.log(20)
    assert torch.allclose(prior.log_prob(z), expected, atol=1e-9)


def test_two_pairs_keep_their_own_parameters() -> None:
    first, second = small(0), small(1)
    before = {name: value.clone() for name, value in second.state_dict().items()}
    for pair in (first, second, first):
        pair.model(IMAGES[:3])
        pair.guide(IMAGES[:3])
    assert all(torch.equal(second.state_dict()[name], before[name]) for name in before)


# -- bad input -------------------------------------------------------------------------------------


class Point(nn.Module):
    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x, 1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prior": pv.StandardNormal(3)}, r"prior's event shape \(3,\); got 2"),
        ({"conditional": pv.mlp_encoder((2,), 4)}, r"conditional's event shape \(4,\); got 3"),
        (
            {"decoder": pv.Branches((nn.Identity(), nn.Identity()), pv.mlp_decoder(5, (4,)))},
            r"expected the decoder to return.*event shape \(3, 3\); got \(3,\) and \(4,\)",
        ),
        (
            {
                "inner_encoder": pv.Branches(
                    (nn.Flatten(), nn.Identity()), nn.Sequential(nn.Linear(11, 3), Point())
                )
            },
            "expected the inner encoder to return",
        ),
    ],
)
def test_modules_that_do_not_fit_are_named(changed: dict[str, nn.Module], message: str) -> None:
    vae = small(**changed)
    with pytest.raises(ValueError, match=message):
        Trace_ELBO().loss(vae.model, vae.guide, IMAGES[:3])


@pytest.mark.parametrize("site", ["z2", BOTH])
def test_another_number_of_units_is_named_where_the_model_runs_by_itself(site: Any) -> None:
    vae = small(prior=pv.StandardNormal(3))
    with pytest.raises(ValueError, match=r"prior's event shape \(3,\); got 2"):
        pv.log_evidence(vae.model, vae.guide, IMAGES[:3], site=site, draws=4)
    vae = small(conditional=pv.mlp_encoder((2,), 4))
    with pytest.raises(ValueError, match=r"conditional's event shape \(4,\); got 3"):
        vae.model(IMAGES[:3])
    other = dist.Normal(torch.zeros(7), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"event shape \([25],\).*got \(\) and \(7,\)"):
        vae = small()
        pv.log_evidence(vae.model, vae.guide, IMAGES[:3], site=site, prior=other, draws=4)


def test_a_result_is_a_top_prior_too() -> None:
    vae = small()
    agg = pv.aggregate(vae.guide, IMAGES, site="z2")
    held_out = pv.encode(vae.guide, IMAGES[:10], site="z2")
    ex_post_prior = pv.fit_ex_post_prior(
        agg, held_out=held_out, candidates=[pv.Reduced(3)], progress=False
    )
    z = torch.randn(5, TOP)
    own, density = vae.with_prior(ex_post_prior).prior(), ex_post_prior.distribution
    assert torch.equal(own.log_prob(z), density.log_prob(z))
    with pytest.raises(ValueError, match="expected a prior that is a module"):
        vae.with_prior(None)


def test_grey_values_need_another_likelihood() -> None:
    vae = small()
    with pytest.raises(ValueError, match=r"zeros and ones in x; got 0\.5"):
        vae.model(torch.full((2, 3, 3), 0.5))


def test_size_smaller_than_the_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="size"):
        small().model(IMAGES[:3], size=2)


def test_layers_of_fixed_size_are_taken_one_by_one() -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(ROWS, 2))
        with pyro.plate("data", ROWS):
            z2 = pyro.sample("z2", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))

    assert len(pv.aggregate(guide, DATA, site="z2")) == ROWS
    with pytest.raises(ValueError, match=r"fixed size.*name the site that is drawn first"):
        pv.aggregate(guide, DATA, site=BOTH)


@pytest.mark.filterwarnings("ignore:(.|\\n)*k̂:UserWarning")
def test_counts_are_shared_out_of_each_row_s_total() -> None:
    decoder = NegativeBinomialDecoder(nn.Linear(TOP + INNER, 4), torch.Size([4]))
    pair = pv.HierarchicalVAE(
        pv.mlp_encoder((4,), TOP, hidden=(8,)),
        pv.Branches((nn.Identity(), nn.Identity()), decoder),
        pv.StandardNormal(TOP),
        inner_encoder=pv.Branches(
            (nn.Identity(), nn.Identity()), pv.mlp_encoder((4 + TOP,), INNER, hidden=(8,))
        ),
        conditional=pv.mlp_encoder((TOP,), INNER, hidden=(8,)),
    )
    x = torch.tensor([[3.0, 0, 1, 6], [100, 20, 0, 80]])
    codes = {"z2": torch.randn(2, TOP), "z1": torch.randn(2, INNER)}
    trace = poutine.trace(poutine.condition(pair.model, data=codes)).get_trace(x)
    likelihood = trace.nodes["x"]["fn"]
    assert torch.allclose(likelihood.mean.sum(-1), x.sum(-1))
    assert pv.log_evidence(pair.model, pair.guide, x, site="z2", draws=5).values.isfinite().all()
