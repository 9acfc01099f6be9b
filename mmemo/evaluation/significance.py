"""Significance tests of paired differences, corrections for several tests, and statistical power."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray) -> float:
    """P-value of McNemar's exact test, which treats utterances as independent.

    Args:
        first_correct: Whether the first run is correct ``(utterance,)`` bool.
        second_correct: Whether the second run is correct ``(utterance,)`` bool.

    Example:
        >>> first, second = np.array([True] * 10 + [False] * 2), np.array([False] * 10 + [True] * 2)
        >>> round(mcnemar(first, second), 4)
        0.0386
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    table = np.array(
        [
            [np.sum(first_correct & second_correct), np.sum(first_correct & ~second_correct)],
            [np.sum(~first_correct & second_correct), np.sum(~first_correct & ~second_correct)],
        ]
    )
    return float(test(table, exact=True).pvalue)


def correct_p_values(p_values: Sequence[float], method: str = "holm") -> list[float]:
    """Corrects p-values for the number of comparisons.

    Args:
        p_values: P-values of all comparisons that were made.
        method: ``holm`` or ``bonferroni`` (family-wise error rate), or ``fdr_bh`` (false discovery rate), as in
            statsmodels.

    Example:
        >>> correct_p_values([0.01, 0.04, 0.03], "bonferroni")
        [0.03, 0.12, 0.09]
    """
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(list(p_values), method=method)[1]] if len(p_values) else []


def corrected_resampled_t(differences: Sequence[float], test_share: float) -> float:
    """P-value of a mean difference over folds, corrected for their overlapping training sets.

    Follows Nadeau and Bengio (2003), <https://doi.org/10.1023/A:1024068626366>, equation 9.

    Args:
        differences: Second run minus first, one for each fold (and seed).
        test_share: Number of test utterances divided by that of training utterances: 1/5 for six folds.

    Raises:
        ValueError: There are fewer than two folds.
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


def detectable_difference(standard_error: float, num_speakers: int, power: float = 0.8) -> float:
    """Smallest difference that is detected with probability ``power`` at p < 0.05 (Cohen 1988, chapter 2).

    Args:
        standard_error: Standard error of the difference, over samples of speakers.
        num_speakers: Number of speakers.
        power: Probability of detection, in (0, 1).

    Returns:
        The difference; NaN for fewer than two speakers.
    """
    from scipy.stats import t

    if num_speakers < 2 or math.isnan(standard_error):
        return float("nan")
    freedom = num_speakers - 1
    return float((t.ppf(0.975, freedom) + t.ppf(power, freedom)) * standard_error)
