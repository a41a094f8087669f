"""Columns of several kinds, and rows with missing cells: log p(x) is that of the cells there."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evidence import log_evidence
from pyrovae.mixture import families
from pyrovae.models import MixedColumns, MixedDecoder, NormalDecoder, TableInputs, outputs_of

CATEGORIES = (0, 3, 1, 0, 2)


def columns(rows: int, seed: int = 0) -> tuple[MixedColumns, list[dist.Distribution]]:
    """A table's columns, and the distribution of each alone."""
    torch.manual_seed(seed)
    loc, scale = torch.randn(rows, 2), torch.rand(rows, 2) + 0.5
    logits, several = torch.randn(rows, 1), torch.randn(rows, 2, 3)
    several[:, 1, 2] = -torch.inf
    mixed = MixedColumns(
        CATEGORIES, dist.Normal(loc, scale), dist.Bernoulli(logits=logits),
        dist.Categorical(logits=several),
    )  # fmt: skip
    alone = [
        dist.Normal(loc[:, 0], scale[:, 0]),
        dist.Categorical(logits=several[:, 0]),
        dist.Bernoulli(logits=logits[:, 0]),
        dist.Normal(loc[:, 1], scale[:, 1]),
        dist.Categorical(logits=several[:, 1, :2]),
    ]
    return mixed, alone


def test_a_table_is_as_likely_as_its_columns_one_by_one() -> None:
    mixed, alone = columns(50)
    assert mixed.batch_shape == (50, 5) and mixed.event_shape == ()
    x = torch.stack([part.sample() for part in alone], 1)
    expected = torch.stack([p.log_prob(v) for p, v in zip(alone, x.T, strict=True)], 1)
    torch.testing.assert_close(mixed.log_prob(x), expected)
    torch.testing.assert_close(mixed.to_event(1).log_prob(x), expected.sum(1))
    for name in ("mean", "variance"):
        found = getattr(mixed, name)
        torch.testing.assert_close(found[:, 3], getattr(alone[3], name))
        torch.testing.assert_close(found[:, 2], getattr(alone[2], name))
        assert bool(found[:, [1, 4]].isnan().all())


def test_the_mode_is_the_most_probable_value_of_each_column() -> None:
    mixed, _ = columns(20)
    mode = mixed.mode
    assert mode.shape == (20, 5)
    real, truth, several = mixed.places
    torch.testing.assert_close(mode[:, real], mixed.mean[:, real])
    for place in truth + several:
        log_mode = mixed.log_prob(mode)[:, place]
        for category in range(max(mixed.categories[place], 2)):
            other = mode.clone()
            other[:, place] = category
            assert bool((log_mode >= mixed.log_prob(other)[:, place]).all())


def test_draws_have_the_columns_moments() -> None:
    mixed, alone = columns(1)
    draws = mixed.sample(torch.Size([40_000])).squeeze(1)
    for place, part in enumerate(alone):
        values = draws[:, place]
        error = 4 * float(values.std()) / len(values) ** 0.5
        if isinstance(part, dist.Categorical):
            for number, share in enumerate(part.probs[0].tolist()):
                assert abs(float((values == number).float().mean()) - share) < 4 * 0.5 / 200
        else:
            assert abs(float(values.mean() - part.mean[0])) < error


def test_batches_of_tables_are_cut_joined_and_expanded() -> None:
    mixed, _ = columns(6)
    x = mixed.sample()
    row = mixed.to_event(1)
    parts = [families.take(row, torch.tensor(rows)) for rows in ([4, 1], [0])]
    joined = families.concatenate(parts)
    torch.testing.assert_close(joined.log_prob(x[[4, 1, 0]]), row.log_prob(x)[[4, 1, 0]])
    wide = mixed.expand(torch.Size([2, 6, 5]))
    torch.testing.assert_close(wide.log_prob(x), mixed.log_prob(x).expand(2, 6, 5))


@pytest.mark.parametrize("categories", [CATEGORIES, (0, 0), (1,), (4, 2)])
def test_a_decoder_gives_each_column_its_kind(categories: tuple[int, ...]) -> None:
    size = len(categories)
    location, scale = torch.arange(size).double(), torch.ones(size).double() * 10
    decoder = MixedDecoder(nn.Linear(3, outputs_of(categories)), categories, location, scale)
    row = decoder(torch.randn(7, 3))
    assert row.batch_shape == (7,) and row.event_shape == (size,)
    x = row.sample()
    for place, count in enumerate(categories):
        if count:
            assert bool((x[:, place] < max(2, count)).all() & (x[:, place] % 1 == 0).all())
    assert bool(row.log_prob(x).isfinite().all())
    row.log_prob(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in decoder.parameters() if p.grad is not None)


def test_log_p_of_a_real_column_is_in_its_own_units() -> None:
    """With z without effect, p(x) is N(m, s²) in the units of the data, Jacobian included."""
    location, scale = torch.tensor([5.0, 0.0]), torch.tensor([100.0, 1.0])
    decoder = MixedDecoder(nn.Linear(2, 3), (0, 2), location, scale)
    nn.init.zeros_(decoder.network.weight)  # type: ignore[union-attr]
    nn.init.zeros_(decoder.network.bias)  # type: ignore[union-attr]
    x = torch.tensor([[205.0, 1.0]])
    expected = dist.Normal(5.0, 100.0).log_prob(torch.tensor(205.0)) - torch.tensor(2.0).log()
    torch.testing.assert_close(decoder(torch.randn(1, 2)).log_prob(x), expected.reshape(1))


