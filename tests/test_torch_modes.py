"""Calls from several threads take turns, and modes of torch around a call change no number."""

import copy
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.randomness import seeded
from pyrovae.testing import linear_gaussian_vae
from pyrovae.torch_modes import alone, plain


def test_a_stream_of_draws_is_the_same_whoever_else_draws() -> None:
    before = torch.get_rng_state()

    def draw(_: int) -> bool:
        with seeded(3, "draws"):
            return torch.equal(torch.cat([torch.randn(500) for _ in range(4)]), expected)

    with seeded(3, "draws"):
        expected = torch.cat([torch.randn(500) for _ in range(4)])
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(draw, range(32)))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_thread_waits_and_the_same_one_comes_in_again() -> None:
    entered = threading.Event()

    def enter() -> None:
        with alone():
            entered.set()

    other = threading.Thread(target=enter)
    with alone(), alone():
        other.start()
        assert not entered.wait(0.05)
    other.join(10)
    assert entered.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with alone():
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    child = os.fork()
    if not child:
        with alone():
            os._exit(7)
    _, status = os.waitpid(child, 0)
    done.set()
    other.join()
    assert os.waitstatus_to_exitcode(status) == 7


def test_gradients_can_be_asked_for_inside_of_inference_mode() -> None:
    with torch.inference_mode(), plain():
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        assert not torch.ones(2).is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16), plain():
        product = torch.ones(2, 2, dtype=torch.float32) @ torch.ones(2, 2, dtype=torch.float32)
        assert product.dtype == torch.float32


# -- what is measured does not depend on the modes around it ---------------------------------------

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def networks() -> pv.VAE:
    torch.manual_seed(1)
    return pv.VAE(
        pv.mlp_encoder((6,), 2, hidden=(8,)),
        pv.mlp_decoder(2, (6,), "normal", hidden=(8,)),
        pv.StandardNormal(2),
    )


def rows() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(2))


def ex_post(vae: pv.VAE, x: Tensor) -> Tensor:
    found = pv.fit_ex_post_prior(
        pv.aggregate(vae.guide, x[:30]),
        held_out=pv.encode(vae.guide, x[30:]),
        candidates=[pv.Inflated(0.2), pv.Flow(steps=3)],
        progress=False,
    )
    return torch.tensor([candidate.held_out.value for candidate in found.table])


NUMBERS: dict[str, Callable[[pv.VAE, Tensor], Tensor]] = {
    "encode": lambda vae, x: pv.encode(vae.guide, x).mean,
    "aggregate": lambda vae, x: pv.aggregate(vae.guide, x).log_prob(x[:, :2]),
    "cdf": lambda vae, x: pv.aggregate(vae.guide, x).marginal(0).cdf(x[:, 0]),
    "score": lambda vae, x: pv.aggregate(vae.guide, x).score(x[:, :2]),
    "importance": lambda vae, x: pv.log_evidence(vae.model, vae.guide, x, draws=10).values,
    "annealed": lambda vae, x: (
        pv.log_evidence(
            vae.model, vae.guide, x[:2], method=pv.Annealing(temperatures=4), draws=2
        ).values
    ),
    "ex-post prior": ex_post,
    "fit": lambda vae, x: torch.as_tensor(
        pv.fit(vae.model, vae.guide, x, epochs=2, progress=False).history.train
    ),
}


@pytest.mark.float32
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_the_same_in_every_mode(number: str, mode: str) -> None:
    expected = NUMBERS[number](networks(), rows())
    vae = networks()
    with MODES[mode]():
        found = NUMBERS[number](vae, rows())
    assert found.dtype == expected.dtype
    assert torch.equal(torch.as_tensor(found), expected)


@pytest.mark.float32
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_networks_made_in_inference_mode_are_refused_and_copies_are_not() -> None:
    with torch.inference_mode():
        vae = networks()
    for door in ("encode", "importance", "fit"):
        with pytest.raises(ValueError, match=r"made outside of torch\.inference_mode"):
            NUMBERS[door](vae, rows())
        assert torch.equal(
            NUMBERS[door](copy.deepcopy(vae), rows()), NUMBERS[door](networks(), rows())
        )


def test_an_aggregated_posterior_from_inference_mode_has_gradients() -> None:
    exact = linear_gaussian_vae()
    with torch.inference_mode():
        agg = pv.aggregate(exact.vae().guide, exact.sample(20))
    z = torch.zeros(3, 2, requires_grad=True)
    agg.log_prob(z).sum().backward()
    assert z.grad is not None and torch.allclose(z.grad, agg.score(z.detach()))
    assert isinstance(agg.encoding, dist.Distribution)
