"""The aggregated posterior: weights, parts, shards, files."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.families import concatenate, diagonal_normal, full_normal, innermost, take
from pyrovae.mixture.families.constructors import parameters
from pyrovae.saving.atomic import write_archive
from pyrovae.saving.results import FORMAT, load, save

N, D = 60, 3


def encodings() -> dict[str, dist.Distribution]:
    loc = torch.randn(N, D)
    return {
        "normal": dist.Normal(loc, torch.rand(N, D) + 0.1).to_event(1),
        "full": dist.MultivariateNormal(loc, torch.eye(D).expand(N, D, D)),
        "low rank": dist.LowRankMultivariateNormal(loc, torch.randn(N, D, 1), torch.ones(N, D)),
        "log normal": dist.LogNormal(loc, 0.3).to_event(1),
        "one hot": dist.OneHotCategorical(logits=loc),
    }


@pytest.fixture(params=["normal", "full", "low rank", "log normal", "one hot"])
def agg(request: pytest.FixtureRequest) -> AggregatedPosterior:
    return AggregatedPosterior(encodings()[request.param], torch.rand(N) * 5)


def test_density_is_the_weighted_mean_of_the_encodings(agg: AggregatedPosterior) -> None:
    z = agg.sample((4,))
    density = agg.encoding.log_prob(z.unsqueeze(1)).exp()
    torch.testing.assert_close(agg.log_prob(z).exp(), density @ agg.weights)


def test_classes_mix_to_the_whole(agg: AggregatedPosterior) -> None:
    """q(z) = Σ_y q(y) q(z | y), with masses for q(y)."""
    z, y = agg.sample((4,)), torch.arange(N) % 3
    parts = [agg[y == label] for label in range(3)]
    mixed = sum(part.mass * part.log_prob(z).exp() for part in parts) / agg.mass
    torch.testing.assert_close(mixed, agg.log_prob(z).exp())
    assert [len(part) for part in parts] == [20, 20, 20]
    torch.testing.assert_close(agg[torch.tensor([3, 4])].encoding.mean, agg.encoding.mean[3:5])


def test_shards_of_unequal_size_merge_to_the_whole(agg: AggregatedPosterior) -> None:
    z = agg.sample((4,))
    merged = AggregatedPosterior.merge([agg[:7], agg[7:50], agg[50:]])
    torch.testing.assert_close(merged.log_prob(z), agg.log_prob(z))
    assert merged.mass == pytest.approx(agg.mass)


def test_file_holds_the_same_density(agg: AggregatedPosterior, tmp_path: Path) -> None:
    z = agg.sample((4,))
    path = tmp_path / "aggregated posterior.pt"
    save(agg, path)
    loaded = load(path)
    torch.testing.assert_close(loaded.log_prob(z), agg.log_prob(z))
    assert repr(loaded) == repr(agg)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_dtype_can_be_changed(agg: AggregatedPosterior) -> None:
    z = agg.sample((4,))
    single = agg.to(dtype=torch.float32)
    log_prob = single.log_prob(z.float())
    assert log_prob.dtype == torch.float32 and single.sample().dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), agg.log_prob(z), rtol=1e-5, atol=1e-4)


def test_weights_default_to_equal() -> None:
    agg = AggregatedPosterior(encodings()["normal"])
    torch.testing.assert_close(agg.weights, torch.full((N,), 1 / N))
    assert agg.mass == N


@pytest.mark.parametrize(
    "weights", [torch.ones(N + 1), -torch.ones(N), torch.zeros(N), torch.full((N,), float("nan"))]
)
def test_bad_weights_are_refused(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"expected {N} finite, non-negative weights"):
        AggregatedPosterior(encodings()["normal"], weights)


def test_bad_indices_are_refused() -> None:
    agg = AggregatedPosterior(encodings()["normal"])
    with pytest.raises(ValueError, match="mask of shape"):
        agg[torch.ones(3, dtype=torch.bool)]
    with pytest.raises(ValueError, match="at least one component"):
        agg[torch.zeros(N, dtype=torch.bool)]


def test_a_family_that_cannot_be_concatenated_is_named() -> None:
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2, D), 1.0).to_event(1), [dist.transforms.Planar(D)]
    )
    with pytest.raises(ValueError, match="TransformedDistribution"):
        concatenate([flow, flow])
    with pytest.raises(ValueError, match="one family; got Laplace, Normal"):
        concatenate([dist.Normal(torch.zeros(2), 1.0), dist.Laplace(torch.zeros(2), 1.0)])


def squashed(offset: float = 0.0) -> dist.TransformedDistribution:
    steps = [dist.transforms.SigmoidTransform(), dist.transforms.AffineTransform(offset, 2.0)]
    return dist.TransformedDistribution(encodings()["normal"], steps)


def test_transformed_normals_are_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agg = AggregatedPosterior(squashed(), torch.rand(N))
    z = agg.sample((4,))
    expected = torch.logsumexp(agg.encoding.log_prob(z.unsqueeze(1)) + agg.log_weights, -1)
    monkeypatch.setattr("pyrovae.mixture.kernel.any_family.BLOCK_BYTES", 3000)
    torch.testing.assert_close(agg.log_prob(z), expected)
    merged = AggregatedPosterior.merge([agg[:7], agg[7:]])
    torch.testing.assert_close(merged.log_prob(z), expected)
    save(agg, tmp_path / "agg.pt")
    torch.testing.assert_close(load(tmp_path / "agg.pt").log_prob(z), expected)
    assert agg.to(dtype=torch.float32).log_prob(z.float()).dtype == torch.float32


def test_transforms_that_are_not_shared_numbers_are_refused() -> None:
    scaled = dist.transforms.AffineTransform(0.0, torch.rand(N, D))
    for steps in ([scaled], [scaled.inv], [dist.transforms.ComposeTransform([scaled])]):
        own = dist.TransformedDistribution(encodings()["normal"], steps)
        with pytest.raises(ValueError, match="numbers, the same for all; got Transformed"):
            concatenate([own, own])
    with pytest.raises(ValueError, match="numbers, the same for all; got Transformed"):
        concatenate([squashed(), squashed(1.0)])


def test_a_file_that_names_no_distribution_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    result = {"kind": "family", "state": {"family": "constraints"}}
    write_archive({"pyrovae": FORMAT, "result": result}, path)
    with pytest.raises(ValueError, match=r"family of pyro\.distributions"):
        load(path)


@pytest.mark.float32
def test_more_data_than_half_precision_counts() -> None:
    agg = AggregatedPosterior(dist.Normal(torch.zeros(70_000, 1), 1.0).to_event(1))
    half = agg.to(torch.float16)
    torch.testing.assert_close(half.log_prob(torch.zeros(1, 1)), agg.log_prob(torch.zeros(1, 1)))


def test_weights_may_be_a_list_and_learned() -> None:
    encoding = dist.Normal(torch.randn(3, 2), 1.0).to_event(1)
    weights = torch.tensor([0.0, 1.0, 3.0], requires_grad=True)
    agg = AggregatedPosterior(encoding, [0.0, 1.0, 3.0])
    learned = AggregatedPosterior(encoding, weights)
    z = torch.randn(4, 2)
    torch.testing.assert_close(agg.log_prob(z), learned.log_prob(z))
    learned.log_prob(z).sum().backward()
    assert weights.grad is not None and weights.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tiny", [1e-50, 1e-200])
def test_tiny_weights_count(tiny: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """In single precision 1e-50 is 0, but its logarithm is not lost."""
    loc = torch.tensor([[0.0], [1000.0]]).to(dtype)
    encoding = dist.Normal(loc, torch.ones_like(loc)).to_event(1)
    agg = AggregatedPosterior(encoding, [1.0, tiny])
    z = loc[1:]
    expected = torch.tensor([math.log(tiny) - 0.5 * math.log(2 * math.pi)], dtype=dtype)
    save(agg, tmp_path / "tiny.pt")
    loaded = load(tmp_path / "tiny.pt")
    assert isinstance(loaded, AggregatedPosterior)
    versions = (
        agg,
        agg[:],
        AggregatedPosterior.merge([agg[:1], agg[1:]]),
        agg.to(torch.float64),
        loaded,
    )
    for other in versions:
        for _ in range(2):
            torch.testing.assert_close(other.log_prob(z), expected, check_dtype=False)
        assert other.responsibilities(z, top=1).index.item() == 1
    assert float(agg.masses[1]) == pytest.approx(tiny)
    alone = AggregatedPosterior(encoding, [tiny, tiny])
    assert alone.mass == pytest.approx(2 * tiny)
    torch.testing.assert_close(alone.weights, torch.full((2,), 0.5, dtype=dtype))
    spread = AggregatedPosterior(encoding, [1.0, 1e-45])
    torch.testing.assert_close(spread.mean_variance, torch.full((1,), 1e-39, dtype=dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_data_point_that_is_no_number_is_named_by_its_row(
    agg: AggregatedPosterior, bad: float
) -> None:
    number = 17
    weights = torch.ones(N)

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[number] = bad
        return tensor

    encoding = agg.encoding
    inner = innermost(encoding)
    parts = {n: getattr(inner, n) for n in parameters(inner)}
    first = next(iter(parts))
    kind = type(inner)
    with pyro.validation_enabled(False):
        spoiled = kind(**{**parts, first: spoil(parts[first])}, validate_args=False)
    spoiled = spoiled if encoding is inner else spoiled.to_event(1)
    if math.isinf(bad) and diagonal_normal(encoding) is None and full_normal(encoding) is None:
        return  # in other families infinity may be a valid parameter
    with pytest.raises(ValueError, match="at 1 of 60, the first in row 17 "):
        AggregatedPosterior(spoiled)
    weights[number] = 0
    without = AggregatedPosterior(spoiled, weights)  # as the message says
    rest = torch.arange(N) != number
    z = agg[rest].sample((3,))
    expected = AggregatedPosterior(take(encoding, rest), weights[rest]).log_prob(z)
    torch.testing.assert_close(without.log_prob(z), expected)
