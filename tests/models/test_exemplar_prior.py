"""The exemplar prior in training: no datum explains itself, and every shortcut is a bound."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.pairs.pair import Pair
from pyrovae.training.objectives import elbo

SHAPE, LATENT, ROWS = (6,), 3, 15
NUMBERS = torch.arange(ROWS)


def data(rows: int = ROWS, seed: int = 1) -> Tensor:
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


def exemplars(**options: int) -> pv.ExemplarPrior:
    torch.manual_seed(0)
    prior = pv.ExemplarPrior(pv.mlp_encoder(SHAPE, LATENT, hidden=(5,)), data(), **options)
    with torch.no_grad():
        prior.log_scale.fill_(-1.0)
    return prior


def pair(**options: int) -> pv.VAE:
    prior = exemplars(**options)
    return pv.VAE(prior.encoder, pv.mlp_decoder(LATENT, SHAPE, hidden=(5,)), prior)


@pytest.mark.parametrize("index", [NUMBERS, torch.full((ROWS,), -1), NUMBERS.flip(0)])
def test_it_is_the_mixture_without_the_row_itself(index: Tensor) -> None:
    prior, z = exemplars(), torch.randn(ROWS, LATENT)
    mixture = prior.eval()()
    expected = torch.where(
        index >= 0, mixture.leave_one_out_log_prob(z, index.clamp(min=0)), mixture.log_prob(z)
    )
    assert torch.allclose(prior.leaving_out(index).log_prob(z), expected.detach())


def test_all_components_are_equal_normals_around_the_encoder_s_means() -> None:
    prior, z = exemplars().eval(), torch.randn(7, LATENT)
    means = prior.encoder(data()).mean
    scores = torch.distributions.Normal(means, torch.tensor(-1.0).exp()).log_prob(z[:, None])
    brute = scores.sum(-1).logsumexp(1) - torch.tensor(float(ROWS)).log()
    assert torch.allclose(prior().log_prob(z), brute)


def test_draws_leave_the_row_out_too() -> None:
    # The components are far apart, so each draw shows its exemplar; all others are equally likely.
    prior = exemplars()
    with torch.no_grad():
        prior.log_scale.fill_(-20.0)
    index = torch.tensor([3, 0, ROWS - 1, -1])
    means = prior.encoder(data()).mean.detach()
    z = prior.leaving_out(index).sample(torch.Size([5000]))
    nearest = torch.cdist(z.flatten(0, 1), means).argmin(1).view(5000, 4)
    for column, own in enumerate(index.tolist()):
        counts = torch.bincount(nearest[:, column], minlength=ROWS).double()
        others = [n for n in range(ROWS) if n != own]
        share = 1 / len(others)
        assert own < 0 or counts[own] == 0
        error = 4.5 * (5000 * share * (1 - share)) ** 0.5  # 57 counts: 1 seed in 2,500 fails
        assert bool(((counts[others] - 5000 * share).abs() < error).all())


def test_neighbours_are_a_bound_that_all_of_them_attain() -> None:
    z, index = torch.randn(ROWS, LATENT), NUMBERS
    exact = exemplars().leaving_out(index).log_prob(z)
    by_neighbours = [
        torch.cat(
            [
                exemplars(neighbours=k).leaving_out(index[i : i + 1]).log_prob(z[i : i + 1])
                for i in range(ROWS)
            ]
        )
        for k in (1, 3, 7, ROWS - 1)
    ]
    for fewer, more in zip(by_neighbours, [*by_neighbours[1:], exact], strict=True):
        assert bool((fewer <= more + 1e-12).all())
    assert torch.allclose(by_neighbours[-1], exact)
    assert bool((by_neighbours[0] < exact - 0.01).all())
    together = exemplars(neighbours=3).leaving_out(index).log_prob(z)
    assert bool(((together >= by_neighbours[1] - 1e-12) & (together <= exact + 1e-12)).all())


def test_an_old_cache_makes_the_bound_looser_not_wrong() -> None:
    prior, z = exemplars(neighbours=2), torch.randn(ROWS, LATENT)
    prior.leaving_out(NUMBERS).log_prob(z)  # fills the cache
    prior.seen.zero_()
    with torch.no_grad():
        prior.means.copy_(torch.randn_like(prior.means))
    exact = prior.eval()().leave_one_out_log_prob(z, NUMBERS)
    assert bool((prior.leaving_out(NUMBERS).log_prob(z) <= exact + 1e-12).all())


def test_the_cache_is_filled_again_after_as_many_rows_as_there_are() -> None:
    prior = exemplars(neighbours=1)
    prior.leaving_out(NUMBERS[:5]).log_prob(torch.randn(5, LATENT))
    assert torch.allclose(prior.means, prior.encoder(data()).mean)
    with torch.no_grad():
        for parameter in prior.encoder.parameters():
            parameter += 0.1
    fresh = prior.encoder(data()).mean
    for part in (NUMBERS[5:10], NUMBERS[10:]):
        prior.leaving_out(part).log_prob(torch.randn(5, LATENT))
        assert 0 < int(prior.means.isclose(fresh).all(1).sum()) < ROWS
    prior.leaving_out(NUMBERS[:5]).log_prob(torch.randn(5, LATENT))
    assert torch.allclose(prior.means, fresh)


def test_a_subsample_has_the_density_for_its_mean() -> None:
    prior, z = exemplars(subsample=5), torch.randn(ROWS, LATENT)
    exact = prior.eval()().leave_one_out_log_prob(z, NUMBERS).detach()
    with torch.no_grad():
        logs = torch.stack([prior.leaving_out(NUMBERS).log_prob(z) for _ in range(1000)])
    relative = (logs - exact).exp()
    error = 4.5 * relative.std(0) / 1000**0.5
    assert bool(((relative.mean(0) - 1).abs() < error).all())
    assert bool((logs.mean(0) < exact).all())  # its log is a lower bound on average


@pytest.mark.parametrize("options", [{}, {"neighbours": 4}, {"subsample": 6}])
def test_evaluation_does_not_depend_on_rows_or_options(options: dict[str, int]) -> None:
    vae, x, z = pair(**options).eval(), data().round(), torch.randn(ROWS, LATENT)
    prior = Pair(vae.model, vae.guide).prior((x, NUMBERS))
    assert torch.allclose(prior.log_prob(z), exemplars().eval()().log_prob(z), rtol=1e-12)
    assert not prior.log_prob(z).requires_grad


def test_constants_are_kept_until_a_parameter_changes() -> None:
    vae = pair().eval()
    prior = vae.prior
    first = prior()
    assert prior() is first
    state = copy.deepcopy(vae.state_dict())
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.1, fused=True)
    vae.encoder(data()).mean.sum().backward()
    optimizer.step()  # a fused step changes a parameter's value without a trace of it
    moved = prior()
    assert moved is not first
    assert torch.equal(moved.component_distribution.mean, vae.encoder(data()).mean)
    vae.load_state_dict(state)
    assert torch.equal(prior().component_distribution.mean, first.component_distribution.mean)
    with torch.no_grad():
        prior.log_scale += 1
    assert torch.allclose(prior().variance, first.variance + (torch.e**0 - torch.e**-2))
    other = copy.deepcopy(prior)
    assert other() is not prior()


def test_the_elbo_of_minibatches_is_unbiased() -> None:
    # Without options a row's density does not depend on the other rows of its batch.
    prior, z = exemplars(), torch.randn(ROWS, LATENT)
    at_once = prior.leaving_out(NUMBERS).log_prob(z)
    order = torch.randperm(ROWS)
    parts = [prior.leaving_out(NUMBERS[rows]).log_prob(z[rows]) for rows in order.split(4)]
    assert torch.allclose(torch.cat(parts), at_once[order])


@pytest.mark.filterwarnings("ignore:(.|\\n)*k̂:UserWarning")
@pytest.mark.parametrize("options", [{}, {"neighbours": 4}, {"subsample": 6}])
def test_it_trains_with_rows_binarised_anew(options: dict[str, int]) -> None:
    vae, x, validation = pair(**options), data(), data(9, seed=2)
    run = pv.fit(
        vae.model,
        vae.guide,
        (x, NUMBERS),
        validation=(validation, torch.arange(9)),
        epochs=8,
        batch_size=4,
        transform=pv.binarise,
        optimizer=pv.adam(0.01),
    )
    assert run.history.train[-1] > run.history.train[0]
    evidence = pv.log_evidence(vae.model, vae.guide, validation.round(), draws=50, method="prior")
    assert bool(evidence.values.isfinite().all())


def test_an_interrupted_run_goes_on_as_it_would_have(tmp_path: Path) -> None:
    def train(epochs: int, folder: str) -> dict[str, Tensor]:
        vae = pair(neighbours=2)
        pv.fit(
            vae.model,
            vae.guide,
            (data().round(), NUMBERS),
            epochs=epochs,
            batch_size=4,
            checkpoint=tmp_path / folder,
            resume=True,
        )
        return vae.state_dict()

    train(3, "interrupted")
    resumed, uninterrupted = train(6, "interrupted"), train(6, "uninterrupted")
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_leaving_out_keeps_the_prior_from_memorising() -> None:
    # One row far from all others: with itself among the exemplars its code would be well explained.
    x = data()
    x[0] += 30
    torch.manual_seed(0)
    prior = pv.ExemplarPrior(pv.mlp_encoder(SHAPE, LATENT, hidden=()), x)
    z = prior.encoder(x).mean.detach()
    without = prior.leaving_out(NUMBERS).log_prob(z)[0]
    assert bool(prior.eval()().log_prob(z)[0] > without + 10)


def test_training_asks_for_the_numbers_of_the_rows() -> None:
    vae = pair()
    for train in (
        lambda: vae.model(data()),
        lambda: elbo(vae.model, vae.guide, data()),
        lambda: pv.fit(vae.model, vae.guide, data().round(), epochs=1),
    ):
        with pytest.raises(ValueError, match=r"numbers of the rows.*torch.arange\(len\(x\)\)"):
            train()
    assert vae.eval().model(data().round()) is not None


@pytest.mark.parametrize("index", [NUMBERS + 1, NUMBERS - 2, NUMBERS.double()])
def test_numbers_that_are_no_exemplar_s_are_named(index: Tensor) -> None:
    with pytest.raises(ValueError, match="whole numbers from 0 to 14"):
        pair().model(data().round(), index)


def test_bad_options() -> None:
    for options, message in (
        ({"neighbours": 15}, "1 to 14 neighbours"),
        ({"neighbours": 0}, "1 to 14 neighbours"),
        ({"subsample": 1}, "2 to 15"),
        ({"subsample": 16}, "2 to 15"),
        ({"subsample": 4, "neighbours": 4}, "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            exemplars(**options)
    with pytest.raises(ValueError, match="at least 2 exemplars"):
        pv.ExemplarPrior(pv.mlp_encoder(SHAPE, LATENT), data(1))
