"""Tuning: Optuna proposes settings, inner folds of the training side evaluate them, test speakers are never used."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from filelock import FileLock

from mmemo.data.splits import InnerFolds, OfficialSplit
from mmemo.evaluation.comparison import compare_counts
from mmemo.evaluation.predictions import labelled_probs
from mmemo.evaluation.statistics import SpeakerCounts
from mmemo.files import checksum, write_json, write_table, write_text
from mmemo.studies.charts import draw_search
from mmemo.studies.crossval import PREDICTIONS_FILE, Notify, input_files, mean_and_deviation, no_notification, run_fold
from mmemo.studies.search_space import (
    Sampler,
    Space,
    build_sampler,
    check_space,
    decode,
    grid_size,
    own_values,
    suggest,
)
from mmemo.studies.storage import drop_stale, open_study
from mmemo.training.experiment import Experiment
from mmemo.training.experiment_cli import change_experiment
from mmemo.training.recipe import RecipeError
from mmemo.training.run_folder import CHECKPOINTS, METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

BEST_CONFIG = "best.yaml"
SUMMARY = "tuning.json"
MIN_SPEAKERS = 6
"""Outer test speakers below which a permutation test cannot give a p-value under 0.05."""


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Args:
        sampler: ``tpe`` (Bayesian; Bergstra et al. 2011), ``random``, ``grid``, or evolutionary: ``cmaes`` for numbers
            (Hansen 2016), ``nsga2`` for choices too (Deb et al. 2002).
        num_trials: Number of settings to try, by all workers together; the experiment's own are the first.
        num_folds: Number of inner folds, 2 or more.
        outer_fold: Fold of the experiment's split on whose training side the search runs.
        prune: Stop a trial after an inner fold in which its mean is below the median of the others.
        metric: Metric to maximise, such as ``uar``, ``macro_f1`` or ``ccc``. Defaults to the model's main metric.
        storage: Optuna storage that several machines share, such as ``postgresql://...``. Defaults to a SQLite file in
            the folder.
        seed: Seed of the sampler.
        evaluate: Train the best settings and the experiment's own on the whole training side, and compare them once on
            the outer test speakers.

    Raises:
        ValueError: A value is out of range, or the metric is an error.
    """

    sampler: Sampler = "tpe"
    num_trials: int = 20
    num_folds: int = 3
    outer_fold: int = 1
    prune: bool = True
    metric: str | None = None
    storage: str | None = None
    seed: int = 0
    evaluate: bool = True

    def __post_init__(self) -> None:
        if self.metric is not None and self.metric.startswith("mae"):
            raise ValueError(f"metric {self.metric}: an error, which is not to be maximised; use ccc")
        for name, value, least in (("trials", self.num_trials, 1), ("folds", self.num_folds, 2)):
            if value < least:
                raise ValueError(f"--{name} {value}: expected {least} or more")


@dataclass(frozen=True)
class TuningResult:
    """Result of a search.

    Args:
        experiment: The experiment with the best settings.
        settings: Setting -> best value.
        score: Mean over the inner folds of the best settings.
        own_score: The same for the experiment's own settings; NaN if they were not tried.
        importance: Setting -> share of the scores' variance that it explains (Hutter et al. 2014); empty with too few
            trials.
        test: Results on the outer test speakers; empty if not asked for.
        warnings: Warnings that every result must carry.
        folder: Folder of the search, with ``best.yaml``, trials and pictures.
    """

    experiment: Experiment
    settings: dict[str, Any]
    score: float
    own_score: float
    importance: dict[str, float]
    test: dict[str, float]
    warnings: list[str]
    folder: Path


@dataclass(frozen=True)
class _Search:
    """Everything that a worker needs."""

    experiment: Experiment
    space: Space
    folder: Path
    settings: SearchSettings
    notify: Notify
    key: str
    own: dict[str, Any] | None = field(default=None)

    @property
    def proposal_lock(self) -> FileLock:
        """Workers get proposals one after the other; otherwise two could get the same settings."""
        return FileLock(self.folder / ".proposal.lock")


