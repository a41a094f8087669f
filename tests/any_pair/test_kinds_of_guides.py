"""Guides with more in them than one family at each row: each has a brute-force or exact answer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from registry import EXACT
from torch import Tensor

import pyrovae as pv
from pyrovae.mixture import families
from pyrovae.mixture.families.nested import MixtureByRow, Pushed
from pyrovae.pairs.joint_sites import Ancestral
from pyrovae.pairs.pair import Pair

ROWS, LATENT = 12, 2
X = EXACT.sample(ROWS)
TINY = pv.Effort(
    codes=64, evidence_rows=4, evidence_draws=30, export_rows=3, export_draws=30, pictures=4,
    simulations=100, gap_rows=0, samples=30,
)  # fmt: skip


@pytest.fixture(autouse=True)
def rough_weights() -> Iterator[None]:
    """Guides here need not be good, and small runs say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(k̂|support|guide, which may take)", UserWarning)
        yield


def standard() -> dist.Distribution:
    return dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)


def plain_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        mean = z @ EXACT.weight.T + EXACT.bias
        pyro.sample("x", dist.Normal(mean, EXACT.noise).to_event(1), obs=x)


def guide_of(law: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", law(x))

    return guide


def base(x: Tensor) -> dist.Normal:
    q = EXACT.posterior(x)
    return dist.Normal(q.mean, 2 * q.stddev)


def two(x: Tensor, logits: Tensor | None = None) -> dist.MixtureSameFamily:
    """Two normals at each row, of weights by row."""
    q = base(x)
    means = torch.stack([q.mean, -q.mean], 1)
    mixing = dist.Categorical(logits=x[:, :2] if logits is None else logits)
    return dist.MixtureSameFamily(mixing, dist.Normal(means, 0.7).to_event(1))


def flow(make: Any, *arguments: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return make(*arguments, **options).double()


IAF = flow(T.affine_autoregressive, 2, hidden_dims=[8])
COUPLING = flow(T.affine_coupling, 2, hidden_dims=[4])
SPLINE = flow(T.Spline, 2)
SPLINE_COUPLING = flow(T.spline_coupling, 2, hidden_dims=[4])
HOUSEHOLDER = flow(T.householder, 2)
CONDITIONAL = flow(T.conditional_affine_autoregressive, 2, context_dim=6, hidden_dims=[8])
CONDITIONAL_COUPLING = flow(T.conditional_affine_coupling, 2, context_dim=6, hidden_dims=[8])
CONDITIONAL_SPLINE = flow(T.conditional_spline, 2, context_dim=6, hidden_dims=[8])


def pushed(x: Tensor, *steps: Any) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(base(x), list(steps))


SHARED: dict[str, Callable[[Tensor], Any]] = {
    "inverse autoregressive": lambda x: pushed(x, IAF),
    "coupling": lambda x: pushed(x, COUPLING),
    "spline by unit": lambda x: pushed(x, SPLINE).to_event(1),
    "spline coupling": lambda x: pushed(x, SPLINE_COUPLING),
    "several": lambda x: pushed(x, IAF, T.Permute(torch.tensor([1, 0])), COUPLING),
    "composed": lambda x: pushed(x, T.ComposeTransform([HOUSEHOLDER, IAF])),
    "made at each call": lambda x: pushed(
        x, T.AffineTransform(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), event_dim=1)
    ),
    "identity": lambda x: dist.TransformedDistribution(
        base(x).to_event(1), [T.biject_to(standard().support)]
    ),
    "onto positive numbers": lambda x: pushed(x, IAF, T.ExpTransform()),
    "full covariances": lambda x: dist.TransformedDistribution(
        dist.MultivariateNormal(base(x).mean, torch.eye(2)), [IAF]
    ),
    "a mixture through a flow": lambda x: dist.TransformedDistribution(two(x), [IAF]),
}
MIXED: dict[str, Callable[[Tensor], Any]] = {
    "mixture": two,
    "a weight of zero": lambda x: two(x, torch.tensor([0.0, -math.inf]).expand(len(x), 2)),
    "mixing shared by all rows": lambda x: two(x, torch.tensor([0.3, -0.4])),
    "full covariances": lambda x: dist.MixtureSameFamily(
        dist.Categorical(probs=torch.ones(len(x), 2)),
        dist.MultivariateNormal(torch.stack([base(x).mean, x[:, :2]], 1), torch.eye(2)),
    ),
    "pathwise": lambda x: dist.MixtureOfDiagNormals(
        torch.stack([x[:, :2], -x[:, :2]], 1), torch.ones(len(x), 2, 2), x[:, :2]
    ),
    "pathwise, of one covariance": lambda x: dist.MixtureOfDiagNormalsSharedCovariance(
        torch.stack([x[:, :2], -x[:, :2]], 1), torch.ones(len(x), 2), x[:, :2]
    ),
    "mixture in each unit": lambda x: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.stack([x, -x], -1)[:, :2], 0.5)
    ).to_event(1),
    "mixture of flows": lambda x: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(x), 2)),
        dist.TransformedDistribution(dist.Normal(torch.stack([x, -x], 1)[..., :2], 0.5), [IAF]),
    ),
}
BY_ROW: dict[str, Callable[[Tensor], Any]] = {
    "conditional autoregressive": lambda x: pushed(x, CONDITIONAL.condition(x)),
    "conditional coupling": lambda x: pushed(x, CONDITIONAL_COUPLING.condition(x)),
    "conditional spline": lambda x: pushed(x, CONDITIONAL_SPLINE.condition(x)).to_event(1),
    "scales by row": lambda x: pushed(x, T.AffineTransform(x[:, :2], x[:, 2:4].exp(), event_dim=1)),
}
PLANAR = flow(T.planar, 2)
RADIAL = flow(T.radial, 2)
SYLVESTER = flow(T.sylvester, 2)
CONDITIONAL_PLANAR = flow(T.conditional_planar, 2, 6)
WITHOUT_INVERSE: dict[str, Callable[[Tensor], Any]] = {
    "planar": lambda x: pushed(x, PLANAR),
    "radial": lambda x: pushed(x, RADIAL),
    "sylvester": lambda x: pushed(x, SYLVESTER),
    "conditional planar": lambda x: pushed(x, CONDITIONAL_PLANAR.condition(x)),
    "planar after a flow": lambda x: pushed(x, IAF, PLANAR),
}
KINDS = {
    **{f"shared: {name}": (law, None) for name, law in SHARED.items()},
    **{f"mixed: {name}": (law, None) for name, law in MIXED.items()},
    **{f"by row: {name}": (law, Ancestral) for name, law in BY_ROW.items()},
}


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_aggregated_posterior_is_the_mean_of_the_rows_densities(name: str) -> None:
    law, kind = KINDS[name]
    agg = pv.aggregate(guide_of(law), X)
    assert len(agg) == ROWS
    assert kind is None or isinstance(agg.encoding, kind)
    torch.manual_seed(0)
    z = agg.sample((5,))
    by_row = law(X).log_prob(z.unsqueeze(1).expand(5, ROWS, LATENT))
    for batch_size in (1, ROWS - 1):
        parts = pv.aggregate(guide_of(law), X, batch_size=batch_size)
        assert torch.allclose(parts.log_prob(z), agg.log_prob(z), atol=1e-9)
    assert torch.allclose(agg.log_prob(z), by_row.logsumexp(1) - math.log(ROWS), atol=1e-9)
    assert torch.allclose(agg[:7].log_prob(z), by_row[:, :7].logsumexp(1) - math.log(7), atol=1e-9)
    without = agg.leave_one_out_log_prob(z, torch.zeros(5, dtype=torch.long))
    assert torch.allclose(without, by_row[:, 1:].logsumexp(1) - math.log(ROWS - 1), atol=1e-9)
    shares = agg.responsibilities(z, top=ROWS)
    assert torch.allclose(shares.weight, by_row.softmax(1).sort(1, descending=True).values)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("by row")])