def test_an_encoder_sees_values_categories_and_what_is_missing() -> None:
    inputs = TableInputs(
        (0, 3), torch.tensor([10.0, 0.0]), torch.tensor([2.0, 1.0]), masked=True,
        dtype=torch.float64,
    )  # fmt: skip
    x = torch.tensor([[14.0, 2.0], [99.0, 0.0]])
    mask = torch.tensor([[True, True], [False, False]])
    expected = torch.tensor([[2.0, 0, 0, 1, 1, 1], [0.0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(inputs(x, mask), expected)
    torch.testing.assert_close(inputs(x)[1], torch.tensor([44.5, 1, 0, 0, 1, 1]))
    assert inputs.size == 6


# -- missing cells -----------------------------------------------------------------------------


class LinearNormal(nn.Module):
    """p(x | z) = N(W z + b, σ²), with an exact marginal."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Linear(2, 5)

    def forward(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(self.network(z), 0.7).to_event(1)

    def marginal(self, there: Tensor) -> dist.Distribution:
        """p(x) of the cells that are there."""
        weight = self.network.weight.detach()[there]
        covariance = weight @ weight.T + 0.49 * torch.eye(len(weight))
        return dist.MultivariateNormal(self.network.bias.detach()[there], covariance)


def with_holes(rows: int) -> tuple[pv.VAE, LinearNormal, Tensor, Tensor]:
    decoder = LinearNormal()
    vae = pv.VAE(pv.MaskedEncoder(pv.mlp_encoder((10,), 2)), decoder, pv.StandardNormal(2))
    x, mask = vae.sample(rows, seed=1), torch.rand(rows, 5) < 0.6
    mask[:, 0] |= ~mask.any(1)
    return vae, decoder, x, mask


def test_log_p_of_rows_with_missing_cells_is_the_exact_marginal() -> None:
    vae, decoder, x, mask = with_holes(24)
    expected = torch.stack(
        [decoder.marginal(m).log_prob(row[m]) for row, m in zip(x, mask, strict=True)]
    )
    filled = x.where(mask, 1e3)  # whatever stands in a missing cell
    found = log_evidence(vae.model, vae.guide, (filled, mask), draws=2000, method="refined")
    error = found.standard_error.clamp_min(1e-4)
    assert bool(((found.values - expected).abs() < 5 * error).all())
    assert float(error.max()) < 0.1


def test_a_masked_datum_trains_and_is_measured_as_any_other() -> None:
    vae, _, x, mask = with_holes(60)
    data = (x.where(mask, 0.0), mask)
    pv.fit(vae.model, vae.guide, data, epochs=2, progress=False)
    assert pv.aggregate(vae.guide, data).event_shape == (2,)
    assert vae.reconstruct(data).shape == (60, 5)
    by_name = vae.guide(data[0], obs_mask=mask)
    assert by_name.shape == (60, 2)
    effort = pv.Effort(evidence_rows=8, evidence_draws=20, samples=0, pictures=8, export_rows=4)
    found = pv.diagnose(vae.model, vae.guide, data, held_out=data, effort=effort, progress=False)
    assert found.pictures is not None and bool(found.pictures.data.isnan().any())


def test_a_mask_that_can_not_be_used_is_refused() -> None:
    vae, decoder, x, mask = with_holes(4)
    with pytest.raises(pv.InputError, match=r"obs_mask as truth values of the rows' shape"):
        vae.guide(x, obs_mask=mask[:, :2])
    plain = pv.VAE(pv.mlp_encoder((5,), 2), decoder, pv.StandardNormal(2))
    with pytest.raises(pv.InputError, match=r"takes the rows and obs_mask.*MaskedEncoder"):
        plain.guide(x, mask)

    class Correlated(nn.Module):
        def forward(self, z: Tensor) -> dist.Distribution:
            return dist.MultivariateNormal(torch.zeros(len(z), 5), torch.eye(5))

    correlated = pv.VAE(vae.encoder, Correlated(), pv.StandardNormal(2))
    with pytest.raises(pv.InputError, match="independent entries"):
        correlated.model(x, mask)
    exemplars = pv.VAE(vae.encoder, decoder, pv.ExemplarPrior(vae.encoder, x, neighbours=2))
    with pytest.raises(pv.InputError, match="whole rows with an exemplar prior"):
        exemplars.model(x, mask)


def test_a_normal_decoder_takes_a_mask_over_any_event_shape() -> None:
    decoder = NormalDecoder(nn.Linear(2, 6), torch.Size((2, 3)))
    vae = pv.VAE(pv.MaskedEncoder(pv.mlp_encoder((12,), 2)), decoder, pv.StandardNormal(2))
    x, mask = torch.randn(5, 2, 3), torch.rand(5, 2, 3) < 0.5
    found = log_evidence(vae.model, vae.guide, (x, mask), draws=200, method="refined")
    assert found.values.shape == (5,)
