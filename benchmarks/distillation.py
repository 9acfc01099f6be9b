"""RAVDESS, six published folds: students of three sizes, each fold's taught by that fold's own teacher.

    python benchmarks/distillation.py                      # resumable fold by fold; several may work on one folder
    python benchmarks/distillation.py --only small nano    # these alone; the others keep their last figures
    python benchmarks/distillation.py --inner small --set --model.init_args.cross_fitted true    # to choose by

The last form judges settings of a student on two grouped folds of fold 1's training-side speakers. Its teachers
are five folds of frozen Whisper over those that the student learns from; with `--labels` there is none.

A fold's teacher is `configs/ravdess_teacher.yaml`: Whisper base, frozen, on the same views. `labels` is the small
student with the same views, mixup and epochs, taught by nobody. Each fold's models are exported, and the files judged
on the fold's test clips by onnxruntime.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock
from ravdess_finetuned import FROZEN, manifest, precision, settings
from record import HERE, RESULTS, corpus, record

from mmemo.data.manifest import read_manifest
from mmemo.data.splits import GroupKFold
from mmemo.evaluation.crossval import CrossValidation, crossval, run_fold
from mmemo.export.checkpoint import export_checkpoint
from mmemo.export.runtime import CONFIG_FILE, Recognizer
from mmemo.training.experiment import LAST

CONFIGS = HERE.parent / "configs"
RUN = HERE.parent / "runs" / "bench_distillation"
STUDENTS = ("small", "nano", "labels", "base")
PARTS = (*STUDENTS, "teacher")


def teacher() -> CrossValidation:
    """The teacher of each fold; trained where it is not there yet."""
    return crossval(CONFIGS / "ravdess_teacher.yaml", RUN / "teacher", settings())


def student(name: str) -> CrossValidation:
    """A student of each fold."""
    path = CONFIGS / f"ravdess_student_{'small' if name == 'labels' else name}.yaml"
    options = settings() + precision()
    config = yaml.safe_load(path.read_text())
    if name == "labels":
        untaught(config)
        path = RUN / "labels.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    else:
        options += ["--model.init_args.teacher", str(RUN / "teacher" / "fold{fold}" / LAST)]
    return crossval(path, RUN / name, options)


def untaught(config: dict[str, Any]) -> None:
    """Takes teachers out of a config."""
    config["model"]["class_path"] = "mmemo.EmotionSystem"
    for setting in ("teacher", "distillation"):
        del config["model"]["init_args"][setting]


def inner(name: str, changes: list[str], labels: bool) -> None:
    """Judges settings of a student on two folds of fold 1's training-side speakers.

    Args:
        name: Of the student.
        changes: Options of ``mmemo fit``.
        labels: Leave the teachers out.
    """
    held_out = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"][0].split()
    table = pd.read_csv(manifest(), dtype=str)
    side = manifest().with_name("students_side.csv")
    table[~table["speaker"].isin(held_out)].to_csv(side, index=False)
    split = {"num_folds": 5, "num_val_speakers": 0}
    for fold in () if labels else (1, 2):
        learned = GroupKFold(**split, fold=fold)(read_manifest(side)).train
        teach(f"inner{fold}", pd.read_csv(side, dtype=str).iloc[learned])
    config = yaml.safe_load((CONFIGS / f"ravdess_student_{name}.yaml").read_text())
    config["data"] |= {"manifest": str(side), "split": {"class_path": "mmemo.data.GroupKFold", "init_args": split}}
    paths = [RUN / "teachers" / "inner{fold}" / f"fold{one}" / LAST for one in range(1, 6)]
    config["model"]["init_args"]["teacher"] = [str(path) for path in paths]
    if labels:
        untaught(config)
    written = yaml.safe_dump(config, sort_keys=False)
    run = RUN / f"inner_{hashlib.sha256(repr((written, changes)).encode()).hexdigest()[:12]}"
    path = run.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written)
    found = [100 * run_fold(path, run / f"fold{fold}", fold, changes)["test/uar"] for fold in (1, 2)]
    told = "labels" if labels else "taught"
    print(name, told, changes, [round(value, 2) for value in found], f"mean {statistics.mean(found):.2f}")


def teach(name: str, table: pd.DataFrame) -> None:
    """Five folds of frozen Whisper over the speakers of a table: for each of them one teacher is unbiased.

    Args:
        name: Of the cross-validation.
        table: Rows of the manifest.
    """
    side = manifest().with_name(f"{name}.csv")
    if not side.exists():
        table.to_csv(side, index=False)
    config = yaml.safe_load(FROZEN.read_text())
    split = {"class_path": "mmemo.data.GroupKFold", "init_args": {"num_folds": 5, "num_val_speakers": 0}}
    config["data"] |= {"manifest": str(side), "split": split}
    path = RUN / "teachers" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    crossval(path, RUN / "teachers" / name)


def accuracy(predictions: pd.DataFrame) -> float:
    """Mean over folds of unweighted accuracy, in per cent."""
    right = predictions["emotion"] == predictions["predicted"]
    by_class = right.groupby([predictions["fold"], predictions["emotion"]]).mean()
    return 100 * float(by_class.groupby(level=0).mean().mean())


class Files(NamedTuple):
    """Exported files, judged.

    Args:
        ua: Unweighted accuracy by onnxruntime, in per cent.
        kilobytes: Of one fold's files.
        milliseconds: Median time of a clip of 3 s on one core.
        parameters: Of the models, frozen ones included.
    """

    ua: float
    kilobytes: float
    milliseconds: float
    parameters: int


def as_files(runs: Sequence[Path], predictions: pd.DataFrame, int8: bool) -> Files:
    """Exports every fold's checkpoints, and lets onnxruntime judge the fold's test clips.

    Args:
        runs: Cross-validations whose models answer together, by the mean of their probabilities.
        predictions: Which clips are whose test clips.
        int8: Whether the small files are meant.
    """
    table = pd.read_csv(manifest(), dtype=str).set_index("id")
    parts = []
    for fold, rows in predictions.groupby("fold"):
        folders = [exported(run / f"fold{fold}") for run in runs]
        recognizers = [Recognizer(folder, int8) for folder in folders]
        paths = [manifest().parent / table.loc[name, "path"] for name in rows["id"]]
        said = np.mean(
            [
                [[*said.probabilities.values()] for _, said in one.predict_files(paths, batch_size=1)]
                for one in recognizers
            ],
            axis=0,
        )
        parts.append(rows.assign(predicted=np.array(recognizers[0].classes)[said.argmax(1)]))
    folders = [exported(run / "fold1") for run in runs]
    sizes = [(folder / ("model.int8.onnx" if int8 else "model.onnx")).stat().st_size for folder in folders]
    times = [milliseconds(folder, int8) for folder in folders]
    counts = [json.loads((folder / CONFIG_FILE).read_text())["num_parameters"] for folder in folders]
    return Files(accuracy(pd.concat(parts)), sum(sizes) / 1000, sum(times), sum(counts))


def exported(member: Path) -> Path:
    """The files of one fold's model, named after its checkpoint; made once."""
    checkpoint = member / LAST
    folder = member / f"exported_{hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]}"
    if not (folder / "README.md").exists():
        export_checkpoint(checkpoint, folder, num_clips=40 if member.parent == RUN / "teacher" else 200)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--inner", choices=["small", "nano", "base"])
    parser.add_argument("--labels", action="store_true")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.inner:
        return inner(options.inner, options.set, options.labels)
    taught = teacher()
    for name in options.only:
        one = taught if name == "teacher" else student(name)
        figures: dict[str, Any] = {
            "ua_teacher": round(accuracy(taught.predictions), 2),
            f"ua_{name}": round(accuracy(one.predictions), 2),
            f"ua_{name}_folds": [round(100 * value, 2) for value in one.metrics["test/uar"]],
        }
        if name == "base":
            figures["base_share_of_teacher"] = round(100 * figures["ua_base"] / figures["ua_teacher"], 2)
        keep(figures)
        if name == "labels":
            continue
        by_file = {int8: as_files([one.run], one.predictions, int8) for int8 in (False, True)}
        if name == "small":
            figures["int8_cost_points"] = round(by_file[False].ua - by_file[True].ua, 2)
            figures["int8_kilobytes_small"] = round(by_file[True].kilobytes, 1)
        keep(figures, [row(f"{name}, {'int8' if int8 else 'fp32'}", files) for int8, files in by_file.items()])


def row(model: str, files: Files) -> dict[str, Any]:
    """A line of the size table."""
    return {
        "model": model,
        "parameters": files.parameters,
        "kilobytes": round(files.kilobytes),
        "ms_for_3_s": round(files.milliseconds, 2),
        "ua": round(files.ua, 2),
    }


def keep(figures: dict[str, Any], rows: Sequence[dict[str, Any]] = ()) -> None:
    """Records figures beside those that are there, which other processes may have added to meanwhile."""
    path = RESULTS / "distillation.json"
    with FileLock(RUN / "figures.lock"):
        kept: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
        new = [row["model"] for row in rows]
        table = [*(row for row in kept.get("table", []) if row["model"] not in new), *rows]
        measured = {*figures, *(["table"] if rows else [])}
        kept |= figures
        if {"ua_small", "ua_labels"} <= kept.keys():
            kept["gain_points_small"] = round(kept["ua_small"] - kept["ua_labels"], 2)
            measured |= {"gain_points_small"} if measured & {"ua_small", "ua_labels"} else set()
        record("distillation", {**kept, "table": sorted(table, key=lambda row: -row["parameters"])}, measured)


def milliseconds(folder: Path, int8: bool) -> float:
    """Median time of a clip of 3 s on one core."""
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
