"""Cross-validation in which everything that is chosen is chosen inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.evaluation.calibration import COVERAGE, Conformal, Scaling, conformal, risk_coverage, temperature_scaling
from mmemo.evaluation.predictions import labelled_probs
from mmemo.evaluation.statistics import clusters
from mmemo.files import write_text
from mmemo.studies.crossval import (
    CrossValidation,
    check_same_experiment,
    collect,
    crossval,
    folds_to_do,
    input_files,
    prepared,
    run_fold,
    silent,
    write,
)
from mmemo.studies.tuning import Tuning, inner_config, tune
from mmemo.training.experiment import Experiment

DECISIONS_FILE = "decisions.json"


def nested(
    config: Path,
    run: Path,
    num_inner: int,
    overrides: Sequence[str] = (),
    space: Path | None = None,
    num_trials: int = 20,
    answered: float = 0.8,
    tell: Callable[[str], None] = silent,
) -> CrossValidation:
    """Cross-validation in which everything that is chosen is chosen inside: no outer test speaker has any part in it.

    In each outer fold, the training side is divided into inner folds. On these the settings of ``space`` are tuned, if
    there is one; from their out-of-fold predictions come the temperature, the confidence below which nothing is said,
    and the conformal sets. Then the model is trained on the outer training side (with ``checkpoint: best``, some of its
    speakers choose the epoch) and judged once.

    Args:
        config: As for :func:`crossval`.
        run: Folder, one folder per outer fold in it, with ``inner`` and ``tuning`` below.
        num_inner: Inner folds, 2 or more.
        overrides: As for :func:`crossval`.
        space: YAML of what is tuned, as for ``mmemo tune``; nothing when not given.
        num_trials: How many settings are tried in each outer fold.
        answered: Share of utterances that shall get an answer; the others are too unsure.
        tell: Takes a line on each fold and trial.

    Returns:
        All outer folds; predictions have columns ``calibrated_prob_...``, ``answered`` and ``conformal_set``.
    """
    if num_inner < 2:
        raise ValueError(f"nested {num_inner}: expected 2 inner folds or more")
    experiment = Experiment(["--config", str(config), *overrides], run=False)
    datamodule = experiment.datamodule
    if not datamodule.classes:
        raise ValueError("--nested calibrates classes, and this experiment has dimensions alone; leave it out")
    prepared(experiment, num_inner)
    num_folds = datamodule.splitter.count(datamodule.manifest)
    files = [*input_files(experiment), *([space] if space else [])]
    check_same_experiment(run, config, [*overrides, f"nested {num_inner} {num_trials} {answered}"], files)
    for folder, fold in folds_to_do(run, num_folds, tell, experiment.trainer.world_size > 1):
        chosen: list[str] = []
        if space is not None:
            settings = Tuning(num_trials=num_trials, num_folds=num_inner, outer_fold=fold, judge=False)
            chosen = tune(config, space, folder / "tuning", settings, overrides, tell).overrides
        inside = inner_config(config, folder / "inner.yaml", [*overrides, *chosen], fold, num_inner)
        inner = crossval(inside, folder / "inner", tell=tell)
        decided = Decisions.fitted(inner.predictions, answered)
        write_text(folder / DECISIONS_FILE, json.dumps(decided.as_json(), indent=1))
        run_fold(config, folder, fold, [*overrides, *chosen], decided.apply)
    result = collect(run, num_folds)
    write(result)
    return result


class Decisions(NamedTuple):
    """What inner folds decided for an outer one.

    Args:
        scaling: Makes probabilities honest.
        threshold: Calibrated confidence below which nothing is said.
        conformal: Sets of classes that hold the true one nine times in ten.
    """

    scaling: Scaling
    threshold: float
    conformal: Conformal

    @staticmethod
    def fitted(predictions: pd.DataFrame, answered: float) -> Decisions:
        """Fits both on out-of-fold predictions.

        Args:
            predictions: With labels.
            answered: Share of them that shall get an answer.
        """
        labelled = predictions[predictions["emotion"].notna()]
        probs, target = labelled_probs(predictions)
        scaling = temperature_scaling(probs, target)
        calibrated = scaling(probs)
        speakers = clusters(labelled["speaker"], labelled["id"])
        return Decisions(
            scaling,
            risk_coverage(calibrated, target).at(answered)[1],
            conformal(calibrated, target, speakers, COVERAGE),
        )

    def apply(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Adds calibrated probabilities, whether an utterance is answered, and its set of classes, between spaces."""
        names = [name for name in predictions if str(name).startswith("prob_")]
        calibrated = self.scaling(predictions[names].to_numpy(dtype=float))
        columns = {f"calibrated_{name}": calibrated[:, number] for number, name in enumerate(names)}
        classes = np.array([str(name).removeprefix("prob_") for name in names])
        sets = [" ".join(classes[inside]) for inside in self.conformal.sets(calibrated)]
        return predictions.assign(**columns, answered=calibrated.max(1) >= self.threshold, conformal_set=sets)

    def as_json(self) -> dict[str, object]:
        """Plain numbers."""
        return {
            "temperature": 1 / float(self.scaling.weight[0]),
            "threshold": self.threshold,
            "conformal_threshold": self.conformal.threshold,
            "conformal_coverage": self.conformal.coverage,
        }
