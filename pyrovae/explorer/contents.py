"""What the page holds: codes, colours, densities, decoder and rows, packed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Column, Dataset, is_image
from pyrovae.errors import InputError
from pyrovae.explorer.arrays import pack, quantise, whole
from pyrovae.explorer.decoders import program
from pyrovae.explorer.densities import as_normals
from pyrovae.explorer.planes import FEW, neighbour_map, principal_components
from pyrovae.mixture import AggregatedPosterior, Mixture, families
from pyrovae.plots import LABEL_COLOURS
from pyrovae.populations import novelty
from pyrovae.randomness import seeded
from pyrovae.runs import Run

ROOM = 600_000  # bytes for the rows themselves, and as many for the columns' colours
DRAWS = 1000  # of prior and held-out codes, for what counts as a hole
CENTRES = 256  # rows that are shown of a decoder which the page can't run
SEED = 0
BLOCK = 4096  # rows whose moments are computed together
OUTSIDE = "outside of where it has any density"  # of codes whose log density is −∞


def check(aggregated: AggregatedPosterior) -> tuple[Tensor, Tensor]:
    """Means and scales of the encodings, each ``(N, D)``.

    Raises:
        InputError: unless they are diagonal normals of two units or more.
    """
    normal = families.diagonal_normal(aggregated.encoding)
    if normal is None or len(aggregated.event_shape) != 1 or aggregated.event_shape[0] < 2:
        raise InputError(
            "expected codes of two or more units under a guide of independent normals, to show "
            f"them in a plane; got {aggregated!r}. Look at the report of the run."
        )
    return normal[0].detach().cpu(), normal[1].detach().cpu()


@torch.no_grad()
def contents(run: Run, *, rows: bool) -> dict[str, Any]:
    """All that the page is told, as JSON takes it.

    Args:
        run: the run.
        rows: whether the page may hold rows of the data, if they take little room.
    """
    loc, scale = check(run.aggregated)
    others = run.encode_part("held_out")
    held_out = others.mean.detach().cpu()
    codes = torch.cat([loc, held_out.to(loc.dtype)])
    numbers = torch.cat([run.rows["train"], run.rows["held_out"]])
    diagnosis, known = run.diagnosis, run.ex_post.distribution
    with seeded(SEED, "codes of the explorer"):
        prior = diagnosis.prior.sample(torch.Size([DRAWS])).reshape(DRAWS, -1)
        inside = others.sample()[torch.randperm(len(held_out))[:DRAWS]]
    ids = run.data.ids
    log_weight = run.aggregated.log_weights.double().cpu()
    equal = bool((log_weight - log_weight[0]).abs().max() < 1e-6)
    return {
        "name": run.about["data"]["name"],
        "train": len(loc),
        "loc": quantise(codes, 3),
        "log_scale": quantise(scale.double().log(), 2),
        "log_weight": None if equal else pack(log_weight.numpy()),
        "rows": pack(numbers.numpy().astype(np.int32)),
        "ids": None if ids is None else [ids[row] for row in numbers.tolist()],
        "components": principal_components(loc),
        "map": _map(codes),
        "densities": {
            "prior": as_normals(diagnosis.prior, seed=SEED),
            "ex-post": as_normals(known, seed=SEED),
            "q_agg": as_normals(run.aggregated, seed=SEED),
        },
        "prior_draws": pack(prior.cpu().numpy()),
        "inside": pack(inside.cpu().numpy()),
        "recommended": run.recommended,
        "colours": list(_colours(run, codes, numbers)),
        "palette": LABEL_COLOURS,
        "decoder": _decoder(run, loc),
        "row": _row(run, numbers, rows),
    }


def _map(codes: Tensor) -> dict[str, Any] | None:
    if len(codes) < FEW:
        return None
    places, words = neighbour_map(codes, seed=SEED)
    return {"places": quantise(places, 2), "words": words}


# -- colours -------------------------------------------------------------------------------------


def _colours(run: Run, codes: Tensor, numbers: Tensor) -> Iterator[dict[str, Any]]:
    """What points can be coloured by: classes by number, or numbers."""
    if run.labels is not None:
        found = run.labels[numbers]
        names = run.label_names or [str(label) for label in range(int(run.labels.max()) + 1)]
        yield _classes("label", found, names)
    part = (torch.arange(len(codes)) >= len(run.rows["train"])).long()
    yield _classes("part of the data", part, ["training", "held out"])
    fitted = run.ex_post.distribution
    densities = {"q_agg": run.aggregated, "ex-post prior": fitted, "prior": run.diagnosis.prior}
    for name, density in densities.items():
        values = density.log_prob(codes)
        yield _values(f"log {name} at the code", values, "nats", missing=OUTSIDE)
    yield from _evidence(run, len(codes))
    held_out = codes[len(run.rows["train"]) :]
    found = novelty(fitted, codes, calibration=held_out, seed=SEED).p_value
    words = (
        "how rare so low a density of the ex-post prior is among held-out codes; training rows, "
        "from which it was made, have higher ones"
    )
    yield _values("novelty p-value of the code", found, words)
    if isinstance(fitted, Mixture) and 1 < fitted.size < len(run.rows["train"]):
        nearest = fitted.responsibilities(codes, top=1).index[:, 0]
        names = [f"component {number}" for number in range(fitted.size)]
        yield _classes("component of the ex-post prior", nearest, names)
    yield from _columns(run, numbers)


def _evidence(run: Run, size: int) -> Iterator[dict[str, Any]]:
    """log p(x) of the held-out rows for which it was measured."""
    evidence = run.diagnosis.evidence.get("prior")
    if evidence is None or evidence.rows is None:
        return
    values = torch.full((size,), torch.nan, dtype=torch.float64)
    values[len(run.rows["train"]) + evidence.rows.cpu()] = evidence.values.double().cpu()
    words = f"nats, of the {len(evidence.values):,} held-out rows for which it was estimated"
    yield _values("log p(x)", values, words)


def _columns(run: Run, numbers: Tensor) -> Iterator[dict[str, Any]]:
    """The columns of a table, as many as there is room for."""
    if run.columns is None:
        return
    shown = max(1, ROOM // len(numbers))
    for place, column in enumerate(run.data.kinds[:shown]):
        values = run.data.values[numbers, place].double()
        if run.data.obs_mask is not None:
            values = values.where(run.data.obs_mask[numbers, place], torch.nan)
        name = f"column {column.name}"
        if len(run.columns) > shown:
            name += f" ({place + 1} of {len(run.columns):,}; the first {shown} are here)"
        if column.kind == "categorical" and not bool(values.isnan().any()):
            yield _classes(name, values.long(), list(column.categories))
        else:
            yield _values(name, values, "", size=1)


def _classes(name: str, values: Tensor, names: Any) -> dict[str, Any]:
    return {"name": name, "kind": "class", "values": whole(values.numpy()), "names": list(names)}


def _values(
    name: str, values: Tensor, words: str, size: int = 2, missing: str = "without a value"
) -> dict[str, Any]:
    packed = quantise(values.double().cpu().numpy(), size)
    return {"name": name, "kind": "number", "values": packed, "words": words, "missing": missing}


# -- rows ----------------------------------------------------------------------------------------


def _decoder(run: Run, loc: Tensor) -> dict[str, Any]:
    """The decoder's steps; or, if the page can't take them, rows decoded at some codes."""
    if run.about["model"]["kind"] != "pair":
        found = program(run.vae.decoder)
        if found is not None:
            if found["head"]["kind"] == "negative_binomial":
                totals = run.data.rows(run.rows["train"]).values.double().flatten(1).sum(1)
                found["head"]["total"] = float(totals.mean())
            return found
    with seeded(SEED, "codes that the explorer decodes"):
        chosen = loc[torch.randperm(len(loc))[:CENTRES]]
    decoded = run.decode(chosen).mean.reshape(len(chosen), -1)
    return {"codes": pack(chosen.numpy()), "decoded": pack(decoded.double().cpu().numpy())}


def _row(run: Run, numbers: Tensor, shown: bool) -> dict[str, Any]:
    """What a row is, and the rows themselves if they may be shown and take little room."""
    data = run.data
    shape = data.event_shape
    known = data.columns is not None and len(shape) == 1
    columns = data.kinds if known else [Column(f"entry {n}", "real") for n in _entries(shape)]
    image = is_image(shape)
    size = 1 if image else 2
    found = _moments(data, numbers)
    packed = None
    if shown and len(numbers) * int(np.prod(shape)) * size <= ROOM:
        values = _numbers(data, numbers)
        packed = quantise(values.reshape(-1, 1) if image else values, size)
    return {
        "shape": list(shape),
        "image": image,
        "low": float(found.low),
        "high": float(found.high),
        "columns": [
            {"name": column.name, "kind": column.kind, "categories": list(column.categories)}
            for column in ([] if image else columns)
        ],
        "mean": [] if image else found.mean.tolist(),
        "spread": [] if image else found.spread.tolist(),
        "values": packed,
    }


class Moments(NamedTuple):
    """Mean and standard deviation of each entry, shape ``(C,)``, and the least and the greatest."""

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor


def _moments(data: Dataset, numbers: Tensor) -> Moments:
    """Of the cells that are there, a block of rows at a time: there may be many rows."""
    blocks = numbers.split(BLOCK)
    count, total, squares = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    low, high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for block in blocks:
        values = _numbers(data, block)
        count, total = count + (~values.isnan()).sum(0), total + values.nansum(0)
        low = torch.minimum(low, values.nan_to_num(nan=torch.inf).min())
        high = torch.maximum(high, values.nan_to_num(nan=-torch.inf).max())
    mean = total / count
    for block in blocks:
        squares = squares + (_numbers(data, block) - mean).square().nansum(0)
    return Moments(mean, (squares / (count - 1)).sqrt(), low, high)


def _numbers(data: Dataset, rows: Tensor) -> Tensor:
    """Some rows in double precision, NaN where a cell is missing, shape ``(n, C)``."""
    values = data.values[rows].double().flatten(1)
    if data.obs_mask is None:
        return values
    return values.where(data.obs_mask[rows].flatten(1), torch.nan)


def _entries(shape: tuple[int, ...]) -> range:
    return range(int(np.prod(shape)))
