"""A replay gives the bits of the function that was recorded, whatever its inputs are by then."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrovae.training.replay import NotRepeatable, record

ROWS, WIDTH = 9, 6


def network(weight: Tensor, x: Tensor) -> list[Tensor]:
    """A result is read long after the memory of others before it is free again."""
    hidden = [functional.silu(x @ weight), torch.tanh(x @ weight)]
    for _ in range(4):
        hidden.append(functional.softplus((hidden[-1] - hidden[-2]) @ weight) / 3)
    return [torch.cat(hidden, 1).sum(0), hidden[0].exp().neg() * 2.0, hidden[0] + hidden[-1]]


def written_in_place(weight: Tensor, x: Tensor) -> list[Tensor]:
    total = torch.zeros(ROWS, WIDTH)
    total[:, 2:] += (x * x)[:, 2:]
    view = total.t()[1]
    view.fill_(3.0)
    later = total * 2
    total.mul_(view.sum())
    return [later, total, (x + 1).mul_(weight[0]).clamp_(min=0)]


def drawn(weight: Tensor, x: Tensor) -> list[Tensor]:
    noise = torch.empty_like(x).normal_() + torch.randn(WIDTH)
    kept = functional.dropout(noise * x, 0.4)
    torch.rand(3)  # nobody reads these, and the next draws come after them
    return [kept, x[torch.randperm(len(x))[:4]], torch.bernoulli(torch.full((5,), 0.3))]


def gradients(weight: Tensor, x: Tensor) -> list[Tensor]:
    loss = (nn.functional.layer_norm(x @ weight, (WIDTH,)) * weight[0]).logsumexp(1).sum()
    return [loss, *torch.autograd.grad(loss, [weight])]


def shared_arguments(weight: Tensor, x: Tensor) -> list[Tensor]:
    one = x * 2
    two = one * one + one
    row = two[0]
    three = two - two.mean()
    return [three, row * three, torch.stack([row, three[1]]).t() + 1]


def constants(weight: Tensor, x: Tensor) -> list[Tensor]:
    scale = torch.ones(ROWS, WIDTH).neg().div(7) * torch.tensor(3.0)
    steps = torch.arange(WIDTH).to(x) / WIDTH
    return [x * scale, x + steps, x * -torch.zeros(WIDTH), (x * 0 + math.inf) * scale]


def split(weight: Tensor, x: Tensor) -> list[Tensor]:
    left, right = (x @ weight).chunk(2, -1)
    values, places = x.max(1)
    return [left * right, values + 1, places + 1, torch.where(x > 0, x, weight[:1])]


def binary(weight: Tensor, x: Tensor) -> list[Tensor]:
    logits, bits = x @ weight, (x > 0).to(x)
    cross_entropy = functional.binary_cross_entropy_with_logits
    each = cross_entropy(logits, bits, reduction="none")
    weighted = cross_entropy(logits, bits, bits[:1] + 1)
    loss = each.sum() + weighted * cross_entropy(logits, bits, pos_weight=bits[0] + 1)
    return [each, loss, 1 - logits, *torch.autograd.grad(loss, [weight])]


@pytest.mark.parametrize(
    "run",
    [network, written_in_place, drawn, gradients, shared_arguments, constants, split, binary],
    ids=lambda run: run.__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_for_other_numbers(run: Any, dtype: torch.dtype) -> None:
    weight = torch.randn(WIDTH, WIDTH, dtype=dtype, requires_grad=True)
    replay = record(run, [weight], [torch.randn(ROWS, WIDTH, dtype=dtype)])
    for _ in range(3):
        with torch.no_grad():
            weight.normal_()
        x = torch.randn(ROWS, WIDTH, dtype=dtype)
        draws = torch.get_rng_state()
        expected, after = run(weight, x), torch.get_rng_state()
        torch.set_rng_state(draws)
        with torch.no_grad():
            results = replay([x])
        for result, right in zip(results, expected, strict=True):
            assert torch.equal(result.signbit(), right.signbit())
            assert torch.equal(result, right)
            assert result.stride() == right.stride()
        assert torch.equal(torch.get_rng_state(), after)


def test_a_result_that_is_written_over_is_the_same_the_next_time() -> None:
    """As gradients that no number changes are, where they are clipped."""

    def run(x: Tensor) -> list[Tensor]:
        return [x.new_ones(3) * 2, torch.ones(3), -torch.ones_like(x)]

    replay = record(run, [], [torch.zeros(3)])
    for _ in range(2):
        for result, right in zip(replay([torch.ones(3)]), (2.0, 1.0, -1.0), strict=True):
            assert result.tolist() == 3 * [right]
            result.mul_(0.5)


def test_a_tensor_that_it_finds_elsewhere_is_followed() -> None:
    found = torch.zeros(3)
    replay = record(lambda x: [x + found.add_(1)], [], [torch.zeros(3)])
    found.fill_(5.0)
    assert replay([torch.ones(3)])[0].tolist() == [7.0, 7.0, 7.0]
    assert found.tolist() == [6.0, 6.0, 6.0]


@pytest.mark.parametrize(
    "run",
    [
        lambda x: [x[x > 0]],
        lambda x: [x * x.sum().item()],
        lambda x: [x if bool(x.any()) else -x],
        lambda x: [x.unique()],
        lambda x: [x + torch.rand(3, generator=torch.Generator())],
    ],
)
def test_what_differs_the_next_time_is_refused(run: Any) -> None:
    with pytest.raises(NotRepeatable):
        record(run, [], [torch.ones(3)])


def test_results_share_memory() -> None:
    """Thirty results of one size need no thirty times their memory."""

    def run(x: Tensor) -> list[Tensor]:
        for _ in range(30):
            x = (x @ x).tanh()
        return [x]

    replay = record(run, [], [torch.eye(4)])
    blocks = {
        operation.keywords["out"].untyped_storage().data_ptr()  # type: ignore[attr-defined]
        for operation in replay.operations
        if hasattr(operation, "keywords")
    }
    assert 1 <= len(blocks) <= 2
