"""Real-length Whisper features against the ordinary padded ones, and training from the cache against re-encoding.

    python benchmarks/features.py

1. Whisper-base hidden states 2 to 4 of RAVDESS clips: `WhisperAudioEncoder`, clip by clip, against
   `WhisperFeatureExtractor` and `WhisperModel.encoder` on 30 s; the same clips in turn, in one process.
2. Training epochs of `EmotionSystem` through Lightning's loop in batches of 32: reading the cache, against the
   encoder in every step, as it is ordinarily done on 30 s, and on the real length. Re-encoding epochs are cut
   short (4 and 12 batches of 36), so all three are given as seconds per clip.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
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

ENCODED = 96  # clips timed in part 1


class Stopwatch(pl.Callback):
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def encode_speed(paths: list[Path]) -> tuple[float, float]:
    """Seconds per clip, ours and the ordinary way."""
    ours = WhisperAudioEncoder(layers=[2, 3, 4])
    ordinary = pretrained.load_whisper().model.encoder
    extractor = WhisperFeatureExtractor()
    waveforms = [read_audio(path) for path in paths]
    seconds = [0.0, 0.0]
    with torch.inference_mode():
        for number, waveform in enumerate([*waveforms[:2], *waveforms]):  # the first two warm up
            started = time.perf_counter()
            batch = torch.from_numpy(waveform)[None]
            ours.precompute(batch, torch.ones_like(batch, dtype=torch.bool))
            between = time.perf_counter()
            inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features
            ordinary(inputs, output_hidden_states=True)
            if number >= 2:
                seconds[0] += between - started
                seconds[1] += time.perf_counter() - between
    return seconds[0] / len(waveforms), seconds[1] / len(waveforms)


class OrdinaryWhisper(WhisperAudioEncoder):
    """The ordinary way: every clip padded to 30 s and sent through the whole encoder, in every step."""

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "whole"):
            self.whole = [pretrained.load_whisper().model.encoder]  # in a list: no part of what is trained
            self.extractor = WhisperFeatureExtractor()
        clips = [clip[:length].numpy() for clip, length in zip(waveform, mask.sum(1).tolist(), strict=True)]
        inputs = self.extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            states = self.whole[0](inputs, output_hidden_states=True).hidden_states
        time_steps = -(-waveform.shape[1] // 320)
        features = torch.stack([states[layer][:, :time_steps] for layer in self.layers], dim=1).clone()
        return features, torch.arange(time_steps) < -(-mask.sum(1) // 320)[:, None]


def epoch_seconds(manifest: Path, encoder: WhisperAudioEncoder, cached: bool, epochs: int, batches: int) -> float:
    """Seconds per clip of a training epoch, through Lightning's loop; the median epoch, the first one aside."""
    pl.seed_everything(0)
    classes = list(EMOTIONS.values())
    model = partial(EmotionModel, audio_encoder=encoder, layer_mix=LayerConcat, gate=NoGate, fusion=Concatenation)
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
    trainer.fit(EmotionSystem(classes, model, cache_features=cached), datamodule=datamodule)
    later = sorted(stopwatch.seconds[1:] or stopwatch.seconds)
    return later[len(later) // 2] / (32 * batches)


def main() -> None:
    torch.set_num_threads(2)
    frame = ravdess(corpus("ravdess"))
    frame["split"] = [
        "val" if speaker in ("23", "24") else "test" if speaker == "22" else "train" for speaker in frame["speaker"]
    ]
    paths = [Path(path) for path in frame["path"]]
    ours, ordinary = encode_speed(paths[:: len(paths) // ENCODED])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to((cache_folder() / "models").resolve())
        os.environ["MMEMO_CACHE"] = folder
        manifest = Manifest(frame, Path(folder) / "ravdess.csv").write(Path(folder) / "ravdess.csv")
        real_length = WhisperAudioEncoder(layers=[2, 3, 4], frame_average=4)
        cached = epoch_seconds(manifest, real_length, cached=True, epochs=5, batches=36)
        again = epoch_seconds(manifest, real_length, cached=False, epochs=1, batches=12)
        padded = epoch_seconds(manifest, OrdinaryWhisper(layers=[2, 3, 4]), cached=False, epochs=1, batches=4)
    record(
        "features",
        {
            "encode_speedup": round(ordinary / ours, 1),
            "epoch_speedup": round(padded / cached, 1),
            "epoch_speedup_over_real_length": round(again / cached, 1),
            "seconds_per_clip": round(ours, 4),
            "seconds_per_clip_ordinary": round(ordinary, 4),
            "epoch_seconds_per_clip_cached": round(cached, 5),
            "epoch_seconds_per_clip_real_length": round(again, 4),
            "epoch_seconds_per_clip_ordinary": round(padded, 4),
        },
    )


if __name__ == "__main__":
    main()
