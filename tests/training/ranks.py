"""Training runs for several processes, each of which writes down what it saw.

``python -m torch.distributed.run --nproc-per-node=2 ranks.py NAME FOLDER`` runs one of the
functions at the end of this file.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import autoguide
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyrovae.training.loop as loop
from pyrovae.models import VAE, StandardNormal, mlp_decoder, mlp_encoder
from pyrovae.training import captured, gradient_sum
from pyrovae.training.fit import adam, fit
from pyrovae.training.objectives import elbo, paired_traces

RANK = int(os.environ.get("RANK", "0"))


def exact(model: Any, guide: Any, x: Tensor, kl_weight: float = 1.0) -> Tensor:
    """The ELBO of ``pairs.plain``, without an error of draws."""
    site = paired_traces(model, guide, (x,))[1].nodes["z"]
    q, scale = site["fn"].base_dist, site["scale"]
    weight, bias, noise = (pyro.param(name) for name in ("weight", "bias", "noise"))
    likelihood = dist.Normal(q.loc @ weight + bias, noise).log_prob(x).sum()
    spread = (q.scale.square() @ weight.square()).sum() / (2 * noise**2)
    divergence = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum()
    return scale * (likelihood - spread - kl_weight * divergence)


class Items(Dataset[Tensor]):
    """A map-style data set of rows."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Tensor:
        return self.rows[number]


# What changes the course of an exact run. 57 rows in minibatches of 8 leave one row for the last.
COURSES: dict[str, Callable[[], dict[str, Any]]] = {
    "uneven": lambda: {},
    "clipped and warmed up": lambda: {"clip_norm": 0.5, "kl_warmup": 3},
    "averaged": lambda: {"average": 2, "lr_schedule": lambda epoch: 0.9**epoch},
    "a data set": lambda: {"train": Items(pairs.data(57)), "validation": Items(pairs.data(21))},
    "fewer rows than processes": lambda: {"train": pairs.data(1)},
    "a transform": lambda: {"transform": lambda x, generator: x + 1},
    "early stopping": lambda: {
        "epochs": 60,
        "patience": 2,
        "train": pairs.data(9),
        "batch_size": 4,
        "optimizer": adam(0.2),
    },
    "full size": lambda: {"pair": pairs.plain(57)},
}


def course(name: str, **changes: Any) -> dict[str, Any]:
    """Train by the exact objective; everything that came of it."""
    pyro.clear_param_store()
    settings = {
        "pair": pairs.plain(),
        "train": pairs.data(57),
        "validation": pairs.data(21, seed=3),
        "epochs": 4,
        "batch_size": 8,
        "optimizer": adam(0.02),
        "objective": exact,
        "progress": False,
    }
    settings |= COURSES[name]() | changes
    run = fit(*settings.pop("pair"), settings.pop("train"), **settings)
    store = {key: value.tolist() for key, value in pyro.get_param_store().items()}
    history = {key: run.history.to_dict()[key].tolist() for key in ("train", "validation")}
    words = {"stopped": run.stopped, "capture": run.capture}
    return {**history, **store, "best": run.best_epoch, **words}


def courses(folder: Path) -> dict[str, Any]:
    """All of them."""
    begun = {"checkpoint": folder / "begun.pt", "resume": True}  # by one process, in two epochs
    found = {name: course(name) for name in COURSES} | {"gone on": course("uneven", **begun)}
    gradient_sum.SHARED = Path("/nowhere")  # as on several machines, or with no room there
    return found | {"by messages": course("uneven")}


def vae(seed: int) -> VAE:
    torch.manual_seed(seed)
    return VAE(
        mlp_encoder((5,), 2, hidden=(8,)),
        mlp_decoder(2, (5,), likelihood="normal", hidden=(8,)),
        StandardNormal(2),
    )


def state(*modules: nn.Module) -> list[list[float]]:
    return [value.double().flatten().tolist() for m in modules for value in m.state_dict().values()]


def frozen() -> list[float]:
    """The objective in 60 epochs in which no parameter changes."""
    pyro.clear_param_store()
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    run = fit(*pairs.plain(), pairs.data(), epochs=60, batch_size=30, progress=False, **still)
    return run.history.train.tolist()


