"""log p(x) with each datum's draws from where they have to be."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evidence import Evidence, automatic, summarise
from pyrovae.evidence.proposal import Proposal
from pyrovae.evidence.proposal_path import annealed_from
from pyrovae.evidence.refined import counted
from pyrovae.evidence.result import join
from pyrovae.evidence.target import target_for
from pyrovae.pairs import Pair, PyroFunction
from pyrovae.testing import LinearGaussian, linear_gaussian_vae

auto = partial(pv.log_evidence, method="auto")


def right(found: Evidence, truth: Tensor) -> bool:
    """Each row within 4.5 standard errors, and their mean square as that of a normal."""
    z = (found.values - truth) / found.standard_error
    bound = 1 + 4.5 * (2 / len(z)) ** 0.5
    return bool(z.abs().max() < 4.5) and float(z.square().mean()) < bound


class Uneven(nn.Module):
    """A guide that is good at every other row, and far off at the rest."""

    def __init__(self, exact: LinearGaussian) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor) -> dist.Distribution:
        q = self.exact.posterior(x)
        bad = (x[:, :1] > 0).to(x)
        scale = q.stddev * torch.where(bad > 0, 0.3, 1.2)
        return dist.Normal(q.mean + 2 * bad * q.stddev, scale).to_event(1)


def test_each_datum_s_draws_are_from_the_guide_where_that_is_enough() -> None:
    exact = linear_gaussian_vae(8, 3)
    vae, x = exact.vae(), exact.sample(100)
    vae.encoder = Uneven(exact)
    found = auto(vae.model, vae.guide, x)
    assert found.rungs == tuple("refined" if row > 0 else "guide" for row in x[:, 0])
    assert right(found, exact.log_prob(x))
    assert not found.unresolved.any()
    assert found.concerns == ()


def test_chains_from_a_proposal_have_the_mean_p_x_and_more_even_weights() -> None:
    # A proposal off by a standard deviation in every unit and half as wide.
    exact = linear_gaussian_vae(8, 4)
    vae, x = exact.vae(), exact.sample(20)
    posterior = exact.posterior(x)
    target = target_for(Pair(vae.model, vae.guide), x, None)
    ones = torch.ones(20)
    proposal = Proposal(
        target,
        None,
        torch.tensor([[0.0, -torch.inf]]).expand(20, 2),
        (posterior.mean + posterior.stddev).unsqueeze(1),
        torch.diag_embed(0.5 * posterior.stddev).unsqueeze(1),
        5 * ones,
        ones,
    )
    truth = exact.log_prob(x)
    before = target.cost.clone()
    chains = summarise(annealed_from(proposal, 1000, seed=1).T)
    assert right(chains, truth)
    # 1,000 chains of 16 temperatures and 3 leapfrog steps, with gradients, and the pilot's.
    assert int((target.cost - before).unique()) == 3 * (1000 * (16 + 15 * 3) + 8 * 17 * 4)
    direct = summarise(counted(proposal, 1000, seed=2).T)
    assert float(chains.pareto_k.mean()) < float(direct.pareto_k.mean()) - 0.1
    assert float(chains.standard_error.mean()) < 0.5 * float(direct.standard_error.mean())


def bent() -> tuple[PyroFunction, PyroFunction, Tensor, Tensor]:
    """A pair whose posteriors are bent, rows, and log p(x): no Gaussian is a good proposal."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            bent = 2 * z[..., 1:] + z[..., :1].square()
            pyro.sample("x", dist.Normal(bent, 0.6).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 0.5).to_event(1))

    x = torch.linspace(-2.0, 3.0, 40).unsqueeze(-1)
    line = torch.linspace(-6.0, 6.0, 40_001)
    given = dist.Normal(line.square(), (4.0 + 0.36) ** 0.5).log_prob(x)
    truth = (given + dist.Normal(0.0, 1.0).log_prob(line)).logsumexp(1) + (line[1] - line[0]).log()
    return model, guide, x, truth


@pytest.mark.filterwarnings("ignore:(.|\n)*the cap on the cost:UserWarning")  # which is asked for
@pytest.mark.filterwarnings("ignore:(.|\n)*k̂:UserWarning")  # of a few chains
def test_where_a_proposal_fails_chains_go_on_from_it() -> None:
    # Means of 4 or 16 are enough at most rows, and at which they are not is a matter of the seed.
    model, guide, x, truth = bent()
    found = auto(model, guide, x, draws=500, seed=3)
    assert "annealed" in found.rungs and "refined" in found.rungs
    annealed = torch.tensor([rung == "annealed" for rung in found.rungs])
    assert not found.unresolved[~annealed].any()
    told = ~found.unresolved
    assert float(told.double().mean()) > 0.9
    assert float(((found.values - truth) / found.standard_error)[told].abs().max()) < 4.5
    by_rung = dict(zip(found.rungs, found.cost.tolist(), strict=True))
    assert by_rung["annealed"] > by_rung["refined"] + 80_000
    capped = auto(model, guide, x, draws=500, max_cost=80_000, seed=3)
    assert "annealed" not in capped.rungs
    assert capped.stopped is not None and torch.equal(capped.stopped, annealed)
    assert float(capped.cost.max()) < 80_000


