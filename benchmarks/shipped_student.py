"""Trains, judges and exports the student that ships: `checkpoints/mmemo-student`.

    python benchmarks/shipped_student.py                   # what is there already is kept
    python benchmarks/shipped_student.py --conditions      # the files that ship alone, heard in other ways

The teacher (`configs/two_channel.yaml`, voice and Whisper's words) learns from RAVDESS without the actors of folds 1
and 2, from the training side of the spoken words, and from five of EMO-DB's ten speakers; the student
(`configs/student.yaml`, voice alone) from the same without the spoken words, whose emotion is not in the voice. What
ships is that model: its figures are those of the int8 file on other speakers. A second student, which like its teacher
never heard EMO-DB, says what is left on a corpus of another language. Clips are trimmed of silence, as `mmemo analyze`
trims them.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import soxr
import torch
import yaml
from record import HERE, corpus, record, record_beside
from two_channel import BACKBONE, manifests, sides, text_backbone, trimmed_manifest

from mmemo.audio.reader import read_audio
from mmemo.audio.speech import audio_blocks, speech
from mmemo.cli.main import main as mmemo
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.export.checkpoint import export_checkpoint
from mmemo.export.onnx import model_card
from mmemo.export.runtime import CONFIG_FILE, Recognizer
from mmemo.files import checksum
from mmemo.training.experiment import Experiment

CONFIGS = HERE.parent / "configs"
RUN = HERE.parent / "runs" / "bench_shipped_student"
OUT = HERE.parent / "checkpoints" / "mmemo-student"
DATA = (
    "RAVDESS (Livingstone and Russo 2018, CC BY-NC-SA 4.0), 16 of its 24 actors; EMO-DB (Burkhardt et al. 2005, CC0), "
    "five of its ten speakers. The teacher also learned from GoEmotions sentences (Demszky et al. 2020, Apache-2.0) "
    "read by espeak-ng, with Whisper base (MIT) and MiniLM (Apache-2.0) tuned on GoEmotions."
)
LICENSE = (
    "CC BY-NC-SA 4.0: RAVDESS, which it learned from, forbids commercial use. Train a student on other recordings for "
    "that."
)
LIMITS = (
    "Acted speech in English and German: a student that had not heard the German corpus was little better than chance "
    "on it, so on other microphones, spontaneous speech, other languages, children or noisy rooms expect much less, "
    "and measure on recordings of your own first. Its German speakers showed four emotions alone. It "
    "learned from speech without the silence around it, as `mmemo analyze` cuts it: given whole files, 8 kHz, or a "
    "microphone set much lower, it does as the figures say. It hears how something is said, not what. It is no medical "
    "device, and no judge of a single person."
)
SPEAKERS = {
    "ravdess": "RAVDESS, 8 other actors",
    "emodb": "EMO-DB (four of the classes), 5 other speakers",
    "spoken": "spoken words, unheard",
}


def emodb() -> Path:
    """EMO-DB without its silence, every other speaker to train on; made once."""
    trimmed, path = RUN / "emodb_all.csv", RUN / "emodb.csv"
    if not path.exists():
        assert mmemo(["corpus", "emodb", str(corpus("emodb")), "--out", str(trimmed), "--trim_db", "35"]) == 0
        frame = read_manifest(trimmed).frame
        judged = sorted(frame["speaker"].unique())[1::2]
        frame["split"] = ["test" if name in judged else "train" for name in frame["speaker"]]
        Manifest(frame, trimmed).write(path)
    return path


def trained(name: str, config: dict) -> Path:  # type: ignore[type-arg]
    """Fits a config, unless that is done."""
    run = RUN / name
    run.mkdir(parents=True, exist_ok=True)
    config["trainer"]["default_root_dir"] = str(run)
    done, text = run / "finished", yaml.safe_dump(config, sort_keys=False)
    teacher = config["model"]["init_args"].get("teacher")
    text += f"# taught by {checksum(Path(teacher))}\n" if teacher else ""  # of another teacher, another student
    if not done.exists() or done.read_text() != text:
        (run / "experiment.yaml").write_text(text)
        Experiment(["fit", "--config", str(run / "experiment.yaml"), "--overwrite", "true"])
        done.write_text(text)
    return run / "checkpoints" / "last.ckpt"


def judged(folder: Path, paths: dict[str, Path], side: str | None = "test") -> pd.DataFrame:
    """What the int8 file says of every clip of a side, or of all sides."""
    recognizer = Recognizer(folder)
    rows = []
    for name, path in paths.items():
        for utterance in read_manifest(path):
            if side not in (None, utterance.split):
                continue
            if utterance.emotion not in recognizer.classes or utterance.path is None:
                continue
            emotion = recognizer.predict(read_audio(utterance.path, utterance.start, utterance.end))
            rows.append((name, utterance.emotion, emotion.label))
    return pd.DataFrame(rows, columns=["corpus", "emotion", "predicted"])


def recalls(said: pd.DataFrame) -> pd.Series:
    """Share of each class that is recognised, in per cent."""
    return 100 * (said["emotion"] == said["predicted"]).groupby(said["emotion"]).mean()


def everyone(path: Path) -> Path:
    """A manifest whose validation speakers train too: nothing is chosen here."""
    table = read_manifest(path).frame
    out = RUN / path.name
    Manifest(table.assign(split=table["split"].replace("val", "train")), path).write(out)
    return out


def student(name: str, paths: dict[str, Path]) -> Path:
    """Trains a teacher on corpora, and its student on those with emotion in the voice.

    Args:
        name: Of the runs.
        paths: Name of a corpus -> its manifest.
    """
    config = yaml.safe_load((CONFIGS / "student.yaml").read_text())
    teacher = yaml.safe_load((CONFIGS / "two_channel.yaml").read_text())
    teacher["model"]["init_args"]["model"]["init_args"]["text_encoder"]["init_args"]["model_id"] = str(BACKBONE)
    teacher["data"]["classes"] = config["data"]["classes"]
    corpora = [
        {"manifest": str(path), "name": one, "label_map": {"calm": None} if one == "ravdess" else {}}
        for one, path in paths.items()
    ]
    teacher["data"] |= {"corpora": corpora, "empty_rows": "keep", "split": config["data"]["split"]}
    config["data"]["corpora"] = [each for each in corpora if each["name"] != "spoken"]
    config["model"]["init_args"]["teacher"] = str(trained(f"{name}teacher", teacher))
    return trained(f"{name}student", config)


def conditions(folder: Path) -> dict[str, float]:
    """UAR on RAVDESS's judges with the silence around each clip, at a telephone's rate, as `analyze` cuts them, and
    quieter.
    """
    table = read_manifest(trimmed_manifest())
    test = {actor for actor, side in sides().items() if side == "test"}
    recognizer = Recognizer(folder)
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in CONDITIONS}
    for one in table:
        if one.speaker not in test or one.emotion not in recognizer.classes or one.path is None:
            continue
        low = soxr.resample(read_audio(one.path, one.start, one.end), 16_000, 8_000)
        cut = [stretch.waveform for stretch in speech(audio_blocks(one.path))]
        heard = (
            read_audio(one.path),
            soxr.resample(low, 8_000, 16_000),
            np.concatenate(cut) if cut else None,
            0.1 * read_audio(one.path, one.start, one.end),
        )
        for name, waveform in zip(CONDITIONS, heard, strict=True):
            said = "nobody speaks" if waveform is None else recognizer.predict(waveform).label
            rows[name].append((one.emotion, said))
    tables = {name: pd.DataFrame(said, columns=["emotion", "predicted"]) for name, said in rows.items()}
    return {name: round(float(recalls(one).mean()), 2) for name, one in tables.items()}


CONDITIONS = {
    "uar_ravdess_whole_files": "RAVDESS, 8 other actors, with the second of silence at both ends of each clip",
    "uar_ravdess_8_khz": "RAVDESS, 8 other actors, at a telephone's 8 kHz",
    "uar_ravdess_as_analyze_cuts": "RAVDESS, 8 other actors, as `mmemo analyze` finds the speech",
    "uar_ravdess_20_db_quieter": "RAVDESS, 8 other actors, recorded 20 dB quieter",
}


def tell_conditions() -> None:
    """Measures them on the files that ship, and writes them into their card."""
    found = conditions(OUT)
    config = json.loads((OUT / CONFIG_FILE).read_text())
    config["metrics"] |= {f"{CONDITIONS[name]}: UAR, %": value for name, value in found.items()}
    config["limits"] = LIMITS
    config.setdefault("max_seconds", None)
    (OUT / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    (OUT / "README.md").write_text(model_card(config, OUT))
    record_beside("shipped_student", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", action="store_true")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    if parser.parse_args().conditions:
        return tell_conditions()
    paths = {**manifests(), "emodb": emodb()}
    text_backbone()
    learned = {name: everyone(path) for name, path in paths.items()}
    checkpoint = student("", learned)
    card = {"license": LICENSE, "training_data": DATA, "limits": LIMITS}
    folder = RUN / "exported"
    export_checkpoint(checkpoint, folder, num_clips=200, audio_only=True, card=card)
    said = judged(folder, paths)
    figures: dict[str, object] = {}
    for name, rows in said.groupby("corpus"):
        by_class = recalls(rows)
        figures[f"uar_{name}"] = round(float(by_class.mean()), 2)
        for emotion, recall in by_class.items():
            figures[f"recall_{name}_{emotion}"] = round(float(recall), 1)
    del learned["emodb"]
    stranger = RUN / "exported_stranger"
    export_checkpoint(student("stranger_", learned), stranger, num_clips=200, audio_only=True)
    by_class = recalls(judged(stranger, {"emodb": RUN / "emodb_all.csv"}, side=None))
    figures["uar_emodb_corpus_never_heard"] = round(float(by_class.mean()), 2)
    metrics = {}
    for key, value in figures.items():
        if key.endswith("never_heard"):
            metrics["EMO-DB, all speakers, by a student of the same kind that never heard that corpus: UAR, %"] = value
            continue
        kind, name, emotion = (*key.split("_"), "")[:3]
        metrics[f"{SPEAKERS[name]}: {'UAR' if kind == 'uar' else f'recall of {emotion}'}, %"] = value
    exported = export_checkpoint(checkpoint, OUT, num_clips=200, audio_only=True, card={**card, "metrics": metrics})
    sizes = {"int8_kilobytes": round(exported.num_bytes["model.int8.onnx"] / 1000, 1)}
    assert exported.parity.int8_agreement is not None
    agreement = {"int8_agreement": round(100 * exported.parity.int8_agreement, 2)}
    record("shipped_student", {**figures, **sizes, **agreement})
    tell_conditions()


if __name__ == "__main__":
    main()
