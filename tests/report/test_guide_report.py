"""What the report says about the guide and about a prior's pseudo-inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyrovae.diagnostics.advice import change_from
from pyrovae.diagnostics.gaps import Gaps
from pyrovae.diagnostics.nuts import NutsComparison
from pyrovae.evidence.result import Evidence
from pyrovae.plots import samples
from pyrovae.report import guide_words, html, numbers, tables

pytestmark = pytest.mark.float32


def evidence(values: torch.Tensor) -> Evidence:
    return Evidence(values, torch.full_like(values, 0.01), torch.full_like(values, 0.2), 100)


def gaps(amortization: float, approximation: float) -> Gaps:
    x = torch.linspace(-90.0, -80.0, 12)
    lost = torch.linspace(0.9, 1.1, 12)
    family = x - approximation * lost
    return Gaps(evidence(family - amortization * lost), evidence(family), None, evidence(x))


def beside() -> NutsComparison:
    mean = torch.randn(3, 4)
    ones = torch.ones(3)
    return NutsComparison(
        mean, ones[:, None].expand(3, 4), mean + 0.25, 0.5 * ones[:, None].expand(3, 4),
        torch.full((3, 4), 1.001), torch.full((3, 4), 400.0), 0.7 * ones, 0.1 * ones,
        torch.tensor([0.1, 0.9, 0.3]), evidence(-ones), torch.randn(2, 5, 3, 4),
    )  # fmt: skip


def section(page: str) -> str:
    text = page.split('<section id="guide">')[1].split("</section>")[0]
    return " ".join(text.replace("\u00a0", " ").split())


def test_calibration_is_shown_and_further_checks_are_offered(case) -> None:
    diagnosis = case("image", 2, "mixture")
    text = section(html.render(diagnosis, facts={}))
    assert diagnosis.guide_check.calibration.statement in text
    assert "--check-guide" in text and text.count("<img") == 1


def test_what_guide_and_density_lose_is_said_of_every_diagnosis(case) -> None:
    diagnosis = case("image", 2, "mixture")
    gap = diagnosis.inference_gap
    assert gap.bound == "lower" and gap.size == len(diagnosis.evidence["prior"].values)
    rows = diagnosis.evidence["prior"].values - diagnosis.elbo.values
    assert gap.value == pytest.approx(float(rows.mean()))
    assert ("held-out", "gaps.inference", gap) in list(diagnosis.estimates())
    accepted = {
        name: replace(result, pareto_k=torch.zeros_like(result.pareto_k))
        for name, result in diagnosis.evidence.items()
    }
    change = change_from(accepted["prior"], accepted["ex_post"])
    text = guide_words.inference_gap(replace(diagnosis, evidence=accepted))
    assert f"the ELBO lies {numbers.show(gap)} nats below log p(x)" in text
    assert f"changes by {numbers.show(change, signed=True)}" in text
    without = replace(diagnosis, elbo=None)  # as read from an older file
    assert without.inference_gap is None
    assert "Where the ELBO is lost</h3>" not in section(html.render(without, facts={}))


def test_gaps_and_nuts_are_shown_once_they_are_measured(case) -> None:
    diagnosis = case("image", 2, "mixture")
    guide = replace(diagnosis.guide_check, gaps=gaps(3.0, 1.0), beside=beside())
    text = section(html.render(replace(diagnosis, guide_check=guide), facts={}))
    assert "--check-guide" not in text and text.count("<img") == 3
    assert "75 % of it is amortization" in text
    assert "standard deviations are 0.50 to 0.50 times" in text
    assert "0.90 !" in text  # a k̂ above 0.7


@pytest.mark.parametrize(
    ("parts", "words"),
    [((3.0, 1.0), "an encoder with more capacity"), ((1.0, 3.0), "a richer family")],
)
def test_the_larger_gap_says_what_would_help(parts: tuple[float, float], words: str) -> None:
    assert words in guide_words.gaps(gaps(*parts))


def test_a_loss_within_its_error_is_not_called_one() -> None:
    values = torch.linspace(-90.0, -80.0, 12)
    noise = torch.tensor([1.0, -1.0]).repeat(6)
    result = Gaps(evidence(values + noise), evidence(values), None, evidence(values))
    assert "no clear loss" in guide_words.gaps(result)


def test_a_check_that_failed_is_explained_at_the_top(case) -> None:
    diagnosis = case("image", 2, "mixture")
    guide = replace(
        diagnosis.guide_check, calibration=None, refused={"comparison with NUTS": "it broke."}
    )
    page = html.render(replace(diagnosis, guide_check=guide), facts={})
    assert "Comparison with NUTS could not be computed: it broke." in page.split("<main>")[0]
    assert "The comparison with NUTS could not be computed" in section(page)


@pytest.mark.parametrize("data", ["image", "table"])
def test_pseudo_inputs_are_shown_beside_data(case, data: str) -> None:
    diagnosis = case(data, 3 if data == "table" else 2, "flow" if data == "table" else "mixture")
    assert "Pseudo-inputs" not in html.render(diagnosis, facts={})
    pictures = replace(diagnosis.pictures, pseudo_inputs=diagnosis.pictures.data[:4] + 0.1)
    with_inputs = replace(diagnosis, pictures=pictures)
    axes = samples.pseudo_inputs(with_inputs)
    assert [ax.get_title() for ax in axes][:2] == ["data", "pseudo-inputs"]
    assert "Pseudo-inputs that the VampPrior has learned" in html.render(with_inputs, facts={})


def test_an_equation_that_needs_independent_units_is_left_out_for_a_mixture(case) -> None:
    names = [row.name for row in tables.identities(case("image", 2, "mixture"))]
    assert names == ["rate = index-code MI + marginal KL", "ELBO = −\u2060distortion − rate"]
    assert len(tables.identities(case("image", 10, "normal"))) == 3