@pytest.mark.filterwarnings("ignore:(.|\n)*k̂:UserWarning")
def test_rows_whose_counted_weights_are_rejected_have_new_ones_one_step_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, guide, x, truth = bent()
    found = auto(model, guide, x, draws=100)
    monkeypatch.setattr(automatic, "_rejected", lambda weights: torch.zeros_like(weights[0]) > 0)
    first = auto(model, guide, x, draws=100)
    rejected = first.unresolved & torch.tensor([rung == "refined" for rung in first.rungs])
    assert int(rejected.sum()) >= 2  # chains are the last step
    assert torch.equal(found.values[~rejected], first.values[~rejected])
    assert not torch.isclose(found.values, first.values)[rejected].any()
    assert bool((found.cost > first.cost)[rejected].all())
    annealed = torch.tensor([rung == "annealed" for rung in found.rungs])
    assert not found.unresolved[~annealed].any()
    error = float(found.standard_error.square().sum().sqrt()) / len(x)
    # The logarithm of a mean of weights is low by se²/2, and the choice lowers it by less than .01.
    low = float(found.standard_error.square().mean()) / 2 + 0.01
    assert -4 * error - low < float((found.values - truth).mean()) < 4 * error


def test_a_cap_on_the_cost_is_said_and_no_mean_takes_in_what_it_stopped() -> None:
    exact = linear_gaussian_vae(8, 3)
    vae, x = exact.vae(), exact.sample(100)
    vae.encoder = Uneven(exact)
    with pytest.warns(UserWarning, match="the cap on the cost was reached"):
        found = auto(vae.model, vae.guide, x, max_cost=600)
    assert torch.equal(found.stopped, x[:, 0] > 0)
    assert bool((found.unresolved == found.stopped).all())
    assert found.rungs == ("guide",) * 100
    free = auto(vae.model, vae.guide, x)
    told = ~found.stopped
    assert found.mean().value == pytest.approx(float(found.values[told].mean()))
    assert found.mean().size == found.minus(free).size == int(told.sum())
    assert torch.equal(found.values[told], free.values[told])
    assert free.stopped is not None and not free.stopped.any()
    with pytest.raises(ValueError, match="max_cost= of at least 1, and with method='auto'"):
        pv.log_evidence(vae.model, vae.guide, x, method="refined", max_cost=600)
    with pytest.raises(ValueError, match=r"max_cost= of at least 1.*got nan"):
        pv.log_evidence(vae.model, vae.guide, x, max_cost=math.nan)


@pytest.mark.parametrize("method", ["importance", "prior", "refined", "auto", "annealed"])
@pytest.mark.filterwarnings("ignore:(.|\n)*k̂:UserWarning")  # of few draws, and of the prior's
def test_every_method_says_what_a_row_cost(method: str) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.2), exact.sample(6)
    chains = pv.Annealing(temperatures=5, leapfrog=2, progress=False)
    found = pv.log_evidence(
        vae.model, vae.guide, x, method=chains if method == "annealed" else method, draws=40
    )
    if method in ("importance", "prior"):
        assert torch.equal(found.cost, torch.full((6,), 40))
    elif method == "annealed":
        assert torch.equal(found.cost, torch.full((6,), 3 * (40 * (5 + 4 * 2) + 8 * 6 * 3)))
    else:
        assert bool((found.cost > 500).all())


def test_an_exact_guide_is_left_as_it_is() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(20)
    found = pv.log_evidence(vae.model, vae.guide, x)
    assert found.rungs == ("guide",) * 20
    assert torch.allclose(found.values, exact.log_prob(x), rtol=0, atol=1e-9)


def test_a_guide_with_tame_weights_that_misses_a_mode_is_not_enough() -> None:
    # The guide is the posterior's right half: every weight agrees, and half of p(x) is missing.
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), 0.2).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.04, 0.2).to_event(1))

    x = torch.linspace(0.8, 4.5, 30).unsqueeze(-1)
    half = dist.Normal(0.0, 1.04**0.5).log_prob(x.squeeze(-1))  # as if there were no |·|
    by_guide = pv.log_evidence(model, guide, x, method="importance")
    assert torch.allclose(by_guide.values, half, atol=0.05)
    assert not by_guide.unresolved.any()
    found = auto(model, guide, x)
    assert found.rungs == ("refined",) * 30
    assert torch.allclose(found.values, half + torch.tensor(2.0).log(), atol=0.05)


