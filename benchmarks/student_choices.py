"""Which student, and what helps it to learn: compared on the training-side speakers of RAVDESS's published fold 1.

    python benchmarks/student_choices.py                       # resumable fold by fold; several may work on it
    python benchmarks/student_choices.py --only small lowrank  # these alone

The four actors who judge fold 1 are left out. Of the other twenty, two grouped folds of four actors judge; each fold's
teacher (`configs/ravdess_teacher.yaml`) and students learn from the sixteen others. The twenty are test actors of the
published folds 2 to 6: no weight of `benchmarks/distillation.py` saw its test actors, but of the choice between
students only fold 1 is free of them.
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
from filelock import FileLock
from ravdess_finetuned import manifest, precision
from record import corpus, record_beside

from mmemo.cli.main import main as mmemo
from mmemo.data.manifest import read_manifest
from mmemo.data.splits import GroupKFold
from mmemo.files import replacing
from mmemo.studies.crossval import crossval
from mmemo.training.experiment import LAST

INNER = RUN / "inner"
FOLDS = (1, 2)
Config = dict[str, Any]


class Choice(NamedTuple):
    """A student to be compared; `benchmarks/table.py` says in words what each is.

    Args:
        size: Of the config it starts from: ``nano``, ``small`` or ``base``.
        change: Edits the config.
        epochs: Of training; the configs have as many as did best here.
    """

    size: str = "small"
    change: Callable[[Config], None] = lambda config: None
    epochs: int = 60


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


def unlabelled_emodb(config: Config) -> None:
    """EMO-DB beside RAVDESS, heard by the teacher, without its labels."""
    path = INNER / "emodb.csv"
    if not path.exists():
        assert mmemo(["corpus", "emodb", str(corpus("emodb")), "--out", str(path)]) == 0
    config["data"]["corpora"] = [
        {"manifest": config["data"].pop("manifest"), "name": "ravdess"},
        {"manifest": str(path), "name": "emodb", "unlabelled": True},
    ]


def low_rank(config: Config) -> None:
    """The convolutions and the first two blocks of Whisper base, their matrices narrow, trained on."""
    student(config)["audio_encoder"] = part(
        "mmemo.models.WhisperAudioEncoder", model_id="openai/whisper-base", layers=[1, 2]
    )
    student(config)["layer_mix"] = "mmemo.models.LayerConcat"
    student(config)["head"]["init_args"]["dropout"] = 0.5
    config["model"]["init_args"]["audio_finetuning"] = part(
        "mmemo.training.LowRank", rank=52, num_blocks=2, lr_ratio=0.3
    )


def hints(config: Config) -> None:
    """The teacher's fused vector taken over too."""
    config["model"]["init_args"]["distillation"].append(part("mmemo.losses.FeatureHints"))


CHOICES = {
    "small": Choice(),
    "labels": Choice(change=untaught),
    "recurrent": Choice(
        change=encoder("mmemo.models.ConvRecurrentEncoder", channels=[8, 16, 32], hidden_dim=88),
    ),
    "attention": Choice(change=attention),
    "emodb": Choice(change=unlabelled_emodb),
    "lowrank": Choice("base", low_rank, epochs=15),
    "base": Choice("base"),
    "hints": Choice("base", hints),
    "patient": Choice("base", epochs=120),
    "small_patient": Choice(epochs=120),
}


def prepared() -> tuple[Path, Path]:
    """Manifest of the twenty actors, and the two folds; made once."""
    side, folds = manifest().with_name("students_side.csv"), INNER / "folds.csv"
    INNER.mkdir(parents=True, exist_ok=True)
    with FileLock(INNER / "prepared.lock"):
        if not (side.exists() and folds.exists()):
            held_out = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"][0].split()
            table = pd.read_csv(manifest(), dtype=str)
            table[~table["speaker"].isin(held_out)].to_csv(side, index=False)
            read = read_manifest(side)
            judges = {fold: read.frame["speaker"].iloc[GroupKFold(fold=fold)(read).test].unique() for fold in FOLDS}
            rows = [{"fold": fold, "speakers": " ".join(sorted(names))} for fold, names in judges.items()]
            pd.DataFrame(rows).to_csv(folds, index=False)
    return side, folds


def trained(name: str, config: Config) -> list[float]:
    """UAR of each fold, in per cent; finished folds are kept.

    Args:
        name: Of the run.
        config: Its YAML.
    """
    _, folds = prepared()
    if "corpora" in config["data"]:  # whose speakers bear the name of their corpus
        table = pd.read_csv(folds, dtype=str)
        table["speakers"] = [" ".join(f"ravdess/{one}" for one in names.split()) for names in table["speakers"]]
        folds = INNER / f"{name}_folds.csv"
        table.to_csv(folds, index=False)
    config["data"]["split"]["init_args"]["path"] = str(folds)
    path = INNER / f"{name}.yaml"
    with replacing(path) as partial:  # another worker may be reading it
        partial.write_text(yaml.safe_dump(config, sort_keys=False))
    return [100 * value for value in crossval(path, INNER / name, precision()).metrics["test/uar"]]


def compared(choice: str) -> None:
    """Trains a student, and records how well it does."""
    side, _ = prepared()
    teacher = yaml.safe_load((CONFIGS / "ravdess_teacher.yaml").read_text())
    teacher["data"]["manifest"] = str(side)
    trained("teacher", teacher)
    size, change, epochs = CHOICES[choice]
    config = yaml.safe_load((CONFIGS / f"ravdess_student_{size}.yaml").read_text())
    config["model"]["init_args"]["teacher"] = str(INNER / "teacher" / "fold{fold}" / LAST)
    config["data"]["manifest"] = str(side)
    change(config)
    config["trainer"]["max_epochs"] = epochs
    found = trained(choice, config)
    ua = {choice: round(statistics.mean(found), 2), f"{choice}_folds": [round(value, 2) for value in found]}
    record_beside("student_choices", ua)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for choice in parser.parse_args().only:
        compared(choice)


if __name__ == "__main__":
    main()
