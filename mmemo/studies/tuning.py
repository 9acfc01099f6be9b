"""Settings tried on folds of the training side: Optuna proposes, inner folds judge, no outer test speaker is heard."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import random
import re
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import yaml
from filelock import FileLock

from mmemo.evaluation.predictions import labelled_probs
from mmemo.evaluation.statistics import Tallies, compare_tallies
from mmemo.files import checksum, replacing, write_table, write_text
from mmemo.studies.crossval import PREDICTIONS_FILE, run_fold, silent, spread
from mmemo.training.experiment import BEST, METRICS_FILE, Experiment

STORAGE = "study.sqlite"
STUDY = "mmemo"
BEST_CONFIG = "best.yaml"
SUMMARY = "tuning.json"
FEW_SPEAKERS = 6
"""Outer test speakers below which swaps cannot give a p-value under 0.05."""
OPENING_ATTEMPTS = 5
"""Times a storage is opened while other workers make its tables."""
Sampler = Literal["tpe", "random", "grid", "cmaes", "nsga2"]


@dataclass
class Tuning:
    """How to search.

    Args:
        sampler: ``tpe`` (Bayesian; Bergstra et al. 2011), ``random``, ``grid``, or evolutionary: ``cmaes`` for numbers
            (Hansen 2016), ``nsga2`` for choices too (Deb et al. 2002).
        num_trials: Settings tried in all, by all workers; the first are the config's own.
        num_folds: Inner folds, 2 or more.
        outer_fold: Fold of the config's split whose training side is tuned on.
        prune: Give a trial up after an inner fold in which it stands below the median of the others.
        metric: What is maximised, such as ``uar``, ``macro_f1`` or ``ccc``; that of the model when not given.
        storage: Optuna storage, such as ``postgresql://...``, that workers on many machines share; a SQLite file in the
            run's folder when not given.
        seed: Of the sampler.
        judge: Train the best settings and the config's own on the whole training side, and compare them once on the
            outer test speakers.
    """

    sampler: Sampler = "tpe"
    num_trials: int = 20
    num_folds: int = 3
    outer_fold: int = 1
    prune: bool = True
    metric: str | None = None
    storage: str | None = None
    seed: int = 0
    judge: bool = True


class Tuned(NamedTuple):
    """What a search found.

    Args:
        overrides: Options of ``mmemo fit`` of the best settings.
        settings: The same as config key -> value.
        score: Their mean over inner folds.
        own_score: That of the config's own settings.
        importance: Config key -> share of the scores' variance that it explains (Hutter et al. 2014); empty with too
            few trials.
        judged: Figures on the outer test speakers; empty when not asked for.
        warnings: What every figure of this experiment must carry.
        config: YAML that runs as it is.
    """

    overrides: list[str]
    settings: dict[str, Any]
    score: float
    own_score: float
    importance: dict[str, float]
    judged: dict[str, float]
    warnings: list[str]
    config: Path


def read_space(path: Path) -> dict[str, Any]:
    """What may be changed: config key -> ``{low, high}`` with ``log`` or ``step``, or a list of choices.

    Args:
        path: YAML file.

    Raises:
        ValueError: It is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected a YAML of config keys, each with low and high, or choices")
    space = yaml.safe_load(path.read_text())
    if not isinstance(space, dict) or not space:
        raise ValueError(f"{path}: expected a table of config keys, such as model.init_args.mixup: [0.0, 0.2, 0.4]")
    for key, values in space.items():
        if isinstance(values, list) and values:
            continue
        known = {"low", "high", "log", "step"}
        good = isinstance(values, dict) and {"low", "high"} <= set(values) <= known
        numbers = [values[name] for name in ("low", "high")] if good else []
        if not good or not all(isinstance(one, int | float) for one in numbers) or not numbers[0] < numbers[1]:
            raise ValueError(
                f"{path}: {key}: found {values!r}, expected a list of choices, or low below high with log or step "
                "(numbers such as 1.0e-4 need their point in YAML)"
            )
        if values.get("log") and (values.get("step") or numbers[0] <= 0):
            raise ValueError(f"{path}: {key}: log needs low above 0 and no step")
    return {str(key): values for key, values in space.items()}


