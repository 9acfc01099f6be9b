"""`mmemo crossval`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from mmemo.cli.verb import call_with_rest, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call_with_rest(crossval, argv, "crossval")


def crossval(
    config: Path,
    run: Path | None = None,
    seeds: list[int] | int = [],  # noqa: B006
    nested: int = 0,
    space: Path | None = None,
    trials: int = 20,
    answered: float = 0.8,
    options: list[str] = [],  # noqa: B006
) -> int:
    """Fits, tests and predicts every fold of an experiment, and prints mean and spread.

    Started again, it keeps finished folds and continues the one that was interrupted; several may work on one folder.
    Further options are those of `mmemo fit` and win over the YAML, such as --trainer.max_epochs 5.

    Args:
        config: YAML of the experiment; its data.split says which folds there are.
        run: Folder for the results; when not given trainer.default_root_dir. With --seeds and --nested that of the
            YAML does not count, and runs/CONFIG_seeds or runs/CONFIG_nested stands in.
        seeds: Repeat all folds with each of these seeds, such as [0, 1, 2].
        nested: Inner folds of each training side, on which calibration, the threshold for giving no answer, and with
            --space the settings are chosen; 0 is none.
        space: YAML of what is tuned inside, as for `mmemo tune`.
        trials: How many settings are tried in each outer fold, with --space.
        answered: With --nested, share of utterances that shall get an answer, in (0, 1]; the others are too unsure.
        options: Options of `mmemo fit`.
    """
    from rich.table import Table

    from mmemo.evaluation.predictions import read_predictions
    from mmemo.evaluation.statistics import intervals
    from mmemo.files import write_text
    from mmemo.studies.crossval import COMMAND_FILE, repeated, spread
    from mmemo.studies.crossval import crossval as cross_validate

    if not config.is_file():
        raise ValueError(f"{config}: no such file, expected the YAML of an experiment")
    seeds = [seeds] if isinstance(seeds, int) else seeds
    if space is not None and not nested:
        raise ValueError("--space is tuned on inner folds: say how many with --nested, such as --nested 3")
    if nested and seeds:
        raise ValueError("--nested and --seeds together would take days; repeat --nested with --seed_everything N")
    if not 0 < answered <= 1:
        raise ValueError(f"--answered {answered}: expected a share above 0, at most 1")
    console = screen()

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if nested or seeds:
        run = run or _given_root(options) or Path("runs") / f"{config.stem}_{'nested' if nested else 'seeds'}"
    if nested:
        if space is not None:
            try:
                import optuna  # noqa: F401
            except ImportError:
                raise ImportError("--space needs Optuna: pip install 'mmemo[tune]'") from None
        from mmemo.studies.nested import nested as nest

        assert run is not None
        result = nest(config, run, nested, options, space, trials, answered, tell)
    elif seeds:
        assert run is not None
        result = repeated(config, run, seeds, options, tell)
    else:
        result = cross_validate(config, run, options, tell)
    changed = [
        ("--run", run), ("--seeds", seeds), ("--nested", nested), ("--answered", answered if nested else 0),
        ("--space", space), ("--trials", trials if space else 0),
    ]  # fmt: skip
    given = [word for name, value in changed if value for word in (name, str(value).replace(" ", ""))]
    write_text(result.run / COMMAND_FILE, shlex.join(["mmemo", "crossval", "--config", str(config), *given, *options]))
    num_folds = result.num_folds
    table = Table(title=f"{config.stem}: {num_folds} folds; shares in per cent")
    table.add_column("metric")
    for fold in range(1, num_folds + 1):
        per_seed = num_folds // max(len(seeds), 1)
        seed = f"seed {seeds[(fold - 1) // per_seed]} " if seeds else ""
        table.add_column(f"{seed}fold {(fold - 1) % per_seed + 1}", justify="right")
    table.add_column("mean ± deviation", justify="right")
    for name, values in sorted(result.metrics.items()):
        mean, deviation = spread(values)
        is_share = not name.rpartition("/")[2].startswith(("ccc", "mae"))
        figures = [f"{100 * value:.1f}" if is_share else f"{value:.3f}" for value in (*values, mean, deviation)]
        *each, mean_shown, deviation_shown = ["-" if figure == "nan" else figure for figure in figures]
        table.add_row(name.removeprefix("test/"), *each, f"{mean_shown} ± {deviation_shown}")
    console.print(table)
    for warning in result.warnings:
        console.print(f"[bold]Warning:[/bold] {warning}")
    found = read_predictions(result.run).labelled
    if len(found.table):
        figure = "uar" if found.classes else "ccc"
        interval = intervals(found.tallies())[figure][0]
        shown = f"{interval.percent()} %" if found.classes else interval.number()
        console.print(f"{figure.upper()} of all test utterances, 95 % over speakers: {shown}", highlight=False)
    console.print(
        f"Out-of-fold predictions: {result.run / 'predictions.parquet'}; `mmemo report {result.run}` draws them"
    )
    return 0


def _given_root(options: Sequence[str]) -> Path | None:
    """The run folder that an option of `mmemo fit` names."""
    name = "--trainer.default_root_dir"
    for word, after in zip_longest(options, options[1:], fillvalue=""):
        if word == name or word.startswith(f"{name}="):
            return Path(after if word == name else word.partition("=")[2])
    return None
