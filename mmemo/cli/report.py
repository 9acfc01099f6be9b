"""``mmemo report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmemo.cli.output import print_line


def report(
    run: Path,
    /,
    *,
    out: Path | None = None,
    manifest: Path | None = None,
    columns: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    study: Path | None = None,
) -> int:
    """Writes one HTML page of a run: metrics with intervals, pictures, subgroups, how to reproduce it.

    Writes report.html, report.json and report.tex; for a study also model_card.md, tripod_ai.md, and tables of
    participants, sessions and changes. The page needs no network, and shows neither words nor paths of recordings.

    Args:
        run: Folder of `mmemo crossval`, or of `mmemo fit` after `mmemo predict`; or a file of predictions.
        out: Folder to write. Defaults to RUN/report, or NAME_report beside a file.
        manifest: Manifest that was predicted. Defaults to the run's own.
        columns: Further manifest columns for subgroups; gender, age, language, corpus, length and noise are always
            included if they are known.
        study: YAML with a block `study` that replaces the run's own; another outcome needs no training.
    """
    from mmemo.data.clinical_study import read_clinical_study
    from mmemo.report.report import write_report

    result = write_report(run, out, manifest, columns or [], None if study is None else read_clinical_study(study))
    for line in [*result.summary, *(f"Warning: {warning}" for warning in result.content.warnings)]:
        print_line(line)
    print_line(f"Page: {result.html}; JSON and LaTeX are in the same folder")
    return 0
