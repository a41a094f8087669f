"""The one place that knows which ArviZ there is: 0.x (``InferenceData``) or 1.x (``DataTree``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovae.errors import InputError

Array = NDArray[Any]

LEAST_DRAWS = 5  # a tail is a fifth of them, and ArviZ 1.x fails without one


def arviz() -> Any:
    """The library itself, imported when it is first needed.

    Raises:
        InputError: if it finds no folder for its cache, as when HOME is read-only.
    """
    try:
        with warnings.catch_warnings():
            # 0.23 announces its coming refactor once a day; nobody who gets here can act on it.
            warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
            import arviz
    except OSError as error:
        raise InputError(
            f"expected a folder in which ArviZ may keep its cache; got {error.strerror or error} "
            f"at {error.filename!r}. Set the environment variable XDG_CACHE_HOME to a writable "
            "folder."
        ) from error
    return arviz


def psis(log_weights: Array) -> tuple[Array, Array]:
    """Pareto-smoothed importance weights and their k̂, one problem a row (Vehtari et al. 2024).

    Args:
        log_weights: log importance weights, shape ``(N, S)``, normalised or not.

    Returns:
        log_weights, smoothed and normalised to sum to one in each row, shape ``(N, S)``;
        pareto_k, shape ``(N,)``; infinite where there is no tail to fit, because there are too few
        draws or the largest weights are all equal.
    """
    with np.errstate(all="ignore"):  # for very unequal weights
        if hasattr(arviz(), "psislw"):
            smoothed, pareto_k = arviz().psislw(log_weights)
        else:  # ArviZ 1.x
            rows = [_smooth_row(row) for row in log_weights]
            smoothed, pareto_k = (np.stack(column) for column in zip(*rows, strict=True))
    return smoothed, np.where(np.isnan(pareto_k), np.inf, pareto_k)


def _smooth_row(log_weights: Array) -> tuple[Array, Array]:
    """One row by ArviZ 1.x, which takes negative log weights and raises without a tail.

    It counts draws of no weight among the largest where there are not enough others. The tail is
    then all draws with any weight, as in 0.x; its length is told by the relative efficiency.
    """
    from arviz_stats.base import array_stats

    draws, weighted = len(log_weights), int((log_weights > -np.inf).sum())
    tail = int(3 * draws**0.5 if draws > 225 else draws / 5)
    efficiency = 1.0 if weighted >= tail else 9 * draws / (weighted + 0.5) ** 2
    try:
        if weighted < LEAST_DRAWS:
            raise ValueError("too few draws")
        smoothed, pareto_k = array_stats.psislw(-log_weights, r_eff=efficiency)
    except ValueError:  # raised for a tail of equal weights as well
        return log_weights - np.logaddexp.reduce(log_weights), np.array(np.inf)
    return smoothed, np.asarray(pareto_k)


def convergence(draws: Array) -> tuple[Array, Array]:
    """r-hat and effective sample size of every scalar in the draws of several Markov chains.

    Args:
        draws: shape ``(chains, draws, ...)``.

    Returns:
        rank-normalised r-hat and bulk effective sample size, each of shape ``(...)``
        (Vehtari et al. 2021, "Rank-normalization, folding, and localization").
    """
    az = arviz()
    if not hasattr(az, "psislw"):  # ArviZ 1.x
        from arviz_stats.base import array_stats

        axes = {"chain_axis": 0, "draw_axis": 1}
        return array_stats.rhat(draws, **axes), array_stats.ess(draws, **axes)
    data = az.convert_to_dataset({"z": draws})
    return az.rhat(data)["z"].values, az.ess(data)["z"].values


def to_arviz(
    groups: Mapping[str, Mapping[str, Array]],
    *,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, str | int | float],
    notes: Mapping[str, str] | None = None,
    sample_dims: tuple[str, ...] = ("chain", "draw"),
) -> Any:
    """Arrays by group and variable as ArviZ's own container.

    Args:
        groups: group name → variable name → array; arrays of sampled groups begin with
            ``sample_dims``, those of ``observed_data`` don't.
        dims: names of a variable's further dimensions.
        coords: labels along each named dimension.
        attrs: facts about all the data, written on every group.
        notes: group name → what its reader has to know, written there as ``note``.
        sample_dims: names of the dimensions of the draws.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x.
    """
    import xarray as xr

    notes = notes or {}
    datasets = {}
    for group, variables in groups.items():
        lead = () if group == "observed_data" else sample_dims
        columns = {
            name: ((*lead, *dims.get(name, ()))[: array.ndim], array)
            for name, array in variables.items()
        }
        sizes = {
            dim: size
            for array_dims, array in columns.values()
            for dim, size in zip(array_dims, array.shape, strict=True)
        }
        labels = {dim: list(coords.get(dim, range(size))) for dim, size in sizes.items()}
        note = {} if group not in notes else {"note": notes[group]}
        datasets[group] = xr.Dataset(columns, coords=labels, attrs={**attrs, **note})
    if _is_first():
        return arviz().InferenceData(**datasets)
    return xr.DataTree.from_dict(datasets)


def sample_dims(origin: str) -> tuple[str, ...]:
    """Names of the dimensions of draws, as each version has them by default.

    Args:
        origin: ``"mcmc"``, or ``"guide"`` for independent draws, which ArviZ 1.x can tell from a
            chain.
    """
    return ("chain", "draw") if origin == "mcmc" or _is_first() else ("sample",)


def _is_first() -> bool:
    """Whether this is ArviZ 0.x."""
    return bool(arviz().__version__.startswith("0."))  # 1.x has InferenceData too, as a stub


def write_netcdf(data: Any, path: Path) -> None:
    """Write what :func:`to_arviz` returns to a file, compressed without loss."""
    if _is_first():
        data.to_netcdf(str(path))  # which compresses of its own accord
        return
    encoding = {
        node.path: {name: {"zlib": True, "complevel": 4} for name in node.data_vars}
        for node in data.subtree
    }
    data.to_netcdf(path, encoding=encoding)


def variable_names(sites: Iterable[str], *, reserved: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of the variables of some sites: the sites' own, where ArviZ and files allow it.

    A slash, which would make a group of its own in a file, becomes a dot, and a name that is taken
    gets ``_site`` at its end.

    Args:
        sites: their names.
        reserved: names that are taken besides ArviZ's own dimensions.

    >>> variable_names(("encoder/z", "draw"))
    ('encoder.z', 'draw_site')
    """
    names: list[str] = []
    taken = {"chain", "draw", *reserved}
    for site in sites:
        name = site.replace("/", ".")
        while name in taken or name in names:
            name += "_site"
        names.append(name)
    return tuple(names)


def dimension_names(dims: Iterable[str], variables: Iterable[str]) -> tuple[str, ...]:
    """Names of dimensions, with ``_dim`` at the end of one that a variable has too.

    >>> dimension_names(("datum", "unit"), ("unit", "unit_dim"))
    ('datum', 'unit_dim_dim')
    """
    taken, names = {*variables}, []
    for dim in dims:
        name = dim
        while name in taken:
            name += "_dim"
        names.append(name)
    return tuple(names)