def test_where_no_other_proposal_is_possible_the_reason_is_said() -> None:
    exact = linear_gaussian_vae()

    def model(x: Tensor) -> None:
        noise = pyro.sample("noise", dist.LogNormal(-0.7, 0.01))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ exact.weight.T + exact.bias
            pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("noise", dist.LogNormal(-0.7, 0.01))
        with pyro.plate("data", len(x)):
            pyro.sample("z", exact.vae(scale=0.3).encoder(x))

    x = exact.sample(20)
    with pytest.warns(UserWarning, match="All draws are from the guide: .* one for all rows"):
        found = auto(model, guide, x)
    assert found.rungs == ("guide",) * 20


def test_a_row_without_a_bound_is_named_by_its_number() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(90)
    vae.encoder = Uneven(exact)

    def model(rows: Tensor) -> None:
        with pyro.plate("data", len(rows)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            fault = torch.where((rows == x[77]).all(-1), math.inf, 0.0)
            mean = z @ exact.weight.T + exact.bias
            pyro.sample("x", dist.Normal(mean, exact.noise).to_event(1), obs=rows)
            pyro.factor("fault", fault)

    with pytest.raises(ValueError, match=r"NaN or \+inf in row 77"):
        auto(model, vae.guide, x)


def test_result_depends_on_seed_alone_and_leaves_no_trace() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(70)
    vae.encoder = Uneven(exact)
    state = torch.get_rng_state()
    results = [auto(vae.model, vae.guide, x, draws=200, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0].values, results[1].values)
    assert not torch.equal(results[0].values, results[2].values)


def test_where_k_hat_is_not_known_weights_stay() -> None:
    """Few draws with any weight are no sign of large ones: new ones would raise the mean."""
    few = torch.full((200, 2), -math.inf)
    few[:20, 0] = torch.randn(20)
    assert automatic._rejected(few).tolist() == [False, False]
    assert automatic.smooth(automatic._tame(few).T)[1].isinf().all()  # of pilot draws neither


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_weight_that_is_an_error_is_not_thrown_away_with_rejected_ones(fault: float) -> None:
    even, heavy = torch.zeros(100, 1), torch.distributions.Exponential(1.0).sample((100, 1)) * 3
    weights = torch.cat([even, heavy, heavy], 1)
    weights[7, 2] = fault
    assert automatic._rejected(weights).tolist() == [False, True, False]


def test_advice_is_right_where_the_guide_is_far_off() -> None:
    # The model's prior is the data's own: no density of codes of a wrong guide can be better.
    exact = linear_gaussian_vae(12, 2)
    vae = exact.vae(scale=0.3, shift=2.0)
    train, x = exact.sample(600, seed=1), exact.sample(200, seed=2)
    effort = pv.Effort(
        codes=600, evidence_rows=200, export_rows=0, pictures=0, two_sample=50, simulations=0
    )
    found = pv.diagnose(
        vae.model,
        vae.guide,
        train,
        held_out=x,
        validation=exact.sample(200, seed=3),
        effort=effort,
        progress=False,
    )
    assert found.advice.startswith("Sample from the model's prior")
    assert right(found.evidence["prior"], exact.log_prob(x))
    change = found.evidence["ex_post"].minus(found.evidence["prior"])
    assert change.value < -4 * change.standard_error


def test_a_subset_has_all_that_is_known_of_each_of_its_rows() -> None:
    n = torch.arange(5.0)
    entire = Evidence(
        n, n + 1, n / 10, 100, smoothed=n + 2, acceptance=n + 3, rows=n.long() + 40,
        rungs=tuple("abcde"), cost=n + 4, stopped=n > 3,
    )  # fmt: skip
    chosen = torch.tensor([4, 0, 2])
    part = entire.subset(chosen)
    for field in dataclasses.fields(Evidence):
        value, whole = getattr(part, field.name), getattr(entire, field.name)
        if isinstance(whole, Tensor):
            assert torch.equal(value, whole[chosen]), field.name
    assert part.rungs == ("e", "a", "c")
    assert part.mean().size == 2  # one is stopped
    unnumbered = dataclasses.replace(entire, rows=None).subset(chosen)
    assert unnumbered.rows is not None and torch.equal(unnumbered.rows, chosen)
    again = join([entire.subset(chosen[:1]), entire.subset(chosen[1:])])
    assert torch.equal(again.cost, part.cost) and torch.equal(again.stopped, part.stopped)
    assert again.rungs == part.rungs