def inner_config(config: Path, target: Path, overrides: Sequence[str], outer_fold: int, num_folds: int) -> Path:
    """The same experiment on folds of one training side, as a YAML.

    Args:
        config: YAML of the experiment.
        target: YAML to write.
        overrides: Options that win over it.
        outer_fold: Fold of its split whose training side is divided.
        num_folds: Inner folds.
    """
    whole = Experiment(["--config", str(config), *overrides], run=False)
    content = yaml.safe_load(whole.parser.dump(whole.config, skip_unset=False))
    split = content["data"]["split"] or {"class_path": "mmemo.data.OfficialSplit"}
    whole.datamodule.setup("fit")  # a table or split that cannot be used is told now
    num_folds_there = whole.datamodule.splitter.count(whole.datamodule.manifest)
    if not 1 <= outer_fold <= num_folds_there:
        raise ValueError(f"outer fold {outer_fold}: data.split of {config} has folds 1 to {num_folds_there}")
    split = split | {"init_args": {**(split.get("init_args") or {}), "fold": outer_fold}}
    held_out = split["init_args"].get("num_val_speakers", 0)
    if whole.config.checkpoint == "best":
        held_out = max(held_out, 1)  # somebody must choose the epoch
    content["data"]["split"] = {
        "class_path": "mmemo.data.InnerFolds",
        "init_args": {
            "outer": split,
            "num_folds": num_folds,
            "group": split["init_args"].get("group", "speaker"),
            "num_val_speakers": held_out,
        },
    }
    write_text(target, yaml.safe_dump(content, sort_keys=False))
    return target


def tune(
    config: Path,
    space: Path,
    run: Path,
    settings: Tuning,
    overrides: Sequence[str] = (),
    tell: Callable[[str], None] = silent,
) -> Tuned:
    """Searches, or goes on with a search; several processes on one folder or storage share its trials.

    Args:
        config: YAML of the experiment.
        space: YAML of what may be changed.
        run: Folder of the search.
        settings: How to search.
        overrides: Options of ``mmemo fit`` that win over the YAML, in every trial.
        tell: Takes a line on each trial.

    Raises:
        ValueError: A setting that the config does not have, another search in the same folder, or a storage that cannot
            be used.
    """
    import optuna

    if settings.metric is not None and settings.metric.startswith("mae"):
        raise ValueError(f"--metric {settings.metric}: an error, of which less is better; use ccc")
    for name, value, least in (("trials", settings.num_trials, 1), ("folds", settings.num_folds, 2)):
        if value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")
    known = read_space(space)
    run.mkdir(parents=True, exist_ok=True)
    inside = run / "inner.yaml"
    with replacing(
        inside
    ) as partial:  # another search that runs in this folder reads the old one until this is checked
        inner_config(config, partial, overrides, settings.outer_fold, settings.num_folds)
        _check_space(partial, space, known)
        own = _own_values(config, overrides, known)
        mark = _mark(partial, known, settings)
        _check_same_search(run, mark)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _study(settings, run, known, mark)
    asking = FileLock(run / ".asking.lock")  # workers ask for settings in turn, or two would be given the same
    with asking:
        if not study.trials and own is not None and settings.sampler != "grid":  # a grid has its own cells
            study.enqueue_trial(own, skip_if_exists=True)

    def objective(trial: Any) -> float:
        trial.set_user_attr("sampler", settings.sampler)
        chosen = {key: _suggest(trial, key, values) for key, values in known.items()}
        asking.release()
        options = as_options(chosen)
        folder = run / "trials" / hashlib.sha256((mark + json.dumps(chosen, sort_keys=True)).encode()).hexdigest()[:12]
        scores: list[float] = []
        for fold in range(1, settings.num_folds + 1):
            try:
                scores.append(_score(inside, folder, fold, options, settings.metric))
            except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of the former
                study.enqueue_trial(trial.params)  # of a worker that is killed outright, the storage sees to it
                raise KeyboardInterrupt from None
            except FloatingPointError as error:
                tell(f"trial {trial.number}: given up, {error} {chosen}")
                raise optuna.TrialPruned from None
            trial.report(spread(scores)[0], fold)
            if settings.prune and fold < settings.num_folds and trial.should_prune():
                tell(f"trial {trial.number}: given up after fold {fold} at {100 * spread(scores)[0]:.1f} {chosen}")
                raise optuna.TrialPruned
        tell(f"trial {trial.number}: {100 * spread(scores)[0]:.1f} {chosen}")
        return spread(scores)[0]

    try:
        _search(study, objective, settings, known, asking)
    except optuna.exceptions.StorageInternalError as error:
        raise ValueError(
            f"{run}: the storage of this search stopped answering ({str(error).splitlines()[0]}); finished trials are "
            "kept: start the same command again when it does"
        ) from None
    return _summarise(study, config, run, settings, known, overrides, tell)