def streams(folder: Path) -> dict[str, Any]:
    """Initial values, draws and buffers where each process has its own."""
    drawn: list[list[float]] = []

    def noise(x: Tensor, generator: torch.Generator) -> Tensor:
        common = torch.randn(2, generator=generator).tolist()
        drawn.append([*common, float(torch.randn(())), float(np.random.randn()), random.random()])
        return x

    still = vae(RANK)  # other initial values in each process
    unmoved = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    fit(still.model, still.guide, pairs.data(), epochs=1, transform=noise, **unmoved)
    functions, *networks = pairs.registered(RANK)
    options = {"validation": pairs.data(20, 1), "epochs": 3, "average": 2, "batch_size": 20}
    fit(*functions, pairs.data(), **options)
    state_before = torch.get_rng_state()
    resting = frozen()
    return {
        "drawn": drawn,
        "initial": state(still),
        "networks": state(*networks),
        "random state kept": torch.equal(torch.get_rng_state(), state_before),
        "estimates": resting,
    }


def caught(run: Callable[[], Any]) -> list[str]:
    """Kind, words and note of the error that a run ends with."""
    pyro.clear_param_store()
    try:
        run()
    except Exception as error:  # noqa: BLE001 - of whatever kind
        return [type(error).__name__, str(error), *getattr(error, "__notes__", [])]
    return []


def failures(folder: Path) -> dict[str, Any]:
    """What happens in all processes where one of them fails."""
    x = pairs.data(40)
    x[7] = 1e200  # which one process alone meets in the first minibatch

    def other_rank_fails(x: Tensor, generator: torch.Generator) -> Tensor:
        if RANK == 1 and len(x) == 15:  # not the whole first minibatch, which is looked at first
            raise RuntimeError("the file of the second process is gone")
        return x

    class Unportable(Exception):
        def __init__(self, place: str, more: str) -> None:
            super().__init__(f"{place}, {more}")

    def unportable(x: Tensor, generator: torch.Generator) -> Tensor:
        if RANK == 1 and len(x) == 15:
            raise Unportable("here", "and there")
        return x

    def full_disk(*arguments: Any) -> None:
        raise OSError("no space left")

    def on_a_full_disk() -> None:
        loop.save, save = full_disk, loop.save
        try:
            course("uneven", checkpoint=folder / "never.pt")
        finally:
            loop.save = save

    rest = {"validation": None, "batch_size": 30}
    return {
        "not finite": caught(lambda: course("uneven", train=x, batch_size=40)),
        "not finite in validation": caught(lambda: course("uneven", validation=x)),
        "an error of the transform": caught(
            lambda: course("uneven", transform=other_rank_fails, **rest)
        ),
        "an error that can't travel": caught(
            lambda: course("uneven", transform=unportable, **rest)
        ),
        "a full disk": caught(on_a_full_disk),
        "none": caught(lambda: course("uneven")),
    }


def switching(at: int) -> dict[str, Any]:
    """A pair that the second process computes otherwise after so many minibatches."""
    calls: list[None] = []
    model, guide = pairs.plain()

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(None)
        return x

    def switched(x: Tensor) -> None:
        with pyro.poutine.scale(scale=2.0 if RANK and len(calls) > at else 1.0):
            model(x)

    return {"pair": (switched, guide), "transform": transform, "objective": elbo}


def failing(at: int, other: int) -> dict[str, Any]:
    """The same, and the first process fails in another minibatch."""
    options = switching(at)
    calls: list[None] = []

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(None)
        if not RANK and len(calls) > other:
            raise RuntimeError("the file of the first process is gone")
        return options["transform"](x, generator)

    return options | {"transform": transform}


def replays(folder: Path) -> dict[str, Any]:
    """Runs whose steps are replayed, and the same by the pair."""
    captured.LEAST_STEPS = captured.LEAST_STEPS_AN_EPOCH = 1
    # 57 rows in minibatches of 10 make 6; the first minibatch is prepared once before training.
    sixes = {"train": pairs.data(57), "validation": None, "batch_size": 10, "epochs": 6}
    second, last_of_third = 1 + 2 * 6, 3 * 6
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "as recorded": lambda: {"objective": elbo, "kl_warmup": 3, "average": 2},
        "other in one process": lambda: {**sixes, **switching(second)},
    }
    found: dict[str, Any] = {
        name: [course("uneven", **changes(), capture=way) for way in ("auto", "off")]
        for name, changes in cases.items()
    }
    failed = caught(lambda: course("uneven", **sixes, **failing(second, last_of_third)))
    return found | {"failing in one process": failed}


