"""The two-channel corpus when the words are wrong or missing: plain fused model, hardened one, and the voice alone.

    python benchmarks/adversarial_text.py      # what is there already is kept

Manifests and text backbone are those of `two_channel.py`. The hardened model is `configs/two_channel_robust.yaml`, the
plain one the same without word augmentation, the voice alone the same without a text encoder. Errors are put into
Whisper's transcripts of the test clips by `mmemo robustness`. The hardening was chosen on the dev clips, as the one
with the highest UAR on their words half with 20 % wrong words.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from record import HERE, record
from sklearn.metrics import recall_score
from two_channel import BACKBONE, manifests, text_backbone

from mmemo.studies.robustness import FOLDER, conditions, robustness
from mmemo.training.experiment import Experiment

CONFIG = HERE.parent / "configs" / "two_channel_robust.yaml"
RUN = HERE.parent / "runs" / "bench_adversarial_text"


def variants(paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The three configs."""
    found = {}
    for name in ("hardened", "plain", "audio"):
        config = yaml.safe_load(CONFIG.read_text())
        settings = config["model"]["init_args"]
        parts = settings["model"]["init_args"]
        parts["text_encoder"]["init_args"]["model_id"] = str(BACKBONE)
        config["data"]["corpora"] = [
            {"manifest": str(paths[half]), "name": half, "label_map": {"calm": None} if half == "ravdess" else {}}
            for half in ("ravdess", "spoken")
        ]
        if name != "hardened":
            del config["data"]["word_augmentation"], config["data"]["num_views"]
        if name == "audio":
            del parts["text_encoder"]
            settings["modality_dropout"] = 0.0
        config["trainer"]["default_root_dir"] = str(RUN / name)
        found[name] = config
    return found


def fit(name: str, config: dict[str, Any]) -> Path:
    """Trains a config, unless that is done."""
    run = RUN / name
    run.mkdir(parents=True, exist_ok=True)
    done, text = run / "finished", yaml.safe_dump(config, sort_keys=False)
    if not done.exists() or done.read_text() != text:
        (run / "experiment.yaml").write_text(text)
        Experiment(["fit", "--config", str(run / "experiment.yaml"), "--overwrite", "true"])
        done.write_text(text)
    return run


def scores(run: Path, condition: str) -> dict[str, float]:
    """UAR in per cent on the union and on each half, from the report's predictions."""
    (path,) = (run / FOLDER / "predictions").glob(f"{condition}_*.parquet")
    table = pd.read_parquet(path)
    halves = table["id"].str.split("/").str[0]
    rows = {"union": halves.notna(), "voice half": halves == "ravdess", "words half": halves == "spoken"}
    return {
        name: round(100 * float(recall_score(table["target"][some], table["predicted"][some], average="macro")), 2)
        for name, some in rows.items()
    }


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    paths = manifests()
    text_backbone()
    words = [one for one in conditions() if "words" in one.kind]
    rows = []
    for name, config in variants(paths).items():
        run = fit(name, config)
        robustness(run, words if name != "audio" else [])
        for condition in ["clean", *(one.name for one in words)] if name != "audio" else ["clean"]:
            rows.append({"model": name, "condition": condition, **scores(run, condition)})
    table = pd.DataFrame(rows).set_index(["model", "condition"])

    def uar(name: str, condition: str, half: str = "union") -> float:
        return float(table.loc[(name, condition), half])

    record(
        "adversarial_text",
        {
            "uar": uar("hardened", "clean"),
            "uar_plain": uar("plain", "clean"),
            "uar_audio": uar("audio", "clean"),
            "uar_no_words": uar("hardened", "no words"),
            "uar_no_words_plain": uar("plain", "no words"),
            "no_words_minus_audio": round(uar("hardened", "no words") - uar("audio", "clean"), 2),
            "words20_loss": round(
                uar("hardened", "clean", "words half") - uar("hardened", "words 20 %", "words half"), 2
            ),
            "words20_loss_plain": round(
                uar("plain", "clean", "words half") - uar("plain", "words 20 %", "words half"), 2
            ),
            "table": rows,
        },
    )


if __name__ == "__main__":
    main()
