"""A run resumes from a checkpoint bit for bit, or is refused: another pair, other data, damage."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyrovae.errors import InputError
from pyrovae.training.fit import adam, fit
from pyrovae.training.objectives import elbo

X = pairs.data(32).float()
OTHER = pairs.data(32, seed=9).float()


def pair(
    hidden: int = 8,
    activation: Callable[[], nn.Module] = nn.Tanh,
    scale: float = 0.5,
    frozen: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Callable[..., None], Callable[..., None]]:
    torch.manual_seed(0)
    columns = pairs.COLUMNS
    encoder = nn.Sequential(nn.Linear(columns, hidden), activation(), nn.Linear(hidden, 4))
    decoder = nn.Linear(2, columns)
    if frozen is not None:
        decoder = nn.Linear(2, columns).requires_grad_(False)
        nn.init.constant_(decoder.weight, frozen)
    encoder, decoder = encoder.to(dtype), decoder.to(dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def train(
    path: Path | None,
    data: Any = X,
    pair_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> list[float]:
    pyro.clear_param_store()
    functions = pair(**(pair_settings or {}))
    run = fit(*functions, data, **({"batch_size": 8} | settings), checkpoint=path)
    return run.history.train.tolist()


class Rows(Dataset[Tensor]):
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


def middle_changed(x: Tensor) -> Tensor:
    changed = x.clone()
    changed[17] += 1e-6
    return changed


def loader(rows: Tensor, size: int = 8, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(rows), size, **settings)


def two_groups(parameters: Any, rate: float = 1e-3, size: int = 2) -> torch.optim.Optimizer:
    """Adam with ``size`` parameters in the first group, and a learning rate for the second."""
    tensors = list(parameters)
    return torch.optim.Adam([{"params": tensors[:size]}, {"params": tensors[size:], "lr": rate}])


def weighted(first: float) -> WeightedRandomSampler:
    return WeightedRandomSampler([first] + [1.0] * 31, 32)


# What differs: the settings of `train` before and after, and words of the error.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "other widths": (
        {},
        {"pair_settings": {"hidden": 9}},
        r"\(9, 5\) float32 \(checkpoint: \(8, 5\)",
    ),
    "other activation": (
        {},
        {"pair_settings": {"activation": nn.ReLU}},
        r"ReLU\(\) \(checkpoint: Tanh",
    ),
    "other dropout": (
        {"pair_settings": {"activation": lambda: nn.Dropout(0.1)}},
        {"pair_settings": {"activation": lambda: nn.Dropout(0.2)}},
        "p=0.2",
    ),
    "other dtype": ({}, {"data": X.double(), "pair_settings": {"dtype": torch.float64}}, "float64"),
    "other likelihood": ({}, {"pair_settings": {"scale": 0.4}}, "nats per datum at its parameters"),
    "other frozen weights": (
        {"pair_settings": {"frozen": 0.1}},
        {"pair_settings": {"frozen": 0.2}},
        "nats per datum at its parameters",
    ),
    "no longer frozen": ({"pair_settings": {"frozen": 0.1}}, {}, "checkpoint: missing"),
    "other function of the same name": (
        {"transform": lambda x, g: x},
        {"transform": lambda x, g: 2 * x},
        "nats per datum at its parameters",
    ),
    "objective's argument": (
        {"objective": partial(elbo, particles=1)},
        {"objective": partial(elbo, particles=2)},
        "particles: 2",
    ),
    "Pyro's particles": (
        {"objective": pyro.infer.Trace_ELBO()},
        {"objective": pyro.infer.Trace_ELBO(num_particles=2)},
        "'num_particles': 2",
    ),
    "Pyro's estimator": (
        {"objective": pyro.infer.Trace_ELBO()},
        {"objective": pyro.infer.TraceMeanField_ELBO()},
        "objective",
    ),
    "second group's rate": (
        {"optimizer": two_groups},
        {"optimizer": partial(two_groups, rate=1e-2)},
        r"got optimizer's group 1 lr: 0\.01 \(checkpoint: lr: \S+\)\. Resume",
    ),
    "groups of other parameters": (
        {"optimizer": two_groups},
        {"optimizer": partial(two_groups, size=3)},
        "optimizer's group 0",
    ),
    "another optimizer": ({}, {"optimizer": torch.optim.Adamax}, "optimizer 'Adamax'|Adamax"),
    "betas": ({}, {"optimizer": adam(betas=(0.8, 0.999))}, r"0\.8"),
    "a middle row of a data set": (
        {"data": Rows(X)},
        {"data": Rows(middle_changed(X))},
        "train",
    ),
    "a middle row of a tensor": ({}, {"data": middle_changed(X)}, "train"),
    "a validation row": (
        {"validation": Rows(X)},
        {"validation": Rows(middle_changed(X))},
        "validation",
    ),
    "a loader of other data": ({"data": loader(X)}, {"data": loader(OTHER)}, "train"),
    "a loader's batch size": ({"data": loader(X, 8)}, {"data": loader(X, 7)}, "train"),
    "a loader's last batch": (
        {"data": loader(X, 10)},
        {"data": loader(X, 10, drop_last=True)},
        "train",
    ),
    "a loader's shuffling": ({"data": loader(X)}, {"data": loader(X, shuffle=True)}, "train"),
    "a sampler's weights": (
        {"data": loader(X, sampler=weighted(1.0))},
        {"data": loader(X, sampler=weighted(9.0))},
        "train",
    ),
}


@pytest.mark.float32
@pytest.mark.parametrize("name", REFUSED)
def test_another_run_is_not_resumed(tmp_path: Path, name: str) -> None:
    settings, other_settings, words = REFUSED[name]
    path = tmp_path / "c.pt"
    train(path, epochs=1, **settings)
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"^expected the .*{words}"):
        train(path, epochs=2, resume=True, **other_settings)
    assert path.read_bytes() == before
    assert len(train(path, epochs=2, resume=True, **settings)) == 2


# -- loaders ---------------------------------------------------------------------------------------


class Shuffled(Sampler[int]):
    """A sampler of someone's own, which draws an order in its own way."""

    def __init__(self, order: Callable[[], list[int]]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order())

    def __len__(self) -> int:
        return len(X)


