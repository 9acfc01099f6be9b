"""Computes the sections of a report from predictions: results, charts and warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mmemo.data.manifest import Manifest
from mmemo.evaluation.gates import gate_table, read_gates
from mmemo.evaluation.participants import ClinicalResult
from mmemo.evaluation.predictions import Predictions
from mmemo.evaluation.statistics import (
    Interval,
    intervals,
)
from mmemo.evaluation.subgroups import default_columns, evaluate_subgroups
from mmemo.report import charts
from mmemo.report.content import (
    DataSummary,
    DimensionMetrics,
    FusionSummary,
    Section,
    SpeakerCalibration,
    StudySummary,
    SubgroupTable,
)
from mmemo.studies.crossval import GATE_TABLE

METRIC_TITLES = {
    "uar": "UAR, %", "accuracy": "accuracy, %", "macro_f1": "macro F1, %", "roc": "ROC area, %",
    "ece": "calibration error, %",
}  # fmt: skip
COLUMN_TITLES = {"noise": "signal-to-noise ratio"}


def data_section(predictions: Predictions, manifest: Manifest | None, seconds: float) -> Section[DataSummary]:
    """Summarises test utterances and speakers.

    Args:
        predictions: Predictions of the run.
        manifest: Manifest of the run, if available.
        seconds: Total duration of the recordings; NaN if unknown.
    """
    once = predictions.table.drop_duplicates("id")
    labels = {str(name): int(count) for name, count in once["emotion"].fillna("(none)").value_counts().items()}
    seconds_each = once["seconds"].dropna() if "seconds" in once else pd.Series(dtype=float)
    has_text = None
    if manifest is not None:
        has_text = manifest.frame.loc[manifest.frame["id"].isin(once["id"]), "text"].fillna("").str.strip().ne("")
    folds = once.groupby("fold")["speaker"].nunique().tolist() if "fold" in once else []
    summary = DataSummary(
        num_utterances=len(once),
        num_labelled=int(once["emotion"].isin(predictions.classes).sum()) if predictions.classes else None,
        num_speakers=int(once["speaker"].nunique()),
        num_without_speaker=int(once["speaker"].isna().sum()),
        hours=None if math.isnan(seconds) else round(seconds / 3600, 3),
        seconds=[float(seconds_each.quantile(share)) for share in (0, 0.5, 1)] if len(seconds_each) else None,
        share_with_text=float(has_text.mean()) if has_text is not None and has_text.any() else None,
        num_folds=int(once["fold"].nunique()) if "fold" in once else 1,
        num_speakers_per_fold=[int(number) for number in folds] if len(folds) <= 20 else [],
        seeds=[int(seed) for seed in predictions.seeds],
        labels=labels,
        columns=_count_columns(once),
    )
    return Section(summary, {"labels": charts.bars(labels, "test utterances")})


def _count_columns(utterances: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Value counts of gender, language and corpus, and the range of ages."""
    columns: dict[str, dict[str, float]] = {}
    for name in ("gender", "language", "corpus"):
        if name in utterances and utterances[name].notna().any():
            columns[name] = {str(value): int(count) for value, count in utterances[name].value_counts().items()}
    age = pd.to_numeric(utterances.get("age", pd.Series(dtype=float)), errors="coerce").dropna()
    if len(age):
        columns["age"] = {"mean": round(float(age.mean()), 1), "lowest": float(age.min()), "highest": float(age.max())}
    return columns


def subgroups_section(predictions: Predictions, columns: Sequence[str]) -> Section[list[SubgroupTable]]:
    """Compares groups of utterances, by their class metrics and by their dimension metrics.

    Args:
        predictions: Predictions of the run.
        columns: Further columns to compare, beside the default ones.
    """
    tables: list[SubgroupTable] = []
    svgs: dict[str, str] = {}
    kinds: list[tuple[str, Predictions, Mapping[str, str], str]] = []
    if predictions.classes:
        kinds.append(("", predictions.labelled, METRIC_TITLES, "uar"))
    if predictions.dimensions:
        ccc_titles = {"ccc": "mean CCC"} | {f"ccc_{name}": f"CCC of {name}" for name in predictions.dimensions}
        kinds.append(("dimensions", predictions._replace(classes=[]).labelled, ccc_titles, "ccc"))
    for kind, labelled, titles, main_metric in kinds:
        overall = intervals(labelled.speaker_counts(), num_samples=2)[main_metric][0].value
        for column in dict.fromkeys([*default_columns(labelled), *columns]):
            if len(kinds) > 1 and column in labelled.table and labelled.table[column].nunique() < 2:
                continue  # utterances with labels of this kind have only one value
            result = evaluate_subgroups(labelled, column)
            chart = "_".join(filter(None, ["subgroup", column, kind]))
            tables.append(
                SubgroupTable(
                    column=column,
                    title=": ".join(filter(None, [COLUMN_TITLES.get(column, column), kind])),
                    chart=chart,
                    main_metric=main_metric,
                    metric_titles=titles,
                    classes=labelled.classes,
                    groups=result.groups,
                    gaps=result.gaps,
                    equalised_odds=result.equalised_odds,
                    warnings=result.warnings,
                )
            )
            rows = [(group.name, *group.metrics[main_metric]) for group in result.groups]
            svgs[chart] = charts.intervals(rows, titles[main_metric], overall, 100 if main_metric == "uar" else 1)
    return Section(tables, svgs)