def inner_experiment(experiment: Experiment, outer_fold: int, num_folds: int) -> Experiment:
    """Returns the experiment on folds of one training side.

    Args:
        experiment: The experiment.
        outer_fold: Fold of its split whose training side is divided.
        num_folds: Number of inner folds.

    Raises:
        ValueError: The split has no such fold.
    """
    num_outer = experiment.data.split.count_folds(experiment.data.read(fitting=True))
    if not 1 <= outer_fold <= num_outer:
        raise ValueError(f"outer fold {outer_fold}: data.split has folds 1 to {num_outer}")
    outer = copy.deepcopy(experiment.data.split)
    outer.fold = outer_fold
    held_out = 0 if isinstance(outer, OfficialSplit) else outer.num_val_speakers
    if experiment.checkpoint == "best":
        held_out = max(held_out, 1)  # the epoch is chosen on held-out speakers
    split = InnerFolds(outer, num_folds, 1, outer.group, held_out)
    return replace(experiment, data=experiment.data.with_split(split))


def tune(
    experiment: Experiment,
    space: Space,
    folder: str | Path,
    settings: SearchSettings | None = None,
    notify: Notify = no_notification,
) -> TuningResult:
    """Searches for better settings, or resumes a search. Several processes may share its folder or storage.

    Args:
        experiment: The experiment.
        space: Setting -> list of choices, or ``{low, high}`` with ``log`` or ``step``.
        folder: Folder of the search.
        settings: How to search.
        notify: Takes a line about each trial.

    Raises:
        ValueError: A setting does not exist, the folder holds another search, or the storage cannot be used.
    """
    import optuna

    settings, folder = settings or SearchSettings(), Path(folder)
    space = check_space(space)
    experiment.prepared_table()  # raises for a table or split that cannot be used
    inner = inner_experiment(experiment, settings.outer_fold, settings.num_folds)
    _check_values(experiment, space)
    key = _search_key(inner, space, settings)
    _check_same_search(folder, key)
    search = _Search(
        experiment, space, folder, settings, notify, key, own_values(experiment.settings(), space)
    )  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(settings, folder, space, key)
    with search.proposal_lock:
        if not study.trials and search.own is not None and settings.sampler != "grid":  # a grid has its own cells
            study.enqueue_trial(search.own, skip_if_exists=True)
    try:
        _run_trials(study, search)
    except optuna.exceptions.StorageInternalError as error:
        raise ValueError(
            f"{folder}: the storage of this search stopped responding ({str(error).splitlines()[0]}); finished trials "
            "are kept: start the same command again later"
        ) from None
    return _summarise(study, search)


def _run_trials(study: Study, search: _Search) -> None:
    """Runs trials until there are enough, by all workers together."""
    import optuna

    settings = search.settings
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    while (num_finished := sum(trial.state in finished for trial in study.trials)) < settings.num_trials:
        num_running = sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)
        if settings.sampler == "grid" and num_finished >= grid_size(search.space):
            break
        if num_running and num_finished + num_running >= settings.num_trials and not drop_stale(study):
            time.sleep(1.0)  # other workers run the last ones
            continue
        lock = search.proposal_lock
        with lock:
            study.sampler = build_sampler(
                settings.sampler, settings.seed, search.space, len(study.trials), settings.storage is not None
            )
            study.optimize(_objective(study, search, lock.release), n_trials=1)


def _objective(study: Study, search: _Search, release: Callable[[], None]) -> Callable[[Trial], float]:
    """Returns the function that evaluates a trial; it releases the lock once it has its settings."""
    import optuna

    settings, notify = search.settings, search.notify

    def evaluate(trial: Trial) -> float:
        trial.set_user_attr("sampler", settings.sampler)
        chosen = {key: suggest(trial, key, values) for key, values in search.space.items()}
        release()
        name = hashlib.sha256((search.key + json.dumps(chosen, sort_keys=True)).encode()).hexdigest()[:12]
        changed = inner_experiment(
            change_experiment(search.experiment, chosen), settings.outer_fold, settings.num_folds
        )
        scores: list[float] = []
        for fold in range(1, settings.num_folds + 1):
            try:
                scores.append(_score(changed, search.folder / "trials" / name, fold, settings.metric))
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
                study.enqueue_trial(trial.params)  # if a worker is killed, the storage does this
                raise KeyboardInterrupt from None
            except FloatingPointError as error:
                notify(f"trial {trial.number}: stopped, {error} {chosen}")
                raise optuna.TrialPruned from None
            mean = mean_and_deviation(scores)[0]
            trial.report(mean, fold)
            if settings.prune and fold < settings.num_folds and trial.should_prune():
                notify(f"trial {trial.number}: pruned after fold {fold} at {100 * mean:.1f} {chosen}")
                raise optuna.TrialPruned
        notify(f"trial {trial.number}: {100 * mean:.1f} {chosen}")
        return mean

    return evaluate


