from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyrovae.errors import InputError
from pyrovae.testing import linear_gaussian_vae
from pyrovae.training.fit import adam, fit
from pyrovae.training.loop import NonFiniteLoss
from pyrovae.training.objectives import elbo


def weights() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def train_plain(**settings: Any) -> Any:
    pyro.clear_param_store()
    return fit(
        *pairs.plain(), pairs.data(), **{"batch_size": 25, "optimizer": adam(1e-2), **settings}
    )


def test_svi_recovers_the_exact_posterior_and_evidence() -> None:
    """With a fixed decoder and a guide family that holds p(z | x) the ELBO reaches log p(x)."""
    exact = linear_gaussian_vae(4, 2)
    x = exact.sample(500)
    model = exact.vae().model

    def guide(x: Tensor) -> None:
        matrix = pyro.param("matrix", lambda: torch.zeros(4, 2))
        shift = pyro.param("shift", lambda: torch.zeros(2))
        log_scale = pyro.param("log_scale", lambda: torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ matrix + shift, log_scale.exp()).to_event(1))

    for rate in (3e-2, 1e-3):
        fit(model, guide, x, epochs=40, batch_size=100, optimizer=adam(rate))
    posterior, w = exact.posterior(x), weights()
    mine = dist.Normal(x @ w["matrix"] + w["shift"], w["log_scale"].exp())
    gap = kl_divergence(mine.to_event(1), posterior).mean()
    assert gap < 2e-3
    torch.manual_seed(0)
    bounds = torch.stack([elbo(model, guide, x).detach() / len(x) for _ in range(50)])
    error = bounds.std() / math.sqrt(50)
    assert abs(bounds.mean() + gap - exact.log_prob(x).mean()) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize("batch_size", [25, 60])
def test_both_ways_to_write_the_plate_give_the_same_run(batch_size: int) -> None:
    """A plate of the batch and one of the full data; validation has another number of rows."""
    settings: dict[str, Any] = {
        "epochs": 3,
        "batch_size": batch_size,
        "validation": pairs.data(70, seed=1),
        "optimizer": lambda p: torch.optim.SGD(p, lr=1e-2),
    }
    runs, ends = [], []
    for size in (None, pairs.ROWS):
        pyro.clear_param_store()
        runs.append(fit(*pairs.plain(size), pairs.data(), **settings))
        ends.append(weights())
    np.testing.assert_allclose(runs[0].history.train, runs[1].history.train, rtol=1e-10)
    np.testing.assert_allclose(runs[0].history.validation, runs[1].history.validation, rtol=1e-10)
    torch.testing.assert_close(ends[0], ends[1])


def test_the_train_history_weighs_batches_by_their_rows() -> None:
    """With a learning rate of 0 an epoch of unequal batches is the mean over all rows."""
    frozen = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "kl_warmup": 10**9}
    run = train_plain(batch_size=59, **frozen)
    w, x = weights(), pairs.data()
    assert w["noise"] == 1
    # log p(x | z) is quadratic: bound it by its value with z = 0, weight ≈ 0
    plain = dist.Normal(w["bias"], 1.0).log_prob(x).sum(-1).mean()
    assert abs(run.train - plain) < 0.2
    assert abs(dist.Normal(w["bias"], 1.0).log_prob(x).sum(-1)[:59].mean() - plain) < 0.2


def test_same_seed_same_run_and_other_seed_other_run() -> None:
    settings: dict[str, Any] = {"epochs": 4, "validation": pairs.data(30, seed=1)}
    runs, ends = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(len(runs))  # what the caller drew before does not matter
        runs.append(train_plain(seed=seed, **settings))
        ends.append(weights())
    np.testing.assert_array_equal(runs[0].history.train, runs[1].history.train)
    np.testing.assert_array_equal(runs[0].history.validation, runs[1].history.validation)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not np.array_equal(runs[0].history.train, runs[2].history.train)


def test_random_state_modes_and_validation_flags_stay() -> None:
    pair, encoder, decoder = pairs.registered()
    encoder.layers[3].eval()
    decoder.eval()
    modes = [m.training for net in (encoder, decoder) for m in net.modules()]
    names = ("distributions_pyro", "distributions_torch", "infer", "poutine")
    pyro.settings.set(validate_infer=False)
    try:
        flags = [pyro.settings.get(f"validate_{name}") for name in names]
        state = torch.get_rng_state()
        loader = DataLoader(TensorDataset(pairs.data()), batch_size=20, shuffle=True)
        fit(*pair, loader, validation=pairs.data(20), epochs=2)
        assert torch.equal(torch.get_rng_state(), state)
        assert [pyro.settings.get(f"validate_{name}") for name in names] == flags
    finally:
        pyro.settings.set(validate_infer=True)
    assert [m.training for net in (encoder, decoder) for m in net.modules()] == modes


