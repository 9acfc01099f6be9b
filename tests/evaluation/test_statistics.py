from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import recall_score

from mmemo.evaluation.statistics import speaker_bootstrap, uar


def test_uar_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    target, predicted = random.integers(0, 4, 200), random.integers(0, 4, 200)
    assert uar(target, predicted) == pytest.approx(recall_score(target, predicted, average="macro"))


def test_an_interval_over_speakers_is_wider_than_one_over_utterances() -> None:
    random = np.random.default_rng(0)
    skill = random.uniform(0, 1, 10)  # each speaker is as easy as another is hard
    speakers = np.repeat(np.arange(10), 50)
    right = (random.uniform(size=500) < skill[speakers]).astype(float)

    def share(rows: np.ndarray) -> float:
        return float(right[rows].mean())

    by_speaker = speaker_bootstrap(share, speakers)
    by_utterance = speaker_bootstrap(share, np.arange(500))
    assert by_speaker.value == by_utterance.value == right.mean()
    assert by_speaker.low < by_utterance.low < right.mean() < by_utterance.high < by_speaker.high
    assert by_speaker == speaker_bootstrap(share, speakers)
    # The deviation of a mean of ten, times 1.96 each way.
    spread = right.reshape(10, 50).mean(1).std() / np.sqrt(10)
    assert by_speaker.high - by_speaker.low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_one_speaker_gives_no_interval() -> None:
    found = speaker_bootstrap(lambda rows: 0.5, np.zeros(10))
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        values = random.normal(0.5, 0.1, 30)
        found = speaker_bootstrap(
            lambda rows, values=values: float(values[rows].mean()), np.arange(30), num_samples=300
        )
        covered += found.low <= 0.5 <= found.high
    assert 87 <= covered <= 100
