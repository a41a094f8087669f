"""Replayed steps give the bits that the pair gives, or the pair computes them and it says why."""

from __future__ import annotations

import gc
import itertools
import math
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import pytest
import registry
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.errors import InputError
from pyrovae.pairs import modules_of
from pyrovae.training import captured, cuda_graph
from pyrovae.training.captured import CapturedStep
from pyrovae.training.loop import Evaluator, NonFiniteLoss, argument_checks
from pyrovae.training.objectives import elbo
from pyrovae.training.replay import record

BY_ITSELF = {
    "discrete_site_of_the_model_summed_out": "depends on the numbers",
    "autoguide_with_parameters_for_each_row": "changes attributes",
}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record in runs of any length."""
    monkeypatch.setattr(captured, "LEAST_STEPS", 1)
    monkeypatch.setattr(captured, "LEAST_STEPS_AN_EPOCH", 1)


def trained(make: Callable[[], tuple[Any, Any]], data: Any, **options: Any) -> tuple[Any, Any]:
    """The run of a pair made anew, and its parameters and buffers after it."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    model, guide = make()
    run = pv.fit(model, guide, data, progress=False, **{"epochs": 3, "batch_size": 8} | options)
    state = dict(pyro.get_param_store().named_parameters())
    for i, module in enumerate(modules_of(model, guide)):
        state |= {f"{i}.{name}": tensor for name, tensor in module.state_dict().items()}
    return run, {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_same(one: tuple[Any, Any], two: tuple[Any, Any]) -> None:
    """To the last bit: histories, parameters, buffers."""
    for column in ("train", "validation", "kl_weight"):
        np.testing.assert_array_equal(
            getattr(one[0].history, column), getattr(two[0].history, column)
        )
    assert one[1].keys() == two[1].keys()
    assert all(torch.equal(tensor, two[1][name]) for name, tensor in one[1].items())


REPLAYED = {"replayed from epoch 2 on"}
if torch.__version__.startswith("2.4"):  # its kernels give other bits into memory that is there
    REPLAYED |= {"by the pair itself: run again, its operations do not give what it gives"}


def both(make: Callable[[], Any], data: Any, **options: Any) -> str:
    """Check that both ways end in the same; the account of the first."""
    auto = trained(make, data, **options)
    assert_same(auto, trained(make, data, **options | {"capture": "off"}))
    account: str = auto[0].capture
    return account


# -- pairs as people write them -------------------------------------------------------------------


@pytest.mark.parametrize("case", registry.CASES, ids=lambda case: case.name)
def test_three_epochs_have_the_same_bits(case: registry.Case) -> None:
    account = both(case.make, case.batch(registry.EXACT.sample(registry.ROWS)), **case.fit)
    reason = BY_ITSELF.get(case.name)
    assert account.startswith("by the pair itself" if reason else "replayed from epoch 2")
    assert reason is None or reason in account


@pytest.mark.float32
@pytest.mark.parametrize("batch_size", [8, 20])
def test_dropout_buffers_warm_up_transform_clipping_schedule_and_average(batch_size: int) -> None:
    """And a last minibatch that is smaller, recorded by itself."""
    account = both(
        lambda: tuple(pairs.registered()[0]),
        pairs.data(50).float(),
        validation=pairs.data(20, seed=1).float(),
        epochs=6,
        batch_size=batch_size,
        kl_warmup=4,
        clip_norm=0.5,
        average=2,
        lr_schedule=lambda epoch: 0.9**epoch,
        transform=lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator),
    )
    assert account == "replayed from epoch 2 on"


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("kl_warmup", [0, 2])
def test_pyro_s_estimators_read_their_loss(objective: Any, kl_warmup: int) -> None:
    account = both(pairs.plain, pairs.data(), objective=objective(), kl_warmup=kl_warmup, epochs=4)
    assert account == "by the pair itself: what it computes depends on the numbers in a tensor"


