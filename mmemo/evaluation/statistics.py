"""How sure a figure is, and whether two differ: whole speakers are resampled, since utterances of one are alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

MAX_EXACT = 12  # speakers up to which every swap of two runs is tried


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

    def percent(self) -> str:
        """Such as ``75.3 (71.0 to 79.2)``; without ends where there are none."""
        return self._replace(**{name: 100 * value for name, value in self._asdict().items()}).number(1)

    def number(self, digits: int = 3) -> str:
        """Such as ``0.753 (0.710 to 0.792)``; without ends where there are none.

        Args:
            digits: Behind the point.
        """
        if math.isnan(self.value):
            return "n/a"
        ends = "" if math.isnan(self.low) else f" ({self.low:.{digits}f} to {self.high:.{digits}f})"
        return f"{self.value:.{digits}f}{ends}"


def plain(value: Any) -> Any:
    """For JSON: no NaN, no numpy, intervals as tables.

    Args:
        value: Figures, in tables and lists.
    """
    if isinstance(value, Interval):
        return {name: plain(one) for name, one in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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
    """Interval over samples of speakers, drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    Percentiles are expanded for the number of speakers, without which intervals of few are too narrow (Hesterberg
    2015, <https://doi.org/10.1080/00031305.2015.1089789>, section 3.3). One speaker alone has none: its ends are NaN.

    Args:
        figure: Rows, with repetitions, -> the figure on them.
        speakers: Of each row.
        confidence: Of the interval, in (0, 1).
        num_samples: How often speakers are drawn.
        seed: Of the draws.
    """
    names, numbers = np.unique(speakers.astype(str), return_inverse=True)
    value = figure(np.arange(len(speakers)))
    if len(names) < 2:
        return Interval(value, float("nan"), float("nan"))
    rows_of = [np.flatnonzero(numbers == number) for number in range(len(names))]
    random = np.random.default_rng(seed)
    drawn = [
        figure(np.concatenate([rows_of[number] for number in random.integers(len(names), size=len(names))]))
        for _ in range(num_samples)
    ]
    return Interval(value, *ends(np.array(drawn), len(names), confidence))


def ends(drawn: np.ndarray, num_speakers: int, confidence: float) -> tuple[float, float]:
    """Expanded percentiles of bootstrapped figures.

    Args:
        drawn: Of each sample of speakers.
        num_speakers: How many there are; of one alone there are no ends.
        confidence: Of the interval.
    """
    from scipy.stats import norm, t

    if num_speakers < 2:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    scale = math.sqrt(num_speakers / (num_speakers - 1))
    share = float(norm.cdf(scale * t.ppf(tail, num_speakers - 1)))
    if np.isnan(drawn).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(drawn, [100 * share, 100 * (1 - share)])
    return float(low), float(high)


class Tallies(NamedTuple):
    """What adds up over each speaker's utterances: all that a figure needs, in little room.

    Args:
        speakers: Names ``(speaker,)``.
        sums: ``(speaker, ...)``: of classes ``(true class, predicted class)``, of dimensions ``(dimension, moment)``.
        figures: Sums ``(..., *shape)`` -> name -> figures ``(...)``.
    """

    speakers: np.ndarray
    sums: np.ndarray
    figures: Callable[[np.ndarray], dict[str, np.ndarray]]

    @staticmethod
    def of_classes(target: np.ndarray, predicted: np.ndarray, speakers: np.ndarray, num_classes: int) -> Tallies:
        """Confusion counts, and :func:`class_figures` of them.

        Args:
            target: True class numbers ``(utterance,)``.
            predicted: Predicted ones.
            speakers: Of each utterance; rows without one count as a speaker each.
            num_classes: How many classes there are.
        """
        names, numbers = np.unique(clusters(speakers), return_inverse=True)
        confusion = np.zeros((len(names), num_classes, num_classes))
        np.add.at(confusion, (numbers, target, predicted), 1)
        return Tallies(names, confusion, class_figures)

    @staticmethod
    def of_dimensions(target: np.ndarray, predicted: np.ndarray, speakers: np.ndarray, names: Sequence[str]) -> Tallies:
        """Moments of true and predicted values, and :func:`dimension_figures` of them.

        Args:
            target: True values ``(utterance, dimension)``; NaN where one is not known.
            predicted: Predicted ones.
            speakers: As above.
            names: Of the dimensions.
        """
        people, numbers = np.unique(clusters(speakers), return_inverse=True)
        known = ~np.isnan(target)
        true, said = np.where(known, target, 0.0), np.where(known, predicted, 0.0)
        parts = np.stack([known, true, said, true**2, said**2, true * said, np.abs(true - said)], axis=-1)
        sums = np.zeros((len(people), *parts.shape[1:]))
        np.add.at(sums, numbers, parts)
        return Tallies(people, sums, partial(dimension_figures, names=tuple(names)))

    def num_speakers(self, figure: str) -> int:
        """How many speakers a figure rests on: of a dimension, those of whom it is known.

        Args:
            figure: Its name.
        """
        names = getattr(self.figures, "keywords", {}).get("names")
        counts = self.sums.reshape(len(self.sums), -1).sum(1)
        if names is not None:
            places = [place for place, name in enumerate(names) if figure.partition("_")[2] in ("", name)]
            counts = self.sums[:, places, 0].sum(1)
        return int((counts > 0).sum())

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """Sums of samples of speakers ``(sample, ...)``.

        Args:
            weights: How often each speaker counts ``(sample, speaker)``.
        """
        return np.tensordot(weights, self.sums, axes=1)


def clusters(speakers: Sequence[object] | np.ndarray, ids: Sequence[object] | None = None) -> np.ndarray:
    """Names to resample by: an utterance without a speaker stands for itself.

    Args:
        speakers: Of each row; missing where not known.
        ids: Of the rows; their numbers when not given.
    """
    import pandas as pd

    names = range(len(speakers)) if ids is None else ids
    pairs = zip(speakers, names, strict=True)
    return np.array([f"utterance {name}" if pd.isna(one) else str(one) for one, name in pairs], dtype=object).astype(
        str
    )  # type: ignore[call-overload]


FIGURES = ("uar", "accuracy", "macro_f1", "weighted_f1")


def dimension_figures(moments: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Concordance correlation (Lin 1989, <https://doi.org/10.2307/2532051>) and mean absolute error of dimensions.

    Args:
        moments: ``(..., dimension, 7)``: number of values, sums of true, predicted, true squared, predicted squared,
            their product, absolute difference.
        names: Of the dimensions.

    Returns:
        ``ccc``, the mean over dimensions that are known, and ``ccc_...`` and ``mae_...`` of each; NaN where fewer than
        two values are known.
    """
    number = moments[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        true, said, true_squares, said_squares, products, error = np.moveaxis(
            moments[..., 1:] / number[..., None], -1, 0
        )
        spread = (true_squares - true**2) + (said_squares - said**2) + (true - said) ** 2
        agreement = np.where((number > 1) & (spread > 1e-12), 2 * (products - true * said) / spread, np.nan)
        mean = np.nansum(agreement, -1) / np.isfinite(agreement).sum(-1)
    found = {"ccc": mean}
    for place, name in enumerate(names):
        found |= {f"ccc_{name}": agreement[..., place], f"mae_{name}": error[..., place]}
    return found


def class_figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """UAR, accuracy and F1 of confusion matrices; classes that do not occur do not count in UAR.

    Args:
        confusion: ``(..., true class, predicted class)``.

    Returns:
        Name -> figures ``(...)``; NaN without an utterance.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, said = confusion.sum(-1), confusion.sum(-2)
    present = true > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(present, hits / true, 0.0)
        f1 = np.where(true + said > 0, 2 * hits / (true + said), 0.0)
        return {
            "uar": recall.sum(-1) / present.sum(-1),
            "accuracy": hits.sum(-1) / true.sum(-1),
            "macro_f1": f1.sum(-1) / (true + said > 0).sum(-1),
            "weighted_f1": (f1 * true).sum(-1) / true.sum(-1),
        }


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, precision and F1 of each class.

    Args:
        confusion: ``(..., true class, predicted class)``.

    Returns:
        Name -> figures ``(..., class)``; NaN for a class that does not occur (precision: is never said).
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, said = confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"recall": hits / true, "precision": hits / said, "f1": 2 * hits / (true + said)}


def draws(num_speakers: int, num_samples: int, seed: int) -> np.ndarray:
    """How often each speaker is drawn in each sample ``(sample, speaker)``."""
    return np.random.default_rng(seed).multinomial(num_speakers, [1 / num_speakers] * num_speakers, size=num_samples)


def intervals(
    tallies: Tallies,
    figures: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None,
    confidence: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> dict[str, list[Interval]]:
    """Intervals of all figures of tallies; as :func:`speaker_bootstrap`, and a hundred times faster.

    Args:
        tallies: Of each speaker.
        figures: Sums -> name -> figures ``(...)``, or ``(..., class)`` as of :func:`per_class`; the tallies' own when
            not given.
        confidence: Of the intervals, in (0, 1).
        num_samples: How often speakers are drawn.
        seed: Of the draws.

    Returns:
        Name -> one interval, or one per class.
    """
    figures = figures or tallies.figures
    values = figures(tallies.sums.sum(0))
    num_speakers = len(tallies.speakers)
    if num_speakers < 2:
        nan = float("nan")
        return {name: [Interval(float(one), nan, nan) for one in np.atleast_1d(v)] for name, v in values.items()}
    weights = draws(num_speakers, num_samples, seed)
    drawn = figures(tallies.drawn(weights))
    found = {}
    for name, value in values.items():
        columns = drawn[name].reshape(num_samples, -1)
        own = tallies.num_speakers(name)
        found[name] = [
            Interval(float(one), *ends(columns[:, number], own, confidence))
            for number, one in enumerate(np.atleast_1d(value))
        ]
    return found


class Comparison(NamedTuple):
    """Two runs on the same utterances.

    Args:
        figure: Which figure is compared.
        first: That of the first run, with its interval.
        second: That of the second run.
        difference: Second less first, with an interval over speakers.
        p_permutation: Chance of such a difference if the runs were alike, by swapping them speaker by speaker.
        p_mcnemar: The same by McNemar's exact test on utterances, which takes them for independent; NaN for runs of
            several seeds.
        p_folds: The same by the corrected resampled t-test over folds; NaN where runs have none, or other ones.
        num_speakers: How many speakers there are.
        visible: Difference that so many speakers would show four times in five, at p < 0.05.
    """

    figure: str
    first: Interval
    second: Interval
    difference: Interval
    p_permutation: float
    p_mcnemar: float
    p_folds: float
    num_speakers: int
    visible: float


def compare_tallies(
    first: Tallies, second: Tallies, figure: str = "uar", num_samples: int = 5000, seed: int = 0
) -> Comparison:
    """Paired comparison of two runs on the same speakers.

    The interval resamples speakers; the p-value swaps the two runs' answers of whole speakers: all ways for few of
    them, ``num_samples`` random ones else (Fisher 1935; Phipson and Smyth 2010 for the added one).

    Args:
        first: Of one run.
        second: Of the other, with the same speakers.
        figure: One of theirs, such as ``uar`` or ``ccc``.
        num_samples: Of the bootstrap and of the permutations.
        seed: Of the draws.

    Raises:
        ValueError: There is no such figure, one speaker alone, or the speakers are not the same.
    """
    num_speakers = len(first.speakers)
    if list(first.speakers) != list(second.speakers):
        raise ValueError("the runs judge other speakers; a paired comparison needs the same utterances in both")
    if num_speakers < 2:
        raise ValueError("one speaker alone: nothing can be said of others; compare runs on two speakers or more")

    known = first.figures(first.sums.sum(0))
    if figure not in known:
        raise ValueError(f"no figure {figure!r} of these runs; expected one of {', '.join(known)}")

    def of(sums: np.ndarray) -> np.ndarray:
        return first.figures(sums)[figure]

    weights = draws(num_speakers, num_samples, seed)
    one, two = (of(tallies.drawn(weights)) for tallies in (first, second))
    value = float(of(second.sums.sum(0)) - of(first.sums.sum(0)))
    difference = Interval(value, *ends(two - one, num_speakers, 0.95))
    exact = num_speakers <= MAX_EXACT
    if exact:
        swaps = (np.arange(2**num_speakers)[:, None] >> np.arange(num_speakers)) & 1
    else:
        swaps = np.random.default_rng(seed + 1).integers(0, 2, size=(num_samples, num_speakers))
    total = first.sums.sum(0) + second.sums.sum(0)
    swapped = first.sums.sum(0) + np.tensordot(
        swaps, second.sums - first.sums, axes=1
    )  # some speakers are the second's
    extreme = np.abs(of(total - swapped) - of(swapped)) >= abs(value) - 1e-12
    p_value = float(extreme.mean()) if exact else float((extreme.sum() + 1) / (len(swaps) + 1))
    return Comparison(
        figure,
        intervals(first)[figure][0],  # as everywhere else
        intervals(second)[figure][0],
        difference,
        p_value,
        float("nan"),
        float("nan"),
        num_speakers,
        visible_difference(float(np.nanstd(two - one, ddof=1)), num_speakers),
    )


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """McNemar's exact test: chance of so uneven a division of the utterances that one run alone has right.

    Args:
        first_right: Whether the first run was right ``(utterance,)`` bool.
        second_right: Whether the second was.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    table = np.array(
        [
            [np.sum(first_right & second_right), np.sum(first_right & ~second_right)],
            [np.sum(~first_right & second_right), np.sum(~first_right & ~second_right)],
        ]
    )
    return float(test(table, exact=True).pvalue)


def corrected(p_values: Sequence[float], method: str = "holm") -> list[float]:
    """P-values of many comparisons, so that the chance of any false alarm stays that of one.

    Args:
        p_values: Of all comparisons that were made.
        method: ``holm``, ``bonferroni`` or ``fdr_bh`` (share of false alarms instead), as in statsmodels.
    """
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(list(p_values), method=method)[1]] if len(p_values) else []


def corrected_resampled_t(differences: Sequence[float], test_share: float) -> float:
    """P-value of a difference over folds, whose training sides overlap (Nadeau and Bengio 2003,
    <https://doi.org/10.1023/A:1024068626366>, equation 9).

    Args:
        differences: Second run less first, one per fold (and seed).
        test_share: Utterances tested, as a share of those trained on: 1/5 for six folds.

    Raises:
        ValueError: There is one fold alone.
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        raise ValueError("the corrected resampled t-test needs two folds or more")
    variance = float(values.var(ddof=1))
    if variance == 0:
        return 1.0 if values.mean() == 0 else 0.0
    statistic = values.mean() / math.sqrt((1 / len(values) + test_share) * variance)
    return float(2 * t.sf(abs(statistic), len(values) - 1))


def visible_difference(standard_error: float, num_speakers: int, power: float = 0.8) -> float:
    """Difference that so many speakers show with a chance of ``power``, at p < 0.05 (Cohen 1988, chapter 2).

    Args:
        standard_error: Of the difference, over samples of speakers.
        num_speakers: How many there are.
        power: Chance to see it, in (0, 1).
    """
    from scipy.stats import t

    if num_speakers < 2 or math.isnan(standard_error):
        return float("nan")
    freedom = num_speakers - 1
    return float((t.ppf(0.975, freedom) + t.ppf(power, freedom)) * standard_error)


def ccc(target: np.ndarray, predicted: np.ndarray) -> float:
    """Concordance correlation coefficient (Lin 1989); NaN for fewer than two values.

    Args:
        target: ``(utterance,)``.
        predicted: ``(utterance,)``.
    """
    if len(target) < 2:
        return float("nan")
    spread = target.var() + predicted.var() + (target.mean() - predicted.mean()) ** 2
    covariance = ((target - target.mean()) * (predicted - predicted.mean())).mean()
    return float(2 * covariance / spread) if spread > 0 else float("nan")
