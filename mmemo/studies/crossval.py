"""Every fold of a split: fit, choose on the training side, test, predict; resumable fold by fold."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_only

from mmemo.data.manifest import shown_columns
from mmemo.data.splits import InnerFolds, SplitError
from mmemo.evaluation.gates import gate_table, read_gates
from mmemo.files import checksum, write_table, write_text
from mmemo.training.distillation import DistillationSystem, check_teacher
from mmemo.training.experiment import LAST, METRICS_FILE, Experiment

PREDICTIONS_FILE = "predictions.parquet"
SUMMARY_FILE = "crossval.json"
COMMAND_FILE = "command.txt"
EXPERIMENT_FILE = "experiment.json"
GATE_TABLE = "gate_table.csv"


class CrossValidation(NamedTuple):
    """What a cross-validation found.

    Args:
        run: Its folder.
        metrics: Metric name, such as ``test/uar`` -> its value on each fold; NaN where a fold has it not.
        predictions: Out-of-fold predictions, one row per utterance, with a column ``fold``.
        warnings: What every result of these folds must carry.
    """

    run: Path
    metrics: dict[str, list[float]]
    predictions: pd.DataFrame
    warnings: list[str]

    @property
    def num_folds(self) -> int:
        """How many values each metric has: folds times seeds."""
        return max(map(len, self.metrics.values()))


def silent(line: str) -> None:
    """Tells nobody."""


def crossval(
    config: Path, run: Path | None = None, overrides: Sequence[str] = (), tell: Callable[[str], None] = silent
) -> CrossValidation:
    """Runs all folds of an experiment; finished ones are kept, a killed one continues at its last epoch.

    Several processes may be started on one run: each takes folds that no other has. Where one model is trained by
    several devices at once (DDP), one command alone may work on a run.

    Args:
        config: YAML of the experiment; its ``data.split`` says which folds there are.
        run: Folder of the cross-validation, one folder per fold in it; the experiment's
            ``trainer.default_root_dir`` when not given.
        overrides: Options of ``mmemo fit`` that win over the YAML.
        tell: Takes a line on each fold.

    Raises:
        ValueError: The split has one fold alone, the run was started from another config, or another command works on
            it and this one trains on several devices.
    """
    experiment = Experiment(["--config", str(config), *overrides], run=False)
    run = run or Path(experiment.config.trainer.default_root_dir)
    datamodule = experiment.datamodule
    prepared(experiment)
    num_folds = datamodule.splitter.count(datamodule.manifest)
    if num_folds < 2:
        raise ValueError(
            f"{config}: data.split has one fold alone; use FoldFile, GroupKFold or LeaveOneGroupOut, or `mmemo fit`"
        )
    check_same_experiment(run, config, overrides, input_files(experiment))
    for folder, fold in folds_to_do(run, num_folds, tell, experiment.trainer.world_size > 1):
        run_fold(config, folder, fold, overrides)
    result = collect(run, num_folds)
    write(result)
    return result


def repeated(
    config: Path, run: Path, seeds: Sequence[int], overrides: Sequence[str] = (), tell: Callable[[str], None] = silent
) -> CrossValidation:
    """The same folds with several seeds: what is left to chance in training shows.

    Args:
        config: As for :func:`crossval`.
        run: Folder, one folder per seed in it.
        seeds: What ``seed_everything`` is set to, each in turn.
        overrides: As for :func:`crossval`.
        tell: Likewise.

    Returns:
        All of them; predictions have a column ``seed``.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds {list(seeds)}: expected different numbers, such as [0, 1, 2]")
    found = {
        seed: crossval(config, run / f"seed{seed}", [*overrides, "--seed_everything", str(seed)], tell)
        for seed in seeds
    }
    names = dict.fromkeys(name for one in found.values() for name in one.metrics)
    nowhere = [math.nan] * next(iter(found.values())).num_folds
    metrics = {name: [value for one in found.values() for value in one.metrics.get(name, nowhere)] for name in names}
    tables = [one.predictions.assign(seed=seed) for seed, one in found.items()]
    warnings = list(dict.fromkeys(warning for one in found.values() for warning in one.warnings))
    result = CrossValidation(run, metrics, pd.concat(tables, ignore_index=True), warnings)
    write(result)
    return result


