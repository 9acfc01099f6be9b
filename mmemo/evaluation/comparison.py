"""Paired comparison of two runs on the same utterances: does one perform better on new speakers too?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmemo.evaluation.predictions import Predictions, align_runs, seed_averaged_classes
from mmemo.evaluation.significance import corrected_resampled_t, detectable_difference, mcnemar
from mmemo.evaluation.statistics import Interval, SpeakerCounts, bootstrap_limits, bootstrap_weights, intervals
from mmemo.labels import DIMENSIONS

MAX_EXACT_SPEAKERS = 12
"""Up to this number of speakers, the permutation test enumerates all swaps."""


class Comparison(NamedTuple):
    """A metric of two runs on the same utterances, and their difference.

    Args:
        metric: Name of the metric.
        first: The first run's value, with its interval.
        second: The second run's value, with its interval.
        difference: Second minus first, with an interval over speakers.
        p_permutation: P-value of a permutation test that swaps the runs speaker by speaker.
        p_mcnemar: P-value of McNemar's exact test on utterances, which treats them as independent; NaN for several
            seeds.
        p_folds: P-value of the corrected resampled t-test over folds; NaN if the runs' folds differ.
        num_speakers: Number of speakers.
        detectable_difference: Difference that this number of speakers would reveal in 80 % of studies, at p < 0.05.
    """

    metric: str
    first: Interval
    second: Interval
    difference: Interval
    p_permutation: float
    p_mcnemar: float
    p_folds: float
    num_speakers: int
    detectable_difference: float


def compare_counts(
    first: SpeakerCounts, second: SpeakerCounts, metric: str = "uar", num_samples: int = 5000, seed: int = 0
) -> Comparison:
    """Paired comparison of two runs on the same speakers.

    The interval resamples speakers. The p-value swaps the runs' predictions of whole speakers: all swaps for up to
    :data:`MAX_EXACT_SPEAKERS` speakers, ``num_samples`` random swaps otherwise (Fisher 1935; Phipson and Smyth 2010
    for the added one).

    Args:
        first: Counts of the first run.
        second: Counts of the second run, with the same speakers.
        metric: One of their metrics, such as ``uar`` or ``ccc``.
        num_samples: Number of bootstrap samples and of random swaps.
        seed: Random seed.

    Raises:
        ValueError: The metric is unknown, the speakers differ, or there are fewer than two.

    Example:
        >>> target, speakers = np.ones(30, int), np.repeat(["a", "b", "c"], 10)
        >>> worse = SpeakerCounts.of_classes(target, np.zeros(30, int), speakers, num_classes=2)
        >>> better = SpeakerCounts.of_classes(target, np.ones(30, int), speakers, num_classes=2)
        >>> compare_counts(worse, better, "accuracy").p_permutation  # 2 of 2**3 swaps are as extreme
        0.25
    """
    num_speakers = len(first.speakers)
    if list(first.speakers) != list(second.speakers):
        raise ValueError("the runs have different test speakers; a paired comparison needs the same utterances in both")
    if num_speakers < 2:
        raise ValueError("the runs have only one test speaker; a comparison needs two or more")
    known = first.metrics(first.sums.sum(0))
    if metric not in known:
        raise ValueError(f"these runs have no metric {metric!r}; expected one of {', '.join(known)}")

    def evaluate(sums: np.ndarray) -> np.ndarray:
        return first.metrics(sums)[metric]

    weights = bootstrap_weights(num_speakers, num_samples, seed)
    first_samples, second_samples = (evaluate(counts.resample(weights)) for counts in (first, second))
    differences = second_samples - first_samples
    value = float(evaluate(second.sums.sum(0)) - evaluate(first.sums.sum(0)))
    return Comparison(
        metric,
        intervals(first)[metric][0],  # the interval that every other page shows
        intervals(second)[metric][0],
        Interval(value, *bootstrap_limits(differences, num_speakers, 0.95)),
        _permutation_p(first, second, metric, value, num_samples, seed),
        float("nan"),
        float("nan"),
        num_speakers,
        detectable_difference(float(np.nanstd(differences, ddof=1)), num_speakers),
    )


def _permutation_p(
    first: SpeakerCounts, second: SpeakerCounts, metric: str, difference: float, num_samples: int, seed: int
) -> float:
    """Share of the swaps of speakers that give a difference as large as the observed one."""
    num_speakers = len(first.speakers)
    exact = num_speakers <= MAX_EXACT_SPEAKERS
    if exact:
        swaps = (np.arange(2**num_speakers)[:, None] >> np.arange(num_speakers)) & 1
    else:
        swaps = np.random.default_rng(seed + 1).integers(0, 2, size=(num_samples, num_speakers))
    total = first.sums.sum(0) + second.sums.sum(0)
    swapped = first.sums.sum(0) + np.tensordot(swaps, second.sums - first.sums, axes=1)  # (swap, ...)
    permuted = first.metrics(total - swapped)[metric] - first.metrics(swapped)[metric]
    extreme = np.abs(permuted) >= abs(difference) - 1e-12
    return float(extreme.mean()) if exact else float((extreme.sum() + 1) / (len(swaps) + 1))


def compare_runs(
    first: Predictions, second: Predictions, metric: str | None = None, num_samples: int = 5000, seed: int = 0
) -> Comparison:
    """Paired comparison of two runs. If a run has several seeds, each speaker's counts are averaged over them.

    Args:
        first: Predictions of the first run.
        second: Predictions of the second run, on the same utterances.
        metric: ``uar``, ``accuracy``, ``macro_f1``, ``weighted_f1``, or one of
            :func:`~mmemo.evaluation.statistics.dimension_metrics`. Defaults to ``uar``, or to ``ccc`` for models
            without classes.
        num_samples: Number of bootstrap samples and of random swaps.
        seed: Random seed.

    Raises:
        ValueError: The runs differ in utterances or classes, or have fewer than two speakers.

    Example:
        >>> import pandas as pd
        >>> speakers, emotions = np.repeat(["s1", "s2", "s3"], 4), ["anger", "fear"] * 6
        >>> frame = pd.DataFrame({"id": [f"u{row}" for row in range(12)], "speaker": speakers, "emotion": emotions})
        >>> sure = frame.assign(prob_anger=[0.9, 0.1] * 6, prob_fear=[0.1, 0.9] * 6)  # always right
        >>> guess = frame.assign(prob_anger=0.6, prob_fear=0.4)  # always anger
        >>> first, second = (Predictions(table, ["anger", "fear"], []) for table in (guess, sure))
        >>> compare_runs(first, second, num_samples=100).difference.percent()
        '50.0 (50.0 to 50.0)'
    """
    metric = metric or ("uar" if first.classes else "ccc")
    if metric.startswith(("ccc", "mae")):
        first, second = _shared_dimensions(first, second)
    first, second = align_runs(first.labelled, second.labelled)
    if first.table.empty:
        raise ValueError(f"no utterance of these runs has the labels that {metric} needs; compare another metric")
    if len(first.seeds) < 2 and len(second.seeds) < 2:  # one model each, whichever seed it was trained with
        first, second = (run._replace(table=run.table.drop(columns="seed", errors="ignore")) for run in (first, second))
    result = compare_counts(_mean_counts(first), _mean_counts(second), metric, num_samples, seed)
    if first.classes and not first.seeds and not second.seeds:
        indices = {name: index for index, name in enumerate(first.classes)}
        target = first.table.drop_duplicates("id")["emotion"].map(indices).to_numpy()
        correct = [seed_averaged_classes(run) == target for run in (first, second)]
        result = result._replace(p_mcnemar=mcnemar(*correct))
    return result._replace(p_folds=_p_over_folds(first, second, metric))


def _shared_dimensions(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Both runs reduced to the dimensions that they share, without classes."""
    shared = [name for name in first.dimensions if name in second.dimensions]
    if not shared:
        raise ValueError("the runs have no dimension in common; compare runs that predict the same dimensions")
    others = [f"predicted_{name}" for name in DIMENSIONS if name not in shared]
    first, second = (
        run._replace(table=run.table.drop(columns=others, errors="ignore"), classes=[]) for run in (first, second)
    )
    return first, second


