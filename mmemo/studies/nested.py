"""Nested cross-validation: everything that is chosen is chosen on inner folds of the training side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmemo.evaluation.calibration import COVERAGE, Conformal, Scaling, conformal, risk_coverage, temperature_scaling
from mmemo.evaluation.predictions import labelled_probs
from mmemo.evaluation.statistics import speaker_clusters
from mmemo.files import write_json
from mmemo.studies.crossval import (
    CrossValidation,
    Notify,
    check_folds,
    check_same_experiment,
    crossval,
    folds_to_run,
    no_notification,
    read_folds,
    run_fold,
    write_results,
)
from mmemo.studies.tuning import SearchSettings, inner_experiment, tune
from mmemo.training.experiment import Experiment
from mmemo.training.experiment_cli import change_experiment

DECISIONS_FILE = "decisions.json"


def nested(
    experiment: Experiment,
    folder: str | Path,
    num_inner: int,
    space: Mapping[str, Any] | None = None,
    num_trials: int = 20,
    answered: float = 0.8,
    notify: Notify = no_notification,
) -> CrossValidation:
    """Cross-validates an experiment, and makes every choice on inner folds, so that no outer test speaker affects it.

    In each outer fold, the training side is divided into inner folds. The settings of ``space`` are tuned on them, if
    it is given. Their out-of-fold predictions give the temperature, the confidence threshold below which no answer is
    given, and the conformal sets. Then the model is trained on the whole outer training side (with ``checkpoint:
    best``, some of its speakers choose the epoch) and tested once.

    Args:
        experiment: Its ``data.split`` defines the outer folds.
        folder: Folder with one folder per outer fold, which holds ``inner`` and ``tuning``.
        num_inner: Number of inner folds, 2 or more.
        space: Search space, as for :func:`~mmemo.studies.tuning.tune`. By default nothing is tuned.
        num_trials: Settings tried in each outer fold.
        answered: Share of utterances that get an answer; the others are below the threshold.
        notify: Takes a line about each fold and trial.

    Returns:
        Results of the outer folds; predictions have columns ``calibrated_prob_...``, ``answered`` and
        ``conformal_set``.

    Raises:
        ValueError: There are fewer than 2 inner folds, or the model predicts dimensions only.
    """
    folder = Path(folder)
    if num_inner < 2:
        raise ValueError(f"nested {num_inner}: expected 2 inner folds or more")
    if not experiment.data.classes:
        raise ValueError("nested calibrates classes, but this experiment predicts dimensions only; remove it")
    check_folds(experiment, num_inner)
    num_folds = experiment.data.split.count_folds(experiment.data.read())
    options = {"nested": num_inner, "trials": num_trials, "answered": answered, "space": dict(space or {})}
    check_same_experiment(folder, experiment, options)
    for fold_folder, fold in folds_to_run(folder, num_folds, notify, experiment.num_processes > 1):
        chosen = experiment
        if space is not None:
            search = SearchSettings(num_trials=num_trials, num_folds=num_inner, outer_fold=fold, evaluate=False)
            tuned = tune(experiment, space, fold_folder / "tuning", search, notify)
            chosen = change_experiment(experiment, tuned.settings)
        inner = crossval(inner_experiment(chosen, fold, num_inner), fold_folder / "inner", notify=notify)
        decisions = Decisions.fitted(inner.predictions, answered)
        write_json(fold_folder / DECISIONS_FILE, decisions.as_json())
        run_fold(chosen.with_fold(fold, fold_folder), decisions.apply)
    result = read_folds(folder, num_folds)
    write_results(result)
    return result


@dataclass(frozen=True)
class Decisions:
    """What the inner folds decide for an outer fold.

    Args:
        scaling: Calibrates probabilities.
        threshold: Calibrated confidence below which no answer is given.
        conformal: Sets of classes that contain the true class with probability ``COVERAGE``.
    """

    scaling: Scaling
    threshold: float
    conformal: Conformal

    @staticmethod
    def fitted(predictions: pd.DataFrame, answered: float) -> Decisions:
        """Fits all three on out-of-fold predictions.

        Args:
            predictions: With labels.
            answered: Share of the utterances that get an answer.
        """
        labelled = predictions[predictions["emotion"].notna()]
        probs, target = labelled_probs(predictions)
        scaling = temperature_scaling(probs, target)
        calibrated = scaling(probs)
        speakers = speaker_clusters(labelled["speaker"], labelled["id"])
        threshold = risk_coverage(calibrated, target).at(answered)[1]
        return Decisions(scaling, threshold, conformal(calibrated, target, speakers, COVERAGE))

    def apply(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Adds calibrated probabilities, ``answered``, and the conformal set, whose classes are separated by spaces."""
        names = [name for name in predictions if str(name).startswith("prob_")]
        calibrated = self.scaling(predictions[names].to_numpy(dtype=float))
        columns = {f"calibrated_{name}": calibrated[:, index] for index, name in enumerate(names)}
        classes = np.array([str(name).removeprefix("prob_") for name in names])
        sets = [" ".join(classes[contained]) for contained in self.conformal.sets(calibrated)]
        return predictions.assign(**columns, answered=calibrated.max(1) >= self.threshold, conformal_set=sets)

    def as_json(self) -> dict[str, float]:
        """Returns the decisions as numbers."""
        return {
            "temperature": 1 / float(self.scaling.weight[0]),
            "threshold": self.threshold,
            "conformal_threshold": self.conformal.threshold,
            "conformal_coverage": self.conformal.coverage,
        }