def folds_to_do(
    run: Path, num_folds: int, tell: Callable[[str], None] = silent, together: bool = False
) -> Iterator[tuple[Path, int]]:
    """Folds that are not finished and that no other worker has, each locked while it is in hand, until all are done.

    Args:
        run: Folder of the cross-validation.
        num_folds: How many folds it has.
        tell: Takes a line on each fold.
        together: Several processes train one model, of which the first alone sees the locks: no other may take folds.

    Raises:
        ValueError: ``together``, and another command has a fold.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0  # the other processes of DDP follow the first
    waiting = list(range(1, num_folds + 1))
    there = [str(fold) for fold in waiting if (run / f"fold{fold}" / PREDICTIONS_FILE).exists()]
    if there and first:
        tell(f"{run}: finished before: fold {', '.join(there)}")
    while waiting:
        before = len(waiting)
        for fold in list(waiting):
            folder = run / f"fold{fold}"
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            try:
                if first:
                    lock.acquire(timeout=0.0)
                if not (folder / PREDICTIONS_FILE).exists():
                    if first:
                        goes_on = ", goes on" if (folder / LAST).exists() else ""
                        tell(f"{run}: fold {fold} of {num_folds}{goes_on}")
                    yield folder, fold
                waiting.remove(fold)
            except Timeout:
                if together:
                    raise ValueError(
                        f"{run}: another command has fold {fold}; on several devices one command alone may work on a "
                        "run, start this one again when that has ended"
                    ) from None
                continue  # another worker has it: look again after the others
            finally:
                lock.release()
        if len(waiting) == before:
            time.sleep(1.0)
    if not first:
        sys.exit(0)  # the first process reports


def write(result: CrossValidation) -> None:
    """Writes predictions and metrics into the run's folder."""
    write_table(result.run / PREDICTIONS_FILE, result.predictions)
    metrics = {
        name: [None if math.isnan(value) else value for value in values] for name, values in result.metrics.items()
    }
    summary = {"metrics": metrics, "warnings": result.warnings}
    write_text(result.run / SUMMARY_FILE, json.dumps(summary, indent=1))


def collect(run: Path, num_folds: int) -> CrossValidation:
    """Reads the finished folds of a run.

    Args:
        run: Folder of the cross-validation.
        num_folds: How many folds it has.
    """
    metrics: dict[str, list[float]] = {}
    warnings: list[str] = []
    tables = []
    for fold in range(1, num_folds + 1):
        results = json.loads((run / f"fold{fold}" / METRICS_FILE).read_text())
        for name, value in results["metrics"].items():
            metrics.setdefault(name, [math.nan] * num_folds)[fold - 1] = value
        warnings += [warning for warning in results["warnings"] if warning not in warnings]
        tables.append(pd.read_parquet(run / f"fold{fold}" / PREDICTIONS_FILE).assign(fold=fold))
    return CrossValidation(run, metrics, pd.concat(tables, ignore_index=True), warnings)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over the folds that have the figure.

    Args:
        values: One per fold, NaN where a fold has it not.
    """
    there = [value for value in values if not math.isnan(value)]
    if not there:
        return math.nan, math.nan
    return float(np.mean(there)), float(np.std(there, ddof=1)) if len(there) > 1 else 0.0


def run_fold(
    config: Path,
    folder: Path,
    fold: int,
    overrides: Sequence[str] = (),
    finish: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> dict[str, float]:
    """Fits one fold of an experiment, or goes on with it; tests and predicts its test rows.

    Args:
        config: YAML of the experiment.
        folder: Of the fold.
        fold: Counting from 1.
        overrides: Options of ``mmemo fit`` that win over the YAML.
        finish: Adds columns to the predictions.

    Returns:
        Metric name, such as ``test/uar`` -> its value.
    """
    common = ["--config", str(config), "--trainer.enable_model_summary", "false", *overrides]
    given = (yaml.safe_load(config.read_text()).get("data") or {}).get("split")
    if not given and not any(word.startswith("--data.split") for word in overrides):
        common += ["--data.split", "mmemo.data.OfficialSplit"]  # what the data module takes then
    common += ["--data.split.init_args.fold", str(fold), "--trainer.default_root_dir", str(folder)]
    done = folder / "fitted"
    if not done.exists():
        resume = ["--ckpt_path", str(folder / LAST)] if (folder / LAST).exists() else []
        Experiment(["fit", *common, *resume])
        done.touch()
    Experiment(["test", *common])  # the checkpoint that the config says
    # Written last: its presence says that the fold is finished.
    target = folder / PREDICTIONS_FILE
    gates = folder / "gates.parquet" if _has_gates(folder) else None
    partial = folder / "unfinished.parquet" if finish or gates else target
    kept = ["--gates", str(gates)] if gates else []
    Experiment(["predict", *common, "--data.predict_on", "test", "--predictions", str(partial), *kept])
    if gates is not None and gates.exists():
        write_table(folder / GATE_TABLE, gate_table(read_gates(gates)))  # a few rows, where every gate may be gigabytes
        gates.unlink()
    if partial != target:
        predictions = pd.read_parquet(partial)
        write_table(target, finish(predictions) if finish else predictions)
        partial.unlink()
    metrics: dict[str, float] = json.loads((folder / METRICS_FILE).read_text())["metrics"]
    return metrics


def _has_gates(folder: Path) -> bool:
    """Whether a fold's model selects features."""
    model = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"].get("model") or {}
    gate = (model.get("init_args") or {}).get("gate") or {}
    return not str(gate.get("class_path", "")).endswith("NoGate")