def test_networks_train_in_training_mode_and_validate_in_evaluation_mode() -> None:
    pair, encoder, _ = pairs.registered()
    encoder.eval()
    seen: list[tuple[bool, bool]] = []
    encoder.register_forward_hook(
        lambda m, a, r: seen.append((m.training, torch.is_grad_enabled()))
    )
    before = encoder.layers[1].num_batches_tracked.item()
    fit(*pair, pairs.data(), validation=pairs.data(20), epochs=2, batch_size=30)
    assert [training for training, _ in seen].count(True) == seen.count((True, True)) == 4
    assert seen.count((False, False)) >= 2  # the checks may need gradients
    # the checks leave no trace in the running means
    assert encoder.layers[1].num_batches_tracked.item() - before == 4


def overfit(pair: pairs.Functions, epochs: int) -> Any:
    """Ten rows and a large learning rate: the best epoch is an early one."""
    held_out = pairs.data(200, seed=1)
    return fit(
        *pair, pairs.data(10), validation=held_out, epochs=epochs, optimizer=adam(0.1), batch_size=5
    )


def test_best_weights_come_back_to_modules_and_store() -> None:
    pair, encoder, _ = pairs.registered()
    run = overfit(pair, 40)
    assert run.best_epoch < 40
    assert run.validation == run.history.validation.max()
    best = {name: value.clone() for name, value in encoder.state_dict().items()}
    pyro.clear_param_store()
    pair, encoder, _ = pairs.registered()
    overfit(pair, run.best_epoch)
    assert all(torch.equal(best[name], value) for name, value in encoder.state_dict().items())
    assert torch.equal(weights()["encoder$$$layers.0.weight"], encoder.layers[0].weight)


def test_plain_parameters_come_back_too() -> None:
    run = overfit(pairs.plain(), 80)
    assert run.best_epoch < 80
    best = weights()
    pyro.clear_param_store()
    overfit(pairs.plain(), run.best_epoch)
    assert all(torch.equal(best[name], value) for name, value in weights().items())


def test_a_run_that_was_cut_off_while_it_improved_says_so() -> None:
    held_out = pairs.data(40, seed=1)
    run = train_plain(epochs=2, validation=held_out)
    assert run.best_epoch == 2 and run.concern.endswith("Try epochs=4.")
    assert train_plain(epochs=2).concern == ""  # nothing to tell it by
    over = train_plain(epochs=40, optimizer=adam(0.5), validation=held_out, patience=3)
    assert over.concern == ""
    longer = train_plain(epochs=20, validation=held_out)
    kept = [replace(longer, best_epoch=epoch).concern != "" for epoch in (18, 19)]
    assert kept == [False, True]  # the last tenth of 20 epochs is 19 and 20


def test_patience_stops_and_counts_from_the_end_of_the_warm_up() -> None:
    held_out = pairs.data(40, seed=1)
    run = train_plain(epochs=40, optimizer=adam(0.5), validation=held_out, patience=3)
    assert run.stopped == "patience"
    assert run.epochs == run.best_epoch + 3
    assert "no longer improved" in str(run)
    run = train_plain(epochs=40, optimizer=adam(0.5), validation=held_out, patience=3, kl_warmup=30)
    assert run.epochs == max(run.best_epoch, 30) + 3
    np.testing.assert_allclose(run.history.kl_weight[:31], [*(np.arange(1, 31) / 30), 1.0])


def test_a_network_that_nobody_registered_is_trained() -> None:
    """A bound method of a module without pyro.module, and stale names in the parameter store."""

    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(5, 2), nn.Linear(2, 5)

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    bound = Bound()
    before = [p.detach().clone() for p in bound.parameters()]
    fit(bound.model, bound.guide, pairs.data(), epochs=1)
    assert not any(torch.equal(a, b) for a, b in zip(before, bound.parameters(), strict=True))
    for seed in (0, 1):  # the second pair's names are taken in the store
        pair, encoder, _ = pairs.registered(seed)
        start = encoder.layers[0].weight.detach().clone()
        fit(*pair, pairs.data(), epochs=1)
        assert not torch.equal(encoder.layers[0].weight, start)


def test_clipping_bounds_the_step() -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    train_plain(epochs=1, batch_size=60, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    start = dict(pyro.get_param_store().named_parameters())
    before = {name: p.detach().clone() for name, p in start.items()}
    train_plain(epochs=1, batch_size=60, optimizer=sgd, clip_norm=1e-3)
    after = dict(pyro.get_param_store().named_parameters())
    moved = math.sqrt(sum(float((after[n].detach() - before[n]).square().sum()) for n in before))
    assert moved == pytest.approx(1e-3, rel=1e-4)


def test_pyros_estimators_train_what_has_no_reparametrisation() -> None:
    means = torch.tensor([-2.0, 2.0])

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-0.5, 0.5]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    x = means[torch.arange(400) % 2] + torch.randn(400)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    fit(model, lambda x: None, x, epochs=30, objective=objective, optimizer=adam(5e-2))
    # Each mean has a standard error of about 1/√200 = 0.07.
    torch.testing.assert_close(weights()["loc"], means, atol=0.3, rtol=0)


