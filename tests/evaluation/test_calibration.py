from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from mmemo.evaluation.calibration import (
    CALIBRATIONS,
    brier_score,
    conformal,
    cross_calibrate,
    log_loss,
    measure_coverage,
    reliability,
    risk_coverage,
    temperature_scaling,
)


def overconfident(seed: int = 0, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities from logits that are three times too large, true classes, and speakers."""
    random = np.random.default_rng(seed)
    logits = 1.2 * random.standard_normal((3000, 5))
    calibrated = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = np.array([random.choice(5, p=row) for row in calibrated])
    probs = np.exp(factor * logits)
    return probs / probs.sum(1, keepdims=True), target, random.integers(0, 30, 3000).astype(str)


def test_calibration_error_equals_torchmetrics() -> None:
    probs, target, _ = overconfident()
    expected = multiclass_calibration_error(torch.tensor(probs), torch.tensor(target), num_classes=5, n_bins=15)
    assert reliability(probs, target).ece == pytest.approx(float(expected), abs=1e-3)


def test_brier_score_and_log_loss_equal_scikit_learn() -> None:
    probs, target, _ = overconfident(factor=1.0)  # no probability is small enough to be clipped
    brier = sum(metrics.brier_score_loss(target == index, probs[:, index]) for index in range(5))
    assert brier_score(probs, target) == pytest.approx(brier, abs=1e-9)
    assert log_loss(probs, target) == pytest.approx(metrics.log_loss(target, probs), abs=1e-9)


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_scaling_corrects_overconfidence(method: str) -> None:
    probs, target, _ = overconfident()
    scaling = CALIBRATIONS[method](probs[:1500], target[:1500])
    calibrated = scaling(probs[1500:])
    assert calibrated.sum(1) == pytest.approx(1.0)
    assert reliability(probs[1500:], target[1500:]).ece > 0.15
    assert reliability(calibrated, target[1500:]).ece < 0.05
    assert log_loss(calibrated, target[1500:]) < log_loss(probs[1500:], target[1500:])


def test_temperature_scaling_finds_the_temperature_and_keeps_predictions() -> None:
    probs, target, _ = overconfident(factor=2.0)
    scaling = temperature_scaling(probs, target)
    assert 1 / scaling.weight[0] == pytest.approx(2.0, abs=0.2)
    assert (scaling(probs).argmax(1) == probs.argmax(1)).all()


def test_no_speaker_is_calibrated_on_their_own_labels() -> None:
    """Wrong labels of one speaker change the probabilities of all other speakers, but not that speaker's."""
    probs, target, speakers = overconfident()
    before = cross_calibrate(probs, target, speakers, num_folds=30)
    changed = target.copy()
    changed[speakers == "3"] = (target[speakers == "3"] + 1) % 5
    after = cross_calibrate(probs, changed, speakers, num_folds=30)
    unchanged = np.isclose(before, after).all(1)
    assert unchanged[speakers == "3"].all()
    assert not unchanged[speakers != "3"].any()


def test_the_most_confident_predictions_have_the_lowest_risk() -> None:
    probs, target, _ = overconfident()
    curve = risk_coverage(probs, target)
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == pytest.approx((probs.argmax(1) != target).mean())
    risk, threshold = curve.at(0.3)
    answered = probs.max(1) >= threshold
    assert answered.mean() == pytest.approx(0.3, abs=0.01)
    assert risk == pytest.approx((probs.argmax(1) != target)[answered].mean(), abs=0.01)
    assert risk < curve.risk[-1]


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_conformal_sets_reach_their_nominal_coverage_on_new_speakers(coverage: float) -> None:
    """Coverage is within 2 points of the target over 200 splits of speakers that differ in difficulty."""
    random = np.random.default_rng(1)
    speakers = np.repeat(np.arange(24), 60)
    skill = random.uniform(0.5, 2.5, 24)[speakers]
    target = random.integers(0, 6, len(speakers))
    logits = random.standard_normal((len(speakers), 6))
    logits[np.arange(len(target)), target] += skill
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    measured = measure_coverage(probs, target, speakers, coverage, num_splits=200)
    assert abs(measured.coverage - coverage) < 0.02
    assert 1 <= measured.size < 6


def test_conformal_sets_weight_speakers_equally_whatever_their_number_of_utterances() -> None:
    probs, target, speakers = overconfident(factor=1.0)
    hard = speakers == "7"
    probs[hard] = probs[hard][:, ::-1]  # the model fails on this speaker
    fitted = conformal(probs, target, speakers).threshold
    rows = np.concatenate([np.arange(3000), *[np.flatnonzero(hard)] * 20])
    repeated = conformal(probs[rows], target[rows], speakers[rows]).threshold
    one_speaker_each = np.array([str(number) for number in range(len(rows))])
    pooled = conformal(probs[rows], target[rows], one_speaker_each).threshold
    assert repeated == pytest.approx(fitted, abs=0.005)
    assert abs(pooled - fitted) > 0.02


def test_calibration_rejects_invalid_input() -> None:
    probs, target, speakers = overconfident()
    with pytest.raises(ValueError, match="expected a probability"):
        conformal(probs, target, speakers, coverage=90)
    with pytest.raises(ValueError, match="only one speaker"):
        cross_calibrate(probs, target, np.zeros(3000))
    with pytest.raises(ValueError, match="2 speakers"):
        measure_coverage(probs, target, np.arange(3000) % 2)
    with pytest.raises(ValueError, match="there are none"):
        temperature_scaling(probs[:0], target[:0])
