"""The discretised logistic: normalised at any scale, with draws from the same distribution."""

import pytest
import torch

from pyrovae.models.discretized_logistic import DiscretizedLogistic


@pytest.mark.parametrize("scale", [1e-3, 0.3, 5.0, 1e4])
def test_it_is_normalised_and_drawn_from(scale: float) -> None:
    torch.manual_seed(0)
    likelihood = DiscretizedLogistic(torch.tensor(3.2), torch.tensor(scale), levels=8)
    probabilities = likelihood.log_prob(torch.arange(8.0)).exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    counts = torch.bincount(likelihood.sample(torch.Size([10_000])).long(), minlength=8)
    errors = (probabilities * (1 - probabilities) * 10_000).sqrt() + 1e-9
    assert bool(((counts - 10_000 * probabilities).abs() <= 4.5 * errors).all())


@pytest.mark.parametrize("scale", [1e-3, 0.3, 5.0, 1e4])
@pytest.mark.parametrize("level", [0.0, 3.0, 4.0, 7.0])
def test_a_level_s_mass_is_that_of_its_bin(scale: float, level: float) -> None:
    # The plain difference of sigmoids is right as long as it does not cancel.
    likelihood = DiscretizedLogistic(torch.tensor(3.2), torch.tensor(scale), levels=8)
    upper = torch.tensor((level + 0.5 - 3.2) / scale).sigmoid() if level < 7 else torch.tensor(1.0)
    lower = torch.tensor((level - 0.5 - 3.2) / scale).sigmoid() if level > 0 else torch.tensor(0.0)
    mass = likelihood.log_prob(torch.tensor(level)).exp()
    assert float(mass) == pytest.approx(float(upper - lower), abs=1e-12)


def test_gradients_stay_finite_far_from_the_data() -> None:
    loc = torch.tensor([-200.0, 3.0, 455.0], requires_grad=True)
    log_scale = torch.tensor([-6.0, -6.0, -6.0], requires_grad=True)
    levels = torch.tensor([255.0, 3.0, 0.0])
    DiscretizedLogistic(loc, log_scale.exp()).log_prob(levels).sum().backward()
    assert bool(loc.grad.isfinite().all()) and bool(log_scale.grad.isfinite().all())
    assert float(loc.grad[0]) > 0 > float(loc.grad[2])


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 30.0), (250.0, 20.0), (128.0, 5.0), (300.0, 1.0)])
def test_the_mean_is_the_sum_over_levels(loc: float, scale: float) -> None:
    likelihood = DiscretizedLogistic(torch.tensor(loc), torch.tensor([scale, 2 * scale]))
    levels = torch.arange(256.0).unsqueeze(-1)
    brute = (levels * likelihood.log_prob(levels).exp()).sum(0)
    assert torch.allclose(likelihood.mean, brute, rtol=1e-12)
