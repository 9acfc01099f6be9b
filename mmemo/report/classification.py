"""Sections of a report about class predictions: metrics, curves, calibration and conformal sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmemo.evaluation.calibration import (
    CALIBRATIONS,
    COVERAGE,
    brier_score,
    cross_calibrate,
    log_loss,
    measure_coverage,
    reliability,
    risk_coverage,
)
from mmemo.evaluation.predictions import Predictions, read_predictions
from mmemo.evaluation.significance import detectable_difference
from mmemo.evaluation.statistics import (
    METRICS,
    Interval,
    SpeakerCounts,
    bootstrap_limits,
    bootstrap_weights,
    class_metrics,
    intervals,
    per_class_metrics,
)
from mmemo.report import charts
from mmemo.report.content import (
    Areas,
    CalibrationMetrics,
    CalibrationSummary,
    Classification,
    ClassMetrics,
    Confidence,
    ConformalSummary,
    Confusion,
    FoldUar,
    Section,
    SelectiveSummary,
    SpeakerAccuracy,
    ThresholdResult,
)

NUM_SLOW_SAMPLES = 1000  # bootstrap samples of metrics that are slow to compute
MIN_CONFORMAL_SPEAKERS = 4


def classification_section(labelled: Predictions) -> Section[Classification]:
    """Computes class metrics with intervals, confusions, and areas under curves.

    Args:
        labelled: Labelled predictions.
    """
    counts = labelled.speaker_counts()
    metrics = intervals(counts)
    per_class = intervals(counts, per_class_metrics)
    num_seeds = max(len(labelled.seeds), 1)
    confusion = counts.sums.sum(0) / num_seeds
    totals = counts.sums.sum((0, 2)) / num_seeds
    curves = _curves_section(labelled)
    areas, mean_areas = curves.content
    difference = None
    if len(counts.speakers) > 1:
        uar = metrics["uar"][0]
        # The standard error of a difference between two groups as large as this one is sqrt(2) times that of one UAR.
        difference = detectable_difference(math.sqrt(2) * (uar.high - uar.low) / 3.92, len(counts.speakers))
    content = Classification(
        metrics={name: metrics[name][0] for name in METRICS},
        classes=[
            ClassMetrics(name, int(totals[index]), *(per_class[kind][index] for kind in ("recall", "precision", "f1")))
            for index, name in enumerate(labelled.classes)
        ],
        confusion=Confusion(labelled.classes, confusion.round(2).tolist()),
        detectable_difference=difference,
        speakers=_speaker_accuracy(counts),
        folds=_fold_uars(labelled),
        areas=areas,
        mean_areas=mean_areas,
    )
    return Section(content, {"confusion": charts.confusion(confusion, labelled.classes)} | curves.svgs)


def _speaker_accuracy(counts: SpeakerCounts) -> SpeakerAccuracy | None:
    if len(counts.speakers) < 2:
        return None
    accuracy = class_metrics(counts.sums)["accuracy"]  # (speaker,)
    return SpeakerAccuracy(float(np.nanmin(accuracy)), float(np.nanmedian(accuracy)), float(np.nanmax(accuracy)))


def _fold_uars(labelled: Predictions) -> list[FoldUar] | None:
    if "fold" not in labelled.table:
        return None
    keys = [name for name in ("seed", "fold") if name in labelled.table]
    folds = []
    for numbers, rows in labelled.table.groupby(keys if len(keys) > 1 else keys[0]):
        name = " ".join(f"{key} {number}" for key, number in zip(keys, np.atleast_1d(numbers), strict=True))
        counts = labelled._replace(table=rows).speaker_counts()
        folds.append(FoldUar(name, float(class_metrics(counts.sums.sum(0))["uar"])))
    return folds


def _curves_section(labelled: Predictions) -> Section[tuple[dict[str, Areas], Areas | None]]:
    """ROC and precision-recall curves of each class against the others, and their areas: by class, and the mean."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    probs, target = labelled.probs, labelled.target
    names, indices = np.unique(labelled.speakers, return_inverse=True)
    weights = np.ones((1, len(target)))  # the first sample is the data themselves
    if len(names) > 1:
        weights = np.concatenate([weights, bootstrap_weights(len(names), NUM_SLOW_SAMPLES, 0)[:, indices]])
    areas: dict[str, Areas] = {}
    samples = []
    roc_curves: dict[str, charts.Curve] = {}
    pr_curves: dict[str, charts.Curve] = {}
    for index, name in enumerate(labelled.classes):
        truth, score = target == index, probs[:, index]
        if truth.all() or not truth.any():
            continue
        samples.append(sample_areas(truth, score, weights))
        areas[name] = Areas(*(_sampled_interval(kind, len(names)) for kind in samples[-1]))
        false_positive_rate, true_positive_rate, _ = roc_curve(truth, score)
        precision, recall, _ = precision_recall_curve(truth, score)
        roc_curves[name] = charts.Curve(false_positive_rate, true_positive_rate, areas[name].roc.value)
        pr_curves[name] = charts.Curve(recall, precision, areas[name].pr.value)
    if not areas:
        return Section((areas, None))
    means = Areas(*(_sampled_interval(np.mean(kind, axis=0), len(names)) for kind in zip(*samples, strict=True)))
    svgs = {"roc": charts.roc_curves(roc_curves), "pr": charts.pr_curves(pr_curves)}
    return Section((areas, means), svgs)


def _sampled_interval(samples: np.ndarray, num_speakers: int) -> Interval:
    """Interval of a metric whose first sample is its value on all data, and the others bootstrap samples."""
    if len(samples) == 1:
        return Interval.without_limits(float(samples[0]))
    return Interval(float(samples[0]), *bootstrap_limits(samples[1:], num_speakers, 0.95))