def test_pyros_own_estimators_train_in_a_warm_up() -> None:
    for objective in (Trace_ELBO(), Trace_ELBO(num_particles=2)):
        assert train_plain(epochs=5, objective=objective, kl_warmup=3).train > -20


class Rows(Dataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]


def test_every_kind_of_data_gives_the_same_run() -> None:
    x = pairs.data()
    reference = train_plain(epochs=2).history.train
    for data in (x.numpy(), (x,), TensorDataset(x), Rows(x)):
        pyro.clear_param_store()
        run = fit(*pairs.plain(), data, epochs=2, batch_size=25, optimizer=adam(1e-2))
        np.testing.assert_array_equal(run.history.train, reference)
    pyro.clear_param_store()
    loader = DataLoader(TensorDataset(x), batch_size=25, shuffle=True, generator=torch.Generator())
    first = fit(*pairs.plain(), loader, epochs=2).history.train
    pyro.clear_param_store()
    np.testing.assert_array_equal(first, fit(*pairs.plain(), loader, epochs=2).history.train)


def test_more_arguments_stay_with_their_rows() -> None:
    seen = []

    def model(x: Tensor, y: Tensor) -> None:
        seen.append(bool((x.sum(-1) == y).all()))
        pairs.plain().model(x)

    x = pairs.data()
    fit(model, lambda x, y: pairs.plain().guide(x), (x, x.sum(-1)), epochs=2, batch_size=25)
    assert all(seen)


def test_transform_draws_anew_in_training_and_the_same_in_validation() -> None:
    drawn: dict[bool, list[Tensor]] = {True: [], False: []}

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        result = x + torch.randn(x.shape, generator=generator)
        drawn[torch.is_grad_enabled()].append(result.sort(0).values)
        return result

    held_out = pairs.data(30, seed=1)
    train_plain(epochs=2, batch_size=60, transform=transform, validation=held_out)
    assert not torch.equal(*drawn[True])
    _, first, second = drawn[False]  # the first of all is the check
    assert torch.equal(first, second)


def test_a_transform_may_change_the_kind_of_rows() -> None:
    """The checks see rows as the pair gets them."""

    def tenth(x: Tensor, generator: torch.Generator) -> Tensor:
        return x.double() / 10

    numbers, histories = (10 * pairs.data()).round(), []
    for rows in (numbers, numbers.int()):
        pyro.clear_param_store()
        settings: dict[str, Any] = {"batch_size": 25, "optimizer": adam(1e-2), "epochs": 2}
        histories.append(fit(*pairs.plain(), rows, transform=tenth, **settings).history.train)
    np.testing.assert_array_equal(*histories)


def test_a_transform_does_not_change_what_the_pair_starts_from() -> None:
    def drawing(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape) + torch.randn(x.shape, generator=generator)

    starts = []
    for transform in (None, drawing):
        still = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
        train_plain(transform=transform, **still)
        starts.append(weights())
    assert all(torch.equal(starts[1][name], value) for name, value in starts[0].items())


