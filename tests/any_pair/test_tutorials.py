"""Three pairs written as Pyro's public tutorials write them, diagnosed with one call each."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch
from torch.nn.functional import one_hot
from tutorials import CLASSES, ImageVAE, SingleCell, counts, images, semi_supervised, train

import pyrovae as pv

TINY = pv.Effort(codes=256, evidence_rows=20, evidence_draws=100, export_rows=3, export_draws=30)


@pytest.fixture
def no_validation() -> Iterator[None]:
    """As the tutorials have it: argument checks off for the whole program."""
    with pyro.validation_enabled(False):
        yield


@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_image_vae() -> None:
    (x, _), (new, _) = images(200, 0), images(60, 1)
    vae = ImageVAE()
    train(vae.model, vae.guide, x, steps=300)
    found = pv.diagnose(vae.model, vae.guide, x, held_out=new, site="latent", effort=TINY)
    assert not pyro.distributions.is_validation_enabled()
    assert found.training.rate.value > 0.5
    assert "ample from" in found.advice


@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_semi_supervised_vae() -> None:
    (x, y), (new, new_y) = images(200, 0), images(60, 1)
    y, new_y = (one_hot(labels, CLASSES).to(x) for labels in (y, new_y))
    vae = semi_supervised(x, y)
    found = pv.diagnose(
        vae.model, vae.guide, (x, y), held_out=(new, new_y), observed="x", effort=TINY
    )
    assert "ample from" in found.advice
    # Unlabelled rows: the label is summed over in the guide, and p(x) is that of both.
    mixed = pv.encode(vae.guide, new)
    z = mixed.sample()
    labels = torch.eye(CLASSES).unsqueeze(1).expand(-1, len(new), -1)
    share = vae.encoder_y(new).log_softmax(-1).T
    terms = [pv.encode(vae.guide, (new, label)).log_prob(z) for label in labels]
    assert torch.allclose(mixed.log_prob(z), (share + torch.stack(terms)).logsumexp(0), atol=1e-6)
    unlabelled = pv.log_evidence(vae.model, vae.guide, new, draws=200)
    summed = torch.stack(
        [
            pv.log_evidence(vae.model, vae.guide, (new, label.expand(60, -1)), draws=200).values
            for label in torch.eye(CLASSES)
        ]
    ).logsumexp(0)
    # 4 standard errors, for two estimates of which neither is noisier than the unlabelled one
    error = float(unlabelled.standard_error.square().sum().sqrt()) / 60
    assert abs(float((unlabelled.values - summed).mean())) < 4 * 2**0.5 * error


@pytest.mark.usefixtures("no_validation")
@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_counts_with_a_latent_library_size() -> None:
    x, new = counts(200, 0), counts(60, 1)
    cells = SingleCell()
    train(cells.model, cells.guide, x, steps=300)
    found = pv.diagnose(cells.model, cells.guide, x, held_out=new, effort=TINY)
    # The library size is drawn along: the ELBO of z's terms is that of the whole pair, unscaled.
    loss = pyro.infer.Trace_ELBO(num_particles=50, vectorize_particles=False)
    whole = -loss.loss(cells.model, cells.guide, x) * 200 / len(x)
    elbo = found.training.elbo
    assert elbo.value == pytest.approx(whole, abs=5 * elbo.standard_error + 0.2)
    sizes = pv.aggregate(cells.guide, x, site="l")
    assert sizes.mean.shape == (1,)
    assert bool((sizes.sample((100,)) > 0).all())
