"""Compares students and distillation settings on the training-side speakers of RAVDESS's published fold 1.

    python benchmarks/student_choices.py                       # resumable; several processes may share the folder
    python benchmarks/student_choices.py --only small lowrank  # these students only

The four test actors of fold 1 are left out. Two grouped folds of the other twenty actors have four test actors each;
the teacher of a fold (`configs/ravdess_teacher.yaml`) and its students are trained on the other sixteen. The twenty are
test actors of the published folds 2 to 6. No weight in `benchmarks/distillation.py` was trained on its test actors, but
only fold 1 is free of their influence on the choice of student.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import yaml
from distillation import CONFIGS, RUN, remove_teacher
from filelock import FileLock
from ravdess_finetuned import make_manifest, precision_settings
from record import corpus, update_record

from mmemo.cli.app import main as mmemo
from mmemo.data.manifest import read_manifest
from mmemo.data.splits import GroupKFold
from mmemo.files import replacing
from mmemo.studies.crossval import crossval
from mmemo.training.experiment_cli import read_experiment
from mmemo.training.run_folder import LAST

INNER = RUN / "inner"
FOLDS = (1, 2)
Config = dict[str, Any]


class Choice(NamedTuple):
    """A student to compare; `benchmarks/table.py` describes each in words.

    Args:
        size: Size of the config it starts from: ``nano``, ``small`` or ``base``.
        change: Edits the config.
        epochs: Number of training epochs.
    """

    size: str = "small"
    change: Callable[[Config], None] = lambda config: None
    epochs: int = 60


def class_settings(class_path: str, **options: object) -> Config:
    """Returns a class and its options as in YAML."""
    return {"class_path": class_path, "init_args": options}


def student_parts(config: Config) -> Config:
    """Returns the part of a config that describes the student's model."""
    parts: Config = config["model"]["init_args"]["model"]["init_args"]
    return parts


def use_recurrent_encoder(config: Config) -> None:
    """Replaces the audio encoder by convolutions and an LSTM."""
    encoder = class_settings("mmemo.models.ConvRecurrentEncoder", channels=[8, 16, 32], hidden_dim=88)
    student_parts(config)["audio_encoder"] = encoder


def use_attention(config: Config) -> None:
    """Replaces three convolutional blocks by two layers of self-attention."""
    parts = student_parts(config)
    parts["audio_encoder"]["init_args"]["num_blocks"] = 2
    parts["fusion"] = class_settings("mmemo.models.AttentionBottleneck", hidden_dim=96, num_layers=2)


def add_unlabelled_emodb(config: Config) -> None:
    """Adds EMO-DB with the teacher's predictions instead of its labels."""
    path = INNER / "emodb.csv"
    if not path.exists():
        assert mmemo(["corpus", "emodb", str(corpus("emodb")), "--out", str(path)]) == 0
    config["data"]["corpora"] = [
        {"manifest": config["data"].pop("manifest"), "name": "ravdess"},
        {"manifest": str(path), "name": "emodb", "unlabelled": True},
    ]


def use_low_rank_whisper(config: Config) -> None:
    """Replaces the audio encoder by the first two blocks of Whisper base, fine-tuned with low-rank matrices."""
    parts = student_parts(config)
    parts["audio_encoder"] = class_settings(
        "mmemo.models.WhisperAudioEncoder", model_id="openai/whisper-base", layers=[1, 2]
    )
    parts["layer_mix"] = "mmemo.models.LayerConcat"
    parts["head"]["init_args"]["dropout"] = 0.5
    config["model"]["init_args"]["audio_finetuning"] = class_settings(
        "mmemo.training.LowRank", rank=52, num_blocks=2, lr_ratio=0.3
    )


def add_feature_hints(config: Config) -> None:
    """Adds a loss that matches the teacher's fused vector."""
    config["model"]["init_args"]["distillation"].append(class_settings("mmemo.losses.FeatureHints"))


CHOICES = {
    "small": Choice(),
    "labels": Choice(change=remove_teacher),
    "recurrent": Choice(change=use_recurrent_encoder),
    "attention": Choice(change=use_attention),
    "emodb": Choice(change=add_unlabelled_emodb),
    "lowrank": Choice("base", use_low_rank_whisper, epochs=15),
    "base": Choice("base"),
    "hints": Choice("base", add_feature_hints),
    "patient": Choice("base", epochs=120),
    "small_patient": Choice(epochs=120),
}


def make_inner_folds() -> tuple[Path, Path]:
    """Writes the manifest of the twenty actors and the file of the two folds, once."""
    manifest, fold_file = make_manifest().with_name("students_side.csv"), INNER / "folds.csv"
    INNER.mkdir(parents=True, exist_ok=True)
    with FileLock(INNER / "prepared.lock"):
        if not (manifest.exists() and fold_file.exists()):
            left_out = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"][0].split()
            table = pd.read_csv(make_manifest(), dtype=str)
            table[~table["speaker"].isin(left_out)].to_csv(manifest, index=False)
            inner = read_manifest(manifest)
            rows = []
            for fold in FOLDS:
                test_speakers = inner.frame["speaker"].iloc[GroupKFold(fold=fold)(inner).test].unique()
                rows.append({"fold": fold, "speakers": " ".join(sorted(test_speakers))})
            pd.DataFrame(rows).to_csv(fold_file, index=False)
    return manifest, fold_file


def train_folds(name: str, config: Config) -> list[float]:
    """Trains both folds, keeping finished ones; returns their UAR in percent.

    Args:
        name: Name of the run.
        config: Its config.
    """
    _, fold_file = make_inner_folds()
    if "corpora" in config["data"]:  # speakers then carry the name of their corpus
        table = pd.read_csv(fold_file, dtype=str)
        table["speakers"] = [
            " ".join(f"ravdess/{speaker}" for speaker in speakers.split()) for speakers in table["speakers"]
        ]
        fold_file = INNER / f"{name}_folds.csv"
        table.to_csv(fold_file, index=False)
    config["data"]["split"]["init_args"]["path"] = str(fold_file)
    path = INNER / f"{name}.yaml"
    with replacing(path) as partial:  # another process may be reading it
        partial.write_text(yaml.safe_dump(config, sort_keys=False))
    result = crossval(read_experiment(path, precision_settings()), INNER / name)
    return [100 * value for value in result.metrics["test/uar"]]


def evaluate_choice(name: str) -> None:
    """Trains a student and its teacher, and records the student's accuracy."""
    manifest, _ = make_inner_folds()
    teacher = yaml.safe_load((CONFIGS / "ravdess_teacher.yaml").read_text())
    teacher["data"]["manifest"] = str(manifest)
    train_folds("teacher", teacher)
    size, change, epochs = CHOICES[name]
    config = yaml.safe_load((CONFIGS / f"ravdess_student_{size}.yaml").read_text())
    config["model"]["init_args"]["teacher"] = str(INNER / "teacher" / "fold{fold}" / LAST)
    config["data"]["manifest"] = str(manifest)
    change(config)
    config["trainer"]["max_epochs"] = epochs
    uar = train_folds(name, config)
    values = {name: round(statistics.mean(uar), 2), f"{name}_folds": [round(value, 2) for value in uar]}
    update_record("student_choices", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES), help="students to compare")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for name in parser.parse_args().only:
        evaluate_choice(name)


if __name__ == "__main__":
    main()
