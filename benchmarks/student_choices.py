"""Which student, and what helps it to learn: compared on the training-side speakers of RAVDESS's published fold 1.

    python benchmarks/student_choices.py                       # all that is not there yet; resumable, several may work
    python benchmarks/student_choices.py --only small lowrank  # these alone

The four actors who judge fold 1 are left out. Of the other twenty, two grouped folds of four actors judge; each fold's
teacher (`configs/ravdess_teacher.yaml`) and students learn from the sixteen others. What is chosen here is then trained
on the published folds by `benchmarks/distillation.py`, once.
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
from distillation import CONFIGS, RUN, untaught
from ravdess_finetuned import manifest, precision
from record import corpus, record_beside

from mmemo.cli.main import main as mmemo
from mmemo.data.manifest import read_manifest
from mmemo.data.splits import GroupKFold
from mmemo.evaluation.crossval import run_fold
from mmemo.training.experiment import LAST

INNER = RUN / "inner"
FOLDS = (1, 2)
Config = dict[str, Any]


class Choice(NamedTuple):
    """A student to be compared; `benchmarks/table.py` says in words what each is.

    Args:
        size: Of the config it starts from: ``nano``, ``small`` or ``base``.
        change: Edits the config.
    """

    size: str = "small"
    change: Callable[[Config], None] = lambda config: None


def part(class_path: str, **options: object) -> Config:
    """A class and its options, as a YAML holds them."""
    return {"class_path": class_path, "init_args": options}


def encoder(class_path: str, **options: object) -> Callable[[Config], None]:
    """Another audio encoder."""

    def change(config: Config) -> None:
        student(config)["audio_encoder"] = part(class_path, **options)

    return change


def student(config: Config) -> Config:
    """Where a config holds the student's parts."""
    parts: Config = config["model"]["init_args"]["model"]["init_args"]
    return parts


def attention(config: Config) -> None:
    """Two layers of self-attention where three convolutional blocks were."""
    student(config)["audio_encoder"]["init_args"]["num_blocks"] = 2
    student(config)["fusion"] = part("mmemo.models.AttentionBottleneck", hidden_dim=96, num_layers=2)


def views(number: int) -> Callable[[Config], None]:
    """More versions of each clip, all heard by the teacher."""

    def change(config: Config) -> None:
        config["data"]["num_views"] = number

    return change


def unlabelled_emodb(config: Config) -> None:
    """EMO-DB beside RAVDESS, heard by the teacher, without its labels."""
    path = INNER / "emodb.csv"
    if not path.exists():
        assert mmemo(["corpus", "emodb", str(corpus("emodb")), "--out", str(path)]) == 0
    config["data"]["corpora"] = [
        {"manifest": config["data"].pop("manifest"), "name": "ravdess"},
        {"manifest": str(path), "name": "emodb", "unlabelled": True},
    ]


def low_rank(lr_ratio: float) -> Callable[[Config], None]:
    """The convolutions and the first two blocks of Whisper base, their matrices narrow, trained on."""

    def change(config: Config) -> None:
        student(config)["audio_encoder"] = part(
            "mmemo.models.WhisperAudioEncoder", model_id="openai/whisper-base", layers=[1, 2]
        )
        student(config)["layer_mix"] = "mmemo.models.LayerConcat"
        student(config)["head"]["init_args"]["dropout"] = 0.5
        config["model"]["init_args"]["audio_finetuning"] = part(
            "mmemo.training.LowRank", rank=52, num_blocks=2, lr_ratio=lr_ratio
        )
        config["trainer"]["max_epochs"] = 15

    return change


CHOICES = {
    "small": Choice(),
    "labels": Choice(change=untaught),
    "recurrent": Choice(
        change=encoder("mmemo.models.ConvRecurrentEncoder", channels=[8, 16, 32], hidden_dim=104),
    ),
    "attention": Choice(change=attention),
    "emodb": Choice(change=unlabelled_emodb),
    "views": Choice(change=views(12)),
    "lowrank": Choice("base", low_rank(0.3)),
    "lowrank_slow": Choice("base", low_rank(0.03)),
    "base": Choice("base"),
}


def prepared() -> tuple[Path, Path]:
    """Manifest of the twenty actors, and their folds; made once."""
    side, folds = manifest().with_name("students_side.csv"), INNER / "folds.csv"
    INNER.mkdir(parents=True, exist_ok=True)
    if not folds.exists():
        held_out = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"][0].split()
        table = pd.read_csv(manifest(), dtype=str)
        table = table[~table["speaker"].isin(held_out)]
        table.to_csv(side, index=False)
        read = read_manifest(side)
        judges = {fold: read.frame["speaker"].iloc[GroupKFold(fold=fold)(read).test].unique() for fold in range(1, 6)}
        rows = [{"fold": fold, "speakers": " ".join(sorted(names))} for fold, names in judges.items()]
        pd.DataFrame(rows).to_csv(folds, index=False)
    return side, folds


def trained(name: str, config: Config) -> list[float]:
    """UAR of each fold, in per cent; what is there already is kept.

    Args:
        name: Of the run.
        config: Its YAML.
    """
    _, folds = prepared()
    if "corpora" in config["data"]:  # whose speakers bear the name of their corpus
        named = INNER / "folds_of_corpora.csv"
        table = pd.read_csv(folds, dtype=str)
        table["speakers"] = [" ".join(f"ravdess/{one}" for one in names.split()) for names in table["speakers"]]
        table.to_csv(named, index=False)
        folds = named
    config["data"]["split"]["init_args"]["path"] = str(folds)
    path = INNER / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return [100 * run_fold(path, INNER / name / f"fold{fold}", fold, precision())["test/uar"] for fold in FOLDS]


def compared(choice: str) -> None:
    """Trains a student, and records how well it does."""
    side, _ = prepared()
    teacher = yaml.safe_load((CONFIGS / "ravdess_teacher.yaml").read_text())
    teacher["data"]["manifest"] = str(side)
    trained("teacher", teacher)
    size, change = CHOICES[choice]
    config = yaml.safe_load((CONFIGS / f"ravdess_student_{size}.yaml").read_text())
    config["model"]["init_args"]["teacher"] = str(INNER / "teacher" / "fold{fold}" / LAST)
    config["data"]["manifest"] = str(side)
    change(config)
    found = trained(choice, config)
    ua = {choice: round(statistics.mean(found), 2), f"{choice}_folds": [round(value, 2) for value in found]}
    record_beside("student_choices", lambda kept: ua)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for choice in parser.parse_args().only:
        compared(choice)


if __name__ == "__main__":
    main()
