"""A pair of one's own from the shell: imported, trained or not, measured, its parameters kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn

import pyrovae.analysis
from pyrovae.cli import BAD_INPUT, OK, main
from pyrovae.datasets import Dataset
from pyrovae.diagnostics.diagnosis import Effort
from pyrovae.own_pair import PairOptions, make_pair

PAIR = """
import pyro, torch
import pyro.distributions as dist
from torch import nn

class Both(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(columns, 4), nn.Linear(2, columns)

    def model(self, x):
        pyro.module("both", self)
        noise = pyro.param("noise", lambda: torch.tensor(0.5),
                           constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("both", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, scale.exp()).to_event(1))

def make(data):
    return Both(data.event_shape[0])

def functions(data):
    both = Both(data.event_shape[0])
    return (lambda x: both.model(x)), (lambda x: both.guide(x))

def nothing(data):
    return 3
"""

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    rows = np.random.default_rng(0).normal(size=(80, 2)) @ np.array([[1, 2, 0], [0, 1, -1]])
    np.save(tmp_path / "data.npy", rows + 0.3 * np.random.default_rng(1).normal(size=(80, 3)))
    (tmp_path / "mine.py").write_text(PAIR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tiny = Effort(64, 5, 30, 2, 30, 4)
    original = pyrovae.analysis.diagnose
    monkeypatch.setattr(
        pyrovae.analysis, "diagnose", lambda *a, **k: original(*a, **(k | {"effort": tiny}))
    )
    yield tmp_path
    sys.modules.pop("mine", None)


def table(out: str) -> pd.DataFrame:
    return pd.read_csv(f"{out}/measures.csv")


@pytest.mark.parametrize("factory", ["make", "functions"])
def test_trained_here_and_measured_again_without_training(folder: Path, factory: str) -> None:
    pair = ["analyze", "data.npy", "--pair", f"mine:{factory}", "--site", "code"]
    assert main([*pair, "--epochs", "3", "--out", "first"]) == OK
    pyro.clear_param_store()
    again = [*pair, "--no-fit", "--params", "first/parameters.pt", "--seed", "0"]
    assert main([*again, "--out", "second"]) == OK
    pd.testing.assert_frame_equal(table("first"), table("second"))
    assert "mine:" in (folder / "first" / "report.html").read_text(encoding="utf-8")


def test_trained_elsewhere_with_parameters_in_the_store(folder: Path) -> None:
    data = Dataset("data", torch.as_tensor(np.load("data.npy")).float())
    pair = make_pair(PairOptions("mine:functions"), data)
    svi = SVI(pair.model, pair.guide, Adam({"lr": 0.01}), loss=Trace_ELBO())
    for _ in range(20):
        svi.step(data.values)
    x = data.values[:5]
    trained = pyro.poutine.trace(pair.guide).get_trace(x).nodes["code"]["fn"].mean
    pyro.get_param_store().save("trained.save")
    pyro.clear_param_store()
    other = make_pair(PairOptions("mine:functions", params=Path("trained.save")), data)
    found = pyro.poutine.trace(other.guide).get_trace(x).nodes["code"]["fn"].mean
    assert torch.equal(found, trained)
    assert pyro.param("noise").item() != 0.5


@pytest.mark.parametrize("factory", ["mine:make", "mine:functions"])
def test_a_pair_is_moved_with_its_modules_and_its_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    data = Dataset("rows", torch.randn(20, 3))
    pair = make_pair(PairOptions(factory), data)
    moved: list[str] = []
    move, to = nn.Module.to, torch.device("cpu")

    def noted(module: nn.Module, *where: Any) -> nn.Module:
        moved.append(f"{type(module).__name__} {where[0]}")
        return move(module, *where)

    monkeypatch.setattr(nn.Module, "to", noted)
    pair.to(to)
    assert "Both cpu" in moved
    store = dict(pyro.get_param_store().named_parameters())
    assert {"both$$$encoder.weight", "noise"} <= store.keys()
    assert all(parameter.is_leaf and parameter.device == to for parameter in store.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pair", "mine"], ["package.module:factory"]),
        (["--pair", "nowhere:make"], ["'nowhere'", "No module named"]),
        (["--pair", "mine:built"], ["'built'", "make"]),
        (["--pair", "mine:nothing"], ["(model, guide)", "int"]),
        (["--pair", "mine:make"], ["'z'", "['code']", "site="]),
        (["--pair", "mine:make", "--params", "none.pt"], ["none.pt", "No such file"]),
        (["--pair", "mine:make", "--params", "mine.py"], ["mine.py", "torch.save"]),
        (["--pair", "mine:make", "--params", "other.pt"], ["other.pt", "weight"]),
        (["--pair", "mine:make", "--latent", "3"], ["--latent"]),
        (["--no-fit"], ["--no-fit", "--pair"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "other.pt")
    assert main(["analyze", "data.npy", *options, "--epochs", "1", "--out", "out"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert "Traceback" not in error
    assert not (folder / "out").exists()  # found before training, and nothing is left behind