def _search_key(inner: Experiment, space: Space, settings: SearchSettings) -> str:
    """Returns a checksum of everything that scores depend on: settings, space, metric, and the tables themselves."""
    content = inner.settings()
    data = content["data"]
    outer = data["split"]["init_args"]["outer"]["init_args"]
    for table in (data, *(data.get("corpora") or [])):
        table["manifest"] = None  # may be elsewhere on another machine that shares the search
    outer.pop("path", None)
    content["trainer"]["default_root_dir"] = None
    sums = [checksum(path) for path in input_files(inner)]
    key = (json.dumps(content, default=str), json.dumps(dict(space), sort_keys=True), settings.metric, sums)
    return hashlib.sha256(repr(key).encode()).hexdigest()


def _check_same_search(folder: Path, key: str) -> None:
    path = folder / "search.txt"
    if path.exists() and path.read_text() != key:
        raise ValueError(
            f"{folder} holds a search with other settings, tables, space or metric; choose another folder, or delete it"
        )
    write_text(path, key)


def _check_values(experiment: Experiment, space: Space) -> None:
    """Checks that the experiment accepts every choice and both ends of every range."""
    for key, values in space.items():
        for value in values if isinstance(values, list) else [values["low"], values["high"]]:
            try:
                change_experiment(experiment, {key: value})
            except (ValueError, TypeError, RecipeError) as error:
                raise ValueError(f"space: {key}: {value!r} is not accepted: {error}") from None


def _score(experiment: Experiment, folder: Path, fold: int, metric: str | None) -> float:
    """Returns the metric of one inner fold; the trained weights are not kept."""
    fold_folder = folder / f"fold{fold}"
    score = fold_folder / "score.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".fold{fold}.lock"):  # another worker may try the same settings
        if not score.exists():
            shutil.rmtree(fold_folder, ignore_errors=True)  # of a worker that was killed
            metrics = run_fold(experiment.with_fold(fold, fold_folder))
            shutil.rmtree(fold_folder / CHECKPOINTS, ignore_errors=True)
            write_json(score, metrics)
    metrics = json.loads(score.read_text())
    name = f"test/{metric}" if metric else _main_metric(metrics)
    if name not in metrics:
        available = ", ".join(key.removeprefix("test/") for key in metrics if key.startswith("test/"))
        raise ValueError(f"metric {metric}: the model has {available}; choose one of these")
    if not math.isfinite(metrics[name]):
        raise ValueError(f"{name} of an inner fold is {metrics[name]}; choose another metric, or fewer folds")
    return float(metrics[name])


def _main_metric(metrics: Mapping[str, float]) -> str:
    return "test/uar" if "test/uar" in metrics else "test/ccc"