def test_an_objective_of_one_s_own() -> None:
    def tilted(model: Any, guide: Any, *data: Tensor, kl_weight: float = 1.0) -> Tensor:
        if kl_weight < 1:  # no tensor can be asked this while it is recorded
            return 2 * elbo(model, guide, *data, kl_weight=kl_weight)
        return elbo(model, guide, *data, particles=2)

    account = both(pairs.plain, pairs.data(), objective=tilted, kl_warmup=3, epochs=5)
    assert account == "replayed from epoch 3 on"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vae(dtype: torch.dtype) -> None:
    def make() -> tuple[Any, Any]:
        vae = pv.VAE(pv.mlp_encoder((6,), 2), pv.mlp_decoder(2, (6,)), pv.StandardNormal(2))
        vae.to(dtype)
        return vae.model, vae.guide

    rows = torch.rand(45, 6, dtype=dtype).round()
    assert both(make, rows, kl_warmup=3, epochs=5) in REPLAYED


# -- what a record can't hold ---------------------------------------------------------------------


def linear(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], tuple[Any, Any]]:
    """A pair whose mean is changed, by the minibatch."""

    def make() -> tuple[Any, Any]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                mean = change(pyro.param("shift", torch.zeros(5)) + z.sum(-1, keepdim=True), x)
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            weight = pyro.param("weight", torch.ones(5, 2) / 9)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ weight, 1.0).to_event(1))

        return model, guide

    return make


@pytest.mark.parametrize(
    "change",
    [
        lambda mean, x: mean * x[0, 0].item(),
        lambda mean, x: mean * x.tolist()[0][0],
        lambda mean, x: mean * float(x.numpy()[0, 0]),
        lambda mean, x: mean * float(np.asarray(x).sum()),
        lambda mean, x: mean + x[x > 1].mean(),
        lambda mean, x: mean + x.nonzero().double().mean(),
        lambda mean, x: mean + torch.masked_select(x, x > 0.5).mean(),
    ],
)
def test_what_depends_on_numbers_stays_with_the_pair(change: Any) -> None:
    account = both(linear(change), pairs.data())
    assert account == "by the pair itself: what it computes depends on the numbers in a tensor"


def test_where_one_shape_can_not_be_recorded_the_epoch_is_done_anew() -> None:
    """60 rows are 7 minibatches of 8, and one of 4."""
    pair = linear(lambda mean, x: mean * x.tolist()[0][0] if len(x) == 4 else mean)
    reason = "what it computes depends on the numbers in a tensor"
    assert both(pair, pairs.data()) == f"by the pair itself: {reason}"


def test_a_condition_is_looked_at_in_each_step() -> None:
    """It turns in some steps, with running statistics and dropout on the way."""
    seen = set()

    def make() -> tuple[Any, Any]:
        (model, guide), *_ = pairs.registered()

        def scaled(x: Tensor) -> None:
            seen.add(bool(x[:, 0].sum() > 0.85 * len(x)))
            with pyro.poutine.scale(scale=1.0 if x[:, 0].sum() > 0.85 * len(x) else 0.5):
                model(x)

        return scaled, guide

    assert both(make, pairs.data(), epochs=5) == "replayed from epoch 2 on"
    assert seen == {True, False}


def test_a_condition_that_turns_too_often_ends_it() -> None:
    pair = linear(lambda mean, x: mean if x[0].sum() > x[1].sum() else 2 * mean)
    account = both(pair, pairs.data(), epochs=8)
    reason = "what it computes depends on the numbers in a tensor"
    assert account == f"by the pair itself, those of epoch 2 to 4 apart: {reason}"


@pytest.mark.parametrize("vamp", [False, True])
def test_priors_that_are_mixtures(vamp: bool) -> None:
    rows = torch.rand(45, 6).round()

    def make() -> tuple[Any, Any]:
        encoder = pv.mlp_encoder((6,), 2)
        prior: nn.Module = pv.GaussianMixture(2, 3)
        if vamp:
            prior = pv.VampPrior(encoder, rows[:4], bounds=(0.0, 1.0))
        vae = pv.VAE(encoder, pv.mlp_decoder(2, (6,)), prior)
        return vae.model, vae.guide

    assert both(make, rows, kl_warmup=2) in REPLAYED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda mean, x: mean + np.random.rand(), "draws from the random state of Python or NumPy"),
        (
            lambda mean, x: mean + torch.rand(5, generator=torch.Generator()),
            "enerator",  # "draws from a generator of its own", or torch 2.4's name of it
        ),
    ],
)
def test_other_random_states_stay_with_the_pair(change: Any, reason: str) -> None:
    assert reason in both(linear(change), pairs.data())


