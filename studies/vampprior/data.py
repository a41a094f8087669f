"""The four data sets, split and scaled as in the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Transform


@dataclass(frozen=True)
class Images:
    """Images to learn from, to stop by and to test on.

    Args:
        train, validation, test: rows, shape ``(N, height, width)``.
        transform: what is done to each minibatch in training: dynamic binarisation.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    transform: Transform | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of one image."""
        return self.train.shape[1:]


@dataclass(frozen=True)
class Source:
    """Where a data set is, how to read it, and what it is measured in.

    Args:
        file: name of the ``.npz`` file.
        read: from its arrays to images.
        levels: greatest value of a pixel.
        bits: whether log p(x) is reported as bits per dimension instead of nats.
        grey: near which share of the levels the paper's code starts random pseudo-inputs.
    """

    file: str
    read: Callable[[dict[str, np.ndarray]], Images]
    levels: float = 1.0
    bits: bool = False
    grey: float = 0.8


def load(name: str, folder: Path) -> Images:
    """A data set, its test images in an order of their own, so that the first are a fair part."""
    with np.load(folder / SOURCES[name].file) as arrays:
        images = SOURCES[name].read(dict(arrays))
    order = torch.randperm(len(images.test), generator=torch.Generator().manual_seed(0))
    return Images(images.train, images.validation, images.test[order], images.transform)


def _parts(arrays: dict[str, np.ndarray]) -> Images:
    return Images(
        *(torch.as_tensor(arrays[f"x_{part}"]).float() for part in ("train", "val", "test"))
    )


def _dynamic(arrays: dict[str, np.ndarray]) -> Images:
    """Grey training images, binarised anew in each batch; validation and test once."""
    grey, test = (torch.as_tensor(arrays[name]).float() / 255 for name in ("x_train", "x_test"))
    generator = torch.Generator().manual_seed(777)
    return Images(
        grey[:50_000],
        grey[50_000:].bernoulli(generator=generator),
        test.bernoulli(generator=generator),
        lambda x, draws: x.bernoulli(generator=draws),
    )


def _faces(arrays: dict[str, np.ndarray]) -> Images:
    x = torch.as_tensor(arrays["x"]).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return Images(*x.split((1565, 200, 200)))


SOURCES = {
    "caltech": Source("caltech101_silhouettes.npz", _parts),
    "frey": Source("freyfaces.npz", _faces, levels=255.0, bits=True),
    "mnist": Source("mnist.npz", _dynamic, grey=0.05),
    "static-mnist": Source("static_mnist.npz", _parts, grey=0.05),
}
"""The data sets by name."""
