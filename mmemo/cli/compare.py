"""`mmemo compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from mmemo.cli.verb import call_with_many, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    needed = "two runs or more, such as `mmemo compare runs/a runs/b`"
    return call_with_many(compare, argv, "compare", "RUN", needed)


def compare(
    runs: list[Path],
    metric: str | None = None,
    correction: Literal["holm", "bonferroni", "fdr_bh"] = "holm",
    out: Path | None = None,
) -> int:
    """Says whether runs on the same utterances differ: paired, over speakers, corrected for many comparisons.

    Args:
        runs: Two or more folders of `mmemo crossval` or `mmemo fit`, or files of `mmemo predict`.
        metric: What is compared: uar, accuracy, macro_f1 or weighted_f1; of dimensions ccc, or ccc_arousal, mae_valence
            and the like. UAR, of dimensions alone CCC, when not given.
        correction: For as many comparisons as there are pairs.
        out: JSON file to write.
    """
    from rich.table import Table

    from mmemo.evaluation.comparison import compare_runs
    from mmemo.evaluation.predictions import read_predictions
    from mmemo.evaluation.statistics import FIGURES, corrected, plain
    from mmemo.files import replacing

    if len(set(runs)) < 2:
        raise ValueError("name two runs or more, such as `mmemo compare runs/a runs/b`")
    read = {run: read_predictions(run) for run in runs}
    names = _names(runs)
    pairs = list(combinations(runs, 2))
    found = [compare_runs(read[first], read[second], metric) for first, second in pairs]
    of_classes = found[0].figure in FIGURES
    p_values = corrected([one.p_permutation for one in found], correction)
    table = Table(
        title=f"{found[0].figure}{', per cent' if of_classes else ''}; 95 % over {found[0].num_speakers} speakers"
    )
    for name in (
        "runs",
        "first",
        "second",
        "second less first",
        "p (swaps)",
        f"p ({correction})",
        "p (McNemar)",
        "p (folds)",
    ):
        table.add_column(name, justify="left" if name == "runs" else "right")
    for (first, second), one, p_value in zip(pairs, found, p_values, strict=True):
        shown = (one.first, one.second, one.difference)
        table.add_row(
            f"{names[first]}, {names[second]}",
            *(value.percent() if of_classes else value.number() for value in shown),
            *(f"{value:.3f}" for value in (one.p_permutation, p_value)),
            *("" if value != value else f"{value:.3f}" for value in (one.p_mcnemar, one.p_folds)),
        )
    console = screen()
    console.print(table)
    for folder, predictions in read.items():
        for warning in predictions.warnings:
            console.print(f"Warning: {names[folder]}: {warning}", markup=False, highlight=False, soft_wrap=True)
    if any(value != value for one in found for value in (one.p_folds, one.p_mcnemar)):
        console.print("Blank: p (folds) needs runs of the same folds, p (McNemar) classes and one seed", soft_wrap=True)
    for (first, second), one in zip(pairs, found, strict=True):
        if one.visible == 0:
            console.print(f"{names[first]}, {names[second]}: no resample of the speakers tells them apart")
            continue
        visible = f"{100 * one.visible:.1f} points" if of_classes else f"{one.visible:.3f}"
        console.print(
            f"{names[first]}, {names[second]}: with {one.num_speakers} speakers a difference under "
            f"{visible} is seen less than four times in five",
            highlight=False,
            soft_wrap=True,
        )
    if out is not None:
        content = [
            {
                "first": str(first),
                "second": str(second),
                "p_corrected": p_value,
                **one._asdict(),
                "warnings": sorted({*read[first].warnings, *read[second].warnings}),
            }
            for (first, second), one, p_value in zip(pairs, found, p_values, strict=True)
        ]
        with replacing(out) as partial:
            partial.write_text(json.dumps(plain(content), indent=1))
    return 0


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """What a table calls each run: as much of its path as tells it from the others."""
    parts = {run: (*run.absolute().parent.parts, run.stem if run.is_file() else run.name) for run in runs}
    deepest = max(map(len, parts.values()))
    for depth in range(1, deepest + 1):
        names = {run: "/".join(one[-depth:]) for run, one in parts.items()}
        if len(set(names.values())) == len(names):
            break
    return names
