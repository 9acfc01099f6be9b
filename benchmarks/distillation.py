"""RAVDESS, six published folds: students of three sizes, each distilled from the teacher of its own fold.

    python benchmarks/distillation.py                      # resumable; several processes may share the folder
    python benchmarks/distillation.py --only small nano    # these models only; the others keep their results

The teacher of a fold is `configs/ravdess_teacher.yaml`: frozen Whisper base on the same views. `labels` is the small
student without a teacher, on the same views, mixup and epochs. `benchmarks/student_choices.py` compares students on
training-side speakers. The models of each fold are exported, and onnxruntime evaluates the files on the fold's test
clips.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock
from ravdess_finetuned import make_manifest, manifest_settings, precision_settings
from record import HERE, update_record

from mmemo.evaluation.comparison import compare_runs
from mmemo.evaluation.predictions import read_predictions
from mmemo.export.checkpoint import export_checkpoint
from mmemo.export.runtime import CONFIG_FILE, Recognizer
from mmemo.files import checksum, replacing
from mmemo.studies.crossval import PREDICTIONS_FILE, CrossValidation, crossval
from mmemo.training.experiment_cli import read_experiment
from mmemo.training.run_folder import LAST

CONFIGS = HERE.parent / "configs"
RUN = HERE.parent / "runs" / "bench_distillation"
MODELS = ("teacher", "base", "small", "nano", "labels")


def train_teachers() -> CrossValidation:
    """Trains the teacher of each fold; finished folds are kept."""
    return crossval(read_experiment(CONFIGS / "ravdess_teacher.yaml", manifest_settings()), RUN / "teacher")


def train_students(name: str) -> CrossValidation:
    """Trains a student of each fold; finished folds are kept."""
    path = CONFIGS / f"ravdess_student_{'small' if name == 'labels' else name}.yaml"
    changes = manifest_settings() | precision_settings()
    config = yaml.safe_load(path.read_text())
    if name == "labels":
        remove_teacher(config)
        path = RUN / "labels.yaml"
        with replacing(path) as partial:  # another process may be reading it
            partial.write_text(yaml.safe_dump(config, sort_keys=False))
    else:
        changes["model.init_args.teacher"] = str(RUN / "teacher" / "fold{fold}" / LAST)
    return crossval(read_experiment(path, changes), RUN / name)


def remove_teacher(config: dict[str, Any]) -> None:
    """Turns the config of a student into one that trains on labels only."""
    config["model"]["class_path"] = "mmemo.EmotionSystem"
    for setting in ("teacher", "distillation"):
        del config["model"]["init_args"][setting]


def unweighted_accuracy(predictions: pd.DataFrame) -> float:
    """Returns the unweighted accuracy in percent, as a mean over folds."""
    is_correct = predictions["emotion"] == predictions["predicted"]
    by_class = is_correct.groupby([predictions["fold"], predictions["emotion"]]).mean()
    return 100 * float(by_class.groupby(level=0).mean().mean())


class ExportedResult(NamedTuple):
    """Evaluation of the exported files of one model.

    Args:
        ua: Unweighted accuracy with onnxruntime, in percent.
        kilobytes: Size of one fold's file.
        milliseconds: Median time for a clip of 3 s on one core.
        num_parameters: Number of parameters, including frozen ones.
    """

    ua: float
    kilobytes: float
    milliseconds: float
    num_parameters: int


def evaluate_exported(run: Path, predictions: pd.DataFrame, int8: bool) -> ExportedResult:
    """Exports the checkpoint of every fold, and evaluates the files on the fold's test clips.

    Args:
        run: Folder of the cross-validation.
        predictions: Its out-of-fold predictions, which list the test clips of each fold.
        int8: Whether to evaluate the int8 files.
    """
    manifest = make_manifest()
    table = pd.read_csv(manifest, dtype=str).set_index("id")
    predicted = []
    for fold, rows in predictions.groupby("fold"):
        recognizer = Recognizer(export_fold(run / f"fold{fold}"), int8)
        paths = [manifest.parent / table.loc[name, "path"] for name in rows["id"]]
        labels = [emotion.label for _, emotion in recognizer.predict_files(paths, batch_size=1)]
        predicted.append(rows.assign(predicted=labels))
    folder = export_fold(run / "fold1")
    num_bytes = (folder / ("model.int8.onnx" if int8 else "model.onnx")).stat().st_size
    num_parameters = json.loads((folder / CONFIG_FILE).read_text())["num_parameters"]
    ua = unweighted_accuracy(pd.concat(predicted))
    return ExportedResult(ua, num_bytes / 1000, clip_milliseconds(folder, int8), num_parameters)


def export_fold(fold_folder: Path) -> Path:
    """Exports the model of one fold, once, to a folder with the checksum of the checkpoint in its name."""
    checkpoint = fold_folder / LAST
    folder = fold_folder / f"exported_{checksum(checkpoint)[:12]}"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "README.md").exists():
            export_checkpoint(checkpoint, folder, num_clips=40 if fold_folder.parent == RUN / "teacher" else 200)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="models to train and evaluate")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    teachers = train_teachers()
    for name in options.only:
        result = teachers if name == "teacher" else train_students(name)
        ua = unweighted_accuracy(result.predictions)
        values: dict[str, Any] = {
            f"ua_{name}": round(ua, 2),
            f"ua_{name}_folds": [round(100 * value, 2) for value in result.metrics["test/uar"]],
        }
        if name == "base":
            values["base_share_of_teacher"] = round(100 * ua / unweighted_accuracy(teachers.predictions), 2)
        if name in ("small", "labels"):
            values |= teacher_gain()
        if name != "labels":
            fp32, int8 = (evaluate_exported(result.folder, result.predictions, int8) for int8 in (False, True))
            if name == "small":
                values["int8_cost_points"] = round(fp32.ua - int8.ua, 2)
                values["int8_kilobytes_small"] = round(int8.kilobytes, 1)
            values["table"] = [table_row(f"{name}, fp32", fp32), table_row(f"{name}, int8", int8)]
        update_record("distillation", values)


def teacher_gain() -> dict[str, Any]:
    """Returns the gain of the small student from its teacher, with an interval; empty until both runs are finished."""
    runs = [RUN / name for name in ("labels", "small")]
    if not all((run / PREDICTIONS_FILE).exists() for run in runs):
        return {}
    epochs = {yaml.safe_load((run / "fold1" / "config.yaml").read_text())["trainer"]["max_epochs"] for run in runs}
    if len(epochs) > 1:
        sys.exit(
            f"{RUN}: labels and small were trained for different numbers of epochs, {sorted(epochs)}. Delete the run "
            "that does not match configs/ravdess_student_small.yaml."
        )
    labels, small = map(read_predictions, runs)
    comparison = compare_runs(labels, small)
    low, high = comparison.difference.low, comparison.difference.high
    return {
        "gain_points_small": round(unweighted_accuracy(small.table) - unweighted_accuracy(labels.table), 2),
        "gain_points_small_interval": [round(100 * low, 2), round(100 * high, 2)],
        "gain_points_small_p": round(comparison.p_permutation, 4),
    }


def table_row(model: str, result: ExportedResult) -> dict[str, Any]:
    """Returns a row of the table of model sizes."""
    return {
        "model": model,
        "parameters": result.num_parameters,
        "kilobytes": round(result.kilobytes),
        "ms_for_3_s": round(result.milliseconds, 2),
        "ua": round(result.ua, 2),
    }


def clip_milliseconds(folder: Path, int8: bool) -> float:
    """Returns the median time for a clip of 3 s on one core."""
    recognizer = Recognizer(folder, int8, threads=1)
    clip = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        recognizer.predict(clip)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
