"""What a training run returns beside the trained parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrovae.display import Result

UNIT = "nats per datum"
Stopped = Literal["epochs", "patience"]


@dataclass(frozen=True, eq=False, repr=False)
class History(Result):
    """The course of training, one entry for each epoch; objectives in nats per datum.

    Args:
        train: mean objective over the epoch's training batches, with the epoch's KL weight and
            with parameters that change from step to step, shape ``(E,)``.
        validation: ELBO of the validation data after the epoch, with KL weight 1 and the same
            draws each time, shape ``(E,)``; NaN without validation data.
        kl_weight: weight on the latent sites' terms, shape ``(E,)``.
        seconds: wall-clock time of the epoch, shape ``(E,)``; the only entry that differs if the
            run is repeated.
    """

    train: NDArray[np.float64]
    validation: NDArray[np.float64]
    kl_weight: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @classmethod
    def from_lists(cls, lists: dict[str, list[float]]) -> History:
        """A history from a list of numbers for each column."""
        return cls(**{name: np.asarray(values, dtype=np.float64) for name, values in lists.items()})

    @property
    def epoch(self) -> NDArray[np.int64]:
        """Epoch numbers 1, …, E."""
        return np.arange(1, len(self) + 1)

    @property
    def unit(self) -> str:
        """The unit of ``train`` and ``validation``."""
        return UNIT

    def __len__(self) -> int:
        return len(self.train)

    def to_dict(self) -> dict[str, Any]:
        """Columns by name, the epoch's number first; ``pandas.DataFrame`` takes it."""
        columns = ("epoch", "train", "validation", "kl_weight", "seconds")
        return {name: getattr(self, name) for name in columns}


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Result):
    """How a training run went. The trained parameters are in the pair itself.

    Args:
        history: one entry for each epoch.
        best_epoch: the epoch, counted from 1, whose parameters the pair now has: the one with the
            best validation ELBO, or the last one without validation data.
        stopped: ``"epochs"`` if all epochs were run, ``"patience"`` if validation had stalled.
        seed: the seed that reproduces the run.
    """

    history: History
    best_epoch: int
    stopped: Stopped
    seed: int

    @property
    def train(self) -> float:
        """Mean training objective in the best epoch, nats per datum."""
        return float(self.history.train[self.best_epoch - 1])

    @property
    def validation(self) -> float:
        """Validation ELBO after the best epoch, nats per datum; NaN without validation data."""
        return float(self.history.validation[self.best_epoch - 1])

    @property
    def epochs(self) -> int:
        """Number of epochs run."""
        return len(self.history)

    def __str__(self) -> str:
        ending = {
            "epochs": "ran all epochs",
            "patience": "stopped because validation no longer improved",
        }[self.stopped]
        validation = "" if np.isnan(self.validation) else f", validation ELBO {self.validation:.3f}"
        return (
            f"{ending} ({self.epochs}); kept epoch {self.best_epoch}: training objective "
            f"{self.train:.3f}{validation} {UNIT}"
        )
