"""Cross-validation: every fold of an experiment is trained, tested and predicted; resumable fold by fold."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock, Timeout

from mmemo.data.splits import InnerFolds, SplitError, Splitter
from mmemo.evaluation.gates import gate_table, read_gates
from mmemo.files import checksum, write_json, write_table, write_text
from mmemo.lightning import is_first_process, wait_for_all_processes
from mmemo.models.gates import NoGate
from mmemo.training.distillation import DistillationSystem
from mmemo.training.experiment import Experiment
from mmemo.training.run_folder import CONFIG_FILE, LAST, METRICS_FILE, PredictionFiles, check_study, read_metrics
from mmemo.training.teachers import check_teacher

PREDICTIONS_FILE = "predictions.parquet"
SUMMARY_FILE = "crossval.json"
COMMAND_FILE = "command.txt"
EXPERIMENT_FILE = "experiment.json"
GATE_TABLE = "gate_table.csv"

Notify = Callable[[str], None]
"""Takes a line about the progress of long work."""


def no_notification(line: str) -> None:
    """Takes a line and does nothing."""


@dataclass(frozen=True)
class CrossValidation:
    """Results of a cross-validation.

    Args:
        folder: Its folder.
        metrics: Metric, such as ``test/uar`` -> one value per fold; NaN if the metric is undefined for a fold.
        predictions: Out-of-fold predictions, one row per utterance, with a column ``fold``.
        warnings: Warnings that every result of these folds must carry.
    """

    folder: Path
    metrics: dict[str, list[float]]
    predictions: pd.DataFrame
    warnings: list[str]

    @property
    def num_values(self) -> int:
        """Number of values of each metric: folds times seeds."""
        return max(map(len, self.metrics.values()))


def crossval(
    experiment: Experiment,
    folder: str | Path | None = None,
    seeds: Sequence[int] = (),
    notify: Notify = no_notification,
) -> CrossValidation:
    """Trains, tests and predicts every fold; keeps finished folds and resumes an interrupted one.

    Several processes may work on one folder: each takes folds that no other has. If several devices train one model
    (DDP), only one command may work on a folder.

    Args:
        experiment: Its ``data.split`` defines the folds.
        folder: Folder of the cross-validation, with one folder per fold. Defaults to the experiment's run folder.
        seeds: Repeat all folds with each of these seeds, in one folder per seed.
        notify: Takes a line about each fold.

    Raises:
        ValueError: The split has a single fold, the folder belongs to another experiment, or another command works on
            it and this one trains on several devices.
    """
    folder = Path(folder or experiment.folder)
    if len(seeds):
        return _repeated(experiment, folder, seeds, notify)
    check_folds(experiment)
    num_folds = experiment.data.split.count_folds(experiment.data.read())
    if num_folds < 2:
        raise ValueError(
            "data.split has a single fold; use FoldFile, GroupKFold or LeaveOneGroupOut, or `mmemo fit`"
        )  # fmt: skip
    check_same_experiment(folder, experiment)
    for fold_folder, fold in folds_to_run(folder, num_folds, notify, experiment.num_processes > 1):
        run_fold(experiment.with_fold(fold, fold_folder))
    result = read_folds(folder, num_folds)
    write_results(result)
    return result


def _repeated(experiment: Experiment, folder: Path, seeds: Sequence[int], notify: Notify) -> CrossValidation:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)}: expected different numbers, such as [0, 1, 2]")
    results = {
        seed: crossval(replace(experiment, seed=seed), folder / f"seed{seed}", (), notify) for seed in seeds
    }  # fmt: skip
    names = dict.fromkeys(name for result in results.values() for name in result.metrics)
    undefined = [math.nan] * next(iter(results.values())).num_values
    metrics = {
        name: [value for result in results.values() for value in result.metrics.get(name, undefined)] for name in names
    }
    tables = [result.predictions.assign(seed=seed) for seed, result in results.items()]
    warnings = list(dict.fromkeys(warning for result in results.values() for warning in result.warnings))
    result = CrossValidation(folder, metrics, pd.concat(tables, ignore_index=True), warnings)
    write_results(result)
    return result


def folds_to_run(
    folder: Path, num_folds: int, notify: Notify = no_notification, exclusive: bool = False
) -> Iterator[tuple[Path, int]]:
    """Yields the folds that are not finished, each locked while it runs, until all folds are finished.

    Args:
        folder: Folder of the cross-validation.
        num_folds: Number of folds.
        notify: Takes a line about each fold.
        exclusive: Several processes train one model, and only the first of them locks: no other command may run.

    Raises:
        ValueError: ``exclusive``, and another command runs a fold.
    """
    is_first = is_first_process()  # the other processes of DDP follow the first
    waiting = list(range(1, num_folds + 1))
    finished = [str(fold) for fold in waiting if (folder / f"fold{fold}" / PREDICTIONS_FILE).exists()]
    if finished and is_first:
        notify(f"{folder}: already finished: fold {', '.join(finished)}")
    while waiting:
        num_before = len(waiting)
        for fold in list(waiting):
            fold_folder = folder / f"fold{fold}"
            fold_folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(fold_folder / ".lock")
            try:
                if is_first:
                    lock.acquire(timeout=0.0)
                if not (fold_folder / PREDICTIONS_FILE).exists():
                    if is_first:
                        resumed = ", resumed" if (fold_folder / LAST).exists() else ""
                        notify(f"{folder}: fold {fold} of {num_folds}{resumed}")
                    yield fold_folder, fold
                waiting.remove(fold)
            except Timeout:
                if exclusive:
                    raise ValueError(
                        f"{folder}: another command runs fold {fold}; with several devices, only one command may work "
                        "on a folder; start this one again when the other has ended"
                    ) from None
                continue  # another worker has it; check again after the others
            finally:
                lock.release()
        if len(waiting) == num_before:
            time.sleep(1.0)


def run_fold(
    experiment: Experiment, extend: Callable[[pd.DataFrame], pd.DataFrame] | None = None
) -> dict[str, float]:  # fmt: skip
    """Trains a fold, or resumes it, then tests and predicts its test rows.

    Args:
        experiment: Experiment of the fold, untrained, in the fold's folder.
        extend: Adds columns to the predictions.

    Returns:
        Metric, such as ``test/uar`` -> value.
    """
    experiment = replace(experiment, trainer={**experiment.trainer, "enable_model_summary": False})
    folder = experiment.folder
    trained = folder / "fitted"
    if not trained.exists():
        experiment.fit(resume=(folder / LAST).exists(), overwrite=True)
        trained.touch()
    experiment.test()
    has_gates = not all(isinstance(branch.gate, NoGate) for branch in experiment.system.model.branches)
    gates = folder / "gates.parquet" if has_gates else None
    unfinished = folder / "unfinished.parquet"
    files = PredictionFiles(predictions=str(unfinished), gates=None if gates is None else str(gates), quiet=True)
    predictions = experiment.predict("test", files)
    if is_first_process():
        if gates is not None and gates.exists():
            write_table(folder / GATE_TABLE, gate_table(read_gates(gates)))  # a few rows instead of every gate
            gates.unlink()
        # Written last: this file marks the fold as finished.
        write_table(folder / PREDICTIONS_FILE, extend(predictions) if extend else predictions)
        unfinished.unlink()
    wait_for_all_processes()
    return read_metrics(folder)


def write_results(result: CrossValidation) -> None:
    """Writes predictions and metrics into the folder of a cross-validation; only the first process of DDP writes."""
    if not is_first_process():
        return
    write_table(result.folder / PREDICTIONS_FILE, result.predictions)
    metrics = {
        name: [None if math.isnan(value) else value for value in values] for name, values in result.metrics.items()
    }
    write_json(result.folder / SUMMARY_FILE, {"metrics": metrics, "warnings": result.warnings})


def read_folds(folder: Path, num_folds: int) -> CrossValidation:
    """Reads the finished folds of a cross-validation.

    Args:
        folder: Folder of the cross-validation.
        num_folds: Number of folds.
    """
    metrics: dict[str, list[float]] = {}
    warnings: list[str] = []
    tables = []
    for fold in range(1, num_folds + 1):
        results = json.loads((folder / f"fold{fold}" / METRICS_FILE).read_text())
        for name, value in results["metrics"].items():
            metrics.setdefault(name, [math.nan] * num_folds)[fold - 1] = value
        warnings += [warning for warning in results["warnings"] if warning not in warnings]
        tables.append(pd.read_parquet(folder / f"fold{fold}" / PREDICTIONS_FILE).assign(fold=fold))
    return CrossValidation(folder, metrics, pd.concat(tables, ignore_index=True), warnings)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation over the folds where a metric is defined.

    Args:
        values: One per fold; NaN where the metric is undefined.

    Example:
        >>> mean_and_deviation([1.0, 2.0, 3.0])
        (2.0, 1.0)
    """
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return math.nan, math.nan
    return float(np.mean(defined)), float(np.std(defined, ddof=1)) if len(defined) > 1 else 0.0


