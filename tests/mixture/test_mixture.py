"""The mixture as a Pyro distribution: shapes, draws, moments, views."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.errors import InputError
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.families import convert, diagonal_normal
from pyrovae.mixture.kernel import diagonal_normals, gradients
from pyrovae.mixture.mixture import Mixture

N, D = 30, 3


def positive_definite(n: int) -> Tensor:
    factor = torch.randn(n, D, D)
    return factor @ factor.mT + 0.5 * torch.eye(D)


FAMILIES = {
    "diagonal normal": lambda: dist.Normal(torch.randn(N, D), torch.rand(N, D) + 0.1).to_event(1),
    "normal": lambda: dist.Normal(torch.randn(N), torch.rand(N) + 0.1),
    "matrix normal": lambda: dist.Normal(torch.randn(N, 2, D), 0.5).to_event(2),
    "full normal": lambda: dist.MultivariateNormal(torch.randn(N, D), positive_definite(N)),
    "low rank": lambda: dist.LowRankMultivariateNormal(
        torch.randn(N, D), torch.randn(N, D, 1), torch.rand(N, D) + 0.1
    ),
    "log normal": lambda: dist.LogNormal(torch.randn(N, D), torch.rand(N, D) + 0.1).to_event(1),
    "laplace": lambda: dist.Laplace(torch.randn(N, D), torch.rand(N, D) + 0.1).to_event(1),
    "one hot": lambda: dist.OneHotCategorical(logits=torch.randn(N, D)),
    "bernoulli": lambda: dist.Bernoulli(logits=torch.randn(N, D)).to_event(1),
}


@pytest.fixture(params=FAMILIES)
def mixture(request: pytest.FixtureRequest) -> Mixture:
    return Mixture(dist.Categorical(logits=torch.randn(N)), FAMILIES[request.param]())


def reference(mixture: Mixture) -> torch.distributions.MixtureSameFamily:
    return torch.distributions.MixtureSameFamily(
        mixture.mixture_distribution, mixture.component_distribution
    )


def test_is_a_pyro_mixture_and_agrees_with_torch(mixture: Mixture) -> None:
    assert isinstance(mixture, dist.MixtureSameFamily)
    z = mixture.sample((2, 4))
    assert z.shape == (2, 4, *mixture.event_shape)
    torch.testing.assert_close(mixture.log_prob(z), reference(mixture).log_prob(z))
    torch.testing.assert_close(mixture.mean, reference(mixture).mean)
    torch.testing.assert_close(mixture.variance, reference(mixture).variance)


def test_density_is_the_same_in_any_blocks(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = mixture.sample((9,))
    monkeypatch.setattr("pyrovae.mixture.kernel.any_family.BLOCK_BYTES", 1500)
    monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)
    monkeypatch.setattr(diagonal_normals, "GROUP", 7)
    monkeypatch.setattr(diagonal_normals, "CHUNK_BYTES", 3000)
    torch.testing.assert_close(mixture.log_prob(z), reference(mixture).log_prob(z))
    if mixture.support.is_discrete:
        return
    z.requires_grad_()
    actual = torch.autograd.grad(mixture.log_prob(z).sum(), z)[0]
    expected = torch.autograd.grad(reference(mixture).log_prob(z).sum(), z)[0]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(mixture.score(z), expected)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation returned while this was active."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > self.bytes:
                self.bytes = tensor.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize("name", ["full normal", "low rank", "log normal", "laplace", "one hot"])
def test_no_tensor_is_larger_than_is_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation may store a number per point, component and unit: here 500, 30 and all units."""
    limit = 1 << 14
    monkeypatch.setattr("pyrovae.mixture.kernel.any_family.BLOCK_BYTES", limit)
    monkeypatch.setattr("pyrovae.mixture.kernel.full_normals.CHUNK", limit // 64)
    mixture = Mixture(dist.Categorical(logits=torch.randn(N)), FAMILIES[name]())
    z = mixture.sample((500,))
    points = z.numel() * z.element_size()
    with Largest() as seen:
        mixture.log_prob(z)
        mixture.leave_one_out_log_prob(z, torch.tensor(3))
        mixture.effective_components(z)
        mixture.responsibilities(z, top=2)
        if not mixture.support.is_discrete:
            mixture.score(z)
    assert (
        seen.bytes <= max(limit, 2 * points) < z[:, None].expand(500, N, *z.shape[1:]).numel() * 8
    )


def test_points_are_more_precise_than_components_allow(mixture: Mixture) -> None:
    """float64 points in a float32 mixture; low-rank normals would refuse them."""
    single = Mixture(
        mixture.mixture_distribution,
        convert(mixture.component_distribution, lambda t: t.float()),
    )
    z = mixture.sample((6,))
    for name in ("log_prob", "effective_components"):
        actual, expected = getattr(single, name)(z), getattr(mixture, name)(z)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_expand_is_lazy_and_broadcasts(mixture: Mixture) -> None:
    wide = mixture.expand((6, 5))
    assert wide.batch_shape == (6, 5) and type(wide) is type(mixture)
    assert wide.component_distribution is mixture.component_distribution
    assert wide.sample((2,)).shape == (2, 6, 5, *mixture.event_shape)
    z = mixture.sample()
    torch.testing.assert_close(wide.log_prob(z), mixture.log_prob(z).expand(6, 5))
    assert wide.log_prob(wide.sample((2,))).shape == (2, 6, 5)
    assert wide.mean.shape == (6, 5, *mixture.event_shape)
    with pytest.raises(ValueError, match="expected a shape"):
        wide.expand((7,))


def test_works_at_a_site_in_a_plate(mixture: Mixture) -> None:
    def model() -> Tensor:
        with pyro.plate("data", 7):
            return pyro.sample("z", mixture)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (7, *mixture.event_shape)
    torch.testing.assert_close(site["log_prob"], reference(mixture).log_prob(site["value"]))
    masked = mixture.expand((7,)).mask(torch.arange(7) < 3)
    assert (masked.log_prob(site["value"])[3:] == 0).all()
    together = mixture.expand((7,)).to_event(1).log_prob(site["value"])
    torch.testing.assert_close(together, site["log_prob"].sum())
    assert mixture.has_rsample == (mixture.diagonal_normals() is not None)


def test_draws_follow_the_weights_and_the_moments() -> None:
    weights = torch.tensor([0.0, 0.7, 0.0, 0.3, 0.0])
    loc = torch.arange(5.0).unsqueeze(-1)
    mixture = Mixture(dist.Categorical(weights), dist.Normal(loc, 0.1).to_event(1))
    index = mixture.sample_index(20_000)
    share = index.bincount(minlength=5) / 20_000
    assert set(index.unique().tolist()) == {1, 3}
    assert abs(share[1] - 0.7) < 4 * math.sqrt(0.21 / 20_000)
    drawn = mixture.sample((20_000,))
    deviation = math.sqrt(float(mixture.variance) / 20_000)
    assert abs(drawn.mean() - mixture.mean) < 4 * deviation


def test_more_components_than_a_multinomial_can_take() -> None:
    size = (1 << 24) + 5
    loc = torch.arange(size, dtype=torch.float32)
    uneven = torch.zeros(size, dtype=torch.float32)
    uneven[: size - 1] = -float("inf")
    components = dist.Normal(loc, 1e-3, validate_args=False)
    last = Mixture(dist.Categorical(logits=uneven), components)
    assert (last.sample_index(10) == size - 1).all()
    even = Mixture(dist.Categorical(logits=torch.zeros(size, dtype=torch.float32)), components)
    assert even.sample((100,)).max() > size / 2


def test_a_weight_of_zero_is_zero() -> None:
    """torch's Categorical turns probs of zero into 1.2e-7."""
    components = dist.Normal(torch.tensor([[0.0], [50.0]]), 1.0).to_event(1)
    mixture = Mixture(dist.Categorical(probs=torch.tensor([1.0, 0.0])), components)
    actual = mixture.log_prob(torch.tensor([[50.0]]))
    torch.testing.assert_close(actual, components.log_prob(torch.tensor([[50.0]]))[:1])


def test_components_and_marginals(mixture: Mixture) -> None:
    z = mixture.sample()
    expected = mixture.component_distribution.log_prob(z)[4]
    torch.testing.assert_close(mixture.component(4).log_prob(z), expected)
    torch.testing.assert_close(
        mixture.component(-1).log_prob(z), mixture.component_distribution.log_prob(z)[-1]
    )
    with pytest.raises(IndexError, match="expected a component"):
        mixture.component(N)


@pytest.mark.parametrize("name", ["diagonal normal", "full normal", "low rank", "log normal"])
def test_marginals_are_those_of_the_draws(name: str) -> None:
    """P(z_d ≤ t) of the marginal against the share of 4,000 joint draws, 4 standard errors."""
    mixture = Mixture(dist.Categorical(logits=torch.randn(N)), FAMILIES[name]())
    drawn = mixture.sample((4000,))
    for d in range(D):
        marginal = mixture.marginal(d)
        assert marginal.event_shape == ()
        median = drawn[:, d].median()
        cdf = marginal.cdf(median)
        torch.testing.assert_close(cdf, reference(marginal).cdf(median))
        assert abs(cdf - 0.5) < 4 * 0.5 / math.sqrt(4000) + 1e-3
    pair = mixture.marginal([2, 0])
    assert pair.event_shape == (2,)
    torch.testing.assert_close(pair.mean, mixture.mean[[2, 0]])
    torch.testing.assert_close(pair.variance, mixture.variance[[2, 0]])
    inner = pair.marginal(1).log_prob(torch.tensor(0.3))
    torch.testing.assert_close(inner, mixture.marginal(0).log_prob(torch.tensor(0.3)))


def test_marginals_that_are_not_known_say_so() -> None:
    mixture = Mixture(dist.Categorical(logits=torch.randn(N)), FAMILIES["one hot"]())
    with pytest.raises(ValueError, match="OneHotCategorical"):
        mixture.marginal(0)
    with pytest.raises(ValueError, match="marginal"):
        Mixture(dist.Categorical(torch.ones(N)), FAMILIES["full normal"]()).cdf(torch.zeros(3))


@pytest.mark.parametrize(
    "units", [[], D, [D], -D - 1, [0, 0], [0, -D], "z", [0.5], slice(0, 2), True, None]
)
def test_units_that_are_not_different_numbers_of_units_are_refused(units: Any) -> None:
    mixture = Mixture(dist.Categorical(logits=torch.randn(N)), FAMILIES["diagonal normal"]())
    with pytest.raises(InputError, match=f"expected the number of a unit, 0 to {D - 1}"):
        mixture.marginal(units)


def test_the_last_unit_is_minus_one() -> None:
    mixture = Mixture(dist.Categorical(logits=torch.randn(N)), FAMILIES["full normal"]())
    z = torch.randn(5)
    torch.testing.assert_close(
        mixture.marginal(-1).log_prob(z), mixture.marginal(D - 1).log_prob(z)
    )


def test_codes_in_the_place_of_encodings_are_refused() -> None:
    with pytest.raises(InputError, match="expected the distributions of N data points"):
        AggregatedPosterior(torch.zeros(5, 2))


def test_weights_that_are_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"got Tensor. Write dist.Categorical\(weights\)"):
        Mixture(torch.ones(4), dist.Normal(torch.zeros(4, D), 1.0).to_event(1))  # type: ignore[arg-type]