def test_the_score_is_that_of_the_mean_of_the_rows_densities(name: str) -> None:
    law, _ = KINDS[name]
    agg = pv.aggregate(guide_of(law), X)
    torch.manual_seed(0)
    z = agg.sample((5,)).requires_grad_()
    (right,) = torch.autograd.grad(law(X).log_prob(z.unsqueeze(1)).logsumexp(1).sum(), z)
    assert torch.allclose(agg.score(z.detach()), right, atol=1e-8)


def test_an_identity_leaves_the_family_and_a_mixture_its_marginals() -> None:
    agg = pv.aggregate(guide_of(SHARED["identity"]), X)
    assert families.family(agg.encoding) == "Normal"
    mixed = pv.aggregate(guide_of(two), X)
    first = mixed.marginal(0)
    z = torch.linspace(-2, 2, 5)
    by_row = two(X)
    units = dist.MixtureSameFamily(
        by_row.mixture_distribution, families.marginal(by_row.component_distribution, 0)
    )
    right = units.log_prob(z.unsqueeze(-1)).logsumexp(1) - math.log(ROWS)
    assert torch.allclose(first.log_prob(z), right)


def test_a_flow_that_is_trained_on_leaves_what_was_aggregated() -> None:
    step = flow(T.affine_autoregressive, 2, hidden_dims=[8])
    for law in (
        lambda x: pushed(x, step),
        lambda x: dist.MixtureSameFamily(
            dist.Categorical(torch.ones(len(x), 1)),
            dist.TransformedDistribution(dist.Normal(x[:, None, :2], 0.5), [step]),
        ),
    ):
        guide = guide_of(law)
        pyro.sample("z", law(X))  # what the step remembers of it has a gradient
        agg = pv.aggregate(guide, X)
        z = agg.sample((3,))
        before = agg.log_prob(z)
        with torch.no_grad():
            for parameter in step.parameters():
                parameter += 0.1
        assert torch.equal(agg.log_prob(z), before)
        assert not torch.allclose(pv.aggregate(guide, X).log_prob(z), before)


