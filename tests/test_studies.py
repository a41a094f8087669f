"""What the figures of the studies stand on: their errors, their table, and the rows asked for."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrovae.testing import linear_gaussian_vae
from studies.vampprior import results
from studies.vampprior.data import SOURCES
from studies.vampprior.networks import Once
from studies.vampprior.rows import (
    Row,
    Settings,
    compare_ways,
    error_of_part,
    over_all,
    train,
    under_each,
)
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


def test_both_ways_measure_the_same_images_under_the_same_priors(tmp_path: Path) -> None:
    # The guide is exact, so each draw has the weight p(x) under the model's own prior.
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(6)
    with torch.no_grad():
        priors = {"own": None, "q_agg": vae.prior(), "ex_post": vae.prior()}
    row, settings = Row.parse("caltech:1:standard:0"), Settings(tmp_path, tmp_path, draws=50)
    found = under_each(row, vae, x, priors, draws=50)
    of = compare_ways(row, settings, vae, x[:4], priors, found)
    assert of.keys() <= set(results.COLUMNS)
    assert of["compared_images"] == 4
    truth = float(exact.log_prob(x[:4]).mean())
    for way in results.WAYS:
        assert [of[f"{way}_log_p_{name}"] for name in results.PRIORS] == pytest.approx([truth] * 3)
        assert of[f"{way}_gain_ex_post"] == 0.0
    assert of["auto_minus_importance_own"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("text", ["mnist", "mnist:3:vamp:0", "mnist:1:vamp:0:1e-4:orthogonal"])
def test_a_row_that_there_is_not_is_said_to_be_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected DATA:LAYERS:PRIOR:SEED"):
        Row.parse(text)


@pytest.mark.float32
def test_an_averaged_row_goes_on_from_the_plain_one_and_leaves_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {"x_train": 30, "x_val": 10, "x_test": 5}
    images = {name: torch.rand(n, 3, 4, generator=generator).round() for name, n in rows.items()}
    np.savez(tmp_path / SOURCES["caltech"].file, **{n: x.numpy() for n, x in images.items()})
    row = Row.parse("caltech:1:standard:0:1e-4")
    plain = Settings(tmp_path, tmp_path / "models", epochs=2, warmup=0)
    averaged = replace(plain, average=3)
    pair, fits, _ = train(row, averaged)
    assert [fit.epochs for fit in fits] == [2, 5]
    assert [fit.history.averaged_epochs for fit in fits] == [0, 3]
    assert fits[1].averaged
    before = fits[0].history.train
    np.testing.assert_array_equal(fits[1].history.train[:2], before)
    again, (plain_fit,), _ = train(row, plain)
    np.testing.assert_array_equal(plain_fit.history.train, before)
    assert not same_weights(pair, again)
    again, _, _ = train(row, averaged)
    assert same_weights(pair, again)


@pytest.mark.parametrize("images", [1, 3, 5])
def test_images_that_draws_repeat_are_seen_once(images: int) -> None:
    seen = 0

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen = len(x)
            return super().forward(x)

    network = Once(Watched(4, 2))
    some = torch.randn(images, 4)
    others = torch.cat([some.repeat(6, 1), some[:1] + 1])
    with torch.no_grad():
        once = network(some)
        assert torch.equal(network(some.repeat(6, 1)), once.repeat(6, 1))
        assert seen == images
        assert torch.allclose(network(others)[:-1], once.repeat(6, 1))
        assert seen == len(others)


@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_priors_are_compared_by_the_same_draws() -> None:
    exact = linear_gaussian_vae(4, 2)
    own = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    priors = {"own": None, "same": own, "shifted": dist.Normal(torch.ones(2), 1.0).to_event(1)}
    row = Row.parse("caltech:1:standard:0")
    found = under_each(row, exact.vae(), exact.sample(200), priors, draws=50)
    assert torch.allclose(found["same"].values, found["own"].values, rtol=1e-12)
    assert found["shifted"].minus(found["own"]).value < 0


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
