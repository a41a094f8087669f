"""The mixtures and the mean codes of classes, and the data points that explain a code best."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior

N, D = 60, 3
LABELS = [f"class {row % 4}" for row in range(N)]


def aggregated(weights: torch.Tensor | None = None) -> AggregatedPosterior:
    encoding = dist.Normal(torch.randn(N, D), torch.rand(N, D) + 0.1).to_event(1)
    return AggregatedPosterior(encoding, weights)


def test_the_mixtures_of_the_classes_mix_to_the_whole() -> None:
    """q(z) = Σ_y q(y) q(z | y)."""
    agg = aggregated(torch.rand(N) * 5)
    z, classes = agg.sample((4,)), agg.by_label(LABELS)
    mixed = sum(part.mass * part.log_prob(z).exp() for part in classes.values()) / agg.mass
    torch.testing.assert_close(mixed, agg.log_prob(z).exp())
    assert list(classes) == sorted(set(LABELS))
    assert [len(part) for part in classes.values()] == [15, 15, 15, 15]


def test_the_mean_of_a_class_is_that_of_its_mixture() -> None:
    agg = aggregated(torch.rand(N) * 5)
    means, classes = agg.class_means(LABELS), agg.by_label(LABELS)
    assert means.labels == tuple(classes) and means.size.tolist() == [15] * 4
    for mean, part in zip(means.mean, classes.values(), strict=True):
        torch.testing.assert_close(mean, part.mean)


def test_with_equal_weights_the_error_is_that_of_a_mean() -> None:
    agg = aggregated()
    means = agg.class_means(torch.arange(N) % 2)
    for label in range(2):
        rows = agg.encoding.mean[label::2]
        torch.testing.assert_close(means.standard_error[label], rows.std(0) / len(rows) ** 0.5)
    table = means.table()
    assert list(table.index) == [0, 1] and table.index.name == "label"
    assert np.allclose(table["mean_1"], means.mean[:, 1])


def test_a_weight_of_zero_leaves_a_row_out_and_one_row_has_no_error() -> None:
    weights = torch.ones(N)
    weights[0] = 0.0
    agg = aggregated(weights)
    means = agg.class_means([0, 0, *[1] * (N - 3), 2])
    torch.testing.assert_close(means.mean[0], agg.encoding.mean[1])
    assert means.size.tolist() == [1, N - 3, 1]
    assert bool(means.standard_error[[0, 2]].isinf().all())


def test_the_error_is_the_spread_over_data_sets_also_with_weights() -> None:
    """Weighted means of 400 data sets of 40 rows: their spread is what each of them says."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(400):
        codes = torch.randn(40, 1, generator=generator, dtype=torch.float64)
        weights = torch.rand(40, generator=generator, dtype=torch.float64) + 0.2
        agg = AggregatedPosterior(dist.Normal(codes, 1.0).to_event(1), weights)
        means = agg.class_means([0] * 40)
        found.append([float(means.mean), float(means.standard_error)])
    means_found, errors = torch.tensor(found, dtype=torch.float64).T
    spread = means_found.std()
    # an estimated standard deviation of 400 normals has the relative error 1/√800
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(spread), rel=4 / 800**0.5)


@pytest.mark.parametrize(
    "labels",
    [list(range(N)), np.arange(N), torch.arange(N), pd.Series(range(N), index=range(N)[::-1])],
)
def test_labels_may_be_of_any_kind(labels: object) -> None:
    agg = aggregated()
    classes = agg.by_label(labels)  # type: ignore[arg-type]
    assert list(classes) == list(range(N))
    torch.testing.assert_close(classes[7].encoding.mean[0], agg.encoding.mean[7])


def test_numbers_and_words_stay_in_their_order() -> None:
    assert list(aggregated().by_label(["b", 1] * (N // 2))) == ["b", 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[1:], "one label for each of 60 data points; got 59"),
        (torch.zeros(N, 2), r"got shape \(60, 2\)"),
        ([None, *LABELS[1:]], r"got none for 1, row 0 first"),
        (np.where(np.arange(N) > 57, np.nan, 1.0), r"got none for 2, row 58 first"),
        (pd.Series(["a"] * 59 + [pd.NA]), r"got none for 1, row 59 first"),
    ],
)
def test_labels_that_are_missing_are_refused(labels: object, message: str) -> None:
    for ask in (aggregated().by_label, aggregated().class_means):
        with pytest.raises(InputError, match=message):
            ask(labels)  # type: ignore[arg-type, operator]


def test_what_the_error_advises_for_missing_labels_works() -> None:
    agg, labels = aggregated(), np.array([None, *LABELS[1:]], dtype=object)
    keep = torch.tensor([label is not None for label in labels])
    assert len(agg[keep].by_label(labels[keep.numpy()])["class 0"]) == 14


def test_the_nearest_data_points_are_those_that_explain_a_code_best() -> None:
    agg = aggregated()
    z = torch.randn(5, D)
    nearest = agg.nearest(z, 4)
    joint = agg.encoding.log_prob(z.unsqueeze(1)) + agg.log_weights
    share, index = joint.softmax(1).topk(4)
    assert torch.equal(nearest.index, index)
    torch.testing.assert_close(nearest.weight, share)


def test_classes_that_are_numbers_come_by_their_size_though_they_are_texts() -> None:
    encoding = dist.Normal(torch.randn(12, 2), torch.ones(12, 2)).to_event(1)
    agg = AggregatedPosterior(encoding)
    labels = [str(n) for n in range(11, 0, -1)] + ["other"]
    expected = [str(n) for n in range(1, 12)] + ["other"]
    assert list(agg.by_label(labels)) == expected
    assert list(agg.class_means(labels).labels) == expected
