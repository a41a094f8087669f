"""Results show themselves briefly, whatever they hold."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pyrovae as pv
from pyrovae.display import Result
from pyrovae.saving import names

ORDERS: dict[str, Callable[[pv.Estimate, float], bool]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}
PACKAGE = str(Path(pv.__file__).parent)
PLAIN = {"Annealing", "Effort", "Estimate"}  # settings, and one that is short itself


def test_every_result_shows_itself_briefly() -> None:
    kinds = {name: names.class_of(name) for name in names.HOME}
    assert {name for name, kind in kinds.items() if not issubclass(kind, Result)} == PLAIN
    for kind in kinds.values():
        if issubclass(kind, Result):  # a dataclass writes a long one of its own unless told not to
            assert kind.__repr__.__code__.co_filename.startswith(PACKAGE)


def test_a_diagnosis_is_shown_on_a_line_and_on_a_page(case: Callable[..., pv.Diagnosis]) -> None:
    diagnosis = case("image", 2)
    assert len(repr(diagnosis)) < 600 and "\n" not in repr(diagnosis)
    page = diagnosis._repr_html_()
    assert len(page) < 20_000
    assert page.count("<tr>") == len(diagnosis.summary())
    for field in ("training", "collapse", "evidence", "codes", "ex_post", "memorisation"):
        assert len(repr(getattr(diagnosis, field))) < 1_000, field


def test_what_is_shown_in_a_notebook_is_text_and_no_markup() -> None:
    shown = pv.fit_ex_post_prior(
        pv.AggregatedPosterior(torch.distributions.Independent(
            torch.distributions.Normal(torch.randn(40, 2), 0.5), 1)),
        held_out=torch.distributions.Independent(
            torch.distributions.Normal(torch.randn(30, 2), 0.5), 1),
        candidates=[pv.Inflated(0.1)],
    )._repr_html_()  # fmt: skip
    assert "<script" not in shown and "&#x27;" in shown


@pytest.mark.parametrize("order", ORDERS)
def test_an_estimate_has_no_order(order: str) -> None:
    with pytest.raises(TypeError, match=r"estimate\.excludes"):
        ORDERS[order](pv.Estimate(1.0, 0.1, 10), 2.0)


def test_an_estimate_is_formatted_with_its_error() -> None:
    estimate = pv.Estimate(-1234.567, 0.25, 10, bound="upper")
    assert f"{estimate:,.1f}" == "≤ -1,234.6 ± 0.2"
    assert f"{estimate}" == str(estimate) == "≤ -1234.567 ± 0.250"
    assert f"{estimate.unresolve('too few'):.1f}" == "too few"


def test_measures_have_keys_of_plain_letters_and_labels(case: Callable[..., pv.Diagnosis]) -> None:
    table = case("image", 2).summary()
    assert all(key.isascii() and " " not in key for key in table.measure)
    assert table.groupby("measure").label.nunique().max() == 1
    assert table.label.nunique() == table.measure.nunique()


def test_a_summary_fits_the_page_of_a_notebook(case: Callable[..., pv.Diagnosis]) -> None:
    table = case("image", 2).summary()
    page = table[table.measure == "elbo"].reset_index(drop=True)._repr_html_()
    assert page.count("<tr") == 3 and f"{table.value[0]:.4g}" in page
    assert "<th" in page and ">bound<" not in page and ">unresolved<" not in page
    assert f'white-space: nowrap">{table.value[0]:.4g}</td>' in page  # whole in its line
    assert "standard_<wbr>error" in page
    assert ">elbo</th>" in table.set_index("measure")._repr_html_()
    assert ">elbo</th>" not in page and ">elbo</td>" in page


def test_no_two_measures_share_a_label() -> None:
    labels = importlib.import_module("pyrovae.diagnostics").LABELS
    assert len(set(labels.values())) == len(labels)