def test_a_loss_that_is_not_finite_names_epoch_step_and_site() -> None:
    calls = [0]
    limit: float

    def model(x: Tensor) -> None:
        calls[0] += 1
        bad = calls[0] >= limit
        noise = pyro.param("noise", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ torch.ones(2, 5) * (math.nan if bad else noise)
            pyro.sample("pixels", dist.Normal(loc, 1.0).to_event(1), obs=x)

    limit = math.inf
    fit(model, pairs.plain().guide, pairs.data(), epochs=1, batch_size=15)
    checks = calls[0] - 4  # calls before the first step
    for first_bad, place in ((2, (1, 1)), (checks + 8, (2, 4)), (checks + 3, (1, 3))):
        pyro.clear_param_store()
        calls[0], limit = 0, first_bad
        with pytest.raises(NonFiniteLoss, match=r"epoch \d, step \d.*pixels") as caught:
            fit(model, pairs.plain().guide, pairs.data(), epochs=3, batch_size=15)
        assert (caught.value.epoch, caught.value.step) == place
        assert caught.value.sites == ("pixels",)
        assert all(value.isfinite().all() for value in weights().values())


def test_a_gradient_that_is_not_finite_names_its_parameters() -> None:
    def guide(x: Tensor) -> None:
        raw = pyro.param("raw", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(raw.sqrt(), 1.0).to_event(1))

    with pytest.raises(NonFiniteLoss, match="no longer finite") as caught:
        fit(pairs.plain().model, guide, pairs.data(), epochs=1, batch_size=20)
    assert "raw" in caught.value.parameters
    assert (caught.value.epoch, caught.value.step) == (1, 2)


def test_errors_of_the_pair_itself_pass_through() -> None:
    """A value outside the support gives Pyro's message, wherever in the first epoch its row is."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    x = torch.zeros(60, 5)
    x[37] = 0.5
    with pytest.raises(ValueError, match="support"):
        fit(model, pairs.plain().guide, x, epochs=1, batch_size=10)


@pytest.mark.parametrize("row", [3, 37])  # in the first batch and in a later one
def test_an_unknown_category_is_an_error_of_the_argument_checks(row: int) -> None:
    """Without the checks torch can't even look it up, so that there is no loss to be NaN."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(5, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    x = torch.zeros(60, 5)
    x[row] = 3
    with pytest.raises(ValueError, match="support"):
        fit(model, pairs.plain().guide, x, epochs=1, batch_size=60)


def test_the_library_s_own_errors_are_shown_even_if_the_loss_is_not_finite() -> None:
    """They say what to do; a smaller learning rate would not help."""

    def model(x: Tensor) -> None:
        if dist.is_validation_enabled():
            raise InputError("expected rows of another kind; got these. Give others.")
        pairs.plain().model(x * math.nan)

    with pytest.raises(ValueError, match="Give others"):
        fit(model, pairs.plain().guide, pairs.data(), epochs=1)


def test_a_parameter_that_comes_later_is_an_error() -> None:
    calls = [0]

    def guide(x: Tensor) -> None:
        calls[0] += 1
        if calls[0] > 3:
            pyro.param("late", torch.zeros(1))
        pairs.plain().guide(x)

    with pytest.raises(ValueError, match=r"first batch; got \{'late'\}"):
        fit(pairs.plain().model, guide, pairs.data(), epochs=3, batch_size=60)


BAD = {
    "rows": ({"train": torch.zeros(0, 5)}, "at least one row in train"),
    "scalar": ({"train": torch.tensor(1.0)}, "scalar"),
    "nan": ({"train": torch.ones(9, 5).index_fill(0, torch.tensor([7]), math.nan)}, "nan in row 7"),
    "inf": ({"validation": torch.full((3, 5), math.inf)}, "finite numbers in validation; got inf"),
    "text": ({"train": np.array(["a"])}, "dtype <U1"),
    "type": ({"train": 3}, "got int"),
    "lengths": ({"train": (torch.zeros(3, 5), torch.zeros(2))}, r"got \[3, 2\]"),
    "shape": ({"validation": torch.zeros(3, 4)}, "shape and dtype of the training rows"),
    "dtype": ({"validation": torch.zeros(3, 5).float()}, "shape and dtype"),
    "batch_size": ({"batch_size": 0}, "batch_size ≥ 1"),
    "epochs": ({"epochs": 0}, "epochs ≥ 1"),
    "kl_warmup": ({"kl_warmup": -1}, "kl_warmup ≥ 0"),
    "clip_norm": ({"clip_norm": 0.0}, "clip_norm > 0"),
    "patience": ({"patience": 0, "validation": torch.zeros(3, 5)}, "patience ≥ 1"),
    "no validation": ({"patience": 3}, "validation data for patience"),
    "resume": ({"resume": True}, "file to resume from"),
    "folder": ({"checkpoint": "/no/such/folder/c.pt"}, "folder that exists and may be written"),
    "plate": ({"model": lambda x: None, "guide": lambda x: None}, "a plate over the 60 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str) -> None:
    changed, message = BAD[case]
    model, guide = pairs.plain()
    arguments: dict[str, Any] = {"model": model, "guide": guide, "train": pairs.data(), "epochs": 1}
    with pytest.raises(ValueError, match=message):
        fit(**(arguments | changed))


def test_nothing_to_train_is_an_error() -> None:
    exact = linear_gaussian_vae(4, 2)
    vae = exact.vae()
    with pytest.raises(ValueError, match="parameters to train"):
        fit(vae.model, vae.guide, exact.sample(10), epochs=1)


def test_progress_is_silent_off_a_terminal_and_shows_elbo_when_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_plain(epochs=1)
    assert capsys.readouterr() == ("", "")
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    train_plain(epochs=2, progress=True, validation=pairs.data(20))
    assert "epoch 2 · ELBO -" in stream.getvalue()
    assert "validation -" in stream.getvalue()


def test_history_has_one_number_an_epoch() -> None:
    history = train_plain(epochs=3).history
    assert history.unit == "nats per datum"
    assert {name: len(column) for name, column in history.to_dict().items()} == dict.fromkeys(
        ("epoch", "train", "validation", "kl_weight", "seconds", "averaged_epochs"), 3
    )
    assert np.isnan(history.validation).all()
    assert (history.seconds > 0).all()