def _mean_counts(predictions: Predictions) -> SpeakerCounts:
    """Counts of each speaker, averaged over seeds."""
    counts = predictions.speaker_counts()
    return counts._replace(sums=counts.sums / max(len(predictions.seeds), 1))


def _p_over_folds(first: Predictions, second: Predictions, metric: str) -> float:
    """Corrected resampled t-test over folds and seeds; NaN if the runs' folds differ."""
    runs = []
    for run in (first, second):
        if "fold" not in run.table or run.table["fold"].nunique() < 2:
            return float("nan")
        keys = [name for name in ("seed", "fold") if name in run.table]
        runs.append(
            {
                key: (set(rows["id"]), _evaluate(run._replace(table=rows.reset_index(drop=True)), metric))
                for key, rows in run.table.groupby(keys)
            }
        )
    if runs[0].keys() != runs[1].keys() or any(runs[0][key][0] != runs[1][key][0] for key in runs[0]):
        return float("nan")
    differences = [runs[1][key][1] - runs[0][key][1] for key in runs[0]]
    if np.isnan(differences).any():
        return float("nan")
    num_folds = first.table["fold"].nunique()
    return corrected_resampled_t(np.array(differences).tolist(), 1 / (num_folds - 1))


def _evaluate(predictions: Predictions, metric: str) -> float:
    counts = predictions.speaker_counts()
    return float(counts.metrics(counts.sums.sum(0)).get(metric, np.nan))
