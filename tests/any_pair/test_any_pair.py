"""The contract: every measure works on every way of writing a pair, and leaves no trace of it."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from registry import CASES, DATA, EXACT, LATENT, ROWS, Case
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evidence.annealed import Annealing
from pyrovae.evidence.result import Evidence
from pyrovae.mixture.mixture import Mixture
from pyrovae.report import html

TINY = pv.Effort(
    codes=64, evidence_rows=6, evidence_draws=30, export_rows=3, export_draws=30, pictures=4,
    gap_rows=0, samples=30,
)  # fmt: skip
X = EXACT.sample(ROWS)
HELD_OUT = EXACT.sample(12, seed=1)

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def modules(value: Any) -> list[nn.Module]:
    """The modules behind a pair, whether functions, methods, or closures over a list."""
    seen: list[nn.Module] = []
    cells = getattr(getattr(value, "func", value), "__closure__", None) or ()
    for item in (value, getattr(value, "__self__", None), *(cell.cell_contents for cell in cells)):
        found = item["networks"] if isinstance(item, dict) and "networks" in item else [item]
        seen += [m for module in found if isinstance(module, nn.Module) for m in module.modules()]
    return seen


def state(*functions: Any) -> list[Any]:
    store = pyro.get_param_store()
    return [
        {name: (id(p), p.detach().clone().tolist()) for name, p in store.named_parameters()},
        {name: type(store._constraints[name]) for name in store},
        [(id(m), m.training) for f in functions for m in modules(f)],
        torch.get_rng_state().tolist(),
        repr(random.getstate()),
        repr(np.random.get_state()),
        torch.distributions.Distribution._validate_args,
        dist.is_validation_enabled(),
        pyro.settings.get("validate_infer"),
        pyro.settings.get("validate_poutine"),
        torch.is_grad_enabled(),
        list(_PYRO_STACK),
    ]


@contextmanager
def no_trace(*functions: Any) -> Iterator[None]:
    before = state(*functions)
    with warnings.catch_warnings():
        # Pairs that are not exact may have too heavy weights: that is said, and is not the point.
        warnings.filterwarnings("ignore", "(?s).*(k̂|support)", UserWarning)
        yield
    assert state(*functions) == before


@each
def test_encode_and_aggregate(case: Case) -> None:
    model, guide = case.make()
    batch = case.batch(X)
    with no_trace(model, guide):
        encoding = pv.encode(guide, batch, **case.encoder_names)
        agg = pv.aggregate(guide, batch, **case.encoder_names)
    assert (encoding.batch_shape, encoding.event_shape) == ((ROWS,), (LATENT,))
    assert not encoding.mean.requires_grad
    assert len(agg) == ROWS
    assert agg.log_prob(agg.sample((5,))).isfinite().all()
    if case.exact:
        assert torch.allclose(encoding.mean, EXACT.posterior(X).mean, rtol=0, atol=1e-12)
        assert torch.allclose(encoding.stddev, EXACT.posterior(X).stddev, rtol=0, atol=1e-12)


@each
def test_log_evidence(case: Case) -> None:
    model, guide = case.make()
    batch = case.batch(X)
    with no_trace(model, guide):
        found = pv.log_evidence(model, guide, batch, draws=30, **case.names)
        other = standard_prior().expand((1,))
        same = pv.log_evidence(model, guide, batch, draws=30, prior=other, **case.names)
    assert found.values.shape == (ROWS,)
    assert found.values.isfinite().all()
    assert torch.allclose(found.values, same.values, rtol=1e-12)
    if case.exact:
        assert torch.allclose(found.values, EXACT.log_prob(X), rtol=0, atol=1e-9)


@each
def test_diagnose(case: Case) -> None:
    model, guide = case.make()
    measure = partial(
        pv.diagnose,
        model,
        guide,
        case.batch(X),
        held_out=case.batch(HELD_OUT),
        effort=TINY,
        **case.names,
    )
    with no_trace(model, guide):
        if not case.amortized:
            with pytest.raises(ValueError, match="fixed size"):
                measure()
            return
        found = measure()
    table = found.summary().set_index(["data", "measure"])
    told = table[table["unresolved"] == ""]  # of few rows and draws not all can be
    assert np.isfinite(told["value"]).all() and len(told) > 10
    assert found.pictures.samples["prior"].shape == (4, DATA)
    assert found.to_arviz() is not None
    if not case.exact or case is CASES[0]:  # the exact ones are all the same to the report
        assert "ample from" in html.render(found, facts={"data": case.name})
    if case.exact:
        value = table.loc[("held-out", "log_p_x.prior"), "value"]
        rows = found.evidence["prior"].rows
        assert value == pytest.approx(float(EXACT.log_prob(HELD_OUT[rows]).mean()), abs=1e-9)
        assert found.pictures.data.shape == (4, DATA)


@each
def test_fit(case: Case) -> None:
    model, guide = case.make()
    options = {"epochs": 2, "batch_size": 16, "progress": False, **case.fit}
    before = state(model, guide)
    run = pv.fit(model, guide, case.batch(X), **options)
    assert np.isfinite(run.history.train).all()
    after = state(model, guide)
    assert after[2:] == before[2:]


def standard_prior() -> dist.Distribution:
    return dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)


# -- exact answers where the pair is not the plain one ---------------------------------------------


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def evidence(name: str, draws: int) -> tuple[Evidence, tuple[Tensor, ...]]:
    case = case_named(name)
    batch = case.batch(X)
    return pv.log_evidence(*case.make(), batch, draws=draws, **case.names), batch


def test_masked_rows_have_a_likelihood_of_one() -> None:
    found, (_, seen) = evidence("rows_left_out_by_a_mask", 5)
    assert torch.allclose(found.values, torch.where(seen, EXACT.log_prob(X), 0.0), atol=1e-9)


def test_missing_entries_are_integrated_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k̂ may be high where much is missing
        found, (x, seen) = evidence("missing_entries_by_obs_mask", 4000)
    joint = EXACT.evidence()
    truth = []
    for row, use in zip(x, seen, strict=True):
        covariance = joint.covariance_matrix[use][:, use]
        truth.append(dist.MultivariateNormal(joint.mean[use], covariance).log_prob(row[use]))
    z = (found.values - torch.stack(truth)) / found.standard_error
    usable = found.pareto_k < 0.7
    assert int(usable.sum()) > ROWS / 2
    assert abs(float(z[usable].mean())) < 4 / int(usable.sum()) ** 0.5


def test_a_discrete_site_of_the_model_is_summed_out() -> None:
    case = case_named("discrete_site_of_the_model_summed_out")
    with pytest.warns(UserWarning, match=r"k̂ > 0\."):
        found = pv.log_evidence(*case.make(), X, method="prior", draws=20_000)
    clusters = torch.stack([EXACT.log_prob(X - y) for y in (0.0, 1.0)])
    truth = (clusters + torch.tensor([[0.7], [0.3]]).log()).logsumexp(0)
    z = ((found.values - truth) / found.standard_error)[found.pareto_k < 0.7]
    assert len(z) > ROWS / 2
    assert abs(float(z.mean())) < 4 / len(z) ** 0.5


def test_components_of_a_guide_that_does_not_look_are_all_the_same() -> None:
    _, guide = case_named("guide_that_does_not_look_at_the_data").make()
    agg = pv.aggregate(guide, X)
    z = agg.sample((7,))
    assert torch.allclose(agg.log_prob(z), standard_prior().log_prob(z))
    assert isinstance(agg, Mixture)


# -- what can't work says so -----------------------------------------------------------------------


def normal(x: Tensor) -> dist.Distribution:
    return dist.Normal(x[:, :LATENT], 1.0).to_event(1)


def guide_in_plate(*sites: tuple[str, Any]) -> Any:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name, make in sites:
                pyro.sample(name, make(x))

    return guide


def no_plate(x: Tensor) -> None:
    pyro.sample("z", normal(x))


def chain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", normal(x))
        pyro.sample("z", dist.Normal(top, 1.0).to_event(1))


def chain_of_three(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", normal(x))
        z = pyro.sample("z", dist.Normal(top, 1.0).to_event(1))
        pyro.sample("last", dist.Normal(z, 1.0).to_event(1))


def fixed_plate(x: Tensor) -> None:
    with pyro.plate("people", ROWS):
        pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("guide", "names", "message"),
    [
        (
            guide_in_plate(("code", normal)),
            {},
            r"site 'z' in the guide; got \['code'\].*site=",
        ),
        (no_plate, {}, "plate over the data around the guide's site 'z'; got none"),
        (chain, {}, r"depend on the draws of \['top'\].*site="),
        (chain_of_three, {"site": ("z", "last")}, r"depend on the draws of \['top'"),
        (
            guide_in_plate(("a", normal), ("b", lambda x: dist.Dirichlet(x.exp()))),
            {"site": ("a", "b")},
            "sites at which all units have the same support, each by itself",
        ),
        (
            guide_in_plate(("z", lambda x: dist.Categorical(logits=x))),
            {},
            "continuous latent at the guide's site 'z'; got Categorical",
        ),
        (
            guide_in_plate(("z", lambda x: dist.Delta(x, event_dim=1))),
            {},
            "density at the guide's site 'z'; got a point",
        ),
        (
            guide_in_plate(("z", lambda x: dist.LKJCholesky(3, torch.ones(len(x))))),
            {},
            "LKJCholesky.*guide's site 'z'",
        ),
        (fixed_plate, {"batch_size": 7}, r"plate of 7 rows.*'z'.*'people': 40.*batch_size="),
    ],
)
def test_a_guide_that_cannot_be_aggregated(guide: Any, names: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pv.aggregate(guide, X, **names)


class Fixed(dist.TorchDistribution):
    """A family that keeps nothing of what it is made from."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector

    def __init__(self, loc: Tensor, batch_shape: torch.Size | None = None) -> None:
        self._normal = dist.Normal(loc, 1.0).to_event(1)
        super().__init__(batch_shape or self._normal.batch_shape, loc.shape[-1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Fixed:
        return Fixed(self._normal.mean.expand(*batch_shape, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._normal.log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._normal.rsample(sample_shape)


def test_a_family_that_cannot_be_laid_end_to_end_is_the_guide_itself() -> None:
    agg = pv.aggregate(guide_in_plate(("z", lambda x: Fixed(x[:, :LATENT]))), X, batch_size=10)
    z = agg.sample((3,))
    right = normal(X).log_prob(z.unsqueeze(1)).logsumexp(1) - math.log(ROWS)
    assert torch.allclose(agg.log_prob(z), right)

    def with_parameters(x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            pyro.sample("z", Fixed(torch.zeros(ROWS, LATENT)))

    with pytest.raises(ValueError, match=r"expected a family that can be rebuilt.*got Fixed"):
        pv.encode(with_parameters, X)


def test_a_top_latent_can_be_aggregated_alone() -> None:
    assert len(pv.aggregate(chain, X, site="top")) == ROWS


def test_a_latent_and_what_depends_on_it_can_be_aggregated_as_one() -> None:
    agg = pv.aggregate(chain, X, site=("z", "top"), batch_size=7)
    z = agg.sample((5,))
    top, below = z[:, None, LATENT:], z[:, None, :LATENT]
    by_row = dist.Normal(X[:, :LATENT], 1.0).to_event(1).log_prob(top)
    by_row = by_row + dist.Normal(top, 1.0).to_event(1).log_prob(below)
    assert torch.allclose(agg.log_prob(z), by_row.logsumexp(-1) - math.log(ROWS), atol=1e-12)


def test_sites_of_several_families_can_be_aggregated_as_one() -> None:
    sites = (("a", normal), ("b", lambda x: dist.LogNormal(x, 1.0).to_event(1)))
    agg = pv.aggregate(guide_in_plate(*sites), X, site=("a", "b"))
    z = agg.sample((5,))
    by_row = normal(X).log_prob(z[:, None, :LATENT])
    by_row = by_row + dist.LogNormal(X, 1.0).to_event(1).log_prob(z[:, None, LATENT:])
    assert torch.allclose(agg.log_prob(z), by_row.logsumexp(-1) - math.log(ROWS), atol=1e-12)
    assert agg.support.check(z).all()
    assert not agg.support.check(-z).any()


def test_two_plates_of_one_size_are_told_apart() -> None:
    x = EXACT.sample(LATENT)

    def guide(rows: Tensor) -> None:
        loc, scale = EXACT.posterior(rows).mean, EXACT.posterior(rows).stddev
        with pyro.plate("units", LATENT), pyro.plate("people", len(rows)):
            pyro.sample("z", dist.Normal(loc, scale))

    assert torch.allclose(pv.encode(guide, x).mean, EXACT.posterior(x).mean)


def test_a_model_of_several_observed_sites_needs_a_name_only_for_pictures() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_prior())
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("left", dist.Normal(mean[:, :3], EXACT.noise).to_event(1), obs=x[:, :3])
            pyro.sample("right", dist.Normal(mean[:, 3:], EXACT.noise).to_event(1), obs=x[:, 3:])

    _, guide = case_named("functions_with_pyro_param").make()
    found = pv.log_evidence(model, guide, X, draws=5)
    assert torch.allclose(found.values, EXACT.log_prob(X), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"\['left', 'right'\].*observed="):
        pv.diagnose(model, guide, X, held_out=HELD_OUT, effort=TINY)
    shown = pv.diagnose(model, guide, X, held_out=HELD_OUT, observed="right", effort=TINY)
    assert shown.pictures.data.shape == (4, 3)


def test_a_prior_that_depends_on_labels_needs_another_to_compare_with() -> None:
    label = (torch.arange(ROWS) % 2).to(X)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = y.unsqueeze(-1).expand(-1, LATENT)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.Normal(mean, EXACT.noise).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", EXACT.posterior(x))

    measure = partial(
        pv.diagnose, model, guide, (X, label), held_out=(HELD_OUT, label[:12]), effort=TINY
    )
    with pytest.raises(ValueError, match=r"depends on the data.*prior="):
        measure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = measure(prior=standard_prior())
        alone = pv.log_evidence(model, guide, (HELD_OUT, label[:12]), draws=30)
    assert found.evidence["prior"].values.shape == (6,)
    assert alone.values.isfinite().all()


def test_annealing_takes_arguments_and_refuses_what_is_drawn_anew() -> None:
    covariates = case_named("covariates_as_arguments")
    short = Annealing(temperatures=5)
    batch = tuple(argument[:6] for argument in covariates.batch(X))
    found = pv.log_evidence(*covariates.make(), batch, method=short, draws=30)
    assert torch.allclose(found.values, EXACT.log_prob(X[:6]), rtol=0, atol=1e-9)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_prior())
            noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.Normal(mean, noise.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", EXACT.posterior(x))

    with pytest.raises(ValueError, match="draws other latent sites too"):
        pv.log_evidence(model, guide, X, method=short, draws=4)


@each
def test_every_pair_that_can_simulate_is_ranked(case: Case) -> None:
    model, guide = case.make()
    if not case.amortized:
        with pytest.raises(pv.InputError, match="expected a pair that takes any number of rows"):
            pv.calibrate(model, guide, case.batch(X), simulations=100, **case.names)
        return
    found = pv.calibrate(model, guide, case.batch(X), simulations=100, **case.names)
    assert set(found.refused) <= {"TARP distance to points by x"}  # behind a mask
    assert not case.exact or float(found.adjusted.min()) > 1e-4


def test_simulated_data_take_the_place_of_the_argument_that_is_observed() -> None:
    covariates = case_named("covariates_as_arguments")
    batch = covariates.batch(X)
    found = pv.calibrate(*covariates.make(), batch, simulations=100)
    assert float(found.adjusted.min()) > 1e-4  # the guide is exact

    def changed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENT]).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=2 * x[:, 0])

    _, guide = covariates.make()
    with pytest.raises(ValueError, match="one argument that the site 'x' observes as it is"):
        pv.calibrate(changed, lambda x: guide(x, x[:, 0]), X, simulations=100)
