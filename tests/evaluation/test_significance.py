from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mmemo.evaluation.significance import (
    correct_p_values,
    corrected_resampled_t,
    detectable_difference,
    mcnemar,
)


def test_mcnemar_compares_where_only_one_run_is_correct() -> None:
    first = np.array([True] * 10 + [False] * 2 + [True] * 50)
    second = np.array([False] * 10 + [True] * 2 + [True] * 50)
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(2, 12).pvalue)


def test_p_values_are_corrected_for_several_comparisons() -> None:
    assert correct_p_values([0.01, 0.04, 0.03], "bonferroni") == pytest.approx([0.03, 0.12, 0.09])
    assert correct_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert correct_p_values([]) == []


def test_overlapping_training_sets_raise_the_p_value() -> None:
    differences = [0.02, 0.03, 0.01, 0.04, 0.02, 0.0]
    plain = stats.ttest_1samp(differences, 0).pvalue
    assert corrected_resampled_t(differences, 0.0) == pytest.approx(plain)
    assert corrected_resampled_t(differences, 1 / 5) > plain
    with pytest.raises(ValueError, match="two folds"):
        corrected_resampled_t([0.1], 0.2)


def test_more_speakers_detect_smaller_differences() -> None:
    assert detectable_difference(0.02, 12) > detectable_difference(0.02, 100) > detectable_difference(0.01, 100)
    assert np.isnan(detectable_difference(0.02, 1))
