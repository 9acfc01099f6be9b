"""``mmemo tune``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mmemo.cli.crossval import require_optuna
from mmemo.cli.output import console, parse_pairs, print_line


def tune(
    *,
    config: Path,
    space: Path,
    run: Path = Path("runs/tuning"),
    trials: int = 20,
    sampler: Literal["tpe", "random", "grid", "cmaes", "nsga2"] = "tpe",
    folds: int = 3,
    outer_fold: int = 1,
    prune: bool = True,
    metric: str | None = None,
    storage: str | None = None,
    seed: int = 0,
    evaluate: bool = True,
    changes: Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True)] = None,
) -> int:
    """Searches for better settings on folds of the training side; outer test speakers are not used.

    Writes RUN/best.yaml, which `mmemo fit` and `mmemo crossval` take as it is, RUN/trials.csv, tuning.json and a
    picture. Started again, or several times at once, it continues the same search.

    Args:
        config: YAML of the experiment.
        space: YAML of the search space; setting -> low and high (with log: true or step), or a list of choices.
        run: Folder of the search.
        trials: Number of settings to try; the experiment's own are the first.
        sampler: tpe (Bayesian), random, grid, or evolutionary: cmaes for numbers, nsga2 for choices too.
        folds: Number of inner folds that evaluate a trial, 2 or more.
        outer_fold: Fold of the experiment's split on whose training side the search runs.
        prune: Stop a trial after an inner fold in which it is below the median of the others.
        metric: Metric to maximise, such as macro_f1 or ccc. Defaults to uar, or ccc for a model of dimensions.
        storage: Optuna storage that several machines share, such as postgresql://... Defaults to a file in RUN.
        seed: Seed of the search.
        evaluate: Then train the best and the experiment's own settings on the whole training side, and compare them
            once on the outer test speakers.
        changes: Settings that replace those of the YAML in every trial, such as --set trainer.max_epochs=5.
    """
    require_optuna("mmemo tune")
    from rich.table import Table

    from mmemo.studies.search_space import read_space
    from mmemo.studies.tuning import BEST_CONFIG, SearchSettings
    from mmemo.studies.tuning import tune as search
    from mmemo.training.experiment_cli import read_experiment

    settings = SearchSettings(sampler, trials, folds, outer_fold, prune, metric, storage, seed, evaluate)
    choices = read_space(space)
    experiment = read_experiment(config, parse_pairs(changes or [], "--set"))
    result = search(experiment, choices, run, settings, print_line)
    table = Table(title=f"{config.stem}: best settings on the inner folds, %")
    for name in ("setting", "best", *(["importance"] if result.importance else [])):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for key, value in result.settings.items():
        share = result.importance.get(key)
        table.add_row(key, str(value), *([] if share is None else [f"{100 * share:.0f} %"]))
    own = "not tried: outside the space" if math.isnan(result.own_score) else f"{100 * result.own_score:.1f}"
    table.add_row("inner folds, best settings", f"{100 * result.score:.1f}")
    table.add_row("inner folds, the experiment's own", own)
    console().print(table)
    if not result.importance:
        print_line("No importance: it needs several settings and four finished trials with different results.")
    for warning in result.warnings:
        print_line(f"Warning: {warning}")
    print_line(f"Best settings: {run / BEST_CONFIG}; trials, picture and results are in the same folder")
    return 0