def test_whole_number_indexing_and_writing_in_place_are_replayed() -> None:
    def change(mean: Tensor, x: Tensor) -> Tensor:
        picked = x[:, x[0].argsort()] + x.gather(1, x.argsort(1))
        picked[0] = 3.0
        picked.mul_(2).clamp_(max=1.5)
        return torch.where(x > 0, mean, picked) + torch.zeros(5).index_fill_(0, torch.arange(2), 1)

    assert both(linear(change), pairs.data()) == "replayed from epoch 2 on"


def test_a_pair_may_write_into_its_minibatch() -> None:
    def make() -> tuple[Any, Any]:
        model, guide = linear(lambda mean, x: mean)()

        def halving(x: Tensor) -> None:
            x.mul_(0.5)
            guide(x)

        return model, halving

    one = trained(make, pairs.data())
    assert one[0].capture == "replayed from epoch 2 on"
    assert_same(one, trained(make, pairs.data(), capture="off"))


def test_a_module_that_counts_its_runs_stays_with_the_pair() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.runs = nn.Parameter(torch.ones(5)), 0

        def forward(self, mean: Tensor, x: Tensor) -> Tensor:
            self.runs += 1
            return mean * self.scale / (1 + self.runs)

    def make() -> tuple[Any, Any]:
        counting = Counting()
        model, guide = linear(counting)()

        def registered(x: Tensor) -> None:
            pyro.module("counting", counting)
            model(x)

        return registered, guide

    assert "it changes attributes" in both(make, pairs.data())


