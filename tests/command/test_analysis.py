"""An analysis does not depend on units, and far outliers give numbers or an error."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.command.analysis import PRIORS, Analysis, AnalysisOptions, analyze, build, least_memory
from pyrovae.data.datasets import Dataset, split, units
from pyrovae.diagnostics.effort import Effort
from pyrovae.randomness import seeded

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:For .* k̂"),  # the pairs have hardly been trained
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]

TINY = Effort(64, 8, 60, 2, 30, 4, 40, simulations=100, gap_rows=0, nuts_rows=0)
RANDOM = np.random.default_rng(0)
CODES = RANDOM.normal(size=(150, 2))
TABLE = CODES @ RANDOM.normal(size=(2, 4)) + 0.3 * RANDOM.normal(size=(150, 4))


def log_evidence(values: np.ndarray, prior: str = "standard") -> Tensor:
    """log p(x) of held-out rows under a VAE trained on the others for two epochs."""
    data = Dataset("table", torch.as_tensor(values))
    options = AnalysisOptions(latent=2, hidden=(8,), prior=prior, components=None)
    parts = split(data, seed=0)
    with seeded(0, "test"):
        vae = build(data, parts.train.values, "normal", options)
    train, validation = (
        (part.values, torch.arange(len(part))) if prior == "exemplar" else part.values
        for part in (parts.train, parts.validation)
    )
    pv.fit(vae.model, vae.guide, train, validation=validation, epochs=2, batch_size=30)
    # By the guide's draws, which move with the units: refined proposals are chosen by thresholds,
    # so that a last digit can lead to other draws.
    evidence = pv.log_evidence(
        vae.model, vae.guide, parts.held_out.values, method="importance", draws=50
    )
    return torch.as_tensor(evidence.values).double()


def test_a_run_says_that_the_guide_was_checked_only_if_that_was_asked_for() -> None:
    # or another run by its run.toml would take minutes that nobody asked for
    assert "check_guide" not in AnalysisOptions().by_name()
    assert AnalysisOptions(effort=Effort(nuts_rows=4)).by_name()["check_guide"] is True
    assert "quick" not in AnalysisOptions().by_name()
    assert AnalysisOptions(effort=Effort.quick()).by_name()["quick"] is True
    same_codes = Effort(codes=Effort.quick().codes)
    assert "quick" not in AnalysisOptions(effort=same_codes).by_name()


UNITS = {
    "10^-30": ([1e-30, 1, 1, 1], [0, 0, 0, 0]),
    "10^30": ([1, 1e30, 1, 1], [0, 0, 0, 0]),
    "both": ([1e-30, 1e30, 1e-15, 1e22], [0, 0, 0, 0]),
    "offsets": ([1, 1, 1, 1], [1e9, -1e9, 273.15, 0]),
    "offsets in other units": ([1e-3, 60, 1e30, 1e-30], [1e6, 6e10, 1e36, -1e-24]),
}


@pytest.mark.parametrize(
    ("prior", "kind"),
    [("standard", kind) for kind in UNITS]
    + [(prior, "offsets in other units") for prior in PRIORS if prior != "standard"],
)
def test_log_p_is_equivariant_to_the_units_of_each_column(kind: str, prior: str) -> None:
    scale, location = (np.array(numbers, dtype=np.float64) for numbers in UNITS[kind])
    values = log_evidence(TABLE * scale + location, prior)
    expected = in_original_units(prior) - np.log(scale).sum()
    assert float((values - expected).abs().max()) < 1e-3


@cache
def in_original_units(prior: str) -> Tensor:
    values = log_evidence(TABLE, prior)
    assert bool(values.isfinite().all())
    return values


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_whole_numbers_and_images_have_units_too(unit: float) -> None:
    for rows in (np.round(5 * TABLE), TABLE.reshape(-1, 2, 2)):  # the first are exact in float32
        values = torch.as_tensor(rows)
        exact = values.float() if bool((values.float() == values).all()) else values
        expected = log_evidence(exact.numpy()) - 4 * np.log(unit)
        assert float((log_evidence(rows * unit) - expected).abs().max()) < 1e-3


def test_a_constant_column_has_the_scale_1() -> None:
    rows = torch.full((50, 2), 0.1, dtype=torch.float64)
    rows[:, 1] = torch.arange(50)
    _, scale = units(rows, image=False)
    assert scale[0] == 1 and scale[1] == pytest.approx(rows[:, 1].std())
    _, scale = units(rows[:, :1, None].expand(-1, 2, 2), image=True)
    assert scale == 1


def analysis_of(values: np.ndarray, out: Path, **options: Any) -> Analysis:
    data = Dataset("table", torch.as_tensor(values), columns=tuple("abcd"))
    options = {"latent": 2, "hidden": (16,), "epochs": 10, "effort": TINY} | options
    return analyze(data, AnalysisOptions(out=out, progress=False, **options))


PARTS = split(Dataset("numbers", torch.arange(150)[:, None]), seed=0)


def test_outliers_are_measured_in_any_units(tmp_path: Path) -> None:
    rows = TABLE * [1e-27, 1, 1, 1] + [0, 1e9, 0, 0]
    for part in (PARTS.validation, PARTS.held_out):
        rows[int(part.values[3]), 2] = 9999
    effort = replace(TINY, evidence_rows=30, evidence_draws=100)  # all held-out rows
    analysis = analysis_of(rows, tmp_path, effort=effort)
    estimate = analysis.diagnosis.summary().set_index("measure").loc["log_p_x.prior"]
    assert -np.inf < estimate["value"] < -1e4  # one row decides it
    assert estimate["standard_error"] > 1e4
    assert analysis.report.exists()


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({"noise": "own"}, (6,), r"noise of shared or each; got 'own'\. Choose one of them\."),
        (
            {"noise": "each", "likelihood": "categorical"},
            (6,),
            r"'normal' with the noise 'each'; got 'categorical'\. Leave out --noise\.",
        ),
        ({"network": "cnn"}, (6, 6), r"network among mlp, conv; got 'cnn'\. Did you mean 'conv'\?"),
        (
            {"network": "conv"},
            (6,),
            r"images with the network 'conv'; got rows of 6 columns",
        ),
    ],
)
def test_a_choice_that_does_not_suit_is_refused_before_the_work(
    options: dict[str, str], shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    values = torch.randn(60, *shape)
    data = Dataset("rows", values.abs().round() if "likelihood" in options else values)
    with pytest.raises(pv.InputError, match=words):
        analyze(data, AnalysisOptions(**options, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["validation", "held_out"])
def test_an_outlier_beyond_all_networks_is_named_before_the_work(part: str, tmp_path: Path) -> None:
    rows = TABLE.copy()
    row = int(getattr(PARTS, part).values[3])
    rows[row, 2] = 1e30
    with pytest.raises(pv.InputError, match=rf"1e\+12 standard dev.* row {row + 1}, column 'c'"):
        analysis_of(rows, tmp_path / "out", epochs=100_000)
    assert not (tmp_path / "out").exists()


def test_no_scale_of_an_encoder_is_0() -> None:
    """However far a row is from the others; in float32 even its square is above 0."""
    encoder = pv.mlp_encoder((3,), 2, hidden=(8,))
    for row in (1e3, 1e6, 1e12, -1e12):
        scale = encoder(torch.full((1, 3), row)).base_dist.scale
        assert bool((scale >= encoder.floor).all()) and bool((scale.square() > 0).all())


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", ["normal", "logistic", "categorical"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_memory_that_is_asked_for_is_what_the_vae_takes_at_least(
    network: str, prior: str, likelihood: str
) -> None:
    values = torch.arange(1200).reshape(200, 6) % 5
    if network == "conv":
        values = values.repeat(1, 18).view(200, 3, 6, 6)
    data = Dataset("counts", values)
    options = AnalysisOptions(latent=40, hidden=(16, 8), prior=prior, network=network)
    vae = build(data, data.values[:140].double(), likelihood, options)
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    needed = least_memory(data, likelihood, options) - 8 * 40 * 200
    assert 0.75 <= needed / (16 * parameters) <= 1.2
