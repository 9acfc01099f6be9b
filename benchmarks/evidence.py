"""Measures the evaluation methods: intervals, seeds, calibration, conformal sets, leak audit, tuning and the report.

    python benchmarks/evidence.py                                # all; resumable, processes may share the folder
    python benchmarks/evidence.py --only simulation report       # these parts only; the others keep their results
    python benchmarks/evidence.py --only tuned --kept            # recomputed from results/predictions

- simulation: coverage of 95 % intervals when speakers differ, resampling speakers or utterances.
- frozen, tuned: RAVDESS, six published folds, three seeds. Calibration error before and after a temperature fitted on
  other speakers; conformal sets over 200 random splits of the speakers; paired comparison. The out-of-fold predictions
  of each seed are stored beside the results, so that they can be checked without training. The tuned recipe takes half
  a day on two cores; `--seeds 0 1` leaves seeds out.
- leaks: the audit of RAVDESS, and of a subset in which the speaker reveals the label.
- tune: 20 trials of TPE on folds of fold 1's training side, by two processes.
- report: of 5000 simulated utterances of 50 speakers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ravdess_finetuned import FROZEN, make_manifest, manifest_settings, train_recipe
from ravdess_finetuned import SEEDS as RUN
from record import HERE, RESULTS, corpus, record

from mmemo.cli.app import main as mmemo
from mmemo.data.audio_facts import audio_facts
from mmemo.data.leaks import shared_between_splits, shortcuts
from mmemo.data.manifest import SPLITS, Manifest, read_manifest
from mmemo.data.splits import FoldFile
from mmemo.evaluation.calibration import brier_score, cross_calibrate, measure_coverage, reliability
from mmemo.evaluation.comparison import compare_runs
from mmemo.evaluation.predictions import Predictions, read_predictions
from mmemo.evaluation.statistics import SpeakerCounts, intervals
from mmemo.files import write_table

PREDICTIONS = RESULTS / "predictions"
SPACE = HERE.parent / "configs" / "spaces" / "frozen.yaml"
PARTS = ("simulation", "report", "leaks", "frozen", "tuned", "tune")


def simulation(num_trials: int = 1000, num_speakers: int = 24, num_each: int = 60) -> dict[str, Any]:
    """Measures the coverage of intervals when each speaker's accuracy is drawn from a beta distribution."""
    random = np.random.default_rng(0)
    true_uar, num_covered = 0.75, {"clustered": 0, "naive": 0}
    speakers = np.repeat(np.arange(num_speakers), num_each)
    target = np.tile(np.arange(num_each) % 4, num_speakers)
    for trial in range(num_trials):
        accuracy = random.beta(6, 2, num_speakers)  # mean 0.75
        is_correct = random.random(len(target)) < accuracy[speakers]
        predicted = np.where(is_correct, target, (target + 1) % 4)
        for kind, clusters in (("clustered", speakers), ("naive", np.arange(len(target)))):
            counts = SpeakerCounts.of_classes(target, predicted, clusters, 4)
            interval = intervals(counts, num_samples=400, seed=trial)["uar"][0]
            num_covered[kind] += interval.low <= true_uar <= interval.high
    return {f"{kind}_coverage": round(100 * count / num_trials, 1) for kind, count in num_covered.items()}


def seed_predictions(name: str, seeds: Sequence[int], kept: bool) -> Predictions:
    """Returns the out-of-fold predictions of one recipe, and writes those of each seed to ``results/predictions``.

    Args:
        name: ``frozen`` or ``tuned``.
        seeds: Random seeds.
        kept: Reads the seeds that were written before, and trains only the others.
    """
    paths = {seed: PREDICTIONS / f"{name}_seed{seed}.parquet" for seed in seeds}
    for seed, path in paths.items():
        if kept and path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        write_table(path, train_recipe(name, [seed]).predictions)
    runs = [read_predictions(path) for path in paths.values()]
    return runs[0]._replace(table=pd.concat([run.table for run in runs], ignore_index=True)).labelled


