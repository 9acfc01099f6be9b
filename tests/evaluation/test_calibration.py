from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from mmemo.evaluation.calibration import (
    CALIBRATIONS,
    brier,
    conformal,
    coverage_over_splits,
    log_loss,
    out_of_speaker,
    reliability,
    risk_coverage,
    temperature_scaling,
)


def overconfident(seed: int = 0, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities three times too sure in the logits, true classes, speakers."""
    random = np.random.default_rng(seed)
    logits = 1.2 * random.standard_normal((3000, 5))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = np.array([random.choice(5, p=row) for row in honest])
    probs = np.exp(factor * logits)
    return probs / probs.sum(1, keepdims=True), target, random.integers(0, 30, 3000).astype(str)


def test_calibration_error_is_torchmetrics() -> None:
    probs, target, _ = overconfident()
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(target), num_classes=5, n_bins=15)
    assert reliability(probs, target).ece == pytest.approx(float(theirs), abs=1e-3)


def test_brier_is_scikit_learns() -> None:
    probs, target, _ = overconfident()
    theirs = np.mean([brier_score_loss(target == name, probs[:, name]) for name in range(5)]) * 5
    assert brier(probs, target) == pytest.approx(theirs)


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_scaling_undoes_too_much_confidence(method: str) -> None:
    probs, target, _ = overconfident()
    scaling = CALIBRATIONS[method](probs[:1500], target[:1500])
    calibrated = scaling(probs[1500:])
    assert calibrated.sum(1) == pytest.approx(1.0)
    assert reliability(probs[1500:], target[1500:]).ece > 0.15
    assert reliability(calibrated, target[1500:]).ece < 0.05
    assert log_loss(calibrated, target[1500:]) < log_loss(probs[1500:], target[1500:])


def test_temperature_is_found_and_keeps_the_answer() -> None:
    probs, target, _ = overconfident(factor=2.0)
    scaling = temperature_scaling(probs, target)
    assert 1 / scaling.weight[0] == pytest.approx(2.0, abs=0.2)
    assert (scaling(probs).argmax(1) == probs.argmax(1)).all()


def test_nobody_is_calibrated_on_themselves() -> None:
    """One speaker whose labels are all wrong changes the probabilities of all others, and not of its own."""
    probs, target, speakers = overconfident()
    before = out_of_speaker(probs, target, speakers, num_folds=30)
    changed = target.copy()
    changed[speakers == "3"] = (target[speakers == "3"] + 1) % 5
    after = out_of_speaker(probs, changed, speakers, num_folds=30)
    same = np.isclose(before, after).all(1)
    assert same[speakers == "3"].all()
    assert not same[speakers != "3"].any()


def test_the_surest_answers_are_wrong_least() -> None:
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
def test_sets_cover_what_they_say_on_unheard_speakers(coverage: float) -> None:
    """Over 200 divisions of speakers, some of whom are harder than others: within 2 points."""
    random = np.random.default_rng(1)
    speakers = np.repeat(np.arange(24), 60)
    skill = random.uniform(0.5, 2.5, 24)[speakers]
    target = random.integers(0, 6, len(speakers))
    logits = random.standard_normal((len(speakers), 6))
    logits[np.arange(len(target)), target] += skill
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = coverage_over_splits(probs, target, speakers, coverage, num_splits=200)
    assert abs(found["coverage"] - coverage) < 0.02
    assert 1 <= found["size"] < 6


def test_a_talkative_speaker_counts_as_one() -> None:
    probs, target, speakers = overconfident(factor=1.0)
    hard = speakers == "7"
    probs[hard] = probs[hard][:, ::-1]  # whom the model mistakes for somebody else
    fitted = conformal(probs, target, speakers).threshold
    often = np.concatenate([np.arange(3000), *[np.flatnonzero(hard)] * 20])
    again = conformal(probs[often], target[often], speakers[often]).threshold
    as_many = np.array([str(number) for number in range(len(often))])  # each utterance a speaker of its own
    pooled = conformal(probs[often], target[often], as_many).threshold
    assert again == pytest.approx(fitted, abs=0.005)
    assert abs(pooled - fitted) > 0.02


def test_what_cannot_be_calibrated_says_so() -> None:
    probs, target, speakers = overconfident()
    with pytest.raises(ValueError, match="expected a chance"):
        conformal(probs, target, speakers, coverage=90)
    with pytest.raises(ValueError, match="one speaker alone"):
        out_of_speaker(probs, target, np.zeros(3000))
    with pytest.raises(ValueError, match="2 speakers"):
        coverage_over_splits(probs, target, np.arange(3000) % 2)
    with pytest.raises(ValueError, match="there is none"):
        temperature_scaling(probs[:0], target[:0])
