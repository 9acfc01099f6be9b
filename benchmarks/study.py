"""Synthetic health study from RAVDESS: actors are participants; fear and sadness in the voice are the outcome.

    python benchmarks/study.py      # resumable

Each actor has two visits. A visit has 20 clips of one repetition, drawn so that the share of fear and sadness differs
between actors and rises between visits for half of them. An interviewer (speakers of EMO-DB) speaks in between and is
filtered out. The study runs `configs/study_example.yaml` offline, with calibration on inner folds.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ravdess_finetuned import make_manifest as make_ravdess_manifest
from record import HERE, corpus, record

from mmemo.cli.app import main as mmemo
from mmemo.data.clinical_study import ClinicalStudy
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.report.report import write_report

CONFIG = HERE.parent / "configs" / "study_example.yaml"
RUN = HERE.parent / "runs" / "bench_study"
OUTCOME = ["fear", "sadness"]


def make_manifest() -> Path:
    """Writes the manifest of participants and interviewers, once."""
    path = RUN / "study.csv"
    if path.exists():
        return path
    RUN.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    manifest = read_manifest(make_ravdess_manifest())
    table = manifest.frame.copy()
    table["session"] = "visit " + table["id"].str.split("-").str[5].str.lstrip("0")  # repetition 1 or 2
    visits = []
    for number, (_, actor) in enumerate(table.groupby("speaker")):
        share = random.uniform(0.1, 0.5)
        for name, visit in actor.groupby("session"):
            target_share = share + (0.25 if number % 2 and name == "visit 2" else 0.0)
            is_outcome = visit["emotion"].isin(OUTCOME).to_numpy()
            weights = np.where(is_outcome, target_share / is_outcome.sum(), (1 - target_share) / (~is_outcome).sum())
            visits.append(visit.iloc[random.choice(len(visit), 20, replace=False, p=weights / weights.sum())])
    participants = pd.concat(visits).assign(role="participant")
    emodb_path = RUN / "interviewers.csv"
    assert mmemo(["corpus", "emodb", str(corpus("emodb")), "--out", str(emodb_path)]) == 0
    interviewers = read_manifest(emodb_path).frame.iloc[::6]
    interviewers = interviewers.assign(role="interviewer", session="visit 1", split=None)
    folder = manifest.path.parent
    interviewers["path"] = [os.path.relpath(emodb_path.parent / clip, folder) for clip in interviewers["path"]]
    return Manifest(pd.concat([participants, interviewers], ignore_index=True), manifest.path).write(path)


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    run = RUN / "nested"
    changes = ["--set", f"data.manifest={make_manifest()}"]
    assert mmemo(["crossval", "--config", str(CONFIG), "--run", str(run), "--nested", "3", *changes]) == 0
    content = write_report(
        run, study=ClinicalStudy(OUTCOME, visit="session", covariates=["gender"], name="Fear and sadness in the voice")
    ).content
    assert content.study is not None
    assert content.study.mean_change is not None
    assert content.confidence is not None
    before, after = content.confidence.calibration.before, content.confidence.calibration.after
    assert after is not None
    ccc, change = content.study.agreement["CCC"], content.study.mean_change
    true_changes = np.array([row["true_change"] for row in content.study.changes])
    record(
        "study",
        {
            "participants": content.study.num_participants,
            "ccc_participants": round(ccc.value, 3),
            "ccc_participants_interval": [round(ccc.low, 3), round(ccc.high, 3)],
            "mean_change": round(change.value, 3),
            "mean_change_interval": [round(change.low, 3), round(change.high, 3)],
            "mean_change_true": round(float(true_changes.mean()), 3),
            "ece_before": round(before.ece, 4),
            "ece_after_inner_folds": round(after.ece, 4),
        },
    )


if __name__ == "__main__":
    main()