def evaluate_recipe(name: str, seeds: Sequence[int], kept: bool) -> dict[str, Any]:
    """Returns accuracy, calibration and conformal sets of one recipe."""
    predictions = seed_predictions(name, seeds, kept)
    interval = intervals(predictions.speaker_counts())["uar"][0]
    uar, ece_before, ece_after, brier, coverage, size = [], [], [], [], [], []
    for seed in seeds:
        table = predictions.table[predictions.table["seed"] == seed]
        run = predictions._replace(table=table.reset_index(drop=True))
        probs, target, speakers = run.probs, run.target, run.speakers
        calibrated = cross_calibrate(probs, target, speakers)
        uar.append(100 * intervals(run.speaker_counts(), num_samples=2)["uar"][0].value)
        ece_before.append(reliability(probs, target).ece)
        ece_after.append(reliability(calibrated, target).ece)
        brier.append((brier_score(probs, target), brier_score(calibrated, target)))
        sets = measure_coverage(probs, target, speakers)
        coverage.append(sets.coverage)
        size.append(sets.size)
    return {
        f"ua_{name}": round(100 * interval.value, 2),
        f"ua_{name}_interval": [round(100 * interval.low, 2), round(100 * interval.high, 2)],
        f"ua_{name}_seeds": [round(value, 2) for value in uar],
        f"ece_before_{name}": round(statistics.mean(ece_before), 4),
        f"ece_after_{name}": round(statistics.mean(ece_after), 4),
        f"brier_{name}": [round(statistics.mean(scores), 4) for scores in zip(*brier, strict=True)],
        f"conformal_coverage_{name}": round(100 * statistics.mean(coverage), 2),
        f"conformal_set_size_{name}": round(statistics.mean(size), 3),
    }


def frozen(seeds: Sequence[int], kept: bool) -> dict[str, Any]:
    values = evaluate_recipe("frozen", seeds, kept)
    return values | {
        "ece_before": values["ece_before_frozen"],
        "ece_after": values["ece_after_frozen"],
        "conformal_coverage": values["conformal_coverage_frozen"],
        "conformal_set_size": values["conformal_set_size_frozen"],
    }


def tuned(seeds: Sequence[int], kept: bool) -> dict[str, Any]:
    values = evaluate_recipe("tuned", seeds, kept)
    comparison = compare_runs(seed_predictions("frozen", seeds, True), seed_predictions("tuned", seeds, True))
    difference = comparison.difference
    return values | {
        "tuned_minus_frozen": round(100 * difference.value, 2),
        "tuned_minus_frozen_interval": [round(100 * difference.low, 2), round(100 * difference.high, 2)],
        "tuned_minus_frozen_p": round(comparison.p_permutation, 4),
        "tuned_minus_frozen_p_folds": round(comparison.p_folds, 4),
        "visible_difference": round(100 * comparison.detectable_difference, 2),
    }


def leaks() -> dict[str, Any]:
    """Audits RAVDESS, a subset in which each actor has only two emotions, and the published folds."""
    manifest = read_manifest(make_manifest())
    table = manifest.frame
    emotions = sorted(table["emotion"].unique())
    speakers = sorted(table["speaker"].unique())
    emotions_of = {speaker: set(np.roll(emotions, number)[:2]) for number, speaker in enumerate(speakers)}
    is_kept = [
        emotion in emotions_of[speaker] for emotion, speaker in zip(table["emotion"], table["speaker"], strict=True)
    ]
    subset = Manifest(table[is_kept], manifest.path)
    fold_file = str(corpus("ravdess") / "emobox_folds.csv")
    num_shared = 0
    for fold in range(1, FoldFile(fold_file).count_folds(manifest) + 1):
        split = FoldFile(fold_file, fold, num_val_speakers=2)(manifest)
        sides = np.empty(len(manifest), dtype=object)
        for side, rows in zip(SPLITS, split, strict=True):
            sides[rows] = side
        fold_manifest = Manifest(table.assign(split=sides), manifest.path)
        num_shared += len(shared_between_splits(fold_manifest, audio_facts(list(fold_manifest), progress=False)))
    return {
        "leak_flags_ravdess": flagged_shortcuts(manifest),
        "leaks_between_published_folds": num_shared,
        "leak_flags_speaker_gives_label": flagged_shortcuts(subset),
    }