def _summarise(study: Study, search: _Search) -> TuningResult:
    import optuna

    settings, space, folder = search.settings, search.space, search.folder
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise ValueError(f"{folder}: no trial was finished; set more trials")
    best = max(complete, key=lambda trial: trial.value or -math.inf)
    chosen = decode(best.params, space)
    own_scores = [trial.value for trial in complete if trial.value is not None and trial.params == search.own]
    own_score = own_scores[0] if own_scores else math.nan
    importance = _importance(study, complete, space, settings.seed)
    changed = change_experiment(search.experiment, chosen)
    header = f"# Best of {len(study.trials)} trials on the training side of fold {settings.outer_fold}\n"
    write_text(folder / BEST_CONFIG, header + yaml.safe_dump(changed.settings(), sort_keys=False))
    write_table(folder / "trials.csv", study.trials_dataframe(attrs=("number", "value", "state", "duration", "params")))
    draw_search(study, importance, folder / "tuning.png")
    test = _test_once(changed, chosen, search) if settings.evaluate else {}
    results = [json.loads(path.read_text()) for path in folder.glob(f"*/*/**/{METRICS_FILE}")]
    warnings = list(dict.fromkeys(warning for result in results for warning in result["warnings"]))
    summary = {
        "settings": chosen, "score": best.value, "own_score": None if math.isnan(own_score) else own_score,
        "importance": importance, "test": test, "trials": len(study.trials), "finished": len(complete),
        "warnings": warnings,
        "samplers": sorted({trial.user_attrs["sampler"] for trial in complete if "sampler" in trial.user_attrs}),
    }  # fmt: skip
    write_json(folder / SUMMARY, summary)
    return TuningResult(changed, chosen, float(best.value or 0.0), own_score, importance, test, warnings, folder)


def _importance(study: Study, complete: Sequence[FrozenTrial], space: Space, seed: int) -> dict[str, float]:
    """Returns setting -> share of the variance of the scores; empty with too few trials."""
    import optuna

    if len(complete) < 4 or len(space) < 2 or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(value) for key, value in shares.items()}


def _test_once(best: Experiment, chosen: Mapping[str, Any], search: _Search) -> dict[str, float]:
    """Trains the best and the own settings on the whole training side; compares them on the outer test speakers."""
    results: dict[str, float] = {}
    counts: list[SpeakerCounts] = []
    outer = search.folder / "outer"
    for name, experiment, changes in (("own", search.experiment, {}), ("best", best, dict(chosen))):
        key = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:12]
        folder = outer / f"{name}_{key}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # another worker may finish at the same time
            if not (folder / PREDICTIONS_FILE).exists():
                run_fold(experiment.with_fold(search.settings.outer_fold, folder))
        table = pd.read_parquet(folder / PREDICTIONS_FILE).sort_values("id")
        metrics = read_metrics(folder)
        metric = _main_metric(metrics)
        results[f"{name}_{metric.removeprefix('test/')}"] = float(metrics[metric])
        if metric == "test/uar":
            probs, target = labelled_probs(table)
            speakers = table.loc[table["emotion"].notna(), "speaker"].to_numpy()
            counts.append(SpeakerCounts.of_classes(target, probs.argmax(1), speakers, probs.shape[1]))
    results |= _compared(counts, search.notify) if len(counts) == 2 and len(counts[0].speakers) > 1 else {}
    if "p" not in results:
        search.notify("Outer test speakers: " + ", ".join(f"{name} {value:.3f}" for name, value in results.items()))
    num_evaluations = len(list(outer.glob(f"best_*/{PREDICTIONS_FILE}")))
    if num_evaluations > 1:
        search.notify(
            f"This search used the outer test speakers {num_evaluations} times: reporting the best of several "
            "evaluations is too optimistic"
        )
    return results | {"num_evaluations": num_evaluations}


def _compared(counts: Sequence[SpeakerCounts], notify: Notify) -> dict[str, float]:
    comparison = compare_counts(counts[0], counts[1])
    difference = comparison.difference
    num_speakers = len(counts[0].speakers)
    points = f"{100 * abs(difference.value):.1f} points {'above' if difference.value > 0 else 'below'}"
    result = "as good as" if difference.value == 0 else points
    caution = "; too few speakers for a conclusion" if num_speakers < MIN_SPEAKERS else ""
    notify(
        f"On {num_speakers} outer test speakers the best settings are {result} the "
        f"experiment's own (95 % {100 * difference.low:+.1f} to {100 * difference.high:+.1f}, "
        f"p = {comparison.p_permutation:.2f}){caution}"
    )
    return {
        "difference": difference.value, "difference_low": difference.low, "difference_high": difference.high,
        "p": comparison.p_permutation,
    }  # fmt: skip
