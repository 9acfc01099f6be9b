"""Gradient reversal: removing the speaker from the fused vector, and transfer from RAVDESS to EMO-DB.

    python benchmarks/domain.py      # finished runs are kept

Speaker: `configs/ravdess_domain.yaml` on published folds 1 and 2, with and without its hook. A linear probe predicts
the training speakers and the test speakers from the fused vectors. The settings were chosen on the actors of fold 3,
with models that were trained on none of folds 1 to 3.
Transfer: models are trained on the four emotions of RAVDESS that EMO-DB shares, and tested on EMO-DB. With the hook,
five of its ten speakers are unlabelled training data and the other five are test speakers; then the halves are swapped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from record import HERE, corpus, record
from sklearn.metrics import recall_score

from mmemo.data.corpora.emodb import emodb
from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.manifest import Manifest
from mmemo.evaluation.probe import linear_probe
from mmemo.training.experiment_cli import ExperimentCLI

CONFIG = HERE.parent / "configs" / "ravdess_domain.yaml"
RUN = HERE.parent / "runs" / "bench_domain"
SHARED_EMOTIONS = ["anger", "happiness", "neutral", "sadness"]


def fit_and_predict(name: str, config: dict[str, Any]) -> Path:
    """Trains a config and writes its predictions and fused vectors, unless a finished run exists."""
    run = RUN / name
    run.mkdir(parents=True, exist_ok=True)
    config["trainer"]["default_root_dir"] = str(run)
    text, finished = yaml.safe_dump(config, sort_keys=False), run / "finished"
    if not finished.exists() or finished.read_text() != text:
        path = run / "experiment.yaml"
        path.write_text(text)
        ExperimentCLI(["fit", "--config", str(path), "--overwrite", "true"])
        outputs = ["--predictions", str(run / "predictions.csv"), "--embeddings", str(run / "vectors.parquet")]
        ExperimentCLI(["predict", "--config", str(path), *outputs])
        finished.write_text(text)
    return run


def measure_uar(run: Path) -> float:
    table = pd.read_csv(run / "predictions.csv", dtype={"speaker": str})
    table = table[table["side"] == "test"]
    return 100 * float(recall_score(table["emotion"], table["predicted"], average="macro"))


def probe_accuracy(run: Path, side: str) -> float:
    vectors = pd.read_parquet(run / "vectors.parquet")
    return 100 * linear_probe(vectors[vectors["side"] == side], "speaker").accuracy


def measure_speaker_removal(manifest: Path) -> dict[str, Any]:
    """Returns UAR and probe accuracies with and without gradient reversal, as means over both folds."""
    values: dict[str, list[float]] = {}
    for fold in (1, 2):
        for name in ("plain", "reversed"):
            config = yaml.safe_load(CONFIG.read_text())
            config["data"]["manifest"] = str(manifest)
            config["data"]["split"]["init_args"] |= {"path": str(corpus("ravdess") / "emobox_folds.csv"), "fold": fold}
            if name == "plain":
                del config["model"]["init_args"]["hooks"]
            run = fit_and_predict(f"{name}_fold{fold}", config)
            values.setdefault(f"uar_{name}", []).append(measure_uar(run))
            for side in ("train", "test"):
                values.setdefault(f"probe_{side}_{name}", []).append(probe_accuracy(run, side))
    mean = {name: round(sum(folds) / len(folds), 2) for name, folds in values.items()}
    return mean | {
        "uar_cost_points": round(mean["uar_plain"] - mean["uar_reversed"], 2),
        "probe_train_ratio": round(mean["probe_train_reversed"] / mean["probe_train_plain"], 3),
        "probe_test_ratio": round(mean["probe_test_reversed"] / mean["probe_test_plain"], 3),
    }


def measure_transfer(ravdess_table: pd.DataFrame) -> dict[str, float]:
    """Returns the UAR on EMO-DB of models that are trained on the labels of RAVDESS only.

    The stored results name three models. ``plain`` has no EMO-DB in training. ``unlabelled`` also has unlabelled EMO-DB
    speakers in its training batches, which changes the batch statistics, but its gradient reversal has almost no
    weight. ``reversed`` is the same with full weight.
    """
    emodb_table = emodb(corpus("emodb"))
    speakers = sorted(emodb_table["speaker"].unique())
    source = ravdess_table[ravdess_table["emotion"].isin(SHARED_EMOTIONS)].assign(split="train")
    values: dict[str, list[float]] = {}
    for number, test_speakers in enumerate((speakers[0::2], speakers[1::2]), start=1):
        sides = ["test" if speaker in test_speakers else "train" for speaker in emodb_table["speaker"]]
        target = emodb_table.assign(split=sides)
        target_test = target[target["split"] == "test"]
        test_path, path = RUN / f"emodb_test{number}.csv", RUN / f"emodb{number}.csv"
        manifests = {
            "emodb_test": Manifest(target_test, test_path).write(test_path),
            "ravdess": Manifest(source, RUN / "source.csv").write(RUN / "source.csv"),
            "emodb": Manifest(target, path).write(path),
        }
        for name in ("plain", "unlabelled", "reversed"):
            config = yaml.safe_load(CONFIG.read_text())
            del config["data"]["manifest"]
            target_corpus = {"manifest": str(manifests["emodb"]), "name": "emodb", "unlabelled": True}
            if name == "plain":
                target_corpus = {"manifest": str(manifests["emodb_test"]), "name": "emodb"}
            config["data"] |= {
                "corpora": [{"manifest": str(manifests["ravdess"]), "name": "ravdess"}, target_corpus],
                "classes": SHARED_EMOTIONS,
                "split": {"class_path": "mmemo.data.OfficialSplit"},
            }
            settings = config["model"]["init_args"]
            settings["hooks"][0]["init_args"]["column"] = "corpus"
            if name == "plain":
                del settings["hooks"]
            if name == "unlabelled":
                settings["hooks"][0]["init_args"]["weight"] = 1e-9
            values.setdefault(name, []).append(measure_uar(fit_and_predict(f"transfer_{name}{number}", config)))
    return {f"uar_emodb_{name}": round(sum(halves) / len(halves), 2) for name, halves in values.items()}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    table = ravdess(corpus("ravdess"))
    manifest = Manifest(table, RUN / "ravdess.csv").write(RUN / "ravdess.csv")
    record("domain", measure_speaker_removal(manifest) | measure_transfer(table))


if __name__ == "__main__":
    main()