def modalities_section(labelled: Predictions, both: Interval) -> Section[dict[str, Interval] | None]:
    """Evaluates each modality alone, if the run predicted it.

    Args:
        labelled: Labelled predictions.
        both: UAR of both modalities together.
    """
    single = {f"{name} only": labelled.condition(name) for name in ("audio", "text")}
    uars = {name: intervals(run.speaker_counts())["uar"][0] for name, run in single.items() if run is not None}
    return Section({"audio and text": both, **uars} if uars else None)


def speaker_calibration_section(labelled: Predictions) -> Section[SpeakerCalibration | None]:
    """Compares the calibrated model with the same model as for unknown speakers, if the run predicted both.

    Args:
        labelled: Labelled predictions.
    """
    uncalibrated = labelled.condition("uncalibrated")
    if uncalibrated is None or "enrolled_utterances" not in labelled.table:
        return Section(None)
    enrolled = labelled.table["enrolled_utterances"]
    correct = pd.DataFrame(
        {
            "speaker": labelled.speakers,
            "calibrated": labelled.predicted == labelled.target,
            "uncalibrated": uncalibrated.predicted == uncalibrated.target,
        }
    )
    accuracy = correct.groupby("speaker").mean()
    return Section(
        SpeakerCalibration(
            num_enrolled=[int(enrolled.min()), int(enrolled.max())],
            calibrated=intervals(labelled.speaker_counts())["uar"][0],
            uncalibrated=intervals(uncalibrated.speaker_counts())["uar"][0],
            num_speakers=len(accuracy),
            num_better=int((accuracy["calibrated"] > accuracy["uncalibrated"]).sum()),
            num_worse=int((accuracy["calibrated"] < accuracy["uncalibrated"]).sum()),
        )
    )


def dimensions_section(predictions: Predictions) -> Section[dict[str, DimensionMetrics] | None]:
    """Evaluates valence, arousal and dominance.

    Args:
        predictions: Predictions of the run.
    """
    names = predictions.dimensions
    if not names:
        return Section(None)
    labelled = predictions._replace(classes=[]).labelled
    metrics = intervals(labelled.speaker_counts())
    svgs = {}
    for name in names:
        rows = labelled.table[labelled.table[name].notna()]
        true, predicted = (rows[column].to_numpy(dtype=float) for column in (name, f"predicted_{name}"))
        svgs[f"dimension_{name}"] = charts.scatter(true, predicted, name)
    return Section(
        {name: DimensionMetrics(metrics[f"ccc_{name}"][0], metrics[f"mae_{name}"][0]) for name in names}, svgs
    )


def fusion_section(run: Path, predictions: Predictions) -> Section[FusionSummary]:
    """Summarises the weight of each modality by emotion, and the gates if ``predict --gates`` wrote them.

    Args:
        run: Folder or file.
        predictions: Predictions of the run.
    """
    table = predictions.table
    columns = [str(name) for name in table if str(name).startswith("weight_")]
    weights = None
    if columns:
        means = table.groupby(table["emotion"].fillna("(none)"))[columns].mean()
        weights = {
            str(emotion): {name.removeprefix("weight_"): float(row[name]) for name in columns}
            for emotion, row in means.iterrows()
        }
    return Section(FusionSummary(weights, _gate_rows(run)))


def _gate_rows(run: Path) -> list[dict[str, Any]] | None:
    """Rows of the gate table of a run, averaged over folds."""
    files = [run / f"gates.{kind}" for kind in ("parquet", "csv") if (run / f"gates.{kind}").is_file()]
    if files:
        return gate_table(read_gates(files[0])).to_dict("records")
    if not run.is_dir():
        return None
    tables = [path for path in run.rglob(GATE_TABLE) if not {"inner", "tuning"} & set(path.relative_to(run).parts)]
    if not tables:
        return None
    folds = pd.concat([pd.read_csv(path, dtype={"group": str}) for path in tables])
    means = folds.groupby(["modality", "group"], sort=False)[["num_features", "mean", "open"]].mean()
    return means.reset_index().astype({"num_features": int}).to_dict("records")


def robustness_section(run: Path) -> Section[list[dict[str, Any]] | None]:
    """Reads the conditions of ``mmemo robustness``, if it was run.

    Args:
        run: Folder of the run.
    """
    path = run / "robustness" / "robustness.json"
    if not path.is_file():
        return Section(None)
    rows = json.loads(path.read_text())["conditions"]
    return Section(rows, {"robustness": charts.robustness(rows)})


def study_section(result: ClinicalResult) -> Section[StudySummary]:
    """Summarises a clinical study.

    Args:
        result: Results of the study.
    """
    study, participants = result.study, result.participants
    svgs = {}
    content = StudySummary(
        name=study.name,
        outcome=study.outcome,
        how=study.how,
        num_participants=len(participants),
        num_sessions=len(result.sessions),
        utterances_per_participant=[
            int(participants["num_utterances"].min()), int(participants["num_utterances"].max())
        ],
        agreement=result.agreement,
        participants=participants.to_dict("records"),
        changes=result.changes.to_dict("records"),
        mean_change=None if math.isnan(result.mean_change.value) else result.mean_change,
        covariates=result.covariates.to_dict("records"),
        missing=result.missing,
        warnings=result.warnings,
    )  # fmt: skip
    labelled = participants[participants["true"].notna()]
    if len(labelled) > 2:
        svgs["participants"] = charts.scatter(
            labelled["true"].to_numpy(),
            labelled["predicted"].to_numpy(),
            f"{study.how} of {' or '.join(study.outcome)}",
        )
    if len(result.changes):
        rows = result.changes[["participant", "change", "low", "high"]].itertuples(index=False)
        svgs["changes"] = charts.changes([tuple(row) for row in rows])
    return Section(content, svgs)