def _search(
    study: Any, objective: Callable[[Any], float], settings: Tuning, known: Mapping[str, Any], asking: FileLock
) -> None:
    """Trials until there are enough, by all workers together; ``objective`` lets go of the lock on asking."""
    import optuna

    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    while sum(trial.state in finished for trial in study.trials) < settings.num_trials:
        running = sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)
        done = sum(trial.state in finished for trial in study.trials)
        if settings.sampler == "grid" and done >= _grid_size(known):
            break
        if running and done + running >= settings.num_trials and not _left_over(study):
            time.sleep(1.0)  # other workers have the last ones
            continue
        with asking:
            study.sampler = _sampler(settings, known, len(study.trials))
            study.optimize(objective, n_trials=1)


def _mark(inside: Path, known: Mapping[str, Any], settings: Tuning) -> str:
    """Checksum of all that scores depend on: config, space, metric, and the tables themselves."""
    content = yaml.safe_load(inside.read_text())
    data = content["data"]
    paths = [data.get("manifest"), *(one["manifest"] for one in data.get("corpora") or [])]
    paths.append((data["split"]["init_args"]["outer"].get("init_args") or {}).get("path"))
    sums = [checksum(Path(path)) for path in paths if path and Path(path).is_file()]
    for one in (data, *(data.get("corpora") or [])):
        one["manifest"] = None  # may lie elsewhere on another machine that shares the search
    (data["split"]["init_args"]["outer"].get("init_args") or {}).pop("path", None)
    content["trainer"]["default_root_dir"] = None
    seen = (json.dumps(content, default=str), json.dumps(known, sort_keys=True), settings.metric, sums)
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _check_same_search(run: Path, mark: str) -> None:
    kept = run / "search.txt"
    if kept.exists() and kept.read_text() != mark:
        raise ValueError(
            f"{run} holds a search with another config, manifest, space or metric; choose another --run, or delete it"
        )
    write_text(kept, mark)


CLOSED = (
    "data.split",
    "data.manifest",
    "data.corpora",
    "data.only",
    "data.allow_speaker_overlap",
    "trainer.default_root_dir",
)
"""Settings that would open what tuning must not see."""


def _check_space(inside: Path, space: Path, known: Mapping[str, Any]) -> None:
    """Every setting must be one of the config, with every end and choice of its range."""
    for key, values in known.items():
        if key.startswith(CLOSED):
            raise ValueError(f"{space}: {key} says what is judged on, which cannot be tuned; take it out")
        tried = values if isinstance(values, list) else [values["low"], values["high"]]
        for value in tried:
            try:
                Experiment(["--config", str(inside), *as_options({key: value})], run=False)
            except SystemExit:
                raise ValueError(f"{space}: {key}: {value!r} is refused by the config, as said above") from None
            except (ValueError, TypeError) as error:
                raise ValueError(f"{space}: {key}: {value!r}: {error}") from None