def prepared(experiment: Experiment, num_inner: int = 0) -> None:
    """Says what is wrong with tables, study or any fold before there is a folder.

    Args:
        experiment: Whose folds will be run.
        num_inner: Inner folds of each, where there are some.

    Raises:
        FileNotFoundError: A fold's teacher is not there.
        ManifestError: It was trained on speakers who judge that fold.
        ValueError: A fold whose training side lacks a class, has nobody to choose the epoch, or too few groups for the
            inner folds.
    """
    datamodule = experiment.datamodule
    datamodule.setup("fit")
    study = experiment.config_init.study
    if study is not None:
        study.check(datamodule.classes, shown_columns(datamodule.manifest.frame, study.columns))
        study.check_split(datamodule.manifest, datamodule.split, datamodule.allow_speaker_overlap)
    if isinstance(datamodule.splitter, InnerFolds):
        return  # of folds that were looked at
    for fold in range(1, datamodule.splitter.count(datamodule.manifest) + 1):
        splitter = copy.copy(datamodule.splitter)
        splitter.fold = fold
        split = splitter(datamodule.manifest)
        if isinstance(experiment.model, DistillationSystem):
            one = copy.copy(datamodule)
            one.splitter, one.split = splitter, split
            for path in experiment.model.teachers(fold):
                check_teacher(path, experiment.model.model.classes, one)
        if experiment.config.checkpoint == "best" and not len(split.val):
            raise ValueError(
                f"fold {fold} has no validation rows to choose the best checkpoint by; set checkpoint: last for a "
                "schedule that was fixed before, or data.split.init_args.num_val_speakers to 1 or more"
            )
        learned = set(datamodule.manifest.frame["emotion"].iloc[split.train].dropna())
        missing = [name for name in datamodule.classes if name not in learned]
        if missing and "emotion" in experiment.model.loss.reads:
            raise ValueError(
                f"fold {fold}: no training row is {', '.join(missing)}, which the other folds would find out only when "
                "they have been trained; take it out of data.classes, or use fewer folds or another split"
            )
        if num_inner:
            inner = InnerFolds(splitter, num_inner, group=getattr(splitter, "group", "speaker"))
            try:
                inner(datamodule.manifest)
            except SplitError as error:
                raise ValueError(f"--nested {num_inner}: the training side of fold {fold} of {error}") from None


def input_files(experiment: Experiment) -> list[Path]:
    """Files that folds are made of, beside their config: tables, the list of folds, teachers.

    Args:
        experiment: Whose folds will be run.
    """
    datamodule = experiment.datamodule
    files = [*datamodule.manifest_paths, Path(getattr(datamodule.splitter, "path", ""))]
    if isinstance(experiment.model, DistillationSystem):  # a student of another teacher is another student
        for fold in range(1, datamodule.splitter.count(datamodule.manifest) + 1):
            files += experiment.model.teachers(fold)
    return files


def check_same_experiment(run: Path, config: Path, overrides: Sequence[str], inputs: Sequence[Path]) -> None:
    """Refuses to add folds to a run that began with another config, other options, another table or teacher."""
    wanted = {
        "config": yaml.safe_load(config.read_text()),
        "options": list(overrides),
        **{str(path): checksum(path) for path in inputs if path.is_file()},
    }
    wanted = {name: json.dumps(value, default=str) for name, value in wanted.items()}  # dates and NaN too
    path = run / EXPERIMENT_FILE
    if path.exists():
        began = json.loads(path.read_text())
        differ = [name for name in {**began, **wanted} if began.get(name) != wanted.get(name)]
        if differ:
            options = " ".join(json.loads(began["options"])) or "none"
            shown = [f"options {options}" if name == "options" else name for name in differ]
            raise ValueError(
                f"{run} was started with other {', '.join(shown)}; choose another --run, or delete that folder"
            )
    write_text(path, json.dumps(wanted, indent=1))
