"""Groups of replicates: densities by brute force, errors and p-values by their definitions."""

from __future__ import annotations

import math
from itertools import combinations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.populations import GroupContrast

REPLICATES, CELLS = 6, 8
OF_DONOR = torch.arange(REPLICATES).repeat_interleave(CELLS)
GROUP = ["ill" if donor < 3 else "well" for donor in OF_DONOR.tolist()]


def encodings(spread: float = 1.0) -> pv.AggregatedPosterior:
    """Encodings of donors who differ a little, with weights of their own."""
    means = spread * torch.randn(len(OF_DONOR), 2) + 0.5 * torch.randn(REPLICATES, 2)[OF_DONOR]
    scales = 0.2 + 0.5 * torch.rand(len(OF_DONOR), 2)
    return pv.AggregatedPosterior(
        dist.Normal(means, scales).to_event(1), 0.5 + torch.rand(len(OF_DONOR))
    )


def of_donor(r: int) -> Tensor:
    """Whether each row is of a donor, shape ``(N,)``."""
    return OF_DONOR.eq(r)


def by_donor(agg: pv.AggregatedPosterior) -> Tensor:
    """log q_r(z_n) without n, by the sum over all pairs."""
    codes = agg.encoding.mean
    pairs = agg.encoding.log_prob(codes.unsqueeze(1)) + agg.log_weights
    weights = agg.log_weights.expand_as(pairs).clone()
    for array in (pairs, weights):
        array.fill_diagonal_(-math.inf)
    columns = [
        pairs[:, of_donor(r)].logsumexp(1) - weights[:, of_donor(r)].logsumexp(1)
        for r in range(REPLICATES)
    ]
    return torch.stack(columns, 1)


def studentised(log_densities: Tensor, first: list[int]) -> tuple[Tensor, Tensor]:
    """λ and its standard error, s²/(R m²) in each group, from the densities themselves."""
    second = [r for r in range(REPLICATES) if r not in first]
    ratio, variance = 0.0, 0.0
    for sign, members in ((1, first), (-1, second)):
        densities = log_densities[:, members].exp()
        ratio = ratio + sign * densities.mean(1).log()
        variance = variance + densities.var(1) / len(members) / densities.mean(1).square()
    return ratio, variance.sqrt()


def contrast(agg: pv.AggregatedPosterior, **options: object) -> GroupContrast:
    comparison = pv.compare_groups(agg, GROUP, replicates=OF_DONOR, **options)
    return comparison.contrast("ill", "well")


def test_densities_leave_the_own_component_out() -> None:
    agg = encodings()
    comparison = pv.compare_groups(agg, GROUP, replicates=OF_DONOR)
    brute = by_donor(agg)
    torch.testing.assert_close(comparison.log_densities, brute, atol=1e-9, rtol=1e-9)
    of_groups = torch.stack([brute[:, :3].logsumexp(1), brute[:, 3:].logsumexp(1)], 1)
    torch.testing.assert_close(comparison.log_density, of_groups - math.log(3))


def test_ratios_errors_and_p_values_are_those_of_their_definitions() -> None:
    agg = encodings()
    result, brute = contrast(agg), by_donor(agg)
    ratio, error = studentised(brute, [0, 1, 2])
    torch.testing.assert_close(result.log_ratio, ratio)
    torch.testing.assert_close(result.standard_error, error)
    statistics = [
        (lambda r, e: r.abs() / e)(*studentised(brute, list(way)))
        for way in combinations(range(REPLICATES), 3)
    ]
    as_extreme = torch.stack(statistics) >= (ratio.abs() / error) * (1 - 1e-9)
    torch.testing.assert_close(result.p_value, as_extreme.double().mean(0))
    assert result.smallest_p_value == 2 / 20


