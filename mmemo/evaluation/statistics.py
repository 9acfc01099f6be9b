"""Metrics with confidence intervals. Whole speakers are resampled, because utterances of one speaker are correlated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

METRICS = ("uar", "accuracy", "macro_f1", "weighted_f1")
"""Classification metrics of :func:`class_metrics`."""


class Interval(NamedTuple):
    """A metric with its confidence interval; ``low`` and ``high`` are NaN if there is none.

    Example:
        >>> Interval(0.753, 0.71, 0.792).percent()
        '75.3 (71.0 to 79.2)'
        >>> Interval(0.753, float("nan"), float("nan")).number(2)
        '0.75'

    Args:
        value: Estimate on all data.
        low: Lower limit.
        high: Upper limit.
    """

    value: float
    low: float
    high: float

    @staticmethod
    def without_limits(value: float) -> Interval:
        """An estimate that has no confidence interval."""
        return Interval(value, float("nan"), float("nan"))

    def percent(self) -> str:
        """Formats as per cent, such as ``75.3 (71.0 to 79.2)``."""
        return Interval(*(100 * value for value in self)).number(1)

    def number(self, digits: int = 3) -> str:
        """Formats as a number, such as ``0.753 (0.710 to 0.792)``; ``n/a`` if the value is NaN.

        Args:
            digits: Decimal places.
        """
        if math.isnan(self.value):
            return "n/a"
        limits = "" if math.isnan(self.low) else f" ({self.low:.{digits}f} to {self.high:.{digits}f})"
        return f"{self.value:.{digits}f}{limits}"


def to_json_types(value: Any) -> Any:
    """Converts nested results to what JSON can hold: named tuples become objects, NaN and infinity become null.

    Args:
        value: Named tuples, NumPy scalars and plain values, in dicts, lists and tuples.

    Example:
        >>> to_json_types({"uar": Interval(np.float64(0.5), float("nan"), float("nan"))})
        {'uar': {'value': 0.5, 'low': None, 'high': None}}
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(name): to_json_types(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_types(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def uar(target: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted average recall: mean recall over the classes that occur; NaN without utterances.

    Args:
        target: True classes ``(utterance,)``.
        predicted: Predicted classes ``(utterance,)``.

    Example:
        >>> uar(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])).__round__(3)
        0.833
    """
    recalls = [float((predicted[target == name] == name).mean()) for name in np.unique(target)]
    return float(np.mean(recalls)) if recalls else float("nan")


def ccc(target: np.ndarray, predicted: np.ndarray) -> float:
    """Concordance correlation coefficient (Lin 1989); NaN for fewer than two values.

    Args:
        target: True values ``(utterance,)``.
        predicted: Predicted values ``(utterance,)``.
    """
    if len(target) < 2:
        return float("nan")
    spread = target.var() + predicted.var() + (target.mean() - predicted.mean()) ** 2
    covariance = ((target - target.mean()) * (predicted - predicted.mean())).mean()
    return float(2 * covariance / spread) if spread > 0 else float("nan")


def class_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """UAR, accuracy and F1 of confusion matrices. UAR averages over the classes that occur.

    Args:
        confusion: Counts ``(..., true class, predicted class)``.

    Returns:
        One array ``(...)`` for each name in :data:`METRICS`; NaN without utterances.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    present = true > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(present, hits / true, 0.0)
        f1 = np.where(true + predicted > 0, 2 * hits / (true + predicted), 0.0)
        return {
            "uar": recall.sum(-1) / present.sum(-1),
            "accuracy": hits.sum(-1) / true.sum(-1),
            "macro_f1": f1.sum(-1) / (true + predicted > 0).sum(-1),
            "weighted_f1": (f1 * true).sum(-1) / true.sum(-1),
        }


def per_class_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, precision and F1 of each class.

    Args:
        confusion: Counts ``(..., true class, predicted class)``.

    Returns:
        ``recall``, ``precision`` and ``f1``, each ``(..., class)``. Recall is NaN for a class that does not occur,
        precision for a class that is never predicted.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"recall": hits / true, "precision": hits / predicted, "f1": 2 * hits / (true + predicted)}