def flagged_shortcuts(manifest: Manifest) -> list[str]:
    """Returns the properties that the leak audit flags."""
    facts = audio_facts(list(manifest), progress=False)
    return [shortcut.name for shortcut in shortcuts(manifest, facts) if shortcut.flagged]


def tune() -> dict[str, Any]:
    """Measures the minutes of a search by two processes, and evaluates its best settings."""
    run = RUN / "tune"
    if not (RUN / "tune_warm" / "tuning.json").exists():  # fills the feature cache
        assert mmemo(["tune", *tune_arguments(RUN / "tune_warm"), "--trials", "1", "--no-evaluate"]) == 0
    shutil.rmtree(run, ignore_errors=True)  # a finished search would take no time
    command = [sys.executable, "-m", "mmemo", "tune", *tune_arguments(run), "--trials", "20", "--no-evaluate"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    minutes = (time.perf_counter() - started) / 60
    assert mmemo(["tune", *tune_arguments(run), "--trials", "20"]) == 0
    search = json.loads((run / "tuning.json").read_text())
    assert search["trials"] >= 20
    return {
        "tune_minutes": round(minutes, 2),
        "tune_inner_best": round(100 * search["score"], 2),
        "tune_inner_own": round(100 * search["own_score"], 2),
        "tune_outer_best": round(100 * search["test"]["best_uar"], 2),
        "tune_outer_own": round(100 * search["test"]["own_uar"], 2),
        "tune_outer_p": round(search["test"]["p"], 4),
    }


def tune_arguments(run: Path) -> list[str]:
    """Returns the arguments that all searches share."""
    changes = [f"{key}={value}" for key, value in manifest_settings().items()]
    return ["--config", str(FROZEN), "--space", str(SPACE), "--run", str(run), "--folds", "2", "--set", *changes]


def report() -> dict[str, Any]:
    """Measures the seconds of `mmemo report` in a new process, and the size of the page."""
    folder = RUN / "report"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    classes = ["anger", "calm", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
    speakers = np.arange(5000) % 50
    target = random.integers(0, 8, 5000)
    logits = random.standard_normal((5000, 8))
    logits[np.arange(5000), target] += random.uniform(1, 3, 50)[speakers]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = np.array(classes)
    predictions = pd.DataFrame(
        {
            "id": [f"u{number}" for number in range(5000)], "speaker": [f"s{speaker:02}" for speaker in speakers],
            "emotion": names[target], "predicted": names[probs.argmax(1)], "fold": speakers % 5 + 1,
            **{f"prob_{name}": probs[:, index] for index, name in enumerate(classes)},
        }
    )  # fmt: skip
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    manifest = predictions[["id", "speaker", "emotion"]].assign(
        text="made up", gender=np.where(speakers % 2, "female", "male"), age=20 + speakers, language="en"
    )
    manifest.to_csv(folder / "manifest.csv", index=False)
    command = [sys.executable, "-m", "mmemo", "report", str(folder), "--manifest", str(folder / "manifest.csv")]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    num_bytes = (folder / "report" / "report.html").stat().st_size
    return {"report_seconds": round(seconds, 2), "report_megabytes": round(num_bytes / 1e6, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of frozen and tuned")
    parser.add_argument("--kept", action="store_true", help="read the stored predictions instead of training")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    measured: set[str] = set()
    for part in options.only:
        arguments = (options.seeds, options.kept) if part in {"frozen", "tuned"} else ()
        values = globals()[part](*arguments)
        (RUN / f"{part}.json").write_text(json.dumps(values))
        measured |= values.keys()
        print(part, values, flush=True)
    merged: dict[str, Any] = {}
    path = RESULTS / "evidence.json"
    if path.exists():
        merged |= json.loads(path.read_text())["figures"]
    for part in PARTS:
        if (RUN / f"{part}.json").exists():
            merged |= json.loads((RUN / f"{part}.json").read_text())
    record("evidence", merged, measured)


if __name__ == "__main__":
    main()
