"""The published experiment: RAVDESS, six speaker-disjoint folds, frozen Whisper base.

    python benchmarks/ravdess_frozen.py

Runs `configs/ravdess_whisper_base.yaml` on an empty feature cache: all features first, then all six folds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from record import HERE, corpus, record

from mmemo import pretrained
from mmemo.data.audio_facts import audio_facts
from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.settings import cache_folder
from mmemo.studies.crossval import crossval, spread
from mmemo.training.experiment import Experiment
from mmemo.training.features import Clip, FeatureCache, cache_audio

CONFIG = HERE.parent / "configs" / "ravdess_whisper_base.yaml"


def main() -> None:
    run = HERE.parent / "runs" / "bench_ravdess_frozen"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    manifest = Manifest(ravdess(corpus("ravdess")), run / "ravdess.csv").write(run / "ravdess.csv")
    overrides = ["--data.manifest", str(manifest)]
    overrides += ["--data.split.init_args.path", str(corpus("ravdess") / "emobox_folds.csv")]
    pretrained.resolve("openai/whisper-base")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to((cache_folder() / "models").resolve())
        os.environ["MMEMO_CACHE"] = folder
        started = time.perf_counter()
        encoder = Experiment(["--config", str(CONFIG), *overrides], run=False).model.model.encoder("audio")
        utterances = list(read_manifest(manifest))
        facts = audio_facts(utterances)
        clips = {fact.content: Clip(utterance) for fact, utterance in zip(facts, utterances, strict=True) if fact}
        cache_audio(encoder, clips, FeatureCache(encoder.fingerprint()))
        features = time.perf_counter()
        result = crossval(CONFIG, run / "folds", overrides)
        folds = time.perf_counter()
    uar = [100 * value for value in result.metrics["test/uar"]]
    record(
        "ravdess_frozen",
        {
            "ua_mean": round(spread(uar)[0], 2),
            "ua_folds": [round(value, 2) for value in uar],
            "ua_deviation": round(spread(uar)[1], 2),
            "macro_f1_mean": round(100 * spread(result.metrics["test/macro_f1"])[0], 2),
            "seconds_features": round(features - started, 1),
            "seconds_folds": round(folds - features, 1),
        },
    )


if __name__ == "__main__":
    main()
