"""Trains, evaluates and exports the shipped student, `checkpoints/mmemo-student`.

    python benchmarks/shipped_student.py                   # finished runs are kept
    python benchmarks/shipped_student.py --conditions      # evaluates the shipped files under other conditions

The teacher (`configs/two_channel.yaml`, audio and Whisper transcripts) is trained on RAVDESS without the actors of
folds 1 and 2, on the training split of spoken words, and on five of EMO-DB's ten speakers. The student
(`configs/student.yaml`, audio only) is trained on the same without spoken words, whose emotion is not in the audio.
This model ships; its results are those of the int8 file on unseen speakers. A second teacher and student, trained
without EMO-DB, show how much remains on a corpus in another language. Clips are trimmed of silence, like the segments
that `mmemo analyze` cuts.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soxr
import torch
import yaml
from record import HERE, corpus, record, update_record
from two_channel import BACKBONE, make_manifests, make_text_backbone, make_trimmed_manifest, split_of_actors

from mmemo.audio.reader import read_audio
from mmemo.audio.speech import detect_speech, read_blocks
from mmemo.cli.app import main as mmemo
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.export.card import render_model_card
from mmemo.export.checkpoint import export_checkpoint
from mmemo.export.runtime import CONFIG_FILE, Recognizer
from mmemo.files import checksum
from mmemo.training.experiment_cli import ExperimentCLI

CONFIGS = HERE.parent / "configs"
RUN = HERE.parent / "runs" / "bench_shipped_student"
OUT = HERE.parent / "checkpoints" / "mmemo-student"
DATA = (
    "RAVDESS (Livingstone and Russo 2018, CC BY-NC-SA 4.0), 16 of its 24 actors; EMO-DB (Burkhardt et al. 2005, "
    "CC0), five of its ten speakers. The teacher was also trained on GoEmotions sentences (Demszky et al. 2020, "
    "Apache-2.0) read by espeak-ng. Its encoders are Whisper base (MIT) and MiniLM (Apache-2.0); MiniLM was "
    "fine-tuned on GoEmotions."
)
LICENSE = (
    "CC BY-NC-SA 4.0. The RAVDESS training data forbids commercial use. For commercial use, train a student on "
    "other recordings."
)
LIMITS = (
    "Acted speech in English and German only. A student trained without the German corpus was little better than "
    "chance on it. Expect much lower accuracy on other microphones, spontaneous speech, other languages, children "
    "or noisy rooms, and evaluate the model on your own recordings first. The German training speakers cover only "
    "four of the emotions. The training clips had no silence around the speech, like the segments that `mmemo "
    "analyze` cuts; the table above gives the accuracy on whole files, at 8 kHz and at a much lower recording "
    "level. The model uses prosody and voice quality, not the words. It is not a medical device and is not suited "
    "to assessing individual people."
)
CORPORA = {  # corpus -> its name on the model card
    "ravdess": "RAVDESS, 8 unseen actors",
    "emodb": "EMO-DB (four of the classes), 5 unseen speakers",
    "spoken": "GoEmotions sentences read by espeak-ng (emotion in the text only)",
}
CONDITIONS = {  # condition -> its name on the model card
    "uar_ravdess_whole_files": "RAVDESS, 8 unseen actors, untrimmed clips (about 1 s of silence at each end)",
    "uar_ravdess_8_khz": "RAVDESS, 8 unseen actors, resampled to 8 kHz",
    "uar_ravdess_as_analyze_cuts": "RAVDESS, 8 unseen actors, segmented by `mmemo analyze`",
    "uar_ravdess_20_db_quieter": "RAVDESS, 8 unseen actors, recorded 20 dB quieter",
}


def make_emodb_manifest() -> Path:
    """Writes the manifest of trimmed EMO-DB with every other speaker in the training split, once."""
    trimmed, path = RUN / "emodb_all.csv", RUN / "emodb.csv"
    if not path.exists():
        assert mmemo(["corpus", "emodb", str(corpus("emodb")), "--out", str(trimmed), "--trim-db", "35"]) == 0
        table = read_manifest(trimmed).frame
        test_speakers = sorted(table["speaker"].unique())[1::2]
        table["split"] = ["test" if speaker in test_speakers else "train" for speaker in table["speaker"]]
        Manifest(table, trimmed).write(path)
    return path


def train_on_validation_speakers(path: Path) -> Path:
    """Copies a manifest with its validation split moved to training, since nothing is chosen here."""
    table = read_manifest(path).frame
    copy = RUN / path.name
    Manifest(table.assign(split=table["split"].replace("val", "train")), path).write(copy)
    return copy


def fit(name: str, config: dict[str, Any]) -> Path:
    """Trains a config, unless a finished run exists; returns its last checkpoint."""
    run = RUN / name
    run.mkdir(parents=True, exist_ok=True)
    config["trainer"]["default_root_dir"] = str(run)
    finished, text = run / "finished", yaml.safe_dump(config, sort_keys=False)
    teacher = config["model"]["init_args"].get("teacher")
    text += f"# taught by {checksum(Path(teacher))}\n" if teacher else ""  # a new teacher needs a new student
    if not finished.exists() or finished.read_text() != text:
        (run / "experiment.yaml").write_text(text)
        ExperimentCLI(["fit", "--config", str(run / "experiment.yaml"), "--overwrite", "true"])
        finished.write_text(text)
    return run / "checkpoints" / "last.ckpt"


def train_student(prefix: str, paths: dict[str, Path]) -> Path:
    """Trains a teacher on all corpora, and its student on those with emotion in the audio.

    Args:
        prefix: Prefix of the names of both runs.
        paths: Name of a corpus -> its manifest.
    """
    config = yaml.safe_load((CONFIGS / "student.yaml").read_text())
    teacher = yaml.safe_load((CONFIGS / "two_channel.yaml").read_text())
    teacher["model"]["init_args"]["model"]["init_args"]["text_encoder"]["init_args"]["model_id"] = str(BACKBONE)
    teacher["data"]["classes"] = config["data"]["classes"]
    corpora = [
        {"manifest": str(path), "name": name, "label_map": {"calm": None} if name == "ravdess" else {}}
        for name, path in paths.items()
    ]
    teacher["data"] |= {"corpora": corpora, "empty_rows": "keep", "split": config["data"]["split"]}
    config["data"]["corpora"] = [settings for settings in corpora if settings["name"] != "spoken"]
    config["model"]["init_args"]["teacher"] = str(fit(f"{prefix}teacher", teacher))
    return fit(f"{prefix}student", config)


def predict(folder: Path, paths: dict[str, Path], side: str | None = "test") -> pd.DataFrame:
    """Returns the predictions of the int8 file for every labelled clip of a split, or of all splits."""
    recognizer = Recognizer(folder)
    rows = []
    for name, path in paths.items():
        for utterance in read_manifest(path):
            if side not in (None, utterance.split):
                continue
            if utterance.emotion not in recognizer.classes or utterance.path is None:
                continue
            waveform = read_audio(utterance.path, utterance.start, utterance.end)
            rows.append((name, utterance.emotion, recognizer.predict(waveform).label))
    return pd.DataFrame(rows, columns=["corpus", "emotion", "predicted"])


def recalls(predictions: pd.DataFrame) -> pd.Series:
    """Returns the recall of each class, in percent."""
    is_correct = predictions["emotion"] == predictions["predicted"]
    return 100 * is_correct.groupby(predictions["emotion"]).mean()


def measure_conditions(folder: Path) -> dict[str, float]:
    """Returns the UAR on RAVDESS's test actors with silence, at 8 kHz, as `mmemo analyze` cuts them, and quieter."""
    test_actors = {actor for actor, side in split_of_actors().items() if side == "test"}
    recognizer = Recognizer(folder)
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in CONDITIONS}
    for utterance in read_manifest(make_trimmed_manifest()):
        if utterance.speaker not in test_actors or utterance.path is None:
            continue
        if utterance.emotion not in recognizer.classes:
            continue
        trimmed = read_audio(utterance.path, utterance.start, utterance.end)
        segments = [segment.waveform for segment in detect_speech(read_blocks(utterance.path))]
        waveforms = (
            read_audio(utterance.path),
            soxr.resample(soxr.resample(trimmed, 16_000, 8_000), 8_000, 16_000),
            np.concatenate(segments) if segments else None,
            0.1 * trimmed,
        )
        for name, waveform in zip(CONDITIONS, waveforms, strict=True):
            label = "no speech" if waveform is None else recognizer.predict(waveform).label
            rows[name].append((utterance.emotion, label))
    tables = {name: pd.DataFrame(pairs, columns=["emotion", "predicted"]) for name, pairs in rows.items()}
    return {name: round(float(recalls(table).mean()), 2) for name, table in tables.items()}


