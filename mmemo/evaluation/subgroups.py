"""Whether a model serves all alike: every figure by gender, age, language, corpus, length, noise, or any column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.audio.reader import AudioFacts
from mmemo.evaluation.calibration import reliability
from mmemo.evaluation.predictions import Predictions
from mmemo.evaluation.statistics import Interval, Tallies, draws, ends, per_class

FEW_UTTERANCES = 30
FEW_SPEAKERS = 5
FEW_IN_CELL = 10  # utterances of a class in a group, under which its rate is not compared
MAX_GROUPS = 12
AGE_BANDS = (0, 18, 30, 45, 60, 75, 130)
LENGTH_BANDS = (0, 1, 2, 4, 8, 15, 1e9)
SNR_BANDS = (-100, 10, 20, 30, 40, 200)
USUAL = ("gender", "age", "language", "corpus", "length", "noise")
"""Columns that a report looks at when they are there."""


class Group(NamedTuple):
    """One value of a column.

    Args:
        name: The value, or a band of numbers.
        num_utterances: With it.
        num_speakers: With it.
        figures: Name -> interval, without ends where one speaker is all there is; of classes also ``recall_CLASS``,
            and without ends ``roc`` (area, mean of classes) and ``ece`` (calibration error).
        warning: Why its figures say little; empty when they do not.
    """

    name: str
    num_utterances: int
    num_speakers: int
    figures: dict[str, Interval]
    warning: str


class Subgroups(NamedTuple):
    """A column's groups.

    Args:
        column: Its name.
        groups: In the order of their names.
        gaps: Figure -> best group less worst, with an interval over speakers; groups of under 5 speakers or 30
            utterances do not count.
        equalised_odds: Largest difference between two groups in how often a class is said where it is true, or where it
            is not (Hardt et al. 2016, <https://arxiv.org/abs/1610.02413>), over classes with 10 utterances in each
            group; without an interval, since a largest difference is never zero.
        warnings: What a reader must know.
    """

    column: str
    groups: list[Group]
    gaps: dict[str, Interval]
    equalised_odds: Interval
    warnings: list[str]


def with_audio_bands(predictions: Predictions, facts: Mapping[str, AudioFacts | None]) -> Predictions:
    """Adds columns ``length`` and ``noise``, in bands of seconds and of dB of speech over what is between.

    Args:
        predictions: Of a run.
        facts: Utterance id -> of its audio.
    """
    known = [facts.get(name) for name in predictions.table["id"]]
    heard = [None if fact is None or fact.problem else fact for fact in known]
    seconds = pd.Series([np.nan if fact is None else fact.seconds for fact in heard])
    noise = pd.Series([np.nan if fact is None else fact.snr_db for fact in heard])
    table = predictions.table.assign(
        seconds=seconds, length=banded(seconds, LENGTH_BANDS, "s"), noise=banded(noise, SNR_BANDS, "dB")
    )
    return predictions._replace(table=table)


def banded(values: pd.Series, edges: Sequence[float], unit: str) -> pd.Series:
    """Numbers as bands such as ``2-4 s``; missing where there is none.

    Args:
        values: Numbers.
        edges: Of the bands, growing.
        unit: Written behind.
    """

    def name(low: float, high: float) -> str:
        if low == edges[0]:
            return f"under {high:g} {unit}".strip()
        return f"{low:g} {unit} and more".strip() if high == edges[-1] else f"{low:g}-{high:g} {unit}".strip()

    names = [name(low, high) for low, high in pairwise(edges)]
    found = pd.cut(values.astype(float), list(edges), labels=names, right=False)
    return found.astype(object).where(found.notna(), None)


def usual_columns(predictions: Predictions) -> list[str]:
    """Of :data:`USUAL`, those with two values or more.

    Args:
        predictions: With the manifest's columns.
    """
    return [
        name for name in USUAL if name in predictions.table and _as_groups(predictions.table[name], name).nunique() > 1
    ]


def subgroups(
    predictions: Predictions, column: str, confidence: float = 0.95, num_samples: int = 1000, seed: int = 0
) -> Subgroups:
    """Figures of each value of a column, and the gaps between them.

    Args:
        predictions: Labelled rows, with the manifest's columns.
        column: Any; numbers are divided into bands (``age``) or quarters.
        confidence: Of the intervals.
        num_samples: Samples of speakers.
        seed: Of the draws.

    Raises:
        ValueError: There is no such column, or it has one value alone.
    """
    predictions = predictions.labelled
    table = predictions.table
    if column not in table:
        known = [str(name) for name in table if not str(name).startswith(("prob_", "calibrated_", "audio_", "text_"))]
        raise ValueError(f"no column {column!r} to look at subgroups of; the predictions have {', '.join(known)}")
    values = _as_groups(table[column], column)
    names = _in_order(values.dropna().unique())
    warnings: list[str] = []
    if len(names) < 2:
        raise ValueError(f"column {column!r} has one value alone, so there is nothing to compare; choose another")
    unknown = int(values.isna().sum())
    if unknown:
        warnings.append(f"{unknown} utterances have no {column}; they are in no group")
    if len(names) > MAX_GROUPS:
        counts = values.value_counts()
        names = [name for name in names if name in set(counts.index[:MAX_GROUPS])]
        warnings.append(f"{column} has {len(counts)} values; the {MAX_GROUPS} most frequent are shown")
    speakers = np.unique(predictions.speakers)
    parts = [_tallies(predictions, (values == name).to_numpy(dtype=bool), speakers) for name in names]
    weights = draws(len(speakers), num_samples, seed) if len(speakers) > 1 else np.ones((1, 1))
    groups, drawn, judged, emotions = [], {}, [], set(table["emotion"])
    for name, tallies in zip(names, parts, strict=True):
        rows = (values == name).to_numpy(dtype=bool)
        present = len(np.unique(predictions.speakers[rows]))
        drawn[name] = tallies.drawn(weights)
        num = len(set(table["id"][rows])) if "seed" in table else int(rows.sum())
        warning = ""
        if num == 1:
            warning = "one utterance alone: its figures say nothing"
        elif present < 2:
            warning = "one speaker alone: nothing can be said of others like them"
        elif num < FEW_UTTERANCES or present < FEW_SPEAKERS:
            warning = f"small: {num} utterances of {present} speakers; its intervals are too hopeful"
        if present >= FEW_SPEAKERS and num >= FEW_UTTERANCES:
            judged.append(name)
        missing = [one for one in predictions.classes if one in emotions - set(table["emotion"][rows])]
        if missing:
            warning = "; ".join(filter(None, [warning, f"has no {', '.join(missing)}, so its UAR is of other classes"]))
        figures = {}
        of_draws = tallies.figures(drawn[name])
        for figure, value in tallies.figures(tallies.sums.sum(0)).items():
            figures[figure] = Interval(float(value), *ends(of_draws[figure], tallies.num_speakers(figure), confidence))
        if predictions.classes:
            recall = per_class(drawn[name])["recall"]  # (sample, class)
            here = per_class(tallies.sums.sum(0))["recall"]
            for place, emotion in enumerate(predictions.classes):
                limits = ends(recall[:, place], present, confidence)
                figures[f"recall_{emotion}"] = Interval(float(here[place]), *limits)
            of_group = predictions._replace(table=table[rows])
            for figure, number in _of_probabilities(of_group.probs, of_group.target).items():
                figures[figure] = Interval(number, float("nan"), float("nan"))
        unknown_here = [one.removeprefix("ccc_") for one, value in figures.items() if np.isnan(value.value)]
        unknown_here = [one for one in unknown_here if one in predictions.dimensions]
        if not predictions.classes and unknown_here:
            warning = "; ".join(
                filter(None, [warning, f"{', '.join(unknown_here)} not known, so its mean CCC is of other dimensions"])
            )
        groups.append(Group(name, num, present, figures, warning))
        if warning:
            warnings.append(f"{column} {name}: {warning}")
    outside = [name for name in names if name not in judged]
    if len(judged) < 2:
        warnings.append(
            f"no gap is given: it takes two groups of {FEW_SPEAKERS} speakers and {FEW_UTTERANCES} utterances each"
        )
    elif outside:
        warnings.append(f"the gap is between groups that are large enough; without {', '.join(outside)}")
    gaps, odds = {}, Interval(*[float("nan")] * 3)
    if len(judged) > 1:
        chosen = [names.index(name) for name in judged]
        totals = np.stack([parts[number].sums.sum(0) for number in chosen])  # (group, ...)
        samples = np.stack([drawn[name] for name in judged])  # (group, sample, ...)
        whole, sampled = (parts[0].figures(sums) for sums in (totals, samples))
        for figure in whole:
            known = ~np.isnan(whole[figure])
            if known.sum() > 1:
                counts = np.array([parts[number].num_speakers(figure) for number in chosen])[known]
                limits = _gap_ends(sampled[figure][known], whole[figure][known], counts, confidence)
                gaps[figure] = Interval(float(np.ptp(whole[figure][known])), *limits)
        if predictions.classes:
            odds = Interval(float(_odds_gap(totals)), float("nan"), float("nan"))
            few = (totals.sum(-1) < FEW_IN_CELL).any(0)
            rare = [name for name, is_few in zip(predictions.classes, few, strict=True) if is_few and name in emotions]
            if rare:
                warnings.append(
                    f"equalised odds leave out {', '.join(rare)}: under {FEW_IN_CELL} utterances in one of the groups"
                )
    return Subgroups(column, groups, gaps, odds, warnings)


def _of_probabilities(probs: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """ROC area, mean of the classes that are there and are not all, and expected calibration error."""
    from sklearn.metrics import roc_auc_score

    truths = [(target == place, probs[:, place]) for place in range(probs.shape[1])]
    areas = [float(roc_auc_score(true, score)) for true, score in truths if true.any() and not true.all()]
    return {"roc": float(np.mean(areas)) if areas else float("nan"), "ece": reliability(probs, target).ece}


def _tallies(predictions: Predictions, rows: np.ndarray, speakers: np.ndarray) -> Tallies:
    """Of some rows, for all speakers, in seeds averaged."""
    own = predictions._replace(table=predictions.table[rows]).tallies(predictions.dimensions)
    sums = np.zeros((len(speakers), *own.sums.shape[1:]))
    sums[np.searchsorted(speakers, own.speakers)] = own.sums / max(len(predictions.seeds), 1)
    return Tallies(speakers, sums, own.figures)


def _gap_ends(
    sampled: np.ndarray, whole: np.ndarray, num_speakers: np.ndarray, confidence: float
) -> tuple[float, float]:
    """Of the signed difference between the group that is best and the one that is worst on the data at hand: the
    largest gap of each sample would never be near zero. Since the two were picked out of all pairs, the interval is as
    wide as one of so many must be (Bonferroni); and as wide as the smaller of the two groups makes it."""
    pairs = len(whole) * (len(whole) - 1) / 2
    order = whole.argsort()  # not argmax and argmin, which are one and the same group where all tie
    best, worst = order[-1], order[0]
    fewest = int(min(num_speakers[best], num_speakers[worst]))
    return ends(sampled[best] - sampled[worst], fewest, 1 - (1 - confidence) / pairs)


def _odds_gap(confusion: np.ndarray) -> np.ndarray:
    """Largest difference between groups in any class's true or false positive rate.

    Args:
        confusion: ``(group, ..., class, class)``.
    """
    said, true = confusion.sum(-2), confusion.sum(-1)  # (group, ..., class)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    others = true.sum(-1, keepdims=True) - true
    found = []
    for count, right in ((true, hits), (others, said - hits)):
        enough = (true >= FEW_IN_CELL) & (others >= FEW_IN_CELL)
        rates = np.where(enough, right / np.maximum(count, 1), np.nan)
        spread = np.where(np.isnan(rates).any(0), np.nan, rates.max(0) - rates.min(0))
        found.append(np.where(np.isnan(spread).all(-1), np.nan, np.nan_to_num(spread, nan=-1).max(-1)))
    return np.fmax(*found)


def _as_groups(values: pd.Series, column: str) -> pd.Series:
    """Text as it is; ages in bands, other numbers with many values in quarters."""
    number = pd.to_numeric(values, errors="coerce").astype(float)
    numeric = bool(number[values.notna()].notna().all()) and not pd.api.types.is_bool_dtype(values)
    if numeric and column == "age":
        return banded(number, AGE_BANDS, "")
    if numeric and number.nunique() > MAX_GROUPS:
        quarters = np.unique(np.nanquantile(number, [0.25, 0.5, 0.75]))
        place = pd.Series(np.searchsorted(quarters, number, side="right"), index=values.index)
        bounds = [f"{edge:.4g}" for edge in quarters]
        names = [
            f"under {bounds[0]}",
            *(f"{low} to {high}" for low, high in pairwise(bounds)),
            f"{bounds[-1]} and more",
        ]
        found = place.map(dict(enumerate(names))).astype(object)
        return found.where(number.notna(), None)
    found = values.astype(object)
    return found.where(found.notna(), None).map(lambda one: one if one is None else f"{one}")


def _in_order(names: Sequence[str]) -> list[str]:
    """Bands by their numbers, others by the alphabet."""

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