def check_folds(experiment: Experiment, num_inner: int = 0) -> None:
    """Checks tables, study, teachers and every fold before anything is written.

    Args:
        experiment: Experiment whose folds will run.
        num_inner: Number of inner folds of each fold; 0 for none.

    Raises:
        FileNotFoundError: A fold's teacher does not exist.
        ManifestError: A fold's teacher was trained on the fold's test speakers.
        ValueError: A fold has no training row of a class, no validation rows to choose the epoch, or too few groups
            for the inner folds.
    """
    data = experiment.data
    manifest = data.read(fitting=True)
    table = experiment.prepared_table()
    if experiment.study is not None:
        check_study(experiment.study, table, data.allow_speaker_overlap)
    if isinstance(data.split, InnerFolds):
        return  # folds of a training side that has been checked
    for fold in range(1, data.split.count_folds(manifest) + 1):
        splitter = copy.deepcopy(data.split)
        splitter.fold = fold
        _check_fold(experiment, splitter)
        if num_inner:
            inner = InnerFolds(splitter, num_inner, group=splitter.group)
            try:
                inner(manifest)
            except SplitError as error:
                raise ValueError(f"nested {num_inner}: the training side of fold {fold}: {error}") from None


def _check_fold(experiment: Experiment, splitter: Splitter) -> None:
    data, fold = experiment.data, splitter.fold
    split = splitter(data.read())
    system = experiment.system
    if isinstance(system, DistillationSystem):
        changed = data.with_split(splitter)
        table = changed.prepare("fit", system.requirements)
        for path in system.teachers(fold):
            check_teacher(path, system.model.classes, changed, table)
    if experiment.checkpoint == "best" and not len(split.val):
        raise ValueError(
            f"fold {fold} has no validation rows to choose the best checkpoint by; set checkpoint: last if the number "
            "of epochs is fixed, or data.split.init_args.num_val_speakers to 1 or more"
        )
    trained = set(data.read().frame["emotion"].iloc[split.train].dropna())
    missing = [name for name in data.classes if name not in trained]
    if missing and "emotion" in system.requirements.labels:
        raise ValueError(
            f"fold {fold}: no training row is {', '.join(missing)}; remove the class from data.classes, or use fewer "
            "folds or another split"
        )


