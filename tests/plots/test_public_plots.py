"""Every public picture, with and without axes, of a diagnosis that was saved and read again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes

import pyrovae as pv
from pyrovae import plots
from pyrovae.diagnostics import Gaps, NutsComparison
from pyrovae.diagnostics.diagnosis import Diagnosis
from pyrovae.errors import InputError

Case = Callable[..., Diagnosis]

#: What each public picture takes of a diagnosis when it is not given the whole, and "ax" or "axes".
PICTURES: dict[str, tuple[str, Callable[[Diagnosis], Any] | None]] = {
    "attributions": ("axes", lambda d: d.attributions),
    "baselines": ("ax", None),
    "beside": ("axes", lambda d: d.guide_check.beside),
    "calibration": ("ax", lambda d: d.guide_check.calibration),
    "density_plane": ("ax", lambda d: d.prior),
    "ellipses": ("ax", lambda d: d.aggregated),
    "evidence": ("axes", lambda d: d.evidence),
    "ex_post_candidates": ("axes", lambda d: d.ex_post),
    "feature_marginals": ("axes", lambda d: d.exported),
    "gaps": ("ax", lambda d: d.guide_check.gaps),
    "held_out_densities": ("ax", lambda d: d.memorisation),
    "latent_map": ("ax", lambda d: d.aggregated),
    "overview": ("axes", None),
    "pareto_k": ("ax", lambda d: d.evidence),
    "predictive_check": ("ax", lambda d: d.exported),
    "pseudo_inputs": ("axes", lambda d: d.pictures),
    "reconstructions": ("axes", lambda d: d.exported),
    "sample_sheets": ("axes", lambda d: d.pictures),
    "unit_activity": ("axes", lambda d: d.collapse),
    "unit_marginals": ("axes", lambda d: d.aggregated),
}
#: Of other things than a diagnosis.
OTHER_PICTURES = {
    "group_contrast", "local_calibration", "neighbours", "novel_rows", "training_curve",
    "traversal",
}  # fmt: skip
NO_PICTURES = {
    "CLEAR", "LABEL_COLOURS", "STYLE", "darken", "is_image", "off_screen", "pair_density",
    "predictive_errors",
}  # fmt: skip


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Diagnosis]:
    """Diagnoses with all parts, by the kind of their data."""
    from small_diagnoses import _case

    return {
        data: through_a_file(whole(_case(data, latent, prior)), tmp_path_factory.mktemp(data))
        for data, latent, prior in (("image", 2, "mixture"), ("narrow", 10, "mixture"))
    }


def whole(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis with the parts that take minutes made up."""
    evidence = diagnosis.evidence["prior"]
    some = evidence.subset(torch.arange(12))
    gaps = Gaps(some, replace(some, values=some.values + 1), None,
                replace(some, values=some.values + 2))  # fmt: skip
    mean, ones = torch.randn(3, 4), torch.ones(3, 4)
    nuts = NutsComparison(
        mean, ones, mean + 0.2, ones / 2, ones, 400 * ones, ones[:, 0], ones[:, 0], ones[:, 0],
        some.subset(torch.arange(3)), torch.randn(2, 5, 3, 4),
    )  # fmt: skip
    pictures = diagnosis.pictures
    assert pictures is not None
    return replace(
        diagnosis,
        guide_check=replace(diagnosis.guide_check, gaps=gaps, beside=nuts),
        pictures=replace(pictures, pseudo_inputs=pictures.data[:4]),
    )


def through_a_file(diagnosis: Diagnosis, folder: Path) -> Diagnosis:
    pv.save(diagnosis, folder / "diagnosis.pt")
    again: Diagnosis = pv.load(folder / "diagnosis.pt")
    return again


def flat(drawn: Axes | list[Axes]) -> list[Axes]:
    return drawn if isinstance(drawn, list) else [drawn]


def test_every_public_picture_is_in_the_list() -> None:
    assert set(plots.__all__) == set(PICTURES) | OTHER_PICTURES | NO_PICTURES


