"""What rows gain by having been trained on, where it is known in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.populations.refits import moderated
from pyrovae.populations.screen import MemorisationScreen
from pyrovae.testing import linear_gaussian_vae

WIDTH = 0.5
IMPORTANCE = {"method": "importance", "draws": 2}


class KernelDensity:
    """p(x) = 1/n Σ_m N(x; x_m, WIDTH² I) over the rows that it was trained on; z says nothing."""

    def __init__(self) -> None:
        self.known = torch.zeros(1, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", density(self.known), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))


def density(rows: Tensor) -> dist.Distribution:
    kernels = dist.Normal(rows, WIDTH).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(len(rows))), kernels)


def factory() -> tuple[object, object]:
    pair = KernelDensity()
    return pair.model, pair.guide


def networks() -> pv.VAE:
    width = ROWS.shape[1]
    encoder, decoder = pv.mlp_encoder((width,), 2), pv.mlp_decoder(2, (width,))
    return pv.VAE(encoder, decoder, pv.StandardNormal(2))


def remember(model: object, guide: object, rows: Tensor) -> None:
    model.__self__.known = rows  # type: ignore[attr-defined]


def refits(rows: Tensor, **options: object) -> pv.populations.RefitMemorisation:
    return pv.memorisation(factory, rows, fit=remember, evidence=IMPORTANCE, **options)


DRAWN = torch.randn(11, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ROWS = torch.cat([DRAWN, DRAWN.new_tensor([[9.0, 9.0]])])  # the last is one of a kind


@pytest.mark.parametrize("folds", [3, 12])
def test_gain_of_a_kernel_density_is_that_by_hand(folds: int) -> None:
    found = refits(ROWS, folds=folds, repeats=2)
    by_hand = torch.zeros(2, len(ROWS))
    for repeat, fold in enumerate(found.fold):
        values = torch.stack([density(ROWS[fold != k]).log_prob(ROWS) for k in range(folds)])
        for n, own in enumerate(fold.tolist()):
            inside = [values[k, n] for k in range(folds) if k != own]
            by_hand[repeat, n] = torch.stack(inside).mean() - values[own, n]
    torch.testing.assert_close(found.gain, by_hand.mean(0))
    torch.testing.assert_close(found.gain, found.inside - found.outside)
    assert int(found.ranking[0]) == 11 and int(found.rejected.sum()) == 0
    assert found.mean.value == pytest.approx(float(by_hand.mean()))
    sizes = torch.stack([row.bincount() for row in found.fold])
    assert int(sizes.max() - sizes.min()) <= 1


def test_a_twin_in_training_hides_what_a_row_gains_and_groups_show_it() -> None:
    rows = torch.cat([ROWS, ROWS[-1:]])  # the row far away is there twice
    label = torch.arange(13).clamp_max(11)
    apart, together = refits(rows, folds=11), refits(rows, folds=11, groups=label)
    assert bool((together.fold[:, 11] == together.fold[:, 12]).all())
    known = density(rows[:11]).log_prob(rows[-1:])
    assert float(apart.gain[-1]) < math.log(3) and float(together.gain[-1]) > -float(known) / 2


def test_linear_gaussian_pair_that_learns_nothing_gains_nothing() -> None:
    exact = linear_gaussian_vae(6, 2)
    x = exact.sample(30, seed=1)
    found = pv.memorisation(exact.vae, x, folds=3, fit=lambda *_: None, evidence=IMPORTANCE)
    torch.testing.assert_close(found.gain, torch.zeros(30), atol=1e-9, rtol=0.0)


def test_one_repeat_has_no_errors_of_rows_and_says_so() -> None:
    found = refits(ROWS, folds=3, repeats=1)
    assert bool(found.standard_error.isinf().all()) and "repeats=2" in found.concerns[0]
    assert refits(ROWS, folds=3).concerns == ()


def test_moderated_variances_are_nearer_to_the_truth() -> None:
    with pyro.poutine.seed(rng_seed=0):
        true = 10 / dist.Chi2(10.0).sample((4000,))
        variance = true * dist.Chi2(1.0).sample((4000,))
    found = moderated(variance, 1)
    # the exact answer of the same prior, d_0 = 10 and s_0² = 1
    exact = (10 + variance) / 11
    assert float((found / exact).log().abs().max()) < 0.25
    equal = torch.full((50,), 2.0)
    torch.testing.assert_close(moderated(equal, 3), equal)


def test_goes_on_from_a_checkpoint_and_refuses_another_one(tmp_path: Path) -> None:
    path, calls = tmp_path / "refits.pt", []

    def counted(model: object, guide: object, rows: Tensor) -> None:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        remember(model, guide, rows)

    options = {"folds": 4, "repeats": 1, "evidence": IMPORTANCE, "fit": counted}
    with pytest.raises(KeyboardInterrupt):
        pv.memorisation(factory, ROWS, checkpoint=path, **options)  # type: ignore[arg-type]
    found = pv.memorisation(factory, ROWS, checkpoint=path, **options)  # type: ignore[arg-type]
    assert len(calls) == 5
    torch.testing.assert_close(found.gain, refits(ROWS, folds=4, repeats=1).gain)
    with pytest.raises(pv.InputError, match="checkpoint="):
        pv.memorisation(factory, ROWS + 1.0, checkpoint=path, **options)  # type: ignore[arg-type]
    with pytest.raises(pv.InputError, match="checkpoint="):
        pv.memorisation(networks, ROWS, checkpoint=path, **options)  # type: ignore[arg-type]


def test_the_store_and_the_random_state_stay_as_they_were() -> None:
    pyro.param("mine", torch.tensor(1.0))
    state = torch.get_rng_state()
    refits(ROWS, folds=2, repeats=1)
    assert list(pyro.get_param_store()) == ["mine"]
    assert torch.equal(state, torch.get_rng_state())


def test_settings_that_mean_nothing_are_refused() -> None:
    for options in ({"folds": 1}, {"folds": 13}, {"repeats": 0}, {"groups": [0] * 12}):
        with pytest.raises(pv.InputError, match="expected 2 to"):
            refits(ROWS, **options)


def test_table_and_exemplars_follow_the_ranking() -> None:
    found = refits(ROWS, folds=3)
    assert found.table()["row"].tolist() == found.ranking.tolist()
    assert int(found.exemplars(2)["most"][0]) == 11


# -- the screen ----------------------------------------------------------------------------------


def test_screen_is_leave_one_out_by_hand() -> None:
    means = torch.cat([ROWS, ROWS[-1:] + 0.01])
    agg = pv.AggregatedPosterior(dist.Normal(means, torch.full_like(means, 0.4)).to_event(1))
    found = pv.memorisation_screen(agg)
    for n in range(13):
        others = [m for m in range(13) if m != n]
        terms = dist.Normal(means[others], 0.4).to_event(1).log_prob(means[n])
        assert float(found.log_density[n]) == pytest.approx(
            float(terms.logsumexp(0)) - math.log(12)
        )
        assert int(found.nearest[n]) == others[int(terms.argmax())]
        assert float(found.share[n]) == pytest.approx(float(terms.softmax(0).max()))
    own = 2 * math.log(1 / (0.4 * math.sqrt(2 * math.pi)))
    expected = agg[found.nearest].encoding.log_prob(means) - own
    torch.testing.assert_close(found.likeness, expected)
    assert [11, 12] in found.twins.tolist()
    assert found.table()["row"].tolist() == found.components.argsort().tolist()
    assert int(found.exemplars(1)["near_duplicates"][0]) in (11, 12)


def test_gain_under_leave_one_out_is_that_in_closed_form() -> None:
    exact = linear_gaussian_vae(6, 2)
    vae, x = exact.vae(), exact.sample(12, seed=1)
    agg = pv.aggregate(vae.guide, x)
    found = pv.memorisation_screen(agg, pair=(vae.model, vae.guide), train=x, draws=4000)
    assert found.gain is not None and found.standard_error is not None
    # ∫ p(x|z) N(z; μ_m, Σ_m) dz = N(x; Wμ_m + b, WΣ_mWᵀ + s²I)
    posterior = exact.posterior(x)
    spread = torch.einsum("pd,nd,qd->npq", exact.weight, posterior.variance, exact.weight)
    noise = exact.noise**2 * torch.eye(6)
    loc = posterior.mean @ exact.weight.T + exact.bias
    values = dist.MultivariateNormal(loc, spread + noise).log_prob(x.unsqueeze(1))  # (n, m)
    without = values.masked_fill(torch.eye(12, dtype=torch.bool), -math.inf)
    gain = values.logsumexp(1) - math.log(12) - without.logsumexp(1) + math.log(11)
    trusted = found.pareto_k < 0.5
    assert int(trusted.sum()) >= 6
    off = (found.gain - gain).abs() / found.standard_error
    assert float(off[trusted].max()) < 4.5


def test_k_hat_of_a_screen_is_judged_by_its_draws_and_unknown_is_not_good() -> None:
    pareto_k = torch.tensor([0.4, 0.6, math.nan])
    for draws, rejected in ((100, 2), (1000, 1)):  # up to 0.5 and 0.67
        parts = dict.fromkeys(("log_density", "components", "share", "likeness"), torch.zeros(3))
        screen = MemorisationScreen(
            **parts, nearest=torch.tensor([1, 0, 0]), gain=torch.zeros(3),
            standard_error=torch.zeros(3), pareto_k=pareto_k, draws=draws,
        )  # fmt: skip
        assert f"For {rejected} of 3 rows k̂ rejects" in screen.concerns[0]
        assert "draws" not in screen.table()


def test_screen_refuses_rows_that_are_not_those_of_the_mixture() -> None:
    exact = linear_gaussian_vae(6, 2)
    vae, x = exact.vae(), exact.sample(12, seed=1)
    agg = pv.aggregate(vae.guide, x)
    with pytest.raises(pv.InputError, match="together"):
        pv.memorisation_screen(agg, train=x)
    with pytest.raises(pv.InputError, match="the 12 rows"):
        pv.memorisation_screen(agg, pair=(vae.model, vae.guide), train=x[:5])


# -- the area under the curve --------------------------------------------------------------------


def test_auroc_is_that_by_brute_force_with_delong_error() -> None:
    with pyro.poutine.seed(rng_seed=0):
        high, low = torch.randn(40).round(decimals=1) + 0.5, torch.randn(30).round(decimals=1)
    wins = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    found = pv.auroc(high, low)
    assert found.value == pytest.approx(float(wins.mean()))
    variance = wins.mean(1).var() / 40 + wins.mean(0).var() / 30
    assert found.standard_error == pytest.approx(float(variance.sqrt()))


def test_auroc_error_is_its_spread() -> None:
    with pyro.poutine.seed(rng_seed=1):
        found = [pv.auroc(torch.randn(50) + 0.7, torch.randn(60)) for _ in range(400)]
    values = torch.tensor([estimate.value for estimate in found])
    errors = torch.tensor([estimate.standard_error for estimate in found])
    # a standard deviation of 400 values has an error of 1/√800, 3.5 %
    assert float(values.std() / errors.square().mean().sqrt()) == pytest.approx(1.0, abs=0.15)
    truth = float(dist.Normal(0.0, 1.0).cdf(torch.tensor(0.7 / math.sqrt(2))))
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 20