def test_batched_components_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected components of batch shape \(N,\)"):
        Mixture(dist.Categorical(torch.ones(4)), dist.Normal(torch.zeros(2, 4), 1.0))


def test_a_subclass_of_normal_keeps_its_own_density() -> None:
    class Shifted(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value - 1)

    assert diagonal_normal(Shifted(torch.zeros(3), torch.ones(3))) is None


def test_repr_names_what_it_is(mixture: Mixture) -> None:
    assert f"components={N}" in repr(mixture)
    assert f"event_shape={tuple(mixture.event_shape)}" in repr(mixture)


def test_the_first_call_and_later_ones_agree() -> None:
    """The first call does without an evaluator, which would not pay; the second builds one."""
    components = dist.Normal(torch.randn(50, 3), torch.rand(50, 3) + 0.01).to_event(1)
    mixture = Mixture(dist.Categorical(logits=torch.randn(50)), components)
    z = torch.randn(7, 3)
    first, second, third = (mixture.log_prob(z) for _ in range(3))
    torch.testing.assert_close(second, first, rtol=0, atol=1e-10)
    assert torch.equal(third, second)


def test_parameters_that_are_replaced_are_seen() -> None:
    mixture = Mixture(
        dist.Categorical(torch.ones(4)), dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
    )
    z = torch.zeros(2)
    for _ in range(2):
        mixture.log_prob(z)
    mixture.component_distribution.base_dist.loc = torch.full((4, 2), 3.0)
    expected = dist.Normal(torch.full((2,), 3.0), 1.0).to_event(1).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z), expected)


