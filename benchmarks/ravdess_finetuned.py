"""RAVDESS, six published folds: the last blocks of Whisper base trained on cached views; what words do to the voice.

    python benchmarks/ravdess_finetuned.py                     # resumable fold by fold
    python benchmarks/ravdess_finetuned.py --inner 5 --set --model.init_args.mixup 0   # to choose by

The second form judges any settings on the training-side speakers of fold 1 alone, in grouped folds of their own.
Choices in `configs/ravdess_whisper_base_finetuned.yaml` were made on those speakers, who are the test speakers of folds
2 to 6: no weight saw a test speaker, but only fold 1 is free of their influence on the settings, so it is also given by
itself.
Whether words that say nothing hurt is measured with frozen encoders (`configs/ravdess_whisper_base.yaml`), with
Whisper's words and without.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import yaml
from record import HERE, corpus, record

from mmemo.cli.main import main as mmemo
from mmemo.studies.crossval import CrossValidation, crossval, repeated, spread

CONFIG = HERE.parent / "configs" / "ravdess_whisper_base_finetuned.yaml"
FROZEN = HERE.parent / "configs" / "ravdess_whisper_base.yaml"
RUN = HERE.parent / "runs" / "bench_ravdess_finetuned"
SEEDS = HERE.parent / "runs" / "bench_evidence"
CPU = Path("/proc/cpuinfo")
BF16 = not CPU.exists() or any(flag in CPU.read_text() for flag in ("amx_bf16", "avx512_bf16"))


def settings() -> list[str]:
    """Where table and folds are."""
    return [
        "--data.manifest", str(manifest()),
        "--data.split.init_args.path", str(corpus("ravdess") / "emobox_folds.csv"),
    ]  # fmt: skip


def trained(name: str, seeds: Sequence[int] = (0,)) -> CrossValidation:
    """The published folds by one recipe; trained once for all benchmarks.

    Args:
        name: ``frozen`` or ``tuned``.
        seeds: Which.
    """
    options = settings() + (precision() if name == "tuned" else [])
    return repeated(CONFIG if name == "tuned" else FROZEN, SEEDS / name, seeds, options)


def precision() -> list[str]:
    """32 bits where the processor cannot multiply 16: they would be slower there."""
    return [] if BF16 else ["--trainer.precision", "32-true"]


def manifest() -> Path:
    """RAVDESS with Whisper's words; made once."""
    RUN.mkdir(parents=True, exist_ok=True)
    silent, heard = RUN / "ravdess_silent.csv", RUN / "ravdess.csv"
    if not heard.exists():
        assert mmemo(["corpus", "ravdess", str(corpus("ravdess")), "--out", str(silent)]) == 0
        assert mmemo(["transcribe", str(silent), "--language", "en", "--out", str(heard)]) == 0
    return heard


def fused_config() -> Path:
    """The frozen recipe with a text encoder beside the audio encoder."""
    config = yaml.safe_load(FROZEN.read_text())
    settings = config["model"]["init_args"]
    settings["model"]["init_args"]["text_encoder"] = {
        "class_path": "mmemo.models.HuggingFaceTextEncoder",
        "init_args": {"layers": [6], "pooled": True},
    }
    path = RUN / "fused.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def inner(num_folds: int, changes: list[str]) -> None:
    """Judges settings on the training-side speakers of fold 1."""
    table = pd.read_csv(manifest(), dtype=str)
    held_out = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"][0].split()
    path = RUN / "training_side.csv"
    table[~table["speaker"].isin(held_out)].to_csv(path, index=False)
    config = yaml.safe_load(CONFIG.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": num_folds, "num_val_speakers": 0},
    }
    config["data"]["manifest"] = str(path)
    changed = RUN / "inner.yaml"
    changed.write_text(yaml.safe_dump(config, sort_keys=False))
    result = crossval(changed, RUN / f"inner_{abs(hash(tuple(changes))):x}_{time.time():.0f}", changes)
    uar = [100 * value for value in result.metrics["test/uar"]]
    print(changes, [round(value, 1) for value in uar], f"mean {spread(uar)[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inner", type=int)
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    if options.inner:
        inner(options.inner, options.set)
        return
    alone = trained("tuned")
    uar = [100 * value for value in alone.metrics["test/uar"]]
    voice = [100 * value for value in trained("frozen").metrics["test/uar"]]
    both = [100 * value for value in crossval(fused_config(), RUN / "frozen_fused", settings()).metrics["test/uar"]]
    record(
        "ravdess_finetuned",
        {
            "ua_mean": round(spread(uar)[0], 2),
            "ua_folds": [round(value, 2) for value in uar],
            "ua_fold1": round(uar[0], 2),
            "ua_deviation": round(spread(uar)[1], 2),
            "macro_f1_mean": round(100 * spread(alone.metrics["test/macro_f1"])[0], 2),
            "ua_audio_mean": round(spread(voice)[0], 2),
            "ua_fused_mean": round(spread(both)[0], 2),
            "ua_fused_folds": [round(value, 2) for value in both],
            "fused_minus_audio": round(spread(both)[0] - spread(voice)[0], 2),
        },
    )


if __name__ == "__main__":
    main()