@pytest.mark.parametrize("name", WITHOUT_INVERSE)
def test_without_an_inverse_a_density_is_known_at_its_own_draws_only(name: str) -> None:
    guide = guide_of(WITHOUT_INVERSE[name])
    for measure in (pv.encode, pv.aggregate):
        with pytest.raises(pv.InputError, match="no inverse and is known at its own draws only"):
            measure(guide, X)
    with pytest.raises(pv.InputError, match="no inverse"):
        pv.diagnose(plain_model, guide, X, held_out=X, effort=TINY)
    found = pv.log_evidence(plain_model, guide, X, draws=2000)
    z = ((found.values - EXACT.log_prob(X)) / found.standard_error)[found.pareto_k < 0.7]
    assert len(z) > ROWS / 2
    assert abs(float(z.mean())) < 4 / len(z) ** 0.5 + 0.1  # the logarithm errs low by half a σ²


@pytest.mark.parametrize(
    "law",
    [
        KINDS["shared: inverse autoregressive"][0],
        KINDS["mixed: mixture"][0],
        KINDS["mixed: pathwise"][0],
        KINDS["by row: conditional autoregressive"][0],
    ],
)
def test_everything_is_measured_of_such_a_guide(law: Any) -> None:
    found = pv.diagnose(plain_model, guide_of(law), X, held_out=X[:8], effort=TINY)
    table = found.summary()
    assert bool(table["value"].dropna().abs().max() < 1e6)
    assert "too few rows" in found.advice or "Sample from" in found.advice


def test_mixtures_go_into_files_and_flows_are_refused(tmp_path: Any) -> None:
    agg = pv.aggregate(guide_of(two), X)
    pv.save(agg, tmp_path / "agg")
    z = agg.sample((3,))
    assert torch.equal(pv.load(tmp_path / "agg").log_prob(z), agg.log_prob(z))
    for law in (SHARED["coupling"], BY_ROW["scales by row"]):
        with pytest.raises(pv.InputError, match="Keep the pair and the data"):
            pv.save(pv.aggregate(guide_of(law), X), tmp_path / "flow")


