"""Samples beside data: closed forms, what holds of equal distributions, and planted faults."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.diagnostics.frechet import frechet_distance
from pyrovae.diagnostics.neighbours import (
    _kth,
    coverage_if_equal,
    listed,
    nearer_to_training,
    nearest,
    neighbour_measures,
    squared_distances,
)
from pyrovae.diagnostics.sample_quality import Quality, SampleQuality, sample_quality
from pyrovae.estimates import Estimate
from pyrovae.report import tables
from pyrovae.saving import names
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae(6, 2)
TINY = pv.Effort(
    codes=64, evidence_rows=6, evidence_draws=30, export_rows=0, pictures=0, simulations=0,
    samples=30,
)  # fmt: skip


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size)).Q


# -- the Fréchet distance --------------------------------------------------------------------------


def test_a_symmetric_positive_map_is_optimal_and_gives_the_distance_in_closed_form() -> None:
    # of the samples' own moments, so that nothing is random: |(A − 1)m + b|² + tr (A − 1)S(A − 1)
    x, b = torch.randn(40, 5) + 1, torch.randn(5)
    q = rotation(5)
    a = q @ torch.diag(torch.tensor([0.0, 0.3, 1.0, 2.0, 3.0])) @ q.T
    change = a - torch.eye(5)
    truth = (change @ x.mean(0) + b).square().sum() + (change @ x.T.cov() @ change).trace()
    assert frechet_distance(x, x @ a + b).value == pytest.approx(float(truth), rel=1e-9)


@pytest.mark.parametrize("features", [3, 60])  # more than rows, too
def test_the_distance_is_that_of_the_matrix_formula(features: int) -> None:
    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp_min(0).sqrt() @ vectors.T

    x, y = torch.randn(50, features), 0.5 + torch.randn(40, features) @ rotation(features) / 2
    first, second = x.T.cov(), y.T.cov()
    middle = root(root(first) @ second @ root(first))
    truth = (x.mean(0) - y.mean(0)).square().sum() + (first + second - 2 * middle).trace()
    # eigenvalues of 0 come out as rounding errors ε, whose roots are of the order 1e-8
    assert frechet_distance(x, y).value == pytest.approx(float(truth), abs=1e-7 * features)


def test_the_distance_is_symmetric_and_none_from_a_sample_to_itself() -> None:
    x, y = torch.randn(30, 4), torch.randn(50, 4) * 2
    y[:, 0] = 3.0  # a column that does not vary
    there, back = frechet_distance(x, y), frechet_distance(y, x)
    assert there.value == pytest.approx(back.value)
    assert there.standard_error == pytest.approx(back.standard_error)
    assert abs(frechet_distance(x, x).value) < 1e-12


def test_of_two_normals_it_is_the_known_distance_and_too_high_on_average() -> None:
    scale, shift = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.0, -1.0])
    truth = float((scale - 1).square().sum() + shift.square().sum())

    def draw(rows: int) -> Estimate:
        return frechet_distance(torch.randn(rows, 3), torch.randn(rows, 3) * scale + shift)

    large = draw(100_000)
    assert abs(large.value - truth) < 4.5 * large.standard_error
    many = [draw(50) for _ in range(400)]
    values = torch.tensor([one.value for one in many])
    deviation = float(values.std())
    assert float(values.mean()) > truth - 4 * deviation / 20
    # sd of a standard deviation of 400 values: 1/√800, for each of the two
    claimed = math.sqrt(sum(one.standard_error**2 for one in many) / 400)
    assert claimed / deviation == pytest.approx(1, abs=4 * (2 / 800) ** 0.5)


# -- neighbours ------------------------------------------------------------------------------------


def test_the_measures_are_those_of_their_definition() -> None:
    real, samples, k = torch.randn(40, 3), torch.randn(40, 3) + 0.5, 4

    def radii(points: Tensor) -> list[float]:
        return [float((points - p).norm(dim=1).sort().values[k]) for p in points]  # itself first

    between = torch.stack([(samples - r).norm(dim=1) for r in real])
    in_real = between <= torch.tensor(radii(real))[:, None]
    in_samples = between <= torch.tensor(radii(samples))
    found = {n: e.value for n, e in neighbour_measures(real, samples, neighbours=k).items()}
    assert found == pytest.approx({
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_samples.any(1).double().mean()),
        "density": float(in_real.double().sum() / (k * 40)),
        "coverage": float(in_real.any(1).double().mean()),
    })  # fmt: skip


def test_neighbours_within_a_half_are_those_of_the_half_alone() -> None:
    x, half = torch.randn(300, 4), torch.randperm(300)[:150].sort().values
    members = torch.zeros(300, dtype=torch.bool)
    members[half] = True
    for k in (1, 5, 20):
        lists = nearest(x, x, count=listed(k), own=True)
        alone = nearest(x[half], x[half], count=k, own=True).squared[:, -1]
        assert torch.allclose(_kth(lists, half, members, k), alone, rtol=1e-9)


def test_neighbours_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(57, 4)
    whole = nearest(x, x, count=7, own=True)
    monkeypatch.setattr("pyrovae.diagnostics.neighbours.BLOCK_BYTES", 8 * 57 * 10)
    blocks = nearest(x, x, count=7, own=True)
    assert torch.equal(whole.places, blocks.places)
    assert torch.allclose(whole.squared, blocks.squared)


def test_distances_between_binary_rows_are_whole_numbers_so_that_ties_are_ties() -> None:
    x, y = torch.rand(50, 200).round(), torch.rand(60, 200).round()
    assert torch.equal(squared_distances(x, y), (x[:, None] != y).double().sum(-1))


REPETITIONS = 150


@cache
def repeated(rows: int, copied: float) -> dict[str, list[Estimate]]:
    """The measures where data, samples and training rows are of one normal; some are copies."""
    torch.manual_seed(1)
    found: dict[str, list[Estimate]] = {}
    for seed in range(REPETITIONS):
        real, samples, train = torch.randn(3, rows, 5, dtype=torch.float64)
        is_copy = torch.rand(rows) < copied
        samples[is_copy] = train[torch.randint(rows, (int(is_copy.sum()),))]
        measures = neighbour_measures(real, samples, seed=seed)
        measures["nearer"] = nearer_to_training(samples, train, real, seed=seed)
        measures["precision − recall"] = replace(
            measures["precision"],
            value=measures["precision"].value - measures["recall"].value,
        )
        for name, estimate in measures.items():
            found.setdefault(name, []).append(estimate)
    return found


@pytest.mark.parametrize("rows", [40, 100])
def test_of_one_distribution_each_measure_is_what_it_is_known_to_be(rows: int) -> None:
    truth = {
        "density": 1.0,
        "coverage": coverage_if_equal(rows, 5),
        "precision − recall": 0.0,
        "nearer": 0.5,
    }
    for name, expected in truth.items():
        values = torch.tensor([one.value for one in repeated(rows, 0.0)[name]])
        error = float(values.std()) / REPETITIONS**0.5
        assert abs(float(values.mean()) - expected) < 4 * error, name


def test_a_copied_sample_is_nearer_to_training_and_every_other_one_in_half_of_the_cases() -> None:
    values = torch.tensor([one.value for one in repeated(100, 0.4)["nearer"]])
    error = float(values.std()) / REPETITIONS**0.5
    assert abs(float(values.mean()) - (0.4 + 0.6 / 2)) < 4 * error
    train, held_out = torch.randn(2, 100, 5)
    assert nearer_to_training(train, train, held_out).value == 1
    assert nearer_to_training(held_out, train, held_out).value == 0
    assert nearer_to_training(torch.randn(100, 5), train, train).value == 0.5


@pytest.mark.parametrize(("rows", "copied"), [(40, 0.0), (100, 0.0), (100, 0.4)])
def test_the_errors_are_those_of_repetitions_and_the_intervals_hold(
    rows: int, copied: float
) -> None:
    for name in ("precision", "recall", "density", "coverage", "nearer"):
        many = repeated(rows, copied)[name]
        values = torch.tensor([one.value for one in many])
        claimed = math.sqrt(sum(one.standard_error**2 for one in many) / REPETITIONS)
        ratio = claimed / float(values.std())
        # the sd of 150 values is known to 6 %; too large by a third is allowed, too small is not
        assert 1 - 4 * 0.06 < ratio < 4 / 3 * (1 + 4 * 0.06), (name, ratio)
        mean = float(values.mean())
        covered = sum(not one.excludes(mean) for one in many) / REPETITIONS
        assert covered > 0.93 - 4 * (0.95 * 0.05 / REPETITIONS) ** 0.5, (name, covered)


def test_a_share_of_none_or_all_has_an_error_and_an_interval_within_0_and_1() -> None:
    real = torch.randn(50, 2)
    far, same = neighbour_measures(real, real + 100), neighbour_measures(real, real.clone())
    assert far["precision"].value == far["recall"].value == far["coverage"].value == 0
    assert same["precision"].value == same["recall"].value == same["coverage"].value == 1
    for measures in (far, same):
        for name, estimate in measures.items():
            assert estimate.standard_error > 0
            low, high = estimate.interval
            assert name == "density" or 0 <= low < high <= 1


def test_samples_that_drop_a_mode_keep_precision_and_lose_recall_and_coverage() -> None:
    is_left = torch.arange(200) < 120
    real = torch.randn(200, 3) + torch.where(is_left, -50.0, 50.0)[:, None]
    both = neighbour_measures(real, real[torch.randperm(200)] + 0.1 * torch.randn(200, 3))
    one = neighbour_measures(real, torch.randn(200, 3) - 50)
    assert one["precision"].value > 0.9
    for name in ("recall", "coverage"):
        assert both[name].value > 0.9
        assert 0.5 < one[name].value <= 0.6  # the share of rows in the mode that is kept


def test_rotation_and_shift_change_nothing_and_units_only_the_distance() -> None:
    real, samples, train = torch.randn(3, 60, 4) + torch.randn(3, 1, 4) / 2
    q, b = rotation(4), torch.randn(4)
    moved = [3 * x @ q + b for x in (real, samples, train)]
    before, after = neighbour_measures(real, samples), neighbour_measures(*moved[:2])
    assert {n: e.value for n, e in before.items()} == {n: e.value for n, e in after.items()}
    nearer = [nearer_to_training(s, t, r) for r, s, t in ((real, samples, train), moved)]
    assert nearer[0] == nearer[1]
    distances = [frechet_distance(r, s) for r, s in ((real, samples), moved[:2])]
    assert distances[1].value == pytest.approx(9 * distances[0].value)
    assert distances[1].standard_error == pytest.approx(9 * distances[0].standard_error)


# -- a pair ----------------------------------------------------------------------------------------


@cache
def exact_quality() -> SampleQuality:
    vae = EXACT.vae()
    x = EXACT.sample(1200)
    densities = {"prior": None, "narrow": dist.Normal(torch.zeros(2), 0.3).to_event(1)}
    return sample_quality(
        vae.model, vae.guide, densities, x[:800], x[800:], decoded="draw", features=lambda x: x
    )


def test_draws_of_the_exact_model_are_as_good_as_data() -> None:
    found = exact_quality()
    assert (found.size, found.compared, found.training_rows) == (400, 400, 800)
    prior = dict(found.densities["prior"].estimates())
    for name, truth in {
        "density": 1.0, "coverage": found.coverage_if_equal, "nearer_to_training": 0.5
    }.items():  # fmt: skip
        assert abs(prior[name].value - truth) < 4 * prior[name].standard_error, name
    doubt = math.hypot(prior["precision"].standard_error, prior["recall"].standard_error)
    assert abs(prior["precision"].value - prior["recall"].value) < 4 * doubt
    # the reconstructions of an exact model are draws from p(x), too
    coverage = found.references["reconstructions"].coverage
    assert abs(coverage.value - found.coverage_if_equal) < 4 * coverage.standard_error
    assert found.references["held_out"].nearer_to_training is None


def test_a_density_that_is_too_narrow_covers_less_and_is_farther_from_the_data() -> None:
    prior, narrow = exact_quality().densities.values()
    for name in ("recall", "coverage"):
        wide, other = getattr(prior, name), getattr(narrow, name)
        doubt = math.hypot(wide.standard_error, other.standard_error)
        assert wide.value - other.value > 4 * doubt
    # of normals with covariances WWᵀ + s² and 0.09 WWᵀ + s²: the same eigenvectors
    gain = EXACT.weight.square().sum(0)
    roots = [(factor * gain + EXACT.noise**2).sqrt() for factor in (1.0, 0.09)]
    truth = float((roots[0] - roots[1]).square().sum())
    # as far above as the bias of the prior's own distance, whose truth is 0, and 4 errors
    assert truth - 4 * narrow.frechet.standard_error < narrow.frechet.value
    assert narrow.frechet.value < truth + prior.frechet.value + 4 * narrow.frechet.standard_error


def test_the_same_seed_gives_the_same_and_leaves_no_trace() -> None:
    vae, x = EXACT.vae(), EXACT.sample(80)
    state = torch.get_rng_state()
    first, second, other = (
        pv.sample_quality(vae.model, vae.guide, {"p": None}, x[:40], x[40:], seed=seed).table()
        for seed in (3, 3, 4)
    )
    assert first.equals(second) and not first.equals(other)
    assert torch.equal(torch.get_rng_state(), state) and vae.training


def test_columns_of_a_table_count_alike_whatever_their_units() -> None:
    def found(units: Tensor) -> list[float]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                mean = (z @ EXACT.weight.T + EXACT.bias) * units
                pyro.sample("x", dist.Normal(mean, EXACT.noise * units).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", EXACT.posterior(x / units))

        x = EXACT.sample(80) * units
        quality = pv.sample_quality(model, guide, {"p": None}, x[:40], x[40:])
        return [e.value for _, _, e in quality.estimates()]

    expected = found(torch.ones(6))
    assert found(torch.tensor([1e-3, 1.0, 7.0, 1e4, 2.0, 0.1])) == pytest.approx(expected)


def test_features_are_data_codes_or_a_function() -> None:
    vae, x = EXACT.vae(), EXACT.sample(80)

    def found(features: Any, **other: Any) -> SampleQuality:
        train, held_out = x[:40], x[40:]
        return pv.sample_quality(
            vae.model, vae.guide, {"p": None}, train, held_out, features=features, **other
        )

    codes = found(lambda rows: EXACT.posterior(rows).mean)
    assert found("codes").table().equals(codes.table())
    for features, message in (
        (lambda rows: rows[:, 0], r"shape \(2, F\).*got \(2,\)"),
        (lambda rows: rows[:2], r"shape \(40, F\).*got \(2, 6\)"),
        (lambda rows: rows.log(), r"finite features.*got others in row"),
        ("pixels", "'data', 'codes' or a function of rows; got 'pixels'"),
    ):
        with pytest.raises(pv.InputError, match=message):
            found(features)
    for wrong, message in (
        ({"decoded": "mode"}, "decoded= out of"),
        ({"neighbours": 0}, "whole number of neighbours"),
        ({"neighbours": 2.5}, "whole number of neighbours"),
        ({"samples": 50.5}, "whole number of samples"),
        ({"samples": 10}, "samples ≥ 30"),
        ({"neighbours": 19}, "at least 42 training and as many held-out rows.*got 40 and 40"),
    ):
        with pytest.raises(pv.InputError, match=message):
            found("data", **wrong)
    with pytest.raises(pv.InputError, match="at least one density"):
        pv.sample_quality(vae.model, vae.guide, {}, x[:40], x[40:])


def test_rows_may_be_single_numbers() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z[:, 0].exp()), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None].log1p() - 1, 0.5).to_event(1))

    x = torch.poisson(torch.randn(80).exp())
    found = pv.sample_quality(model, guide, {"prior": None}, x[:40], x[40:], decoded="draw")
    assert all(math.isfinite(e.value) and e.standard_error > 0 for _, _, e in found.estimates())


def test_codes_need_a_pair_of_one_argument() -> None:
    x, label = EXACT.sample(80), torch.ones(80, 1)

    def model(x: Tensor, label: Tensor) -> None:
        EXACT.vae().model(x)

    def guide(x: Tensor, label: Tensor) -> None:
        EXACT.vae().guide(x)

    sides = ((x[:40], label[:40]), (x[40:], label[40:]))
    assert pv.sample_quality(model, guide, {"p": None}, *sides).size == 40
    with pytest.raises(pv.InputError, match="one argument is what it observes"):
        pv.sample_quality(model, guide, {"p": None}, *sides, features="codes")


# -- in a diagnosis --------------------------------------------------------------------------------


def test_a_diagnosis_has_it_in_its_table_its_page_and_its_file(tmp_path: Path) -> None:
    from pyrovae.report import html

    vae, x = EXACT.vae(), EXACT.sample(130)
    diagnosis = pv.diagnose(vae.model, vae.guide, x[:70], held_out=x[70:], effort=TINY)
    found = diagnosis.sample_quality
    assert isinstance(found, SampleQuality) and found.size == 30
    measures = [m for m in diagnosis.summary().measure if m.startswith("sample_quality.")]
    assert len(measures) == 5 * 6 - 2
    rows = tables.sample_quality(diagnosis, found)
    assert [len(row.cells) for row in rows] == [7] * 6
    assert "their reconstructions" in html.render(diagnosis, facts={})
    pv.save(diagnosis, tmp_path / "diagnosis.pt")
    assert pv.load(tmp_path / "diagnosis.pt").summary().equals(diagnosis.summary())


def test_too_few_rows_are_a_concern_and_no_samples_are_none() -> None:
    vae, x = EXACT.vae(), EXACT.sample(80)
    for samples, expected in ((30, ["at least 30 training"]), (0, [])):
        effort = replace(TINY, samples=samples)
        diagnosis = pv.diagnose(vae.model, vae.guide, x[:40], held_out=x[40:], effort=effort)
        concerns = [c for c in diagnosis.concerns if c.startswith("Sample quality")]
        assert len(concerns) == len(expected)
        assert all(words in concern for words, concern in zip(expected, concerns, strict=True))
        assert not any("sample_quality" in measure for measure in diagnosis.summary().measure)
        assert diagnosis.sample_quality is None
        # Files of earlier versions have the reason in the place of the quality.
        content = {field: getattr(diagnosis, field) for field in names.fields_of(pv.Diagnosis)}
        content["sample_quality"] = content.pop("quality_refused")
        assert names.build("Diagnosis", content).concerns == diagnosis.concerns


def quality(distance: float, copied: float) -> Quality:
    share = Estimate(0.5, 0.02, 400, "data")
    frechet = Estimate(distance, 0.1, 400, "data", "upper")
    return Quality(frechet, share, share, share, share, replace(share, value=copied))


def test_the_advice_says_so_where_samples_speak_for_another_density() -> None:
    sentences = {"prior": "the prior", "q_agg": "raw q_agg", "ex_post": "the ex-post prior"}
    densities = {"prior": quality(4, 0.5), "q_agg": quality(1, 0.7), "ex_post": quality(1.2, 0.6)}
    found = replace(exact_quality(), densities=densities)
    said = found.disagreement("prior", sentences)
    assert "raw q_agg is closer" in said and "70 ± 2 % of these" in said
    assert found.disagreement("q_agg", sentences) == ""
    assert found.disagreement("ex_post", sentences) == ""  # 0.2 ± 0.14