class Seeded(Sampler[int]):
    """A sampler that keeps a generator."""

    def __init__(self, source: Any, order: Callable[[Any], list[int]]) -> None:
        self.source, self.order = source, order

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.source))

    def __len__(self) -> int:
        return len(X)


class Noisy(Rows):
    """Rows with new noise each time, from NumPy's and Python's random states."""

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index] + 0.1 * float(np.random.randn()) + 0.1 * random.random()


def permuted(source: Any) -> list[int]:
    return [int(i) for i in source.permutation(len(X))]


def at_random(source: Any) -> list[int]:
    return source.sample(range(len(X)), len(X))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffle": lambda: loader(X, shuffle=True),
    "generator": lambda: loader(X, shuffle=True, generator=generator()),
    "sampler with a generator": lambda: loader(
        X, sampler=RandomSampler(TensorDataset(X), generator=generator())
    ),
    "sampler without one": lambda: loader(X, sampler=RandomSampler(TensorDataset(X))),
    "weights": lambda: loader(X, sampler=weighted(3.0)),
    "NumPy's state": lambda: loader(X, sampler=Shuffled(lambda: permuted(np.random))),
    "Python's state": lambda: loader(X, sampler=Shuffled(lambda: at_random(random))),
    "NumPy's Generator": lambda: loader(X, sampler=Seeded(np.random.default_rng(3), permuted)),
    "NumPy's RandomState": lambda: loader(X, sampler=Seeded(np.random.RandomState(3), permuted)),
    "Python's Random": lambda: loader(X, sampler=Seeded(random.Random(3), at_random)),
    "noisy data set": lambda: Noisy(X),
    "noisy loader": lambda: DataLoader(Noisy(X), 8, shuffle=True),
}


@pytest.mark.float32
@pytest.mark.parametrize("name", LOADERS)
def test_a_run_on_a_loader_resumes_bit_for_bit(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.pt"
    whole = train(None, LOADERS[name](), epochs=3)
    states = np.random.get_state()[1].tolist(), random.getstate()
    train(path, LOADERS[name](), epochs=1)
    assert train(path, LOADERS[name](), epochs=3, resume=True) == whole
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states


@pytest.mark.float32
def test_a_loader_whose_order_cannot_be_repeated_is_refused(tmp_path: Path) -> None:
    hidden, count = np.random.default_rng(0), iter(range(10**6))
    for order in (lambda: permuted(hidden), lambda: np.roll(np.arange(32), next(count)).tolist()):
        rows = loader(X, sampler=Shuffled(order))
        train(None, rows, epochs=1)
        with pytest.raises(InputError, match=r"order can be repeated.*Shuffled.*checkpoint="):
            train(tmp_path / "c.pt", rows, epochs=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.float32
def test_rows_that_workers_draw_are_repeated_unless_the_workers_persist(tmp_path: Path) -> None:
    def rows(persist: bool) -> DataLoader[Any]:
        return DataLoader(Noisy(X), 16, num_workers=1, persistent_workers=persist)

    with pytest.raises(InputError, match=r"persistent_workers=False"):
        train(tmp_path / "p.pt", rows(True), epochs=1)
    path = tmp_path / "c.pt"
    whole = train(None, rows(False), epochs=2)
    train(path, rows(False), epochs=1)
    assert train(path, rows(False), epochs=2, resume=True) == whole


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.float32
def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path, places = tmp_path / "c.pt", random.Random(0)
    train(path, epochs=1)
    whole = path.read_bytes()
    for _ in range(6):
        changed = bytearray(whole)
        changed[places.randrange(len(whole))] ^= 1 << places.randrange(8)
        for content in (changed, whole[: places.randrange(len(whole))]):
            path.write_bytes(content)
            with pytest.raises(
                InputError, match=r"^expected a checkpoint.*c\.pt; got a file that is [^.]*checksum"
            ):
                train(path, epochs=2, resume=True)


@pytest.mark.float32
def test_room_for_checkpoints_is_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def recording(x: Tensor, g: torch.Generator) -> Tensor:
        steps.append(len(x))
        return x

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5_000))
    with pytest.raises(InputError, match="MB of room in"):
        train(tmp_path / "c.pt", epochs=1, pair_settings={"hidden": 200}, transform=recording)
    assert len(steps) == 1  # the check alone, no step
    assert not list(tmp_path.iterdir())


@pytest.mark.float32
def test_the_room_that_is_required_is_less_than_a_checkpoint_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required = []
    monkeypatch.setattr(
        "pyrovae.training.loop.check_room", lambda folder, needed: required.append(needed)
    )
    for i, settings in enumerate(({}, {"validation": OTHER}, {"optimizer": torch.optim.SGD})):
        path = tmp_path / f"{i}.pt"
        train(path, epochs=1, pair_settings={"hidden": 500}, **settings)
        size = path.stat().st_size
        assert 0.4 * size < required[-1] / 2 <= size
