"""RAVDESS, six published speaker-disjoint folds, frozen Whisper base.

    python benchmarks/ravdess_frozen.py

Runs `configs/ravdess_whisper_base.yaml` with an empty feature cache: first all features, then all six folds.
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
from mmemo.studies.crossval import crossval, mean_and_deviation
from mmemo.training.experiment_cli import read_experiment
from mmemo.training.feature_cache import FeatureCache
from mmemo.training.features import Clip, cache_audio

CONFIG = HERE.parent / "configs" / "ravdess_whisper_base.yaml"


def main() -> None:
    run = HERE.parent / "runs" / "bench_ravdess_frozen"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    manifest = Manifest(ravdess(corpus("ravdess")), run / "ravdess.csv").write(run / "ravdess.csv")
    fold_file = corpus("ravdess") / "emobox_folds.csv"
    changes = {"data.manifest": str(manifest), "data.split.init_args.path": str(fold_file)}
    pretrained.resolve("openai/whisper-base")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to((cache_folder() / "models").resolve())
        os.environ["MMEMO_CACHE"] = folder
        started = time.perf_counter()
        experiment = read_experiment(CONFIG, changes)
        encoder = experiment.system.model.encoder("audio")
        utterances = list(read_manifest(manifest))
        facts = audio_facts(utterances)
        clips = {fact.content: Clip(utterance) for fact, utterance in zip(facts, utterances, strict=True) if fact}
        cache_audio(encoder, clips, FeatureCache(encoder.fingerprint()))
        cached = time.perf_counter()
        result = crossval(experiment, run / "folds")
        finished = time.perf_counter()
    uar = [100 * value for value in result.metrics["test/uar"]]
    record(
        "ravdess_frozen",
        {
            "ua_mean": round(mean_and_deviation(uar)[0], 2),
            "ua_folds": [round(value, 2) for value in uar],
            "ua_deviation": round(mean_and_deviation(uar)[1], 2),
            "macro_f1_mean": round(100 * mean_and_deviation(result.metrics["test/macro_f1"])[0], 2),
            "seconds_features": round(cached - started, 1),
            "seconds_folds": round(finished - cached, 1),
        },
    )


if __name__ == "__main__":
    main()
