"""RAVDESS, six published folds: students of three sizes, each fold's taught by that fold's own teacher.

    python benchmarks/distillation.py                      # resumable fold by fold; several may work on one folder
    python benchmarks/distillation.py --only small nano    # these alone; the others keep figures and stamps

A fold's teacher is `configs/ravdess_teacher.yaml`: Whisper base, frozen, on the same views. `labels` is the small
student with the same views, mixup and epochs, taught by nobody. Students are compared on training-side speakers by
`benchmarks/student_choices.py`. Each fold's models are exported, and the files judged on the fold's test clips by
onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock
from ravdess_finetuned import manifest, precision, settings
from record import HERE, record_beside

from mmemo.evaluation.comparison import compare_runs
from mmemo.evaluation.predictions import read_predictions
from mmemo.export.checkpoint import export_checkpoint
from mmemo.export.runtime import CONFIG_FILE, Recognizer
from mmemo.files import checksum, replacing
from mmemo.studies.crossval import PREDICTIONS_FILE, CrossValidation, crossval
from mmemo.training.experiment import LAST

CONFIGS = HERE.parent / "configs"
RUN = HERE.parent / "runs" / "bench_distillation"
PARTS = ("teacher", "base", "small", "nano", "labels")


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
        with replacing(path) as partial:  # another worker may be reading it
            partial.write_text(yaml.safe_dump(config, sort_keys=False))
    else:
        options += ["--model.init_args.teacher", str(RUN / "teacher" / "fold{fold}" / LAST)]
    return crossval(path, RUN / name, options)


def untaught(config: dict[str, Any]) -> None:
    """Takes teachers out of a config."""
    config["model"]["class_path"] = "mmemo.EmotionSystem"
    for setting in ("teacher", "distillation"):
        del config["model"]["init_args"][setting]


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
    folder = member / f"exported_{checksum(checkpoint)[:12]}"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "README.md").exists():
            export_checkpoint(checkpoint, folder, num_clips=40 if member.parent == RUN / "teacher" else 200)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    taught = teacher()
    for name in options.only:
        one = taught if name == "teacher" else student(name)
        figures: dict[str, Any] = {
            f"ua_{name}": round(accuracy(one.predictions), 2),
            f"ua_{name}_folds": [round(100 * value, 2) for value in one.metrics["test/uar"]],
        }
        if name == "base":
            figures["base_share_of_teacher"] = round(100 * accuracy(one.predictions) / accuracy(taught.predictions), 2)
        if name in ("small", "labels"):
            figures |= gain()
        if name != "labels":
            by_file = {int8: as_files([one.run], one.predictions, int8) for int8 in (False, True)}
            if name == "small":
                figures["int8_cost_points"] = round(by_file[False].ua - by_file[True].ua, 2)
                figures["int8_kilobytes_small"] = round(by_file[True].kilobytes, 1)
            figures["table"] = [row(f"{name}, {'int8' if int8 else 'fp32'}", files) for int8, files in by_file.items()]
        record_beside("distillation", figures)


def gain() -> dict[str, Any]:
    """What the teacher adds to the small student, with an interval over speakers; once both are trained."""
    runs = [RUN / name for name in ("labels", "small")]
    if not all((run / PREDICTIONS_FILE).exists() for run in runs):
        return {}
    epochs = {yaml.safe_load((run / "fold1" / "config.yaml").read_text())["trainer"]["max_epochs"] for run in runs}
    if len(epochs) > 1:
        sys.exit(f"{RUN}: labels and small were trained for {sorted(epochs)} epochs; delete the one of another config")
    labels, small = map(read_predictions, runs)
    found = compare_runs(labels, small)
    return {
        "gain_points_small": round(accuracy(small.table) - accuracy(labels.table), 2),
        "gain_points_small_interval": [round(100 * found.difference.low, 2), round(100 * found.difference.high, 2)],
        "gain_points_small_p": round(found.p_permutation, 4),
    }


def row(model: str, files: Files) -> dict[str, Any]:
    """A line of the size table."""
    return {
        "model": model,
        "parameters": files.parameters,
        "kilobytes": round(files.kilobytes),
        "ms_for_3_s": round(files.milliseconds, 2),
        "ua": round(files.ua, 2),
    }


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
