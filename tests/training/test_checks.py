"""What would train nonsense, or fail with an obscure error, is refused before the first step."""

import functools
from collections.abc import Callable
from typing import Any

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.training.checks import check_device
from pyrovae.training.fit import fit

WEIGHT = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(2, 5)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT + 1, 0.3).to_event(1), obs=x)


def adam(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return functools.partial(torch.optim.Adam, lr=lr)


def log_evidence(x: Tensor) -> float:
    """The mean log p(x) of the model, in closed form."""
    covariance = WEIGHT.mT @ WEIGHT + 0.09 * torch.eye(5)
    return float(dist.MultivariateNormal(torch.ones(5), covariance).log_prob(x).mean())


# -- guides with parameters by row -----------------------------------------------------------------

LOADED = {
    "minibatches": lambda x: {"train": x, "batch_size": 20},
    "an uneven last one": lambda x: {"train": x, "batch_size": 25},
    "one row each": lambda x: {"train": x, "batch_size": 1},
    "held-out rows": lambda x: {"train": x, "batch_size": 60, "validation": x},
    "a data set": lambda x: {"train": ConcatDataset([TensorDataset(x)]), "batch_size": 30},
    "a loader": lambda x: {"train": DataLoader(TensorDataset(x), batch_size=20)},
    "a shuffling loader": lambda x: {
        "train": DataLoader(TensorDataset(x), batch_size=60, shuffle=True)
    },
}


@pytest.mark.parametrize("way", LOADED)
@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_parameters_by_row_are_not_trained_on_some_of_the_rows(kind: Any, way: str) -> None:
    guide = kind(model)
    with pytest.raises(pv.InputError, match=r"parameters for each place.*batch_size="):
        fit(model, guide, **LOADED[way](pairs.data()), epochs=1)
    assert guide.prototype_trace is None and not pyro.get_param_store().keys()
    fit(model, guide, pairs.data(), batch_size=60, epochs=1)  # as the error says


@pytest.mark.filterwarnings("ignore:For . of:UserWarning", "ignore:For .. of:UserWarning")
@pytest.mark.parametrize("ordered", [False, True])
def test_all_rows_at_once_train_them_to_the_posterior(ordered: bool) -> None:
    # A diagonal normal misses little of a posterior whose units are weakly correlated.
    x = pairs.data()
    data = DataLoader(TensorDataset(x), batch_size=60) if ordered else x
    guide = AutoNormal(model)
    run = fit(model, guide, data, batch_size=60, epochs=400, optimizer=adam(0.05))
    precision = torch.eye(2) + WEIGHT @ WEIGHT.mT / 0.09
    posterior = torch.linalg.solve(precision, WEIGHT @ (x - 1).mT / 0.09).mT
    assert torch.allclose(pv.encode(guide, x).mean, posterior, atol=0.4)  # shuffled rows: off by 2
    independent = precision.diagonal().log().sum() - precision.logdet()
    assert run.train == pytest.approx(log_evidence(x) - float(independent) / 2, abs=0.2)
    assert len(pv.aggregate(guide, x)) == 60
    evidence = pv.log_evidence(model, guide, x, draws=500).values
    assert float(evidence.mean()) == pytest.approx(log_evidence(x), abs=0.1)


def test_a_network_that_nothing_names_is_not_left_untrained() -> None:
    lookup = nn.Linear(5, 2)
    with pytest.raises(pv.InputError, match=r"in none of them.*pyro\.module"):
        fit(model, hide(lookup), pairs.data(), epochs=1)
    pyro.clear_param_store()
    fit(model, hide(lookup, register=True), pairs.data(), epochs=1)  # as the error says


def hide(network: nn.Module, register: bool = False) -> Callable[[Tensor], None]:
    """A guide that holds no reference to its network, directly or not."""
    import gc

    number = id(network)

    def guide(x: Tensor) -> None:
        (hidden,) = (thing for thing in gc.get_objects() if id(thing) == number)
        if register:
            pyro.module("network", hidden)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(hidden(x), 1.0).to_event(1))

    return guide


# -- layers that can't train on a single row -------------------------------------------------------


def normalised(layer: nn.Module) -> pv.VAE:
    network = nn.Sequential(nn.Linear(5, 8), layer, nn.Tanh(), nn.Linear(8, 4))
    return pv.VAE(
        pv.models.networks.NormalEncoder(network),
        pv.mlp_decoder(2, (5,), "normal", hidden=(8,)),
        pv.StandardNormal(2),
    )


SINGLE = {
    "the last of several": {"train": pairs.data(61), "batch_size": 30},
    "each": {"train": pairs.data(6), "batch_size": 1},
    "the only one": {"train": pairs.data(1), "batch_size": 10},
    "of a data set": {"train": ConcatDataset([TensorDataset(pairs.data(21))]), "batch_size": 10},
    "of a loader": {"train": DataLoader(TensorDataset(pairs.data(21)), batch_size=4)},
}


