"""RAVDESS, six published folds: fine-tuning the last blocks of Whisper base on cached views; effect of the transcripts.

    python benchmarks/ravdess_finetuned.py                     # resumable, fold by fold
    python benchmarks/ravdess_finetuned.py --inner 5 --set model.init_args.mixup=0   # evaluates settings

The second form evaluates any settings on the training-side speakers of fold 1 only, in grouped folds. The settings of
`configs/ravdess_whisper_base_finetuned.yaml` were chosen there. These speakers are the test speakers of folds 2 to 6:
no weight was trained on a test speaker, but only fold 1 is free of their influence on the settings. Its result is
therefore also reported separately.
The effect of transcripts that carry no emotion is measured with frozen encoders (`configs/ravdess_whisper_base.yaml`),
with and without Whisper's transcripts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from record import HERE, corpus, record

from mmemo.cli.app import main as mmemo
from mmemo.cli.output import parse_pairs
from mmemo.studies.crossval import CrossValidation, crossval, mean_and_deviation
from mmemo.training.experiment_cli import read_experiment

CONFIG = HERE.parent / "configs" / "ravdess_whisper_base_finetuned.yaml"
FROZEN = HERE.parent / "configs" / "ravdess_whisper_base.yaml"
RUN = HERE.parent / "runs" / "bench_ravdess_finetuned"
SEEDS = HERE.parent / "runs" / "bench_evidence"
CPU = Path("/proc/cpuinfo")
BF16 = not CPU.exists() or any(flag in CPU.read_text() for flag in ("amx_bf16", "avx512_bf16"))


def manifest_settings() -> dict[str, Any]:
    """Returns the settings for the manifest and the folds."""
    return {
        "data.manifest": str(make_manifest()),
        "data.split.init_args.path": str(corpus("ravdess") / "emobox_folds.csv"),
    }


def train_recipe(name: str, seeds: Sequence[int] = (0,)) -> CrossValidation:
    """Trains one recipe on the published folds; all benchmarks share the run.

    Args:
        name: ``frozen`` or ``tuned``.
        seeds: Random seeds.
    """
    if name == "tuned":
        return crossval(read_experiment(CONFIG, manifest_settings() | precision_settings()), SEEDS / name, seeds)
    return crossval(read_experiment(FROZEN, manifest_settings()), SEEDS / name, seeds)


def precision_settings() -> dict[str, Any]:
    """Returns float32 for processors without bfloat16 instructions, where bfloat16 is slower."""
    return {} if BF16 else {"trainer.precision": "32-true"}


def make_manifest() -> Path:
    """Writes the manifest of RAVDESS with Whisper's transcripts, once."""
    RUN.mkdir(parents=True, exist_ok=True)
    untranscribed, manifest = RUN / "ravdess_untranscribed.csv", RUN / "ravdess.csv"
    if not manifest.exists():
        assert mmemo(["corpus", "ravdess", str(corpus("ravdess")), "--out", str(untranscribed)]) == 0
        assert mmemo(["transcribe", str(untranscribed), "--language", "en", "--out", str(manifest)]) == 0
    return manifest


def make_fused_config() -> Path:
    """Writes the frozen recipe with an additional text encoder."""
    config = yaml.safe_load(FROZEN.read_text())
    settings = config["model"]["init_args"]
    settings["model"]["init_args"]["text_encoder"] = {
        "class_path": "mmemo.models.HuggingFaceTextEncoder",
        "init_args": {"layers": [6], "pooled": True},
    }
    path = RUN / "fused.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def evaluate_settings(num_folds: int, changes: list[str]) -> None:
    """Cross-validates settings on the training-side speakers of fold 1."""
    table = pd.read_csv(make_manifest(), dtype=str)
    test_actors = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"][0].split()
    path = RUN / "training_side.csv"
    table[~table["speaker"].isin(test_actors)].to_csv(path, index=False)
    config = yaml.safe_load(CONFIG.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": num_folds, "num_val_speakers": 0},
    }
    config["data"]["manifest"] = str(path)
    config_path = RUN / "inner.yaml"
    config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    experiment = read_experiment(config_path, parse_pairs(changes, "--set"))
    result = crossval(experiment, RUN / f"inner_{abs(hash(tuple(changes))):x}_{time.time():.0f}")
    uar = [100 * value for value in result.metrics["test/uar"]]
    print(changes, [round(value, 1) for value in uar], f"mean {mean_and_deviation(uar)[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inner", type=int, help="number of folds on the training-side speakers of fold 1")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="with --inner: settings as KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    if options.inner:
        evaluate_settings(options.inner, options.set)
        return
    finetuned = train_recipe("tuned")
    uar = [100 * value for value in finetuned.metrics["test/uar"]]
    audio = [100 * value for value in train_recipe("frozen").metrics["test/uar"]]
    fused_result = crossval(read_experiment(make_fused_config(), manifest_settings()), RUN / "frozen_fused")
    fused = [100 * value for value in fused_result.metrics["test/uar"]]
    record(
        "ravdess_finetuned",
        {
            "ua_mean": round(mean_and_deviation(uar)[0], 2),
            "ua_folds": [round(value, 2) for value in uar],
            "ua_fold1": round(uar[0], 2),
            "ua_deviation": round(mean_and_deviation(uar)[1], 2),
            "macro_f1_mean": round(100 * mean_and_deviation(finetuned.metrics["test/macro_f1"])[0], 2),
            "ua_audio_mean": round(mean_and_deviation(audio)[0], 2),
            "ua_fused_mean": round(mean_and_deviation(fused)[0], 2),
            "ua_fused_folds": [round(value, 2) for value in fused],
            "fused_minus_audio": round(mean_and_deviation(fused)[0] - mean_and_deviation(audio)[0], 2),
        },
    )


if __name__ == "__main__":
    main()