@pytest.mark.float32
def test_moments_far_from_zero_keep_their_digits() -> None:
    """float32 sums of 60,000 numbers near 1e4 are off by tenths."""
    loc = 1e4 + torch.randn(60_000, 2)
    mixture = Mixture(dist.Categorical(torch.ones(60_000)), dist.Normal(loc, 0.5).to_event(1))
    wide = loc.double()
    ulp = 1e4 * torch.finfo(torch.float32).eps
    assert float((mixture.mean - wide.mean(0)).abs().max()) <= ulp
    expected = wide.var(0, correction=0) + 0.25
    torch.testing.assert_close(mixture.variance.double(), expected, rtol=1e-6, atol=0)


def test_a_weight_of_zero_has_no_say_in_the_moments() -> None:
    components = dist.StudentT(torch.tensor([2.0, 9.0]).unsqueeze(-1), 0.0, 1.0)
    mixture = Mixture(dist.Categorical(torch.tensor([0.0, 1.0])), components.to_event(1))
    torch.testing.assert_close(mixture.variance, torch.tensor([9.0 / 7.0]))


@pytest.mark.parametrize("name", ["low rank", "log normal", "laplace"])
@pytest.mark.float32
def test_other_families_are_as_precise_in_float32_as_normals(name: str) -> None:
    loc = torch.randn(100, 40)
    components = {
        "low rank": lambda: dist.LowRankMultivariateNormal(
            loc, 0.1 * torch.randn(100, 40, 3), 0.01 + 0.1 * torch.rand(100, 40)
        ),
        "log normal": lambda: dist.LogNormal(loc, 1e-3).to_event(1),
        "laplace": lambda: dist.Laplace(loc, 1e-3).to_event(1),
    }[name]()
    mixture = Mixture(dist.Categorical(torch.ones(100)), components)
    z = mixture.sample((20,))
    wide = convert(components, Tensor.double)
    expected = (wide.log_prob(z.double().unsqueeze(1)) - math.log(100)).logsumexp(-1)
    rounding = expected.abs() * torch.finfo(torch.float32).eps
    assert bool(((mixture.log_prob(z) - expected).abs() <= 1e-6 + rounding).all())


