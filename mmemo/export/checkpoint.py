"""Checkpoint -> exported folder, checked on the run's own clips and described by its test metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmemo.audio.reader import AudioError, read_audio
from mmemo.data.manifest import Utterance, read_manifest
from mmemo.export.onnx import ExportResult, export_onnx
from mmemo.files import checksum
from mmemo.training.experiment_cli import read_experiment
from mmemo.training.loading import load_model
from mmemo.training.run_folder import METRICS_FILE


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    manifest: str | Path | None = None,
    num_clips: int = 100,
    audio_only: bool = False,
    card: dict[str, Any] | None = None,
) -> ExportResult:
    """Exports the model of a checkpoint to a folder.

    Args:
        checkpoint: Checkpoint written by ``mmemo fit``.
        folder: Folder to create, or an earlier export to replace.
        manifest: Manifest of the clips on which the files are checked. Defaults to the test clips of the run.
        num_clips: Number of clips to check on, spread evenly over the manifest.
        audio_only: Refuse a model that takes text.
        card: Texts for the model card, as for :func:`mmemo.export_onnx`. ``metrics`` defaults to the run's test
            metrics, if ``mmemo test`` evaluated this very checkpoint.

    Raises:
        FileNotFoundError: The checkpoint does not exist, or no manifest is given and the run has no config.
        ValueError: The model takes text despite ``audio_only``, no clip can be read, or a file differs too much from
            PyTorch.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    model = load_model(checkpoint)
    if audio_only and "text" in model.modalities:
        raise ValueError(
            f"{checkpoint}: this model also takes text, but audio_only was requested; train one without a "
            "text_encoder, or distil an audio-only student (mmemo.training.DistillationSystem)"
        )
    run = checkpoint.resolve().parent.parent
    utterances = _utterances(run, manifest)
    if "text" in model.modalities:
        utterances = [utterance for utterance in utterances if utterance.text and utterance.text.strip()] or utterances
    rows = np.unique(np.linspace(0, len(utterances) - 1, num_clips).round().astype(int))
    waveforms, texts = [], []
    for number, utterance in enumerate(utterances[row] for row in rows):
        try:
            waveform = np.zeros(1, dtype=np.float32)
            if utterance.path is not None:
                waveform = read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
        except AudioError:
            continue  # `mmemo check` lists it
        waveforms.append(waveform[: max(len(waveform) - 37 * (number % 11), 1)])  # not a whole number of frames
        texts.append(utterance.text or "")
    if not waveforms:
        raise ValueError(f"{manifest or run}: none of its clips can be read; give a manifest with audio")
    return export_onnx(model, folder, waveforms, texts, {"metrics": _test_metrics(run, checkpoint), **(card or {})})


def _utterances(run: Path, manifest: str | Path | None) -> list[Utterance]:
    """Returns the utterances of a manifest; by default the run's test side, or all if that is empty."""
    if manifest is not None:
        return list(read_manifest(manifest))
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run}: has no config.yaml, so its clips are unknown; give the manifest")
    table = read_experiment(run).data.prepare("test")
    rows = table.split.test if len(table.split.test) else np.arange(len(table.manifest))
    return list(table.manifest.subset(rows))


def _test_metrics(run: Path, checkpoint: Path) -> dict[str, str]:
    """Returns the run's test metrics and recall of each class, or nothing if another checkpoint was tested."""
    path = run / METRICS_FILE
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())
    if results.get("checkpoint_sha256") != checksum(checkpoint):
        return {}
    metrics = {name: f"{value:.4f}" for name, value in sorted(results["metrics"].items()) if name.startswith("test/")}
    for index, counts in enumerate(results["confusion"] or ()):
        if sum(counts):
            name = f"test/recall of {results['classes'][index]} ({sum(counts)} clips)"
            metrics[name] = f"{counts[index] / sum(counts):.4f}"
    return metrics
