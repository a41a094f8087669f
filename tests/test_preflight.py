"""What is found before an analysis begins, and what is said if it fails at its end."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyrovae.errors import InputError
from pyrovae.preflight import CHECKPOINT, training_kept, writable


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
def test_what_was_trained_is_said_to_be_kept_where_it_is(tmp_path: Path, trained: bool) -> None:
    if trained:
        (tmp_path / CHECKPOINT).touch()
    with pytest.raises(InputError) as caught, training_kept(tmp_path):
        raise InputError("expected room; got none.")
    assert ("--resume" in str(caught.value)) == trained
