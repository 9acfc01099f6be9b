"""Whisper features at the real length of a clip against padding to 30 s, and training from the cache.

    python benchmarks/features.py

1. Hidden states 2 to 4 of Whisper base for RAVDESS clips: `WhisperAudioEncoder`, clip by clip, against
   `WhisperFeatureExtractor` and `WhisperModel.encoder` on 30 s. The two take turns on the same clips in one process.
2. Training epochs of `EmotionSystem` in Lightning's loop, in batches of 32: from the cache, with the encoder in every
   step on 30 s (the usual way), and with the encoder in every step on the real length. Epochs that re-encode stop
   after 4 and 12 of 36 batches, so all three are given in seconds per clip.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from record import corpus, record
from torch import Tensor
from transformers import WhisperFeatureExtractor

from mmemo import EmotionDataModule, EmotionModel, EmotionSystem, pretrained
from mmemo.audio.reader import read_audio
from mmemo.data.corpora.ravdess import EMOTIONS, ravdess
from mmemo.data.manifest import Manifest
from mmemo.models import Concatenation, LayerConcat, NoGate, WhisperAudioEncoder
from mmemo.settings import cache_folder

NUM_ENCODED = 96  # clips timed in part 1


class Stopwatch(pl.Callback):
    """Measures the seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def encode_seconds(paths: list[Path]) -> tuple[float, float]:
    """Returns the seconds per clip at the real length and padded to 30 s."""
    encoder = WhisperAudioEncoder(layers=[2, 3, 4])
    padded_encoder = pretrained.load_whisper().model.encoder
    extractor = WhisperFeatureExtractor()
    waveforms = [read_audio(path) for path in paths]
    seconds = [0.0, 0.0]
    with torch.inference_mode():
        for number, waveform in enumerate([*waveforms[:2], *waveforms]):  # the first two are a warm-up
            started = time.perf_counter()
            batch = torch.from_numpy(waveform)[None]
            encoder.precompute(batch, torch.ones_like(batch, dtype=torch.bool))
            between = time.perf_counter()
            inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features
            padded_encoder(inputs, output_hidden_states=True)
            if number >= 2:
                seconds[0] += between - started
                seconds[1] += time.perf_counter() - between
    return seconds[0] / len(waveforms), seconds[1] / len(waveforms)


class PaddedWhisper(WhisperAudioEncoder):
    """Pads every clip to 30 s and runs the whole encoder in every step, as is usual."""

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "whole"):
            self.whole = [pretrained.load_whisper().model.encoder]  # in a list, so that its weights are not trained
            self.extractor = WhisperFeatureExtractor()
        clips = [clip[:length].numpy() for clip, length in zip(waveform, mask.sum(1).tolist(), strict=True)]
        inputs = self.extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            states = self.whole[0](inputs, output_hidden_states=True).hidden_states
        time_steps = -(-waveform.shape[1] // 320)
        features = torch.stack([states[layer][:, :time_steps] for layer in self.layers], dim=1).clone()
        return features, torch.arange(time_steps) < -(-mask.sum(1) // 320)[:, None]


def epoch_seconds(manifest: Path, encoder: WhisperAudioEncoder, cached: bool, epochs: int, batches: int) -> float:
    """Returns the seconds per clip of the median training epoch, without the first if there are several."""
    pl.seed_everything(0)
    classes = list(EMOTIONS.values())
    model = EmotionModel(classes, encoder, layer_mix=LayerConcat, gate=NoGate, fusion=Concatenation)
    stopwatch = Stopwatch()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[stopwatch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        limit_train_batches=batches,
        use_distributed_sampler=False,
    )
    datamodule = EmotionDataModule(classes, str(manifest), batch_size=32)
    trainer.fit(EmotionSystem(model, cache_features=cached), datamodule=datamodule)
    later = sorted(stopwatch.seconds[1:] or stopwatch.seconds)
    return later[len(later) // 2] / (32 * batches)


def main() -> None:
    torch.set_num_threads(2)
    table = ravdess(corpus("ravdess"))
    table["split"] = [
        "val" if speaker in ("23", "24") else "test" if speaker == "22" else "train" for speaker in table["speaker"]
    ]
    paths = [Path(path) for path in table["path"]]
    encode, encode_padded = encode_seconds(paths[:: len(paths) // NUM_ENCODED])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to((cache_folder() / "models").resolve())
        os.environ["MMEMO_CACHE"] = folder
        manifest = Manifest(table, Path(folder) / "ravdess.csv").write(Path(folder) / "ravdess.csv")
        encoder = WhisperAudioEncoder(layers=[2, 3, 4], frame_average=4)
        epoch_cached = epoch_seconds(manifest, encoder, cached=True, epochs=5, batches=36)
        epoch = epoch_seconds(manifest, encoder, cached=False, epochs=1, batches=12)
        epoch_padded = epoch_seconds(manifest, PaddedWhisper(layers=[2, 3, 4]), cached=False, epochs=1, batches=4)
    record(
        "features",
        {
            "encode_speedup": round(encode_padded / encode, 1),
            "epoch_speedup": round(epoch_padded / epoch_cached, 1),
            "epoch_speedup_over_real_length": round(epoch / epoch_cached, 1),
            "seconds_per_clip": round(encode, 4),
            "seconds_per_clip_ordinary": round(encode_padded, 4),
            "epoch_seconds_per_clip_cached": round(epoch_cached, 5),
            "epoch_seconds_per_clip_real_length": round(epoch, 4),
            "epoch_seconds_per_clip_ordinary": round(epoch_padded, 4),
        },
    )


if __name__ == "__main__":
    main()
