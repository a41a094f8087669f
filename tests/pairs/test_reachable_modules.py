"""The networks that a function can run, read from its code: all of them, and no others."""

import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.reachable_modules import Variables, modules_of, parameters_behind
from pyrovae.pairs.under_prior import UnderPrior

GLOBAL = nn.Linear(2, 2)
UNUSED = nn.Linear(2, 2)
HOLDER = SimpleNamespace(net=nn.Linear(2, 2), other=nn.Linear(2, 2))


@dataclass(slots=True)
class Slots:
    net: nn.Module
    other: nn.Module


@dataclass
class Experiment:
    """A user's object that holds more than the pair."""

    encoder: nn.Module = field(default_factory=lambda: nn.Linear(2, 2))
    teacher: nn.Module = field(default_factory=lambda: nn.Linear(2, 2))

    @property
    def network(self) -> nn.Module:
        return self.encoder

    def encoded(self, x: Tensor) -> Tensor:
        return self.network(x)

    def guide(self, x: Tensor) -> Tensor:
        return self.encoded(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class Hidden(nn.Module):
    """A module with another one in a plain list, and a third that its forward names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(2, 2)]

    def forward(self, x: Tensor) -> Tensor:
        return GLOBAL(self.layers[0](x))


def of_global() -> tuple[Any, list[nn.Module]]:
    return (lambda x: GLOBAL(x)), [GLOBAL]


def of_closure() -> tuple[Any, list[nn.Module]]:
    net = nn.Linear(2, 2)

    def outer(x: Tensor) -> Tensor:
        def inner() -> Tensor:
            return net(x)

        return inner()

    return outer, [net]


def through_a_helper() -> tuple[Any, list[nn.Module]]:
    function, nets = of_closure()
    return (lambda x: function(x)), nets


def in_containers() -> tuple[Any, list[nn.Module]]:
    nets = [nn.Linear(2, 2) for _ in range(4)]
    containers = {"a": [nets[0]], "b": (nets[1], deque([nets[2]])), "c": {"d": {nets[3]}}}
    return (lambda x: containers["a"][0](x)), nets


def of_an_object() -> tuple[Any, list[nn.Module]]:
    return (lambda x: HOLDER.net(x)), [HOLDER.net]


def of_slots() -> tuple[Any, list[nn.Module]]:
    owner = Slots(nn.Linear(2, 2), nn.Linear(2, 2))
    return (lambda x: owner.net(x)), [owner.net]


def of_a_method() -> tuple[Any, list[nn.Module]]:
    experiment = Experiment()
    return experiment.guide, [experiment.encoder]


def of_a_callable() -> tuple[Any, list[nn.Module]]:
    experiment = Experiment()
    return experiment, [experiment.encoder]


def by_a_made_up_name() -> tuple[Any, list[nn.Module]]:
    owner = SimpleNamespace(net0=nn.Linear(2, 2), net1=nn.Linear(2, 2))
    return (lambda x, i=0: getattr(owner, f"net{i}")(x)), [owner.net0, owner.net1]


def of_an_imported_module() -> tuple[Any, list[nn.Module]]:
    nets = types.ModuleType("pyrovae_test_nets")
    vars(nets).update(encoder=nn.Linear(2, 2), other=nn.Linear(2, 2))
    sys.modules["pyrovae_test_nets"] = nets

    def guide(x: Tensor) -> Tensor:
        import pyrovae_test_nets

        return pyrovae_test_nets.encoder(x)

    return guide, [nets.encoder]


def partial() -> tuple[Any, list[nn.Module]]:
    net = nn.Linear(2, 2)
    return functools.partial(lambda net, x: net(x), net), [net]


def cached() -> tuple[Any, list[nn.Module]]:
    function, nets = of_closure()
    return functools.lru_cache(function), nets


def under_handlers() -> tuple[Any, list[nn.Module]]:
    function, nets = of_closure()
    return poutine.scale(poutine.block(function, hide=["y"]), scale=2.0), nets


def under_a_prior() -> tuple[Any, list[nn.Module]]:
    vae = small()
    return UnderPrior(vae.model, vae.prior()), [vae]


def weak() -> tuple[Any, list[nn.Module]]:
    net = nn.Linear(2, 2)
    reference = weakref.ref(net)
    return (lambda x: reference()(x)), [net]


def default_argument() -> tuple[Any, list[nn.Module]]:
    net = nn.Linear(2, 2)
    return (lambda x, net=net: net(x)), [net]


def flow() -> tuple[Any, list[nn.Module]]:
    step = dist.transforms.affine_coupling(2)
    density = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [step])
    return (lambda x: pyro.sample("z", density)), [step]


def autoguide() -> tuple[Any, list[nn.Module]]:
    vae = small()
    guide = AutoNormal(vae.model)
    return guide, [guide, vae]


def easyguide() -> tuple[Any, list[nn.Module]]:
    class Easy(EasyGuide):
        def guide(self, x: Tensor) -> None:
            GLOBAL(x)

    guide = Easy(lambda x: None)
    return guide, [guide, GLOBAL]


def hidden() -> tuple[Any, list[nn.Module]]:
    module = Hidden()
    return module, [module, module.layers[0], GLOBAL]


def of_a_vae() -> tuple[Any, list[nn.Module]]:
    vae = small()
    vae.encoder = nn.Sequential(vae.encoder)
    return vae.guide, [vae]


KINDS: list[Callable[[], tuple[Any, list[nn.Module]]]] = [
    of_global, of_closure, through_a_helper, in_containers, of_an_object, of_slots, of_a_method,
    of_a_callable, by_a_made_up_name, of_an_imported_module, partial, cached, under_handlers,
    under_a_prior, weak, default_argument, flow, autoguide, easyguide, hidden, of_a_vae,
]  # fmt: skip


def small() -> pv.VAE:
    return pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_all_networks_and_no_others_are_reached(
    kind: Callable[[], tuple[Any, list[nn.Module]]],
) -> None:
    function, expected = kind()
    modules = modules_of(function)
    assert set(modules) == set(expected)
    assert UNUSED not in modules and HOLDER.other not in modules


def test_what_is_inside_of_another_network_is_not_named_again() -> None:
    vae = small()
    assert modules_of(vae.encoder, vae.model, vae.guide, vae.decoder) == (vae,)


def test_the_order_is_that_of_the_functions() -> None:
    first, second = small(), small()
    assert modules_of(first.model, second.guide) == (first, second)
    assert modules_of(second.guide, first.model) == (second, first)


def test_a_pair_over_rows_is_seen_through() -> None:
    from pyrovae.pairs.many_arguments import over_rows

    vae = small()
    x = torch.zeros(5, 4)
    over, _ = over_rows(Pair(lambda x, y: vae.model(x), lambda x, y: vae.guide(x)), (x, x))
    assert modules_of(over.guide) == (vae,)


def test_parameters_behind_a_value_are_those_that_have_a_gradient() -> None:
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    value = used(torch.ones(3, 2)).sum() + 0.0 * unused(torch.ones(3, 2)).detach().sum()
    assert set(parameters_behind(value)) == set(used.parameters())
    assert parameters_behind(torch.ones(())) == []


def test_a_variable_that_holds_something_else_is_seen() -> None:
    counts, mean, network, number = {"steps": 0}, torch.zeros(3), nn.BatchNorm1d(3), 1000

    def model(x: Tensor) -> Tensor:
        return number * counts["steps"] * mean * network(x)

    def changed(change: Callable[[], object]) -> bool:
        variables = Variables(model)
        assert not variables.changed
        change()
        return variables.changed

    assert not changed(lambda: model(torch.randn(4, 3)))  # of the network's buffers training knows
    assert not changed(lambda: counts.update(steps=int("0")))
    assert changed(lambda: counts.update(steps=1))
    assert changed(lambda: mean.add_(1))
    assert changed(lambda: counts.update(others=0))
    number = 1001
    variables = Variables(model)
    number = 1002
    assert variables.changed
