"""A synthetic health study made from RAVDESS: actors as participants, fear and sadness in their voice as the outcome.

    python benchmarks/study.py      # resumable

Each actor comes twice. At each visit 20 of the clips of one repetition are "heard", drawn so that the share of fear and
sadness differs between actors and grows between visits for half of them. An interviewer (EMO-DB's speakers) talks in
between, and is filtered out. `configs/study_example.yaml` is run, calibrated on inner folds, offline.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import torch
from ravdess_finetuned import manifest as ravdess
from record import HERE, corpus, record

from mmemo.cli.main import main as mmemo
from mmemo.data.clinical_study import Study
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.report.report import report

CONFIG = HERE.parent / "configs" / "study_example.yaml"
RUN = HERE.parent / "runs" / "bench_study"
OUTCOME = ["fear", "sadness"]


def manifest() -> str:
    """Participants' and interviewers' utterances; made once."""
    path = RUN / "study.csv"
    if path.exists():
        return str(path)
    RUN.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    whole = read_manifest(ravdess())
    frame = whole.frame.copy()
    frame["session"] = "visit " + frame["id"].str.split("-").str[5].str.lstrip("0")  # repetition 1 or 2
    chosen = []
    for number, (actor, rows) in enumerate(frame.groupby("speaker")):
        share = random.uniform(0.1, 0.5)
        for visit, own in rows.groupby("session"):
            wanted = share + (0.25 if number % 2 and visit == "visit 2" else 0.0)
            shows = own["emotion"].isin(OUTCOME).to_numpy()
            chance = np.where(shows, wanted / shows.sum(), (1 - wanted) / (~shows).sum())
            chosen.append(own.iloc[random.choice(len(own), 20, replace=False, p=chance / chance.sum())])
        assert actor
    people = pd.concat(chosen).assign(role="participant")
    others = RUN / "interviewers.csv"
    assert mmemo(["corpus", "emodb", str(corpus("emodb")), "--out", str(others)]) == 0
    talk = read_manifest(others).frame.iloc[::6].assign(role="interviewer", session="visit 1", split=None)
    talk["path"] = [os.path.relpath(others.parent / one, whole.path.parent) for one in talk["path"]]
    Manifest(pd.concat([people, talk], ignore_index=True), whole.path).write(path)
    return str(path)


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    run = RUN / "nested"
    options = ["--config", str(CONFIG), "--run", str(run), "--nested", "3", "--data.manifest", manifest()]
    assert mmemo(["crossval", *options]) == 0
    found = report(
        run, study=Study(OUTCOME, visit="session", covariates=["gender"], name="Fear and sadness in the voice")
    )
    study = found.content["study"]
    agreement, change = study["agreement"]["CCC"], study["mean_change"]
    true = np.array([row["true_change"] for row in study["changes"]])
    record(
        "study",
        {
            "participants": study["num_participants"],
            "ccc_participants": round(agreement.value, 3),
            "ccc_participants_interval": [round(agreement.low, 3), round(agreement.high, 3)],
            "mean_change": round(change.value, 3),
            "mean_change_interval": [round(change.low, 3), round(change.high, 3)],
            "mean_change_true": round(float(true.mean()), 3),
            "ece_before": round(found.content["calibration"]["before"]["ece"], 4),
            "ece_after_inner_folds": round(found.content["calibration"]["after"]["ece"], 4),
        },
    )


if __name__ == "__main__":
    main()
