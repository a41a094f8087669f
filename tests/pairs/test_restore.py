"""A measure leaves no trace: in modes, in guides with state, in other threads."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import easy_guide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pairs.position_parameters import by_place
from pyrovae.pairs.restore import AsFound, measuring
from pyrovae.pairs.trace_reader import Reader

ROWS = 20
X = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ torch.ones(2, 3), 1.0).to_event(1), obs=x)


# -- modes and threads -----------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, raw = self.network(x).chunk(2, -1)
        return dist.Normal(loc, raw.exp()).to_event(1)


def noisy() -> pv.VAE:
    torch.manual_seed(0)
    decoder = pv.mlp_decoder(2, (3,), "normal", hidden=(8,))
    return pv.VAE(Noisy(), decoder, pv.StandardNormal(2))


def modes(module: nn.Module) -> list[bool]:
    return [m.training for m in module.modules()]


def trained(vae: pv.VAE) -> Tensor:
    return torch.as_tensor(pv.fit(vae.model, vae.guide, X, epochs=2, progress=False).history.train)


THREADED: dict[str, Callable[[pv.VAE], Tensor]] = {
    "encode": lambda vae: pv.encode(vae.guide, X, batch_size=2).mean,
    "log_evidence": lambda vae: pv.log_evidence(vae.model, vae.guide, X, draws=5).values,
    "ex-post prior": lambda vae: pv.fit_ex_post_prior(
        pv.aggregate(vae.guide, X),
        held_out=pv.encode(vae.guide, X),
        candidates=[pv.Reduced(3), pv.Inflated(0.1)],
        progress=False,
    ).distribution.log_prob(torch.zeros(2)),
    "fit": lambda vae: trained(copy.deepcopy(vae)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("door", THREADED)
def test_calls_from_eight_threads_are_those_of_one(door: str) -> None:
    vae = noisy()
    vae.decoder.eval()
    before, state = modes(vae), torch.get_rng_state()
    pyro.clear_param_store()
    expected = THREADED[door](vae)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: THREADED[door](vae), range(8)))
    assert all(torch.equal(result, expected) for result in results)
    assert modes(vae) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_modules_of_other_threads_keep_their_mode() -> None:
    other, seen = nn.Dropout(0.5), []
    vae = noisy()

    def run() -> None:
        other(torch.ones(3))
        seen.append(other.training)

    with measuring(vae.model, vae.guide):
        assert not any(modes(vae))
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert seen == [True] and all(modes(vae))


@pytest.mark.filterwarnings("ignore:(.|\\n)*k̂:UserWarning")
def test_no_hook_is_set_and_nothing_written_where_all_is_in_evaluation_mode() -> None:
    class Counted(nn.Module):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "training" and "_modules" in vars(self):
                written.append(value)
            super().__setattr__(name, value)

        def forward(self, x: Tensor) -> dist.Distribution:
            hooks.extend(nn.modules.module._global_forward_pre_hooks)
            return dist.Normal(x[:, :2], 1.0).to_event(1)

    hooks: list[object] = []
    written: list[object] = []
    vae = pv.VAE(Counted(), pv.mlp_decoder(2, (3,), "normal"), pv.StandardNormal(2)).eval()
    written.clear()
    pv.aggregate(vae.guide, X)
    pv.log_evidence(vae.model, vae.guide, X, draws=2)
    assert not hooks and not written


@pytest.mark.skipif(
    torch.__version__.startswith("2.4"), reason="it can't compile what Pyro validates, by itself"
)
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_encoder_gives_the_same_numbers_at_every_door() -> None:
    plain, compiled = noisy(), noisy()
    compiled.encoder = torch.compile(compiled.encoder, backend="eager")
    for door in ("encode", "log_evidence"):
        assert torch.allclose(THREADED[door](compiled), THREADED[door](plain), rtol=1e-12)
    runs = [pv.fit(vae.model, vae.guide, X, epochs=2, progress=False) for vae in (plain, compiled)]
    assert runs[0].train == pytest.approx(runs[1].train, rel=1e-9)
    assert all(modes(compiled))


def test_an_error_of_the_pair_keeps_its_traceback_and_leaves_the_modes() -> None:
    class Broken(Noisy):
        def forward(self, x: Tensor) -> dist.Distribution:
            raise KeyError("my own")

    vae = noisy()
    vae.encoder = Broken()
    for door in ("encode", "log_evidence"):
        with pytest.raises(KeyError, match="my own") as caught:
            THREADED[door](vae)
        assert caught.traceback[-1].name == "forward"
    assert all(modes(vae))


# -- guides with state of their own ----------------------------------------------------------------

AUTOGUIDES = [
    AutoNormal, AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal,
    AutoLowRankMultivariateNormal, AutoIAFNormal,
]  # fmt: skip


def listed(model: Any) -> AutoGuideList:
    guides = AutoGuideList(model)
    guides.append(AutoNormal(model))
    return guides


def by_row(self: Any, x: Tensor) -> None:
    group = self.group(match="z")
    with self.plate("data", len(x)):
        loc = pyro.param("loc", lambda: torch.zeros((ROWS, *group.event_shape)))
        group.sample("zs", dist.Normal(loc, 1.0).to_event(1))


def estimated(self: Any, x: Tensor) -> None:
    with self.plate("data", len(x)):
        self.map_estimate("z")


def amortised(self: Any, x: Tensor) -> None:
    group = self.group(match="z")
    with self.plate("data", len(x)):
        matrix = pyro.param("matrix", lambda: torch.ones(3, 2))
        group.sample("zs", dist.Normal(x @ matrix, 1.0).to_event(1))


class Holder(nn.Module):
    pass


class Lazy:
    """A guide that makes its network when it is first called."""

    def __init__(self) -> None:
        self.holder = Holder()

    def __call__(self, x: Tensor) -> None:
        if not hasattr(self.holder, "network"):
            self.holder.network = nn.Linear(x.shape[1], 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.holder.network(x), 1.0).to_event(1))


def statement(x: Tensor) -> None:
    """Parameters for each row, for the number of rows in the first call."""
    loc = pyro.param("loc", lambda: torch.zeros(len(x), 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


GUIDES: dict[str, Callable[[], Any]] = {
    **{kind.__name__: lambda kind=kind: kind(model) for kind in AUTOGUIDES},
    "AutoGuideList": lambda: listed(model),
    "EasyGuide by row": lambda: easy_guide(model)(by_row),
    "EasyGuide of estimates": lambda: easy_guide(model)(estimated),
    "EasyGuide, amortised": lambda: easy_guide(model)(amortised),
    "lazy network": Lazy,
    "pyro.param": lambda: statement,
}
DOORS: dict[str, Callable[[Any], object]] = {
    "encode": lambda guide: pv.encode(guide, X),
    "in batches": lambda guide: pv.encode(guide, X, batch_size=5),
    "log_evidence": lambda guide: pv.log_evidence(model, guide, X, draws=5),
    "diagnose": lambda guide: pv.diagnose(model, guide, X[:15], held_out=X[15:], progress=False),
    "fit in minibatches": lambda guide: pv.fit(model, guide, X[:10], batch_size=20, device="no"),
    "calibrate": lambda guide: pv.calibrate(model, guide, X[:6], simulations=100),
}


def description(guide: Any) -> object:
    """The state of a guide and of the parameter store, by identity."""
    roots = [m for m in (guide, getattr(guide, "holder", None)) if isinstance(m, nn.Module)]
    return (
        [
            (name, sorted(vars(module)), list(module._parameters), list(module._modules))
            for root in roots
            for name, module in root.named_modules()
        ],
        dict(pyro.get_param_store().named_parameters()),
        getattr(guide, "prototype_trace", None),
        dict(getattr(guide, "plates", {})),
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_that_has_not_run_is_as_it_was(name: str, door: str) -> None:
    if name == "EasyGuide, amortised" and door in ("diagnose", "calibrate"):
        pytest.skip("takes its time, as it goes through")
    guide = GUIDES[name]()
    before = description(guide)
    with suppress(pv.InputError, RuntimeError):  # a refusal must leave no trace either
        DOORS[door](guide)
    assert description(guide) == before
    loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X)
    assert loss > 0


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_that_has_run_goes_on(name: str) -> None:
    guide = GUIDES[name]()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(X)
    values = {n: p.clone() for n, p in pyro.get_param_store().named_parameters()}
    for door in ("encode", "in batches", "log_evidence"):
        with suppress(pv.InputError):
            DOORS[door](guide)
        now = dict(pyro.get_param_store().named_parameters())
        assert now.keys() == values.keys()
        assert all(torch.equal(now[name], value) for name, value in values.items())
    svi.step(X)


@pytest.mark.filterwarnings("ignore:(.|\\n)*k̂:UserWarning")
def test_an_unrun_autoguide_is_set_up_with_the_user_s_rows() -> None:
    pyro.set_rng_seed(0)
    guide = AutoNormal(model)
    assert pv.encode(guide, X).batch_shape == (ROWS,)
    assert pv.log_evidence(model, guide, X, draws=5).values.shape == (ROWS,)


def test_attributes_and_containers_are_put_back() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.last = [1], {"a": 1}

    module = Keeping()
    seen, last = module.seen, module.last
    before = AsFound([module])
    module.seen.append(2)
    module.last["b"] = 3
    module.new, module.training = object(), False
    module.seen = [9]
    assert before.changed
    before.put_back()
    assert module.seen is seen and module.last is last and not hasattr(module, "new")
    assert (seen, last, module.training) == ([1], {"a": 1}, False)
    assert not before.changed


# -- parameters of a place and of a row ------------------------------------------------------------


def places(guide: Any, model: Any = model, x: Tensor = X) -> list[tuple[int, ...]]:
    with measuring(model, guide):
        parameters = by_place(Reader(model, "model"), Reader(guide, "guide"), (x,))
    return [tuple(parameter.shape) for parameter in parameters]


BY_PLACE = [name for name in GUIDES if name not in ("EasyGuide, amortised", "lazy network")]


@pytest.mark.parametrize("name", BY_PLACE)
def test_parameters_by_row_are_found(name: str) -> None:
    guide = GUIDES[name]()
    assert places(guide)
    guide(X)
    assert places(guide)


def windowed(x: Tensor) -> None:
    """Takes any number of rows, and gives them the parameters of the first places."""
    loc = pyro.param("loc", torch.zeros(100, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc[: len(x)], 1.0).to_event(1))


def at_random(x: Tensor) -> None:
    """The plate chooses rows of the parameters at random, whatever the rows of x are."""
    loc = pyro.param("loc", torch.zeros(100, 2))
    with pyro.plate("data", 100, subsample_size=len(x)) as index:
        pyro.sample("z", dist.Normal(loc[index], 1.0).to_event(1))


@pytest.mark.parametrize("guide", [windowed, at_random], ids=lambda guide: guide.__name__)
def test_parameters_by_place_in_any_number_of_rows_are_found(guide: Any) -> None:
    assert places(guide) == [(100, 2)]
    with pytest.raises(pv.InputError, match="for each place in a batch"):
        pv.encode(guide, X, batch_size=5)


def test_parameters_by_row_of_a_model_are_found() -> None:
    def shifted(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(ROWS, 3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ torch.ones(2, 3) + shift
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    assert places(guide, shifted) == [(ROWS, 3)]


def looked_up(x: Tensor) -> None:
    """Parameters for each row, looked up by the row's number, which is part of the data."""
    table = pyro.param("table", torch.zeros(ROWS, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(table[x[:, 0].long()], 1.0).to_event(1))


def by_label(x: Tensor) -> None:
    """Parameters for each label; the label is drawn."""
    table = pyro.param("table", torch.zeros(3, 2))
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.Categorical(torch.ones(3)))
        pyro.sample("z", dist.Normal(table[label], 1.0).to_event(1))


def of_fixed_size(x: Tensor) -> None:
    matrix = pyro.param("matrix", torch.ones(3, 2))
    with pyro.plate("data", 1000, subsample_size=ROWS):
        pyro.sample("z", dist.Normal(x @ matrix, 1.0).to_event(1))


def of_as_many_units_as_rows(x: Tensor) -> None:
    inward = pyro.param("inward", torch.randn(3, ROWS))
    outward = pyro.param("outward", torch.randn(ROWS, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x @ inward).relu() @ outward, 1.0).to_event(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: looked_up,
        lambda: by_label,
        lambda: of_fixed_size,
        lambda: of_as_many_units_as_rows,
        lambda: noisy().guide,
        lambda: easy_guide(model)(amortised),
        Lazy,
    ],
    ids=["looked up", "by label", "fixed size", "units", "vae", "easy", "lazy"],
)
def test_parameters_that_go_with_the_row_are_not_taken_for_those_of_a_place(make: Any) -> None:
    guide = make()
    x = torch.cat([torch.arange(ROWS).double().unsqueeze(1), X[:, 1:]], 1)
    torch.manual_seed(5)
    assert [places(guide, x=x) for _ in range(3)] == [[]] * 3
