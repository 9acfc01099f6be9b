"""A run as one page: what it is worth, how sure that is, for whom, and how to do it again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from mmemo.data.audio_facts import audio_facts
from mmemo.data.clinical_study import Study
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.evaluation.participants import study_result
from mmemo.evaluation.predictions import Predictions, read_predictions, with_manifest
from mmemo.evaluation.statistics import plain
from mmemo.evaluation.subgroups import with_audio_bands
from mmemo.files import write_table, write_text
from mmemo.report.content import (
    classes_section,
    confidence_section,
    data_section,
    dimensions_section,
    gates_section,
    modalities_section,
    robustness_section,
    study_section,
    subgroups_section,
    validation_rows,
)
from mmemo.report.page import html_page, latex_table, summary, template
from mmemo.report.reproduction import provenance
from mmemo.settings import is_offline
from mmemo.training.experiment import experiment_of

FOLDER = "report"


class Report(NamedTuple):
    """Files of a report.

    Args:
        html: The page.
        content: All its figures, as in ``report.json``.
        folder: Where page, JSON, LaTeX table, and a study's tables, model card and checklist are.
    """

    html: Path
    content: dict[str, Any]
    folder: Path


def report(
    run: Path,
    out: Path | None = None,
    manifest: Path | None = None,
    columns: Sequence[str] = (),
    study: Study | None = None,
) -> Report:
    """Writes the report of a run.

    Args:
        run: Folder of ``mmemo crossval``, or of ``mmemo fit`` after ``mmemo predict``; or a file of predictions.
        out: Folder to write; ``RUN/report``, of a file ``NAME_report`` beside it, when not given.
        manifest: What was predicted; that of the run's config when not given.
        columns: Further columns to look at subgroups of, beside the usual ones.
        study: What a health study asks; that of the run's config when not given.

    Raises:
        ValueError: There are no predictions, or they do not match the manifest.
    """
    predictions = read_predictions(run)
    member = _member(run)
    config = yaml.safe_load((member / "config.yaml").read_text()) if member is not None else {}
    if study is None and config.get("study"):
        study = Study(**config["study"])
    private = study is not None or is_offline() or bool(config.get("offline"))
    table, problem = _manifest(member, manifest, private)
    warnings = list(predictions.warnings)
    seconds = math.nan
    if table is not None:
        predictions = with_manifest(predictions, table, [*columns, *(study.columns if study else [])])
        predictions, seconds = _with_audio(predictions, table, warnings)
    else:
        warnings.append(problem)
    if study is not None and study.participant in predictions.table:
        people = predictions.table[study.participant]
        predictions = predictions._replace(table=predictions.table.assign(speaker=people))
    _check_speakers(predictions, warnings)
    name = run.name if study is None else study.name  # a folder may be called after a patient
    labelled = predictions.labelled
    if predictions.classes and not len(labelled.table):
        raise ValueError(f"{run}: no test utterance has a label, so there is nothing to judge predictions by")
    sections = [data_section(predictions, table, seconds)]
    if predictions.classes:
        _check_classes(labelled, warnings)
        classes = classes_section(labelled)
        sections += [
            classes,
            confidence_section(labelled, validation_rows(run, labelled.classes)),
            modalities_section(labelled, classes.content["metrics"]["uar"]),
        ]
    sections += [
        dimensions_section(predictions),
        subgroups_section(predictions, columns),
        gates_section(run, predictions),
        robustness_section(run),
    ]
    found = study_result(predictions, study) if study is not None else None
    if found is not None:
        sections.append(study_section(found))
    content: dict[str, Any] = {"run": name, "date": date.today().isoformat(), "warnings": warnings}
    pictures: dict[str, Any] = {}
    for section in sections:
        content |= section.content
        pictures |= section.pictures
        warnings += section.warnings
    shown = config | ({"study": asdict(study)} if study is not None and config else {})
    content["reproduce"] = provenance(run, member, shown, private, manifest, study is not None)
    asked = ["--study experiment.yaml"] if study is not None and asdict(study) != config.get("study") else []
    asked += [f"--columns '{json.dumps(list(columns))}'"] if columns else []
    asked += ["--manifest MANIFEST"] if manifest is not None else []
    content["reproduce"]["commands"][-1] = " ".join([content["reproduce"]["commands"][-1], *asked])
    content["summary"] = summary(content)
    folder = out or (run / FOLDER if run.is_dir() else run.with_name(f"{run.stem}_{FOLDER}"))
    write_text(folder / "report.html", html_page(content, pictures))
    write_text(folder / "report.json", json.dumps(plain(content), indent=1))
    write_text(folder / "report.tex", latex_table(content))
    if found is not None:
        write_table(folder / "participants.csv", found.participants)
        write_table(folder / "sessions.csv", found.sessions)
        write_table(folder / "changes.csv", found.changes)
        write_text(folder / "model_card.md", template("model_card.md.jinja").render(**content))
        write_text(folder / "tripod_ai.md", template("tripod_ai.md.jinja").render(**content))
    return Report(folder / "report.html", content, folder)


def _member(run: Path) -> Path | None:
    """A folder with a config: the run's own, or that of its first fold."""
    if not run.is_dir():
        return None
    for folder in (run, run / "fold1", *sorted(run.glob("seed*/fold1"))):
        if (folder / "config.yaml").is_file():
            return folder
    return None


