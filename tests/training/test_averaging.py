"""Averaged parameters and learning-rate schedules: exact, and the same in an interrupted run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.training import Fit, adam, fit
from pyrovae.training.averaging import EpochMean, merged


def weights() -> dict[str, Tensor]:
    store = pyro.get_param_store()
    return {name: value.detach().clone() for name, value in store.named_parameters()}


def train_plain(**settings: Any) -> Fit:
    pyro.clear_param_store()
    return fit(
        *pairs.plain(), pairs.data(), **{"batch_size": 25, "optimizer": adam(1e-2), **settings}
    )


class Recorder:
    """Makes optimizers, each of which records the parameters and its learning rate at each step."""

    def __init__(self, factory: Callable[..., torch.optim.Optimizer] | None = None) -> None:
        self.factory = factory or adam(1e-2)
        self.runs: list[list[list[Tensor]]] = []
        self.rates: list[float] = []

    def __call__(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        tensors, steps = list(parameters), []
        self.runs.append(steps)

        def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            steps.append([tensor.detach().clone() for tensor in tensors])
            self.rates.append(optimizer.param_groups[0]["lr"])

        optimizer = self.factory(tensors)
        optimizer.register_step_post_hook(record)
        self.tensors = tensors
        return optimizer

    def mean(self) -> list[Tensor]:
        """The mean over all steps of the last optimizer."""
        return [torch.stack(values).mean(0) for values in zip(*self.runs[-1], strict=True)]


# -- averages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [False, True])
def test_parameters_end_as_their_mean_over_all_steps_of_the_epochs_asked_for(
    held_out: bool,
) -> None:
    recorder = Recorder()
    validation = pairs.data(30, seed=1) if held_out else None
    run = train_plain(epochs=3, average=4, optimizer=recorder, validation=validation)
    assert [len(steps) for steps in recorder.runs] == [3 * 3, 4 * 3]
    torch.testing.assert_close(recorder.mean(), [*weights().values()], rtol=1e-13, atol=1e-15)
    assert run.averaged
    assert (run.best_epoch, run.epochs, run.history.averaged_epochs) == (7, 7, 4)
    assert run.history.to_dict()["averaged_epochs"].tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert "then averaged over 4 more; kept the mean over epochs 4 to 7" in str(run)


def test_a_long_average_in_single_precision_goes_on_to_move() -> None:
    """A mean in one piece stands still where a step's share of it is less than it can tell."""
    steps, epochs = 100, 200
    value = torch.ones(1, dtype=torch.float32)
    values = (1 + torch.linspace(0, 1e-3, steps * epochs)).float()
    whole, mean, done = EpochMean({"w": value}), {}, 0
    for epoch_values in values.split(steps):
        epoch = EpochMean({"w": value})
        for now in epoch_values:
            value.fill_(now)
            epoch.add()
            whole.add()
        mean, done = merged(mean, done, epoch), done + steps
    exact = float(values.double().mean())
    # Each of 100 + 200 updates of a number below 2 is rounded by 2⁻²⁴ at most.
    assert abs(float(mean["w"]) - exact) < (steps + epochs) * 2**-24
    assert abs(float(whole.mean["w"]) - exact) > 1e-4