class Schedule:
    """Twice the mean after 30 steps, by a count that is no module's."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, mean: Tensor, x: Tensor) -> Tensor:
        self.steps += 1
        return mean if self.steps <= 30 else 2 * mean


def counting(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Something that changes with the number of steps, by a variable of some kind."""
    steps, listed, mean_so_far = 0, [0], torch.zeros(5)

    def by_name(mean: Tensor, x: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return mean if steps <= 30 else 2 * mean

    def in_list(mean: Tensor, x: Tensor) -> Tensor:
        listed[0] += 1
        return mean if listed[0] <= 30 else 2 * mean

    def in_tensor(mean: Tensor, x: Tensor) -> Tensor:
        return mean + mean_so_far.mul_(0.9).add_(x.mean(0), alpha=0.1)

    return {"name": by_name, "list": in_list, "tensor": in_tensor, "object": Schedule()}[kind]


@pytest.mark.parametrize("kind", ["name", "list", "tensor", "object"])
def test_a_pair_that_counts_its_steps_stays_with_the_pair(kind: str) -> None:
    """Its variable gets no run more than its steps; one epoch is 8 of them."""
    account = both(lambda: linear(counting(kind))(), pairs.data(), epochs=6)
    assert account == "by the pair itself: it changes attributes or variables that outlast a step"


@pytest.mark.parametrize("make", [itertools.count, lambda: (number for number in range(1000))])
def test_a_pair_that_asks_an_iterator_stays_with_the_pair(make: Callable[[], Any]) -> None:
    def change() -> Callable[[Tensor, Tensor], Tensor]:
        steps = make()
        return lambda mean, x: mean if next(steps) <= 30 else 2 * mean

    account = both(lambda: linear(change())(), pairs.data(), epochs=6)
    reason = "it can reach an iterator, which may give something else in each step"
    assert account == f"by the pair itself: {reason}"


def test_an_objective_that_counts_its_steps_stays_with_the_pair() -> None:
    class Tilting:
        steps = 0

        def __call__(self, model: Any, guide: Any, *data: Tensor, kl_weight: float = 1.0) -> Tensor:
            self.steps += 1
            return elbo(model, guide, *data, kl_weight=1.0 if self.steps <= 30 else 0.5)

    runs = [
        trained(pairs.plain, pairs.data(), objective=Tilting(), epochs=6, capture=capture)
        for capture in ("auto", "off")
    ]
    assert_same(*runs)
    assert "variables that outlast a step" in runs[0][0].capture


@pytest.mark.filterwarnings("ignore:.*not registered in the param store")  # Pyro's, of the same
def test_a_parameter_that_is_frozen_on_the_way_ends_it() -> None:
    """60 rows make 8 steps an epoch; the first call of the transform comes before training."""
    (model, guide), encoder, _ = pairs.registered()
    calls = iter(range(1000))

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        if next(calls) == 1 + 3 * 8:
            encoder.layers[0].weight.requires_grad_(False)
        return x

    options: dict[str, Any] = {"epochs": 5, "batch_size": 8, "transform": transform}
    run = pv.fit(model, guide, pairs.data(), progress=False, **options)
    assert run.capture == "by the pair itself, those of epoch 2 to 3 apart: a parameter is frozen"


def switched(at: int) -> tuple[Callable[[], tuple[Any, Any]], Callable[..., Tensor]]:
    """A pair that changes with a switch outside it, and a transform that turns it at a call."""
    calls = {"count": 0}

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        calls["count"] += 1
        return x

    pair = linear(lambda mean, x: 2 * mean if calls["count"] > at else mean)

    def make() -> tuple[Any, Any]:
        calls["count"] = 0
        return pair()

    return make, transform


def test_a_change_from_outside_is_noticed_and_its_epoch_done_anew() -> None:
    """60 rows make 8 steps an epoch; the first call of the transform comes before training."""
    make, transform = switched(1 + 3 * 8)
    account = both(make, pairs.data(), transform=transform, epochs=6, average=1)
    reason = "run again, its operations do not give what it gives"
    assert account == f"by the pair itself, those of epoch 2 to 3 apart: {reason}"


def test_a_parameter_that_comes_late_is_still_refused() -> None:
    calls = {"count": 0}

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        calls["count"] += 1
        return x

    def late(mean: Tensor, x: Tensor) -> Tensor:
        return mean + pyro.param("late", torch.zeros(5)) if calls["count"] > 18 else mean

    with pytest.raises(InputError, match=r"got \{'late'\} later"):
        trained(linear(late), pairs.data(), transform=transform, epochs=5)


def test_a_hook_on_a_gradient_stays_with_the_pair() -> None:
    def make() -> tuple[Any, Any]:
        functions, encoder, _ = pairs.registered()
        weight = encoder.layers[0].weight
        weight.register_hook(lambda gradient: gradient / 2)
        return tuple(functions)

    assert "hooks on its gradient" in both(make, pairs.data())


# -- how the run goes on --------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_named_as_before() -> None:
    errors = []
    for capture in ("auto", "off"):
        calls = iter(range(1000))

        def transform(x: Tensor, generator: torch.Generator, calls: Any = calls) -> Tensor:
            return x if next(calls) < 21 else math.inf * x

        with pytest.raises(NonFiniteLoss) as error:
            trained(pairs.plain, pairs.data(), transform=transform, epochs=5, capture=capture)
        errors.append(error.value)
    assert (errors[0].epoch, errors[0].step, errors[0].sites) == (3, 5, errors[1].sites)
    assert str(errors[0]) == str(errors[1])


@pytest.mark.parametrize("first", ["auto", "off"])
def test_a_checkpoint_of_one_way_is_resumed_in_the_other(tmp_path: Path, first: str) -> None:
    def make() -> tuple[Any, Any]:
        return tuple(pairs.registered()[0])

    second = "off" if first == "auto" else "auto"
    options: dict[str, Any] = {"validation": pairs.data(20, seed=1), "kl_warmup": 2}
    options["checkpoint"] = tmp_path / "run"
    trained(make, pairs.data(), **options, epochs=3, capture=first)
    resumed = trained(make, pairs.data(), **options, epochs=6, capture=second, resume=True)
    assert resumed[0].capture.startswith("by the pair itself" if first == "auto" else "replayed")
    options["checkpoint"] = tmp_path / "whole"
    assert_same(resumed, trained(make, pairs.data(), **options, epochs=6, capture="off"))


def test_an_optimizer_of_one_s_own_may_keep_gradients() -> None:
    class Keeping(torch.optim.SGD):
        """Steps by the sum of this gradient and the one before."""

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    gradient = parameter.grad
                    before = self.state[parameter].get("before")
                    self.state[parameter]["before"] = gradient
                    if before is not None:
                        parameter.data.sub_(0.001 * (gradient + before))

    account = both(pairs.plain, pairs.data(), optimizer=lambda p: Keeping(p, lr=0.1))
    assert account == "replayed from epoch 2 on"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_torch_s_other_optimizers(optimizer: Any) -> None:
    account = both(pairs.plain, pairs.data(), optimizer=lambda p: optimizer(p, lr=0.01))
    assert account == "replayed from epoch 2 on"


def test_recording_leaves_everything_as_it_was() -> None:
    functions, *networks = pairs.registered()
    batch = (pairs.data(16),)
    evaluator = Evaluator(*functions, elbo, None)
    trainable = evaluator.survey(batch).trainable
    trainable.train(True)
    state, draws = trainable.state(), torch.get_rng_state()
    with argument_checks(False):
        step = CapturedStep(evaluator, trainable, batch, 1.0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in trainable.state().items())
    assert torch.equal(draws, torch.get_rng_state())
    assert all(network.training for network in networks)
    assert all(parameter.grad is None for parameter in trainable.parameters.values())
    mean, *_ = step(batch, 1.0)
    assert not torch.equal(draws, torch.get_rng_state())
    torch.set_rng_state(draws)
    trainable.load(state)
    assert torch.equal(mean, evaluator(batch))


def test_short_runs_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "LEAST_STEPS", 25)
    run, _ = trained(pairs.plain, pairs.data(), epochs=3)  # 16 steps after the first epoch
    assert run.capture == (
        "by the pair itself: with fewer than 25 steps, or 1 an epoch, recording does not pay"
    )
    run, _ = trained(pairs.plain, pairs.data(), epochs=5)
    assert run.capture == "replayed from epoch 2 on"


