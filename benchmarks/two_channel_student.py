"""Audio-only students of a teacher with audio and text: how much of the text does the student learn?

    python benchmarks/two_channel_student.py      # finished runs are kept

On the two-channel corpus of `benchmarks/two_channel.py`, the student of `configs/student.yaml` is trained with the
audio-and-text model as teacher, with the audio-only model as teacher, and without a teacher (`labels`), on the same
views and epochs. It is evaluated on the test clips of both halves. In the spoken-words half the emotion is in the text,
and the speech is synthetic.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import torch
import yaml
from record import HERE, record
from two_channel import FUSIONS, RUN, make_manifests, make_text_backbone, train, uar_by_half

from mmemo.files import checksum
from mmemo.training.experiment_cli import ExperimentCLI

CONFIG = HERE.parent / "configs" / "student.yaml"
HALVES = ("ravdess", "spoken")


def train_teacher(name: str, changes: dict[str, object], paths: dict[str, Path]) -> tuple[Path, dict[str, float]]:
    """Trains a model of the two-channel benchmark; returns its checkpoint and its UAR on the union and each half."""
    predictions = train(name, changes, paths, HALVES, "test")
    return predictions.parent / "checkpoints" / "last.ckpt", uar_by_half(pd.read_csv(predictions))


def train_student(name: str, teacher: Path | None, paths: dict[str, Path]) -> dict[str, float]:
    """Trains a student; returns its UAR on the union and each half."""
    run = RUN / f"student_of_{name}"
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"]["default_root_dir"] = str(run)
    config["data"]["corpora"] = [
        {"manifest": str(paths[half]), "name": half, "label_map": {"calm": None} if half == "ravdess" else {}}
        for half in HALVES
    ]
    settings = config["model"]["init_args"]
    if teacher is None:
        config["model"]["class_path"] = "mmemo.EmotionSystem"
        del settings["teacher"], settings["distillation"]
    else:
        settings["teacher"] = str(teacher)
    path, finished, predictions = run / "experiment.yaml", run / "finished", run / "test.csv"
    text = yaml.safe_dump(config, sort_keys=False)
    text += f"# taught by {checksum(teacher)}\n" if teacher else ""  # a new teacher needs a new student
    if not finished.exists() or finished.read_text() != text:
        run.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        ExperimentCLI(["fit", "--config", str(path), "--overwrite", "true"])
        ExperimentCLI(
            ["predict", "--config", str(path), "--predictions", str(predictions), "--data.predict_on", "test"]
        )
        finished.write_text(text)
    return uar_by_half(pd.read_csv(predictions))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    paths = make_manifests()
    make_text_backbone()
    concatenation = {"fusion": FUSIONS["concatenation"]}
    fused, fused_uar = train_teacher("concatenation", concatenation, paths)
    audio, audio_uar = train_teacher("audio alone", {**concatenation, "text_encoder": None}, paths)
    uar = {
        "teacher_fused": fused_uar,
        "teacher_audio": audio_uar,
        "student_of_fused": train_student("fused", fused, paths),
        "student_of_audio": train_student("audio", audio, paths),
        "student_of_labels": train_student("labels", None, paths),
    }
    gain = uar["student_of_fused"]["spoken"] - uar["student_of_audio"]["spoken"]
    values = {f"{name}_{half}": value for name, halves in uar.items() for half, value in halves.items()}
    record("two_channel_student", {"gain_spoken_points": round(gain, 2), **values})


if __name__ == "__main__":
    main()
