"""Gradient reversal: the speaker taken out of the fused vector, and RAVDESS -> EMO-DB with and without it.

    python benchmarks/domain.py      # what is there already is kept

Speaker: `configs/ravdess_domain.yaml` on published folds 1 and 2, and the same without its hook; a linear probe looks
for the training speakers and for the test speakers in the fused vectors. Its settings were chosen on the actors of
fold 3 by models that saw none of folds 1 to 3.
Transfer: trained on RAVDESS's four emotions that EMO-DB has, judged on EMO-DB; with the hook, five of its ten speakers
are heard in training without their labels and the other five judged, in turns.
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
from mmemo.training.experiment import Experiment

CONFIG = HERE.parent / "configs" / "ravdess_domain.yaml"
RUN = HERE.parent / "runs" / "bench_domain"
SHARED = ["anger", "happiness", "neutral", "sadness"]


def trained(name: str, config: dict[str, Any]) -> Path:
    """Fits a config and writes its predictions and fused vectors, unless that is done."""
    run = RUN / name
    run.mkdir(parents=True, exist_ok=True)
    config["trainer"]["default_root_dir"] = str(run)
    text, done = yaml.safe_dump(config, sort_keys=False), run / "finished"
    if not done.exists() or done.read_text() != text:
        file = run / "experiment.yaml"
        file.write_text(text)
        Experiment(["fit", "--config", str(file), "--overwrite", "true"])
        files = ["--predictions", str(run / "predictions.csv"), "--embeddings", str(run / "vectors.parquet")]
        Experiment(["predict", "--config", str(file), *files])
        done.write_text(text)
    return run


def uar(run: Path) -> float:
    table = pd.read_csv(run / "predictions.csv", dtype={"speaker": str})
    table = table[table["side"] == "test"]
    return 100 * float(recall_score(table["emotion"], table["predicted"], average="macro"))


def probed(run: Path, side: str) -> float:
    vectors = pd.read_parquet(run / "vectors.parquet")
    return 100 * linear_probe(vectors[vectors["side"] == side], "speaker").accuracy


def speaker(table: Path) -> dict[str, Any]:
    """UAR and what a probe finds, over both folds."""
    found: dict[str, list[float]] = {}
    for fold in (1, 2):
        for name in ("plain", "reversed"):
            config = yaml.safe_load(CONFIG.read_text())
            config["data"]["manifest"] = str(table)
            config["data"]["split"]["init_args"] |= {"path": str(corpus("ravdess") / "emobox_folds.csv"), "fold": fold}
            if name == "plain":
                del config["model"]["init_args"]["hooks"]
            run = trained(f"{name}_fold{fold}", config)
            found.setdefault(f"uar_{name}", []).append(uar(run))
            for side in ("train", "test"):
                found.setdefault(f"probe_{side}_{name}", []).append(probed(run, side))
    mean = {name: round(sum(values) / len(values), 2) for name, values in found.items()}
    return mean | {
        "uar_cost_points": round(mean["uar_plain"] - mean["uar_reversed"], 2),
        "probe_train_ratio": round(mean["probe_train_reversed"] / mean["probe_train_plain"], 3),
        "probe_test_ratio": round(mean["probe_test_reversed"] / mean["probe_test_plain"], 3),
    }


def transfer(acted: pd.DataFrame) -> dict[str, float]:
    """UAR on EMO-DB of models that heard labels of RAVDESS alone.

    ``plain`` never heard EMO-DB; ``heard`` had its other speakers in its batches, which moves the batch statistics, but
    nothing is reversed; ``reversed`` does that too.
    """
    german = emodb(corpus("emodb"))
    speakers = sorted(german["speaker"].unique())
    halves = [set(speakers[0::2]), set(speakers[1::2])]
    source = acted[acted["emotion"].isin(SHARED)].assign(split="train")
    found: dict[str, list[float]] = {}
    for number, judged in enumerate(halves, start=1):
        sides = ["test" if name in judged else "train" for name in german["speaker"]]
        target = german.assign(split=sides)
        judged_alone = target[target["split"] == "test"]
        paths = {
            "judged": Manifest(judged_alone, RUN / f"judged{number}.csv").write(RUN / f"judged{number}.csv"),
            "ravdess": Manifest(source, RUN / "source.csv").write(RUN / "source.csv"),
            "emodb": Manifest(target, RUN / f"emodb{number}.csv").write(RUN / f"emodb{number}.csv"),
        }
        for name in ("plain", "heard", "reversed"):
            config = yaml.safe_load(CONFIG.read_text())
            del config["data"]["manifest"]
            there = {"manifest": str(paths["emodb"]), "name": "emodb", "unlabelled": True}
            if name == "plain":
                there = {"manifest": str(paths["judged"]), "name": "emodb"}
            config["data"] |= {
                "corpora": [{"manifest": str(paths["ravdess"]), "name": "ravdess"}, there],
                "classes": SHARED,
                "split": {"class_path": "mmemo.data.OfficialSplit"},
            }
            settings = config["model"]["init_args"]
            settings["hooks"][0]["init_args"]["column"] = "corpus"
            if name == "plain":
                del settings["hooks"]
            if name == "heard":
                settings["hooks"][0]["init_args"]["weight"] = 1e-9
            found.setdefault(name, []).append(uar(trained(f"transfer_{name}{number}", config)))
    return {f"uar_emodb_{name}": round(sum(values) / len(values), 2) for name, values in found.items()}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    acted = ravdess(corpus("ravdess"))
    table = Manifest(acted, RUN / "ravdess.csv").write(RUN / "ravdess.csv")
    record("domain", speaker(table) | transfer(acted))


if __name__ == "__main__":
    main()