def test_a_way_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="expected capture='auto', 'graph' or 'off'; got 'on'"):
        pv.fit(*pairs.plain(), pairs.data(), capture="on")  # type: ignore[arg-type]


# -- compiled --------------------------------------------------------------------------------------


def compiles_as(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Let operations be run as they are in place of compiled ones, their results changed."""

    def compiler(graph: Callable[..., Any], _: Any, options: Any) -> Callable[..., Any]:
        assert options["fallback_random"]
        return lambda *inputs: [change(r) if r.is_floating_point() else r for r in graph(*inputs)]

    monkeypatch.setattr("torch._inductor.compile", compiler)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_steps_draw_the_same_and_differ_by_rounding() -> None:
    """But for a last, small minibatch, if torch's compiler has that wrong."""
    options = {"epochs": 5, "kl_warmup": 3, "clip_norm": 0.5, "validation": pairs.data(20, seed=1)}
    compiled = trained(pairs.plain, pairs.data(), **options, compile=True)
    by_pair = trained(pairs.plain, pairs.data(), **options, capture="off")
    assert compiled[0].capture.startswith("compiled and replayed from epoch 2 on")
    for column in ("train", "validation"):
        histories = [getattr(run[0].history, column) for run in (compiled, by_pair)]
        np.testing.assert_allclose(*histories, rtol=1e-6)


@pytest.mark.parametrize(("off", "taken"), [(1e-6, True), (2e-4, False)])
def test_compiled_steps_may_be_off_by_rounding_alone(
    monkeypatch: pytest.MonkeyPatch, off: float, taken: bool
) -> None:
    compiles_as(monkeypatch, lambda result: result * (1 + off))
    run = trained(pairs.plain, pairs.data(), compile=True)
    if taken:
        assert run[0].capture == "compiled and replayed from epoch 2 on"
    else:
        reason = "compiled, its operations do not give what it gives"
        assert run[0].capture == f"replayed, not compiled ({reason}), from epoch 2 on"
        assert_same(run, trained(pairs.plain, pairs.data(), capture="off"))


def test_minibatches_of_one_size_alone_may_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_eight(graph: Any, inputs: list[Tensor], **_: Any) -> Callable[..., Any]:
        if len(inputs[-1]) != 8:
            raise RuntimeError("too few")
        return lambda *inputs: list(graph(*inputs))

    monkeypatch.setattr("torch._inductor.compile", of_eight)
    run = trained(pairs.plain, pairs.data(20), compile=True)
    assert run[0].capture == (
        "compiled and replayed from epoch 2 on; minibatches of some size replayed, not compiled "
        "(torch can't compile it (RuntimeError: too few))"
    )
    assert_same(run, trained(pairs.plain, pairs.data(20), capture="off"))


def test_gradients_that_are_all_noise_are_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a bias that batch normalisation takes out again."""

    def noise(result: Tensor) -> Tensor:
        return torch.where(result.abs() < 1e-9, torch.full_like(result, 1e-9), result)

    def pair() -> tuple[Any, Any]:
        (model, guide), idle = pairs.plain(), nn.Parameter(torch.zeros(3))

        def with_idle(x: Tensor) -> Any:
            pyro.param("idle", idle)
            pyro.factor("nothing", (0 * pyro.param("idle")).sum())
            return model(x)

        return with_idle, guide

    compiles_as(monkeypatch, noise)
    assert "compiled and replayed" in trained(pair, pairs.data(), compile=True)[0].capture


def test_results_that_a_compiler_makes_one_are_clipped_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two shifts that are added have equal gradients."""

    def merging(graph: Callable[..., Any], _: Any, options: Any) -> Callable[..., Any]:
        def run(*inputs: Tensor) -> list[Tensor]:
            results = list(graph(*inputs))
            for i, result in enumerate(results):
                equal = (r for r in results if r.shape == result.shape and torch.equal(r, result))
                results[i] = next(equal)
            return results

        return run

    monkeypatch.setattr("torch._inductor.compile", merging)
    pair = linear(lambda mean, x: mean + pyro.param("other", torch.zeros(5)))
    options = {"clip_norm": 0.1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    compiled = trained(pair, pairs.data(), compile=True, **options)
    assert compiled[0].capture == "compiled and replayed from epoch 2 on"
    assert_same(compiled, trained(pair, pairs.data(), capture="off", **options))


def test_what_cannot_be_compiled_is_replayed_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no header\nand more")

    monkeypatch.setattr("torch._inductor.compile", fails)
    run = trained(pairs.plain, pairs.data(), compile=True)
    reason = "torch can't compile it (RuntimeError: no header)"
    assert run[0].capture == f"replayed, not compiled ({reason}), from epoch 2 on"
    assert_same(run, trained(pairs.plain, pairs.data(), capture="off"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compile": "yes"}, "expected compile=True or compile=False; got 'yes'"),
        ({"compile": True, "capture": "off"}, "Leave one of them out"),
        ({"compile": True}, r"got none \(g\+\+, clang\+\+, cl\). Install one"),
    ],
)
def test_what_cannot_be_asked_of_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=words):
        pv.fit(*pairs.plain(), pairs.data(), **options)


# -- as a CUDA graph -------------------------------------------------------------------------------

GRAPH = {"capture": "graph"}


@pytest.mark.parametrize("case", registry.CASES, ids=lambda case: case.name)
def test_a_graph_of_three_epochs_has_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, case: registry.Case
) -> None:
    graphs.stand_in(monkeypatch)
    account = both(case.make, case.batch(registry.EXACT.sample(registry.ROWS)), **case.fit | GRAPH)
    by_itself = case.name in BY_ITSELF
    assert account.startswith("by the pair itself" if by_itself else "replayed as a CUDA graph")


