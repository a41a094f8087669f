"""Results in files that are read without the code of the pair they are about."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior, Mixture, families
from pyrovae.saving import flows, names
from pyrovae.saving.atomic import from_archive, replace, to_archive

FORMAT = 2
UNSEALED = 1  # the format of 0.1.0, which has no checksum
PLAIN = (type(None), bool, int, float, str)
SEQUENCES = {"tuple": tuple, "list": list, "Size": torch.Size}
MIXTURES = {"Mixture": Mixture, "MixtureSameFamily": dist.MixtureSameFamily}


def save(result: Any, path: str | Path) -> None:
    """Write a result to a file, whole or not at all; :func:`load` reads it.

    The file holds tensors, numbers and names, no code: it can be read without unpickling objects.
    What is in it has been read back before it is written.

    Args:
        result: an aggregated posterior, an ex-post prior, a diagnosis, an estimate of log p(x), or
            any other result of this library; lists, tuples and dicts of them, of tensors, arrays,
            numbers and text. A number of NumPy's comes back as one of Python's, a named tuple of
            someone else as one with the same names.
        path: where to.

    Raises:
        InputError: if it holds a density that is not made of tensors, as one that runs a guide, or
            of a family that isn't one of ``pyro.distributions``; or something else that would not
            come back as it was, or there is no room for the file.

    >>> import torch, pyrovae as pv, pyro.distributions as dist
    >>> means = torch.linspace(-2, 2, 200).view(200, 1)
    >>> encoding = dist.Normal(means, 0.5).to_event(1)
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "posterior.pt"
    >>> pv.save(pv.AggregatedPosterior(encoding), path)
    >>> pv.load(path)
    AggregatedPosterior(components=200, event_shape=(1,), family=Normal)
    """
    archive = to_archive({"pyrovae": FORMAT, "result": _pack(result)})
    try:
        _read(archive)
    except _FOREIGN as error:
        raise InputError(
            f"expected a result that can be read again; got a {type(result).__name__} of which "
            f"that fails: {error}. Save its parts, tensors and numbers, one by one."
        ) from error
    replace(Path(path), lambda draft: draft.write_bytes(archive))


def load(path: str | Path) -> Any:
    """Read what :func:`save` wrote.

    Nothing is unpickled but tensors, numbers and names, whatever stands in the file.

    Raises:
        InputError: if the file is none of its kind.
        OSError: if there is none, or it can't be read.

    >>> import pyrovae as pv, tempfile
    >>> agg = pv.AggregatedPosterior(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pv.save(agg, folder + "/agg.pt")
    ...     pv.load(folder + "/agg.pt")
    AggregatedPosterior(components=5, event_shape=(2,), family=Normal)
    """
    content = Path(path).read_bytes()
    try:
        return _read(content)
    except _FOREIGN as error:
        reason = str(error) if isinstance(error, ValueError) else "of another kind"
        if isinstance(error, InputError):
            reason = f"not whole or of another version: {reason.rstrip('.')}"
        raise InputError(
            f"expected a file that pyrovae.save has written; got {str(path)!r}, which is {reason}. "
            "Write it anew with pyrovae.save, or read it with the version that wrote it."
        ) from None


_FOREIGN = (ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError, RuntimeError)


def _read(archive: bytes) -> Any:
    state = from_archive(archive, sealed=False)
    version = state.get("pyrovae") if isinstance(state, dict) else None
    if version == FORMAT:
        state = from_archive(archive)
    elif version != UNSEALED:
        raise ValueError(f"not of format {FORMAT}")
    return _unpack(state["result"])


def _pack(value: Any) -> Any:
    if isinstance(value, np.generic):  # of text, .item() drops zeros at the end
        value = "".join(value) if isinstance(value, np.str_) else value.item()
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if type(value) is np.ndarray and value.dtype.kind in "biufc":
        plain = value.astype(value.dtype.newbyteorder("="), order="C")  # torch takes no other order
        return {"kind": "array", "value": torch.from_numpy(plain)}
    if type(value) in SEQUENCES.values():
        return {"kind": type(value).__name__, "items": [_pack(item) for item in value]}
    if isinstance(value, Mapping):
        return {"kind": "dict", "items": [[_pack(k), _pack(v)] for k, v in value.items()]}
    if isinstance(value, torch.distributions.Distribution):
        return _pack_density(value)
    if name := names.name_of(type(value)):
        content = {field: _pack(getattr(value, field)) for field in names.fields_of(type(value))}
        return {"kind": "result", "name": name, "fields": content}
    if isinstance(value, tuple) and (labels := names.fields_of(type(value))):
        items = [_pack(item) for item in value]
        return {"kind": "named", "name": type(value).__name__, "names": labels, "items": items}
    raise InputError(
        "expected a result of pyrovae, made of tensors, arrays of numbers, numbers and text; got "
        f"{type(value).__name__}. Save its parts one by one."
    )


def _pack_density(density: dist.Distribution) -> dict[str, Any]:
    batch = list(density.batch_shape)
    if isinstance(density, AggregatedPosterior):
        weights = density.masses
        components = _family(density.encoding)
        return {"kind": "q_agg", "weights": weights, "components": components, "batch": batch}
    if isinstance(density, torch.distributions.MixtureSameFamily):
        name = "Mixture" if isinstance(density, Mixture) else "MixtureSameFamily"
        return {
            "kind": name,
            "mixing": _family(density.mixture_distribution),
            "components": _family(density.component_distribution),
            "batch": batch,
        }
    if flows.is_flow(density):
        return {"kind": "flow", "state": flows.to_state(density)}
    return {"kind": "family", "state": _family(density)}


def _family(density: dist.Distribution) -> dict[str, Any]:
    """What a density is made of, of which it is known that it can be read again."""
    state = families.to_state(density)
    families.from_state(state)
    return state


def _unpack(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    kind = state["kind"]
    if kind == "array":
        return state["value"].numpy()
    if kind == "dict":
        return {_unpack(key): _unpack(value) for key, value in state["items"]}
    if kind == "named":
        return namedtuple(state["name"], state["names"])(*map(_unpack, state["items"]))
    if kind in SEQUENCES:
        return SEQUENCES[kind]([_unpack(item) for item in state["items"]])
    if kind == "family":
        return families.from_state(state["state"])
    if kind == "flow":
        return flows.from_state(state["state"])
    if kind == "result":
        content = {name: _unpack(value) for name, value in state["fields"].items()}
        return names.build(_stable(state["name"]), content)
    components = families.from_state(state["components"])
    if kind == "q_agg":
        whole = AggregatedPosterior(components, state["weights"])
    else:
        whole = MIXTURES[kind](families.from_state(state["mixing"]), components)
    batch = torch.Size(state["batch"])
    return whole if whole.batch_shape == batch else whole.expand(batch)


def _stable(name: str | list[str]) -> str:
    """The name of a result, beside which older files hold the module that it was in."""
    return name if isinstance(name, str) else name[-1]
