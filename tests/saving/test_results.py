"""What a workflow keeps: results in files that need neither the pair nor unpickled code."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.pairs import Pair
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae()
TINY = pv.Effort(64, 6, 30, 3, 30, 4)


def test_diagnosis(tmp_path: Path) -> None:
    vae = EXACT.vae()
    found = pv.diagnose(
        vae.model, vae.guide, EXACT.sample(60), held_out=EXACT.sample(30, seed=1), effort=TINY
    )
    pv.save(found, tmp_path / "diagnosis.pt")
    again = pv.load(tmp_path / "diagnosis.pt")
    pd.testing.assert_frame_equal(again.summary(), found.summary())
    assert again.advice == found.advice
    z = found.codes.z[:5]
    for name in ("aggregated", "prior"):
        before, after = (getattr(d, name).log_prob(z) for d in (found, again))
        assert torch.allclose(after, before, rtol=1e-12)
    before, after = (d.to_arviz().posterior["z"].values for d in (found, again))
    assert (before == after).all()


def test_ex_post_prior_and_weights(tmp_path: Path) -> None:
    vae = EXACT.vae()
    weights = torch.arange(40.0)
    agg = pv.aggregate(vae.guide, EXACT.sample(40), weights=weights)
    fitted = pv.fit_ex_post_prior(agg, held_out=pv.encode(vae.guide, EXACT.sample(20, seed=1)))
    z = agg.sample((7,))
    for number, kept in enumerate((agg, fitted)):
        pv.save(kept, tmp_path / f"{number}.pt")
    read, prior = (pv.load(tmp_path / f"{number}.pt") for number in (0, 1))
    assert torch.allclose(read.log_prob(z), agg.log_prob(z), rtol=1e-12)
    assert read.mass == pytest.approx(agg.mass, rel=1e-12)
    assert prior.table == fitted.table
    before, after = (p.distribution.log_prob(z) for p in (fitted, prior))
    assert torch.allclose(after, before, rtol=1e-12)  # the weights are normalised again


@pytest.mark.parametrize(
    "density",
    [
        dist.MultivariateNormal(torch.ones(2), 2 * torch.eye(2)),
        dist.MultivariateNormal(torch.ones(2), precision_matrix=2 * torch.eye(2)),
        dist.Delta(torch.ones(2), event_dim=1),
        dist.RelaxedOneHotCategorical(torch.tensor(0.3), torch.tensor([0.2, 0.8])),
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.2, 0.8])),
            dist.Normal(torch.eye(2), 1.0).to_event(1),
        ),
    ],
    ids=lambda density: type(density).__name__,
)
def test_densities_of_pyro(density: dist.Distribution, tmp_path: Path) -> None:
    pv.save({"p": density}, tmp_path / "p.pt")
    z = density.sample((5,))
    again = pv.load(tmp_path / "p.pt")["p"]
    assert torch.allclose(again.log_prob(z), density.log_prob(z), rtol=1e-12)
    assert again.event_shape == density.event_shape == (2,)


def test_what_only_draws_show_is_kept(tmp_path: Path) -> None:
    agg = pv.AggregatedPosterior(dist.Multinomial(9, torch.ones(4, 3)))
    pv.save(agg, tmp_path / "p.pt")
    assert bool((pv.load(tmp_path / "p.pt").sample((7,)).sum(-1) == 9).all())


def test_flows(tmp_path: Path) -> None:
    flow = pv.FlowPrior(3, layers=3, hidden=(5, 4))().expand((2,))
    wide = dist.TransformedDistribution(
        pv.FlowPrior(3)(), [dist.transforms.AffineTransform(torch.ones(3), 2.0, event_dim=1)]
    )
    network = pv.mlp_encoder((4,), 3, hidden=(5,)), pv.mlp_decoder(3, (4,), hidden=(5,))
    vae = pv.VAE(*network, pv.FlowPrior(3))
    read = Pair(vae.model, vae.guide).prior(torch.zeros(2, 4))  # as a diagnosis has it
    for density in (flow, wide, read):
        pv.save(density, tmp_path / "f.pt")
        before = torch.get_rng_state()
        again = pv.load(tmp_path / "f.pt")
        assert torch.equal(before, torch.get_rng_state())
        z = density.sample((7,)).clone()  # of what it drew itself, a flow knows the source
        assert torch.equal(again.log_prob(z), density.log_prob(z))
        assert again.sample((4,)).shape == (4, *density.batch_shape, 3)
        assert not again.log_prob(z).requires_grad


def test_a_file_is_read_in_another_process_without_the_pair(tmp_path: Path) -> None:
    agg = pv.aggregate(EXACT.vae().guide, EXACT.sample(10))
    pv.save(agg, tmp_path / "agg.pt")
    code = "import pyrovae as pv; print(len(pv.load('agg.pt')))"
    root = Path(pv.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root)},
        check=True,
    )
    assert run.stdout == "10\n"


def test_what_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"result of pyrovae.*got function"):
        pv.save(lambda: 1, tmp_path / "f.pt")
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    flow = dist.TransformedDistribution(normal, [dist.transforms.planar(2)])
    with pytest.raises(ValueError, match=r"expected a flow of spline couplings.*got Planar"):
        pv.save(flow, tmp_path / "f.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"pyrovae\.save"):
        pv.load(tmp_path / "other.pt")
    assert list(tmp_path.iterdir()) == [tmp_path / "other.pt"]


def test_a_family_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    class Normal(dist.Normal):
        """Not Pyro's, whose name it has."""

    agg = pv.AggregatedPosterior(Normal(torch.zeros(4, 2), 1.0).to_event(1))
    with pytest.raises(
        ValueError, match=r"family of pyro\.distributions; got '.*test_results\.Normal'"
    ):
        pv.save(agg, tmp_path / "agg.pt")
    assert not list(tmp_path.iterdir())


class Harmful:
    """What unpickling would run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_foreign_files_are_refused_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "foreign.pt"
    pv.save(torch.ones(3), path)
    whole = path.read_bytes()
    foreign = {
        "pickle": pickle.dumps({"a": Harmful(trace)}),
        "object": saved(Harmful(trace)),
        "inside": saved({"pyrovae": 1, "result": Harmful(trace)}),
        "module": saved(torch.nn.Linear(2, 2)),
        "tensor": saved(torch.ones(2)),
        "no result": saved({"pyrovae": 1}),
        "other result": saved({"pyrovae": 1, "result": {"kind": "family"}}),
        "text": b"z,y\n1,2\n",
        "empty": b"",
        "half": whole[: len(whole) // 2],
    }
    for name, content in foreign.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file that pyrovae\.save has written; got") as caught:
            pv.load(path)
        assert "weights_only" not in str(caught.value), name
    assert not trace.exists()
    with pytest.raises(FileNotFoundError):
        pv.load(tmp_path / "none.pt")
