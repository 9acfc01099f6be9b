"""Speaker calibration on RAVDESS: six published folds, frozen Whisper base, UAR by number of unlabelled utterances.

    python benchmarks/speaker.py              # finished folds are kept

Runs `configs/ravdess_calibrated.yaml`, then evaluates the same models again with 0 to all utterances of each test
speaker, drawn at random and averaged over 20 seeds. No setting was chosen on these folds. `ua_single_class` enrols
with one emotion only, which breaks the assumption of the calibration; it is the worst of all emotions.
"""

from __future__ import annotations

import os
import statistics
from functools import partial

import numpy as np
import torch
from record import HERE, corpus, record

from mmemo.data import Enrolment
from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.enrolment import EnrolledSpeaker
from mmemo.data.manifest import Manifest
from mmemo.data.table import DataTable
from mmemo.evaluation.statistics import uar
from mmemo.studies.crossval import crossval
from mmemo.training.experiment import Experiment
from mmemo.training.experiment_cli import read_experiment, read_runs
from mmemo.training.forward import run_model
from mmemo.training.speakers import evaluating, speaker_profiles

CONFIG = HERE.parent / "configs" / "ravdess_calibrated.yaml"
RUN = HERE.parent / "runs" / "bench_speaker"
NUM_SEEDS = 20
COUNTS = (1, 3, 5, 10, 20, 40)


class OneEmotion(Enrolment):
    """Enrols the utterances of one emotion only; it reads labels, to show what goes wrong.

    Args:
        emotion: The emotion.
    """

    def __init__(self, emotion: str) -> None:
        super().__init__()
        self.emotion = emotion

    def choose(self, table: DataTable, rows: np.ndarray) -> list[EnrolledSpeaker]:
        emotions = table.manifest.frame["emotion"].to_numpy()
        speakers = super().choose(table, rows)
        return [
            EnrolledSpeaker(speaker.name, speaker.rows, speaker.rows[emotions[speaker.rows] == self.emotion])
            for speaker in speakers
        ]


def percent_uar(experiment: Experiment, enrolment: Enrolment) -> float:
    """Returns the UAR in percent on the test rows of a fold, calibrated by an enrolment.

    Args:
        experiment: Experiment of the fold, after ``test()``.
        enrolment: Utterances that calibrate to each test speaker.
    """
    model, data = experiment.system.model, experiment.data
    data.enrolment = enrolment
    forward = partial(run_model, model)
    profiles = speaker_profiles(data, model, forward, data.table.split.test)
    predicted, target = [], []
    with evaluating(model):
        for batch in data.test_dataloader():
            logits = forward(profiles.calibrated(batch)).logits
            assert logits is not None
            predicted.append(logits.argmax(1))
            target.append(batch.target)
    return 100 * uar(torch.cat(target).numpy(), torch.cat(predicted).numpy())


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(ravdess(corpus("ravdess")), RUN / "ravdess.csv").write(RUN / "ravdess.csv")
    fold_file = corpus("ravdess") / "emobox_folds.csv"
    changes = {"data.manifest": str(manifest), "data.split.init_args.path": str(fold_file)}
    result = crossval(read_experiment(CONFIG, changes), RUN / "folds", notify=print)
    values: dict[str, list[float]] = {}
    for experiment in read_runs(RUN / "folds"):
        experiment.test()
        for emotion in experiment.data.classes:
            values.setdefault(f"only {emotion}", []).append(percent_uar(experiment, OneEmotion(emotion)))
        values.setdefault("0", []).append(percent_uar(experiment, Enrolment(num_utterances=0)))
        values.setdefault("all", []).append(percent_uar(experiment, Enrolment()))
        for count in COUNTS:
            draws = [percent_uar(experiment, Enrolment(count, "random", seed=seed)) for seed in range(NUM_SEEDS)]
            values.setdefault(str(count), []).append(statistics.mean(draws))
        print({name: round(fold_values[-1], 2) for name, fold_values in values.items()}, flush=True)
    mean = {name: round(statistics.mean(fold_values), 2) for name, fold_values in values.items()}
    assert abs(mean["all"] - 100 * statistics.mean(result.metrics["test/uar"])) < 0.01
    record(
        "speaker",
        {
            "ua_uncalibrated": mean["0"],
            **{f"ua_enrol{count}": mean[str(count)] for count in COUNTS},
            "ua_all": mean["all"],
            "ua_single_class": min(value for name, value in mean.items() if name.startswith("only")),
            "ua_all_folds": [round(value, 2) for value in values["all"]],
        },
    )
    draw_curve({int(name): value for name, value in mean.items() if name.isdecimal()} | {60: mean["all"]})


def draw_curve(points: dict[int, float]) -> None:
    """Draws the UAR against the number of enrolled utterances.

    Args:
        points: Number of utterances -> UAR in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    counts = sorted(points)
    axes.plot(counts, [points[count] for count in counts], marker="o", color="tab:blue")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("unlabelled utterances of each test speaker")
    axes.set_ylabel("UAR, %")
    axes.grid(alpha=0.3)
    path = HERE.parent / "docs" / "pictures" / "speaker.png"
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
