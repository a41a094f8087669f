"""Encode a data set into a folder shard by shard, and open that as an aggregated posterior."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.data import Batch, Blocks, Data, Sliced, as_blocks, row_count, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.pairs import (
    Encoded,
    Pair,
    PyroFunction,
    encode_batches,
    guide_pair,
    measuring,
    with_row_numbers,
)
from pyrovae.progress import progress_bar
from pyrovae.scale.folder import MEANS, SCALES, Folder, Settings
from pyrovae.scale.posterior import ShardedPosterior
from pyrovae.scale.ranks import Ranks
from pyrovae.scale.rounding import diagonal_normals, round_normals, same_normals

DTYPES = (torch.float16, torch.float32, torch.float64)


def encode_to(  # noqa: PLR0913 - a flat front door
    folder: str | Path,
    guide: PyroFunction,
    data: Data | Sliced | str | Path,
    *,
    site: str | tuple[str, ...] = "z",
    data_plate: str | None = None,
    shard_rows: int = 1 << 18,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 4096,
    model: PyroFunction | None = None,
    progress: bool | None = None,
) -> Path:
    """Write q(z | x_n) of every data point into a folder, for data that need not fit into memory.

    It may be stopped at any time, also by a kill: called again with the same arguments it goes on,
    after it has seen that the data of the shards that are done, and the guide, are the same. Row n
    of the files is row n of the data. In an initialised process group of torch each process writes
    its own shards, into a folder that all of them see.

    Args:
        folder: a new one, or one to go on with.
        guide: any Pyro guide whose encodings are diagonal normals.
        data: rows as :func:`pyrovae.encode` takes them; an array that is mapped into memory
            (``numpy.load(path, mmap_mode="r")``) or read by slices (h5py, Zarr), or a tuple of
            these; or the path of a ``.npy`` file, or of a ``.parquet`` file of numbers. None of
            them is in memory as a whole.
        site, data_plate, batch_size, model: as :func:`pyrovae.encode`.
        shard_rows: rows in a shard, which is what is written and evaluated at a time.
        dtype: in which means and scales are written: float32, float64, or float16, which takes half
            the room of float32. What is written is the mixture from then on. It moves no row by
            more than 0.01 nats, KL(q_n ‖ what is written), and so q_agg neither, whatever the
            weights.
        progress: whether to show a bar; ``None`` shows it if stderr is a terminal.

    Returns:
        the folder, for :func:`open_aggregated`.

    Raises:
        InputError: as :func:`pyrovae.encode`; for encodings of another family, or such as the dtype
            can't hold; if the folder holds something else, was begun with other arguments,
            data or another guide, or the disk has no room.

    >>> import pyrovae as pv, tempfile
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(30)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pv.open_aggregated(pv.encode_to(folder, vae.guide, x, shard_rows=10))
    ShardedPosterior(components=30, event_shape=(2,), family=Normal)
    """
    _check_arguments(shard_rows, dtype)
    store, ranks = Folder(Path(folder).expanduser()), Ranks.to_write()
    pair = guide_pair(guide, site, data_plate, model)
    blocks = as_blocks(data, batch_size)
    with torch.no_grad(), measuring(pair.model, pair.guide):
        with _together(ranks):
            first = take_rows(next(blocks.ordered()), slice(0, shard_rows))
            ((_, encoded),) = encode_batches(pair, [(0, first)])
            means, scales = _normal(encoded)
            settings = Settings(
                blocks.count, means.shape[1], str(dtype).removeprefix("torch."), int(shard_rows),
                str(site),
            )  # fmt: skip
            if ranks is None or ranks.rank == 0:
                _begin(store, settings)
        with _together(ranks), progress_bar("encoding", blocks.count, progress=progress) as bar:
            _check_begun(store, settings, means, scales)
            _encode(pair, first, blocks, _Shards(store, dtype, ranks), bar.tick)
    return store.path


def open_aggregated(
    folder: str | Path,
    *,
    weights: Tensor | Sequence[float] | None = None,
    verify: bool = False,
    alone: bool = False,
) -> ShardedPosterior:
    """The aggregated posterior of encodings in a folder, of which one shard at a time is read.

    Args:
        folder: what :func:`encode_to` has written.
        weights: w_n, shape ``(N,)``, which the mixture normalises; equal if not given.
        verify: whether to read everything once, to see that no number has changed on the disk.
        alone: whether this process evaluates all shards, whatever process group there is: for
            what one process does while the others don't, such as a diagnosis.

    Raises:
        InputError: if it isn't such a folder, shards are missing, or, with ``verify``, a shard
            holds other numbers than were written.

    >>> import pyrovae as pv, tempfile
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     agg = pv.open_aggregated(pv.encode_to(folder, exact.vae().guide, exact.sample(30)))
    ...     agg.log_prob(agg.sample((3,))).shape
    torch.Size([3])
    """
    store = Folder(Path(folder).expanduser())
    settings, missing = store.settings, store.missing()
    if missing:
        raise InputError(
            f"expected all {len(settings.shards)} shards in {store.path}; got none for "
            f"{len(missing)} of them, the first number {missing[0]}. Call encode_to again with the "
            "same arguments: it goes on where it was stopped."
        )
    if verify:
        store.check_codes()
    (loc, let_go_of_means), (scale, let_go_of_scales) = store.open(MEANS), store.open(SCALES)
    return ShardedPosterior(
        diagonal_normals(loc, scale),
        settings.shards,
        weights,
        done=lambda: (let_go_of_means(), let_go_of_scales()),
        alone=alone,
    )


def _check_arguments(shard_rows: int, dtype: torch.dtype) -> None:
    if not isinstance(shard_rows, Integral) or isinstance(shard_rows, bool) or shard_rows < 1:
        raise InputError(
            f"expected shard_rows of at least 1, a whole number; got {shard_rows!r}. Try 262144."
        )
    if dtype not in DTYPES:
        raise InputError(
            f"expected dtype torch.float16, float32 or float64; got {dtype}. Use torch.float32."
        )


def _begin(store: Folder, settings: Settings) -> None:
    """Begin a new folder, unless there is one to go on with."""
    if not store.exists and not store.is_free:
        raise InputError(
            f"expected a new folder, or one that encode_to has begun; got {store.path}, which "
            "holds other files. Name another folder."
        )
    if not store.exists:
        store.begin(settings)


def _check_begun(store: Folder, settings: Settings, means: Tensor, scales: Tensor) -> None:
    """Raise unless a folder was begun with these settings, and with these encodings if it has any.

    Args:
        store: the folder.
        settings: today's.
        means, scales: of the first rows.
    """
    begun = store.settings
    changed = [
        f"{name} {getattr(settings, name)!r} (there: {getattr(begun, name)!r})"
        for name in Settings.__dataclass_fields__
        if getattr(settings, name) != getattr(begun, name)
    ]
    if changed:
        raise InputError(
            f"expected the arguments that {store.path} was begun with; got {', '.join(changed)}. "
            "Give the same ones, or name another folder."
        )
    if store.record(0) is not None:
        _check_guide(store, 0, means, scales)


def _check_guide(store: Folder, start: int, means: Tensor, scales: Tensor) -> None:
    """Raise unless rows of a shard that is done have these encodings, but for rounding.

    Args:
        store: the folder.
        start: number of the first row.
        means, scales: of this row and those that follow.
    """
    rows = slice(start, start + len(means))
    stored = torch.float16 if store.settings.dtype == "float16" else torch.float32
    before = [store.open(name)[0][rows].to(means.device) for name in (MEANS, SCALES)]
    if not same_normals((means, scales), before, stored):
        which = f"rows {start} to {rows.stop - 1}" if start else "the first rows"
        raise InputError(
            f"expected the guide and the data that {store.path} was begun with; got another "
            f"encoding of {which}. Name another folder."
        )


def _encode(
    pair: Pair, first: Batch, blocks: Blocks, shards: _Shards, tick: Callable[[int], None]
) -> None:
    """Encode what is missing, and the first batch of each shard that is done, to compare.

    The first rows come once more: two batches tell of a guide.
    """
    pieces = chain([(0, first)], shards.pieces(with_row_numbers(blocks.ordered()), tick))
    encodings = encode_batches(pair, pieces)
    next(encodings)
    for _, encoded in encodings:
        shards.add(*_normal(encoded))


class _Shards:
    """What is known of the shard at hand while rows come in their order.

    Args:
        store: the folder.
        dtype: of its arrays.
        ranks: processes that write other shards.
    """

    def __init__(self, store: Folder, dtype: torch.dtype, ranks: Ranks | None) -> None:
        self.store, self.dtype = store, dtype
        self.slices = store.settings.shards
        numbers = range(len(self.slices))
        self.own = set(numbers if ranks is None else ranks.own(numbers))
        self.number, self.digest = -1, _Digest()
        self.done: dict[str, str] | None = None
        self.means: list[Tensor] = []
        self.scales: list[Tensor] = []

    def pieces(
        self, batches: Iterable[tuple[int, Batch]], tick: Callable[[int], None]
    ) -> Iterator[tuple[int, Batch]]:
        """The rows to encode, cut where shards end; rows of shards that are done are compared.

        Of such a shard the first rows are encoded anew, as the guide may be another one now.

        Raises:
            InputError: if these are other rows, or there are more or fewer than at first.
        """
        rows, end = self.store.settings.rows, 0
        for start, piece in _cut(batches, self.store.settings.shard_rows):
            end = start + row_count(piece)
            tick(row_count(piece))
            if end > rows:
                break
            number = start // self.store.settings.shard_rows
            if number not in self.own:
                continue
            if number != self.number:
                self.number, self.digest = number, _Digest()
                self.done, first = self.store.record(number), piece
            self.digest.add(piece)
            if self.done is None:
                yield start, piece
            elif end == self.slices[number].stop and self.digest.text() != self.done["data"]:
                raise InputError(
                    f"expected the data that {self.store.path} was begun with, in the same order; "
                    f"got others for shard {number}, rows {self.slices[number].start} to "
                    f"{end - 1}. Give the same data, or name another folder."
                )
            elif end == self.slices[number].stop:
                yield self.slices[number].start, first
        if end != rows:
            raise InputError(
                f"expected as many rows as the data say that they have, {rows}; got {end} or more. "
                "Give data that keep their length."
            )

    def add(self, means: Tensor, scales: Tensor) -> None:
        """Take the encoding of the next rows, and write the shard if it is whole.

        Raises:
            InputError: if the shard is done, and these are other encodings than it holds.
        """
        rows = self.slices[self.number]
        if self.done is not None:
            _check_guide(self.store, rows.start, means, scales)
            return
        first = rows.start + sum(map(len, self.means))
        means, scales = round_normals(means, scales, self.dtype, first=first)
        self.means.append(means)
        self.scales.append(scales)
        if first + len(means) < rows.stop:
            return
        loc, scale = (torch.cat(parts) for parts in (self.means, self.scales))
        self.store.write(self.number, loc.numpy(), scale.numpy(), self.digest.text())
        self.means.clear()
        self.scales.clear()


class _Digest:
    """A digest of rows that does not depend on how they were cut into batches."""

    def __init__(self) -> None:
        self.arguments: list[Any] = []

    def add(self, batch: Batch) -> None:
        """Add rows, of each argument."""
        if not self.arguments:
            kinds = [f"{tuple(array.shape[1:])} {array.dtype}" for array in batch]
            self.arguments = [hashlib.blake2b(kind.encode(), digest_size=16) for kind in kinds]
        for found, array in zip(self.arguments, batch, strict=True):
            numbers = array.detach().cpu().contiguous().flatten()
            found.update(numbers.view(torch.uint8).numpy().data)

    def text(self) -> str:
        """The digest of all rows so far."""
        return "-".join(found.hexdigest() for found in self.arguments)


def _cut(batches: Iterable[tuple[int, Batch]], shard_rows: int) -> Iterator[tuple[int, Batch]]:
    """Batches with the number of their first row, cut where shards end."""
    for start, batch in batches:
        first = 0
        while first < row_count(batch):
            last = first + shard_rows - (start + first) % shard_rows
            yield start + first, take_rows(batch, slice(first, last))
            first = last


def _normal(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Means and scales, each ``(B, D)``, of encodings that have to be diagonal normals."""
    normal = families.diagonal_normal(encoded.density)
    if normal is None:
        raise InputError(
            "expected a guide whose encodings are diagonal normals, which a folder can hold; got "
            f"{families.family(encoded.density)}. Use pyrovae.aggregate, in memory."
        )
    return normal


@contextmanager
def _together(ranks: Ranks | None) -> Iterator[None]:
    """Work in all processes, which end together: if one of them fails, all do."""
    if ranks is None:
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        found = ranks.gather(failed)
    if any(found):
        raise InputError(
            "expected all processes to go on; got an error in number "
            f"{found.index(True)}, which it states itself. See to that, and start all again."
        )
