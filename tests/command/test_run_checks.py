"""Checks before an analysis begins, and the error if it fails at its end."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyrovae.command import run_checks
from pyrovae.command.cli import main
from pyrovae.command.run_checks import CHECKPOINT, LOCK, RESULTS, only_run, training_saved, writable
from pyrovae.errors import InputError
from pyrovae.saving import draft

HOLD = """
import sys
from pathlib import Path
from pyrovae.command.run_checks import only_run
with only_run(Path(sys.argv[1])):
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    with process:
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_one_after_a_kill_is_not(
    tmp_path: Path, other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["--resume"]):
        assert main(["analyze", "digits", "--epochs", "1", "--out", str(tmp_path), *options]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "one run at a time in --out" in message
    other.kill()
    other.wait()
    with only_run(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not list(tmp_path.iterdir())


def test_drafts_of_a_killed_run_are_removed_and_no_other_file(tmp_path: Path) -> None:
    mine = tmp_path / "notes.partial"
    for path in [mine, *(draft(tmp_path / name) for name in (CHECKPOINT, *RESULTS))]:
        path.touch()
    with only_run(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, mine.name}
    assert list(tmp_path.iterdir()) == [mine]


def test_two_threads_are_two_runs(tmp_path: Path) -> None:
    refused = []

    def enter() -> None:
        with pytest.raises(InputError, match="one run at a time"), only_run(tmp_path):
            pass
        refused.append(True)

    with only_run(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert refused == [True]
    with only_run(tmp_path):
        pass


def test_an_error_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_run(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))


def test_a_full_disk_is_found_and_no_folder_is_left(tmp_path: Path, full: None) -> None:
    with pytest.raises(InputError, match="MB of room in"), writable(tmp_path / "a" / "b"):
        raise AssertionError("the work has begun")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["file", "file/inside"])
def test_a_file_in_the_way_is_found(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="expected a folder to write to"),
        writable(tmp_path / folder),
    ):
        raise AssertionError("the work has begun")


@pytest.mark.parametrize("trained", [True, False])
def test_the_error_says_whether_the_training_is_saved(tmp_path: Path, trained: bool) -> None:
    if trained:
        (tmp_path / CHECKPOINT).touch()
    with pytest.raises(InputError) as caught, training_saved(tmp_path):
        raise InputError("expected room; got none.")
    assert ("--resume" in str(caught.value)) == trained


def test_the_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(run_checks, "MEMORY_LIMIT", limit)
    whole = run_checks.memory()
    if whole is None:
        pytest.skip("this system does not say")
    limit.write_text("max\n", encoding="ascii")
    assert run_checks.memory() == whole
    limit.write_text("1000000\n", encoding="ascii")
    assert run_checks.memory() == 1_000_000
    run_checks.check_memory(1_000_000, "it", "")
    with pytest.raises(InputError, match=r"expected it to fit into 0.0 GB .* Take less"):
        run_checks.check_memory(1_000_001, "it", "Take less.")
