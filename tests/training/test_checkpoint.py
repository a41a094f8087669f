from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import pyro
import pytest
import torch
from torch import Tensor

from pyrovae.training.fit import adam, fit
from pyrovae.training.loop import NonFiniteLoss

EPOCHS = 30


def train(path: Path, **settings: Any) -> Any:
    pyro.clear_param_store()
    arguments = {"epochs": 4, "batch_size": 25, "validation": pairs.data(30, seed=1)}
    return fit(*pairs.plain(), pairs.data(), checkpoint=path, **(arguments | settings))


def weights() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def start(checkpoint: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, pairs.__file__, str(checkpoint), str(out), str(EPOCHS)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, cwd=root)


@pytest.mark.float32
def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    """Killed with SIGKILL at random moments, then run to its end: equal bit for bit."""
    moments = random.Random(0)
    path, epochs = tmp_path / "cut.pt", [0]
    for _ in range(2):
        process = start(path, tmp_path / "cut.out")
        written = path.stat().st_mtime_ns if path.exists() else 0
        while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == written):
            time.sleep(0.002)  # until it has written a checkpoint of its own
        time.sleep(moments.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        epochs.append(torch.load(path, weights_only=True)["epoch"])
    assert epochs == sorted(set(epochs))
    assert epochs[-1] < EPOCHS
    assert start(path, tmp_path / "cut.out").wait() == 0
    pairs.main(str(tmp_path / "whole.pt"), str(tmp_path / "whole.out"), str(EPOCHS))
    whole, cut = (torch.load(tmp_path / f"{n}.out", weights_only=True) for n in ("whole", "cut"))
    for part in ("encoder", "decoder", "history"):
        assert whole[part].keys() == cut[part].keys()
        for name, value in whole[part].items():
            assert torch.equal(value, cut[part][name]), (part, name)
    assert len(whole["history"]["train"]) == EPOCHS


@pytest.mark.parametrize("batch", [1, 5, 11])
def test_a_run_stopped_between_steps_resumes_to_the_same_end(tmp_path: Path, batch: int) -> None:
    calls = [0]

    def interrupt(x: Tensor, generator: torch.Generator) -> Tensor:
        calls[0] += 1
        if calls[0] == batch:
            raise KeyboardInterrupt
        return x

    def untouched(x: Tensor, generator: torch.Generator) -> Tensor:
        return x

    interrupt.__qualname__ = untouched.__qualname__
    whole = train(tmp_path / "whole.pt", kl_warmup=2, transform=untouched)
    end = weights()
    path = tmp_path / "cut.pt"
    with pytest.raises(KeyboardInterrupt):
        train(path, kl_warmup=2, transform=interrupt)
    cut = train(path, kl_warmup=2, transform=untouched, resume=True)
    np.testing.assert_array_equal(whole.history.train, cut.history.train)
    np.testing.assert_array_equal(whole.history.validation, cut.history.validation)
    assert whole.best_epoch == cut.best_epoch
    assert all(torch.equal(end[name], value) for name, value in weights().items())


def test_a_finished_run_gives_its_result_again_and_can_be_made_longer(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    first = train(path)
    end = weights()
    repeated = train(path, resume=True)
    np.testing.assert_array_equal(first.history.seconds, repeated.history.seconds)
    assert all(torch.equal(end[name], value) for name, value in weights().items())
    longer = train(path, resume=True, epochs=6)
    np.testing.assert_array_equal(
        longer.history.train, train(tmp_path / "d.pt", epochs=6).history.train
    )
    with pytest.raises(ValueError, match="epochs ≥ 6"):
        train(path, resume=True, epochs=2)


def test_an_existing_checkpoint_is_never_overwritten_by_a_new_run(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    train(path, epochs=1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="resume=True"):
        train(path, epochs=1)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="got the folder"):
        train(tmp_path)


OTHER = {
    "seed": {"seed": 1},
    "batch": {"batch_size": 26},
    "optimizer": {"optimizer": adam(5e-3)},
    "kl_warmup": {"kl_warmup": 2},
    "clip_norm": {"clip_norm": 1.0},
    "patience": {"patience": 2},
    "objective": {"objective": pyro.infer.Trace_ELBO()},
    "transform": {"transform": lambda x, generator: x},
    "validation": {"validation": 2},
}


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_or_data_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.pt"
    train(path, epochs=1)
    changed: dict[str, Any] = OTHER[name]
    if name == "validation":
        changed = {name: pairs.data(30, seed=changed[name])}
    message = {"batch": "train"}.get(name, name)
    with pytest.raises(ValueError, match=f"settings, data and pair.*{message}"):
        train(path, epochs=2, resume=True, **changed)


def test_other_data_or_another_pair_is_refused(tmp_path: Path) -> None:
    path, x = tmp_path / "c.pt", pairs.data()
    train(path, epochs=1, validation=None)
    changed = x.clone()
    changed[3, 2] += 1e-9
    with pytest.raises(ValueError, match=r"settings, data and pair.*train"):
        fit(*pairs.plain(), changed, batch_size=25, checkpoint=path, resume=True)
    pair, _, _ = pairs.registered()
    with pytest.raises(ValueError, match=r"data and pair.*tensor"):
        fit(*pair, x, batch_size=25, checkpoint=path, resume=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_another_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.pt"
    if content is None:
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a checkpoint of pyrovae"):
        train(path, resume=True)


def test_a_checkpoint_runs_nobodys_code(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"format": 1, "epoch": Malicious()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="no checksum"):
        train(tmp_path / "c.pt", resume=True)
    assert not (tmp_path / "touched").exists()


def test_a_write_that_fails_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    train(path, epochs=1)
    before = path.read_bytes()

    def broken(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space"):
        train(path, epochs=2, resume=True)
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    calls = [0]

    def poison(x: Tensor, generator: torch.Generator) -> Tensor:
        calls[0] += 1
        return x * (
            float("nan") if calls[0] == 11 else 1.0
        )  # beside the steps, one call is a check

    path = tmp_path / "c.pt"
    with pytest.raises(NonFiniteLoss) as caught:
        train(path, validation=None, transform=poison)
    assert (caught.value.epoch, caught.value.step) == (3, 2)
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 2
    assert all(value.isfinite().all() for value in content["state"].values())