def test_the_divergence_is_the_mean_ratio_of_a_group_with_the_jackknife_s_error() -> None:
    agg = encodings()
    brute, donors = by_donor(agg), [0, 1, 2]

    def kl(first: list[int], second: list[int]) -> float:
        ratio = brute[:, first].logsumexp(1) - brute[:, second].logsumexp(1)
        ratio = ratio - math.log(len(first)) + math.log(len(second))
        weight = agg.log_weights.exp()
        means = [(weight * ratio)[of_donor(r)].sum() / weight[of_donor(r)].sum() for r in first]
        return float(torch.stack(means).mean())

    others = [3, 4, 5]
    without = [
        [kl([r for r in donors if r != left], others) for left in donors],
        [kl(donors, [r for r in others if r != left]) for left in others],
    ]
    variance = sum(2 / 3 * torch.tensor(part).sub(sum(part) / 3).square().sum() for part in without)
    estimate = contrast(agg).divergence
    assert math.isclose(estimate.value, kl(donors, others), rel_tol=1e-9)
    assert math.isclose(estimate.standard_error, math.sqrt(float(variance)), rel_tol=1e-6)


def test_rows_of_no_weight_are_as_good_as_left_out() -> None:
    agg = encodings()
    kept = torch.arange(len(OF_DONOR)) % CELLS > 1
    weights = torch.where(kept, agg.log_weights.exp(), 1e-14)
    with_them = contrast(pv.AggregatedPosterior(agg.encoding, weights))
    groups = [name for name, stays in zip(GROUP, kept.tolist(), strict=True) if stays]
    comparison = pv.compare_groups(agg[kept], groups, replicates=OF_DONOR[kept])
    without = comparison.contrast("ill", "well")
    torch.testing.assert_close(with_them.log_ratio[kept], without.log_ratio, atol=1e-6, rtol=1e-6)
    for found in ("divergence", "reverse"):
        one, other = getattr(with_them, found), getattr(without, found)
        assert math.isclose(one.value, other.value, rel_tol=1e-6)
        assert math.isclose(one.standard_error, other.standard_error, rel_tol=1e-6)
    assert with_them.global_p_value == without.global_p_value


def test_codes_farther_apart_than_any_number_keep_their_ratio() -> None:
    agg = encodings(spread=300.0)
    result = contrast(agg)
    brute = by_donor(agg)
    ratio = brute[:, :3].logsumexp(1) - brute[:, 3:].logsumexp(1)
    assert float(ratio.abs().max()) > 1e4
    torch.testing.assert_close(result.log_ratio, ratio)
    assert bool(result.standard_error.isfinite().all())
    assert bool((result.p_value >= result.smallest_p_value).all())


def test_p_values_hold_where_the_groups_are_alike() -> None:
    # 80 problems: four errors of 3.4 % above 10 %
    small, small_globally = 0, 0
    for _ in range(80):
        result = contrast(encodings())
        small += float(result.p_value[0]) <= 0.1
        small_globally += result.global_p_value <= 0.1
    assert small / 80 < 0.1 + 4 * 0.034
    assert small_globally / 80 < 0.1 + 4 * 0.034


def test_what_differs_is_found_and_named_by_its_rows() -> None:
    donors = torch.arange(12).repeat_interleave(20)
    means = torch.randn(240, 2) * 0.5
    means[:, 0] += torch.where(donors < 6, 3.0, 0.0)
    agg = pv.AggregatedPosterior(dist.Normal(means, 0.3 * torch.ones(240, 2)).to_event(1))
    result = pv.compare_groups(agg, donors < 6, replicates=donors).contrast("True", "False")
    assert result.found.double().mean() > 0.9
    assert result.global_p_value == result.smallest_p_value == 2 / 924
    assert result.divergence.interval[0] > 1.0
    rows = result.exemplars(4)
    assert set(rows) == {"True", "False"}
    assert bool((donors[rows["True"]] < 6).all()) and bool((donors[rows["False"]] >= 6).all())
    assert result.concerns == ()


def test_other_dependence_finds_no_more() -> None:
    agg = encodings()
    usual, any_dependence = contrast(agg), contrast(agg, control="by")
    assert bool((usual.q_value <= any_dependence.q_value).all())
    assert bool((usual.q_value >= usual.p_value - 1e-12).all())


