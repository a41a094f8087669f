"""Discrete sites that the guide draws beside the code: exact ranks, and what each of them sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

import pyrovae as pv
from pyrovae.calibration import Calibration
from pyrovae.calibration.discrete import differences
from pyrovae.calibration.quantities import GUIDE, OWN

SHARE, ROWS = 0.3, torch.zeros(3, 1)
TOGETHER, BY_MODEL = "log q(z, k | x)", "log p(x, z, k)"


def model(x: Tensor) -> None:
    """k ~ Bernoulli(0.3), z | k ~ N(2k, 1), x | z ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(x.new_full((len(x),), SHARE)))
        z = pyro.sample("z", dist.Normal(2 * k.unsqueeze(-1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def chance(x: Tensor, share: float = SHARE) -> Tensor:
    """p(k = 1 | x), for x | k ~ N(2k, 2)."""
    first, second = (dist.Normal(2.0 * k, 2**0.5).log_prob(x[:, 0]) for k in (0, 1))
    return (second - first + torch.tensor(share).logit()).sigmoid()


def guide_of(probability: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    """A guide that is exact for z given k."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(probability(x)))
            mean = k.unsqueeze(-1) + x / 2
            pyro.sample("z", dist.Normal(mean, 0.5**0.5).to_event(1))

    return guide


exact = guide_of(chance)


def independent(x: Tensor) -> None:
    """The exact guide's marginals of k and of z."""
    p = chance(x)
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(p))
        means = torch.stack([x / 2, 1 + x / 2], 1)
        components = dist.Normal(means, 0.5**0.5).to_event(1)
        weights = dist.Categorical(torch.stack([1 - p, p], -1))
        pyro.sample("z", dist.MixtureSameFamily(weights, components))


@pytest.fixture(scope="module")
def of_the_exact_guide() -> Calibration:
    return pv.calibrate(model, exact, ROWS, simulations=2000)


def rejected(result: Calibration) -> list[str]:
    """Names of the tests that reject."""
    names = (*map(str, range(result.units)), *result.quantities)
    return [name for name, passed in zip(names, result.passed.tolist(), strict=True) if not passed]


def test_ranks_of_a_discrete_site_are_uniform_under_an_exact_guide(
    of_the_exact_guide: Calibration,
) -> None:
    result = of_the_exact_guide
    assert result.discrete == ("k",) and result.quantities == ("k", TOGETHER, BY_MODEL, *OWN)
    assert result.calibrated and not result.refused
    for column in result.pit.unbind(-1):
        assert scipy.stats.kstest(column.numpy(), "uniform").pvalue > 6e-5  # 4 standard errors
    assert result.statement.startswith("None of 1 unit, 1 discrete unit and 7 joint quantities")


def test_an_exact_guide_is_rejected_in_at_most_one_of_a_hundred_cases() -> None:
    rejections = sum(
        not pv.calibrate(model, exact, ROWS, simulations=100, seed=seed).calibrated
        for seed in range(40)
    )
    assert rejections <= 40 * 0.01 + 4 * (40 * 0.01 * 0.99) ** 0.5


def test_a_wrong_share_is_seen_at_the_discrete_site_itself() -> None:
    result = pv.calibrate(model, guide_of(lambda x: chance(x, 0.6)), ROWS, simulations=500)
    assert "k" in rejected(result) and "lower at true codes than at draws: k" in result.statement


def test_a_discrete_site_that_ignores_x_is_seen_jointly_and_its_own_ranks_are_blind() -> None:
    result = pv.calibrate(
        model, guide_of(lambda x: x.new_full((len(x),), SHARE)), ROWS, simulations=500
    )
    assert BY_MODEL in rejected(result) and "k" not in rejected(result)
    assert "No power in ranks of k:" in result.statement


def test_a_missing_dependence_of_code_and_discrete_site_is_seen_by_both_together_alone() -> None:
    result = pv.calibrate(model, independent, ROWS, simulations=1000)
    assert rejected(result) == [BY_MODEL]


def test_contraction_of_a_discrete_site_is_that_of_the_exact_posterior(
    of_the_exact_guide: Calibration,
) -> None:
    result = of_the_exact_guide
    x = torch.linspace(-9, 11, 4001).unsqueeze(-1)
    first, second = (dist.Normal(2.0 * k, 2**0.5).log_prob(x[:, 0]).exp() for k in (0, 1))
    p = chance(x)
    density = ((1 - SHARE) * first + SHARE * second) / ((1 - SHARE) * first + SHARE * second).sum()
    right = 1 - float((density * p * (1 - p)).sum()) / (SHARE * (1 - SHARE))
    _, found = result.contraction()
    assert abs(found.value - right) < 4 * found.standard_error
    table = result.table()
    assert list(table["unit"][:2]) == [0, "k"] and table["contraction"].notna().sum() == 2


def test_how_often_draws_differ_is_counted_over_pairs() -> None:
    drawn = torch.randint(0, 3, (7, 5, 2)).double()
    differ = (drawn[:, None, :, None] != drawn[None, :, None]).double()  # draws, draws, rows, rows
    within, between = differences(drawn)
    same = torch.eye(5).bool()
    assert torch.allclose(within, differ[:, :, same].sum((0, 1)) / (7 * 6))
    others = differ.mean((0, 1)).masked_fill(same.unsqueeze(-1), 0.0).sum(1) / 4
    assert torch.allclose(between, others)


def test_one_hot_vectors_are_ranked_by_their_class() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])

    def drawn(logits: Tensor) -> Tensor:
        return pyro.sample("k", dist.OneHotCategorical(logits=logits)).argmax(-1, keepdim=True)

    def by_class(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            label = drawn(weights.log().to(x))
            z = pyro.sample("z", dist.Normal(label.to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def posterior(x: Tensor) -> None:
        logits = dist.Normal(torch.arange(3.0), 2**0.5).log_prob(x) + weights.log().to(x)
        with pyro.plate("data", len(x)):
            label = drawn(logits)
            pyro.sample("z", dist.Normal((label + x) / 2, 0.5**0.5).to_event(1))

    result = pv.calibrate(by_class, posterior, ROWS, simulations=500)
    assert result.calibrated and result.discrete == ("k",)
    enumerated = pv.calibrate(by_class, config_enumerate(posterior), ROWS, simulations=500)
    assert torch.equal(enumerated.ranks, result.ranks)


@pytest.mark.parametrize("share", [0.4, 0.5])
def test_a_vector_too_long_to_sum_over_is_ranked_unit_by_unit(share: float) -> None:
    """z ~ N(Σk, 1) for nine coins k; the guide's k is exact for a share of 0.5."""

    def coins(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_full((len(x), 9), share)).to_event(1))
            z = pyro.sample("z", dist.Normal(k.sum(-1, keepdim=True), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def posterior(x: Tensor) -> None:
        heads = torch.arange(10.0).to(x)
        law = dist.Binomial(9, x.new_tensor(0.5))
        logits = law.log_prob(heads) + dist.Normal(heads, 2**0.5).log_prob(x)
        with pyro.plate("data", len(x)):
            # The first of the coins, with all others given their number, by their order.
            k = pyro.sample("k", Coins(logits))
            mean = (k.sum(-1, keepdim=True) + x) / 2
            pyro.sample("z", dist.Normal(mean, 0.5**0.5).to_event(1))

    result = pv.calibrate(coins, posterior, ROWS, simulations=500)
    assert result.discrete == tuple(f"k[{unit}]" for unit in range(9))
    assert list(result.refused) == [GUIDE]  # 512 components
    assert result.calibrated == (share == 0.5)
    if share < 0.5:
        assert {"k[0]", "k[8]"} <= {name for name in result.quantities if name[0] == "k"}


class Coins(dist.TorchDistribution):
    """Coins of which the number of heads is known up to a density, all orders alike."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.independent(dist.constraints.boolean, 1)

    def __init__(self, logits: Tensor) -> None:
        self.number = dist.Categorical(logits=logits)
        coins = logits.shape[-1] - 1
        super().__init__(logits.shape[:-1], torch.Size([coins]), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        number = self.number.sample(torch.Size(sample_shape)).unsqueeze(-1)
        order = torch.rand(*number.shape[:-1], *self.event_shape).argsort(-1).argsort(-1)
        return (order < number).to(self.number.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        heads = value.sum(-1)
        coins = float(self.event_shape[0])
        orders = torch.lgamma(torch.tensor(coins + 1)) - torch.lgamma(heads + 1)
        return self.number.log_prob(heads) - orders + torch.lgamma(coins - heads + 1)


def test_sites_that_cannot_be_drawn_with_the_code_are_named() -> None:
    def point(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Delta((chance(x) > 0.5).to(x)))
            pyro.sample("z", dist.Normal(k.unsqueeze(-1) + x / 2, 0.5**0.5).to_event(1))

    result = pv.calibrate(model, point, ROWS, simulations=100)
    assert not result.discrete and "no discrete distribution" in result.refused["k"]

    def masked(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=torch.tensor(False)):
                pyro.sample("k", dist.Bernoulli(x.new_full((len(x),), SHARE)))
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=torch.tensor(False)):
                pyro.sample("k", dist.Bernoulli(x.new_full((len(x),), SHARE)))
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    result = pv.calibrate(masked, guide, ROWS, simulations=100)
    assert result.calibrated and "a mask" in result.refused["k"]


def test_a_user_s_quantity_of_the_site_s_name_is_refused() -> None:
    with pytest.raises(pv.InputError, match="Rename"):
        pv.calibrate(model, exact, ROWS, simulations=100, quantities={"k": lambda x, z: z[:, 0]})


def test_the_picture_and_arviz_have_the_discrete_site() -> None:
    result = pv.calibrate(model, guide_of(lambda x: chance(x, 0.6)), ROWS, simulations=300)
    texts = [text.get_text() for text in pv.plots.calibration(result).figure.legends[0].texts]
    assert "1 discrete unit not calibrated" in texts
    assert {"z", "k", TOGETHER, BY_MODEL, *OWN} == set(result.to_arviz()["prior_sbc"].data_vars)
