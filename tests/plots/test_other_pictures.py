"""Pictures of other things than a diagnosis: evidence, planes, traversals, neighbours, groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from matplotlib.collections import EllipseCollection

import pyrovae as pv
from pyrovae import plots
from pyrovae.calibration import LocalCalibration
from pyrovae.diagnostics.diagnosis import Diagnosis
from pyrovae.errors import InputError
from pyrovae.evidence.result import Evidence

Case = Callable[..., Diagnosis]


def some_evidence(shift: float = 0.0, draws: int = 500) -> Evidence:
    values = torch.linspace(-3.0, 0.0, 40) + shift
    return Evidence(values, torch.full((40,), 0.1), torch.linspace(0.1, 0.9, 40), draws)


def aggregated(size: int = 60, units: int = 3) -> pv.AggregatedPosterior:
    torch.manual_seed(2)
    encoding = dist.Normal(torch.randn(size, units), torch.rand(size, units) + 0.2).to_event(1)
    return pv.AggregatedPosterior(encoding)


# -- log p(x) --------------------------------------------------------------------------------------


def test_one_result_of_log_evidence_is_drawn() -> None:
    result = some_evidence()
    (ax,) = plots.evidence(result)
    assert float(ax.containers[0][0].get_xdata()[0]) == pytest.approx(result.mean().value)
    labels = plots.pareto_k(result).get_legend_handles_labels()[1]
    rejected = int((result.pareto_k > result.k_limit).sum())
    assert labels == [f"log p(x): {rejected} of 40 above", f"{result.k_limit:.2g}"]
    given = pyplot.figure().subplots(1, 1)
    assert plots.evidence(result, axes=[given])[0] is given


def test_results_have_any_names_and_each_a_colour_of_its_own() -> None:
    found = {"guide": some_evidence(), "wider": some_evidence(0.5), "more": some_evidence(1, 5000)}
    above, below = plots.evidence(found)
    colours = [container[0].get_color() for container in above.containers]
    assert len(set(colours)) == 3 and [t.get_text() for t in above.get_yticklabels()] == list(found)
    gains = [float(container[0].get_xdata()[0]) for container in below.containers]
    assert gains == pytest.approx([0.5, 1.0]) and "difference from guide" in below.get_xlabel()
    dotted = plots.pareto_k(found).get_legend_handles_labels()[1][-2:]
    assert dotted == [f"{found['guide'].k_limit:.2g}", f"{found['more'].k_limit:.2g}"]


@pytest.mark.parametrize("plot", [plots.evidence, plots.pareto_k])
def test_what_is_no_evidence_is_refused(plot: Callable[..., object]) -> None:
    for other in (3.0, {}, [some_evidence()]):
        with pytest.raises(InputError, match="expected a Diagnosis, an Evidence or several"):
            plot(other)
    with pytest.raises(InputError, match="got float under 'b'"):
        plot({"a": some_evidence(), "b": 2.0})


# -- planes ----------------------------------------------------------------------------------------


def test_ellipses_enclose_their_share_of_an_encoding() -> None:
    root = torch.tensor([[2.0, 0.0], [0.6, 0.5]])
    full = dist.MultivariateNormal(torch.zeros(1, 2), scale_tril=root.expand(1, 2, 2))
    ax = plots.ellipses(pv.AggregatedPosterior(full), units=(0, 1))
    draws = full.sample(torch.Size([20_000]))[:, 0].numpy()
    for drawn, share in zip(ax.collections, (0.68, 0.95), strict=True):
        assert isinstance(drawn, EllipseCollection)
        angle = float(drawn._angles[0])  # in radians
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        radii = np.array([drawn._widths[0], drawn._heights[0]])  # half of each
        inside = (((draws @ turn.T) / radii) ** 2).sum(1) < 1
        error = math.sqrt(share * (1 - share) / len(draws))
        assert inside.mean() == pytest.approx(share, abs=4 * error)


def test_ellipses_have_the_colours_of_their_labels() -> None:
    labels = ["a", "b"] * 30
    ax = plots.ellipses(aggregated(), colour=labels)
    edges = ax.collections[0].get_edgecolor()
    assert len(edges) == 60 and np.array_equal(edges[0], edges[2])
    assert not np.array_equal(edges[0], edges[1])
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["a", "b"]
    rare = ["b"] * 500
    rare[3] = "a"  # is none of the hundred rows that are drawn, and keeps its colour
    ax = plots.ellipses(aggregated(500), colour=rare)
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["a", "b"]
    assert np.array_equal(ax.collections[0].get_edgecolor()[0], edges[1])
    many = plots.ellipses(aggregated(500), colour=np.linspace(0, 1, 500))
    assert len(many.collections[0].get_offsets()) == 100


def test_the_plane_of_a_density_is_that_of_its_marginal() -> None:
    agg = aggregated()
    image = plots.density_plane(agg, units=(2, 0)).get_images()[0]
    left, right, low, high = image.get_extent()
    across, up = (torch.linspace(a, b, 128) for a, b in ((left, right), (low, high)))
    heights = plots.pair_density(agg, (2, 0), across, up)
    assert heights is not None
    assert np.allclose(image.get_array(), np.sqrt(heights), rtol=1e-4, atol=1e-9)


def test_planes_are_of_two_units_that_there_are() -> None:
    agg, one = aggregated(), aggregated(units=1)
    for plot in (plots.ellipses, plots.density_plane):
        for units in ((0, 3), (1, 1), (0, 1, 2), (0, 1, 1), (0.5, 1)):
            with pytest.raises(InputError, match="expected two units out of 3"):
                plot(agg, units=units)
        with pytest.raises(InputError, match="drawn by unit_marginals"):
            plot(one)
    laplace = dist.Laplace(torch.zeros(5, 2), torch.ones(5, 2)).to_event(1)
    with pytest.raises(InputError, match="encodings that are normals"):
        plots.ellipses(pv.AggregatedPosterior(laplace))
    shift = dist.transforms.AffineTransform(0.0, 2.0)
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [shift])
    with pytest.raises(InputError, match="two units have a known density"):
        plots.density_plane(flow)
    with pytest.raises(InputError, match="two units have a known density"):
        plots.density_plane(dist.Delta(torch.zeros(3), event_dim=1))
    for shapeless in (dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(3), 1.0)):
        with pytest.raises(InputError, match="expected one density over vectors"):
            plots.density_plane(shapeless)


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 4), (6,), (2,)])
def test_a_traversal_is_a_line_for_each_start(shape: tuple[int, ...]) -> None:
    vae = pv.VAE(pv.mlp_encoder(shape, 2), pv.mlp_decoder(2, shape), pv.StandardNormal(2))
    values = torch.linspace(-2.0, 2.0, 5)
    steps = torch.cat([vae.traverse(torch.zeros(1, 2), unit, values) for unit in range(2)])
    axes = plots.traversal(steps, values=values, titles=["unit 0", "unit 1"])
    assert [ax.get_ylabel() for ax in axes] == ["unit 0", "unit 1"]
    if len(shape) == 1:
        found = np.stack([line.get_ydata() for line in axes[1].lines], 1)
        assert found == pytest.approx(steps[1].numpy())
    else:
        assert [len(ax.get_images()) for ax in axes] == [5, 5]
        words = [text.get_text() for text in axes[0].get_xticklabels()]
        assert words == ["-2", "-1", "0", "1", "2"]
    given = list(pyplot.figure().subplots(2, 1))
    assert plots.traversal(steps, axes=given) == given


def test_steps_of_another_shape_are_refused() -> None:
    for other in (3.0, torch.zeros(4, 5), torch.zeros(0, 2, 3)):
        with pytest.raises(InputError, match=r"expected steps of shape \(B, S, ...\)"):
            plots.traversal(other)
    steps = torch.zeros(2, 5, 6)
    for values in (torch.zeros(3), torch.zeros(5, 2), list("abcde")):
        with pytest.raises(InputError, match="expected 5 values, one number for each step"):
            plots.traversal(steps, values=values)
    with pytest.raises(InputError, match="expected 2 titles, one for each line; got 1"):
        plots.traversal(steps, titles=["unit 0"])
    with pytest.raises(InputError, match="expected names of all 6 features"):
        plots.traversal(steps, names=["a", "b"])


def test_neighbours_are_the_rows_that_are_named() -> None:
    agg, rows = aggregated(), torch.rand(60, 4, 4)
    near = agg.nearest(agg.encoding.mean[:2], k=3)
    axes = plots.neighbours(near, rows[:2], rows)
    assert len(axes) == 8
    low, high = float(rows[near.index].min()), float(rows[near.index].max())
    shown = axes[5].get_images()[0].get_array()
    assert np.allclose(shown, (rows[near.index[1, 0]].numpy() - low) / (high - low))
    assert axes[5].get_title() == f"{100 * float(near.weight[1, 0]):.0f} %"
    with pytest.raises(InputError, match="expected 2 new rows"):
        plots.neighbours(near, rows[:3], rows)
    with pytest.raises(InputError, match="expected the nearest rows"):
        plots.neighbours(rows, rows, rows)


# -- populations -----------------------------------------------------------------------------------


def test_groups_are_coloured_by_their_log_ratio_and_the_found_larger() -> None:
    means = torch.cat([torch.randn(60, 2), torch.randn(60, 2) + 3.0])
    agg = pv.AggregatedPosterior(dist.Normal(means, torch.full_like(means, 0.3)).to_event(1))
    donors = [n // 10 for n in range(120)]
    found = pv.compare_groups(agg, ["ill"] * 60 + ["well"] * 60, replicates=donors)
    contrast = found.contrast("ill", "well")
    others, larger = contrast.plot(agg).collections[:2]
    assert np.allclose(larger.get_array(), contrast.log_ratio[contrast.found])
    assert np.allclose(others.get_array(), contrast.log_ratio[~contrast.found])
    assert larger.get_sizes()[0] > others.get_sizes()[0] and contrast.found.any()
    with pytest.raises(InputError, match="q_agg of the 120 rows that were compared; got 60"):
        plots.group_contrast(contrast, agg[:60])
    with pytest.raises(InputError, match="expected a GroupContrast"):
        plots.group_contrast(agg, agg)  # type: ignore[arg-type]
    untested = replace(contrast, q_value=None, p_value=None)
    assert plots.group_contrast(untested, agg).get_title() == "nothing is tested"


def test_p_values_of_new_rows_are_counted_by_whether_they_are_found() -> None:
    density = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    new = torch.cat([density.sample((40,)), torch.full((10, 2), 9.0)])
    found = pv.novelty(density, new, calibration=density.sample((200,)))
    ax = found.plot()
    heights = np.array([[bar.get_height() for bar in part] for part in ax.containers])
    assert heights.sum(1).tolist() == [int(found.found.sum()), int((~found.found).sum())]
    with pytest.raises(InputError, match="expected a Novelty"):
        plots.novel_rows(3.0)  # type: ignore[arg-type]


def test_rows_at_which_a_guide_departs_lie_below_the_limit() -> None:
    adjusted = torch.tensor([0.004, 0.3, 1.0])
    found = LocalCalibration(
        adjusted / 2, adjusted, torch.full((3, 4), 1e-9), torch.full((3, 4), 0.5),
        ("unit 0", "unit 1", "log q", "log p"), torch.full((3,), 5.0), 1000, 200,
    )  # fmt: skip
    ax = plots.local_calibration(found)
    classifier, replicates, limit = (line.get_ydata() for line in ax.get_lines())
    assert np.allclose(classifier, adjusted) and np.allclose(replicates, 0.5)
    assert (np.asarray(classifier) < limit[0]).tolist() == (~found.passed).tolist()
    with pytest.raises(InputError, match="expected a LocalCalibration"):
        plots.local_calibration(adjusted)  # type: ignore[arg-type]
