"""What is to be said of several densities is said once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pyrovae.diagnostics.concerns import grouped
from pyrovae.diagnostics.diagnosis import Diagnosis


def test_concerns_that_differ_in_numbers_only_are_merged() -> None:
    sentences = [
        "Saturated.",
        "log p(x) under p: for 2 of 9 data points k̂ > 0.7: more.",
        "log p(x) under q: for 3 of 9 data points k̂ > 0.7: more.",
        "log p(x) under p: a note.",
        "log p(x) under q: a note.",
        "log p(x) under r: another note: with a colon.",
    ]
    assert grouped(sentences) == [
        "Saturated.",
        "log p(x): for 2 (p) and 3 (q) of 9 data points k̂ > 0.7: more.",
        "log p(x) under p and q: a note.",
        "log p(x) under r: another note: with a colon.",
    ]
    assert grouped(["log p(x) under p: for 2 of 9 data points no."]) == [
        "log p(x) under p: for 2 of 9 data points no."
    ]


def test_a_diagnosis_says_once_what_holds_of_several_densities(
    case: Callable[..., Diagnosis],
) -> None:
    diagnosis = case("image", 2)
    rejected = {name: replace(e, pareto_k=torch.full_like(e.pareto_k, 2.0))
                for name, e in diagnosis.evidence.items()}  # fmt: skip
    changed = replace(diagnosis, evidence=rejected)
    about = [text for text in changed.concerns if "the few largest weights" in text]
    assert len(about) == 1 and about[0].startswith(
        "log p(x) under the model's prior, raw q_agg and the ex-post prior: for 20 of 20 "
    )
    separate = [text for text in changed.each_concern if "the few largest weights" in text]
    assert len(separate) == 3 and list(changed.concerns) == grouped(changed.each_concern)