@pytest.mark.parametrize("way", SINGLE)
@pytest.mark.parametrize("tracked", [True, False])
def test_a_minibatch_of_one_row_is_refused_before_the_first_step(tracked: bool, way: str) -> None:
    vae = normalised(nn.BatchNorm1d(8, track_running_stats=tracked)).double()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(pv.InputError, match=r"at least 2 rows in every minibatch.*LayerNorm"):
        fit(vae.model, vae.guide, **double(SINGLE[way]), epochs=1)
    assert all(torch.equal(vae.state_dict()[name], value) for name, value in before.items())
    assert vae.training


def test_a_single_row_is_named_if_the_loader_batches_in_a_way_of_its_own() -> None:
    vae = normalised(nn.BatchNorm1d(8, track_running_stats=False))
    loader = DataLoader(TensorDataset(pairs.data(3)), batch_sampler=[[0], [1, 2]])
    with pytest.raises(pv.InputError, match=r"got a minibatch with a single row\. .*LayerNorm"):
        fit(vae.model, vae.guide, loader, epochs=1)


def double(arguments: dict[str, Any]) -> dict[str, Any]:
    train = arguments["train"]
    if isinstance(train, DataLoader):
        return {"train": DataLoader(TensorDataset(train.dataset.tensors[0].double()), batch_size=4)}
    if isinstance(train, ConcatDataset):
        (part,) = train.datasets
        assert isinstance(part, TensorDataset)
        return arguments | {"train": ConcatDataset([TensorDataset(part.tensors[0].double())])}
    return arguments | {"train": train.double()}


def test_each_remedy_for_a_minibatch_of_one_row_works() -> None:
    x = pairs.data(61)
    vae = normalised(nn.BatchNorm1d(8))
    with pytest.raises(pv.InputError, match="batch_size=31 "):
        fit(vae.model, vae.guide, x, batch_size=30, epochs=1)
    fit(vae.model, vae.guide, x, batch_size=31, epochs=1)
    fit(vae.model, vae.guide, x[1:], batch_size=30, epochs=1)
    loader = DataLoader(TensorDataset(x), batch_size=30, drop_last=True)
    fit(vae.model, vae.guide, loader, epochs=1)
    plain = normalised(nn.LayerNorm(8))
    fit(plain.model, plain.guide, x, batch_size=30, epochs=1)


# -- optimizers and devices ------------------------------------------------------------------------


def remedy_in(message: str) -> Any:
    """What an error says to pass as optimizer=."""
    return eval(message.partition("Pass optimizer=")[2].removesuffix(", say.").rstrip("."))


@pytest.mark.parametrize(
    "optimizer",
    [
        pyro.optim.Adam({"lr": 2e-3}),
        pyro.optim.ClippedAdam({"lr": 2e-3, "lrd": 0.999}),
        pyro.optim.SGD(lambda name: {"lr": 1e-4}),
        pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-4}, "gamma": 0.9}
        ),
        torch.optim.Adam([torch.zeros(1, requires_grad=True)]),
        "adam",
        lambda parameters: None,
        lambda parameters: iter(parameters),
    ],
)
def test_anything_but_an_optimizer_factory_is_refused_and_the_remedy_works(optimizer: Any) -> None:
    guide = AutoNormal(model)
    with pytest.raises(pv.InputError, match=r"expected.*optimizer") as caught:
        fit(model, guide, pairs.data(), batch_size=60, epochs=1, optimizer=optimizer)
    remedy = remedy_in(str(caught.value))
    fit(model, guide, pairs.data(), batch_size=60, epochs=1, optimizer=remedy)


def test_an_optimizer_that_evaluates_by_itself_is_refused() -> None:
    with pytest.raises(pv.InputError, match="one gradient; got LBFGS"):
        fit(*pairs.plain(), pairs.data(), epochs=1, optimizer=torch.optim.LBFGS)


def test_an_error_of_the_factory_itself_passes_through() -> None:
    def factory(parameters: Any) -> torch.optim.Optimizer:
        raise TypeError("my own")

    with pytest.raises(TypeError, match="my own"):
        fit(*pairs.plain(), pairs.data(), epochs=1, optimizer=factory)


@pytest.mark.parametrize(
    "device",
    ["cuda:99", "nowhere", "meta", torch.device("cuda:99"), "cpu:x", "privateuseone", "hpu", "xla"],
)
def test_a_device_that_cannot_be_used_is_refused(device: Any) -> None:
    with pytest.raises(pv.InputError, match=r"expected one of cpu.* as device="):
        fit(*pairs.plain(), pairs.data(), epochs=1, device=device)
    with pytest.raises(pv.InputError, match=r"as --device"):
        check_device(device, "--device")


def test_the_checks_change_no_draw_of_the_training() -> None:
    first = fit(*pairs.plain(), pairs.data(), epochs=3, seed=4)
    pyro.clear_param_store()
    second = fit(*pairs.plain(), pairs.data(), epochs=3, seed=4)
    assert first.history.train.tolist() == second.history.train.tolist()
