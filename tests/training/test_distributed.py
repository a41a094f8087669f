"""Several processes train what one does, and fail together."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch

from pyrovae.command.cli import main
from pyrovae.training.distributed import join, own_device

LIMIT = 240  # seconds until a run counts as one that hangs, on a busy machine too


def launch(name: str, folder: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a function of ``ranks.py`` by torchrun."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", ranks.__file__, name, str(folder)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def seen(name: str, folder: Path, processes: int = 2) -> list[dict[str, Any]]:
    """What each process wrote down."""
    done = launch(name, folder, processes)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    threads = [(folder / f"{rank}.threads").read_text() for rank in range(processes)]
    assert not any("gloo" in names for names in threads)  # one could abort the process at its end
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def assert_close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Numbers agree but for rounding, words exactly."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, str):
            assert actual[name] == value, name
        else:
            np.testing.assert_allclose(actual[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("courses")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as the script does
    try:
        ranks.course("uneven", epochs=2, checkpoint=folder / "begun.pt")
    finally:
        torch.set_default_dtype(dtype)
    return seen("courses", folder)


@pytest.mark.parametrize("name", ranks.COURSES)
def test_two_processes_train_what_one_does(courses: list[dict[str, Any]], name: str) -> None:
    first, second = (theirs[name] for theirs in courses)
    assert first == second
    alone = ranks.course(name)
    assert_close(first, alone)
    if name == "early stopping":
        assert alone["stopped"] == "patience" and alone["best"] < len(alone["train"]) < 60


def test_gradients_are_summed_by_messages_where_no_memory_is_shared(
    courses: list[dict[str, Any]],
) -> None:
    first, second = (theirs["by messages"] for theirs in courses)
    assert first == second
    assert_close(first, courses[0]["uneven"])


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return seen("streams", tmp_path_factory.mktemp("streams"))


def test_all_begin_with_the_values_of_the_first(streams: list[dict[str, Any]]) -> None:
    assert [theirs["initial"] for theirs in streams] == 2 * [ranks.state(ranks.vae(0))]


def test_buffers_and_parameters_are_the_same_at_the_end(streams: list[dict[str, Any]]) -> None:
    first, second = (theirs["networks"] for theirs in streams)
    assert first == second
    assert all(math.isfinite(number) for values in first for number in values)


def test_each_process_draws_from_a_stream_of_its_own(streams: list[dict[str, Any]]) -> None:
    first, second = (torch.tensor(theirs["drawn"][1:]) for theirs in streams)  # 0: the setup
    assert first.shape == second.shape == (1, 5)
    assert (first != second).all()
    assert all(theirs["random state kept"] for theirs in streams)


def test_the_objective_of_parts_has_the_mean_of_that_of_the_whole(
    streams: list[dict[str, Any]],
) -> None:
    parts, whole = np.array(streams[0]["estimates"]), np.array(ranks.frozen())
    assert streams[0]["estimates"] == streams[1]["estimates"]
    assert len(set(parts)) == len(parts)
    error = math.sqrt((parts.var(ddof=1) + whole.var(ddof=1)) / len(whole))
    assert abs(parts.mean() - whole.mean()) < 4 * error
    # as many draws go into an epoch: the variances agree within 4 standard errors of their ratio
    assert abs(math.log(parts.var() / whole.var())) < 4 * math.sqrt(2 * 2 / (len(whole) - 1))


@pytest.fixture(scope="module")
def replays(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return seen("replays", tmp_path_factory.mktemp("replays"))


DIFFERENT = "run again, its operations do not give what it gives"
# torch 2.4 gives other last bits into memory that is there, which is seen at once
OLD = torch.__version__.startswith("2.4")


@pytest.mark.parametrize(
    ("name", "account"),
    [
        ("as recorded", "replayed from epoch 2 on"),
        ("other in one process", f"by the pair itself, those of epoch 2 to 2 apart: {DIFFERENT}"),
    ],
)
def test_replayed_steps_of_all_have_the_bits_of_those_by_the_pair(
    replays: list[dict[str, Any]], name: str, account: str
) -> None:
    """Where one process finds a difference all begin the epoch anew, and end in the same."""
    first, second = (theirs[name] for theirs in replays)
    assert first == second
    replayed, by_pair = (run | {"capture": ""} for run in first)
    assert replayed == by_pair
    assert first[0]["capture"] == (f"by the pair itself: {DIFFERENT}" if OLD else account)
    assert first[1]["capture"] == "by the pair itself, as asked"


def test_an_error_goes_before_a_difference(replays: list[dict[str, Any]]) -> None:
    own, told = (theirs["failing in one process"] for theirs in replays)
    assert own == ["RuntimeError", "the file of the first process is gone"]
    assert told == [*own, "This happened on rank 0."]


# What fails in one process: kind and words of the error in each of the two.
FAILURES = {
    "not finite": ("NonFiniteLoss", "epoch 1, step 1, from the log density at z, x"),
    "not finite in validation": ("NonFiniteLoss", "the validation after epoch 1"),
    "an error of the transform": ("RuntimeError", "the file of the second process is gone"),
    "an error that can't travel": ("RuntimeError", "here, and there"),
    "a full disk": ("OSError", "no space left"),
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return seen("failures", tmp_path_factory.mktemp("failures"))


@pytest.mark.parametrize("name", FAILURES)
def test_where_one_process_fails_all_end_with_its_error(
    failures: list[dict[str, Any]], name: str
) -> None:
    kind, words = FAILURES[name]
    errors = [theirs[name] for theirs in failures]
    assert all(words in error[1] for error in errors)
    told = [error for error in errors if len(error) == 3]
    (own,) = [error for error in errors if len(error) == 2]
    assert [error[0] for error in told] == [kind]
    assert own[0] == ("Unportable" if "travel" in name else kind)
    assert told[0][2] == f"This happened on rank {errors.index(own)}."
    assert [theirs["none"] for theirs in failures] == [[], []]  # and the next run is none the worse


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return seen("refusals", tmp_path_factory.mktemp("refusals"))


# What is refused, and what the refusal says that works.
REMEDIES = {
    "a loader": "Pass its data set, loader.dataset, and batch_size=8",
    "a loader for validation": "Pass its data set, loader.dataset, and batch_size=8",
    "small minibatches": "Pass batch_size=2 or more",
    "drawn rows": "Write pyro.plate('data', N, subsample=torch.arange(len(x)))",
    "a latent for all": 'Write pyro.plate("data", N, subsample=torch.arange(len(x)))',
    "parameters by place": "write a guide that computes them from the row",
    "a single row for BatchNorm": "raise batch_size to 4",
    "rows of each process": "got other training rows in some. Give each of them all rows",
    "seeds of each process": "got other seed in some. Give each of them",
    "pairs of each process": "got other tensor loc",
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_parts_would_not_train_is_refused_with_a_remedy(
    refusals: list[dict[str, Any]], name: str
) -> None:
    for theirs in refusals:
        refused, followed = theirs[name]
        assert refused[0] == "InputError" and REMEDIES[name] in refused[1]
        assert followed == []


def test_what_one_process_begins_two_go_on_with(courses: list[dict[str, Any]]) -> None:
    assert_close(courses[0]["gone on"], courses[0]["uneven"])


def test_a_killed_run_goes_on_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    assert launch("killed", tmp_path).returncode != 0
    (tmp_path / "die").unlink()
    assert_close(ranks.killed(tmp_path), ranks.course("uneven", epochs=6))


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert join(cpu) == (0, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert join(cpu) == (0, 1)
    assert not torch.distributed.is_initialized()


def test_a_group_that_was_joined_is_left_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread of it may abort the process there."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in {**place, "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pyrovae.training.distributed.processes_started", lambda: 2)
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    assert join(torch.device("cpu")) == (0, 1)
    assert torch.distributed.is_initialized()
    at_exit[-1]()
    assert not torch.distributed.is_initialized()


def test_a_gpu_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, any_gpu, third = torch.device("cpu"), torch.device("cuda"), torch.device("cuda:2")
    assert own_device(any_gpu) == any_gpu
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device(cpu) == cpu
    assert own_device(any_gpu) == own_device(torch.device("cuda:0")) == torch.device("cuda:1")
    assert own_device(third) == third


def test_the_command_runs_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["analyze"]) == 2
    assert "expected one process; got 2, started by torchrun" in capsys.readouterr().err