def _own_values(config: Path, overrides: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config's own settings as a trial; None where one of them lies outside the space."""
    experiment = Experiment(["--config", str(config), *overrides], run=False)
    content = yaml.safe_load(experiment.parser.dump(experiment.config, skip_unset=False))
    found: dict[str, Any] = {}
    for key, values in known.items():
        value: Any = content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(values, list):
            names = [json.dumps(one, sort_keys=True) for one in values]
            if json.dumps(value, sort_keys=True) not in names:
                return None
            found[key] = json.dumps(value, sort_keys=True)
        else:
            if not isinstance(value, int | float) or not values["low"] <= value <= values["high"]:
                return None
            found[key] = value
    return found


def _suggest(trial: Any, key: str, values: Any) -> Any:
    if isinstance(values, list):
        return json.loads(trial.suggest_categorical(key, [json.dumps(one, sort_keys=True) for one in values]))
    whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    step = {"step": values["step"]} if values.get("step") else {}
    return suggest(key, values["low"], values["high"], log=bool(values.get("log")), **step)


def as_options(chosen: Mapping[str, Any]) -> list[str]:
    """Settings as options of ``mmemo fit``.

    Args:
        chosen: Config key -> value.
    """
    options = []
    for key, value in chosen.items():
        options += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return options


def _study(settings: Tuning, run: Path, known: Mapping[str, Any], mark: str) -> Any:
    import optuna

    url = settings.storage or f"sqlite:///{(run / STORAGE).resolve()}"
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    sampler = _sampler(settings, known, 0)
    for more_attempts in reversed(range(OPENING_ATTEMPTS)):
        try:
            storage = optuna.storages.RDBStorage(
                url, engine_kwargs={"connect_args": {"timeout": 30}} if url.startswith("sqlite") else None,
                heartbeat_interval=30, grace_period=90,
                # Of a worker that was killed: tried again.
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
            )  # fmt: skip
            return optuna.create_study(
                study_name=f"{STUDY}-{mark[:16]}", storage=storage, direction="maximize", load_if_exists=True,
                sampler=sampler, pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            )  # fmt: skip
        except ImportError as error:
            told = str(error).splitlines()[0]
            raise ValueError(f"{_shown(url)}: {told}; install what that database needs") from None
        except Exception as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            if more_attempts and ("already exists" in told or "unique constraint" in told.lower()):
                time.sleep(random.uniform(0.2, 1.0))  # another worker makes the tables at this moment
                continue
            raise ValueError(
                f"{_shown(url)}: the storage of this search cannot be used ({told}); if another process holds it, wait "
                "for it; if it is from another version of Optuna, run `optuna storage upgrade`, or choose another --run"
            ) from None
    raise AssertionError("the last attempt returns or raises")


def _shown(url: str) -> str:
    """Without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def _sampler(settings: Tuning, known: Mapping[str, Any], num_trials: int) -> Any:
    """Of the next trial; seeded by how many there are, so that workers differ and a search can be repeated.

    Workers on other machines may ask at the same moment, which the lock in the folder does not see: a shared storage
    adds the machine's name to the seed.
    """
    from optuna import samplers

    seed = settings.seed + num_trials + (zlib.crc32(platform.node().encode()) % 1000 if settings.storage else 0)
    if settings.sampler == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=5, constant_liar=True)
    if settings.sampler == "grid":
        return samplers.GridSampler(_grid(known), seed=settings.seed)
    if settings.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed)
    if settings.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=10)
    return samplers.RandomSampler(seed=seed)


def _grid(known: Mapping[str, Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for key, values in known.items():
        if isinstance(values, list):
            found[key] = [json.dumps(one, sort_keys=True) for one in values]
            continue
        if not values.get("step"):
            raise ValueError(f"sampler grid: {key} is a range without a step; give it one, or a list of choices")
        count = math.floor((values["high"] - values["low"]) / values["step"] + 1e-9) + 1
        found[key] = [values["low"] + number * values["step"] for number in range(count)]
    return found


def _grid_size(known: Mapping[str, Any]) -> int:
    return math.prod(len(values) for values in _grid(known).values())


def _left_over(study: Any) -> bool:
    """Whether a running trial belongs to a worker that is gone; it is then given up."""
    import optuna

    before = sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)
    optuna.storages.fail_stale_trials(study)
    return sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials) < before


def _score(inside: Path, folder: Path, fold: int, options: Sequence[str], metric: str | None) -> float:
    """Figure of one inner fold; what was trained for it is not kept."""
    member = folder / f"fold{fold}"
    kept = member / "score.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".fold{fold}.lock"):  # another worker may try the same settings
        if not kept.exists():
            shutil.rmtree(member, ignore_errors=True)  # of a worker that is gone
            metrics = run_fold(inside, member, fold, options)
            shutil.rmtree(member / BEST.parent, ignore_errors=True)
            write_text(kept, json.dumps(metrics))
    metrics = json.loads(kept.read_text())
    name = f"test/{metric}" if metric else "test/uar" if "test/uar" in metrics else "test/ccc"
    if name not in metrics:
        found = ", ".join(one.removeprefix("test/") for one in metrics)
        raise ValueError(f"--metric {metric}: the model is judged by {found}; choose one of these")
    if not math.isfinite(metrics[name]):
        raise ValueError(f"{name} of an inner fold is {metrics[name]}; tune on another --metric, or on fewer --folds")
    return float(metrics[name])


def _summarise(
    study: Any,
    config: Path,
    run: Path,
    settings: Tuning,
    known: Mapping[str, Any],
    overrides: Sequence[str],
    tell: Callable[[str], None],
) -> Tuned:
    import optuna

    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise ValueError(f"{run}: no trial was finished; give more --trials")
    best = max(complete, key=lambda trial: trial.value)
    chosen = _values(best.params, known)
    own = _own_values(config, overrides, known)
    own_score = next((float(trial.value) for trial in complete if own is not None and trial.params == own), math.nan)
    importance: dict[str, float] = {}
    if len(complete) >= 4 and len(known) > 1 and len({trial.value for trial in complete}) > 1:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=settings.seed)
        )
        importance = {key: float(value) for key, value in found.items()}
    options = as_options(chosen)
    runnable = Experiment(["--config", str(config), *overrides, *options], run=False)
    content = runnable.parser.dump(runnable.config, skip_unset=True)
    write_text(run / BEST_CONFIG, f"# Best of {len(study.trials)} trials on the training side of fold "
               f"{settings.outer_fold} of {config}\n{content}")  # fmt: skip
    table = study.trials_dataframe(attrs=("number", "value", "state", "duration", "params"))
    write_table(run / "trials.csv", table)
    _draw(study, importance, run)
    judged = _judge(config, run, settings, overrides, options, tell) if settings.judge else {}
    kept = [json.loads(path.read_text()) for path in run.glob(f"*/*/**/{METRICS_FILE}")]
    warnings = list(dict.fromkeys(warning for one in kept for warning in one["warnings"]))
    summary = {
        "settings": chosen, "score": float(best.value), "own_score": None if math.isnan(own_score) else own_score,
        "importance": importance, "judged": judged, "trials": len(study.trials), "finished": len(complete),
        "warnings": warnings,
        "samplers": sorted({trial.user_attrs["sampler"] for trial in complete if "sampler" in trial.user_attrs}),
    }  # fmt: skip
    write_text(run / SUMMARY, json.dumps(summary, indent=1))
    return Tuned(options, chosen, float(best.value), own_score, importance, judged, warnings, run / BEST_CONFIG)


def _values(params: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json.loads(params[key]) if isinstance(values, list) else params[key] for key, values in known.items()}


def _judge(
    config: Path,
    run: Path,
    settings: Tuning,
    overrides: Sequence[str],
    options: Sequence[str],
    tell: Callable[[str], None],
) -> dict[str, float]:
    """Best and own settings, trained on the whole training side, once on the outer test speakers."""
    found: dict[str, float] = {}
    counts = []
    for name, changed in (("own", []), ("best", list(options))):
        kept = hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:12]
        member = run / "outer" / f"{name}_{kept}"
        member.mkdir(parents=True, exist_ok=True)
        with FileLock(member / ".lock"):  # another worker may be through at the same time
            if not (member / PREDICTIONS_FILE).exists():
                run_fold(config, member, settings.outer_fold, [*overrides, *changed])
        table = pd.read_parquet(member / PREDICTIONS_FILE).sort_values("id")
        metrics = json.loads((member / METRICS_FILE).read_text())["metrics"]
        name_of = "test/uar" if "test/uar" in metrics else "test/ccc"
        found[f"{name}_{name_of.removeprefix('test/')}"] = float(metrics[name_of])
        if name_of == "test/uar":
            probs, target = labelled_probs(table)
            speakers = table.loc[table["emotion"].notna(), "speaker"].to_numpy()
            counts.append(Tallies.of_classes(target, probs.argmax(1), speakers, probs.shape[1]))
    if len(counts) == 2 and len(counts[0].speakers) > 1:
        compared = compare_tallies(counts[0], counts[1])
        found |= {
            "difference": compared.difference.value,
            "difference_low": compared.difference.low,
            "difference_high": compared.difference.high,
            "p": compared.p_permutation,
        }
        points = compared.difference
        num = len(counts[0].speakers)
        side = "above" if points.value > 0 else "below" if points.value < 0 else "from"
        few = "; so few speakers decide nothing" if num < FEW_SPEAKERS else ""
        tell(
            f"On {num} outer test speakers the best settings are {100 * abs(points.value):.1f} points {side} the "
            f"config's own (95 % {100 * points.low:+.1f} to {100 * points.high:+.1f}, p = {compared.p_permutation:.2f})"
            f"{few}"
        )
    else:
        tell("On the outer test speakers: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    looks = len(list((run / "outer").glob(f"best_*/{PREDICTIONS_FILE}")))
    if looks > 1:
        tell(f"This search has looked at the outer test speakers {looks} times: the best of several looks is too good")
    return found | {"looks": looks}


def _draw(study: Any, importance: Mapping[str, float], run: Path) -> None:
    """Scores of all trials as they came, and which settings matter."""
    import optuna
    from matplotlib.figure import Figure

    from mmemo.files import replacing

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for state, colour, label in (
        (optuna.trial.TrialState.COMPLETE, "#4477aa", "finished"),
        (optuna.trial.TrialState.PRUNED, "#bbbbbb", "given up"),
    ):
        some = [trial for trial in study.trials if trial.state == state and trial.value is not None]
        left.scatter([trial.number for trial in some], [100 * trial.value for trial in some], c=colour, label=label)
    left.set(xlabel="trial", ylabel="mean of inner folds, %", title="Trials")
    left.legend(frameon=False)
    names = list(importance)[::-1]
    right.barh([name.split(".")[-1] for name in names], [importance[name] for name in names], color="#4477aa")
    right.set(title="Importance", xlabel="share of variance explained")
    if not names:
        right.text(0.5, 0.5, "too few trials", ha="center", va="center", transform=right.transAxes)
    with replacing(run / "tuning.png") as partial:
        figure.savefig(partial, dpi=120, format="png")
