"""Every plot draws every kind of diagnosis, changes no setting, and shows the right numbers."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.errors import InputError
from pyrovae.plots import curves, latent, samples
from pyrovae.plots.grids import mass_levels, most_active, pair_density, unit_density
from pyrovae.plots.style import COLOURS, off_screen
from pyrovae.report.html import _uris as uris
from pyrovae.report.html import figure_of

OF_DIAGNOSIS = (
    latent.latent_map,
    latent.unit_activity,
    latent.unit_marginals,
    curves.held_out_densities,
    curves.evidence,
    curves.pareto_k,
    curves.ex_post_candidates,
    samples.sample_sheets,
)
CASES = (
    ("image", 2, "mixture"),
    ("image", 10, "normal"),
    ("colour", 1, "normal"),
    ("table", 3, "flow"),
    ("table", 1, "flow"),
    ("narrow", 10, "mixture"),
)


def drawn(figure: Figure) -> Figure:
    """The figure after its layout, which shows missing glyphs and axes without room as warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("kind", CASES, ids=str)
def test_every_plot_draws_every_case(case, kind):
    for plot in OF_DIAGNOSIS:
        figure = drawn(figure_of(plot(case(*kind))))
        assert all(ax.has_data() for ax in figure.axes if ax.axison)


@pytest.mark.parametrize("data", ["table", "narrow", "number"])
def test_feature_marginals_draw_tables(case, data):
    figure = figure_of(samples.feature_marginals(case(data, 2)))
    features = min(6, case(data, 2).pictures.data.shape[1])
    assert len([ax for ax in figure.axes if ax.axison]) == features
    drawn(figure)


def test_features_have_the_names_of_their_columns(case):
    columns = case("table", 2).pictures.data.shape[1]
    names = ["$price_0", "n" * 40, *(f"c{number}" for number in range(2, columns))]
    figure = figure_of(samples.feature_marginals(case("table", 2), names=names))
    first, second = (ax.get_title() for ax in figure.axes[:2])
    assert first == "$price_0" and second == f"{'n' * 25}…"
    drawn(figure)
    assert samples.feature_marginals(case("table", 2))[0].get_title() == "feature 0"
    for plot in (
        samples.feature_marginals, samples.reconstructions, samples.predictive_check,
        samples.sample_sheets,
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"expected names of all {columns} features"):
            plot(case("table", 2), names=names[1:])


@pytest.mark.parametrize("epochs", [1, 2, 8])
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_training_curve_draws_every_run(run, epochs, warmup, validation):
    fit = run(epochs, warmup=warmup, validation=validation)
    figure = figure_of(curves.training_curve(fit))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("validation ELBO" in labels) == validation
    assert f"epoch kept: {epochs}" in labels
    assert len(figure.axes) == (2 if warmup else 1)
    drawn(figure)


def test_plots_leave_settings_alone_and_pyplot_where_they_are_off_screen(case, run):
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    shown = latent.latent_map(case("image", 2)).figure
    curves.training_curve(run())
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == [1, 2] and pyplot.figure(1) is shown  # for a notebook to show
    with off_screen():
        latent.latent_map(case("image", 2))
    assert pyplot.get_fignums() == [1, 2]


