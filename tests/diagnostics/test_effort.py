"""An effort sets what is computed; 0 leaves a part out of numbers, page and file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.command.analysis import AnalysisOptions, analyze
from pyrovae.command.cli import _show
from pyrovae.data.datasets import Dataset
from pyrovae.diagnostics.diagnosis import Diagnosis
from pyrovae.diagnostics.draws import draw_codes
from pyrovae.diagnostics.effort import LEAST, Effort
from pyrovae.plots import curves, samples
from pyrovae.report import html
from pyrovae.testing import linear_gaussian_vae

TINY: dict[str, int] = {
    "codes": 60, "evidence_rows": 4, "evidence_draws": 30, "export_rows": 3, "export_draws": 5,
    "pictures": 4, "two_sample": 20, "simulations": 0, "gap_rows": 0, "samples": 30,
}  # fmt: skip
OPTIONAL = ("evidence_rows", "pictures", "export_rows")


def diagnosis(**other: int) -> Diagnosis:
    exact = linear_gaussian_vae(4, 2)
    vae, x = exact.vae(), exact.sample(80)
    effort = Effort(**(TINY | other))
    return pv.diagnose(vae.model, vae.guide, x[:40], held_out=x[40:], effort=effort, progress=False)


@pytest.mark.parametrize("size", [4, 7, 100, 101, 150, 5000])
@pytest.mark.parametrize("population", [2, 3, 50, 400])
def test_as_many_codes_are_drawn_as_requested(size: int, population: int) -> None:
    codes = draw_codes(dist.Normal(torch.zeros(population, 2), 1.0).to_event(1), size=size)
    points, draws = codes.z.shape[:2]
    assert points == min(population, size // 2) and draws >= 2
    assert size <= points * draws < size + points
    assert codes.log_guide.shape == (points, draws)


def test_more_codes_of_few_data_points_make_errors_smaller() -> None:
    few, many = (diagnosis(codes=codes).training for codes in (80, 8000))
    exact = linear_gaussian_vae(4, 2)
    q = exact.posterior(exact.sample(80)[:40]).base_dist
    rate = float(torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum(-1).mean())
    assert (few.rate.size, many.rate.size) == (80, 8000)
    assert many.rate.standard_error < 0.2 * few.rate.standard_error
    assert abs(many.rate.value - rate) < 4.5 * many.rate.standard_error


@pytest.fixture(scope="module")
def without() -> dict[str, Diagnosis]:
    return {name: diagnosis(**{name: 0}) for name in OPTIONAL} | {
        "all three": diagnosis(**dict.fromkeys(OPTIONAL, 0))
    }


@pytest.mark.parametrize("name", [*OPTIONAL, "all three"])
def test_zero_leaves_that_part_out_of_numbers_page_and_file(
    name: str, without: dict[str, Diagnosis], tmp_path: Path
) -> None:
    diagnosis = without[name]
    left_out = OPTIONAL if name == "all three" else (name,)
    assert (diagnosis.evidence == {}) == ("evidence_rows" in left_out)
    assert (diagnosis.pictures is None) == ("pictures" in left_out)
    assert (diagnosis.exported is None) == ("export_rows" in left_out)
    measures = set(diagnosis.summary()["measure"])
    assert any(m.startswith("log_p_x.") for m in measures) != ("evidence_rows" in left_out)
    page = html.render(diagnosis, facts={"data": "some"})
    for part, mark in {
        "evidence_rows": 'details id="reliability"',
        "pictures": "Data, and E[x | z] for z drawn from each density.",
        "export_rows": 'section id="arviz"',
    }.items():
        assert (mark in page) != (part in left_out)
    pv.save(diagnosis, tmp_path / "diagnosis.pt")
    loaded = pv.load(tmp_path / "diagnosis.pt")
    assert loaded.advice == diagnosis.advice
    assert loaded.summary().equals(diagnosis.summary())


def test_nothing_is_advised_without_evidence(without: dict[str, Diagnosis]) -> None:
    assert without["evidence_rows"].advice.startswith("No density to sample from is advised")
    assert not without["pictures"].advice.startswith("No density")


@pytest.mark.parametrize(
    ("read_part", "setting"),
    [
        (curves.evidence, "evidence_rows"),
        (curves.pareto_k, "evidence_rows"),
        (samples.sample_sheets, "pictures"),
        (samples.pseudo_inputs, "pictures"),
        (samples.feature_marginals, "export_rows"),
        (Diagnosis.to_arviz, "export_rows"),
    ],
)
def test_the_error_says_how_to_compute_what_was_left_out(
    read_part: Any, setting: str, without: dict[str, Diagnosis]
) -> None:
    with pytest.raises(pv.InputError, match=rf"effort with {setting}=0.*Effort\({setting}=100\)"):
        read_part(without["all three"])


def test_an_analysis_writes_and_shows_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Dataset("some", torch.randn(60, 3))
    (tmp_path / "diagnosis.nc").write_text("of an earlier run")
    effort = Effort(**(TINY | dict.fromkeys(OPTIONAL, 0)))
    options = AnalysisOptions(
        latent=2, hidden=(8,), epochs=1, out=tmp_path, effort=effort, progress=False, force=True
    )
    analysis = analyze(data, options)
    assert analysis.netcdf is None and not (tmp_path / "diagnosis.nc").exists()
    assert analysis.report.exists() and analysis.table.exists()
    _show(analysis, verbose=False)
    shown = capsys.readouterr().out
    assert "draws for ArviZ" not in shown and "No density to sample from" in shown


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"codes": 19}, "codes of at least 20, a whole number; got 19"),
        ({"codes": 0}, "codes of at least 20, a whole number; got 0"),
        ({"evidence_rows": 1}, "at least 2, a whole number, or 0 to leave that part out; got 1"),
        ({"evidence_rows": -5}, "evidence_rows of at least 2"),
        ({"evidence_draws": 1}, "evidence_draws of at least 2"),
        ({"export_rows": -1}, "export_rows of at least 1"),
        ({"export_draws": 0}, "export_draws of at least 1"),
        ({"pictures": 2.5}, "a whole number, or 0.*got 2.5"),
        ({"pictures": True}, "got True"),
        ({"two_sample": 0}, "two_sample of at least 10"),
        ({"simulations": 50}, "simulations of at least 100"),
        ({"gap_rows": 1}, "gap_rows of at least 2"),
        ({"nuts_rows": -1}, "nuts_rows of at least 1"),
    ],
)
def test_too_little_is_refused_before_the_work(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(pv.InputError, match=message):
        Effort(**setting)


def test_each_least_effort_is_enough() -> None:
    least = {name: least for name, (least, _) in LEAST.items() if "_rows" not in name}
    result = diagnosis(**least)
    assert len(result.summary()) > 30 and result.exported is not None


def test_raw_q_agg_at_fewer_rows_is_compared_on_those_alone() -> None:
    found = diagnosis(evidence_rows=20, q_agg_rows=6)
    prior, q_agg = found.evidence["prior"], found.evidence["q_agg"]
    assert prior.rows is not None and q_agg.rows is not None
    assert (len(prior.values), len(q_agg.values)) == (20, 6)
    place = [prior.rows.tolist().index(row) for row in q_agg.rows.tolist()]
    change = q_agg.minus(prior)
    assert change.size == 6
    assert change.value == pytest.approx(float((q_agg.values - prior.values[place]).mean()))
    assert prior.minus(q_agg).value == pytest.approx(-change.value)
    assert "over 6 of them" in found.advice or change.unresolved
    assert "(on 6 of them)" in html.render(found, facts={})


def test_an_ex_post_prior_of_many_components_is_put_at_fewer_rows_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("effort", "density_evidence"):
        monkeypatch.setattr(f"pyrovae.diagnostics.{module}.COMPONENTS", 0)
    monkeypatch.setattr("pyrovae.diagnostics.effort.ROWS", 6)
    found = diagnosis(evidence_rows=20, first_rows=20)
    rows = {name: len(evidence.values) for name, evidence in found.evidence.items()}
    assert rows == {"prior": 20, "q_agg": 6, "ex_post": 6}
    assert "over 6 of them" in found.advice or "can't be told" in found.advice


@pytest.mark.parametrize(
    ("components", "given", "rows"),
    [(40, None, 500), (5_000, None, 500), (10_000, None, 250), (10**6, None, 100), (10**6, 7, 7)],
)
def test_rows_under_raw_q_agg(components: int, given: int | None, rows: int) -> None:
    assert Effort(q_agg_rows=given).rows_under_q_agg(components) == rows
    assert Effort(evidence_rows=4, q_agg_rows=given).rows_under_q_agg(components) == 4


def test_cost_under_raw_q_agg() -> None:
    assert Effort().cost_under_q_agg(40) == Effort().cost_under_q_agg(5_000) == 1_000_000
    assert Effort().cost_under_q_agg(20_000) == 250_000
    assert Effort().cost_under_q_agg(10**6) == 200_000
    assert Effort(q_agg_rows=500).cost_under_q_agg(10**6) == 1_000_000
    assert Effort(evidence_cost=7).cost_under_q_agg(10**6) == 7


def test_a_first_look_ends_the_measuring_where_it_settles_the_advice() -> None:
    # Under a prior 100 times too wide each row loses some 9 nats: a few rows tell.
    exact = linear_gaussian_vae(4, 2)
    wide = exact.vae().with_prior(dist.Normal(torch.zeros(2), 100.0).to_event(1))
    x = exact.sample(280)
    effort = Effort(**(TINY | {"evidence_rows": 60, "evidence_draws": 100, "first_rows": 25}))

    def found(first: int, **other: int) -> Diagnosis:
        return pv.diagnose(
            wide.model, wide.guide, x[:120], held_out=x[120:200], validation=x[200:],
            effort=replace(effort, first_rows=first, **other), progress=False,
        )  # fmt: skip

    early, late = found(25, q_agg_rows=25), found(60, q_agg_rows=25)
    assert {len(e.values) for e in early.evidence.values()} == {25}
    assert (len(late.evidence["prior"].values), len(late.evidence["q_agg"].values)) == (60, 25)
    assert early.recommended == late.recommended == "ex_post"
    assert early.elbo is not None and len(early.elbo.values) == 25
    assert early.evidence["prior"].rows is not None
    assert torch.equal(early.evidence["prior"].rows, late.evidence["q_agg"].rows)


def test_a_first_look_that_leaves_the_advice_open_is_gone_on_from() -> None:
    # Of an exact prior nothing is better by far, and 0.1 nats are not told from so few rows.
    found = diagnosis(evidence_rows=20, first_rows=8, evidence_draws=100)
    for result in found.evidence.values():
        assert len(result.values) == 20
        assert result.rows is not None and bool((result.rows.diff() > 0).all())


@pytest.mark.parametrize(
    ("given", "rows", "components", "looks"),
    [
        (None, 2000, 5_000, (500,)),
        (None, 2000, 5_001, (100, 200, 500)),
        (None, 80, 50_000, (80,)),
        (500, 2000, 50_000, (500,)),
        (30, 300, 40, (30, 60, 300)),
        (200, 300, 40, (200, 300)),
    ],
)
def test_rows_of_each_look(
    given: int | None, rows: int, components: int, looks: tuple[int, ...]
) -> None:
    assert Effort(first_rows=given).looks(rows, components) == looks