# -- labels beside the code ------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
CENTRES = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-1.0, 3.0]], dtype=torch.float64)


def clusters(x: Tensor) -> dist.MultivariateNormal:
    """p(x | y) for each label, batch shape ``(B, 3)`` when evaluated at ``x.unsqueeze(1)``."""
    mean = CENTRES @ EXACT.weight.T + EXACT.bias
    return dist.MultivariateNormal(mean, EXACT.evidence().covariance_matrix)


def given_label(x: Tensor, label: Tensor) -> dist.Distribution:
    """p(z | x, y) of a prior N(centre of y, I)."""
    q = EXACT.posterior(x - CENTRES[label] @ EXACT.weight.T)
    return dist.Normal(q.mean + CENTRES[label], q.stddev).to_event(1)


def one_hot_or_not(one_hot: bool) -> tuple[Any, Any]:
    """Clusters in the code, with the exact posterior of label and code as the guide."""

    def draw(logits: Tensor) -> Tensor:
        if not one_hot:
            return pyro.sample("y", dist.Categorical(logits=logits))
        return pyro.sample("y", dist.OneHotCategorical(logits=logits)).argmax(-1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            label = draw(WEIGHTS.log())
            z = pyro.sample("z", dist.Normal(CENTRES[label], 1.0).to_event(1))
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.Normal(mean, EXACT.noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            label = draw(clusters(x).log_prob(x.unsqueeze(1)) + WEIGHTS.log())
            pyro.sample("z", given_label(x, label))

    return model, guide


@pytest.mark.parametrize("one_hot", [False, True])
def test_labels_are_summed_over_in_guide_and_model(one_hot: bool) -> None:
    model, guide = one_hot_or_not(one_hot)
    right = (clusters(X).log_prob(X.unsqueeze(1)) + WEIGHTS.log()).logsumexp(1)
    assert torch.allclose(pv.log_evidence(model, guide, X, draws=3).values, right, atol=1e-9)
    encoding = pv.encode(guide, X, batch_size=39)
    assert isinstance(encoding, MixtureByRow)
    z = encoding.sample()
    share = (clusters(X).log_prob(X.unsqueeze(1)) + WEIGHTS.log()).log_softmax(1)
    labels = torch.arange(3).expand(ROWS, 3).unbind(1)
    terms = torch.stack([given_label(X, label).log_prob(z) for label in labels], 1)
    assert torch.allclose(encoding.log_prob(z), (share + terms).logsumexp(1))
    prior = Pair(model, guide).prior(X)
    components = dist.Normal(CENTRES, 1.0).to_event(1)
    right = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), components).log_prob(z)
    assert torch.allclose(prior.log_prob(z), right)
    found = pv.diagnose(model, guide, X, held_out=X[:8], effort=TINY)
    assert found.guide_check.calibration is not None  # of an exact guide


def test_two_labels_and_one_that_only_the_guide_has() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = EXACT.posterior(x)
            sign = 2.0 * pyro.sample("sign", dist.Bernoulli(0.5).expand([len(x)])) - 1
            size = 0.1 * pyro.sample("size", dist.Categorical(torch.ones(len(x), 3)))
            shift = (sign * size).unsqueeze(-1)
            pyro.sample("z", dist.Normal(q.mean + shift, 1.2 * q.stddev).to_event(1))

    agg = pv.aggregate(guide, X)
    assert agg.encoding.component_distribution.batch_shape == (ROWS, 6)
    found = pv.log_evidence(plain_model, guide, X, draws=2000)
    z = (found.values - EXACT.log_prob(X)) / found.standard_error
    assert abs(float(z.mean())) < 4 / ROWS**0.5 + 0.1


