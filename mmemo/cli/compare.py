"""``mmemo compare``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmemo.cli.output import console, print_line
from mmemo.wording import counted

if TYPE_CHECKING:
    from mmemo.evaluation.comparison import Comparison

Correction = Literal["holm", "bonferroni", "fdr_bh"]


def compare(
    runs: list[Path],
    *,
    metric: str | None = None,
    correction: Correction = "holm",
    out: Path | None = None,
) -> int:
    """Compares runs on the same utterances: paired over speakers, corrected for multiple comparisons.

    Args:
        runs: Two or more folders of `mmemo crossval` or `mmemo fit`, or files of `mmemo predict`.
        metric: Metric to compare: uar, accuracy, macro_f1 or weighted_f1; for dimensions ccc, ccc_arousal, mae_valence
            and so on. Defaults to uar, or ccc for a model of dimensions.
        correction: Correction for the number of pairs.
        out: JSON file to write.
    """
    if len(set(runs)) < 2:
        raise ValueError("name two runs or more, such as `mmemo compare runs/a runs/b`")
    from mmemo.evaluation.comparison import compare_runs
    from mmemo.evaluation.predictions import read_predictions
    from mmemo.evaluation.significance import correct_p_values
    from mmemo.evaluation.statistics import to_json_types
    from mmemo.files import write_json

    predictions = {run: read_predictions(run) for run in runs}
    names = short_names(runs)
    pairs = list(combinations(runs, 2))
    comparisons = [compare_runs(predictions[first], predictions[second], metric) for first, second in pairs]
    p_values = correct_p_values([comparison.p_permutation for comparison in comparisons], correction)
    labels = [f"{names[first]}, {names[second]}" for first, second in pairs]
    _print_table(labels, comparisons, p_values, correction)
    for run, part in predictions.items():
        for warning in part.warnings:
            print_line(f"Warning: {names[run]}: {warning}")
    _print_notes(labels, comparisons)
    if out is not None:
        content = [
            {
                "first": str(first),
                "second": str(second),
                "p_corrected": p_value,
                **comparison._asdict(),
                "warnings": sorted({*predictions[first].warnings, *predictions[second].warnings}),
            }
            for (first, second), comparison, p_value in zip(pairs, comparisons, p_values, strict=True)
        ]
        write_json(out, to_json_types(content))
    return 0


def _print_table(
    labels: Sequence[str], comparisons: Sequence[Comparison], p_values: Sequence[float], correction: Correction
) -> None:
    from rich.table import Table

    from mmemo.evaluation.statistics import METRICS

    is_share = comparisons[0].metric in METRICS
    unit = ", %" if is_share else ""
    table = Table(
        title=f"{comparisons[0].metric}{unit}; 95 % intervals over {counted(comparisons[0].num_speakers, 'speaker')}"
    )
    for name in (
        "runs", "first", "second", "second - first", "p (permutation)", f"p ({correction})", "p (McNemar)", "p (folds)",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "runs" else "right")
    for label, comparison, p_value in zip(labels, comparisons, p_values, strict=True):
        values = (comparison.first, comparison.second, comparison.difference)
        table.add_row(
            label,
            *(value.percent() if is_share else value.number() for value in values),
            *(f"{value:.3f}" for value in (comparison.p_permutation, p_value)),
            *("" if value != value else f"{value:.3f}" for value in (comparison.p_mcnemar, comparison.p_folds)),
        )
    console().print(table)


def _print_notes(labels: Sequence[str], comparisons: Sequence[Comparison]) -> None:
    """Explains blank cells, and prints the smallest difference that each comparison could detect."""
    from mmemo.evaluation.statistics import METRICS

    is_share = comparisons[0].metric in METRICS
    if any(value != value for comparison in comparisons for value in (comparison.p_folds, comparison.p_mcnemar)):
        print_line("Blank: p (folds) needs runs on the same folds, p (McNemar) needs classes and one seed")
    for pair, comparison in zip(labels, comparisons, strict=True):
        if comparison.detectable_difference == 0:
            print_line(f"{pair}: no resample of the speakers distinguishes them")
            continue
        detectable = (
            f"{100 * comparison.detectable_difference:.1f} points"
            if is_share
            else f"{comparison.detectable_difference:.3f}"
        )
        print_line(
            f"{pair}: with {counted(comparison.num_speakers, 'speaker')}, a difference under {detectable} is detected "
            "less than four times in five"
        )


def short_names(runs: Sequence[Path]) -> dict[Path, str]:
    """Returns the end of each run's path that distinguishes it from the others."""
    parts = {run: (*run.absolute().parent.parts, run.stem if run.is_file() else run.name) for run in runs}
    names: dict[Path, str] = {}
    for depth in range(1, max(map(len, parts.values())) + 1):
        names = {run: "/".join(part[-depth:]) for run, part in parts.items()}
        if len(set(names.values())) == len(names):
            break
    return names