def dimension_metrics(moments: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Concordance correlation (Lin 1989, <https://doi.org/10.2307/2532051>) and mean absolute error of dimensions.

    Args:
        moments: Sums ``(..., dimension, 7)``: number of values, true, predicted, true squared, predicted squared, their
            product, absolute error.
        names: Names of the dimensions.

    Returns:
        ``ccc_NAME`` and ``mae_NAME`` of each dimension, and ``ccc``, the mean over dimensions with a CCC; each
        ``(...)``. CCC is NaN for fewer than two values.
    """
    count = moments[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.moveaxis(moments[..., 1:] / count[..., None], -1, 0)
        true, predicted, true_squares, predicted_squares, products, error = means
        spread = (true_squares - true**2) + (predicted_squares - predicted**2) + (true - predicted) ** 2
        agreement = np.where((count > 1) & (spread > 1e-12), 2 * (products - true * predicted) / spread, np.nan)
        mean = np.nansum(agreement, -1) / np.isfinite(agreement).sum(-1)
    metrics = {"ccc": mean}
    for index, name in enumerate(names):
        metrics |= {f"ccc_{name}": agreement[..., index], f"mae_{name}": error[..., index]}
    return metrics


def speaker_clusters(speakers: Sequence[object] | np.ndarray, ids: Sequence[object] | None = None) -> np.ndarray:
    """Resampling units: the speaker of each row, or the row itself if its speaker is missing.

    Args:
        speakers: Speaker of each row; None or NaN if missing.
        ids: Id of each row. Defaults to row numbers.

    Returns:
        Names ``(row,)``.
    """
    row_ids = range(len(speakers)) if ids is None else ids
    pairs = zip(speakers, row_ids, strict=True)
    names = [f"utterance {row_id}" if pd.isna(speaker) else str(speaker) for speaker, row_id in pairs]
    return np.array(names, dtype=object).astype(str)


class SpeakerCounts(NamedTuple):
    """Sums over each speaker's utterances, from which every metric can be computed.

    A resample of speakers is then a weighted sum, so thousands of bootstrap samples take milliseconds.

    Args:
        speakers: Names ``(speaker,)``.
        sums: ``(speaker, true class, predicted class)``, or ``(speaker, dimension, moment)``.
        metrics: Maps sums ``(..., *shape)`` to named metrics ``(...)``.

    Example:
        >>> target, predicted = np.array([0, 1, 1]), np.array([0, 1, 0])
        >>> counts = SpeakerCounts.of_classes(target, predicted, np.array(["a", "a", "b"]), num_classes=2)
        >>> counts.sums.shape
        (2, 2, 2)
        >>> float(counts.metrics(counts.sums.sum(0))["uar"])
        0.75
    """

    speakers: np.ndarray
    sums: np.ndarray
    metrics: Callable[[np.ndarray], dict[str, np.ndarray]]

    @staticmethod
    def of_classes(target: np.ndarray, predicted: np.ndarray, speakers: np.ndarray, num_classes: int) -> SpeakerCounts:
        """Confusion counts for :func:`class_metrics`.

        Args:
            target: True class indices ``(utterance,)``.
            predicted: Predicted class indices ``(utterance,)``.
            speakers: Speaker of each utterance; an utterance without one counts as its own speaker.
            num_classes: Number of classes.
        """
        names, indices = np.unique(speaker_clusters(speakers), return_inverse=True)
        confusion = np.zeros((len(names), num_classes, num_classes))
        np.add.at(confusion, (indices, target, predicted), 1)
        return SpeakerCounts(names, confusion, class_metrics)

    @staticmethod
    def of_dimensions(
        target: np.ndarray, predicted: np.ndarray, speakers: np.ndarray, names: Sequence[str]
    ) -> SpeakerCounts:
        """Moments for :func:`dimension_metrics`.

        Args:
            target: True values ``(utterance, dimension)``; NaN if unlabelled.
            predicted: Predicted values ``(utterance, dimension)``.
            speakers: Speaker of each utterance; an utterance without one counts as its own speaker.
            names: Names of the dimensions.
        """
        speaker_names, indices = np.unique(speaker_clusters(speakers), return_inverse=True)
        labelled = ~np.isnan(target)
        true, estimate = np.where(labelled, target, 0.0), np.where(labelled, predicted, 0.0)
        moments = [labelled, true, estimate, true**2, estimate**2, true * estimate, np.abs(true - estimate)]
        per_utterance = np.stack(moments, axis=-1)  # (utterance, dimension, moment)
        sums = np.zeros((len(speaker_names), *per_utterance.shape[1:]))
        np.add.at(sums, indices, per_utterance)
        return SpeakerCounts(speaker_names, sums, partial(dimension_metrics, names=tuple(names)))

    def num_speakers(self, metric: str) -> int:
        """Number of speakers that contribute to a metric: for a dimension, those with labels of it.

        Args:
            metric: Name, such as ``uar`` or ``ccc_valence``.
        """
        names = getattr(self.metrics, "keywords", {}).get("names")
        counts = self.sums.reshape(len(self.sums), -1).sum(1)
        if names is not None:
            indices = [index for index, name in enumerate(names) if metric.partition("_")[2] in ("", name)]
            counts = self.sums[:, indices, 0].sum(1)
        return int((counts > 0).sum())

    def resample(self, weights: np.ndarray) -> np.ndarray:
        """Sums of each bootstrap sample ``(sample, ...)``.

        Args:
            weights: How often each speaker is in each sample ``(sample, speaker)``.
        """
        return np.tensordot(weights, self.sums, axes=1)


def bootstrap_weights(num_speakers: int, num_samples: int, seed: int) -> np.ndarray:
    """Draws how often each speaker is in each bootstrap sample ``(sample, speaker)``."""
    return np.random.default_rng(seed).multinomial(num_speakers, [1 / num_speakers] * num_speakers, size=num_samples)


def bootstrap_limits(samples: np.ndarray, num_speakers: int, confidence: float) -> tuple[float, float]:
    """Expanded percentile limits of a bootstrapped metric; NaN for fewer than two speakers.

    Plain percentiles are too narrow for few speakers. They are expanded as in Hesterberg (2015),
    <https://doi.org/10.1080/00031305.2015.1089789>, section 3.3.

    Args:
        samples: The metric on each bootstrap sample ``(sample,)``.
        num_speakers: Number of speakers that were resampled.
        confidence: Level of the interval, in (0, 1).
    """
    from scipy.stats import norm, t

    if num_speakers < 2:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    scale = math.sqrt(num_speakers / (num_speakers - 1))
    share = float(norm.cdf(scale * t.ppf(tail, num_speakers - 1)))
    if np.isnan(samples).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(samples, [100 * share, 100 * (1 - share)])
    return float(low), float(high)


def speaker_bootstrap(
    metric: Callable[[np.ndarray], float],
    speakers: np.ndarray,
    confidence: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of any metric over speakers (Efron and Tibshirani 1993, chapter 13).

    :func:`intervals` is about a hundred times faster for metrics of :class:`SpeakerCounts`. With one speaker the
    limits are NaN.

    Args:
        metric: Maps row indices ``(row,)``, which may repeat, to the metric on these rows.
        speakers: Speaker of each row ``(row,)``.
        confidence: Level of the interval, in (0, 1).
        num_samples: Number of bootstrap samples.
        seed: Random seed.

    Example:
        >>> correct = np.array([1.0, 1.0, 0.0, 1.0])
        >>> speakers = np.array(["a", "a", "b", "c"])
        >>> speaker_bootstrap(lambda rows: correct[rows].mean(), speakers, num_samples=100).percent()
        '75.0 (0.0 to 100.0)'
    """
    names, indices = np.unique(speakers.astype(str), return_inverse=True)
    value = metric(np.arange(len(speakers)))
    if len(names) < 2:
        return Interval.without_limits(value)
    rows_of = [np.flatnonzero(indices == index) for index in range(len(names))]
    random = np.random.default_rng(seed)
    samples = [
        metric(np.concatenate([rows_of[index] for index in random.integers(len(names), size=len(names))]))
        for _ in range(num_samples)
    ]
    return Interval(value, *bootstrap_limits(np.array(samples), len(names), confidence))


def intervals(
    counts: SpeakerCounts,
    metrics: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None,
    confidence: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> dict[str, list[Interval]]:
    """Bootstrap intervals over speakers of all metrics of ``counts``.

    Args:
        counts: Sums of each speaker.
        metrics: Maps sums to named metrics ``(...)``, or ``(..., class)`` as :func:`per_class_metrics` does. Defaults
            to ``counts.metrics``.
        confidence: Level of the intervals, in (0, 1).
        num_samples: Number of bootstrap samples.
        seed: Random seed.

    Returns:
        A list for each metric: one interval, or one per class.

    Example:
        >>> target, speakers = np.tile([0, 1], 4), np.repeat(["a", "b", "c", "d"], 2)
        >>> counts = SpeakerCounts.of_classes(target, np.array([0, 1, 0, 0, 0, 1, 1, 1]), speakers, num_classes=2)
        >>> intervals(counts)["uar"][0].percent()
        '75.0 (50.0 to 100.0)'
    """
    metrics = metrics or counts.metrics
    values = metrics(counts.sums.sum(0))
    num_speakers = len(counts.speakers)
    if num_speakers < 2:
        return {
            name: [Interval.without_limits(float(value)) for value in np.atleast_1d(array)]
            for name, array in values.items()
        }
    samples = metrics(counts.resample(bootstrap_weights(num_speakers, num_samples, seed)))
    result = {}
    for name, array in values.items():
        columns = samples[name].reshape(num_samples, -1)
        contributing = counts.num_speakers(name)
        result[name] = [
            Interval(float(value), *bootstrap_limits(columns[:, index], contributing, confidence))
            for index, value in enumerate(np.atleast_1d(array))
        ]
    return result