def test_a_helper_of_the_guide_that_the_model_draws_too_leaves_log_p_of_x() -> None:
    """A noisy copy of the code in the model; the guide draws the copy first, and is exact."""
    noise = 0.3

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("copy", dist.Normal(z, noise).to_event(1))
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.Normal(mean, EXACT.noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        q = EXACT.posterior(x)
        spread = q.variance + noise**2
        with pyro.plate("data", len(x)):
            copy = pyro.sample("copy", dist.Normal(q.mean, spread.sqrt()).to_event(1))
            mean = q.mean + q.variance / spread * (copy - q.mean)
            scale = (q.variance * noise**2 / spread).sqrt()
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    found = pv.log_evidence(model, guide, X, draws=3)
    assert torch.allclose(found.values, EXACT.log_prob(X), atol=1e-9)


# -- what is one for all rows ----------------------------------------------------------------------

NOISES = (-0.9, 0.15)  # of the logarithm of the noise, in the guide


def with_noise(*, point: bool = False, first: bool = True, prior: bool = True) -> tuple[Any, Any]:
    """The exact pair, of which the noise is drawn once for all rows."""

    def model(x: Tensor) -> None:
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0)) if prior else None
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=x)

    def draw() -> None:
        loc = torch.tensor(NOISES[0])
        law = dist.Delta(loc.exp()) if point else dist.LogNormal(loc, NOISES[1])
        pyro.sample("noise", law)

    def guide(x: Tensor) -> None:
        if first:
            draw()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(EXACT.posterior(x).mean, 1.0).to_event(1))
        if not first:
            draw()

    return model, guide


def evidence_at(noise: Tensor) -> Tensor:
    """log p(x | noise), shape ``(..., ROWS)``."""
    covariance = EXACT.weight @ EXACT.weight.T + noise[..., None, None, None] ** 2 * torch.eye(6)
    return dist.MultivariateNormal(EXACT.bias, covariance).log_prob(X)


@pytest.mark.parametrize("first", [True, False])
def test_a_point_for_all_rows_is_a_number_of_the_model(first: bool) -> None:
    model, guide = with_noise(point=True, first=first)
    found = pv.log_evidence(model, guide, X, draws=200)
    noise = torch.tensor(NOISES[0]).exp()

    def fixed(x: Tensor) -> None:
        poutine.block(poutine.condition(model, {"noise": noise}), hide=["noise"])(x)

    same = pv.log_evidence(fixed, poutine.block(guide, hide=["noise"]), X, draws=200)
    for result in (found, same):
        z = (result.values - evidence_at(noise)) / result.standard_error
        assert abs(float(z.mean())) < 4 / ROWS**0.5 + 0.15


def test_draws_for_all_rows_are_averaged_over() -> None:
    model, guide = with_noise()
    found = pv.log_evidence(model, guide, X, draws=400)
    noise = (NOISES[0] + NOISES[1] * torch.linspace(-6, 6, 401)).exp()
    weight = torch.linspace(-6, 6, 401).square().mul(-0.5).log_softmax(0)
    right = (evidence_at(noise) + weight.unsqueeze(-1)).logsumexp(0)
    z = (found.values - right) / found.standard_error
    assert abs(float(z.mean())) < 4  # all rows share their draws, and may err alike
    assert float(z.abs().max()) < 5


def test_everything_is_measured_beside_what_is_one_for_all_rows() -> None:
    for options in ({"point": True}, {"point": False}):
        found = pv.diagnose(*with_noise(**options), X, held_out=X[:8], effort=TINY)
        assert bool(found.summary()["value"].dropna().abs().max() < 1e6)


@pytest.mark.parametrize("rows", [2, 3, 5, 12])
def test_parameters_in_a_plate_of_their_own_are_told_from_the_rows(rows: int) -> None:
    """Weights of 3 columns drawn in a plate, also where there are three rows."""

    def model(x: Tensor) -> None:
        with pyro.plate("columns", 3):
            pyro.sample("weight", dist.Normal(0.0, 1.0))
        plain_model(x)

    def guide(x: Tensor) -> None:
        with pyro.plate("columns", 3):
            pyro.sample("weight", dist.Normal(5.0, 0.1))
        guide_of(EXACT.posterior)(x)

    found = pv.log_evidence(model, guide, X[:rows], draws=3)
    assert torch.allclose(found.values, EXACT.log_prob(X[:rows]), atol=1e-9)
    assert len(pv.aggregate(guide, X[:rows])) == rows


