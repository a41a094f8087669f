"""A user's own pair from the shell: imported, trained or not, measured, its parameters saved."""

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

import pyrovae.command.analysis
from pyrovae.command.cli import BAD_INPUT, OK, main
from pyrovae.data.datasets import Dataset
from pyrovae.diagnostics.effort import Effort
from pyrovae.errors import InputError
from pyrovae.pairs.restore import modules_of
from pyrovae.runs.foreign_pair import OwnPair, PairOptions, make_pair
from pyrovae.training.fit import adam, fit

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

def unregistered(data):
    encoder, decoder = nn.Linear(data.event_shape[0], 4), nn.Linear(2, data.event_shape[0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide

class Normalised(Both):
    def __init__(self, columns):
        super().__init__(columns)
        self.encoder = nn.Sequential(nn.BatchNorm1d(columns), self.encoder)

def normalised(data):
    return Normalised(data.event_shape[0])

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
    original = pyrovae.command.analysis.diagnose
    monkeypatch.setattr(
        pyrovae.command.analysis, "diagnose", lambda *a, **k: original(*a, **(k | {"effort": tiny}))
    )
    yield tmp_path
    sys.modules.pop("mine", None)


def table(out: str) -> pd.DataFrame:
    return pd.read_csv(f"{out}/measures.csv")


@pytest.mark.parametrize("factory", ["make", "functions"])
def test_a_pair_trained_here_is_measured_again_without_training(folder: Path, factory: str) -> None:
    arguments = ["analyze", "data.npy", "--pair", f"mine:{factory}", "--site", "code"]
    assert main([*arguments, "--epochs", "3", "--out", "first"]) == OK
    pyro.clear_param_store()
    untrained = [*arguments, "--no-fit", "--params", "first/parameters.pt", "--seed", "0"]
    assert main([*untrained, "--out", "second"]) == OK
    pd.testing.assert_frame_equal(table("first"), table("second"))
    assert "mine:" in (folder / "first" / "report.html").read_text(encoding="utf-8")


def test_a_pair_trained_elsewhere_is_loaded_from_a_saved_store(folder: Path) -> None:
    data = Dataset("data", torch.as_tensor(np.load("data.npy")).float())
    pair = make_pair(PairOptions("mine:functions"), data)
    svi = SVI(pair.model, pair.guide, Adam({"lr": 0.01}), loss=Trace_ELBO())
    for _ in range(20):
        svi.step(data.values)
    x = data.values[:5]
    mean = pyro.poutine.trace(pair.guide).get_trace(x).nodes["code"]["fn"].mean
    pyro.get_param_store().save("trained.save")
    pyro.clear_param_store()
    other = make_pair(PairOptions("mine:functions", params=Path("trained.save")), data)
    loaded_mean = pyro.poutine.trace(other.guide).get_trace(x).nodes["code"]["fn"].mean
    assert torch.equal(loaded_mean, mean)
    assert pyro.param("noise").item() != 0.5


@pytest.mark.parametrize("factory", ["mine:make", "mine:functions"])
def test_a_pair_is_moved_with_its_modules_and_its_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    data = Dataset("rows", torch.randn(20, 3))
    pair = make_pair(PairOptions(factory), data)
    for function in (pair.guide, pair.model):  # as after a training
        function(data.values)
    moves: list[str] = []
    original, device = nn.Module.to, torch.device("cpu")

    def recording(module: nn.Module, *target: Any) -> nn.Module:
        moves.append(f"{type(module).__name__} {target[0]}")
        return original(module, *target)

    monkeypatch.setattr(nn.Module, "to", recording)
    pair.to(device)
    assert "Both cpu" in moves
    store = dict(pyro.get_param_store().named_parameters())
    assert {"both$$$encoder.weight", "noise"} <= store.keys()
    assert all(parameter.is_leaf and parameter.device == device for parameter in store.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pair", "mine"], ["package.module:factory"]),
        (["--pair", ".mine:make"], ["package.module:factory", "'.mine:make'"]),
        (["--pair", "nowhere:make"], ["'nowhere'", "No module named"]),
        (["--pair", "mine:built"], ["'built'", "make"]),
        (["--pair", "mine:nothing"], ["(model, guide)", "int"]),
        (["--pair", "mine:make"], ["'z'", "['code']", "--site"]),
        (["--pair", "mine:make", "--params", "none.pt"], ["none.pt", "No such file"]),
        (["--pair", "mine:make", "--params", "mine.py"], ["mine.py", "torch.save"]),
        (["--pair", "mine:make", "--params", "other.pt"], ["other.pt", "weight"]),
        (["--pair", "mine:make", "--latent", "3"], ["--latent"]),
        (["--no-fit"], ["--no-fit", "--pair"]),
    ],
)
def test_bad_options_are_refused_in_one_line(
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


# -- parameters of another pair --------------------------------------------------------------------


def rows() -> Dataset:
    return Dataset("data", torch.as_tensor(np.load("data.npy")).float())


def loaded(factory: str, path: str = "file.pt") -> Any:
    pyro.clear_param_store()
    return make_pair(PairOptions(f"mine:{factory}", params=Path(path)), rows())


def store_of(factory: str) -> dict[str, Any]:
    pyro.clear_param_store()
    pair = make_pair(PairOptions(f"mine:{factory}"), rows())
    pyro.poutine.trace(pair.guide).get_trace(rows().values)
    pyro.poutine.trace(pair.model).get_trace(rows().values)
    return pyro.get_param_store().get_state()


def changed(state: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    params = {**state["params"], name: value}
    return {**state, "params": {n: v for n, v in params.items() if v is not None}}


WEIGHT = "both$$$encoder.weight"
ANOTHER: dict[str, tuple[Any, str]] = {
    "another name": (lambda state: changed(state, "noise", None), "got none for 'noise'"),
    "another module": (lambda state: changed(state, WEIGHT, None), "got none for '.*encoder"),
    "nothing": (lambda state: {"params": {}, "constraints": {}}, "got none for .*it holds"),
    "a shape": (lambda state: changed(state, WEIGHT, torch.zeros(4, 2)), r"\(4, 2\) for \(4, 3\)"),
    "a shape made by a function": (
        lambda state: changed(state, "noise", torch.zeros(3)),
        r"'noise' of shape \(3,\) for \(\)",
    ),
    "a number outside": (
        lambda state: {
            "params": {**state["params"], "noise": torch.tensor(-1.0)},
            "constraints": {**state["constraints"], "noise": torch.distributions.constraints.real},
        },
        "'noise' outside of GreaterThan",
    ),
}


@pytest.mark.parametrize("name", ANOTHER)
def test_a_store_of_another_pair_is_refused(folder: Path, name: str) -> None:
    change, words = ANOTHER[name]
    torch.save(change(store_of("functions")), "file.pt")
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(3))
    with pytest.raises(InputError, match=rf"^expected the parameters of this pair.*{words}"):
        make_pair(PairOptions("mine:functions", params=Path("file.pt")), rows())
    assert list(pyro.get_param_store()) == ["mine"]


def test_further_parameters_of_a_store_are_ignored(folder: Path) -> None:
    torch.save(changed(store_of("functions"), "of another", torch.ones(2)), "file.pt")
    assert loaded("functions").module is None


def test_parameters_of_other_modules_are_refused(folder: Path) -> None:
    def save(factory: str) -> None:
        pyro.clear_param_store()
        pair = make_pair(PairOptions(f"mine:{factory}"), rows())
        pair.save(Path("file.pt"), (rows().values,))

    for factory, other in (
        ("make", "unregistered"),
        ("unregistered", "make"),
        ("make", "normalised"),
        ("functions", "unregistered"),
    ):
        save(factory)
        loaded(factory)
        with pytest.raises(InputError, match=r"^expected the parameters of this pair"):
            loaded(other)


def test_a_module_s_state_without_the_parameters_of_pyro_param_is_refused(folder: Path) -> None:
    pair = make_pair(PairOptions("mine:make"), rows())
    torch.save(pair.module.state_dict(), "file.pt")
    with pytest.raises(InputError, match=r"got none for 'noise'.*get_param_store\(\)\.save"):
        loaded("make")
    torch.save(store_of("make"), "file.pt")  # which is the way that it names
    assert loaded("make").module is not None


def test_running_means_that_are_missing_are_named(folder: Path) -> None:
    torch.save(store_of("normalised"), "file.pt")
    with pytest.raises(InputError, match="running means of BatchNorm1d") as caught:
        loaded("normalised")
    store_of("normalised")  # as after a training
    module = make_pair(PairOptions("mine:normalised"), rows()).module
    module.encoder(rows().values)
    advice = str(caught.value).partition("Save both: ")[2].rstrip(".")
    eval(advice, {"torch": torch, "pyro": pyro, "module": module, "path": "file.pt"})
    assert loaded("normalised").module.encoder[0].num_batches_tracked == 1


@pytest.mark.parametrize("factory", ["make", "functions", "unregistered", "normalised"])
def test_a_loaded_pair_can_be_trained_further_and_loaded_again(folder: Path, factory: str) -> None:
    pair = make_pair(PairOptions(f"mine:{factory}"), rows())
    values = rows().values
    for step in range(2):
        fit(pair.model, pair.guide, values, epochs=2, optimizer=adam(0.05), seed=step)
        before = module_states(pair)
        pair.save(Path("file.pt"), (rows().values,))
        pair = loaded(factory)
        for saved, loaded_state in zip(before, module_states(pair), strict=True):
            assert all(torch.equal(saved[name], value) for name, value in loaded_state.items())


def module_states(pair: OwnPair) -> list[dict[str, torch.Tensor]]:
    modules = modules_of(pair.guide, pair.model)
    return [{n: v.clone() for n, v in module.state_dict().items()} for module in modules]


def test_a_damaged_file_of_parameters_is_refused(folder: Path) -> None:
    pair = make_pair(PairOptions("mine:make"), rows())
    pair.save(Path("file.pt"), (rows().values,))
    pair_file = Path("file.pt").read_bytes()
    torch.save(store_of("make"), "file.pt")
    store_file = Path("file.pt").read_bytes()
    for intact in (pair_file, store_file):
        damaged = bytearray(intact)
        for place in range(len(damaged) // 3, len(damaged) // 3 + 200, 5):
            damaged[place] ^= 16
        for content in (damaged, intact[:-200]):
            Path("file.pt").write_bytes(content)
            with pytest.raises(InputError, match=r"^expected parameters that .*got a file that is"):
                loaded("make")
