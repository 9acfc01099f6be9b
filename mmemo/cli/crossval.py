"""`mmemo crossval`."""

from __future__ import annotations

from pathlib import Path

from mmemo.cli.verb import call_with_rest


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call_with_rest(crossval, argv, "crossval")


def crossval(config: Path, run: Path | None = None, options: list[str] = []) -> int:  # noqa: B006
    """Fits, tests and predicts every fold of an experiment, and prints mean and spread.

    Started again, it keeps finished folds and continues the one that was interrupted. Further options are
    those of `mmemo fit` and win over the YAML, such as --trainer.max_epochs 5.

    Args:
        config: YAML of the experiment; its data.split says which folds there are.
        run: Folder for the results; the YAML's trainer.default_root_dir when not given.
        options: Options of `mmemo fit`.
    """
    from rich.console import Console
    from rich.table import Table

    from mmemo.evaluation.crossval import crossval as cross_validate
    from mmemo.evaluation.crossval import spread

    if not config.is_file():
        raise ValueError(f"{config}: no such file, expected the YAML of an experiment")
    result = cross_validate(config, run, options)
    num_folds = len(next(iter(result.metrics.values())))
    table = Table(title=f"{config.stem}: {num_folds} folds, per cent")
    table.add_column("metric")
    for fold in range(1, num_folds + 1):
        table.add_column(f"fold {fold}", justify="right")
    table.add_column("mean ± deviation", justify="right")
    for name, values in sorted(result.metrics.items()):
        mean, deviation = spread(values)
        table.add_row(
            name.removeprefix("test/"),
            *(f"{100 * value:.1f}" for value in values),
            f"{100 * mean:.1f} ± {100 * deviation:.1f}",
        )
    console = Console()
    console.print(table)
    for warning in result.warnings:
        console.print(f"[bold]Warning:[/bold] {warning}")
    console.print(f"Out-of-fold predictions: {result.run / 'predictions.parquet'}")
    return 0