def test_nothing_before_the_average_changes_and_it_begins_at_the_best_epoch() -> None:
    settings: dict[str, Any] = {
        "epochs": 40,
        "validation": pairs.data(40, seed=1),
        "patience": 3,
        "optimizer": adam(0.5),
    }
    plain = train_plain(**settings)
    best = weights()
    first: list[Tensor] = []

    def still(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        tensors = list(parameters)
        if len(first) == 0:
            first.append(torch.zeros(()))
            return adam(0.5)(tensors)
        return torch.optim.SGD(tensors, lr=0.0)

    run = train_plain(**settings | {"optimizer": still}, average=2)
    assert plain.stopped == run.stopped == "patience"
    assert plain.epochs > plain.best_epoch
    for column in ("train", "validation"):
        before = getattr(run.history, column)[: plain.epochs]
        np.testing.assert_array_equal(before, getattr(plain.history, column))
    # At a rate of 0 the mean is where it begins: at the best epoch.
    assert run.epochs == plain.epochs + 2
    assert run.history.validation[-1] == plain.validation
    assert all(torch.equal(best[name], value) for name, value in weights().items())


def test_validation_is_of_the_mean() -> None:
    held_out = pairs.data(30, seed=1)
    run = train_plain(epochs=3, average=3, validation=held_out)
    assert run.averaged
    again = fit(
        *pairs.plain(),
        pairs.data(),
        validation=held_out,
        epochs=1,
        batch_size=25,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
    )
    assert again.validation == run.validation == run.history.validation[-1]


def test_a_mean_that_validation_finds_worse_gives_way_to_the_best_epoch() -> None:
    rates = iter([1e-2, 3.0])
    settings: dict[str, Any] = {"epochs": 3, "validation": pairs.data(30, seed=1)}
    plain = train_plain(**settings)
    best = weights()
    run = train_plain(**settings, average=2, optimizer=lambda p: adam(next(rates))(p))
    assert run.history.validation[-1] < plain.validation
    assert not run.averaged
    assert (run.best_epoch, run.validation) == (plain.best_epoch, plain.validation)
    assert all(torch.equal(best[name], value) for name, value in weights().items())
    assert f"kept epoch {run.best_epoch}, as that mean has validation ELBO" in str(run)


def test_batch_norm_has_the_statistics_of_the_mean() -> None:
    pair, encoder, decoder = pairs.registered()
    encoder.layers[1].momentum = 0.3
    recorder = Recorder()
    fit(*pair, pairs.data(), epochs=2, average=3, batch_size=20, optimizer=recorder)
    end = [tensor.detach() for tensor in recorder.tensors]
    torch.testing.assert_close(recorder.mean(), end, rtol=1e-13, atol=1e-15)
    # 60 rows in batches of 20: the mean of batch means is that of all rows, in whatever order.
    first, norm = encoder.layers[0], encoder.layers[1]
    torch.testing.assert_close(norm.running_mean, first(pairs.data()).mean(0).detach())
    assert (norm.momentum, decoder.layers[1].momentum) == (0.3, 0.1)
    assert int(norm.num_batches_tracked) == 3


class Remembering(nn.Module):
    """A layer that keeps a number made of its weights whenever it is called in training."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, pairs.COLUMNS)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            self.total = self.linear.weight.detach().sum()
        return self.linear(z)


def test_any_buffer_that_training_changes_is_that_of_the_mean() -> None:
    decoder = Remembering()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    fit(model, pairs.plain().guide, pairs.data(), epochs=1, average=2, optimizer=adam(1e-2))
    assert torch.equal(decoder.total, decoder.linear.weight.detach().sum())


def test_a_pass_that_fails_leaves_the_momentum_of_batch_norm() -> None:
    pair, encoder, _ = pairs.registered()
    calls = [0]

    def interrupt(x: Tensor, generator: torch.Generator) -> Tensor:
        calls[0] += 1
        if calls[0] == 1 + 3 + 3 + 2:  # a check, an epoch, one for the average, then the pass
            assert encoder.layers[1].momentum is None
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        fit(*pair, pairs.data(), epochs=1, average=1, batch_size=20, transform=interrupt)
    assert encoder.layers[1].momentum == 0.1


def test_averaging_lowers_the_error_of_noisy_steps_by_the_known_factor() -> None:
    r"""Steps of SGD on w − x̄ with new draws x̄ ~ N(0, 1/B) each are an AR(1) process.

    w_t = a w_{t−1} + η x̄_t with a = 1 − η, so that from w_0 = 0

        Var w_t = η²/B · (1 − a^{2t}) / (1 − a²)
        Var 1/T Σ_{t≤T} w_{s+t} = Var w_s · (a (1 − a^T) / (η T))² + 1/(B T²) Σ_{k≤T} (1 − a^k)²

    Of D independent columns the mean square has a relative standard error of √(2/D).
    """
    columns, rows, batch, eta, epochs, average = 20_000, 12, 3, 0.5, 3, 5

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.zeros(columns))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    def noise(x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(x.shape, generator=generator)

    def mean_square(average: int) -> float:
        pyro.clear_param_store()
        fit(
            model,
            lambda x: None,
            torch.zeros(rows, columns),
            epochs=epochs,
            average=average,
            batch_size=batch,
            optimizer=lambda p: torch.optim.SGD(p, lr=eta),
            transform=noise,
        )
        return float(weights()["w"].square().mean())

    a, steps = 1 - eta, average * rows // batch
    before = eta**2 / batch * (1 - a ** (2 * epochs * rows // batch)) / (1 - a**2)
    after = before * (a * (1 - a**steps) / (eta * steps)) ** 2
    after += sum((1 - a**k) ** 2 for k in range(1, steps + 1)) / (batch * steps**2)
    tolerance = 4 * math.sqrt(2 / columns)
    assert mean_square(0) == pytest.approx(before, rel=tolerance)
    assert mean_square(average) == pytest.approx(after, rel=tolerance)
    assert before / after > 5


# -- interrupted runs ------------------------------------------------------------------------------


def noisy(path: Path | None, transform: Any = None, **settings: Any) -> tuple[Fit, list[Tensor]]:
    """Networks with dropout and BatchNorm, 3 steps an epoch; the run, and all that it left."""
    pyro.clear_param_store()
    pair, encoder, decoder = pairs.registered()
    run = fit(
        *pair,
        pairs.data(),
        checkpoint=path,
        transform=transform,
        **{
            "validation": pairs.data(30, seed=1),
            "batch_size": 20,
            "epochs": 3,
            "average": 3,
            "lr_schedule": lambda epoch: 0.9**epoch,
            "optimizer": adam(1e-2),
            **settings,
        },
    )
    return run, [*encoder.state_dict().values(), *decoder.state_dict().values()]


def assert_same(first: tuple[Fit, list[Tensor]], second: tuple[Fit, list[Tensor]]) -> None:
    (run, tensors), (other, others) = first, second
    np.testing.assert_array_equal(run.history.train, other.history.train)
    np.testing.assert_array_equal(run.history.validation, other.history.validation)
    assert run.history.averaged_epochs == other.history.averaged_epochs
    assert (run.best_epoch, run.stopped) == (other.best_epoch, other.stopped)
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@pytest.mark.float32
# The first call is a check. An epoch has 3 for its steps, 2 for validation, 1 for its checkpoint,
# and 3 between the first of these, for the buffers, if it is averaged over.
@pytest.mark.parametrize("call", [9, 17, 19, 22, 24, 26, 35])
def test_a_run_stopped_anywhere_in_the_average_resumes_to_the_same_end(
    tmp_path: Path, call: int
) -> None:
    calls = [0]

    def interrupt(x: Tensor, generator: torch.Generator) -> Tensor:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return x

    def untouched(x: Tensor, generator: torch.Generator) -> Tensor:
        return x

    interrupt.__qualname__ = untouched.__qualname__
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        noisy(path, interrupt)
    cut = noisy(path, untouched, resume=True)
    assert_same(cut, noisy(None, untouched))
    assert_same(noisy(path, untouched, resume=True), cut)  # a finished run gives its end again


def longer(path: Path, *averages: int, **settings: Any) -> tuple[Fit, list[Tensor]]:
    """A run of which more is asked each time that it has ended."""
    for average in averages:
        result = noisy(path, average=average, resume=True, **settings)
    return result


@pytest.mark.float32
@pytest.mark.parametrize("settings", [{}, {"validation": None}], ids=["validation", "none"])
def test_an_average_can_be_added_to_a_finished_run_and_made_longer(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = noisy(None, average=4, **settings)
    assert_same(longer(tmp_path / "c.pt", 0, 1, 4, **settings), whole)
    with pytest.raises(InputError, match=r"average ≥ 4, as many as the checkpoint has; got 1"):
        longer(tmp_path / "c.pt", 1, **settings)
    with pytest.raises(InputError, match=r"expected epochs=3, as before the average.*got 5"):
        longer(tmp_path / "c.pt", 4, epochs=5, **settings)


def test_the_average_of_a_run_that_was_stopped_early_resumes_with_more_epochs_allowed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.pt"
    settings: dict[str, Any] = {"patience": 2, "optimizer": adam(0.3), "lr_schedule": None}
    whole = noisy(path, epochs=40, average=2, **settings)
    assert whole[0].stopped == "patience"
    assert_same(noisy(path, epochs=50, average=2, resume=True, **settings), whole)


# -- schedules -------------------------------------------------------------------------------------


def cosine(epoch: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / 9))


def test_a_schedule_is_a_loop_by_hand() -> None:
    """The mean of a normal by Adam with torch's own scheduler, all rows in every step."""
    x = pairs.data()

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.zeros(pairs.COLUMNS))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    fit(
        model,
        lambda x: None,
        x,
        epochs=8,
        batch_size=len(x),
        optimizer=adam(0.1),
        lr_schedule=cosine,
    )
    w = torch.zeros(pairs.COLUMNS, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: cosine(done + 1))
    for _ in range(8):
        optimizer.zero_grad()
        (0.5 * (x - w).square().sum(-1)).mean().backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(weights()["w"], w.detach(), rtol=1e-12, atol=1e-14)


