"""Voice and words in the teacher, voice alone in the student: what does the student keep of the words?

    python benchmarks/two_channel_student.py      # what is there already is kept

On the two-channel corpus of `benchmarks/two_channel.py` the student of `configs/student.yaml` is taught by the model of
voice and words, by the model of the voice alone, and by nobody (`labels`), with the same views and epochs. Judged on
the test clips of both halves; in the spoken half the emotion is in the words, and the voice is a machine's.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd
import torch
import yaml
from record import HERE, record
from two_channel import FUSIONS, RUN, manifests, text_backbone, train, uar

from mmemo.files import checksum
from mmemo.training.experiment import Experiment

CONFIG = HERE.parent / "configs" / "student.yaml"
BOTH = ("ravdess", "spoken")


def teacher(name: str, changes: dict[str, object], paths: dict[str, Path]) -> tuple[Path, dict[str, float]]:
    """A checkpoint of the two-channel benchmark, and its UAR."""
    predictions = train(name, changes, paths, BOTH, "test")
    return predictions.parent / "checkpoints" / "last.ckpt", uar(pd.read_csv(predictions))


def student(name: str, taught_by: Path | None, paths: dict[str, Path]) -> dict[str, float]:
    """UAR of a student on the union and on each half."""
    run = RUN / f"student_of_{name}"
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"]["default_root_dir"] = str(run)
    config["data"]["corpora"] = [
        {"manifest": str(paths[half]), "name": half, "label_map": {"calm": None} if half == "ravdess" else {}}
        for half in BOTH
    ]
    settings = config["model"]["init_args"]
    if taught_by is None:
        config["model"]["class_path"] = "mmemo.EmotionSystem"
        del settings["teacher"], settings["distillation"]
    else:
        settings["teacher"] = str(taught_by)
    file, done, predictions = run / "experiment.yaml", run / "finished", run / "test.csv"
    text = yaml.safe_dump(config, sort_keys=False)
    text += f"# taught by {checksum(taught_by)}\n" if taught_by else ""  # of another teacher, another student
    if not done.exists() or done.read_text() != text:
        run.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        Experiment(["fit", "--config", str(file), "--overwrite", "true"])
        Experiment(["predict", "--config", str(file), "--predictions", str(predictions), "--data.predict_on", "test"])
        done.write_text(text)
    return uar(pd.read_csv(predictions))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    paths = manifests()
    text_backbone()
    concatenation = {"fusion": FUSIONS["concatenation"]}
    fused, of_fused = teacher("concatenation", concatenation, paths)
    audio, of_audio = teacher("audio alone", {**concatenation, "text_encoder": None}, paths)
    found = {
        "teacher_fused": of_fused,
        "teacher_audio": of_audio,
        "student_of_fused": student("fused", fused, paths),
        "student_of_audio": student("audio", audio, paths),
        "student_of_labels": student("labels", None, paths),
    }
    figures = {f"{name}_{half}": value for name, scores in found.items() for half, value in scores.items()}
    gain = found["student_of_fused"]["spoken"] - found["student_of_audio"]["spoken"]
    record("two_channel_student", {"gain_spoken_points": round(gain, 2), **figures})


if __name__ == "__main__":
    main()
