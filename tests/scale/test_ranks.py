"""Two processes, each with shards of its own, are one mixture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

import pyrovae as pv
from pyrovae.testing import linear_gaussian_vae

SCRIPT = """
import sys, torch, pyrovae as pv
from torch import distributed
from pyrovae.testing import linear_gaussian_vae

torch.set_default_dtype(torch.float64)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
exact = linear_gaussian_vae()
guide, x = exact.vae().guide, exact.sample(500)
folder = pv.encode_to(sys.argv[1], guide, x, shard_rows=90, dtype=torch.float64, progress=False)
agg, whole = pv.open_aggregated(folder, verify=True), pv.aggregate(guide, x)
torch.manual_seed(0)
z = torch.cat([whole.sample((60,)), torch.full((1, 2), 20.0)])
n = torch.arange(40)
same = torch.testing.assert_close
same(agg.log_prob(z), whole.log_prob(z), rtol=0, atol=2e-9)
same(agg.log_prob(z.repeat(40, 1)), whole.log_prob(z.repeat(40, 1)), rtol=0, atol=2e-9)
many = z.repeat(40, 1)
same(agg.score(many), whole.score(many), rtol=1e-8, atol=1e-8)
same(agg.effective_components(z), whole.effective_components(z), rtol=1e-8, atol=0)
found, expected = (q.responsibilities(z, top=8) for q in (agg, whole))
same(found.weight, expected.weight, rtol=0, atol=2e-9)
found, expected = (q.leave_one_out_log_prob(x[:40, :2], n) for q in (agg, whole))
same(found, expected, rtol=0, atol=2e-9)
own = agg._diagonal(agg._normal()).parts
assert len(own) == 3, own
if rank == 0:
    by_one = pv.open_aggregated(folder, alone=True)
    same(by_one.log_prob(z), whole.log_prob(z), rtol=0, atol=2e-9)
try:
    agg.effective_components(z + rank)
except pv.InputError as error:
    assert "same points in all processes" in str(error)
    torch.manual_seed(4 + rank)
    z = agg.sample((30,))
    distributed.broadcast(z, 0)  # the remedy
    same(agg.effective_components(z), whole.effective_components(z), rtol=1e-8, atol=0)
    try:
        pv.encode_to(folder, guide, -x if rank else x, shard_rows=90, dtype=torch.float64)
    except pv.InputError as error:
        print(f"rank {rank}: {error}", flush=True)
distributed.destroy_process_group()
"""


def test_two_processes_are_one_mixture(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "codes")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rank 1: expected the guide and the data" in done.stdout
    assert "rank 0: expected all processes to go on; got an error in number 1" in done.stdout


def test_processes_that_know_of_no_others_do_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    exact = linear_gaussian_vae()
    with pytest.raises(pv.InputError, match="each of the 2 processes that torchrun started"):
        pv.encode_to(tmp_path / "codes", exact.vae().guide, exact.sample(5))
    assert not (tmp_path / "codes").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    pv.encode_to(tmp_path / "codes", exact.vae().guide, exact.sample(5))
