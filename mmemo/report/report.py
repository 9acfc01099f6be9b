"""Writes the report of a run: how good and certain its predictions are, for which groups, how to reproduce them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmemo.data.audio_facts import audio_facts
from mmemo.data.clinical_study import ClinicalStudy
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.data.splits import BOTH_SIDES, MAYBE_BOTH_SIDES, SHARED_RECORDINGS, TAUGHT_SPEAKERS
from mmemo.evaluation.participants import ClinicalResult, clinical_result
from mmemo.evaluation.predictions import Predictions, read_predictions, with_manifest
from mmemo.evaluation.statistics import Interval
from mmemo.evaluation.subgroups import add_audio_bands
from mmemo.files import read_yaml, write_table, write_text
from mmemo.report.classification import classification_section, confidence_section, validation_rows
from mmemo.report.content import (
    Classification,
    Confidence,
    ReportContent,
    Section,
    SpeakerCalibration,
    StudySummary,
    TestSpeakers,
)
from mmemo.report.page import html_page, latex_tables, summary, template
from mmemo.report.reproduction import Provenance, provenance
from mmemo.report.results import (
    data_section,
    dimensions_section,
    fusion_section,
    modalities_section,
    robustness_section,
    speaker_calibration_section,
    study_section,
    subgroups_section,
)
from mmemo.settings import is_offline
from mmemo.training.experiment_cli import read_experiment
from mmemo.wording import counted

FOLDER = "report"
OVERLAPS = (
    *(BOTH_SIDES.format(first=side, second="test") for side in ("train", "val")),
    SHARED_RECORDINGS,
    TAUGHT_SPEAKERS,
)
MIN_SPEAKERS = 10
"""Reports on fewer speakers get a warning."""


class Report(NamedTuple):
    """A written report.

    Args:
        html: The page.
        content: All results, as in ``report.json``.
        summary: Summary in plain language.
        folder: Folder of page, JSON and LaTeX tables, and of a study's tables, model card and checklist.
    """

    html: Path
    content: ReportContent
    summary: list[str]
    folder: Path

    def __repr__(self) -> str:
        return f"Report(html={str(self.html)!r}, summary={self.summary})"


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    manifest: str | Path | None = None,
    columns: Sequence[str] = (),
    study: ClinicalStudy | None = None,
) -> Report:
    """Writes the report of a run.

    Args:
        run: Folder of ``mmemo crossval``, or of ``mmemo fit`` after ``mmemo predict``; or a file of predictions.
        out: Folder to write. Defaults to ``RUN/report``, or to ``NAME_report`` beside a file.
        manifest: Manifest of the predictions. Defaults to that of the run's config.
        columns: Further columns to compare subgroups of, beside the default ones.
        study: Clinical study to evaluate. Defaults to that of the run's config.

    Raises:
        ValueError: There are no predictions or no labels, or the manifest does not match.

    Example:
        >>> import tempfile
        >>> import pandas as pd
        >>> rows = {"id": list("abcd"), "speaker": ["s1", "s1", "s2", "s2"], "emotion": ["anger", "fear"] * 2}
        >>> table = pd.DataFrame(rows).assign(prob_anger=[0.9, 0.2] * 2, prob_fear=[0.1, 0.8] * 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table.to_csv(f"{folder}/predictions.csv", index=False)
        ...     report = write_report(f"{folder}/predictions.csv")
        >>> print(report.summary[1][:63])
        It recognises 100 % of each emotion on average; chance is 50 %.
    """
    run, manifest = Path(run), None if manifest is None else Path(manifest)
    inputs = _read_inputs(run, manifest, columns, study)
    predictions, study, warnings = inputs.predictions, inputs.study, list(inputs.warnings)
    test_speakers = _check_speakers(predictions, warnings, bool(inputs.config))
    data = data_section(predictions, inputs.manifest, inputs.seconds)
    classification: Section[Classification | None] = Section(None)
    confidence: Section[Confidence | None] = Section(None)
    modalities: Section[dict[str, Interval] | None] = Section(None)
    calibration: Section[SpeakerCalibration | None] = Section(None)
    if predictions.classes:
        labelled = predictions.labelled
        if labelled.table.empty:
            raise ValueError(f"{run}: no test utterance has a label, so the predictions cannot be evaluated")
        _check_classes(labelled, warnings)
        results = classification_section(labelled)
        classification = results
        confidence = confidence_section(labelled, validation_rows(run, labelled.classes))
        modalities = modalities_section(labelled, results.content.metrics["uar"])
        calibration = speaker_calibration_section(labelled)
    dimensions = dimensions_section(predictions)
    subgroups = subgroups_section(predictions, columns)
    robustness = robustness_section(run)
    result = clinical_result(predictions, study) if study is not None else None
    clinical: Section[StudySummary | None] = study_section(result) if result is not None else Section(None)
    content = ReportContent(
        run=run.name if study is None else study.name,  # a folder may be named after a patient
        date=date.today().isoformat(),
        warnings=warnings + confidence.warnings,
        test_speakers=test_speakers,
        data=data.content,
        classification=classification.content,
        confidence=confidence.content,
        modalities=modalities.content,
        speaker_calibration=calibration.content,
        dimensions=dimensions.content,
        subgroups=subgroups.content,
        fusion=fusion_section(run, predictions).content,
        robustness=robustness.content,
        study=clinical.content,
        reproduce=_provenance(run, inputs, manifest, columns),
    )
    svgs: dict[str, str] = {}
    for section in (data, classification, confidence, dimensions, subgroups, robustness, clinical):
        svgs |= section.svgs
    folder = Path(out) if out else (run / FOLDER if run.is_dir() else run.with_name(f"{run.stem}_{FOLDER}"))
    return _write(folder, content, svgs, result)


class _Inputs(NamedTuple):
    """What a report is made from.

    Args:
        predictions: Predictions with the manifest's columns; with a study, its participants are the speakers.
        manifest: Manifest of the predictions; None if unknown.
        seconds: Total duration of the recordings; NaN if unknown.
        warnings: Warnings about the inputs.
        config_folder: Folder with the run's config; None if there is none.
        config: The run's config.
        study: Clinical study to evaluate.
        private: Whether file names must be hidden.
    """

    predictions: Predictions
    manifest: Manifest | None
    seconds: float
    warnings: list[str]
    config_folder: Path | None
    config: dict[str, Any]
    study: ClinicalStudy | None
    private: bool


def _read_inputs(run: Path, manifest: Path | None, columns: Sequence[str], study: ClinicalStudy | None) -> _Inputs:
    predictions = read_predictions(run)
    config_folder = _config_folder(run)
    config: dict[str, Any] = {}
    if config_folder is not None:
        config = read_yaml(config_folder / "config.yaml")
    if study is None and config.get("study"):
        study = ClinicalStudy(**config["study"])
    private = study is not None or is_offline() or bool(config.get("offline"))
    table, problem = _read_manifest(config_folder, manifest, private)
    seconds = math.nan
    if table is not None:
        predictions = with_manifest(predictions, table, [*columns, *(study.columns if study else [])])
    warnings = list(predictions.warnings)  # with those about the manifest
    if table is not None:
        predictions, seconds = _with_audio(predictions, table, warnings)
    else:
        warnings.append(problem)
    if study is not None and study.participant in predictions.table:
        participants = predictions.table[study.participant]
        predictions = predictions._replace(table=predictions.table.assign(speaker=participants))
    return _Inputs(predictions, table, seconds, warnings, config_folder, config, study, private)


def _provenance(run: Path, inputs: _Inputs, manifest: Path | None, columns: Sequence[str]) -> Provenance:
    config, options = inputs.config, []
    if inputs.study is not None:
        study = asdict(inputs.study)
        options += ["--study experiment.yaml"] if study != config.get("study") else []
        config = config | {"study": study} if config else {}
    options += [f"--columns {shlex.join(columns)}"] if columns else []
    options += ["--manifest MANIFEST"] if manifest is not None else []
    of_study = inputs.study is not None
    return provenance(run, inputs.config_folder, config, inputs.private, manifest, of_study, options)


def _write(folder: Path, content: ReportContent, svgs: dict[str, str], result: ClinicalResult | None) -> Report:
    lines = summary(content)
    write_text(folder / "report.html", html_page(content, lines, svgs))
    write_text(folder / "report.json", json.dumps(content.as_json() | {"summary": lines}, indent=1))
    write_text(folder / "report.tex", latex_tables(content))
    if result is not None:
        for name in ("participants", "sessions", "changes"):
            write_table(folder / f"{name}.csv", getattr(result, name))
        for name in ("model_card.md", "tripod_ai.md"):
            write_text(folder / name, template(f"{name}.jinja").render(report=content, summary=lines))
    return Report(folder / "report.html", content, lines, folder)


def _config_folder(run: Path) -> Path | None:
    """The folder with the run's config: its own, or that of its first fold."""
    if not run.is_dir():
        return None
    for folder in (run, run / "fold1", *sorted(run.glob("seed*/fold1"))):
        if (folder / "config.yaml").is_file():
            return folder
    return None


def _read_manifest(config_folder: Path | None, path: Path | None, private: bool) -> tuple[Manifest | None, str]:
    """The manifest of the predictions, or a warning why there is none."""
    if path is not None:
        return read_manifest(path), ""
    if config_folder is None:
        return (
            None,
            "there is no config beside the predictions, so speakers and recordings are known only from the "
            "predictions; give the manifest",
        )
    try:
        return read_experiment(config_folder).data.read(), ""
    except (OSError, ValueError) as error:
        detail = "" if private else f" ({str(error).splitlines()[0]})"  # may contain a path
        return None, f"the run's manifest cannot be read{detail}; give the manifest"


def _with_audio(predictions: Predictions, manifest: Manifest, warnings: list[str]) -> tuple[Predictions, float]:
    """Adds duration and noise of each utterance if the recordings are available; also returns the total duration."""
    ids = set(predictions.table["id"])
    utterances = [utterance for utterance in manifest if utterance.id in ids and utterance.path is not None]
    if not utterances:
        return predictions, math.nan
    if not any(utterance.path is not None and utterance.path.exists() for utterance in utterances[:20]):
        warnings.append("the recordings are not at the manifest's paths, so their length and noise are unknown")
        return predictions, math.nan
    facts = {utterance.id: fact for utterance, fact in zip(utterances, audio_facts(utterances), strict=True)}
    predictions = add_audio_bands(predictions, facts)
    return predictions, float(predictions.table.drop_duplicates("id")["seconds"].sum())


def _check_speakers(predictions: Predictions, warnings: list[str], has_config: bool) -> TestSpeakers:
    """Warns of missing speakers and of speakers in several folds, and returns whether training used test speakers."""
    is_shared = any(sentence in line for line in warnings for sentence in OVERLAPS)
    is_unknown = not has_config or any(MAYBE_BOTH_SIDES in line for line in warnings)
    table = predictions.table.drop_duplicates("id")
    num_missing = int(table["speaker"].isna().sum())
    if num_missing:
        warnings.append(
            f"{num_missing} utterances have no speaker: each counts as its own speaker, so intervals are too narrow"
        )
    if "fold" in table and table[table["speaker"].notna()].groupby("speaker")["fold"].nunique().gt(1).any():
        warnings.append("speakers not separated: some are tested in several folds, so they were also trained on")
        is_shared = True
    return "overlap" if is_shared else "unknown" if is_unknown or num_missing else "disjoint"


def _check_classes(labelled: Predictions, warnings: list[str]) -> None:
    """Warns of missing classes and of few speakers."""
    present = set(labelled.table["emotion"])
    missing = [name for name in labelled.classes if name not in present]
    if missing:
        warnings.append(f"no test utterance is {', '.join(missing)}, so these classes are not evaluated")
    if "fold" in labelled.table:
        for fold, rows in labelled.table.groupby("fold"):
            absent = sorted(present - set(rows["emotion"]))
            if absent:
                warnings.append(f"fold {fold} has no {', '.join(absent)}: its UAR is over the other classes")
    num_speakers = len(np.unique(labelled.speakers))
    if num_speakers < 2:
        warnings.append("only one speaker was tested: results may not hold for others, and there are no intervals")
    elif num_speakers < MIN_SPEAKERS:
        warnings.append(f"tested on only {counted(num_speakers, 'speaker')}: intervals are rough")
