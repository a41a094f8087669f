"""What a training run returns beside the trained parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrovae.display import Result, draw

UNIT = "nats per datum"
Stopped = Literal["epochs", "patience"]


@dataclass(frozen=True, eq=False, repr=False)
class History(Result):
    """The course of training, one entry for each epoch; objectives in nats per datum.

    Args:
        train: mean objective over the epoch's training batches, with the epoch's KL weight and
            with parameters that change from step to step, shape ``(E,)``.
        validation: ELBO of the validation data after the epoch, with KL weight 1 and the same
            draws each time, shape ``(E,)``; NaN without validation data. In the last
            ``averaged_epochs`` it is that of the mean parameters over all their steps so far.
        kl_weight: weight on the latent sites' terms, shape ``(E,)``.
        seconds: wall-clock time of the epoch, shape ``(E,)``; the only entry that differs if the
            run is repeated.
        averaged_epochs: number of epochs, the last ones, over whose steps the parameters were
            averaged.
    """

    train: NDArray[np.float64]
    validation: NDArray[np.float64]
    kl_weight: NDArray[np.float64]
    seconds: NDArray[np.float64]
    averaged_epochs: int = 0

    @classmethod
    def from_lists(cls, lists: dict[str, list[float]], averaged_epochs: int = 0) -> History:
        """A history from a list of numbers for each column."""
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in lists.items()}
        return cls(**arrays, averaged_epochs=averaged_epochs)

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
        """Columns by name, the epoch's number first; ``pandas.DataFrame`` takes it.

        ``averaged_epochs`` counts the epochs in the mean that ``validation`` is of; 0 if of none.
        """
        columns = ("epoch", "train", "validation", "kl_weight", "seconds")
        counts = np.maximum(self.epoch - (len(self) - self.averaged_epochs), 0)
        return {**{name: getattr(self, name) for name in columns}, "averaged_epochs": counts}


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Result):
    """How a training run went. The trained parameters are in the pair itself.

    Args:
        history: one entry for each epoch.
        best_epoch: the epoch, counted from 1, whose parameters the pair now has: the one with the
            best validation ELBO, or the last one without validation data. If parameters were
            averaged, it is the last one, and they are the mean over all steps of the last
            ``history.averaged_epochs``, unless the validation ELBO of that mean is below the best
            epoch's before; see ``averaged``.
        stopped: ``"epochs"`` if all epochs were run, ``"patience"`` if validation had stalled.
        seed: the seed that reproduces the run.
        capture: which of its steps were replayed without Pyro, and why not the others, in words.

    >>> import pyrovae as pv, torch
    >>> vae = pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2))
    >>> run = pv.fit(vae.model, vae.guide, torch.rand(40, 4).round(), epochs=2, progress=False)
    >>> run.best_epoch, run.stopped
    (2, 'epochs')
    """

    history: History
    best_epoch: int
    stopped: Stopped
    seed: int
    capture: str = ""

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
        """Number of epochs run, those that were averaged over among them."""
        return len(self.history)

    @property
    def averaged(self) -> bool:
        """Whether the pair has mean parameters over the last ``history.averaged_epochs`` epochs."""
        return self.history.averaged_epochs > 0 and self.best_epoch == self.epochs

    def plot(self, **options: Any) -> Any:
        """The course of training, and the axes that it is drawn on.

        Args:
            options: those of ``pyrovae.plots.training_curve``: ``axes=``.

        Raises:
            InputError: if matplotlib is not installed.
        """
        return draw("training_curve", self, **options)

    @property
    def concern(self) -> str:
        """Says so if validation was best in the last tenth of the epochs allowed; else empty."""
        ended = self.stopped == "epochs" and self.best_epoch > 0.9 * self.epochs
        if not ended or self.history.averaged_epochs or np.isnan(self.validation):
            return ""
        return (
            f"Training ended while validation still improved, after {self.epochs} epochs: longer "
            f"training may change every number. Try epochs={2 * self.epochs}."
        )

    def __str__(self) -> str:
        ending = {
            "epochs": "ran all epochs",
            "patience": "stopped because validation no longer improved",
        }[self.stopped]
        validation = "" if np.isnan(self.validation) else f", validation ELBO {self.validation:.3f}"
        more, mean = self.history.averaged_epochs, ""
        if more:
            mean = f", then averaged over {more} more"
        weights = f"the mean over epochs {self.epochs - more + 1} to {self.epochs}"
        if not self.averaged:
            weights = f"epoch {self.best_epoch}"
            if more:
                weights += f", as that mean has validation ELBO {self.history.validation[-1]:.3f}"
        return (
            f"{ending} ({self.epochs - more}){mean}; kept {weights}: training objective "
            f"{self.train:.3f}{validation} {UNIT}"
        )