def test_a_notebook_shows_plots_though_pyplot_was_not_loaded(case, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.setattr("pyrovae.plots.style.in_notebook", lambda: True)
    monkeypatch.setattr(matplotlib, "pyplot", pyplot)  # to be put back, as the module is
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    with off_screen():
        latent.latent_map(case("image", 2))
    assert "matplotlib.pyplot" not in sys.modules
    latent.latent_map(case("image", 2))
    assert pyplot.get_fignums() == [1]


def test_a_backend_that_a_plot_sets_up_stays_as_it_is(case, monkeypatch):
    from matplotlib import pyplot

    before = matplotlib.is_interactive()
    monkeypatch.setattr(pyplot, "draw_if_interactive", lambda: matplotlib.interactive(True))
    try:
        latent.latent_map(case("image", 2))
        assert matplotlib.is_interactive()  # or a notebook would show no further figure
    finally:
        matplotlib.interactive(before)


def test_settings_of_the_user_do_not_reach_the_report(case, run):
    sketch = (1.0, 100.0, 2.0)
    users = {"text.usetex": True, "axes.formatter.use_locale": True, "path.sketch": sketch}
    for make in (lambda: curves.evidence(case("image", 2)), lambda: curves.training_curve(run())):
        plain = uris(figure_of(make()))
        with matplotlib.rc_context(users):
            assert uris(figure_of(make())) == plain


def test_legends_lie_outside_the_axes(case):
    for plot in (latent.latent_map, curves.held_out_densities, curves.pareto_k):
        figure = figure_of(plot(case("image", 2)))
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        assert all(not legend.overlaps(ax.get_window_extent()) for ax in figure.axes)


def test_evidence_shows_means_and_paired_differences(case):
    diagnosis = case("image", 2)
    above, below = curves.evidence(diagnosis)
    base = diagnosis.evidence["prior"]
    means = [result.mean().value for result in diagnosis.evidence.values()]
    gains = [e.minus(base).value for n, e in diagnosis.evidence.items() if n != "prior"]
    assert _centres(above) == pytest.approx(means)
    assert _centres(below) == pytest.approx(gains)


def _centres(ax: Axes) -> list[float]:
    return [float(container[0].get_xdata()[0]) for container in ax.containers]


def test_values_that_are_not_finite_are_named_and_left_out(case):
    diagnosis = case("image", 2)
    base, broken = diagnosis.evidence["prior"], diagnosis.evidence["q_agg"]
    values, pareto_k = broken.values.clone(), broken.pareto_k.clone()
    values[0], pareto_k[0] = -torch.inf, torch.inf
    memory = diagnosis.memorisation
    log_aggregated = memory.log_aggregated.clone()
    log_aggregated[0] = -torch.inf
    broken = replace(broken, values=values, pareto_k=pareto_k)
    diagnosis = replace(
        diagnosis,
        evidence={"prior": base, "q_agg": broken},
        memorisation=replace(memory, log_aggregated=log_aggregated),
    )
    figure = drawn(figure_of(curves.evidence(diagnosis)))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "infinite" in labels[1] and "infinite" not in labels[0]
    drawn(figure_of(curves.pareto_k(diagnosis)))
    drawn(figure_of(curves.held_out_densities(diagnosis)))


def test_one_density_has_one_colour_in_all_plots(case):
    diagnosis = case("image", 2)
    points = curves.evidence(diagnosis)[0].containers
    assert [c[0].get_color() for c in points] == [COLOURS[n] for n in diagnosis.evidence]
    titles = [ax.title.get_color() for ax in samples.sample_sheets(diagnosis)]
    assert titles == [COLOURS[n] for n in ("data", *diagnosis.pictures.samples)]


def test_collapsed_units_are_told_apart(case):
    diagnosis = case("image", 10)
    collapsed = int((~diagnosis.collapse.active).sum())
    assert 0 < collapsed < 10  # so that the plot has both kinds
    labels = latent.unit_activity(diagnosis)[-1].get_legend_handles_labels()[1]
    assert [label.split()[0] for label in labels] == ["0.01", "active", "collapsed"]
    assert "collapsed: " in latent.latent_map(diagnosis).get_title()


def test_densities_on_grids_integrate_to_one(case):
    diagnosis = case("image", 10, "mixture")
    units = most_active(diagnosis.collapse, 2)
    grid = torch.linspace(-12, 12, 401)
    step = float(grid[1] - grid[0])
    for density in (diagnosis.aggregated, diagnosis.prior, case("image", 10).prior):
        assert unit_density(density, units[0], grid).sum() * step == pytest.approx(1, abs=1e-6)
        assert pair_density(density, units, grid, grid).sum() * step**2 == pytest.approx(
            1, abs=1e-6
        )


def test_pair_density_has_first_unit_along_columns(case):
    prior = case("image", 10, "mixture").prior
    x, y = torch.linspace(-2, 2, 5), torch.linspace(-1, 1, 3)
    heights = pair_density(prior, [4, 7], x, y)
    point = torch.stack([x[1], y[2]])
    assert heights.shape == (3, 5)
    density = float(prior.marginal([4, 7]).log_prob(point).exp().detach())
    assert heights[2, 1] == pytest.approx(density)


def test_contours_enclose_their_shares_of_the_mass(case):
    # A standard normal in two dimensions: density at the edge of mass s is (1 − s)/2π.
    grid = torch.linspace(-6, 6, 301)
    heights = pair_density(case("image", 2).prior, [0, 1], grid, grid)
    low, high = mass_levels(heights, (0.5, 0.9))
    assert (low, high) == pytest.approx((0.1 / (2 * np.pi), 0.5 / (2 * np.pi)), rel=0.01)


def test_unknown_marginals_are_shown_by_draws(case):
    diagnosis = case("table", 3, "flow")
    assert unit_density(diagnosis.prior, 0, torch.zeros(1)) is None
    labels = latent.unit_marginals(diagnosis)[0].get_legend_handles_labels()[1]
    assert [label.endswith("draws") for label in labels] == [False, True]


def test_mosaic_keeps_every_image(case):
    image = samples.sample_sheets(case("image", 2))[0].get_images()[0].get_array()
    data = case("image", 2).pictures.data.numpy()
    assert np.array_equal(image[:6, :6], data[0])
    assert np.array_equal(image[14:20, 7:13], data[7])  # 3 × 3 images with gaps of one pixel
