"""Derivatives by ``torch.func`` and in forward mode: those of brute force, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from pyrovae.mixture.kernel import gradients
from pyrovae.mixture.mixture import Mixture

# torch's own warning, on the first use of torch.func.jvp
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

N, D, B = 40, 3, 6
Density = Callable[..., Tensor]

FAMILIES: dict[str, Callable[[], dist.Distribution]] = {
    "normal": lambda: dist.Normal(torch.randn(N, D), torch.rand(N, D) + 0.1).to_event(1),
    "laplace": lambda: dist.Laplace(torch.randn(N, D), torch.rand(N, D) + 0.1).to_event(1),
    "full": lambda: dist.MultivariateNormal(torch.randn(N, D), 0.1 * torch.eye(D)),
    "log normal": lambda: dist.LogNormal(torch.randn(N, D), 1.0).to_event(1),
}


@pytest.fixture(params=["differences", "expanded", "searched", "in blocks"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "differences":
        monkeypatch.setattr(gradients, "FEW_TRIPLES", 0)
    if request.param in ("searched", "in blocks"):
        monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)
        monkeypatch.setattr(gradients, "BLOCK", 16)
        monkeypatch.setattr(gradients, "DENSE_TRIPLES", 16 * D * 2)
        monkeypatch.setattr("pyrovae.mixture.kernel.any_family.BLOCK_BYTES", 3000)
    return str(request.param)


def pair(family: str) -> tuple[Density, Density]:
    """The log density of a mixture, and of torch's own, which torch.func can differentiate."""
    categorical, components = dist.Categorical(logits=torch.randn(N)), FAMILIES[family]()
    reference = torch.distributions.MixtureSameFamily(categorical, components, validate_args=False)
    part: dist.Distribution | None = components
    while part is not None:
        part._validate_args = False
        part = getattr(part, "base_dist", None)
    return Mixture(categorical, components).log_prob, reference.log_prob


@pytest.mark.parametrize("family", FAMILIES)
def test_first_derivatives_of_every_mode(family: str, path: str) -> None:
    actual, expected = pair(family)
    z, direction = torch.rand(B, D), torch.randn(B, D)
    torch.testing.assert_close(vmap(actual)(z), expected(z))
    torch.testing.assert_close(vmap(vmap(actual))(z.view(2, 3, D)), expected(z).view(2, 3))
    for by in (
        lambda f: vmap(grad(f))(z),
        lambda f: jacrev(lambda z: f(z).sum())(z),
        lambda f: jacfwd(lambda z: f(z).sum())(z),
        lambda f: jvp(f, (z,), (direction,))[1],
        lambda f: jvp(vmap(f), (z,), (direction,))[1],
    ):
        torch.testing.assert_close(by(actual), by(expected))
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(actual(forward_ad.make_dual(z, direction))).tangent
    torch.testing.assert_close(moved, jvp(expected, (z,), (direction,))[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_second_derivatives_are_right_or_refused(family: str, path: str) -> None:
    actual, expected = pair(family)
    z = torch.rand(D)
    for by in (
        hessian,
        lambda f: jacrev(jacfwd(f)),
        lambda f: jacrev(jacrev(f)),
        lambda f: jacfwd(jacfwd(f)),
        lambda f: lambda z: vmap(hessian(f))(z.expand(2, D))[0],
    ):
        if family == "normal" and path in ("searched", "in blocks"):
            with pytest.raises(RuntimeError, match="got a request for a second one"):
                by(actual)(z)
        else:
            torch.testing.assert_close(by(actual)(z), by(expected)(z))


def density(kind: Any, z: Tensor) -> Density:
    def log_prob(loc: Tensor, log_scale: Tensor, logits: Tensor) -> Tensor:
        components = torch.distributions.Normal(loc, log_scale.exp(), validate_args=False)
        log_density: Tensor = kind(
            torch.distributions.Categorical(logits=logits, validate_args=False),
            torch.distributions.Independent(components, 1),
            validate_args=False,
        ).log_prob(z)
        return log_density

    return log_prob


@pytest.mark.parametrize("zero", [False, True], ids=["", "a weight of zero"])
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_derivatives_in_the_parameters(path: str, argument: int, zero: bool) -> None:
    z, inputs = torch.randn(B, D), [torch.randn(N, D), torch.randn(N, D) - 1, torch.randn(N)]
    if zero:
        inputs[2][5] = -float("inf")
    directions = tuple(torch.randn_like(t) for t in inputs)
    actual, expected = density(Mixture, z), density(torch.distributions.MixtureSameFamily, z)
    for by in (
        lambda f: jvp(f, tuple(inputs), directions)[1],
        lambda f: jacfwd(f, argument)(*inputs),
        lambda f: jacrev(f, argument)(*inputs),
    ):
        torch.testing.assert_close(by(actual), by(expected))
    dual = list(inputs)
    with forward_ad.dual_level():
        dual[argument] = forward_ad.make_dual(inputs[argument], directions[argument])
        moved = forward_ad.unpack_dual(actual(*dual)).tangent
    only = tuple(t if i == argument else 0 * t.nan_to_num() for i, t in enumerate(directions))
    torch.testing.assert_close(moved, jvp(expected, tuple(inputs), only)[1])


def test_many_mixtures_at_once(path: str) -> None:
    z, inputs = torch.randn(B, D), [torch.randn(2, N, D), torch.randn(2, N, D), torch.randn(2, N)]
    actual, expected = density(Mixture, z), density(torch.distributions.MixtureSameFamily, z)
    if path in ("differences", "expanded"):
        torch.testing.assert_close(vmap(actual)(*inputs), vmap(expected)(*inputs))
        return
    with pytest.raises(ValueError, match=r"got one over the parameters.*one by one"):
        vmap(actual)(*inputs)
    one_by_one = torch.stack([actual(*(t[i] for t in inputs)) for i in range(2)])
    torch.testing.assert_close(one_by_one, vmap(expected)(*inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_points_are_looked_at_inside_of_vmap(family: str) -> None:
    log_prob, _ = pair(family)
    z = torch.rand(B, D)
    z[2, 1] = float("nan")
    with pytest.raises(ValueError, match="without NaN"):
        vmap(log_prob)(z)


def test_what_is_kept_serves_torch_func_and_is_not_spoiled_by_it(path: str) -> None:
    actual, expected = pair("normal")
    z = torch.rand(B, D)
    for _ in range(2):
        torch.testing.assert_close(vmap(grad(actual))(z), vmap(grad(expected))(z))
        torch.testing.assert_close(actual(z), expected(z))