def test_all_steps_of_an_epoch_have_its_rate_and_those_averaged_that_of_the_best() -> None:
    def groups(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": 1e-3}, {"params": others}], lr=1e-4)

    recorder = Recorder(groups)
    run = train_plain(epochs=3, average=2, optimizer=recorder, lr_schedule=cosine)
    rates = [1e-3 * cosine(epoch) for epoch in (1, 2, 3, 3, 3) for _ in range(3)]
    assert recorder.rates == rates
    assert run.averaged


def test_a_factor_of_1_changes_nothing() -> None:
    plain = train_plain(epochs=3)
    end = weights()
    run = train_plain(epochs=3, lr_schedule=lambda epoch: 1)
    np.testing.assert_array_equal(run.history.train, plain.history.train)
    assert all(torch.equal(end[name], value) for name, value in weights().items())


def test_a_run_is_not_resumed_with_another_schedule(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    whole = train_plain(epochs=4, lr_schedule=cosine)
    end = weights()
    train_plain(epochs=2, lr_schedule=cosine, checkpoint=path)
    for other in (None, lambda epoch: cosine(epoch) * (epoch < 2)):
        with pytest.raises(InputError, match=r"lr_schedule that the checkpoint was written with"):
            train_plain(epochs=4, lr_schedule=other, checkpoint=path, resume=True)
    run = train_plain(epochs=4, lr_schedule=cosine, checkpoint=path, resume=True)
    np.testing.assert_array_equal(run.history.train, whole.history.train)
    assert all(torch.equal(end[name], value) for name, value in weights().items())


def without_rate(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    class Plain(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            """No step."""

    return Plain(parameters, {})


def none_after(first: int) -> Callable[[int], Any]:
    values: Iterator[Any] = iter([1.0] * first)
    return lambda epoch: next(values, None)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "average": ({"average": -1}, "average ≥ 0; got -1"),
    "number": ({"lr_schedule": 0.5}, "function of the epoch's number as lr_schedule; got float"),
    "negative": ({"lr_schedule": lambda epoch: 2.0 - epoch}, "got -1.0 for epoch 3"),
    "not finite": ({"lr_schedule": lambda epoch: math.inf}, "got inf for epoch 1"),
    "nothing": ({"lr_schedule": none_after(2)}, "got None for epoch 3"),
    "no rate": ({"lr_schedule": cosine, "optimizer": without_rate}, "got Plain, which has none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_before_the_first_step(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(InputError, match=message):
        train_plain(epochs=4, **settings)
