"""Evidence: intervals, seeds, calibration, conformal sets, leak audit, tuning and the report, measured.

    python benchmarks/evidence.py                                # all; resumable, several may work on one folder
    python benchmarks/evidence.py --only simulation report       # these alone; the others keep their last figures
    python benchmarks/evidence.py --only tuned --kept            # figures anew of predictions in results/predictions

- simulation: how often 95 % intervals hold the truth when speakers differ, resampling speakers or utterances.
- frozen, tuned: RAVDESS, six published folds, three seeds; calibration error before and after a temperature fitted on
  other speakers than those judged; conformal sets over 200 random divisions of the speakers; paired comparison. Each
  seed's out-of-fold predictions are kept beside the figures, so that nobody need train to check them; the tuned recipe
  takes half a day on two cores, and `--seeds 0 1` leaves seeds out.
- leaks: the audit on RAVDESS, and on a corpus made of it in which the speaker gives the label away.
- tune: 20 trials of TPE on folds of fold 1's training side, two workers.
- report: of 5000 made-up utterances of 50 speakers.
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
from ravdess_finetuned import FROZEN, manifest, settings, trained
from ravdess_finetuned import SEEDS as RUN
from record import HERE, RESULTS, corpus, record

from mmemo.cli.main import main as mmemo
from mmemo.data.audio_facts import audio_facts
from mmemo.data.leaks import shared, side_doors
from mmemo.data.manifest import SPLITS, Manifest, read_manifest
from mmemo.data.splits import FoldFile
from mmemo.evaluation.calibration import brier, coverage_over_splits, out_of_speaker, reliability
from mmemo.evaluation.comparison import compare_runs
from mmemo.evaluation.predictions import Predictions, read_predictions
from mmemo.evaluation.statistics import Tallies, intervals
from mmemo.files import write_table

PREDICTIONS = RESULTS / "predictions"
SPACE = HERE.parent / "configs" / "spaces" / "frozen.yaml"
PARTS = ("simulation", "report", "leaks", "frozen", "tuned", "tune")


def simulation(num_trials: int = 1000, num_speakers: int = 24, num_each: int = 60) -> dict[str, Any]:
    """Speakers are as hard as a beta distribution says, whose mean is the truth."""
    random = np.random.default_rng(0)
    truth, covered = 0.75, {"clustered": 0, "naive": 0}
    speakers = np.repeat(np.arange(num_speakers), num_each)
    target = np.tile(np.arange(num_each) % 4, num_speakers)
    for trial in range(num_trials):
        ease = random.beta(6, 2, num_speakers)
        right = random.random(len(target)) < ease[speakers]
        said = np.where(right, target, (target + 1) % 4)
        for kind, groups in (("clustered", speakers), ("naive", np.arange(len(target)))):
            counts = Tallies.of_classes(target, said, groups, 4)
            found = intervals(counts, num_samples=400, seed=trial)["uar"][0]
            covered[kind] += found.low <= truth <= found.high
    return {f"{kind}_coverage": round(100 * count / num_trials, 1) for kind, count in covered.items()}


def of_seeds(name: str, seeds: Sequence[int], kept: bool) -> Predictions:
    """Out-of-fold predictions of one recipe, each seed's written to ``results/predictions``.

    Args:
        name: ``frozen`` or ``tuned``.
        seeds: Which.
        kept: Takes what was written there before, and trains the other seeds alone.
    """
    paths = {seed: PREDICTIONS / f"{name}_seed{seed}.parquet" for seed in seeds}
    for seed, path in paths.items():
        if kept and path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        write_table(path, trained(name, [seed]).predictions)
    tables = [read_predictions(path) for path in paths.values()]
    return tables[0]._replace(table=pd.concat([one.table for one in tables], ignore_index=True)).labelled


def of_recipe(name: str, seeds: Sequence[int], kept: bool) -> dict[str, Any]:
    """Figures of one recipe."""
    found = of_seeds(name, seeds, kept)
    interval = intervals(found.tallies())["uar"][0]
    by_seed, before, after, scores, coverage, size = [], [], [], [], [], []
    for seed in seeds:
        one = found._replace(table=found.table[found.table["seed"] == seed].reset_index(drop=True))
        probs, target, speakers = one.probs, one.target, one.speakers
        calibrated = out_of_speaker(probs, target, speakers)
        by_seed.append(100 * intervals(one.tallies(), num_samples=2)["uar"][0].value)
        before.append(reliability(probs, target).ece)
        after.append(reliability(calibrated, target).ece)
        scores.append((brier(probs, target), brier(calibrated, target)))
        sets = coverage_over_splits(probs, target, speakers)
        coverage.append(sets["coverage"])
        size.append(sets["size"])
    return {
        f"ua_{name}": round(100 * interval.value, 2),
        f"ua_{name}_interval": [round(100 * interval.low, 2), round(100 * interval.high, 2)],
        f"ua_{name}_seeds": [round(value, 2) for value in by_seed],
        f"ece_before_{name}": round(statistics.mean(before), 4),
        f"ece_after_{name}": round(statistics.mean(after), 4),
        f"brier_{name}": [round(statistics.mean(pair), 4) for pair in zip(*scores, strict=True)],
        f"conformal_coverage_{name}": round(100 * statistics.mean(coverage), 2),
        f"conformal_set_size_{name}": round(statistics.mean(size), 3),
    }


def frozen(seeds: Sequence[int], kept: bool) -> dict[str, Any]:
    figures = of_recipe("frozen", seeds, kept)
    return figures | {
        "ece_before": figures["ece_before_frozen"],
        "ece_after": figures["ece_after_frozen"],
        "conformal_coverage": figures["conformal_coverage_frozen"],
        "conformal_set_size": figures["conformal_set_size_frozen"],
    }


def tuned(seeds: Sequence[int], kept: bool) -> dict[str, Any]:
    figures = of_recipe("tuned", seeds, kept)
    found = compare_runs(of_seeds("frozen", seeds, True), of_seeds("tuned", seeds, True))
    return figures | {
        "tuned_minus_frozen": round(100 * found.difference.value, 2),
        "tuned_minus_frozen_interval": [round(100 * found.difference.low, 2), round(100 * found.difference.high, 2)],
        "tuned_minus_frozen_p": round(found.p_permutation, 4),
        "tuned_minus_frozen_p_folds": round(found.p_folds, 4),
        "visible_difference": round(100 * found.visible, 2),
    }


def leaks() -> dict[str, Any]:
    """Flags on RAVDESS as it is, and where each actor keeps but two emotions of their own."""
    whole = read_manifest(manifest())
    table = whole.frame
    emotions = sorted(table["emotion"].unique())
    own = {name: set(np.roll(emotions, number)[:2]) for number, name in enumerate(sorted(table["speaker"].unique()))}
    pairs = zip(table["emotion"], table["speaker"], strict=True)
    given = Manifest(table[[emotion in own[speaker] for emotion, speaker in pairs]], whole.path)
    flags = {
        name: [door.name for door in side_doors(one, audio_facts(list(one), progress=False)) if door.flagged]
        for name, one in (("ravdess", whole), ("given", given))
    }
    folds = corpus("ravdess") / "emobox_folds.csv"
    on_two_sides = 0
    for fold in range(1, FoldFile(str(folds)).count(whole) + 1):
        sides = FoldFile(str(folds), fold, num_val_speakers=2)(whole)
        names = np.empty(len(whole), dtype=object)
        for name, rows in zip(SPLITS, sides, strict=True):
            names[rows] = name
        divided = Manifest(table.assign(split=names), whole.path)
        on_two_sides += len(shared(divided, audio_facts(list(divided), progress=False)))
    return {
        "leak_flags_ravdess": flags["ravdess"],
        "leaks_between_published_folds": on_two_sides,
        "leak_flags_speaker_gives_label": flags["given"],
    }


def tune() -> dict[str, Any]:
    """Minutes of a search by two processes, and what it found."""
    run = RUN / "tune"
    if not (RUN / "tune_warm" / "tuning.json").exists():  # features are cached then
        assert mmemo(["tune", *tune_arguments(RUN / "tune_warm"), "--trials", "1", "--judge", "false"]) == 0
    shutil.rmtree(run, ignore_errors=True)  # a search that is there already would take no time
    program = [sys.executable, "-m", "mmemo.cli.main", "tune", *tune_arguments(run), "--trials", "20"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    workers = [subprocess.Popen([*program, "--judge", "false"], env=environment) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    minutes = (time.perf_counter() - started) / 60
    assert mmemo(["tune", *tune_arguments(run), "--trials", "20"]) == 0
    found = json.loads((run / "tuning.json").read_text())
    assert found["trials"] >= 20
    return {
        "tune_minutes": round(minutes, 2),
        "tune_inner_best": round(100 * found["score"], 2),
        "tune_inner_own": round(100 * found["own_score"], 2),
        "tune_outer_best": round(100 * found["judged"]["best_uar"], 2),
        "tune_outer_own": round(100 * found["judged"]["own_uar"], 2),
        "tune_outer_p": round(found["judged"]["p"], 4),
    }


def tune_arguments(run: Path) -> list[str]:
    return ["--config", str(FROZEN), "--space", str(SPACE), "--run", str(run), "--folds", "2", *settings()]


def report() -> dict[str, Any]:
    """Seconds of `mmemo report` in a process of its own, and the page's size."""
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
    table = pd.DataFrame(
        {
            "id": [f"u{number}" for number in range(5000)], "speaker": [f"s{one:02}" for one in speakers],
            "emotion": names[target], "predicted": names[probs.argmax(1)], "fold": speakers % 5 + 1,
            **{f"prob_{name}": probs[:, place] for place, name in enumerate(classes)},
        }
    )  # fmt: skip
    table.to_parquet(folder / "predictions.parquet", index=False)
    described = table[["id", "speaker", "emotion"]].assign(
        text="made up", gender=np.where(speakers % 2, "female", "male"), age=20 + speakers, language="en"
    )
    described.to_csv(folder / "manifest.csv", index=False)
    program = [
        sys.executable,
        "-m",
        "mmemo.cli.main",
        "report",
        str(folder),
        "--manifest",
        str(folder / "manifest.csv"),
    ]
    started = time.perf_counter()
    subprocess.run(program, check=True)
    seconds = time.perf_counter() - started
    size = (folder / "report" / "report.html").stat().st_size
    return {"report_seconds": round(seconds, 2), "report_megabytes": round(size / 1e6, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kept", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    measured: set[str] = set()
    for name in options.only:
        given = (options.seeds, options.kept) if name in {"frozen", "tuned"} else ()
        figures = globals()[name](*given)
        (RUN / f"{name}.json").write_text(json.dumps(figures))
        measured |= figures.keys()
        print(name, figures, flush=True)
    found: dict[str, Any] = {}
    before = RESULTS / "evidence.json"
    if before.exists():
        found |= json.loads(before.read_text())["figures"]
    for name in PARTS:
        if (RUN / f"{name}.json").exists():
            found |= json.loads((RUN / f"{name}.json").read_text())
    record("evidence", found, measured)


if __name__ == "__main__":
    main()