def test_points_of_another_size_are_refused(mixture: Mixture) -> None:
    if not mixture.event_shape:
        return
    z = torch.zeros(4, *mixture.event_shape[:-1], mixture.event_shape[-1] + 1)
    for ask in (
        mixture.score,
        mixture.effective_components,
        lambda z: mixture.responsibilities(z, top=1),
        lambda z: mixture.leave_one_out_log_prob(z, torch.tensor(0)),
    ):
        with pytest.raises(ValueError, match="expected points of shape"):
            ask(z)


def test_no_points_at_all(mixture: Mixture) -> None:
    z = torch.zeros(0, *mixture.event_shape)
    assert mixture.log_prob(z).shape == (0,)
    assert mixture.responsibilities(z, top=2).weight.shape == (0, 2)


def test_discrete_mixtures_have_no_score_and_none_an_entropy_in_closed_form() -> None:
    components = dist.OneHotCategorical(torch.ones(5, 3))
    mixture = Mixture(dist.Categorical(torch.ones(5)), components)
    with pytest.raises(ValueError, match="discrete components, OneHotCategorical"):
        mixture.score(torch.eye(3))
    with pytest.raises(NotImplementedError, match=r"pyrovae\.entropy"):
        mixture.entropy()


@pytest.mark.float32
def test_the_distribution_function_of_numbers_of_any_dtype() -> None:
    components = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0)
    mixture = Mixture(dist.Categorical(torch.ones(2)), components)
    for z in (torch.tensor(0), torch.tensor(0.0)):
        assert float(mixture.cdf(z)) == pytest.approx(0.5)


@pytest.mark.float32
def test_components_made_of_modules_have_a_density_in_their_own_dtype() -> None:
    flow = dist.transforms.spline(2).requires_grad_(False)
    base = dist.Normal(torch.randn(20, 2), 0.5).to_event(1)
    components = dist.TransformedDistribution(base, [flow])
    mixture = Mixture(dist.Categorical(torch.ones(20)), components)
    z = torch.randn(7, 2)
    expected = components.log_prob(z.unsqueeze(1)).logsumexp(-1) - math.log(20)
    torch.testing.assert_close(mixture.log_prob(z), expected)
    with pytest.raises(ValueError, match="transforms whose arguments are numbers"):
        mixture.sample()
