"""``mmemo crossval``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mmemo.cli.output import console, parse_pairs, print_line

if TYPE_CHECKING:
    from mmemo.studies.crossval import CrossValidation


def crossval(
    *,
    config: Path,
    run: Path | None = None,
    seeds: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    nested: int = 0,
    space: Path | None = None,
    trials: int = 20,
    answered: float = 0.8,
    changes: Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True)] = None,
) -> int:
    """Trains, tests and predicts every fold of an experiment, and prints mean and deviation.

    Started again, it keeps finished folds and resumes the interrupted one; several commands may share one folder.

    Args:
        config: YAML of the experiment; its data.split defines the folds.
        run: Folder for the results. Defaults to trainer.default_root_dir; with --seeds or --nested to
            runs/CONFIG_seeds or runs/CONFIG_nested.
        seeds: Repeat all folds with each of these seeds, such as --seeds 0 1 2.
        nested: Number of inner folds of each training side, which choose calibration, the confidence threshold and,
            with --space, the settings; 0 for none.
        space: YAML of the settings to tune on the inner folds, as for `mmemo tune`.
        trials: Settings tried in each outer fold, with --space.
        answered: With --nested, share of utterances that get an answer, in (0, 1].
        changes: Settings that replace those of the YAML, such as --set trainer.max_epochs=5 data.batch_size=8.
    """
    if space is not None and not nested:
        raise ValueError("--space is tuned on inner folds; set their number with --nested, such as --nested 3")
    if nested and seeds:
        raise ValueError("--nested and --seeds together would take days; repeat --nested with --set seed_everything=N")
    if not 0 < answered <= 1:
        raise ValueError(f"--answered {answered}: expected a share above 0, at most 1")
    from mmemo.files import write_text
    from mmemo.lightning import is_first_process
    from mmemo.studies.crossval import COMMAND_FILE
    from mmemo.studies.crossval import crossval as run_crossval
    from mmemo.training.experiment_cli import read_experiment

    changed = parse_pairs(changes or [], "--set")
    experiment = read_experiment(config, changed)
    if (nested or seeds) and run is None and "trainer.default_root_dir" not in changed:
        run = Path("runs") / f"{config.stem}_{'nested' if nested else 'seeds'}"
    folder = run or experiment.folder
    if nested:
        from mmemo.studies.nested import nested as run_nested
        from mmemo.studies.search_space import read_space

        if space is not None:
            require_optuna("--space")
        choices = None if space is None else read_space(space)
        result = run_nested(experiment, folder, nested, choices, trials, answered, print_line)
    else:
        result = run_crossval(experiment, folder, seeds or (), print_line)
    if not is_first_process():
        return 0  # the first process of DDP reports
    write_text(result.folder / COMMAND_FILE, _command(config, run, seeds, nested, space, trials, answered, changes))
    print_results(result, config.stem, seeds or [])
    return 0


def _command(
    config: Path,
    run: Path | None,
    seeds: list[int] | None,
    nested: int,
    space: Path | None,
    trials: int,
    answered: float,
    changes: list[str] | None,
) -> str:
    """Returns the command line that repeats this cross-validation."""
    words = ["mmemo", "crossval", "--config", str(config)]
    words += [] if run is None else ["--run", str(run)]
    words += ["--seeds", *map(str, seeds)] if seeds else []
    words += ["--nested", str(nested), "--answered", str(answered)] if nested else []
    words += [] if space is None else ["--space", str(space), "--trials", str(trials)]
    words += ["--set", *changes] if changes else []
    return shlex.join(words)


def require_optuna(needed_by: str) -> None:
    """Raises ImportError with a remedy if Optuna is not installed."""
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ImportError(f"{needed_by} needs Optuna: pip install 'mmemo[tune]'")


def print_results(result: CrossValidation, name: str, seeds: list[int]) -> None:
    """Prints the metrics of all folds, their mean and deviation, and an interval over speakers."""
    from rich.table import Table

    from mmemo.evaluation.predictions import read_predictions
    from mmemo.evaluation.statistics import intervals
    from mmemo.studies.crossval import mean_and_deviation

    num_values = result.num_values
    per_seed = num_values // max(len(seeds), 1)
    table = Table(title=f"{name}: {num_values} folds; percentages")
    table.add_column("metric")
    for index in range(num_values):
        seed = f"seed {seeds[index // per_seed]} " if seeds else ""
        table.add_column(f"{seed}fold {index % per_seed + 1}", justify="right")
    table.add_column("mean ± deviation", justify="right")
    for metric, values in sorted(result.metrics.items()):
        is_share = not metric.rpartition("/")[2].startswith(("ccc", "mae"))
        shown = [
            "-" if value != value else f"{100 * value:.1f}" if is_share else f"{value:.3f}"
            for value in (*values, *mean_and_deviation(values))
        ]
        table.add_row(metric.removeprefix("test/"), *shown[:-2], f"{shown[-2]} ± {shown[-1]}")
    console().print(table)
    if "enrolled_utterances" in result.predictions:
        fewest, most = result.predictions["enrolled_utterances"].agg(["min", "max"])
        number = f"{most}" if fewest == most else f"{fewest} to {most}"
        print_line(
            f"Calibrated on {number} unlabelled utterances of each test speaker; test_uncalibrated is the same model "
            "as for unknown speakers"
        )
    for warning in result.warnings:
        print_line(f"Warning: {warning}")
    labelled = read_predictions(result.folder).labelled
    if len(labelled.table):
        metric = "uar" if labelled.classes else "ccc"
        interval = intervals(labelled.speaker_counts())[metric][0]
        value = f"{interval.percent()} %" if labelled.classes else interval.number()
        print_line(f"{metric.upper()} of all test utterances, 95 % interval over speakers: {value}")
    print_line(
        f"Out-of-fold predictions: {result.folder / 'predictions.parquet'}; next: `mmemo report {result.folder}`"
    )
