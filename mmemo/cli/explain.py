"""``mmemo explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmemo.cli.output import console, parse_pairs, print_line
from mmemo.wording import counted


def explain(
    run: Path,
    /,
    *,
    ids: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    number: int = 8,
    checkpoint: str | None = None,
    fold: int | None = None,
    words: bool | None = None,
    changes: Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True)] = None,
) -> int:
    """Draws which sounds and words a prediction depends on, with gates and attention, and tests it by deletion.

    Writes RUN/explanations: a picture of each utterance, and a JSON file. The deletion test removes the parts with the
    highest attribution, and as many random parts: the probability must drop further for the first.

    Args:
        run: Folder of `mmemo fit` or `mmemo crossval`.
        ids: Test utterances to explain. Defaults to some of every class.
        number: Number of utterances if there are no ids.
        checkpoint: best, last or a file. Defaults to the run's own choice.
        fold: Fold of a cross-validation. Defaults to the first.
        words: Whether pictures show words. Defaults to no if offline or in a study.
        changes: Settings that replace those of the run, such as --set data.manifest=other.csv.
    """
    if number < 1:
        raise ValueError(f"--number {number}: expected 1 or more")
    from rich.table import Table

    from mmemo.studies.explanations import FOLDER
    from mmemo.studies.explanations import explain as explain_run
    from mmemo.training.experiment_cli import read_runs

    runs = read_runs(run, [] if fold is None else [fold], parse_pairs(changes or [], "--set"))
    result = explain_run(runs[0], run / FOLDER, ids or (), number, checkpoint, words)
    table = Table(title="Deletion test: drop of the probability, points")
    for name in ("part", "removed", "highest attribution", "random"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for level, shares in result.deletion.items():
        for share, (highest, random) in shares.items():
            part = "sound" if level == "log_mel" else "words"
            table.add_row(part, f"{100 * share:.0f} %", f"{100 * highest:.1f}", f"{100 * random:.1f}")
    console().print(table)
    print_line(f"{counted(len(result.utterances), 'utterance')}: {result.folder}")
    return 0
