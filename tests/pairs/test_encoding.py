"""Encodings are copies with finite numbers; a row without them is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv

X = torch.rand(50, 3)


def of_parameter(site: Callable[[Tensor], dist.Distribution]) -> Callable[[Tensor], None]:
    """A guide with parameters for each row."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(len(X), 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", site(loc))

    return guide


SITES: dict[str, Callable[[Tensor], dist.Distribution]] = {
    "normal": lambda loc: dist.Normal(loc, 0.3).to_event(1),
    "full": lambda loc: dist.MultivariateNormal(loc, torch.eye(2)),
    "laplace": lambda loc: dist.Laplace(loc, 0.3).to_event(1),
    "log normal": lambda loc: dist.LogNormal(loc, 0.3).to_event(1),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_encodings_stay_as_they_were_when_training_goes_on(site: str, fused: bool) -> None:
    guide = of_parameter(SITES[site])
    pyro.param("loc", torch.zeros(len(X), 2))
    encoding = pv.encode(guide, X, batch_size=50)
    agg = pv.aggregate(guide, X, batch_size=50)
    z = torch.rand(4, 2)
    before = [agg.log_prob(z).clone(), encoding.log_prob(z[0]).clone(), agg.mean.clone()]
    loc = pyro.get_param_store()._params["loc"]
    loc.grad = torch.randn_like(loc)
    torch.optim.Adam([loc], lr=0.5, fused=fused).step()
    loc.data.add_(1.0)
    after = [agg.log_prob(z), encoding.log_prob(z[0]), agg.mean]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not torch.allclose(pv.aggregate(guide, X, batch_size=50).log_prob(z), before[0])


def test_encodings_do_not_share_the_data() -> None:
    """A guide that returns a view of its argument."""
    x = X.clone()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    encoding = pv.encode(guide, x)
    before = encoding.mean.clone()
    x.zero_()
    assert torch.equal(encoding.mean, before)


def spoiled(row: int, bad: float) -> Callable[[Tensor], None]:
    """A guide whose mean is ``bad`` for a row whose first entry is −1."""

    def guide(x: Tensor) -> None:
        loc = torch.where(x[:, :1] == -1, bad, x[:, :2])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return guide


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("row", [0, 7, 16, 49])
@pytest.mark.parametrize("batch_size", [1, 16, 50])
def test_a_row_that_is_encoded_as_no_number_is_named(
    row: int, batch_size: int, checked: bool
) -> None:
    x = X.clone()
    x[row, 0] = -1
    guide = spoiled(row, math.nan)
    for ask in (pv.encode, pv.aggregate):
        with (
            pyro.validation_enabled(checked),
            pytest.raises(ValueError, match=rf"for row {row} of the data"),
        ):
            ask(guide, x, batch_size=batch_size)
    rest = torch.cat([x[:row], x[row + 1 :]])  # the remedy in the message
    assert pv.encode(guide, rest, batch_size=batch_size).mean.isfinite().all()


def test_an_infinite_location_is_named_too() -> None:
    x = X.clone()
    x[3, 0] = -1
    with pytest.raises(ValueError, match="for row 3 of the data"):
        pv.encode(spoiled(3, math.inf), x)


def test_errors_of_the_guide_itself_stay_its_own() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> None:
            raise ValueError("these are no counts")

    with pytest.raises(ValueError, match=r"^these are no counts"):
        pv.encode(Refusing(), X)
