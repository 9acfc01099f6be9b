"""Fairness: every metric by gender, age, language, corpus, length, noise or any other column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.audio.reader import AudioFacts
from mmemo.evaluation.calibration import reliability
from mmemo.evaluation.predictions import Predictions
from mmemo.evaluation.statistics import (
    Interval,
    SpeakerCounts,
    bootstrap_limits,
    bootstrap_weights,
    per_class_metrics,
)
from mmemo.wording import counted

MIN_UTTERANCES = 30  # gaps leave out groups with fewer utterances
MIN_SPEAKERS = 5  # gaps leave out groups with fewer speakers
MIN_CLASS_UTTERANCES = 10  # a class's rates are compared only if every group has this many utterances of it
MAX_GROUPS = 12
AGE_BANDS = (0, 18, 30, 45, 60, 75, 130)  # years
LENGTH_BANDS = (0, 1, 2, 4, 8, 15, 1e9)  # seconds
SNR_BANDS = (-100, 10, 20, 30, 40, 200)  # dB
DEFAULT_COLUMNS = ("gender", "age", "language", "corpus", "length", "noise")
"""Columns that a report analyses if the predictions have them."""


class Group(NamedTuple):
    """Metrics of the utterances with one value of a column.

    Args:
        name: The value, or a band of numbers.
        num_utterances: Number of utterances.
        num_speakers: Number of speakers.
        metrics: Interval of each metric. For classes also ``recall_CLASS``, ``roc`` (mean ROC area of the classes) and
            ``ece`` (calibration error); the last two have no limits.
        warning: Why the metrics are unreliable; empty if they are not.
    """

    name: str
    num_utterances: int
    num_speakers: int
    metrics: dict[str, Interval]
    warning: str


class Subgroups(NamedTuple):
    """Comparison of the groups of a column.

    Args:
        column: Name of the column.
        groups: Groups in the order of their names.
        gaps: For each metric the best group minus the worst, with an interval over speakers. Small groups are left
            out.
        equalised_odds: Largest difference between two groups in the true or false positive rate of a class (Hardt et
            al. 2016, <https://arxiv.org/abs/1610.02413>), over classes with 10 utterances in each group. It has no
            limits, since a largest difference is never zero.
        warnings: Warnings for the reader.
    """

    column: str
    groups: list[Group]
    gaps: dict[str, Interval]
    equalised_odds: Interval
    warnings: list[str]


def add_audio_bands(predictions: Predictions, facts: Mapping[str, AudioFacts | None]) -> Predictions:
    """Adds ``seconds`` and the banded columns ``length`` (seconds) and ``noise`` (signal-to-noise ratio in dB).

    Args:
        predictions: Predictions of a run.
        facts: Audio facts of each utterance id.
    """
    usable = [
        None if fact is None or fact.problem else fact for fact in map(facts.get, predictions.table["id"])
    ]  # aligned with the rows
    seconds = pd.Series([np.nan if fact is None else fact.seconds for fact in usable])
    noise = pd.Series([np.nan if fact is None else fact.snr_db for fact in usable])
    table = predictions.table.assign(
        seconds=seconds, length=cut_into_bands(seconds, LENGTH_BANDS, "s"), noise=cut_into_bands(noise, SNR_BANDS, "dB")
    )
    return predictions._replace(table=table)


def cut_into_bands(values: pd.Series, edges: Sequence[float], unit: str) -> pd.Series:
    """Replaces numbers by named bands such as ``2-4 s``; NaN becomes None.

    Args:
        values: Numbers.
        edges: Edges of the bands, in rising order. The first and the last band are open.
        unit: Unit to write after the numbers.

    Example:
        >>> cut_into_bands(pd.Series([0.5, 1.0, 99.0]), (0, 1, 2, 100), "s").tolist()
        ['under 1 s', '1-2 s', '2 s and more']
    """

    def name(low: float, high: float) -> str:
        if low == edges[0]:
            return f"under {high:g} {unit}".strip()
        return f"{low:g} {unit} and more".strip() if high == edges[-1] else f"{low:g}-{high:g} {unit}".strip()

    names = [name(low, high) for low, high in pairwise(edges)]
    bands = pd.cut(values.astype(float), list(edges), labels=names, right=False)
    return bands.astype(object).where(bands.notna(), None)


def default_columns(predictions: Predictions) -> list[str]:
    """The :data:`DEFAULT_COLUMNS` that have two or more values.

    Args:
        predictions: Predictions with the manifest's columns.
    """
    table = predictions.table
    return [name for name in DEFAULT_COLUMNS if name in table and _group_labels(table[name], name).nunique() > 1]


class _Sample(NamedTuple):
    """A group with its bootstrap samples.

    Args:
        name: Name of the group.
        rows: Its rows of the table ``(row,)`` bool.
        counts: Counts of all speakers; zero for speakers outside the group.
        resampled: Sums of each bootstrap sample ``(sample, ...)``.
        num_speakers: Number of speakers in the group.
        num_utterances: Number of utterances in the group; seeds are not counted separately.
    """

    name: str
    rows: np.ndarray
    counts: SpeakerCounts
    resampled: np.ndarray
    num_speakers: int
    num_utterances: int

    @property
    def is_large(self) -> bool:
        """Whether the group is large enough to be compared with others."""
        return self.num_speakers >= MIN_SPEAKERS and self.num_utterances >= MIN_UTTERANCES


def evaluate_subgroups(
    predictions: Predictions, column: str, confidence: float = 0.95, num_samples: int = 1000, seed: int = 0
) -> Subgroups:
    """Metrics of each group of a column, and the gaps between groups.

    Args:
        predictions: Predictions with the manifest's columns; unlabelled rows are left out.
        column: Any column. Ages are divided into bands, other numbers with many values into quarters.
        confidence: Level of the intervals, in (0, 1).
        num_samples: Number of bootstrap samples of speakers.
        seed: Random seed.

    Raises:
        ValueError: The column is missing or has fewer than two values.
    """
    predictions = predictions.labelled
    values, names, warnings = _find_groups(predictions.table, column)
    samples = _resample_groups(predictions, values, names, num_samples, seed)
    groups = [_evaluate_group(predictions, sample, confidence) for sample in samples]
    warnings += [f"{column} {group.name}: {group.warning}" for group in groups if group.warning]
    large = [sample for sample in samples if sample.is_large]
    if len(large) < 2:
        warnings.append(
            f"no gap is computed: it needs two groups with {MIN_SPEAKERS} speakers and {MIN_UTTERANCES} utterances each"
        )
        return Subgroups(column, groups, {}, Interval.without_limits(float("nan")), warnings)
    small = [sample.name for sample in samples if not sample.is_large]
    if small:
        warnings.append(f"gaps leave out small groups: {', '.join(small)}")
    odds = Interval.without_limits(float("nan"))
    if predictions.classes:
        totals = np.stack([sample.counts.sums.sum(0) for sample in large])  # (group, class, class)
        odds = Interval.without_limits(float(_equalised_odds_gap(totals)))
        is_rare = (totals.sum(-1) < MIN_CLASS_UTTERANCES).any(0)
        present = set(predictions.table["emotion"])
        rare = [name for name, flag in zip(predictions.classes, is_rare, strict=True) if flag and name in present]
        if rare:
            warnings.append(
                f"equalised odds leave out {', '.join(rare)}: "
                f"under {MIN_CLASS_UTTERANCES} utterances in one of the groups"
            )
    return Subgroups(column, groups, _gaps(large, confidence), odds, warnings)


def _find_groups(table: pd.DataFrame, column: str) -> tuple[pd.Series, list[str], list[str]]:
    """The group of each row, the names of the groups, and warnings about rows outside them."""
    if column not in table:
        names = [str(name) for name in table if not str(name).startswith(("prob_", "calibrated_", "audio_", "text_"))]
        raise ValueError(f"the predictions have no column {column!r}; expected one of {', '.join(names)}")
    values = _group_labels(table[column], column)
    names = _sort_names(values.dropna().unique())
    if len(names) < 2:
        raise ValueError(f"column {column!r} has fewer than two values, so there are no groups; choose another column")
    warnings: list[str] = []
    num_missing = int(values.isna().sum())
    if num_missing:
        warnings.append(f"{num_missing} utterances have no {column}; they are in no group")
    if len(names) > MAX_GROUPS:
        counts = values.value_counts()
        names = [name for name in names if name in set(counts.index[:MAX_GROUPS])]
        warnings.append(f"{column} has {len(counts)} values; the {MAX_GROUPS} most frequent are shown")
    return values, names, warnings


def _resample_groups(
    predictions: Predictions, values: pd.Series, names: Sequence[str], num_samples: int, seed: int
) -> list[_Sample]:
    """Bootstrap samples of all groups. A sample draws the same speakers for each group."""
    table, speakers = predictions.table, np.unique(predictions.speakers)
    weights = bootstrap_weights(len(speakers), num_samples, seed) if len(speakers) > 1 else np.ones((1, 1))
    samples = []
    for name in names:
        rows = (values == name).to_numpy(dtype=bool)
        counts = _group_counts(predictions, rows, speakers)
        num_utterances = len(set(table["id"][rows])) if "seed" in table else int(rows.sum())
        num_speakers = len(np.unique(predictions.speakers[rows]))
        samples.append(_Sample(name, rows, counts, counts.resample(weights), num_speakers, num_utterances))
    return samples


def _group_counts(predictions: Predictions, rows: np.ndarray, speakers: np.ndarray) -> SpeakerCounts:
    """Counts of some rows for all speakers, averaged over seeds."""
    own = predictions._replace(table=predictions.table[rows]).speaker_counts(predictions.dimensions)
    sums = np.zeros((len(speakers), *own.sums.shape[1:]))
    sums[np.searchsorted(speakers, own.speakers)] = own.sums / max(len(predictions.seeds), 1)
    return SpeakerCounts(speakers, sums, own.metrics)


def _evaluate_group(predictions: Predictions, sample: _Sample, confidence: float) -> Group:
    counts = sample.counts
    total = counts.sums.sum(0)
    resampled = counts.metrics(sample.resampled)
    metrics = {
        name: Interval(float(value), *bootstrap_limits(resampled[name], counts.num_speakers(name), confidence))
        for name, value in counts.metrics(total).items()
    }
    if predictions.classes:
        recall_samples = per_class_metrics(sample.resampled)["recall"]  # (sample, class)
        recall = per_class_metrics(total)["recall"]
        for index, emotion in enumerate(predictions.classes):
            limits = bootstrap_limits(recall_samples[:, index], sample.num_speakers, confidence)
            metrics[f"recall_{emotion}"] = Interval(float(recall[index]), *limits)
        group = predictions._replace(table=predictions.table[sample.rows])
        for name, value in _probability_metrics(group.probs, group.target).items():
            metrics[name] = Interval.without_limits(value)
    warning = _group_warning(predictions, sample, metrics)
    return Group(sample.name, sample.num_utterances, sample.num_speakers, metrics, warning)


def _group_warning(predictions: Predictions, sample: _Sample, metrics: Mapping[str, Interval]) -> str:
    """Why the metrics of a group are unreliable."""
    parts = []
    if sample.num_utterances == 1:
        parts.append("only one utterance; its metrics mean nothing")
    elif sample.num_speakers < 2:
        parts.append("only one speaker; the result may not hold for others")
    elif not sample.is_large:
        size = f"{counted(sample.num_utterances, 'utterance')} of {counted(sample.num_speakers, 'speaker')}"
        parts.append(f"small: {size}; its intervals are too narrow")
    present = set(predictions.table["emotion"])
    absent = present - set(predictions.table["emotion"][sample.rows])
    missing = [name for name in predictions.classes if name in absent]
    if missing:
        parts.append(f"has no {', '.join(missing)}, so its UAR is over the other classes")
    if not predictions.classes:
        undefined = [name.removeprefix("ccc_") for name, value in metrics.items() if np.isnan(value.value)]
        undefined = [name for name in undefined if name in predictions.dimensions]
        if undefined:
            parts.append(f"has no labels of {', '.join(undefined)}, so its mean CCC is over the other dimensions")
    return "; ".join(parts)


def _probability_metrics(probs: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Mean ROC area of the classes, one against the others, and expected calibration error."""
    from sklearn.metrics import roc_auc_score

    binary = [(target == index, probs[:, index]) for index in range(probs.shape[1])]
    areas = [float(roc_auc_score(truth, score)) for truth, score in binary if truth.any() and not truth.all()]
    return {"roc": float(np.mean(areas)) if areas else float("nan"), "ece": reliability(probs, target).ece}


def _gaps(groups: Sequence[_Sample], confidence: float) -> dict[str, Interval]:
    """Best group minus worst for each metric that two or more groups have."""
    evaluate = groups[0].counts.metrics
    values = evaluate(np.stack([group.counts.sums.sum(0) for group in groups]))  # (group,) each
    samples = evaluate(np.stack([group.resampled for group in groups]))  # (group, sample) each
    gaps = {}
    for name, value in values.items():
        defined = ~np.isnan(value)
        if defined.sum() > 1:
            num_speakers = np.array([group.counts.num_speakers(name) for group in groups])[defined]
            limits = _gap_limits(samples[name][defined], value[defined], num_speakers, confidence)
            gaps[name] = Interval(float(np.ptp(value[defined])), *limits)
    return gaps


def _gap_limits(
    samples: np.ndarray, values: np.ndarray, num_speakers: np.ndarray, confidence: float
) -> tuple[float, float]:
    """Limits of the signed difference between the groups that are best and worst on all data.

    The largest gap of each sample would never be near zero. Since these two groups were selected from all pairs, the
    confidence is raised for the number of pairs (Bonferroni). The smaller group sets the number of speakers.

    Args:
        samples: ``(group, sample)``.
        values: ``(group,)``.
        num_speakers: ``(group,)``.
        confidence: Level of the interval, in (0, 1).
    """
    num_pairs = len(values) * (len(values) - 1) / 2
    order = values.argsort()  # not argmax and argmin, which return the same group if all are equal
    best, worst = order[-1], order[0]
    fewest = int(min(num_speakers[best], num_speakers[worst]))
    return bootstrap_limits(samples[best] - samples[worst], fewest, 1 - (1 - confidence) / num_pairs)


def _equalised_odds_gap(confusion: np.ndarray) -> np.ndarray:
    """Largest difference between groups in any class's true or false positive rate.

    Args:
        confusion: ``(group, ..., true class, predicted class)``.
    """
    predicted, true = confusion.sum(-2), confusion.sum(-1)  # (group, ..., class)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    others = true.sum(-1, keepdims=True) - true
    gaps = []
    for count, positive in ((true, hits), (others, predicted - hits)):
        enough = (true >= MIN_CLASS_UTTERANCES) & (others >= MIN_CLASS_UTTERANCES)
        rates = np.where(enough, positive / np.maximum(count, 1), np.nan)
        spread = np.where(np.isnan(rates).any(0), np.nan, rates.max(0) - rates.min(0))
        gaps.append(np.where(np.isnan(spread).all(-1), np.nan, np.nan_to_num(spread, nan=-1).max(-1)))
    return np.fmax(*gaps)


def _group_labels(values: pd.Series, column: str) -> pd.Series:
    """The group of each row: bands of ages, quarters of other numbers with many values, or the value as text."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    numeric = bool(numbers[values.notna()].notna().all()) and not pd.api.types.is_bool_dtype(values)
    if numeric and column == "age":
        return cut_into_bands(numbers, AGE_BANDS, "")
    if numeric and numbers.nunique() > MAX_GROUPS:
        edges = np.unique(np.nanquantile(numbers, [0.25, 0.5, 0.75]))
        quarters = pd.Series(np.searchsorted(edges, numbers, side="right"), index=values.index)
        bounds = [f"{edge:.4g}" for edge in edges]
        names = [
            f"under {bounds[0]}",
            *(f"{low} to {high}" for low, high in pairwise(bounds)),
            f"{bounds[-1]} and more",
        ]
        labels = quarters.map(dict(enumerate(names))).astype(object)
        return labels.where(numbers.notna(), None)
    labels = values.astype(object)
    return labels.where(labels.notna(), None).map(lambda value: value if value is None else f"{value}")


def _sort_names(names: Sequence[str]) -> list[str]:
    """Sorts bands by their numbers and other names alphabetically."""

    def key(name: str) -> tuple[int, float, str]:
        if name.startswith("under "):
            return (0, -1e9, name)
        start = name if name.startswith("-") else name.split("-")[0]
        start = start.split(" ")[0]
        try:
            return (0, float(start), name)
        except ValueError:
            return (1, 0.0, name)

    return sorted(map(str, names), key=key)