def _manifest(member: Path | None, path: Path | None, private: bool) -> tuple[Manifest | None, str]:
    """The table that was predicted; or why there is none."""
    if path is not None:
        return read_manifest(path), ""
    if member is None:
        return (
            None,
            "there is no config beside the predictions, so of speakers and recordings nothing is known but what that "
            "file says; give --manifest",
        )
    try:
        datamodule = experiment_of(member).datamodule
        datamodule.setup("predict")
        return datamodule.manifest, ""
    except (OSError, ValueError, RuntimeError, SystemExit) as error:
        why = "" if private else f" ({str(error).splitlines()[0]})"  # which may name a path
        return None, f"the run's manifest cannot be read{why}; give --manifest"


def _with_audio(predictions: Predictions, table: Manifest, warnings: list[str]) -> tuple[Predictions, float]:
    """Length and noise of each utterance, where its audio is still there."""
    wanted = set(predictions.table["id"])
    utterances = [one for one in table if one.id in wanted and one.path is not None]
    if not utterances:
        return predictions, math.nan
    if not any(one.path is not None and one.path.exists() for one in utterances[:20]):
        warnings.append("the recordings are not where the manifest says, so nothing is known of their length and noise")
        return predictions, math.nan
    facts = {one.id: fact for one, fact in zip(utterances, audio_facts(utterances), strict=True)}
    predictions = with_audio_bands(predictions, facts)
    return predictions, float(predictions.table.drop_duplicates("id")["seconds"].sum())


def _check_speakers(predictions: Predictions, warnings: list[str]) -> None:
    """Who is resampled must be known, and stand in one fold."""
    table = predictions.table.drop_duplicates("id")
    unknown = int(table["speaker"].isna().sum())
    if unknown:
        warnings.append(
            f"{unknown} utterances name no speaker: each counts as one of its own, so intervals are too narrow"
        )
    if "fold" in table and table[table["speaker"].notna()].groupby("speaker")["fold"].nunique().gt(1).any():
        warnings.append("speakers not separated: some are tested in several folds, and so also trained on")


def _check_classes(labelled: Predictions, warnings: list[str]) -> None:
    present = set(labelled.table["emotion"])
    missing = [name for name in labelled.classes if name not in present]
    if missing:
        warnings.append(f"no test utterance is {', '.join(missing)}: nothing is known of these classes")
    if "fold" in labelled.table:
        for fold, rows in labelled.table.groupby("fold"):
            absent = sorted(present - set(rows["emotion"]))
            if absent:
                warnings.append(f"fold {fold} has no {', '.join(absent)}: its own UAR is of the other classes")
    num_speakers = len(np.unique(labelled.speakers))
    if num_speakers < 2:
        warnings.append("one speaker alone was tested: nothing can be said of others, and there are no intervals")
    elif num_speakers < 10:
        warnings.append(f"only {num_speakers} speakers were tested: intervals are rough")
