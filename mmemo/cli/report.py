"""`mmemo report`."""

from __future__ import annotations

from pathlib import Path

from mmemo.cli.verb import call, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(report, argv, "report")


def report(
    run: Path,
    out: Path | None = None,
    manifest: Path | None = None,
    columns: list[str] | str = [],  # noqa: B006
    study: Path | None = None,
) -> int:
    """One self-contained HTML page of a run: figures with intervals, pictures, subgroups, how to reproduce it.

    Writes report.html, report.json and report.tex; for a study also model_card.md,
    tripod_ai.md, and tables of participants, their sessions and changes. The page opens
    anywhere without a network, and shows neither words nor paths of recordings.

    Args:
        run: Folder of `mmemo crossval`, or of `mmemo fit` after `mmemo predict`; or a file of predictions.
        out: Folder to write; RUN/report, of a file NAME_report beside it, when not given.
        manifest: What was predicted; that of the run's config when not given.
        columns: Further columns of the manifest to look at subgroups of; gender, age, language, corpus, length and
            noise are looked at wherever they are known.
        study: YAML with a block `study`, in the place of what the run began with: another outcome needs no training.
    """

    from mmemo.data.clinical_study import read_study
    from mmemo.report.report import report as write

    asked = read_study(study) if study is not None else None
    found = write(run, out, manifest, [columns] if isinstance(columns, str) else columns, asked)
    console = screen()
    for line in [*found.content["summary"], *(f"Warning: {line}" for line in found.content["warnings"])]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Page: {found.html}; the same as JSON and LaTeX beside it", soft_wrap=True)
    return 0
