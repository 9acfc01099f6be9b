"""Whether a probability means what it says, how to mend it, and when to say nothing or several things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NUM_BINS = 15
TINY = 1e-8
COVERAGE = 0.9
"""Chance that a set of classes shall hold the true one."""


class Reliability(NamedTuple):
    """Confidence against accuracy, bin by bin.

    Args:
        confidence: Mean probability of the answers in each bin that is not empty.
        accuracy: Share of them that is right.
        num_answers: How many there are.
        ece: Expected calibration error: mean distance of the two, weighted by them, in [0, 1].
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    num_answers: np.ndarray
    ece: float


def reliability(probs: np.ndarray, target: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Reliability of the likeliest class, in bins of equal width (Guo et al. 2017, <https://arxiv.org/abs/1706.04599>).

    Args:
        probs: ``(utterance, class)``.
        target: True class numbers ``(utterance,)``.
        num_bins: Number of bins over [0, 1].
    """
    confidence, right = probs.max(1), probs.argmax(1) == target
    place = np.clip((confidence * num_bins).astype(int), 0, num_bins - 1)
    count = np.bincount(place, minlength=num_bins)
    some = count > 0
    mean = np.bincount(place, weights=confidence, minlength=num_bins)[some] / count[some]
    accuracy = np.bincount(place, weights=right, minlength=num_bins)[some] / count[some]
    ece = float((count[some] * np.abs(mean - accuracy)).sum() / max(len(target), 1))
    return Reliability(mean, accuracy, count[some], ece)


def brier(probs: np.ndarray, target: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the truth, in [0, 2] (Brier 1950).

    Args:
        probs: ``(utterance, class)``.
        target: True class numbers ``(utterance,)``.
    """
    truth = np.eye(probs.shape[1])[target]
    return float(((probs - truth) ** 2).sum(1).mean()) if len(target) else float("nan")


def log_loss(probs: np.ndarray, target: np.ndarray) -> float:
    """Mean negative log probability of the true class.

    Args:
        probs: ``(utterance, class)``.
        target: True class numbers ``(utterance,)``.
    """
    return float(-np.log(np.maximum(probs[np.arange(len(target)), target], TINY)).mean())


class Scaling(NamedTuple):
    """Probabilities made honest: softmax of log-probabilities times ``weight`` plus ``bias``.

    Args:
        weight: ``(class,)``: all alike for temperature scaling, where it is one over the temperature.
        bias: ``(class,)``: zero for temperature scaling.
    """

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities ``(utterance, class)`` -> honest ones."""
        logits = np.log(np.maximum(probs, TINY)) * self.weight + self.bias
        logits -= logits.max(1, keepdims=True)
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def temperature_scaling(probs: np.ndarray, target: np.ndarray) -> Scaling:
    """One temperature for all, fitted on speakers that neither train nor test (Guo et al. 2017, section 4.2).

    Args:
        probs: Of validation utterances ``(utterance, class)``.
        target: Their true classes ``(utterance,)``.

    Raises:
        ValueError: There is no utterance to fit on.
    """
    from scipy.optimize import minimize_scalar

    _check(target)
    num_classes = probs.shape[1]

    def scaling(log_weight: float) -> Scaling:
        return Scaling(np.full(num_classes, np.exp(log_weight)), np.zeros(num_classes))

    found = minimize_scalar(lambda value: log_loss(scaling(value)(probs), target), bounds=(-4, 4), method="bounded")
    return scaling(float(found.x))


def vector_scaling(probs: np.ndarray, target: np.ndarray, strength: float = 1.0) -> Scaling:
    """A weight and a bias for each class (Guo et al. 2017, section 4.2), held near plain temperature scaling.

    Args:
        probs: Of validation utterances ``(utterance, class)``.
        target: Their true classes ``(utterance,)``.
        strength: How firmly, in utterances; without it few speakers' habits would be learned.

    Raises:
        ValueError: There is no utterance to fit on.
    """
    from scipy.optimize import minimize

    _check(target)
    num_classes = probs.shape[1]
    start = temperature_scaling(probs, target)
    origin = np.concatenate([start.weight, start.bias])

    def cost(values: np.ndarray) -> float:
        scaled = Scaling(values[:num_classes], values[num_classes:])(probs)
        return log_loss(scaled, target) + strength * float(((values - origin) ** 2).sum()) / len(target)

    found = minimize(cost, origin, method="L-BFGS-B").x
    return Scaling(found[:num_classes], found[num_classes:])


CALIBRATIONS: dict[str, Callable[[np.ndarray, np.ndarray], Scaling]] = {
    "temperature": temperature_scaling,
    "vector": vector_scaling,
}


def _check(target: np.ndarray) -> None:
    if not len(target):
        raise ValueError("calibration is fitted on labelled utterances of held-out speakers, and there is none")


def out_of_speaker(
    probs: np.ndarray,
    target: np.ndarray,
    speakers: np.ndarray,
    method: str = "temperature",
    num_folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities each calibrated on other speakers than the utterance's own.

    For runs that kept no validation speakers: what calibrates is then the out-of-fold predictions of the other
    speakers. An honest estimate of what calibration would give on new speakers of the same kind.

    Args:
        probs: Out-of-fold ``(utterance, class)``.
        target: True classes ``(utterance,)``.
        speakers: Of each utterance.
        method: One of :data:`CALIBRATIONS`.
        num_folds: Into how many groups speakers are divided.
        seed: Of the division.

    Returns:
        Probabilities ``(utterance, class)``.
    """
    names, numbers = np.unique(speakers.astype(str), return_inverse=True)
    if len(names) < 2:
        raise ValueError("one speaker alone: calibration needs others to be fitted on")
    group = np.random.default_rng(seed).permutation(len(names)) % min(num_folds, len(names))
    calibrated = np.empty_like(probs)
    for number in np.unique(group):
        own = group[numbers] == number
        calibrated[own] = CALIBRATIONS[method](probs[~own], target[~own])(probs[own])
    return calibrated


class RiskCoverage(NamedTuple):
    """Selective prediction: how often an answer is wrong when only the surest are given.

    Args:
        coverage: Share of the utterances answered ``(step,)``, growing to 1.
        risk: Share of those answers that is wrong ``(step,)``.
        threshold: Confidence of the last one answered ``(step,)``.
        area: Under the curve; lower is better (Geifman et al. 2019, <https://arxiv.org/abs/1805.08206>).
    """

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray
    area: float

    def at(self, coverage: float) -> tuple[float, float]:
        """Risk and threshold where that share of the utterances is answered."""
        place = min(int(np.searchsorted(self.coverage, coverage)), len(self.coverage) - 1)
        return float(self.risk[place]), float(self.threshold[place])


def risk_coverage(probs: np.ndarray, target: np.ndarray) -> RiskCoverage:
    """Answers given from the surest down.

    Args:
        probs: ``(utterance, class)``.
        target: True classes ``(utterance,)``.
    """
    confidence, wrong = probs.max(1), probs.argmax(1) != target
    order = np.argsort(-confidence, kind="stable")
    number = np.arange(1, len(target) + 1)
    risk = np.cumsum(wrong[order]) / number
    return RiskCoverage(number / len(target), risk, confidence[order], float(risk.mean()))


class Conformal(NamedTuple):
    """Sets of classes that hold the true one with a stated chance: all that are likely enough, which makes them as
    small as they can be (Sadinle et al. 2019, <https://arxiv.org/abs/1609.00451>).

    Args:
        threshold: Largest distance from certainty, one less the probability, that is let in.
        coverage: Chance that was asked for, in (0, 1).
    """

    threshold: float
    coverage: float

    def sets(self, probs: np.ndarray) -> np.ndarray:
        """Which classes are in each utterance's set ``(utterance, class)`` bool; the likeliest always is.

        Args:
            probs: ``(utterance, class)``.
        """
        inside = 1 - probs <= self.threshold
        inside[np.arange(len(probs)), probs.argmax(1)] = True
        return inside


def conformal(probs: np.ndarray, target: np.ndarray, speakers: np.ndarray, coverage: float = COVERAGE) -> Conformal:
    """Split conformal prediction, fitted on speakers that neither train nor test.

    Utterances of a new speaker are not exchangeable with those of the calibrating ones one by one, speakers are: every
    speaker weighs the same, whatever they recorded (pooled distributions: Dunn et al. 2023,
    <https://arxiv.org/abs/1809.07441>, section 3.1). With few speakers the chance holds on average over speakers, and
    not for each one; :func:`coverage_over_splits` measures it.

    Args:
        probs: Of the calibrating utterances ``(utterance, class)``.
        target: Their true classes ``(utterance,)``.
        speakers: Of each.
        coverage: Chance that the set holds the true class, in (0, 1).

    Raises:
        ValueError: ``coverage`` is no chance, or there is no utterance.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage}, expected a chance between 0 and 1")
    _check(target)
    scores = 1 - probs[np.arange(len(target)), target]
    names, numbers = np.unique(speakers.astype(str), return_inverse=True)
    weight = 1 / np.bincount(numbers)[numbers]  # each speaker sums to one
    order = np.argsort(scores)
    share = np.cumsum(weight[order]) / len(names)
    level = coverage * (1 + 1 / len(target))
    if level > 1:
        return Conformal(1.0, coverage)  # too few utterances: every class is in the set
    place = min(int(np.searchsorted(share, level - 1e-12)), len(scores) - 1)
    return Conformal(float(scores[order][place]), coverage)


def coverage_over_splits(
    probs: np.ndarray,
    target: np.ndarray,
    speakers: np.ndarray,
    coverage: float = COVERAGE,
    num_splits: int = 200,
    share: float = 0.5,
    seed: int = 0,
) -> dict[str, float]:
    """Measured coverage and mean size of conformal sets on speakers that neither they nor the temperature before them
    were fitted on.

    Args:
        probs: Uncalibrated, out-of-fold ``(utterance, class)``.
        target: True classes ``(utterance,)``.
        speakers: Of each utterance.
        coverage: Chance asked for, in (0, 1).
        num_splits: Random divisions of the speakers.
        share: Of the speakers that calibrate.
        seed: Of the divisions.

    Returns:
        ``coverage`` and ``size``, means over divisions, and ``coverage_low``, ``coverage_high``, which nine in ten of
        them lie between.

    Raises:
        ValueError: There are fewer than four speakers.
    """
    names, numbers = np.unique(speakers.astype(str), return_inverse=True)
    if len(names) < 4:
        raise ValueError(f"{len(names)} speakers: conformal sets need some to calibrate on and others to be judged on")
    random = np.random.default_rng(seed)
    covered, sizes = [], []
    for _ in range(num_splits):
        chosen = random.permutation(len(names))[: max(2, round(share * len(names)))]
        fits = np.isin(numbers, chosen)
        scaling = temperature_scaling(probs[fits], target[fits])
        calibrated = scaling(probs)
        sets = conformal(calibrated[fits], target[fits], speakers[fits], coverage).sets(calibrated[~fits])
        covered.append(sets[np.arange(len(sets)), target[~fits]].mean())
        sizes.append(sets.sum(1).mean())
    low, high = np.percentile(covered, [5, 95])
    found: dict[str, Any] = {"coverage": np.mean(covered), "size": np.mean(sizes)}
    return {name: float(value) for name, value in {**found, "coverage_low": low, "coverage_high": high}.items()}
