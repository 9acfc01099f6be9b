from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from mmemo.evaluation.comparison import compare_counts
from mmemo.evaluation.statistics import (
    SpeakerCounts,
    ccc,
    class_metrics,
    intervals,
    per_class_metrics,
    speaker_bootstrap,
    uar,
)


def answers(seed: int = 0, num_speakers: int = 12, num_each: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, predictions and speakers; some speakers are harder to recognise."""
    random = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(num_speakers), num_each)
    target = random.integers(0, 4, size=len(speakers))
    ease = np.clip(0.6 + 0.2 * random.standard_normal(num_speakers), 0.05, 0.95)
    right = random.random(len(speakers)) < ease[speakers]
    return target, np.where(right, target, random.integers(0, 4, size=len(speakers))), speakers


def test_uar_equals_scikit_learns_balanced_accuracy() -> None:
    target, predicted, _ = answers()
    assert uar(target, predicted) == pytest.approx(balanced_accuracy_score(target, predicted))


def test_metrics_of_counts_equal_scikit_learn() -> None:
    target, predicted, speakers = answers()
    confusion = SpeakerCounts.of_classes(target, predicted, speakers, 4).sums.sum(0)
    result = class_metrics(confusion)
    assert result["uar"] == pytest.approx(balanced_accuracy_score(target, predicted))
    assert result["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    assert result["macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert result["weighted_f1"] == pytest.approx(f1_score(target, predicted, average="weighted"))
    assert per_class_metrics(confusion)["recall"] == pytest.approx(recall_score(target, predicted, average=None))


def test_utterances_of_one_speaker_are_not_independent() -> None:
    random = np.random.default_rng(0)
    right = np.repeat(random.random(10) < 0.6, 50).astype(float)  # each speaker is always or never recognised
    speakers = np.repeat(np.arange(10), 50)

    def share(rows: np.ndarray) -> float:
        return float(right[rows].mean())

    by_speaker = speaker_bootstrap(share, speakers)
    by_utterance = speaker_bootstrap(share, np.arange(500))
    assert by_speaker.value == by_utterance.value == right.mean()
    assert by_speaker.high - by_speaker.low > 3 * (by_utterance.high - by_utterance.low)
    assert by_speaker == speaker_bootstrap(share, speakers)


def test_intervals_of_counts_equal_the_plain_bootstrap() -> None:
    target, predicted, speakers = answers()
    fast = intervals(SpeakerCounts.of_classes(target, predicted, speakers, 4), num_samples=4000)["uar"][0]
    slow = speaker_bootstrap(lambda rows: uar(target[rows], predicted[rows]), speakers, num_samples=2000, seed=1)
    assert fast.value == pytest.approx(slow.value)
    assert fast.low == pytest.approx(slow.low, abs=0.015)
    assert fast.high == pytest.approx(slow.high, abs=0.015)


def test_one_speaker_has_no_interval() -> None:
    result = speaker_bootstrap(lambda rows: 0.5, np.zeros(10))
    assert result.value == 0.5
    assert np.isnan([result.low, result.high]).all()
    alone = intervals(SpeakerCounts.of_classes(np.array([0, 1]), np.array([0, 1]), np.array(["a", "a"]), 2))["uar"][0]
    assert alone.value == 1.0
    assert np.isnan(alone.low)
    assert alone.percent() == "100.0"


def test_utterances_without_a_speaker_count_as_their_own_speaker() -> None:
    counts = SpeakerCounts.of_classes(
        np.array([0, 1, 1]), np.array([0, 1, 0]), np.array(["a", None, None], dtype=object), 2
    )
    assert len(counts.speakers) == 3


@pytest.mark.slow
def test_intervals_over_speakers_cover_the_truth_and_intervals_over_utterances_do_not() -> None:
    random = np.random.default_rng(0)
    covered = {"speakers": 0, "utterances": 0}
    for trial in range(300):
        ease = random.beta(3, 2, size=16)  # truth: the mean, 0.6
        right = random.random((16, 30)) < ease[:, None]
        for kind, groups in (("speakers", np.repeat(np.arange(16), 30)), ("utterances", np.arange(480))):
            counts = SpeakerCounts.of_classes(np.ones(480, int), right.ravel().astype(int), groups, 2)
            result = intervals(counts, num_samples=500, seed=trial)["accuracy"][0]
            covered[kind] += result.low <= 0.6 <= result.high
    assert 0.92 <= covered["speakers"] / 300 <= 0.98
    assert covered["utterances"] / 300 < 0.7


def test_a_run_differs_from_chance_but_not_from_itself() -> None:
    target, predicted, speakers = answers(num_speakers=14)
    first = SpeakerCounts.of_classes(target, predicted, speakers, 4)
    same = compare_counts(first, first)
    assert same.difference == (0.0, 0.0, 0.0)
    assert same.p_permutation == 1.0
    chance = SpeakerCounts.of_classes(target, np.random.default_rng(1).integers(0, 4, len(target)), speakers, 4)
    worse = compare_counts(first, chance)
    assert worse.difference.high < 0
    assert worse.p_permutation < 0.01
    back = compare_counts(chance, first)
    assert back.difference.value == pytest.approx(-worse.difference.value)
    assert worse.detectable_difference > 0


def test_all_swaps_of_few_speakers_are_enumerated() -> None:
    """With three speakers and one run always better, two of the eight swaps are as extreme: p is 1/4."""
    target, speakers = np.ones(30, int), np.repeat([0, 1, 2], 10)
    better, worse = np.ones(30, int), np.zeros(30, int)
    result = compare_counts(
        SpeakerCounts.of_classes(target, worse, speakers, 2),
        SpeakerCounts.of_classes(target, better, speakers, 2),
        metric="accuracy",
    )
    assert result.p_permutation == pytest.approx(2 / 8)


def test_the_permutation_test_keeps_its_level() -> None:
    """About one in twenty comparisons of equally good runs has p < 0.05."""
    random = np.random.default_rng(0)
    small = 0
    for trial in range(200):
        ease = random.beta(5, 3, size=(2, 10, 1))  # each run has its own easy speakers
        counts = [
            SpeakerCounts.of_classes(np.ones(200, int), (random.random((10, 20)) < run).ravel().astype(int),
                      np.repeat(np.arange(10), 20), 2)
            for run in ease
        ]  # fmt: skip
        small += compare_counts(*counts, metric="accuracy", num_samples=300, seed=trial).p_permutation < 0.05
    assert small / 200 < 0.09


def test_runs_with_different_speakers_are_rejected() -> None:
    first = SpeakerCounts.of_classes(np.array([0, 1]), np.array([0, 1]), np.array(["a", "b"]), 2)
    second = SpeakerCounts.of_classes(np.array([0, 1]), np.array([0, 1]), np.array(["a", "c"]), 2)
    with pytest.raises(ValueError, match="different test speakers"):
        compare_counts(first, second)
    alone = SpeakerCounts.of_classes(np.array([0]), np.array([0]), np.array(["a"]), 2)
    with pytest.raises(ValueError, match="only one test speaker"):
        compare_counts(alone, alone)


def test_ccc_equals_torchmetrics() -> None:
    import torch
    from torchmetrics.functional import concordance_corrcoef

    random = np.random.default_rng(0)
    target = random.standard_normal(50)
    predicted = 0.5 * target + random.standard_normal(50)
    # torchmetrics divides by n - 1 in one place and n in another
    assert ccc(target, predicted) == pytest.approx(
        float(concordance_corrcoef(torch.tensor(predicted), torch.tensor(target))), abs=0.02
    )
    assert ccc(target, target) == pytest.approx(1.0)


def values(worse: float = 0.0, num_speakers: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted valence and arousal, some unlabelled, and speakers."""
    random = np.random.default_rng(0)
    true = random.uniform(-1, 1, (num_speakers * 20, 2))
    predicted = 0.7 * true + (0.2 + worse) * random.standard_normal(true.shape)
    true[random.random(true.shape) < 0.1] = np.nan
    return true, predicted, np.repeat([f"s{number}" for number in range(num_speakers)], 20)


def test_metrics_of_moments_equal_those_of_the_values() -> None:
    true, predicted, speakers = values()
    counts = SpeakerCounts.of_dimensions(true, predicted, speakers, ["valence", "arousal"])
    result = intervals(counts)
    for index, name in enumerate(("valence", "arousal")):
        known = ~np.isnan(true[:, index])
        assert result[f"ccc_{name}"][0].value == pytest.approx(ccc(true[known, index], predicted[known, index]))
        assert result[f"mae_{name}"][0].value == pytest.approx(np.abs(true - predicted)[known, index].mean())
        slow = speaker_bootstrap(
            lambda rows, true=true[known, index], predicted=predicted[known, index]: ccc(true[rows], predicted[rows]),
            speakers[known],
        )
        assert result[f"ccc_{name}"][0] == pytest.approx(slow, abs=0.02)
    unlabelled = SpeakerCounts.of_dimensions(
        np.full((4, 1), np.nan), np.zeros((4, 1)), np.array(list("aabb")), ["valence"]
    )
    assert np.isnan(intervals(unlabelled)["ccc"][0].value)


def test_intervals_of_a_dimension_count_only_speakers_with_its_labels() -> None:
    random = np.random.default_rng(0)
    true = random.uniform(-1, 1, (60, 2))
    predicted = true + random.normal(0, 0.3, true.shape)
    speakers = np.repeat(list("abcdef"), 10)
    true[speakers != "a", 1] = np.nan
    result = intervals(SpeakerCounts.of_dimensions(true, predicted, speakers, ["valence", "dominance"]))
    assert result["ccc_valence"][0].low < result["ccc_valence"][0].value < result["ccc_valence"][0].high
    assert np.isnan(result["ccc_dominance"][0].low), "only one speaker has labels of dominance"
    assert not np.isnan(result["ccc_dominance"][0].value)


def test_dimensions_are_compared_like_classes() -> None:
    names = ["valence", "arousal"]
    better, worse = (SpeakerCounts.of_dimensions(*values(worse), names) for worse in (0.0, 0.4))
    result = compare_counts(worse, better, "ccc")
    assert result.difference.low > 0
    assert result.p_permutation < 0.01
    assert compare_counts(better, better, "ccc").p_permutation == 1
    with pytest.raises(ValueError, match="no metric 'uar'; expected one of ccc, ccc_valence"):
        compare_counts(better, better, "uar")