@pytest.mark.parametrize("rows", [1, 2, 4, 12])
def test_factors_count_in_the_rows_and_not_beside_them(rows: int) -> None:
    def with_factors(x: Tensor) -> None:
        plain_model(x)
        pyro.factor("penalty", -x.square().sum())
        pyro.factor("sizes", torch.ones(4))

    guide = guide_of(EXACT.posterior)
    found = pv.log_evidence(with_factors, guide, X[:rows], draws=3)
    assert torch.allclose(found.values, EXACT.log_prob(X[:rows]), atol=1e-9)

    def by_row(x: Tensor) -> None:
        plain_model(x)
        with pyro.plate("again", len(x)):
            pyro.factor("bonus", x[:, 0])

    found = pv.log_evidence(by_row, guide, X[:rows], draws=3)
    assert torch.allclose(found.values, EXACT.log_prob(X[:rows]) + X[:rows, 0], atol=1e-9)


def test_a_penalty_in_the_guide_is_no_row_s() -> None:
    def guide(x: Tensor) -> None:
        pyro.factor("penalty", torch.tensor(-3.0), has_rsample=False)
        guide_of(EXACT.posterior)(x)

    found = pv.log_evidence(plain_model, guide, X, draws=3)
    assert torch.allclose(found.values, EXACT.log_prob(X), atol=1e-9)
    assert torch.allclose(pv.encode(guide, X).mean, EXACT.posterior(X).mean)


def test_an_autoguide_of_a_code_and_a_parameter() -> None:
    model, _ = with_noise()
    guide = AutoNormal(model)
    guide(X)
    found = pv.log_evidence(model, guide, X, draws=50)
    assert found.values.isfinite().all()
    assert len(pv.aggregate(guide, X)) == ROWS


def of_all_rows(shape: Callable[[int], Any], event: int) -> Callable[[Tensor], None]:
    """A latent of each row that stands in no plate."""

    def model(x: Tensor) -> None:
        pyro.sample("u", dist.Normal(0.0, 1.0).expand(shape(len(x))).to_event(event))
        plain_model(x)

    return model


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize(
    ("shape", "event"),
    [
        (lambda n: [n], 0),
        (lambda n: [n], 1),
        (lambda n: [n, 3], 2),
        (lambda n: [3, n], 2),
        (lambda n: [3 * n], 1),
    ],
)
def test_a_latent_of_each_row_outside_of_the_plate_is_not_one_for_all(
    shape: Any, event: int, rows: int
) -> None:
    model = of_all_rows(shape, event)
    with pytest.raises(pv.InputError, match="plate over the data around the model's site 'u'"):
        pv.log_evidence(model, guide_of(EXACT.posterior), X[:rows], draws=3)


def test_data_outside_of_the_plate_are_not_left_out() -> None:
    def total(x: Tensor) -> None:
        plain_model(x)
        pyro.sample("total", dist.Normal(0.0, 1.0), obs=x.sum())

    with pytest.raises(pv.InputError, match="plate over the data around the model's site 'total'"):
        pv.log_evidence(total, guide_of(EXACT.posterior), X, draws=3)


def test_a_site_in_the_plate_of_one_function_only() -> None:
    model, _ = with_noise()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("noise", dist.LogNormal(0.0, 0.1))
            pyro.sample("z", EXACT.posterior(x))

    with pytest.raises(pv.InputError, match="plate over the data around the model's site 'noise'"):
        pv.log_evidence(model, guide, X, draws=3)


def test_a_factor_by_row_in_the_guide() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", EXACT.posterior(x))
            pyro.factor("bonus", x[:, 0], has_rsample=False)

    for measure in (
        lambda: pv.aggregate(guide, X),
        lambda: pv.log_evidence(plain_model, guide, X, draws=3),
    ):
        with pytest.raises(pv.InputError, match="got the factor 'bonus' in each row"):
            measure()


def test_kinds_that_were_meant() -> None:
    """The flows above take the way they are meant to take."""
    for name, law in SHARED.items():
        encoding = pv.encode(guide_of(law), X)
        assert isinstance(encoding, Pushed) or name == "identity", name
