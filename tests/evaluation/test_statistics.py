from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from mmemo.evaluation.statistics import (
    Tallies,
    ccc,
    class_figures,
    compare_tallies,
    corrected,
    corrected_resampled_t,
    intervals,
    mcnemar,
    per_class,
    speaker_bootstrap,
    uar,
    visible_difference,
)


def answers(seed: int = 0, num_speakers: int = 12, num_each: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, predictions and speakers, some of whom are harder than others."""
    random = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(num_speakers), num_each)
    target = random.integers(0, 4, size=len(speakers))
    ease = np.clip(0.6 + 0.2 * random.standard_normal(num_speakers), 0.05, 0.95)
    right = random.random(len(speakers)) < ease[speakers]
    return target, np.where(right, target, random.integers(0, 4, size=len(speakers))), speakers


def test_uar_is_scikit_learns_balanced_accuracy() -> None:
    target, predicted, _ = answers()
    assert uar(target, predicted) == pytest.approx(balanced_accuracy_score(target, predicted))


def test_figures_of_counts_are_scikit_learns() -> None:
    target, predicted, speakers = answers()
    confusion = Tallies.of_classes(target, predicted, speakers, 4).sums.sum(0)
    found = class_figures(confusion)
    assert found["uar"] == pytest.approx(balanced_accuracy_score(target, predicted))
    assert found["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert found["weighted_f1"] == pytest.approx(f1_score(target, predicted, average="weighted"))
    assert per_class(confusion)["recall"] == pytest.approx(recall_score(target, predicted, average=None))


def test_utterances_of_one_speaker_do_not_count_as_many() -> None:
    random = np.random.default_rng(0)
    right = np.repeat(random.random(10) < 0.6, 50).astype(float)  # a speaker is recognised always or never
    speakers = np.repeat(np.arange(10), 50)

    def share(rows: np.ndarray) -> float:
        return float(right[rows].mean())

    by_speaker = speaker_bootstrap(share, speakers)
    by_utterance = speaker_bootstrap(share, np.arange(500))
    assert by_speaker.value == by_utterance.value == right.mean()
    assert by_speaker.high - by_speaker.low > 3 * (by_utterance.high - by_utterance.low)
    assert by_speaker == speaker_bootstrap(share, speakers)


def test_the_fast_interval_is_the_slow_one() -> None:
    target, predicted, speakers = answers()
    fast = intervals(Tallies.of_classes(target, predicted, speakers, 4), num_samples=4000)["uar"][0]
    slow = speaker_bootstrap(lambda rows: uar(target[rows], predicted[rows]), speakers, num_samples=2000, seed=1)
    assert fast.value == pytest.approx(slow.value)
    assert fast.low == pytest.approx(slow.low, abs=0.015)
    assert fast.high == pytest.approx(slow.high, abs=0.015)


def test_one_speaker_alone_has_no_interval() -> None:
    found = speaker_bootstrap(lambda rows: 0.5, np.zeros(10))
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()
    alone = intervals(Tallies.of_classes(np.array([0, 1]), np.array([0, 1]), np.array(["a", "a"]), 2))["uar"][0]
    assert alone.value == 1.0
    assert np.isnan(alone.low)
    assert alone.percent() == "100.0"


def test_rows_without_a_speaker_stand_for_themselves() -> None:
    counts = Tallies.of_classes(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array(["a", None, None], dtype=object), 2)
    assert len(counts.speakers) == 3


@pytest.mark.slow
def test_intervals_over_speakers_cover_the_truth_and_naive_ones_do_not() -> None:
    random = np.random.default_rng(0)
    covered = {"speakers": 0, "utterances": 0}
    for trial in range(300):
        ease = random.beta(3, 2, size=16)  # truth: the mean, 0.6
        right = random.random((16, 30)) < ease[:, None]
        for kind, groups in (("speakers", np.repeat(np.arange(16), 30)), ("utterances", np.arange(480))):
            counts = Tallies.of_classes(np.ones(480, int), right.ravel().astype(int), groups, 2)
            found = intervals(counts, num_samples=500, seed=trial)["accuracy"][0]
            covered[kind] += found.low <= 0.6 <= found.high
    assert 0.92 <= covered["speakers"] / 300 <= 0.98
    assert covered["utterances"] / 300 < 0.7


def test_a_run_does_not_differ_from_itself_and_does_from_chance() -> None:
    target, predicted, speakers = answers(num_speakers=14)
    first = Tallies.of_classes(target, predicted, speakers, 4)
    same = compare_tallies(first, first)
    assert same.difference == (0.0, 0.0, 0.0)
    assert same.p_permutation == 1.0
    chance = Tallies.of_classes(target, np.random.default_rng(1).integers(0, 4, len(target)), speakers, 4)
    worse = compare_tallies(first, chance)
    assert worse.difference.high < 0
    assert worse.p_permutation < 0.01
    back = compare_tallies(chance, first)
    assert back.difference.value == pytest.approx(-worse.difference.value)
    assert worse.visible > 0


def test_swaps_of_few_speakers_are_all_tried() -> None:
    """With three speakers and one always better, two of the eight ways are as extreme: p is 1/4."""
    target, speakers = np.ones(30, int), np.repeat([0, 1, 2], 10)
    better, worse = np.ones(30, int), np.zeros(30, int)
    found = compare_tallies(
        Tallies.of_classes(target, worse, speakers, 2),
        Tallies.of_classes(target, better, speakers, 2),
        figure="accuracy",
    )
    assert found.p_permutation == pytest.approx(2 / 8)


def test_permutation_keeps_its_level() -> None:
    """Of runs that are alike, one in twenty comes out at p < 0.05."""
    random = np.random.default_rng(0)
    small = 0
    for trial in range(200):
        ease = random.beta(5, 3, size=(2, 10, 1))  # both runs have speakers of their own liking
        counts = [
            Tallies.of_classes(np.ones(200, int), (random.random((10, 20)) < one).ravel().astype(int),
                      np.repeat(np.arange(10), 20), 2)
            for one in ease
        ]  # fmt: skip
        small += compare_tallies(*counts, figure="accuracy", num_samples=300, seed=trial).p_permutation < 0.05
    assert small / 200 < 0.09


def test_other_speakers_cannot_be_compared() -> None:
    first = Tallies.of_classes(np.array([0, 1]), np.array([0, 1]), np.array(["a", "b"]), 2)
    second = Tallies.of_classes(np.array([0, 1]), np.array([0, 1]), np.array(["a", "c"]), 2)
    with pytest.raises(ValueError, match="other speakers"):
        compare_tallies(first, second)
    alone = Tallies.of_classes(np.array([0]), np.array([0]), np.array(["a"]), 2)
    with pytest.raises(ValueError, match="one speaker alone"):
        compare_tallies(alone, alone)


def test_mcnemar_counts_where_one_run_alone_is_right() -> None:
    first = np.array([True] * 10 + [False] * 2 + [True] * 50)
    second = np.array([False] * 10 + [True] * 2 + [True] * 50)
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(2, 12).pvalue)


def test_many_comparisons_are_corrected() -> None:
    assert corrected([0.01, 0.04, 0.03], "bonferroni") == pytest.approx([0.03, 0.12, 0.09])
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([]) == []


def test_overlapping_training_sides_widen_the_t_test() -> None:
    differences = [0.02, 0.03, 0.01, 0.04, 0.02, 0.0]
    plain = stats.ttest_1samp(differences, 0).pvalue
    assert corrected_resampled_t(differences, 0.0) == pytest.approx(plain)
    assert corrected_resampled_t(differences, 1 / 5) > plain
    with pytest.raises(ValueError, match="two folds"):
        corrected_resampled_t([0.1], 0.2)


def test_more_speakers_show_smaller_differences() -> None:
    assert visible_difference(0.02, 12) > visible_difference(0.02, 100) > visible_difference(0.01, 100)
    assert np.isnan(visible_difference(0.02, 1))


def test_ccc_is_torchmetrics() -> None:
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
    """True and predicted valence and arousal, some not known, and speakers."""
    random = np.random.default_rng(0)
    true = random.uniform(-1, 1, (num_speakers * 20, 2))
    said = 0.7 * true + (0.2 + worse) * random.standard_normal(true.shape)
    true[random.random(true.shape) < 0.1] = np.nan
    return true, said, np.repeat([f"s{one}" for one in range(num_speakers)], 20)


def test_figures_of_moments_are_those_of_the_values() -> None:
    true, said, speakers = values()
    tallies = Tallies.of_dimensions(true, said, speakers, ["valence", "arousal"])
    found = intervals(tallies)
    for place, name in enumerate(("valence", "arousal")):
        known = ~np.isnan(true[:, place])
        assert found[f"ccc_{name}"][0].value == pytest.approx(ccc(true[known, place], said[known, place]))
        assert found[f"mae_{name}"][0].value == pytest.approx(np.abs(true - said)[known, place].mean())
        slow = speaker_bootstrap(
            lambda rows, true=true[known, place], said=said[known, place]: ccc(true[rows], said[rows]), speakers[known]
        )
        assert found[f"ccc_{name}"][0] == pytest.approx(slow, abs=0.02)
    nothing = Tallies.of_dimensions(np.full((4, 1), np.nan), np.zeros((4, 1)), np.array(list("aabb")), ["valence"])
    assert np.isnan(intervals(nothing)["ccc"][0].value)


def test_an_interval_counts_the_speakers_of_whom_a_dimension_is_known() -> None:
    random = np.random.default_rng(0)
    true = random.uniform(-1, 1, (60, 2))
    said = true + random.normal(0, 0.3, true.shape)
    speakers = np.repeat(list("abcdef"), 10)
    true[speakers != "a", 1] = np.nan
    found = intervals(Tallies.of_dimensions(true, said, speakers, ["valence", "dominance"]))
    assert found["ccc_valence"][0].low < found["ccc_valence"][0].value < found["ccc_valence"][0].high
    assert np.isnan(found["ccc_dominance"][0].low), "one speaker alone says nothing of others"
    assert not np.isnan(found["ccc_dominance"][0].value)


def test_dimensions_are_compared_as_classes_are() -> None:
    names = ["valence", "arousal"]
    better, worse = (Tallies.of_dimensions(*values(one), names) for one in (0.0, 0.4))
    found = compare_tallies(worse, better, "ccc")
    assert found.difference.low > 0
    assert found.p_permutation < 0.01
    assert compare_tallies(better, better, "ccc").p_permutation == 1
    with pytest.raises(ValueError, match="no figure 'uar' of these runs; expected one of ccc, ccc_valence"):
        compare_tallies(better, better, "uar")