@pytest.mark.float32
def test_a_graph_of_dropout_buffers_warm_up_transform_and_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And another of a last minibatch that is smaller."""
    made = graphs.stand_in(monkeypatch)
    account = both(
        lambda: tuple(pairs.registered()[0]),
        pairs.data(50).float(),
        validation=pairs.data(20, seed=1).float(),
        epochs=6,
        batch_size=8,
        kl_warmup=4,
        clip_norm=0.5,
        average=2,
        transform=lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator),
        **GRAPH,
    )
    assert account == "replayed as a CUDA graph from epoch 2 on"
    assert [graph.replays > 6 for graph in made] == [True, True]


def test_a_condition_of_a_graph_is_looked_at_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graphs.stand_in(monkeypatch)
    seen = set()

    def change(mean: Tensor, x: Tensor) -> Tensor:
        seen.add(bool(x[:, 0].sum() > 4))
        return mean if x[:, 0].sum() > 4 else 2 * mean

    assert both(linear(change), pairs.data(), **GRAPH) == "replayed as a CUDA graph from epoch 2 on"
    assert seen == {True, False} and made[0].replays > 10


def test_what_cuda_does_not_take_is_replayed_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.stand_in(monkeypatch)
    monkeypatch.setattr(graphs.Graph, "__enter__", lambda _: torch.ones(1).sum().item() / 0)
    run = trained(pairs.plain, pairs.data(), **GRAPH)
    reason = "CUDA can't take it (ZeroDivisionError: float division by zero)"
    assert run[0].capture == f"replayed, not as a CUDA graph ({reason}), from epoch 2 on"
    assert_same(run, trained(pairs.plain, pairs.data(), capture="off"))


def test_a_graph_that_gives_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of what is computed on the CPU, which a graph holds as it was once."""
    made = graphs.stand_in(monkeypatch)
    monkeypatch.setattr(graphs.Graph, "replay", lambda graph: made.append(graph))
    run = trained(pairs.plain, pairs.data(), **GRAPH)
    reason = "run again, its operations do not give what it gives"
    assert run[0].capture == f"replayed, not as a CUDA graph ({reason}), from epoch 2 on"
    assert_same(run, trained(pairs.plain, pairs.data(), capture="off"))


