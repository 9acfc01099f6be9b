"""A checkpoint of a run -> an exported folder, with the run's own clips and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmemo.audio.reader import AudioError, read_audio
from mmemo.data.manifest import Utterance, read_manifest
from mmemo.export.onnx import Exported, export_onnx
from mmemo.files import checksum
from mmemo.training.experiment import METRICS_FILE, experiment_of
from mmemo.training.system import load_model


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    manifest: Path | None = None,
    num_clips: int = 100,
    audio_only: bool = False,
    card: dict[str, Any] | None = None,
) -> Exported:
    """Writes the folder of a checkpoint.

    Args:
        checkpoint: Of ``mmemo fit``.
        folder: To be made; files in it are replaced.
        manifest: Whose clips the files are checked on; the run's own when not given.
        num_clips: How many of them.
        audio_only: Whether to refuse a model that reads words.
        card: What the model card says: ``license``, ``training_data``, ``limits``, and ``metrics`` in the place of the
            run's test figures, which are there where ``mmemo test`` judged this very checkpoint.

    Raises:
        FileNotFoundError: There is no such checkpoint, or no manifest beside it.
        ValueError: It reads words and must not, no clip can be read, or a file does not agree with PyTorch.
    """
    model = load_model(checkpoint)
    if audio_only and "text" in model.modalities:
        raise ValueError(
            f"{checkpoint}: the model reads words too, and audio alone was asked for; distil it into a student "
            "(mmemo.training.DistillationSystem), or leave --audio_only out"
        )
    run = checkpoint.resolve().parent.parent
    utterances = _utterances(run, manifest)
    if "text" in model.modalities:
        utterances = [one for one in utterances if one.text and one.text.strip()] or utterances
    spread = np.unique(np.linspace(0, len(utterances) - 1, num_clips).round().astype(int))
    waveforms, texts = [], []
    for number, utterance in enumerate(utterances[row] for row in spread):
        try:
            waveform = np.zeros(1, dtype=np.float32)
            if utterance.path is not None:
                waveform = read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
        except AudioError:
            continue  # `mmemo check` lists it
        waveforms.append(waveform[: max(len(waveform) - 37 * (number % 11), 1)])  # lengths that fit no frame
        texts.append(utterance.text or "")
    if not waveforms:
        raise ValueError(f"{manifest or run}: no clip there can be read; give --manifest one with audio")
    return export_onnx(model, folder, waveforms, texts, {"metrics": _figures(run, checkpoint), **(card or {})})


def _utterances(run: Path, manifest: Path | None) -> list[Utterance]:
    if manifest is not None:
        return list(read_manifest(manifest))
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{run}: has no config.yaml that says which clips the model was made for; give --manifest"
        )
    datamodule = experiment_of(run).datamodule
    datamodule.setup("test")
    rows = datamodule.split.test if len(datamodule.split.test) else np.arange(len(datamodule.manifest))
    return list(datamodule.manifest.subset(rows))


def _figures(run: Path, checkpoint: Path) -> dict[str, str]:
    """The test figures of a run, where it was tested with this checkpoint, and of how many clips each class has."""
    path = run / METRICS_FILE
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())
    if results.get("checkpoint_sha256") != checksum(checkpoint):
        return {}
    metrics = results["metrics"]
    figures = {name: f"{value:.4f}" for name, value in sorted(metrics.items()) if name.startswith("test/")}
    for number, row in enumerate(results["confusion"] or ()):
        if sum(row):
            name = f"test/recall of {results['classes'][number]} ({sum(row)} clips)"
            figures[name] = f"{row[number] / sum(row):.4f}"
    return figures
