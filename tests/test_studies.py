"""What the figures of the studies stand on: their errors, their table, and the rows asked for."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
import torch

from studies.vampprior import results
from studies.vampprior.networks import AveragedAdam
from studies.vampprior.rows import Row, error_of_part, over_all
from studies.vampprior.table import render

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_results(tmp_path: Path) -> None:
    page = ROOT / "studies" / "vampprior" / "README.md"
    again = tmp_path / page.name
    again.write_text(page.read_text())
    render(again)
    assert again.read_text() == page.read_text()


def test_a_row_written_is_the_row_read_and_takes_the_place_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = results.read()
    results.write(rows, path)
    assert path.read_bytes() == results.RESULTS.read_bytes()
    row = next(row for row in rows if row["program"] == "pyrovae")
    results.add({**row, "best_epoch": 7}, path)
    assert results.find(row, path) == {**row, "best_epoch": 7}
    assert len(results.read(path)) == len(rows)
    results.add({**row, "seed": 99, f"{results.CANDIDATE}another": -1.5}, path)
    assert len(results.read(path)) == len(rows) + 1
    found = results.find({**row, "seed": 99}, path)
    assert found is not None and found[f"{results.CANDIDATE}another"] == -1.5
    with pytest.raises(ValueError, match=r"got \['no such column'\]"):
        results.add({**row, "no such column": 1}, path)


@pytest.mark.parametrize("part", [False, True], ids=["all images new", "the same images"])
def test_errors_of_few_draws_for_all_and_many_for_some_are_the_spread(part: bool) -> None:
    # 400 images, whose means are spread by 10; few draws take 2 ± 1 from each and many nothing;
    # 50 images have many. Of 4,000 repetitions the variance is known to 1/√2000 ≈ 2.2 %, the mean
    # to 1/√4000 of their spread; four of those are the tolerances.
    fixed = 10 * torch.randn(400)
    found, variances = [], []
    for _ in range(4000):
        many = fixed[torch.randperm(400)] if part else 10 * torch.randn(400)
        few = many - 2 - torch.randn(400)
        estimate = over_all(many[:50], few)
        found.append(estimate.value)
        variances.append((error_of_part(many[:50], few) if part else estimate.standard_error) ** 2)
    spread = float(torch.tensor(found).std())
    truth = float(fixed.mean()) if part else 0.0
    assert sum(found) / 4000 == pytest.approx(truth, abs=4 * spread / math.sqrt(4000))
    assert sum(variances) / 4000 == pytest.approx(spread**2, rel=4 / math.sqrt(2000))


@pytest.mark.parametrize("text", ["mnist", "mnist:3:vamp:0", "mnist:1:vamp:0:1e-4:orthogonal"])
def test_a_row_that_there_is_not_is_said_to_be_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected DATA:LAYERS:PRIOR:SEED"):
        Row.parse(text)


def test_averaged_weights_are_the_mean_over_steps_of_an_interrupted_run_too() -> None:
    weights = torch.zeros(3, requires_grad=True)
    optimizer = AveragedAdam([weights], lr=0.1)
    seen = []
    for step in range(10):
        if step == 5:
            state = optimizer.state_dict()
            optimizer = AveragedAdam([weights], lr=0.1)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        (weights - torch.tensor([1.0, -2.0, 0.2])).square().sum().backward()
        optimizer.step()
        seen.append(weights.detach().clone())
    optimizer.average()
    torch.testing.assert_close(weights.detach(), torch.stack(seen).mean(0))