def test_a_graph_keeps_the_memory_that_it_writes_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA knows addresses only: memory let go of would be another tensor's by the next replay."""
    graphs.stand_in(monkeypatch)
    inputs = [torch.ones(3)]
    recorded = record(lambda x: [(2 * x).exp()], [], inputs)
    kept = weakref.ref(recorded)
    run = cuda_graph.as_graph(recorded, inputs)
    del recorded
    gc.collect()
    assert kept() is not None
    torch.testing.assert_close(run([torch.zeros(3)]), [torch.ones(3)])


def test_compiled_steps_are_a_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.stand_in(monkeypatch)
    compiles_as(monkeypatch, lambda result: result * (1 + 1e-6))
    run = trained(pairs.plain, pairs.data(), compile=True, **GRAPH)
    assert run[0].capture == "compiled and replayed as a CUDA graph from epoch 2 on"
    compiles_as(monkeypatch, lambda result: result * 2)
    run = trained(pairs.plain, pairs.data(), compile=True, **GRAPH)
    reason = "compiled, its operations do not give what it gives"
    assert run[0].capture == f"replayed as a CUDA graph, not compiled ({reason}), from epoch 2 on"
    assert_same(run, trained(pairs.plain, pairs.data(), capture="off"))


def movable() -> tuple[Any, Any]:
    """A pair that another device can have, prior and all."""
    decoder = pv.mlp_decoder(2, (5,), likelihood="normal")
    vae = pv.VAE(pv.mlp_encoder((5,), 2), decoder, pv.StandardNormal(2))
    return vae.model, vae.guide


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine")
def test_a_graph_of_a_gpu() -> None:
    account = both(movable, pairs.data(50), device="cuda", epochs=4, **GRAPH)
    assert account == "replayed as a CUDA graph from epoch 2 on"


def test_the_pair_of_the_gpu_is_one_that_can_be_replayed() -> None:
    account = both(movable, pairs.data(50), epochs=4)
    assert account == "replayed from epoch 2 on"


def test_a_graph_without_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="expected a pair on a GPU by CUDA for capture='graph'"):
        pv.fit(*pairs.plain(), pairs.data(), capture="graph")