def input_files(experiment: Experiment) -> list[Path]:
    """Returns the files that the folds depend on besides the settings: manifests, fold file, teachers."""
    data = experiment.data
    files = [*data.manifest_paths, *data.split.files]
    if isinstance(experiment.system, DistillationSystem):
        for fold in range(1, data.split.count_folds(data.read()) + 1):
            files += experiment.system.teachers(fold)
    return [path for path in files if path.is_file()]


def check_same_experiment(
    folder: Path, experiment: Experiment, options: Mapping[str, Any] | None = None, files: Sequence[Path] = ()
) -> None:
    """Checks that a folder belongs to an experiment, and writes the experiment into it.

    Args:
        folder: Folder of a cross-validation.
        experiment: The experiment.
        options: Further options that the results depend on.
        files: Further files that they depend on.

    Raises:
        ValueError: The folder was started with other settings, tables or teachers.
    """
    settings = experiment.settings()
    settings["trainer"]["default_root_dir"] = str(folder)
    current = {**flat({**settings, "options": dict(options or {})})}
    current |= {f"file {path}": checksum(path) for path in [*input_files(experiment), *files]}
    current = {name: json.dumps(value, default=str) for name, value in current.items()}  # dates and NaN too
    path = folder / EXPERIMENT_FILE
    if path.exists():
        started = json.loads(path.read_text())
        differences = sorted(name for name in {**started, **current} if started.get(name) != current.get(name))
        if differences:
            shown = [f"{name} {started.get(name, 'unset')}" for name in differences[:5]]
            raise ValueError(
                f"{folder} was started with other settings: {', '.join(shown)}; choose another folder, or delete that "
                "folder"
            )
    write_json(path, current)
    write_text(folder / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings with dotted keys.

    Example:
        >>> flat({"data": {"seed": 0}})
        {'data.seed': 0}
    """
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
