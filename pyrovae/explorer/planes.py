"""The planes in which codes are shown: principal components, and a map of neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pyrovae.extras import needed_for

ON_MAP = 2000  # codes that the map is fitted to; the others are put among their neighbours
NEIGHBOURS = 3
FEW = 10  # with fewer codes there is no map


def principal_components(codes: Tensor) -> dict[str, Any]:
    """The directions of most variance of codes, and the share of the variance of each.

    Args:
        codes: shape ``(N, D)``.
    """
    centre = codes.double().mean(0)
    _, spread, directions = np.linalg.svd((codes.double() - centre).numpy(), full_matrices=False)
    share = spread**2 / max(float((spread**2).sum()), 1e-300)
    return {
        "centre": centre.tolist(),
        "directions": directions.tolist(),
        "share": share.tolist(),
    }


def neighbour_map(codes: Tensor, *, seed: int) -> tuple[Any, str]:
    """A map of codes in which neighbours stay together, by t-SNE, and how it was made.

    More than 2,000 codes are too many for a page that should be written in a minute: the map is
    fitted to 2,000, and each other one is put at the mean place of the 3 of them nearest to it.

    Args:
        codes: shape ``(N, D)``, N ≥ 10.
        seed: names the choice and the start.

    Returns:
        places, shape ``(N, 2)``, and a sentence.

    van der Maaten & Hinton 2008, "Visualizing data using t-SNE".
    """
    with needed_for("a map of the codes"):
        from sklearn.manifold import TSNE
        from sklearn.neighbors import NearestNeighbors
    points = codes.double().numpy()
    chosen = np.random.default_rng(seed).permutation(len(points))[:ON_MAP]
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    fitted = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(
        points[chosen]
    )
    if len(chosen) == len(points):
        places = np.empty_like(fitted)
        places[chosen] = fitted
        return places, "t-SNE of all codes"
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(points[chosen]).kneighbors(points)[1]
    places = fitted[near].mean(1)
    places[chosen] = fitted
    return places, (
        f"t-SNE of {ON_MAP:,} codes; each other one is at the mean place of its {NEIGHBOURS} "
        "nearest among them"
    )
