"""How sure a figure is: intervals by resampling whole speakers, since utterances of one speaker are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A figure and the range it may well have been.

    Args:
        value: On the data at hand.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def uar(target: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that occur.

    Args:
        target: True classes ``(utterance,)``.
        predicted: What was said ``(utterance,)``.
    """
    recalls = [float((predicted[target == name] == name).mean()) for name in np.unique(target)]
    return float(np.mean(recalls)) if recalls else float("nan")


def speaker_bootstrap(
    figure: Callable[[np.ndarray], float],
    speakers: np.ndarray,
    confidence: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval over samples of speakers, drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    With few speakers it is wide, as it must be; with one alone there is none, and its ends are NaN.

    Args:
        figure: Rows, with repetitions, -> the figure on them.
        speakers: Of each row.
        confidence: Of the interval, in (0, 1).
        num_samples: How often speakers are drawn.
        seed: Of the draws.
    """
    names, numbers = np.unique(speakers.astype(str), return_inverse=True)
    if len(names) < 2:
        return Interval(figure(np.arange(len(speakers))), float("nan"), float("nan"))
    rows_of = [np.flatnonzero(numbers == number) for number in range(len(names))]
    random = np.random.default_rng(seed)
    drawn = [
        figure(np.concatenate([rows_of[number] for number in random.integers(len(names), size=len(names))]))
        for _ in range(num_samples)
    ]
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Interval(figure(np.arange(len(speakers))), float(low), float(high))