def subsampling(own: bool) -> pairs.Functions:
    """A pair whose plate draws 8 rows itself, or has those that it is called with."""

    def plate(x: Tensor) -> Any:
        if own:
            return pyro.plate("data", 57, subsample_size=8)
        return pyro.plate("data", 57, subsample=torch.arange(len(x)))

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(5))
        with plate(x) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            taken = x[rows] if own else x
            pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=taken)

    def guide(x: Tensor) -> None:
        matrix = pyro.param("matrix", lambda: torch.eye(5))
        with plate(x) as rows:
            taken = x[rows] if own else x
            pyro.sample("z", dist.Normal(taken @ matrix, 1.0).to_event(1))

    return pairs.Functions(model, guide)


def with_noise_for_all(size: int | None) -> pairs.Functions:
    """A pair with a latent for all rows; ``size`` makes a plate of the full data."""

    def plate(x: Tensor) -> Any:
        if size is None:
            return pyro.plate("data", len(x))
        return pyro.plate("data", size, subsample=torch.arange(len(x)))

    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with plate(x):
            pyro.sample("x", dist.Normal(torch.zeros(5), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(pyro.param("loc", lambda: torch.zeros(())), 0.1))

    return pairs.Functions(model, guide)


def rows_by_place(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def refusals(folder: Path) -> dict[str, Any]:
    """What is refused in several processes, and the same with the remedy that the refusal names."""
    x = pairs.data(57)

    def train(pair: pairs.Functions, data: Any = x, **settings: Any) -> Callable[[], object]:
        options = {"epochs": 1, "batch_size": 8, "progress": False} | settings
        return lambda: fit(*pair, data, **options)

    def normalised() -> pairs.Functions:
        return pairs.registered()[0]

    plain, shards = pairs.plain(), x.tensor_split(2)
    cases = {
        "a loader": (train(plain, DataLoader(TensorDataset(x), 8)), train(plain, TensorDataset(x))),
        "a loader for validation": (
            train(plain, validation=DataLoader(TensorDataset(x), 8)),
            train(plain, validation=TensorDataset(x)),
        ),
        "small minibatches": (train(plain, batch_size=1), train(plain, batch_size=2)),
        "drawn rows": (train(subsampling(True), batch_size=57), train(subsampling(False))),
        "a latent for all": (train(with_noise_for_all(None)), train(with_noise_for_all(57))),
        "parameters by place": (
            train((rows_by_place, autoguide.AutoNormal(rows_by_place)), batch_size=57),
            train(plain),
        ),
        "a single row for BatchNorm": (
            train(normalised(), x[:32], batch_size=3),
            train(normalised(), x[:32], batch_size=4),
        ),
        "rows of each process": (train(plain, shards[RANK % 2]), train(plain)),
        "seeds of each process": (train(plain, seed=RANK), train(plain, seed=1)),
        "pairs of each process": (train(plain if RANK else with_noise_for_all(57)), train(plain)),
    }
    return {name: [caught(wrong), caught(right)] for name, (wrong, right) in cases.items()}


def killed(folder: Path) -> dict[str, Any]:
    """Go on from a checkpoint; the second process dies in the third epoch if it is asked to."""
    calls = []

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(x)
        if RANK == 1 and (folder / "die").exists() and len(calls) == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    changes = {"checkpoint": folder / "run.pt", "resume": True, "transform": transform, "epochs": 6}
    return course("uneven", **changes)


def threads() -> list[str]:
    """Names of this process's threads, where the system tells them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    name, where = sys.argv[1], Path(sys.argv[2])
    import ranks  # functions of that module, not of "__main__", go into checkpoints

    atexit.register(lambda: (where / f"{RANK}.threads").write_text("\n".join(threads())))
    found = getattr(ranks, name)(where)
    (where / f"{RANK}.json").write_text(json.dumps(found), encoding="utf-8")