def test_more_ways_than_asked_for_are_drawn_by_the_seed() -> None:
    agg = encodings()
    first, again, other = (contrast(agg, permutations=7, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.p_value, again.p_value)
    assert not torch.equal(first.p_value, other.p_value)
    assert bool((first.p_value >= 1 / 8).all())


def test_one_replicate_tells_no_error() -> None:
    agg = encodings()
    result = pv.compare_groups(agg, GROUP).contrast("ill", "well")
    assert result.p_value is None and not bool(result.found.any())
    assert bool(result.standard_error.isinf().all())
    assert result.divergence.unresolved == "too few replicates to tell"
    assert "replicates=" in result.concerns[0]


def test_too_few_ways_are_said() -> None:
    pairs = torch.arange(4).repeat_interleave(CELLS)
    agg = encodings()[torch.arange(len(pairs))]
    result = pv.compare_groups(agg, pairs > 1, replicates=pairs).contrast("False", "True")
    assert result.smallest_p_value == pytest.approx(1 / 3)
    assert "no p-value is below 0.33" in result.concerns[0]


def test_a_number_weighs_the_replicates_around_it() -> None:
    agg = encodings()
    age = torch.tensor([20.0, 30, 40, 50, 60, 70])
    comparison = pv.compare_groups(
        agg, age[OF_DONOR], replicates=OF_DONOR, at=(25, 65), bandwidth=12.0
    )
    weights = torch.exp(-((age.unsqueeze(1) - torch.tensor([25.0, 65.0])) ** 2) / (2 * 144))
    torch.testing.assert_close(comparison.weights, weights / weights.sum(0))
    result = comparison.contrast("25", "65")
    densities = by_donor(agg).exp()
    one, other = (comparison.weights / (1 - comparison.weights.square().sum(0)).sqrt()).T
    mean, mean_other = (densities @ comparison.weights).T
    influence = one * (densities / mean.unsqueeze(1) - 1)
    influence = influence - other * (densities / mean_other.unsqueeze(1) - 1)
    torch.testing.assert_close(result.log_ratio, (mean / mean_other).log())
    torch.testing.assert_close(result.standard_error, influence.square().sum(1).sqrt())


def test_groups_that_are_not_compared_have_no_say() -> None:
    agg = encodings()
    three = ["a", "a", "b", "b", "c", "c"]
    labels = [three[donor] for donor in OF_DONOR.tolist()]
    comparison = pv.compare_groups(agg, labels, replicates=OF_DONOR)
    part = OF_DONOR < 4
    alone = pv.compare_groups(
        agg[part], [label for label in labels if label != "c"], replicates=OF_DONOR[part]
    ).contrast("a", "b")
    both = comparison.contrast("a", "b")
    torch.testing.assert_close(both.log_ratio[part], alone.log_ratio)
    assert both.global_p_value == alone.global_p_value
    assert both.divergence.value == pytest.approx(alone.divergence.value)


@pytest.mark.parametrize(
    ("groups", "options", "says"),
    [
        (GROUP[:-1], {"replicates": OF_DONOR}, "a label for each of the 48 rows"),
        ([None, *GROUP[1:]], {}, "one at row 0"),
        (["all"] * len(GROUP), {}, "at least two groups"),
        (["ill", "well"] * 24, {"replicates": OF_DONOR}, "one group each; got 0"),
        (GROUP, {"replicates": [99, *OF_DONOR.tolist()[1:]]}, "at least two rows; got one of 1"),
        (GROUP, {"replicates": OF_DONOR, "level": 1.5}, "level=1.5"),
        (GROUP, {"replicates": OF_DONOR, "control": "holm"}, "'bh' or 'by'"),
        (GROUP, {"replicates": OF_DONOR, "permutations": 0}, "at least one permutation"),
        (OF_DONOR, {"replicates": OF_DONOR, "at": (1, 2)}, "a bandwidth above 0"),
        (
            OF_DONOR,
            {"replicates": OF_DONOR, "at": (1, 1), "bandwidth": 1.0},
            "two values to",
        ),
        (
            torch.rand(48),
            {"replicates": OF_DONOR, "at": (0, 1), "bandwidth": 1.0},
            "one number for",
        ),
    ],
)
def test_what_can_t_be_compared_is_refused(
    groups: object, options: dict[str, object], says: str
) -> None:
    with pytest.raises(pv.InputError, match=says):
        pv.compare_groups(encodings(), groups, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("names", "says"), [(("ill", "b"), "got 'b'"), (("ill", "ill"), "twice")])
def test_other_groups_are_refused(names: tuple[str, str], says: str) -> None:
    comparison = pv.compare_groups(encodings(), GROUP, replicates=OF_DONOR)
    with pytest.raises(pv.InputError, match=says):
        comparison.contrast(*names)
