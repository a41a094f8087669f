"""A mixture's cache never outlives the numbers that it was computed from, however they change."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pyrovae.mixture.kernel import gradients
from pyrovae.mixture.kernel.cache import Cache
from pyrovae.mixture.mixture import Mixture

N, D = 300, 2

QUESTIONS: dict[str, Callable[[Mixture, Tensor], Tensor]] = {
    "log_prob": lambda m, z: m.log_prob(z),
    "score": lambda m, z: m.score(z),
    "responsibilities": lambda m, z: m.responsibilities(z, top=3).weight,
    "effective_components": lambda m, z: m.effective_components(z),
    "leave_one_out": lambda m, z: m.leave_one_out_log_prob(z, torch.tensor(1)),
}


@pytest.fixture(params=["dense", "searched"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "searched":
        monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)
        monkeypatch.setattr(gradients, "DENSE_SCORES", 0)
    return str(request.param)


def normals(loc: Tensor, scale: Tensor) -> dist.Distribution:
    return dist.Normal(loc, scale).to_event(1)


def full_normals(loc: Tensor, scale: Tensor) -> dist.Distribution:
    return dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))


def fresh(mixture: Mixture) -> Mixture:
    """The same mixture with tensors of its own and an empty cache."""
    categorical = dist.Categorical(logits=mixture.log_weights.detach().clone())
    base = mixture.component_distribution
    if isinstance(base, dist.MultivariateNormal):
        scale = base.scale_tril.diagonal(dim1=-2, dim2=-1)
        return Mixture(categorical, full_normals(base.loc.detach().clone(), scale.detach().clone()))
    inner = base.base_dist
    return Mixture(categorical, normals(inner.loc.detach().clone(), inner.scale.detach().clone()))


def agrees(mixture: Mixture, z: Tensor) -> None:
    """Every answer is that of a fresh mixture, the first time and the second."""
    for name, ask in QUESTIONS.items():
        for _ in range(2):
            torch.testing.assert_close(ask(mixture, z), ask(fresh(mixture), z), msg=name)


def fused_step(kind: type[torch.optim.Optimizer]) -> Callable[[Tensor], None]:
    """A step of a fused optimizer on the parameter that owns the memory."""

    def write(tensor: Tensor) -> None:
        owner = nn.Parameter(tensor)
        assert owner.data_ptr() == tensor.data_ptr()
        owner.grad = torch.randn_like(tensor)
        kind([owner], lr=0.3, fused=True).step()  # type: ignore[call-arg]

    return write


def one_number(tensor: Tensor) -> None:
    tensor.data.view(-1)[-1] += 0.5


def by_array(tensor: Tensor) -> None:
    tensor.numpy()[0] += 0.5


def by_vector(tensor: Tensor) -> None:
    with torch.no_grad():
        vector_to_parameters(parameters_to_vector([tensor]) + 0.5, [tensor])


def swapped(tensor: Tensor) -> None:
    tensor.data = tensor + 0.5


WRITERS: dict[str, Callable[[Tensor], None]] = {
    "in place": lambda t: t.add_(0.5),
    "data": lambda t: t.data.add_(0.5),
    "data, one number": one_number,
    "data, replaced": swapped,
    "NumPy": by_array,
    "vector": by_vector,
    "storage": lambda t: t.untyped_storage().copy_((t + 0.5).untyped_storage()),
    "reversed": lambda t: t.data.copy_(t.flip(0)),
    "fused Adam": fused_step(torch.optim.Adam),
    "fused AdamW": fused_step(torch.optim.AdamW),
    "fused SGD": fused_step(torch.optim.SGD),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("which", ["loc", "scale"])
def test_numbers_that_change_are_seen(writer: str, which: str, path: str) -> None:
    loc, scale = torch.randn(N, D), torch.rand(N, D) + 5.0
    mixture = Mixture(dist.Categorical(logits=torch.randn(N)), normals(loc, scale))
    z = torch.randn(7, D)
    agrees(mixture, z)
    before = mixture.log_prob(z)
    tensor = loc if which == "loc" else scale
    parameter = getattr(mixture.component_distribution.base_dist, which)
    WRITERS[writer](parameter if writer == "data, replaced" else tensor)
    agrees(mixture, z)
    assert not torch.equal(mixture.log_prob(z), before)


@pytest.mark.parametrize("writer", ["data", "fused Adam", "data, one number"])
def test_full_covariances_that_change_are_seen(writer: str) -> None:
    loc = torch.randn(N, D)
    mixture = Mixture(dist.Categorical(torch.ones(N)), full_normals(loc, torch.rand(N, D) + 5.0))
    z = torch.randn(7, D)
    agrees(mixture, z)
    WRITERS[writer](loc)
    agrees(mixture, z)
    with torch.no_grad():
        mixture.component_distribution.scale_tril.data.mul_(2.0)
    agrees(mixture, z)


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_weights_that_change_are_seen(kind: str) -> None:
    categorical = dist.Categorical(**{kind: torch.rand(N)})
    mixture = Mixture(categorical, normals(torch.randn(N, D), torch.full((N, D), 0.3)))
    z = torch.randn(7, D)
    agrees(mixture, z)
    parameter = getattr(categorical, kind)
    parameter.data.copy_(parameter.flip(0))
    agrees(mixture, z)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, :D],  # the halves of what one layer returns
        lambda t: t[::2, ::2],
        lambda t: t.mT[: 2 * N].mT[:, :D],
        lambda t: t[:1, :D].expand(N, D),
        lambda t: t[:, :1].expand(-1, D),
    ],
    ids=["half", "steps", "transposed", "one row", "one column"],
)
def test_views_of_other_tensors_are_seen_to_change(view: Callable[[Tensor], Tensor]) -> None:
    base = torch.randn(N, 2 * D)
    loc = view(base)
    scale = torch.full(loc.shape, 0.3)
    mixture = Mixture(dist.Categorical(torch.ones(len(loc))), normals(loc, scale))
    z = torch.randn(7, D)
    agrees(mixture, z)
    base.data.add_(0.5)
    agrees(mixture, z)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", [normals, full_normals])
def test_parameters_that_learn_are_asked_anew(
    family: Callable[[Tensor, Tensor], dist.Distribution], fused: bool
) -> None:
    """A mixture that is built once, from the parameters of a module."""
    loc = nn.Parameter(torch.randn(N, D))
    mixture = Mixture(dist.Categorical(torch.ones(N)), family(loc, torch.full((N, D), 0.3)))
    optimizer = torch.optim.Adam([loc], lr=0.3, fused=fused)
    z = torch.randn(7, D)
    for _ in range(2):
        with torch.no_grad():
            agrees(mixture, z)
        optimizer.zero_grad()
        mixture.log_prob(z).sum().backward()
        optimizer.step()
    with torch.no_grad():
        agrees(mixture, z)


def test_a_view_made_without_gradient_follows_its_parameter() -> None:
    loc = nn.Parameter(torch.randn(N, D))
    with torch.no_grad():
        view = loc[: N // 2]
    mixture = Mixture(dist.Categorical(torch.ones(N // 2)), normals(view, 0.3 * torch.ones(D)))
    z = torch.randn(7, D)
    agrees(mixture, z)
    loc.grad = torch.randn_like(loc)
    torch.optim.Adam([loc], lr=0.3, fused=True).step()
    agrees(mixture, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_numbers_of_any_dtype_are_compared(dtype: torch.dtype) -> None:
    for shape in ((), (4,), (0, 3), (5, 3)):
        tensor, cache = torch.ones(shape).to(dtype), Cache()
        assert cache.find([tensor]) is None
        value = cache.store([tensor], object)
        assert cache.find([tensor]) is value
        if tensor.numel():
            tensor.data.view(-1)[-1] = 3
            assert cache.find([tensor]) is None


def test_what_is_kept_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with NaN, which equals nothing, and a negative zero among the numbers."""
    tensor, cache = torch.tensor([float("nan"), -0.0, 1.0]), Cache()
    value = cache.store([tensor], object)
    assert all(cache.find([tensor]) is value for _ in range(3))
    mixture = Mixture(
        dist.Categorical(torch.ones(N)), normals(torch.randn(N, D), torch.full((N, D), 0.3))
    )
    assert mixture.diagonal_normals() is mixture.diagonal_normals()
