"""The page holds every number, needs no other file, and escapes all text from outside."""

from __future__ import annotations

import html as escaping
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pyrovae.estimates import Estimate
from pyrovae.report import answers, findings, html, tables
from pyrovae.report.numbers import number, show
from pyrovae.report.sampling import guidance

FACTS = {"data": "toy, 40 rows", "likelihood": "bernoulli", "wall time": "1 s"}
CASES = (("image", 2, "normal"), ("table", 1, "flow"), ("number", 10, "mixture"))
PAGES: dict[tuple[str, int, str], str] = {}


def text_of(page: str) -> str:
    """The text that a reader sees, with plain spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return escaping.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u00a0", " ")


@pytest.fixture
def page(case, run) -> Callable[..., str]:
    """``page(kind)``: the report of a case, rendered once; only the first comes with a run."""

    def rendered(kind: tuple[str, int, str]) -> str:
        if kind not in PAGES:
            fit = run() if kind == CASES[0] else None
            PAGES[kind] = html.render(case(*kind), run=fit, facts=FACTS)
        return PAGES[kind]

    return rendered


@pytest.mark.parametrize("kind", CASES, ids=str)
def test_every_number_of_the_summary_is_on_the_page(case, page, kind):
    text = text_of(page(kind))
    for row in case(*kind).summary().itertuples():
        estimate = Estimate(row.value, row.standard_error, row.size, row.over, row.bound or None)
        assert (row.unresolved or show(estimate)) in text
        assert f"{row.size:,}" in text


def test_answers_come_first_and_facts_follow(case, page):
    diagnosis, text = case(*CASES[0]), text_of(page(CASES[0]))
    header, body = text.split("Does the model fit?", 2)[1:]
    assert findings.fit_in_words(diagnosis) in header
    assert all(sentence in header for sentence in guidance(diagnosis).values())
    places = [body.index(part) for part in (diagnosis.advice, "Four different objects", "Smaller")]
    assert places == sorted(places)
    assert all(value in text for pair in FACTS.items() for value in pair)


@pytest.mark.parametrize("kind", CASES, ids=str)
def test_the_page_needs_no_other_file_and_no_network(page, kind):
    text = page(kind)
    addresses = re.findall(r"""(?:src|href|srcset)\s*=\s*["']([^"']*)""", text)
    within = {f"#{name}" for name in re.findall(r'id="([^"]*)"', text)}
    assert addresses
    assert all(
        address.startswith("data:image/svg+xml;base64,") or address in within
        for address in addresses
    )
    assert not re.search(r"url\(|@import|<script|<link|<iframe", text)
    assert len(text) < 4_000_000
    assert 'name="viewport"' in text


def test_text_from_outside_is_escaped(case, monkeypatch):
    monkeypatch.setattr(html, "_pictures", lambda *parts: {})
    hostile = "<script>alert(1)</script>\"'&"
    facts = {"data": hostile, hostile: "value", "versions": hostile}
    text = html.render(case(*CASES[0]), facts=facts, netcdf=hostile)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5


def test_only_a_run_has_a_section_on_training(page):
    assert 'id="training"' in page(CASES[0])
    assert 'id="training"' not in page(CASES[1])


def test_facts_may_be_missing(case, monkeypatch):
    monkeypatch.setattr(html, "_pictures", lambda *parts: {})
    assert "<title>Latent distribution</title>" in html.render(case(*CASES[0]), facts={})


def test_the_same_diagnosis_gives_the_same_bytes(case, run, page):
    assert html.render(case(*CASES[0]), run=run(), facts=FACTS) == page(CASES[0])


def test_four_answers_of_this_data(case):
    diagnosis = case("image", 10)
    _, aggregated, generative, units = answers.answers(diagnosis)
    assert "N = 40" in aggregated.verdict
    assert show(diagnosis.training.index_code_mi) in aggregated.text
    assert show(diagnosis.evidence["prior"].mean()) in generative.text
    active = int(diagnosis.collapse.active.sum())
    assert "D = 10, not" in units.verdict and f"{active} of the 10 units" in units.text


def test_concerns_stand_on_the_first_screen_and_notes_in_the_appendix(case, page):
    diagnosis, text = case(*CASES[0]), text_of(page(CASES[0]))
    concerns, notes = findings.concerns(diagnosis), findings.notes(diagnosis)
    assert concerns and len(concerns) + len(notes) <= len(diagnosis.each_concern)
    top, rest = text.index("Four different objects"), text.index("Smaller words of caution")
    for rank, concern in enumerate(concerns):
        where = text.index(concern)
        assert where < top if rank < html.MOST_CONCERNS else where > rest
        assert text.count(concern) == 1
    assert all(text.rindex(note) > rest for note in notes)
    assert text.count("the few largest weights") <= 2


def test_training_that_was_cut_off_comes_first_and_a_few_rejected_rows_change_nothing(case):
    diagnosis = case("image", 10)
    known = {
        n: replace(e, pareto_k=torch.zeros(len(e.values))) for n, e in diagnosis.evidence.items()
    }
    rows = len(diagnosis.evidence["prior"].values)
    for rejected, grave in ((1, 0), (rows // 2, 1)):
        pareto_k = torch.zeros(rows)
        pareto_k[:rejected] = 2.0
        changed = replace(
            diagnosis, evidence=known | {"q_agg": replace(known["q_agg"], pareto_k=pareto_k)}
        )
        concerns = findings.concerns(changed)
        assert sum(text.startswith("log p(x)") for text in concerns) == grave
        about = [text for text in findings.notes(changed) if text.startswith("log p(x)")]
        assert len(about) == 1 - grave


@pytest.mark.parametrize(
    ("shift", "words"), [(5.0, "Better than every"), (-5.0, "Not as well"), (0.0, "no clear")]
)
def test_the_first_answer_is_whether_the_model_fits(case, shift, words):
    diagnosis = case("table", 1, "flow")
    prior, found = diagnosis.evidence["prior"], diagnosis.baselines
    noise = torch.linspace(-1, 1, len(prior.values)).to(prior.values)
    values = dict.fromkeys(found.values, prior.values - shift + 0.1 * noise)
    evidence = diagnosis.evidence | {"prior": replace(prior, pareto_k=0 * prior.pareto_k)}
    changed = replace(diagnosis, evidence=evidence, baselines=replace(found, values=values))
    assert words in findings.fit_in_words(changed)
    remedy = findings.fit_in_words(changed, {"noise": findings.SHARED_NOISE})
    assert ("--noise each" in remedy) == (words == "Not as well")
    plural = replace(changed.baselines, names=dict.fromkeys(found.names, "independent entries"))
    assert "a independent" not in findings.fit_in_words(replace(changed, baselines=plural))
    missing = replace(diagnosis, baselines=None, baselines_refused="the reason")
    assert findings.fit_in_words(missing).endswith(": the reason.")


def test_every_picture_has_words_that_say_what_it_shows(case, page):
    text = page(CASES[0])
    said = re.findall(r'<img [^>]*alt="([^"]*)"', text)
    assert len(said) == text.count("<img") and all(len(words) > 20 for words in said)
    assert text.count('(prefers-color-scheme: dark)"') >= len(said)


def test_holes_are_called_so_only_if_they_are_clear(case):
    diagnosis = case("image", 10)
    for value, error, words in ((0.3, 0.05, "holes, from which"), (0.07, 0.09, "no clear sign")):
        share = Estimate(value, error, 120)
        changed = replace(diagnosis, holes=replace(diagnosis.holes, prior_outside=share))
        assert words in findings.holes(changed)[0]


def test_a_classifier_no_better_than_guessing_is_called_so(case):
    diagnosis = case("image", 10)
    for value, words in ((0.9, "codes and prior draws differ"), (0.51, "cannot tell")):
        test = replace(diagnosis.two_sample, accuracy=Estimate(value, 0.02, 200, bound="lower"))
        assert words in findings.two_sample(replace(diagnosis, two_sample=test))


def test_units_on_which_the_criteria_differ_are_named(case):
    diagnosis = case("image", 10)
    activity = diagnosis.collapse
    active = activity.active_by_rate
    for flipped in ((), (3,), (3, 5)):
        changed = active.clone()
        changed[list(flipped)] ^= True
        changed = replace(diagnosis, collapse=replace(activity, active=changed))
        names = {(): "the same units", (3,): "for unit 3.", (3, 5): "for units 3 and 5."}
        assert names[flipped] in findings.activity_by_rate(changed)
        states = [row.cells[0].text.endswith("only") for row in tables.units(changed)]
        assert [unit for unit, odd in enumerate(states) if odd] == list(flipped)


def test_smoothed_values_stand_beside_the_bound_without_a_sign(case):
    diagnosis = case("image", 10)
    bound, smoothed, *_ = tables.evidence(diagnosis)[0].cells
    assert bound.text == show(diagnosis.evidence["prior"].mean())
    mean = float(diagnosis.evidence["prior"].smoothed.mean())
    assert smoothed.text.startswith(number(mean, 1e-9)[:4]) and "≥" not in smoothed.text
    missing = replace(diagnosis.evidence["prior"], smoothed=None)
    changed = replace(diagnosis, evidence={"prior": missing})
    assert tables.evidence(changed)[0].cells[1].text == tables.MISSING


def test_saturated_index_code_mi_is_called_so(case):
    diagnosis = case("image", 10)
    terms = diagnosis.training
    for share, words in ((0.97, "within 5 % of that limit"), (0.5, "shared by about 6.3 data")):
        mi = Estimate(share * terms.log_n, 0.01, 80)
        changed = replace(diagnosis, training=replace(terms, index_code_mi=mi))
        assert words in answers.answers(changed)[1].text  # exp(log(40)/2) = 6.3


def test_write_replaces_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "a report.html"
    assert html.write(path, "old ψ") == path
    assert path.read_text(encoding="utf-8") == "old ψ"

    def fail(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ValueError, match="no space"):
        html.write(path, "new")
    assert path.read_text(encoding="utf-8") == "old ψ"
    assert [file.name for file in tmp_path.iterdir()] == ["a report.html"]


def test_write_names_the_folder_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match="No such file or directory"):
        html.write(tmp_path / "nowhere" / "report.html", "")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-35.2134, 0.1432, "−35.21 ± 0.14"),
        (-35.2134, 0.0996, "−35.213 ± 0.100"),
        (123456.7, 321.0, "123,457 ± 321"),
        (-0.0001, 0.01, "0.000 ± 0.010"),
        (3.0, 0.0, "3"),
        (7.13648, 0.0, "7.136"),
        (8.0, 1e-30, "8"),
        (float("-inf"), float("nan"), "−∞ ± nan"),
        (2.0, float("inf"), "2 ± ∞"),
    ],
)
def test_numbers_have_the_digits_of_their_standard_error(value, error, text):
    assert number(value, error) == text
