"""Calibration of probabilities, selective prediction and conformal prediction sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NUM_BINS = 15
MIN_PROB = 1e-8
"""Lower bound of a probability before its logarithm is taken."""
COVERAGE = 0.9
"""Nominal coverage of conformal sets: the probability that a set contains the true class."""


class Reliability(NamedTuple):
    """Confidence and accuracy in bins of confidence; empty bins are left out.

    Args:
        confidence: Mean confidence ``(bin,)``.
        accuracy: Share of correct predictions ``(bin,)``.
        num_utterances: Number of utterances ``(bin,)``.
        ece: Expected calibration error in [0, 1]: mean distance between confidence and accuracy over utterances.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    num_utterances: np.ndarray
    ece: float


def reliability(probs: np.ndarray, target: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Reliability of the top class in bins of equal width (Guo et al. 2017, <https://arxiv.org/abs/1706.04599>).

    Args:
        probs: Probabilities ``(utterance, class)``.
        target: True class indices ``(utterance,)``.
        num_bins: Number of bins over [0, 1].

    Example:
        >>> probs, target = np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])
        >>> round(reliability(probs, target).ece, 3)  # confidence 0.9, accuracy 0.5
        0.4
    """
    confidence, correct = probs.max(1), probs.argmax(1) == target
    bins = np.clip((confidence * num_bins).astype(int), 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    filled = counts > 0
    mean = np.bincount(bins, weights=confidence, minlength=num_bins)[filled] / counts[filled]
    accuracy = np.bincount(bins, weights=correct, minlength=num_bins)[filled] / counts[filled]
    ece = float((counts[filled] * np.abs(mean - accuracy)).sum() / max(len(target), 1))
    return Reliability(mean, accuracy, counts[filled], ece)


# scikit-learn's brier_score_loss and log_loss warn about the rounding of float32 probabilities. Its log_loss also
# clips at 2e-16 rather than MIN_PROB and takes milliseconds per call, which calibration would make thousands of times.
def brier_score(probs: np.ndarray, target: np.ndarray) -> float:
    """Brier score: mean squared distance between the probabilities and the one-hot truth, in [0, 2] (Brier 1950).

    Args:
        probs: Probabilities ``(utterance, class)``.
        target: True class indices ``(utterance,)``.

    Returns:
        The score; NaN without utterances.

    Example:
        >>> round(brier_score(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 2)
        0.82
    """
    one_hot = np.eye(probs.shape[1])[target]
    return float(((probs - one_hot) ** 2).sum(1).mean()) if len(target) else float("nan")


def log_loss(probs: np.ndarray, target: np.ndarray) -> float:
    """Mean negative log probability of the true class, with probabilities of at least :data:`MIN_PROB`.

    Args:
        probs: Probabilities ``(utterance, class)``.
        target: True class indices ``(utterance,)``.
    """
    return float(-np.log(np.maximum(probs[np.arange(len(target)), target], MIN_PROB)).mean())


class Scaling(NamedTuple):
    """Calibration map: the softmax of log-probabilities times ``weight`` plus ``bias``.

    Args:
        weight: ``(class,)``; for temperature scaling all equal to one over the temperature.
        bias: ``(class,)``; zero for temperature scaling.
    """

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities ``(utterance, class)`` -> calibrated probabilities ``(utterance, class)``."""
        logits = np.log(np.maximum(probs, MIN_PROB)) * self.weight + self.bias
        logits -= logits.max(1, keepdims=True)
        calibrated: np.ndarray = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return calibrated


def temperature_scaling(probs: np.ndarray, target: np.ndarray) -> Scaling:
    """Fits one temperature for all classes (Guo et al. 2017, section 4.2).

    Fit it on speakers that are in neither the training set nor the test set.

    Args:
        probs: Probabilities of validation utterances ``(utterance, class)``.
        target: True class indices ``(utterance,)``.

    Raises:
        ValueError: There are no utterances.

    Example:
        >>> probs, target = np.tile([0.99, 0.01], (4, 1)), np.array([0, 0, 0, 1])
        >>> temperature_scaling(probs, target)(probs)[0].round(2).tolist()  # three in four are correct
        [0.75, 0.25]
    """
    from scipy.optimize import minimize_scalar

    _check_not_empty(target)
    num_classes = probs.shape[1]

    def scaling(log_weight: float) -> Scaling:
        return Scaling(np.full(num_classes, np.exp(log_weight)), np.zeros(num_classes))

    best = minimize_scalar(lambda value: log_loss(scaling(value)(probs), target), bounds=(-4, 4), method="bounded")
    return scaling(float(best.x))


def vector_scaling(probs: np.ndarray, target: np.ndarray, strength: float = 1.0) -> Scaling:
    """Fits a weight and a bias for each class (Guo et al. 2017, section 4.2), regularised towards temperature scaling.

    Args:
        probs: Probabilities of validation utterances ``(utterance, class)``.
        target: True class indices ``(utterance,)``.
        strength: Regularisation strength, in utterances. It prevents overfitting to few speakers.

    Raises:
        ValueError: There are no utterances.
    """
    from scipy.optimize import minimize

    _check_not_empty(target)
    num_classes = probs.shape[1]
    start = temperature_scaling(probs, target)
    origin = np.concatenate([start.weight, start.bias])

    def objective(values: np.ndarray) -> float:
        scaled = Scaling(values[:num_classes], values[num_classes:])(probs)
        return log_loss(scaled, target) + strength * float(((values - origin) ** 2).sum()) / len(target)

    values = minimize(objective, origin, method="L-BFGS-B").x
    return Scaling(values[:num_classes], values[num_classes:])


CALIBRATIONS: dict[str, Callable[[np.ndarray, np.ndarray], Scaling]] = {
    "temperature": temperature_scaling,
    "vector": vector_scaling,
}


def _check_not_empty(target: np.ndarray) -> None:
    if not len(target):
        raise ValueError("calibration needs labelled utterances of held-out speakers, but there are none")


def cross_calibrate(
    probs: np.ndarray,
    target: np.ndarray,
    speakers: np.ndarray,
    method: str = "temperature",
    num_folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Calibrates each speaker's probabilities with a scaling fitted on other speakers.

    For runs without validation speakers: the out-of-fold predictions of the other speakers serve as validation set. The
    result is an unbiased estimate of calibration on new speakers from the same population.

    Args:
        probs: Out-of-fold probabilities ``(utterance, class)``.
        target: True class indices ``(utterance,)``.
        speakers: Speaker of each utterance ``(utterance,)``.
        method: One of :data:`CALIBRATIONS`.
        num_folds: Number of groups that the speakers are divided into.
        seed: Random seed of the division.

    Returns:
        Calibrated probabilities ``(utterance, class)``.

    Raises:
        ValueError: There are fewer than two speakers.
    """
    names, indices = np.unique(speakers.astype(str), return_inverse=True)
    if len(names) < 2:
        raise ValueError("there is only one speaker; calibration is fitted on other speakers")
    group = np.random.default_rng(seed).permutation(len(names)) % min(num_folds, len(names))
    calibrated = np.empty_like(probs)
    for number in np.unique(group):
        own = group[indices] == number
        calibrated[own] = CALIBRATIONS[method](probs[~own], target[~own])(probs[own])
    return calibrated


class RiskCoverage(NamedTuple):
    """Selective prediction: error rate when the model answers only its most confident utterances.

    Args:
        coverage: Share of utterances that are answered ``(step,)``, rising to 1.
        risk: Share of these answers that are wrong ``(step,)``.
        threshold: Lowest confidence among them ``(step,)``.
        area: Area under the curve; lower is better (Geifman et al. 2019, <https://arxiv.org/abs/1805.08206>).
    """

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray
    area: float

    def at(self, coverage: float) -> tuple[float, float]:
        """Risk and confidence threshold at a given coverage in (0, 1]."""
        step = min(int(np.searchsorted(self.coverage, coverage)), len(self.coverage) - 1)
        return float(self.risk[step]), float(self.threshold[step])


def risk_coverage(probs: np.ndarray, target: np.ndarray) -> RiskCoverage:
    """Risk-coverage curve of the top class.

    Args:
        probs: Probabilities ``(utterance, class)``.
        target: True class indices ``(utterance,)``.

    Example:
        >>> curve = risk_coverage(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
        >>> curve.at(0.5)  # the more confident half is correct
        (0.0, 0.9)
    """
    confidence, wrong = probs.max(1), probs.argmax(1) != target
    order = np.argsort(-confidence, kind="stable")
    num_answered = np.arange(1, len(target) + 1)
    risk = np.cumsum(wrong[order]) / num_answered
    return RiskCoverage(num_answered / len(target), risk, confidence[order], float(risk.mean()))


class Conformal(NamedTuple):
    """Conformal sets: all classes that are probable enough to reach the nominal coverage.

    Thresholding the probability gives the smallest sets on average (Sadinle et al. 2019,
    <https://arxiv.org/abs/1609.00451>).

    Args:
        threshold: Classes with a probability of at least one minus this are in the set.
        coverage: Nominal coverage, in (0, 1).
    """

    threshold: float
    coverage: float

    def sets(self, probs: np.ndarray) -> np.ndarray:
        """Set membership ``(utterance, class)`` bool; the top class is always in the set.

        Args:
            probs: Probabilities ``(utterance, class)``.
        """
        inside = 1 - probs <= self.threshold
        inside[np.arange(len(probs)), probs.argmax(1)] = True
        return inside


def conformal(probs: np.ndarray, target: np.ndarray, speakers: np.ndarray, coverage: float = COVERAGE) -> Conformal:
    """Split conformal prediction, fitted on speakers that are in neither the training set nor the test set.

    Speakers are exchangeable, their utterances are not. Every speaker therefore has the same weight, however many
    utterances they recorded (pooled distributions: Dunn et al. 2023, <https://arxiv.org/abs/1809.07441>, section 3.1).
    With few speakers, coverage holds on average over speakers but not for each one; :func:`measure_coverage` measures
    it.

    Args:
        probs: Probabilities of the calibration utterances ``(utterance, class)``.
        target: True class indices ``(utterance,)``.
        speakers: Speaker of each utterance ``(utterance,)``.
        coverage: Nominal coverage, in (0, 1).

    Raises:
        ValueError: ``coverage`` is out of range, or there are no utterances.

    Example:
        >>> probs, target = np.tile([0.7, 0.2, 0.1], (20, 1)), np.array([0, 0, 0, 1] * 5)
        >>> fitted = conformal(probs, target, speakers=np.arange(20) % 5, coverage=0.9)
        >>> fitted.sets(probs[:1]).tolist()  # the top class alone is correct in only three of four
        [[True, True, False]]
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage}, expected a probability between 0 and 1")
    _check_not_empty(target)
    scores = 1 - probs[np.arange(len(target)), target]
    names, indices = np.unique(speakers.astype(str), return_inverse=True)
    weight = 1 / np.bincount(indices)[indices]  # each speaker's weights sum to one
    order = np.argsort(scores)
    share = np.cumsum(weight[order]) / len(names)
    level = coverage * (1 + 1 / len(target))
    if level > 1:
        return Conformal(1.0, coverage)  # too few utterances: every class is in the set
    index = min(int(np.searchsorted(share, level - 1e-12)), len(scores) - 1)
    return Conformal(float(scores[order][index]), coverage)


class MeasuredCoverage(NamedTuple):
    """Coverage of conformal sets on new speakers, over random splits of the speakers.

    Args:
        coverage: Mean share of sets that contain the true class.
        size: Mean number of classes in a set.
        coverage_low: 5th percentile of the coverage over splits.
        coverage_high: 95th percentile of the coverage over splits.
    """

    coverage: float
    size: float
    coverage_low: float
    coverage_high: float


def measure_coverage(
    probs: np.ndarray,
    target: np.ndarray,
    speakers: np.ndarray,
    coverage: float = COVERAGE,
    num_splits: int = 200,
    share: float = 0.5,
    seed: int = 0,
) -> MeasuredCoverage:
    """Measures conformal sets on speakers that neither the sets nor their temperature were fitted on.

    Args:
        probs: Uncalibrated out-of-fold probabilities ``(utterance, class)``.
        target: True class indices ``(utterance,)``.
        speakers: Speaker of each utterance ``(utterance,)``.
        coverage: Nominal coverage, in (0, 1).
        num_splits: Number of random splits of the speakers.
        share: Share of the speakers that the sets are fitted on, in (0, 1).
        seed: Random seed of the splits.

    Raises:
        ValueError: There are fewer than four speakers.
    """
    names, indices = np.unique(speakers.astype(str), return_inverse=True)
    if len(names) < 4:
        raise ValueError(f"{len(names)} speakers: measuring conformal sets needs 4 or more, to fit on and to test on")
    random = np.random.default_rng(seed)
    covered, sizes = [], []
    for _ in range(num_splits):
        chosen = random.permutation(len(names))[: max(2, round(share * len(names)))]
        fit = np.isin(indices, chosen)
        scaling = temperature_scaling(probs[fit], target[fit])
        calibrated = scaling(probs)
        sets = conformal(calibrated[fit], target[fit], speakers[fit], coverage).sets(calibrated[~fit])
        covered.append(sets[np.arange(len(sets)), target[~fit]].mean())
        sizes.append(sets.sum(1).mean())
    low, high = np.percentile(covered, [5, 95])
    return MeasuredCoverage(float(np.mean(covered)), float(np.mean(sizes)), float(low), float(high))
