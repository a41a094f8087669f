"""Masks at latent sites: what they leave out counts the same in p and in q, for every measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrovae as pv
from pyrovae.diagnostics.draws import draw_codes
from pyrovae.diagnostics.elbo_terms import surgery
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.evidence.annealed import Annealing
from pyrovae.pairs import Pair, elbo_terms
from pyrovae.pairs.masks import elements, unmasked
from pyrovae.pairs.under_prior import UnderPrior
from pyrovae.training.objectives import elbo

ROWS, STEPS = 24, 3
LENGTHS = torch.arange(ROWS) % STEPS + 1
STEP_MASK = torch.arange(STEPS) < LENGTHS[:, None]
ROW_MASK = (torch.arange(ROWS) % 2 == 0)[:, None].expand(-1, STEPS)
JUNK = (7.0, 0.1)  # location and scale of what the guide draws in the masked parts

# z_t ~ N(0, 1), x_t ~ N(z_t, 1): the exact guide is N(x/2, 1/2), and x_t ~ N(0, 2).


def data(seed: int = 0) -> Tensor:
    return 2 * torch.randn(ROWS, STEPS, generator=torch.Generator().manual_seed(seed)).double()


X = data()

Draw = Callable[[str, dist.Distribution, Tensor, Tensor | None], Tensor]


def in_plates(name: str, fn: dist.Distribution, mask: Tensor, obs: Tensor | None) -> Tensor:
    with (
        pyro.plate(f"data of {name}", len(mask), dim=-2),
        pyro.plate(f"steps of {name}", STEPS, dim=-1),
        poutine.mask(mask=mask),
    ):
        return pyro.sample(name, fn, obs=obs)


def rows_trail(name: str, fn: dist.Distribution, mask: Tensor, obs: Tensor | None) -> Tensor:
    turned = dist.Normal(fn.mean.T, fn.stddev.T)
    with (
        pyro.plate(f"steps of {name}", STEPS, dim=-2),
        pyro.plate(f"data of {name}", len(mask), dim=-1),
        poutine.mask(mask=mask.T),
    ):
        return pyro.sample(name, turned, obs=None if obs is None else obs.T).T


def in_the_event(name: str, fn: dist.Distribution, mask: Tensor, obs: Tensor | None) -> Tensor:
    with pyro.plate(f"data of {name}", len(mask)):
        return pyro.sample(name, fn.mask(mask).to_event(1), obs=obs)


def in_two_places(name: str, fn: dist.Distribution, mask: Tensor, obs: Tensor | None) -> Tensor:
    later = mask | (torch.arange(STEPS) > 0)
    with pyro.plate(f"data of {name}", len(mask)), poutine.mask(mask=mask[:, 0]):
        return pyro.sample(name, fn.mask(later & mask).to_event(1), obs=obs)


def rows_by_handler(name: str, fn: dist.Distribution, mask: Tensor, obs: Tensor | None) -> Tensor:
    with pyro.plate(f"data of {name}", len(mask)), poutine.mask(mask=mask[:, 0]):
        return pyro.sample(name, fn.to_event(1), obs=obs)


def rows_by_method(name: str, fn: dist.Distribution, mask: Tensor, obs: Tensor | None) -> Tensor:
    with pyro.plate(f"data of {name}", len(mask)):
        return pyro.sample(name, fn.to_event(1).mask(mask[:, 0]), obs=obs)


STYLES = {
    "in plates": (in_plates, STEP_MASK),
    "rows trail": (rows_trail, STEP_MASK),
    "in the event": (in_the_event, STEP_MASK),
    "in two places": (in_two_places, STEP_MASK & ROW_MASK),
    "rows by handler": (rows_by_handler, ROW_MASK),
    "rows by method": (rows_by_method, ROW_MASK),
    "nothing left out": (in_the_event, torch.ones_like(ROW_MASK)),
    "all left out": (in_plates, torch.zeros_like(ROW_MASK)),
}
styles = pytest.mark.parametrize(("draw", "mask"), STYLES.values(), ids=list(STYLES))


def pair_of(
    draw: Draw, *, model_mask: bool = True, guide_mask: bool = True, exact: bool = True
) -> tuple[Any, Any]:
    """The pair, whose guide draws junk in the masked parts; a mask may be forgotten."""

    def prior(x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros_like(x), 1.0)

    def model(x: Tensor, mask: Tensor) -> None:
        z = draw("z", prior(x), mask if model_mask else torch.ones_like(mask), None)
        draw("x", dist.Normal(z, 1.0), mask, x)

    def guide(x: Tensor, mask: Tensor) -> None:
        loc, scale = (torch.full_like(x, number) for number in JUNK)
        loc, scale = torch.where(mask, x / 2, loc), scale.masked_fill(mask, math.sqrt(0.5))
        q = dist.Normal(loc, scale) if exact else dist.Normal(loc + 0.1, scale)
        draw("z", q, mask if guide_mask else torch.ones_like(mask), None)

    return model, guide


def log_evidence_of(x: Tensor, mask: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """log p(x) in closed form if z_t ~ N(loc, scale²)."""
    by_step = dist.Normal(loc, math.sqrt(1 + scale**2)).log_prob(x)
    return torch.where(mask, by_step, 0.0).sum(1)


@styles
def test_log_evidence(draw: Draw, mask: Tensor) -> None:
    model, guide = pair_of(draw)
    evidence = pv.log_evidence(model, guide, (X, mask), draws=4)
    assert torch.allclose(evidence.values, log_evidence_of(X, mask), rtol=0, atol=1e-9)
    assert not evidence.concerns


@styles
def test_annealing_and_the_prior_as_proposal(draw: Draw, mask: Tensor) -> None:
    model, guide = pair_of(draw)
    short = Annealing(temperatures=3, leapfrog=1, progress=False)
    batch = (X[:6], mask[:6])
    evidence = pv.log_evidence(model, guide, batch, method=short, draws=30)
    assert torch.allclose(evidence.values, log_evidence_of(*batch), rtol=0, atol=1e-9)
    with_prior = pv.log_evidence(model, guide, (X[:3] / 4, mask[:3]), method="prior", draws=4000)
    truth = log_evidence_of(X[:3] / 4, mask[:3])
    assert ((with_prior.values - truth).abs() <= 4.5 * with_prior.standard_error + 1e-9).all()


@styles
def test_another_prior_is_integrated_over_what_is_left_out(draw: Draw, mask: Tensor) -> None:
    model, guide = pair_of(draw)
    other = dist.Normal(torch.full((STEPS,), 0.3), 0.8).to_event(1)
    plans: list[tuple[Any, Any]] = [(model, other)]
    if draw not in (in_plates, rows_trail):  # each row is one event, as UnderPrior needs it
        plans.append((UnderPrior(model, other), None))
    for changed, prior in plans:
        evidence = pv.log_evidence(changed, guide, (X / 2, mask), prior=prior, draws=2000)
        error = evidence.standard_error.clamp_min(1e-12)
        z = (evidence.values - log_evidence_of(X / 2, mask, 0.3, 0.8)) / error
        assert z.abs().max() < 5.5  # 1 in 10⁵ over all rows, plans and styles


@styles
def test_the_elbo_taken_apart(draw: Draw, mask: Tensor) -> None:
    model, guide = pair_of(draw)
    pair = Pair(model, guide)
    encoding = pv.encode(guide, (X, mask), model=model)
    codes = draw_codes(encoding, size=2 * ROWS)
    likelihood = torch.stack([elbo_terms(pair, (X, mask), z)[0] for z in codes.z.unbind(1)], 1)
    agg = pv.aggregate(guide, (X, mask), model=model)
    terms = surgery(codes, likelihood, agg, pair.prior((X, mask)))
    assert terms.elbo.value == pytest.approx(float(log_evidence_of(X, mask).mean()), abs=1e-9)
    rate = terms.index_code_mi.value + terms.marginal_kl.value
    assert terms.rate.value == pytest.approx(rate, abs=1e-9)


@styles
def test_the_objective_of_training(draw: Draw, mask: Tensor) -> None:
    model, guide = pair_of(draw)
    values = torch.stack([elbo(model, guide, X, mask) for _ in range(100)]).detach()
    error = float(values.std()) / 10 + 1e-9
    assert abs(float(values.mean() - log_evidence_of(X, mask).sum())) < 4.5 * error


@styles
def test_encodings_have_the_prior_where_nothing_is(draw: Draw, mask: Tensor) -> None:
    model, guide = pair_of(draw)
    encoding = pv.encode(guide, (X, mask), model=model, batch_size=7)
    assert torch.allclose(encoding.mean, torch.where(mask, X / 2, 0.0))
    assert torch.allclose(encoding.stddev, torch.where(mask, math.sqrt(0.5), torch.ones(())))
    if mask.all():
        assert torch.equal(pv.encode(guide, (X, mask)).mean, encoding.mean)
        return
    with pytest.raises(pv.InputError, match=r"got none.*model=, or leave out the rows"):
        pv.aggregate(guide, (X, mask))
    unmasked_rows = mask.all(1)
    if unmasked_rows.any():
        assert len(pv.aggregate(guide, (X[unmasked_rows], mask[unmasked_rows]))) == int(
            unmasked_rows.sum()
        )


def test_the_gaps_of_an_exact_guide_are_zero() -> None:
    model, guide = pair_of(in_the_event)
    batch = (X[:6], STEP_MASK[:6])
    gaps = inference_gaps(model, guide, batch, steps=2, draws=30, progress=False)
    truth = log_evidence_of(*batch)
    for values in (gaps.guide.values, gaps.evidence.values):
        assert torch.allclose(values, truth, rtol=0, atol=0.2)
    assert torch.allclose(gaps.guide.values, truth, rtol=0, atol=1e-9)


def test_simulated_codes_are_calibrated() -> None:
    model, guide = pair_of(in_plates)
    assert pv.calibrate(model, guide, (X, STEP_MASK), simulations=200).calibrated


@pytest.mark.parametrize("draw", [in_plates, in_the_event])
def test_diagnose(draw: Draw) -> None:
    model, guide = pair_of(draw)
    effort = pv.Effort(
        codes=64, evidence_rows=6, evidence_draws=30, export_rows=3, export_draws=30, pictures=4,
        simulations=0,
    )  # fmt: skip
    held_out = (data(1), STEP_MASK)
    diagnosis = pv.diagnose(model, guide, (X, STEP_MASK), held_out=held_out, effort=effort)
    assert diagnosis.training.elbo.value == pytest.approx(
        float(log_evidence_of(X, STEP_MASK).mean()), abs=1e-9
    )
    assert diagnosis.evidence["prior"].values.isfinite().all()


def test_what_the_data_depend_on_is_integrated_out_under_the_prior() -> None:
    """A mask around z only: rows in which z is left out still have data."""

    def model(x: Tensor, mask: Tensor) -> None:
        z = in_the_event("z", dist.Normal(torch.zeros_like(x), 1.0), mask, None)
        in_the_event("x", dist.Normal(z, 1.0), torch.ones_like(mask), x)

    _, guide = pair_of(in_the_event)
    x = X / 4
    evidence = pv.log_evidence(model, guide, (x, STEP_MASK), draws=4000)
    truth = log_evidence_of(x, torch.ones_like(STEP_MASK))
    z = (evidence.values - truth) / evidence.standard_error.clamp_min(1e-9)
    assert z.abs().max() < 5


@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
@pytest.mark.parametrize("draw", [in_plates, in_the_event, rows_by_handler, rows_by_method])
@pytest.mark.parametrize("forgotten", ["model", "guide"])
def test_a_mask_in_one_of_both_is_refused(draw: Draw, forgotten: str) -> None:
    mask = ROW_MASK
    model, guide = pair_of(draw, **{f"{forgotten}_mask": False})
    for measure in (
        lambda: pv.log_evidence(model, guide, (X, mask), draws=4),
        lambda: pv.log_evidence(model, guide, (X[:3], mask[:3]), method="annealed", draws=4),
        lambda: pv.aggregate(guide, (X, mask), model=model),
    ):
        if forgotten == "guide" and "aggregate" in measure.__code__.co_names:
            continue  # nothing is masked in the guide's densities
        with pytest.raises(pv.InputError, match=r"latent site .z. in model and guide"):
            measure()
    with_both = pv.log_evidence(*pair_of(draw), (X, mask), draws=4)
    assert torch.allclose(with_both.values, log_evidence_of(X, mask), rtol=0, atol=1e-9)
    without = pv.log_evidence(
        *pair_of(draw, model_mask=False, guide_mask=False), (X, mask), draws=4
    )
    assert torch.allclose(without.values[mask[:, 0]], with_both.values[mask[:, 0]], atol=1e-9)


def test_rows_left_out_where_guide_and_prior_are_of_two_families() -> None:
    seen = ROW_MASK[:, 0]
    components = dist.Normal(torch.tensor([[-1.0], [1.0]]).expand(2, STEPS), 0.5).to_event(1)
    bimodal = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components)

    def make(prior: dist.Distribution) -> tuple[Any, Any]:
        def model(x: Tensor, seen: Tensor) -> None:
            with pyro.plate("data", len(x)), poutine.mask(mask=seen):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x: Tensor, seen: Tensor) -> None:
            with pyro.plate("data", len(x)), poutine.mask(mask=seen):
                covariance = 0.5 * torch.eye(STEPS)
                pyro.sample("z", dist.MultivariateNormal(x / 2, covariance))

        return model, guide

    standard = dist.Normal(torch.zeros(STEPS), 1.0).to_event(1)
    model, guide = make(standard)
    evidence = pv.log_evidence(model, guide, (X, seen), draws=4)
    assert torch.allclose(evidence.values, log_evidence_of(X, ROW_MASK), rtol=0, atol=1e-9)
    filled = pv.encode(guide, (X, seen), model=model)
    assert torch.allclose(filled.variance[~seen], torch.ones(()))

    model, guide = make(bimodal)
    evidence = pv.log_evidence(model, guide, (X / 4, seen), draws=2000)
    assert torch.equal(evidence.values[~seen], torch.zeros(int((~seen).sum())))
    mixed = pv.encode(guide, (X, seen), model=model, batch_size=7)  # runs guide and model
    z = mixed.sample((2,))
    own = dist.MultivariateNormal(X / 2, 0.5 * torch.eye(STEPS)).log_prob(z)
    truth = torch.where(seen, own, bimodal.log_prob(z))
    assert torch.allclose(mixed.log_prob(z), truth, rtol=0, atol=1e-9)
    assert pv.encode(guide, (X[seen], seen[seen])).batch_shape == (int(seen.sum()),)


@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_under_a_prior_without_units_of_its_own() -> None:
    model, guide = pair_of(in_the_event)
    agg = pv.aggregate(guide, (X, STEP_MASK), model=model)
    with pytest.raises(pv.InputError, match=r"independent units at site 'z'.*prior= to log_ev"):
        pv.log_evidence(UnderPrior(model, agg), guide, (X, STEP_MASK), draws=4)
    evidence = pv.log_evidence(model, guide, (X, STEP_MASK), prior=agg, draws=30)
    assert evidence.values.isfinite().all()


def test_masks_are_found_wherever_they_stand() -> None:
    fn = dist.Normal(torch.zeros(4, 3, 2), 1.0)
    rows, units = torch.arange(4) > 0, torch.arange(2) > 0
    site = {"fn": fn.mask(units).to_event(1).mask(rows[:, None]).to_event(1), "mask": None}
    base, present = elements(site)
    assert type(base) is dist.Normal
    assert torch.equal(present, (rows[:, None, None] & units).expand(4, 3, 2))
    assert elements({"fn": fn.mask(True).to_event(1), "mask": None})[1] is None
    assert not elements({"fn": fn.mask(False).to_event(1), "mask": None})[1].any()
    assert not elements({"fn": fn.to_event(1), "mask": torch.tensor(False)})[1].any()
    z = torch.ones(4, 3, 2)
    assert torch.allclose(unmasked(site["fn"]).log_prob(z), fn.to_event(2).log_prob(z))
