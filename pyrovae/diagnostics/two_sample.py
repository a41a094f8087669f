"""Whether a classifier can tell codes from draws of the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import TOO_FEW, Estimate
from pyrovae.extras import needed_for
from pyrovae.randomness import derived_seed

FOLDS = 5
FEWEST = 30  # points of each sample, so that trees with 20 to a leaf can split them
CORRECTION = math.sqrt(1 + FOLDS / (FOLDS - 1))

Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class TwoSample(Result):
    """How well a classifier tells two samples apart on points it was not trained on.

    Args:
        accuracy: share of points assigned to the right sample; 0.5 if the samples can't be told
            apart, and less than the best possible classifier's otherwise: a bound from below on
            (1 + total variation distance) / 2.
        auc: probability that a point of the second sample is ranked above one of the first.
    """

    accuracy: Estimate
    auc: Estimate

    @property
    def differ(self) -> bool:
        """Whether the accuracy exceeds one half by 2.33 standard errors: false alarms in 1 %."""
        return self.accuracy.value - 0.5 > 2.33 * self.accuracy.standard_error


def two_sample_test(first: Tensor, second: Tensor, *, size: int, seed: int = 0) -> TwoSample:
    """Classifier two-sample test by gradient boosting with five-fold cross-validation.

    Standard errors are those over points (for the AUC DeLong's), times √(1 + k/(k−1)) for k folds:
    classifiers of different folds share most of their training points, so that their errors are
    not independent (Nadeau & Bengio 2003).

    Args:
        first, second: independent draws, shapes ``(n, D)`` and ``(m, D)``.
        size: most points used of each sample; as many are used of both.
        seed: names the folds.

    Raises:
        InputError: with fewer than ten points in either sample. With fewer than 30 the trees can't
            split them, and accuracy and AUC can't be told.
        MissingPackage: if scikit-learn is not installed.

    Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests"; DeLong et al. 1988.
    """
    count = min(len(first), len(second), size)
    if count < 2 * FOLDS:
        raise InputError(
            f"expected at least {2 * FOLDS} points in each sample; got {count}. Take more: "
            "Effort(two_sample=…) says how many."
        )
    points = torch.cat([first[:count], second[:count]]).double().cpu().numpy()
    scores = _scores(points, np.repeat([0, 1], count), seed)
    correct = np.concatenate([scores[:count] < 0.5, scores[count:] >= 0.5])
    share = float(correct.mean())
    cautious = (correct.sum() + 1) / (len(correct) + 2)  # so that a share of 1 has an error too
    error = CORRECTION * math.sqrt(cautious * (1 - cautious) / len(correct))
    result = TwoSample(
        Estimate(share, error, len(correct), bound="lower"), _auc(scores[:count], scores[count:])
    )
    if count >= FEWEST:
        return result
    reason = TOO_FEW["draws"]
    return TwoSample(result.accuracy.unresolve(reason), result.auc.unresolve(reason))


def _scores(points: Floats, labels: NDArray[np.int64], seed: int) -> Floats:
    """Probability of the second sample at each point, from classifiers that did not see it."""
    with needed_for("the classifier"):
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

    classifier = HistGradientBoostingClassifier(
        max_iter=50,
        max_leaf_nodes=15,
        early_stopping=False,
        random_state=derived_seed(seed, "trees", bits=32),
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=derived_seed(seed, "folds", bits=32))
    probabilities = cross_val_predict(classifier, points, labels, cv=folds, method="predict_proba")
    return np.asarray(probabilities)[:, 1]


def _auc(first: Floats, second: Floats) -> Estimate:
    """Area under the curve with DeLong's standard error, corrected for the folds."""
    n = len(first)
    wins = (second[:, None] > first) + 0.5 * (second[:, None] == first)
    value = float(wins.mean())
    variance = (wins.mean(0).var(ddof=1) + wins.mean(1).var(ddof=1)) / n
    return Estimate(value, CORRECTION * float(np.sqrt(variance)), 2 * n)
