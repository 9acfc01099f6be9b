"""Real-length Whisper features against the ordinary padded ones, and training from the cache against re-encoding.

    python benchmarks/features.py

1. Whisper-base hidden states 2 to 4 of RAVDESS clips: `WhisperAudioEncoder`, clip by clip, against
   `WhisperFeatureExtractor` and `WhisperModel.encoder` on 30 s; the same clips in turn, in one process.
2. One epoch of `EmotionSystem` on these clips, through Lightning's loop, reading the cache, against the same
   with the encoder in every step: on the real length, and as it is ordinarily done, on 30 s.
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
from transformers import WhisperFeatureExtractor

from mmemo import EmotionDataModule, EmotionModel, EmotionSystem, pretrained
from mmemo.data.audio import read_audio
from mmemo.data.corpora.ravdess import EMOTIONS, ravdess
from mmemo.data.manifest import Manifest
from mmemo.models import Concatenation, LayerConcat, NoGate, WhisperAudioEncoder

ENCODED = 96  # clips timed in part 1
EPOCHS = 4  # timed from the cache; the first one warms up


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


def epoch_seconds(manifest: Path, cached: bool, epochs: int) -> list[float]:
    """Seconds of each epoch of training on every clip of a manifest."""
    pl.seed_everything(0)
    classes = list(EMOTIONS.values())
    model = partial(
        EmotionModel,
        audio_encoder=WhisperAudioEncoder(layers=[2, 3, 4], frame_average=4),
        layer_mix=LayerConcat,
        gate=NoGate,
        fusion=Concatenation,
    )
    system = EmotionSystem(classes, model, cache_features=cached)
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
        use_distributed_sampler=False,
    )
    trainer.fit(system, datamodule=EmotionDataModule(str(manifest), classes))
    return stopwatch.seconds


def main() -> None:
    torch.set_num_threads(2)
    frame = ravdess(corpus("ravdess"))
    frame["split"] = [
        "val" if speaker in ("23", "24") else "test" if speaker == "22" else "train" for speaker in frame["speaker"]
    ]
    paths = [Path(path) for path in frame["path"]]
    ours, ordinary = encode_speed(paths[:: len(paths) // ENCODED])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to((pretrained.cache_root() / "models").resolve())
        os.environ["MMEMO_CACHE"] = folder
        manifest = Manifest(frame, Path(folder) / "ravdess.csv").write(Path(folder) / "ravdess.csv")
        started = time.perf_counter()
        from_cache = epoch_seconds(manifest, cached=True, epochs=EPOCHS)
        seconds_features = time.perf_counter() - started - sum(from_cache)
        reencoding = epoch_seconds(manifest, cached=False, epochs=1)[0]
    cached = sorted(from_cache[1:])[(EPOCHS - 1) // 2]
    num_clips = int((frame["split"] == "train").sum())
    ordinary_epoch = reencoding + num_clips * (ordinary - ours)
    record(
        "features",
        {
            "encode_speedup": round(ordinary / ours, 1),
            "epoch_speedup": round(ordinary_epoch / cached, 1),
            "epoch_speedup_over_real_length": round(reencoding / cached, 1),
            "seconds_per_clip": round(ours, 4),
            "seconds_per_clip_ordinary": round(ordinary, 4),
            "seconds_epoch_cached": round(cached, 2),
            "seconds_epoch_reencoding_real_length": round(reencoding, 1),
            "seconds_features_all_clips": round(seconds_features, 1),
            "clips_per_epoch": num_clips,
        },
    )


if __name__ == "__main__":
    main()