@pytest.mark.parametrize("data", ["image", "narrow"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_draws_on_the_axes_that_it_is_given(
    read: dict[str, Diagnosis], name: str, data: str
) -> None:
    plot, (option, part) = getattr(plots, name), PICTURES[name]
    on_its_own = flat(plot(read[data]))
    assert all(isinstance(ax, Axes) for ax in on_its_own) and on_its_own[0].has_data()
    given = list(pyplot.figure().subplots(len(on_its_own), 1, squeeze=False).flat)
    figures = pyplot.get_fignums()
    drawn = plot(read[data], **{option: given[0] if option == "ax" else given})
    assert isinstance(drawn, list) == (option == "axes")
    assert all(one is other for one, other in zip(flat(drawn), given, strict=True))
    assert all(ax.has_data() for ax in given)
    assert pyplot.get_fignums() == figures  # and no figure beside it
    assert [len(ax.lines) for ax in given] == [len(ax.lines) for ax in on_its_own]
    if part is not None:
        assert flat(plot(part(read[data])))[0].has_data()


@pytest.mark.parametrize("name", PICTURES)
def test_other_input_and_too_few_axes_are_refused(read: dict[str, Diagnosis], name: str) -> None:
    plot, option = getattr(plots, name), PICTURES[name][0]
    if name != "overview":
        with pytest.raises(InputError, match="expected a"):
            plot(3.0)
    with pytest.raises(InputError, match="axes to draw on; got 0"):
        plot(read["image"], **{option: []})


def test_what_was_left_out_is_named(case: Case) -> None:
    bare = replace(case("image", 2), baselines=None, pictures=None, exported=None, evidence={})
    for name in ("baselines", "sample_sheets", "reconstructions", "predictive_check", "evidence"):
        with pytest.raises(InputError, match="Diagnose with effort="):
            getattr(plots, name)(bare)


def test_results_plot_themselves(case: Case, run: Callable[..., pv.Fit]) -> None:
    fit = run(4, warmup=True)
    axes = case("image", 2).plot(fit=fit)
    assert len(axes) == 5 and all(ax.has_data() for ax in axes)
    assert [len(drawn) for drawn in (fit.plot(), fit.plot(axes=[axes[0]]))] == [2, 1]
    with pytest.raises(InputError, match="expected a Fit"):
        plots.training_curve(3)  # type: ignore[arg-type]


def test_codes_have_the_colours_of_their_labels(case: Case) -> None:
    diagnosis = case("image", 2)
    labels = np.arange(diagnosis.codes.population) % 3
    ax = plots.latent_map(diagnosis, colour=np.array(["a", "b", "c"])[labels])
    points = ax.collections[:3]
    rows = labels[diagnosis.codes.index.numpy()]
    assert [len(one.get_offsets()) for one in points] == np.bincount(rows).tolist()
    words = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert words[:3] == ["a", "b", "c"]
    ax.figure.canvas.draw()
    box = ax.figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= ax.figure.bbox.width
    numbers = plots.latent_map(diagnosis, colour=np.linspace(0, 1, diagnosis.codes.population))
    assert np.ptp(numbers.collections[0].get_array()) > 0.5
    with pytest.raises(InputError, match="a label for each of 40 rows"):
        plots.latent_map(diagnosis, colour=[1, 2])


def test_rows_of_two_features_are_points_in_the_plane(case: Case) -> None:
    pictures = case("narrow", 10, "mixture").pictures
    assert pictures is not None
    first = plots.sample_sheets(pictures, names=("left", "up"))[0]
    assert np.allclose(first.lines[0].get_xydata(), pictures.data.numpy())
    assert (first.get_xlabel(), first.get_ylabel()) == ("left", "up")


def test_predictive_errors_are_those_of_two_samples(case: Case) -> None:
    diagnosis = case("table", 2)
    mean, deviation = plots.predictive_errors(diagnosis)
    groups = diagnosis.exported.groups  # type: ignore[union-attr]
    ((_, data),) = groups["observed_data"].items()
    ((_, draws),) = groups["prior_predictive"].items()
    draws = draws.reshape(-1, 7)
    error = np.sqrt(data.var(0) / len(data) + draws.var(0) / len(draws))
    assert mean == pytest.approx((draws.mean(0) - data.mean(0)) / error)
    assert deviation.shape == (7,) and np.sign(deviation) == pytest.approx(
        np.sign(draws.std(0) - data.std(0))
    )


def test_missing_cells_count_on_neither_side(case: Case) -> None:
    exported = case("table", 2).exported
    assert exported is not None
    ((name, data),) = exported.groups["observed_data"].items()

    def with_data(rows: Any) -> Any:
        return replace(exported, groups={**exported.groups, "observed_data": {name: rows}})

    holed = np.array(data)
    holed[3:, 0] = np.nan
    first = [errors[0] for errors in plots.predictive_errors(with_data(np.array(data)[:3]))]
    found = plots.predictive_errors(with_data(holed))
    assert [errors[0] for errors in found] == pytest.approx(first)
    whole_errors = plots.predictive_errors(exported)
    assert all(a[1:] == pytest.approx(b[1:]) for a, b in zip(found, whole_errors, strict=True))
    line = plots.reconstructions(with_data(holed))[0].lines[1]
    assert np.isfinite(line.get_xy1()).all()  # type: ignore[attr-defined]


NAMES = ("town", "b", "c", "d", "e", "f", "g")
TOWNS = {"town": ("Bonn", "Oslo", "Rome")}


def with_towns(case: Case) -> Any:
    """Exported draws whose first feature is a town: mostly Oslo in the data, Rome in the draws."""
    exported = case("table", 2).exported
    assert exported is not None
    groups = {name: dict(group) for name, group in exported.groups.items()}
    ((name, data),) = groups["observed_data"].items()
    data = np.array(data, dtype=float)
    data[:, 0] = np.array([1, 1, 1, 1, 0, np.nan])
    groups["observed_data"][name] = data
    for group in ("prior_predictive", "posterior_predictive"):
        draws = np.array(groups[group][name], dtype=float)
        draws[..., 0] = 2
        draws[:, :2, :, 0] = 0  # in two of five draws
        groups[group][name] = draws
    return replace(exported, groups=groups)


def test_categories_are_drawn_by_name_and_never_averaged(case: Case) -> None:
    exported = with_towns(case)
    ax = plots.reconstructions(exported, names=NAMES, categories=TOWNS)[0]
    across, up = ax.lines[0].get_xdata(), ax.lines[0].get_ydata()
    known = ~np.isnan(across)
    assert np.round(np.asarray(across)[known]).tolist() == [1, 1, 1, 1, 0]
    assert np.round(up).tolist() == [2] * 6  # most often Rome, not (2 + 0)/2
    shown = plots.feature_marginals(exported, names=NAMES, categories=TOWNS)[0]
    for axis in (ax.xaxis, ax.yaxis, shown.xaxis):
        assert [text.get_text() for text in axis.get_ticklabels()] == list(TOWNS["town"])
    heights = [bar.get_height() for bar in shown.containers[0]]
    assert heights == pytest.approx([0.2, 0.8, 0.0])


def test_the_check_of_a_category_is_one_of_its_share(case: Case) -> None:
    exported = with_towns(case)
    before = {name: np.array(part) for name, part in exported.groups["observed_data"].items()}
    mean, deviation = plots.predictive_errors(exported, names=NAMES, categories=TOWNS)
    share, drawn, rows = 4 / 5, 0.0, 5
    error = np.sqrt(share * (1 - share) / rows + drawn)
    assert mean[0] == pytest.approx((drawn - share) / error) and np.isnan(deviation[0])
    plain = plots.predictive_errors(exported)
    assert mean[1:] == pytest.approx(plain[0][1:]) and deviation[1:] == pytest.approx(plain[1][1:])
    for name, part in exported.groups["observed_data"].items():
        assert np.array_equal(part, before[name], equal_nan=True)


def test_a_missing_matplotlib_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, pyrovae as pv\n"
        "one = np.ones(2)\n"
        "fit = pv.Fit(pv.training.History(one, one, one, one), 1, 'epochs', 0)\n"
        "try:\n    fit.plot()\n"
        "except pv.InputError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'pyrovae[report]'" in done.stdout
