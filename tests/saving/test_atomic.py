"""Files are written whole or not at all, and an archive notices every bit that has changed."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.errors import InputError
from pyrovae.saving import atomic

CONTENT = {"a": torch.arange(5.0), "b": [1, "x", None]}


def no_room(draft: Path) -> None:
    draft.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "whatever a library says")


def interrupted(draft: Path) -> None:
    draft.write_bytes(b"half")
    raise KeyboardInterrupt


def own_fault(draft: Path) -> None:
    draft.write_bytes(b"half")
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("write", "error"),
    [(no_room, InputError), (interrupted, KeyboardInterrupt), (own_fault, ZeroDivisionError)],
)
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, write: Callable[[Path], None], error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error):
        atomic.replace(path, write)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^expected to write '.*file'; got: No space left on device\. Make room"
    ):
        atomic.replace(tmp_path / "file", no_room)


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_a_folder_that_is_none_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    for write in (
        lambda: pv.save(torch.ones(2), tmp_path / folder / "a.pt"),
        lambda: atomic.check_folder(tmp_path / folder),
    ):
        with pytest.raises(InputError, match=rf"expected to write '.*{folder}.*'; got: (No|Not) "):
            write()


def test_a_limit_of_the_system_is_one_sentence(tmp_path: Path) -> None:
    """As on a full disk: the system refuses to write more than some bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    agg = pv.AggregatedPosterior(dist.Normal(torch.zeros(500, 2), 1.0).to_event(1))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(InputError, match=r"got: File too large"):
            pv.save(agg, tmp_path / "agg.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_room_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    atomic.check_room(tmp_path, 2_000_000)
    with pytest.raises(InputError, match=r"expected 3\.0 MB of room in .*got 2\.0 MB"):
        atomic.check_room(tmp_path, 3_000_000)


def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    atomic.write_archive(CONTENT, tmp_path / "file")
    assert done == ["sync", "name"]


# -- archives --------------------------------------------------------------------------------------


def test_an_archive_is_read_by_torch_too(tmp_path: Path) -> None:
    path = atomic.write_archive(CONTENT, tmp_path / "file.pt")
    for again in (
        torch.load(path, weights_only=True),
        torch.load(path, weights_only=True, mmap=True),
        atomic.from_archive(path.read_bytes()),
    ):
        assert torch.equal(again["a"], CONTENT["a"])
        assert again["b"] == CONTENT["b"]


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    archive = atomic.to_archive(CONTENT)
    for place in range(len(archive)):
        for bit in range(8):
            changed = bytearray(archive)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError, match="checksum"):
                atomic.from_archive(bytes(changed))
        with pytest.raises(ValueError, match="no checksum"):
            atomic.from_archive(archive[:place])
    for longer in (archive + b"\0", archive + archive, b"\0" + archive):
        with pytest.raises(ValueError, match="checksum"):
            atomic.from_archive(longer)


def test_of_what_others_wrote_the_checksums_of_the_entries_count() -> None:
    file = io.BytesIO()
    torch.save(CONTENT, file)
    archive = file.getvalue()
    assert torch.equal(atomic.from_archive(archive, sealed=False)["a"], CONTENT["a"])
    numbers = CONTENT["a"].numpy().tobytes()
    start = archive.index(numbers)
    for place in range(start, start + len(numbers)):
        changed = bytearray(archive)
        changed[place] ^= 4
        with pytest.raises(ValueError, match="damaged"):
            atomic.from_archive(bytes(changed), sealed=False)
    for cut in range(0, len(archive), 7):
        with pytest.raises(ValueError, match=r"damaged|another kind"):
            atomic.from_archive(archive[:cut], sealed=False)


def test_classes_are_known_only_while_a_file_is_read() -> None:
    before = set(torch.serialization.get_safe_globals())
    file = io.BytesIO()
    torch.save({"a": Known(3)}, file)
    assert atomic.from_archive(file.getvalue(), sealed=False, known=[Known])["a"].number == 3
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(ValueError, match="another kind"):
        atomic.from_archive(file.getvalue(), sealed=False)


class Known:
    def __init__(self, number: int) -> None:
        self.number = number