def sample_areas(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC area and average precision of each weighted sample, each ``(sample,)``.

    The ROC area is the Mann-Whitney statistic, in which ties count half. Equal to scikit-learn's functions with
    ``sample_weight``, but sorts only once for all samples.

    Args:
        truth: Whether an utterance belongs to the class ``(utterance,)`` bool.
        score: Predicted probability of the class ``(utterance,)``.
        weights: How often each utterance is in each sample ``(sample, utterance)``.
    """
    order = np.argsort(-score, kind="stable")
    hit = truth[order]
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # last index of each run of equal scores
    roc, average_precision = np.empty(len(weights)), np.empty(len(weights))
    for sample, weight in enumerate(weights):
        ordered = weight[order]
        true_positives, predicted = np.cumsum(ordered * hit)[last], np.cumsum(ordered)[last]
        new_true = np.diff(true_positives, prepend=0)
        new_false = np.diff(predicted - true_positives, prepend=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = true_positives[-1] * new_false.sum()
            roc[sample] = (new_false * (true_positives - new_true / 2)).sum() / pairs
            precision = new_true * true_positives / np.maximum(predicted, 1e-12)
            average_precision[sample] = precision.sum() / true_positives[-1]
    return roc, average_precision


def validation_rows(run: Path, classes: Sequence[str]) -> Predictions | None:
    """Labelled validation predictions, if the run wrote them (``--data.predict_on all``).

    Args:
        run: Folder or file.
        classes: Classes of the test predictions.
    """
    try:
        validation = read_predictions(run, "val").labelled
    except ValueError:
        return None
    return validation if validation.classes == list(classes) and len(validation.table) else None


def confidence_section(labelled: Predictions, validation: Predictions | None) -> Section[Confidence]:
    """Evaluates calibration, selective prediction and conformal sets.

    Args:
        labelled: Labelled predictions.
        validation: Predictions to fit calibration on. Without any, each speaker is calibrated on the others.
    """
    warnings: list[str] = []
    probs, target = labelled.probs, labelled.target
    scaled, fitted_on = _scaled_probs(labelled, validation)
    calibrated, vector = scaled.get("temperature"), scaled.get("vector")
    calibration = CalibrationSummary(
        before=_calibration_metrics(probs, target),
        after=None if calibrated is None else _calibration_metrics(calibrated, target),
        vector=None if vector is None else _calibration_metrics(vector, target),
        method=None if calibrated is None else f"temperature fitted on {fitted_on}",
    )
    if calibration.after is not None and calibration.after.ece > calibration.before.ece:
        warnings.append(
            "calibration increased the calibration error, as there is too little data to fit it on; use the "
            "uncalibrated probabilities"
        )
    diagrams = {"uncalibrated": reliability(probs, target)}
    if calibrated is not None:
        diagrams["calibrated"] = reliability(calibrated, target)
    curve = risk_coverage(probs if calibrated is None else calibrated, target)
    conformal = None
    if len(np.unique(labelled.speakers)) >= MIN_CONFORMAL_SPEAKERS:
        measured = measure_coverage(probs, target, labelled.speakers, COVERAGE)
        conformal = ConformalSummary(COVERAGE, *measured)
    else:
        warnings.append(f"fewer than {MIN_CONFORMAL_SPEAKERS} test speakers: conformal sets cannot be evaluated")
    content = Confidence(
        calibration=calibration,
        selective=SelectiveSummary(
            area=curve.area,
            risk={f"{share:.0%}": curve.at(share)[0] for share in (1.0, 0.9, 0.8, 0.6, 0.4)},
            at_threshold=_at_threshold(labelled),
        ),
        conformal=conformal,
        conformal_inner=_stored_sets(labelled.table),
    )
    svgs = {"reliability": charts.reliability(diagrams), "risk": charts.risk_coverage(curve)}
    return Section(content, svgs, warnings)


def _scaled_probs(labelled: Predictions, validation: Predictions | None) -> tuple[dict[str, np.ndarray], str]:
    """Calibrated probabilities by method, and what the methods were fitted on."""
    if labelled.calibrated is not None:
        return {"temperature": labelled.calibrated}, "inner folds"
    probs, target, speakers = labelled.probs, labelled.target, labelled.speakers
    if validation is not None:
        scaled = {name: fit(validation.probs, validation.target)(probs) for name, fit in CALIBRATIONS.items()}
        return scaled, "the validation speakers"
    if len(np.unique(speakers)) > 1:
        return {
            name: cross_calibrate(probs, target, speakers, name) for name in CALIBRATIONS
        }, "the other test speakers"
    return {}, ""


def _calibration_metrics(probs: np.ndarray, target: np.ndarray) -> CalibrationMetrics:
    return CalibrationMetrics(
        ece=reliability(probs, target).ece,
        overconfidence=float(probs.max(1).mean() - (probs.argmax(1) == target).mean()),
        brier=brier_score(probs, target),
        log_loss=log_loss(probs, target),
    )


def _at_threshold(labelled: Predictions) -> ThresholdResult | None:
    if "answered" not in labelled.table:
        return None
    answered = labelled.table["answered"].to_numpy(dtype=bool)
    correct = labelled.predicted == labelled.target
    return ThresholdResult(float(answered.mean()), float(1 - correct[answered].mean()) if answered.any() else None)


def _stored_sets(table: pd.DataFrame) -> ConformalSummary | None:
    if "conformal_set" not in table:
        return None
    sets = [str(names).split() for names in table["conformal_set"]]
    covered = [emotion in names for emotion, names in zip(table["emotion"], sets, strict=True)]
    return ConformalSummary(COVERAGE, float(np.mean(covered)), float(np.mean([len(names) for names in sets])))
