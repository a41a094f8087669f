"""A pair of lists and dicts gives the same numbers as the pair of their tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import pyrovae as pv
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae(4, 2)
X = EXACT.sample(30)
SHIFT = torch.arange(30.0).unsqueeze(-1)


class Batch(NamedTuple):
    x: Tensor
    shift: Tensor


def pair(read: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """The exact pair of x + shift, whose arguments are taken apart by ``read``."""

    def model(*arguments: Any) -> None:
        x, shift = read(*arguments)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ EXACT.weight.T + EXACT.bias + shift
            pyro.sample("x", dist.Normal(mean, EXACT.noise).to_event(1), obs=x)

    def guide(*arguments: Any) -> None:
        x, shift = read(*arguments)
        with pyro.plate("data", len(x)):
            pyro.sample("z", EXACT.posterior(x - shift))

    return model, guide


FORMS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Any]]] = {
    "dict": (lambda b: (b["x"], b["s"]), lambda x, s: {"s": s, "x": x}),
    "list": (lambda b: (b[0], b[1]), lambda x, s: [x, s]),
    "list of columns": (lambda b, s: (torch.stack(b, -1), s), lambda x, s: (list(x.unbind(1)), s)),
    "dict beside a tensor": (lambda x, b: (x, b["s"]), lambda x, s: (x, {"s": s})),
    "nested": (lambda b: (b["x"][0], b["x"][1]["s"]), lambda x, s: {"x": [x, {"s": s}]}),
    "constants": (
        lambda x, by, s, none: (x, s * by) if none is None else (s, x),
        lambda x, s: (x, 0.5, 2 * s, None),
    ),
    "arrays": (lambda b: (b["x"], b["s"]), lambda x, s: {"x": x.numpy(), "s": s.numpy()}),
    "named tuple in a list": (lambda b: (b[0].x, b[0].shift), lambda x, s: [Batch(x, s)]),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_numbers_of_its_tensors(name: str) -> None:
    read, lay = FORMS[name]
    model, guide, rows = pv.with_arguments(*pair(read), lay(X + SHIFT, SHIFT))
    data = rows(lay(X + SHIFT, SHIFT))
    assert isinstance(data, tuple)
    encoding = pv.encode(guide, data, batch_size=7)
    assert torch.allclose(encoding.mean, EXACT.posterior(X).mean, atol=1e-9)
    evidence = pv.log_evidence(model, guide, rows(lay(X[:9] + SHIFT[:9], SHIFT[:9])), draws=3)
    assert torch.allclose(evidence.values, EXACT.log_prob(X[:9]), atol=1e-9)


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return {"s": float(SHIFT[index]), "x": X[index] + SHIFT[index]}


def test_a_dataset_of_dicts() -> None:
    model, guide, rows = pv.with_arguments(
        *pair(lambda b: (b["x"], b["s"].unsqueeze(-1))), {"x": X, "s": SHIFT[:, 0]}
    )
    evidence = pv.log_evidence(model, guide, rows(Items()), draws=3)
    assert torch.allclose(evidence.values, EXACT.log_prob(X), atol=1e-9)


def test_modules_behind_the_wrapper_are_found_and_fitted() -> None:
    vae = pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2)).double()
    model, guide, rows = pv.with_arguments(
        lambda b: vae.model(b["x"]), lambda b: vae.guide(b["x"]), {"x": X}
    )
    before = [p.clone() for p in vae.parameters()]
    pv.fit(model, guide, rows({"x": (X > 0).double()}), epochs=1, progress=False)
    assert all(not torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X}, r"a dict of \['x', 's'\] in the data.*got a dict of \['x'\]"),
        ([X, SHIFT], r"a dict of \['x', 's'\].*got a list of 2 parts"),
        ({"x": X, "s": None}, r"a tensor or an array in the data\['s'\].*got NoneType"),
        (DataLoader(Items()), r"got DataLoader.*in place of a DataLoader its dataset"),
    ],
)
def test_data_of_another_form(data: Any, message: str) -> None:
    _, _, rows = pv.with_arguments(*pair(FORMS["dict"][0]), {"x": X, "s": SHIFT})
    with pytest.raises(pv.InputError, match=message):
        rows(data)


def test_other_constants_and_no_tensors() -> None:
    _, _, rows = pv.with_arguments(*pair(FORMS["constants"][0]), (X, 0.5, SHIFT, None))
    for data in ((X, 0.4, SHIFT, None), (X, X, SHIFT, None)):
        with pytest.raises(pv.InputError, match=r"the constant 0.5 in the data\[1\]"):
            rows(data)
    with pytest.raises(pv.InputError, match="expected tensors or arrays among the arguments"):
        pv.with_arguments(*pair(FORMS["constants"][0]), {"x": None})