def add_conditions() -> None:
    """Evaluates the shipped files under all conditions, and adds the results to their model card."""
    values = measure_conditions(OUT)
    config = json.loads((OUT / CONFIG_FILE).read_text())
    config["metrics"] |= {f"{CONDITIONS[name]}: UAR, %": value for name, value in values.items()}
    config["limits"] = LIMITS
    config.setdefault("max_seconds", None)
    (OUT / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    (OUT / "README.md").write_text(render_model_card(config, OUT))
    update_record("shipped_student", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", action="store_true", help="only evaluate the shipped files again")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    if options.conditions:
        return add_conditions()
    paths = {**make_manifests(), "emodb": make_emodb_manifest()}
    make_text_backbone()
    training_paths = {name: train_on_validation_speakers(path) for name, path in paths.items()}
    checkpoint = train_student("", training_paths)
    card = {"license": LICENSE, "training_data": DATA, "limits": LIMITS}
    folder = RUN / "exported"
    export_checkpoint(checkpoint, folder, num_clips=200, audio_only=True, card=card)
    values: dict[str, object] = {}
    metrics = {}
    for name, rows in predict(folder, paths).groupby("corpus"):
        by_class = recalls(rows)
        values[f"uar_{name}"] = uar = round(float(by_class.mean()), 2)
        metrics[f"{CORPORA[name]}: UAR, %"] = uar
        for emotion, value in by_class.items():
            values[f"recall_{name}_{emotion}"] = recall = round(float(value), 1)
            metrics[f"{CORPORA[name]}: recall of {emotion}, %"] = recall
    del training_paths["emodb"]
    folder = RUN / "exported_without_emodb"
    export_checkpoint(train_student("without_emodb_", training_paths), folder, num_clips=200, audio_only=True)
    by_class = recalls(predict(folder, {"emodb": RUN / "emodb_all.csv"}, side=None))
    values["uar_emodb_unseen_corpus"] = uar = round(float(by_class.mean()), 2)
    metrics["EMO-DB, all speakers, by a student trained without EMO-DB: UAR, %"] = uar
    exported = export_checkpoint(checkpoint, OUT, num_clips=200, audio_only=True, card={**card, "metrics": metrics})
    values["int8_kilobytes"] = round(exported.num_bytes["model.int8.onnx"] / 1000, 1)
    assert exported.parity.int8_agreement is not None
    values["int8_agreement"] = round(100 * exported.parity.int8_agreement, 2)
    record("shipped_student", values)
    add_conditions()


if __name__ == "__main__":
    main()
