"""`mmemo tune`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from mmemo.cli.verb import call_with_rest, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call_with_rest(tune, argv, "tune")


def tune(
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
    judge: bool = True,
    options: list[str] = [],  # noqa: B006
) -> int:
    """Searches for better settings on folds of the training side; outer test speakers have no part in it.

    Writes RUN/best.yaml, which `mmemo fit` and `mmemo crossval` take as it is, RUN/trials.csv, tuning.json and a
    picture of all trials and of which settings matter. Started again, or several times at once, it goes on with the
    same search. Further options are those of `mmemo fit` and hold in every trial.

    Args:
        config: YAML of the experiment.
        space: YAML of what may be changed; config key -> low and high (with log: true or step), or a list of choices.
        run: Folder of the search.
        trials: Settings tried in all, the config's own first.
        sampler: tpe (Bayesian), random, grid, or evolutionary: cmaes for numbers, nsga2 for choices too.
        folds: Inner folds that judge a trial, 2 or more.
        outer_fold: Fold of the config's split whose training side is tuned on.
        prune: Give a trial up after an inner fold in which it stands below the median of the others.
        metric: What is maximised, such as macro_f1 or ccc; uar when not given, or ccc for dimensions alone.
        storage: Optuna storage, such as postgresql://..., that workers on many machines share; a file in RUN when not
            given.
        seed: Of the search.
        judge: Then train the best settings and the config's own on the whole training side, and compare them once on
            the outer test speakers.
        options: Options of `mmemo fit`.
    """
    from rich.table import Table

    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ImportError("mmemo tune needs Optuna: pip install 'mmemo[tune]'") from None
    from mmemo.studies.tuning import BEST_CONFIG, Tuning
    from mmemo.studies.tuning import tune as search

    if not config.is_file():
        raise ValueError(f"{config}: no such file, expected the YAML of an experiment")
    console = screen()
    settings = Tuning(sampler, trials, folds, outer_fold, prune, metric, storage, seed, judge)
    found = search(
        config, space, run, settings, options, lambda line: console.print(line, markup=False, highlight=False)
    )
    table = Table(title=f"{config.stem}: best of the inner folds, per cent")
    for name in ("setting", "best", *(["importance"] if found.importance else [])):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for key, value in found.settings.items():
        share = found.importance.get(key)
        table.add_row(key, str(value), *([] if share is None else [f"{100 * share:.0f} %"]))
    own = "not tried, outside the space" if math.isnan(found.own_score) else f"{100 * found.own_score:.1f}"
    table.add_row("inner folds, best settings", f"{100 * found.score:.1f}")
    table.add_row("inner folds, the config's own", own)
    console.print(table)
    if not found.importance:
        told = (
            "how much each setting matters needs several settings and four finished trials that differ; there are fewer"
        )
        console.print(f"Not shown: {told}", soft_wrap=True)
    for warning in found.warnings:
        console.print(f"Warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Runnable: {run / BEST_CONFIG}; trials, picture and figures beside it", soft_wrap=True)
    return 0
