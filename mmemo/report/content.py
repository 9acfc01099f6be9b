"""What each section of a report tells: its figures, its drawings, and what cannot be judged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmemo.data.manifest import Manifest
from mmemo.evaluation.calibration import (
    CALIBRATIONS,
    COVERAGE,
    Reliability,
    brier,
    coverage_over_splits,
    log_loss,
    out_of_speaker,
    reliability,
    risk_coverage,
)
from mmemo.evaluation.participants import StudyResult
from mmemo.evaluation.predictions import Predictions, read_predictions
from mmemo.evaluation.statistics import (
    FIGURES,
    Interval,
    class_figures,
    draws,
    ends,
    intervals,
    per_class,
    visible_difference,
)
from mmemo.evaluation.subgroups import subgroups, usual_columns
from mmemo.report import charts
from mmemo.studies.crossval import GATE_TABLE

CLASS_NAMES = {
    "uar": "UAR, %", "accuracy": "accuracy, %", "macro_f1": "macro F1, %", "roc": "ROC area, %",
    "ece": "calibration error, %",
}  # fmt: skip
TITLES = {"noise": "speech above background", "length": "length"}
FEW_SAMPLES = 1000  # of speakers, for figures that are slow to compute


class Section(NamedTuple):
    """A part of a report.

    Args:
        content: Name -> figures, as in ``report.json``.
        pictures: Name -> drawing.
        warnings: What a reader must know.
    """

    content: dict[str, Any]
    pictures: dict[str, Any]
    warnings: Sequence[str] = ()


def data_section(predictions: Predictions, manifest: Manifest | None, seconds: float) -> Section:
    """Who and what was judged.

    Args:
        predictions: Of the run.
        manifest: What was predicted, where it is known.
        seconds: Length of all recordings together; NaN where they are not at hand.
    """
    pictures: dict[str, Any] = {}
    once = predictions.table.drop_duplicates("id")
    labels = once["emotion"].fillna("(none)").value_counts()
    pictures["labels"] = charts.bars({str(name): int(count) for name, count in labels.items()}, "test utterances")
    columns: dict[str, dict[str, float]] = {}
    for name in ("gender", "language", "corpus"):
        if name in once and once[name].notna().any():
            columns[name] = {str(value): int(count) for value, count in once[name].value_counts().items()}
    age = pd.to_numeric(once.get("age", pd.Series(dtype=float)), errors="coerce").dropna()
    if len(age):
        columns["age"] = {"mean": round(float(age.mean()), 1), "lowest": float(age.min()), "highest": float(age.max())}
    lengths = once["seconds"].dropna() if "seconds" in once else pd.Series(dtype=float)
    words = None
    if manifest is not None:
        words = manifest.frame.loc[manifest.frame["id"].isin(once["id"]), "text"].fillna("").str.strip().ne("")
    speakers = once.groupby("fold")["speaker"].nunique().tolist() if "fold" in once else []
    data = {
        "seconds_each": [float(lengths.quantile(share)) for share in (0, 0.5, 1)] if len(lengths) else None,
        "with_words": float(words.mean()) if words is not None and words.any() else None,
        "fold_speakers": [int(number) for number in speakers] if len(speakers) <= 20 else [],
        "num_utterances": len(once),
        "num_labelled": int(once["emotion"].isin(predictions.classes).sum()) if predictions.classes else None,
        "num_speakers": int(once["speaker"].nunique()),
        "without_speaker": int(once["speaker"].isna().sum()),
        "hours": None if math.isnan(seconds) else round(seconds / 3600, 3),
        "folds": int(once["fold"].nunique()) if "fold" in once else 1,
        "seeds": [int(seed) for seed in predictions.seeds],
        "labels": {str(name): int(count) for name, count in labels.items()},
        "columns": columns,
    }
    return Section({"data": data}, pictures)


def classes_section(labelled: Predictions) -> Section:
    """Metrics with intervals, classes, confusions, speakers, folds, areas under curves.

    Args:
        labelled: Predictions that have a label.
    """
    content: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    tallies = labelled.tallies()
    whole = intervals(tallies)
    content["metrics"] = {name: whole[name][0] for name in FIGURES}
    seeds = max(len(labelled.seeds), 1)
    by_class = intervals(tallies, per_class)
    total = tallies.sums.sum((0, 2)) / seeds
    content["classes"] = [
        {"name": name, "num_utterances": int(total[place]), **{kind: by_class[kind][place] for kind in by_class}}
        for place, name in enumerate(labelled.classes)
    ]
    confusion = tallies.sums.sum(0) / seeds
    content["confusion"] = {"classes": labelled.classes, "counts": confusion.round(2).tolist()}
    pictures["confusion"] = charts.confusion(confusion, labelled.classes)
    if len(tallies.speakers) > 1:
        interval = whole["uar"][0]
        content["visible_difference"] = visible_difference(
            math.sqrt(2) * (interval.high - interval.low) / 3.92, len(tallies.speakers)
        )
        by_speaker = class_figures(tallies.sums)["accuracy"]
        content["speakers"] = {
            "lowest": float(np.nanmin(by_speaker)), "median": float(np.nanmedian(by_speaker)),
            "highest": float(np.nanmax(by_speaker)),
        }  # fmt: skip
    if "fold" in labelled.table:
        keys = [name for name in ("seed", "fold") if name in labelled.table]
        content["folds"] = [
            {"name": " ".join(f"{key} {value}" for key, value in zip(keys, np.atleast_1d(number), strict=True)),
             "uar": float(class_figures(labelled._replace(table=rows).tallies().sums.sum(0))["uar"])}
            for number, rows in labelled.table.groupby(keys if len(keys) > 1 else keys[0])
        ]  # fmt: skip
    areas = _areas(labelled)
    return Section(content | areas.content, pictures | areas.pictures)


def _areas(labelled: Predictions) -> Section:
    """ROC and precision-recall curves, one class against the others, with areas over samples of speakers."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    content: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    probs, target = labelled.probs, labelled.target
    names, numbers = np.unique(labelled.speakers, return_inverse=True)
    weights = np.ones((1, len(target)))
    if len(names) > 1:
        weights = np.concatenate([weights, draws(len(names), FEW_SAMPLES, 0)[:, numbers]])
    lines: dict[str, dict[str, tuple[np.ndarray, np.ndarray, float]]] = {"roc": {}, "pr": {}}
    areas: dict[str, dict[str, Interval]] = {}
    every: dict[str, list[np.ndarray]] = {"roc": [], "pr": []}
    for place, name in enumerate(labelled.classes):
        truth = target == place
        if truth.all() or not truth.any():
            continue
        score = probs[:, place]
        areas[name] = {}
        for kind, drawn in zip(("roc", "pr"), area_draws(truth, score, weights), strict=True):
            areas[name][kind] = _drawn_interval(drawn, len(names))
            every[kind].append(drawn)
        across, up, _ = roc_curve(truth, score)
        right, found, _ = precision_recall_curve(truth, score)
        lines["roc"][name] = (across, up, areas[name]["roc"].value)
        lines["pr"][name] = (found, right, areas[name]["pr"].value)
    content["areas"] = areas
    if areas:
        content["mean_areas"] = {
            kind: _drawn_interval(np.mean(drawn, axis=0), len(names)) for kind, drawn in every.items()
        }
        pictures["roc"] = charts.curves(lines["roc"], "ROC")
        pictures["pr"] = charts.curves(lines["pr"], "Precision-recall")
    return Section(content, pictures)


def _drawn_interval(drawn: np.ndarray, num_speakers: int) -> Interval:
    """The first is the figure itself, the others are of samples of speakers."""
    if len(drawn) == 1:
        return Interval(float(drawn[0]), float("nan"), float("nan"))
    return Interval(float(drawn[0]), *ends(drawn[1:], num_speakers, 0.95))


def area_draws(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC area (Mann and Whitney's rank statistic, ties count half) and average precision of each row of weights.

    Args:
        truth: Whether an utterance is of the class ``(utterance,)``.
        score: Of the class.
        weights: How often each utterance counts ``(sample, utterance)``.
    """
    order = np.argsort(-score, kind="stable")
    hit = truth[order]
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each run of equal scores
    roc, average = np.empty(len(weights)), np.empty(len(weights))
    for row, weight in enumerate(weights):
        ordered = weight[order]
        found, said = np.cumsum(ordered * hit)[last], np.cumsum(ordered)[last]
        new = np.diff(found, prepend=0)
        others = np.diff(said - found, prepend=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            roc[row] = (others * (found - new / 2)).sum() / (found[-1] * others.sum())
            average[row] = (new * found / np.maximum(said, 1e-12)).sum() / found[-1]
    return roc, average


def validation_rows(run: Path, classes: Sequence[str]) -> Predictions | None:
    """Validation rows, where the run predicted them too (``--data.predict_on all``).

    Args:
        run: Folder or file.
        classes: Of the test rows.
    """
    try:
        found = read_predictions(run, "val").labelled
    except ValueError:
        return None
    return found if found.classes == list(classes) and len(found.table) else None


def confidence_section(labelled: Predictions, validation: Predictions | None) -> Section:
    """Calibration, what could be left unanswered, and sets of classes with a stated coverage.

    Args:
        labelled: Predictions that have a label.
        validation: Rows to fit calibration on; the other test speakers where there are none.
    """
    content: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    warnings: list[str] = []
    probs, target, speakers = labelled.probs, labelled.target, labelled.speakers
    scaled: dict[str, np.ndarray] = {}
    if validation is not None:
        fitted_on = "the validation speakers"
        scaled = {name: fit(validation.probs, validation.target)(probs) for name, fit in CALIBRATIONS.items()}
    elif len(np.unique(speakers)) > 1:
        fitted_on = "the other test speakers"
        scaled = {name: out_of_speaker(probs, target, speakers, name) for name in CALIBRATIONS}
    if labelled.calibrated is not None:
        fitted_on = "inner folds"
        scaled = {"temperature": labelled.calibrated}
    shown: dict[str, Reliability] = {"as it is": reliability(probs, target)}
    content["calibration"] = {"before": _calibration(probs, target), "after": None, "vector": None, "how": None}
    calibrated = scaled.get("temperature")
    if "vector" in scaled:
        content["calibration"]["vector"] = _calibration(scaled["vector"], target)
    if calibrated is not None:
        content["calibration"]["how"] = f"temperature fitted on {fitted_on}"
        shown["calibrated"] = reliability(calibrated, target)
        content["calibration"]["after"] = _calibration(calibrated, target)
        if content["calibration"]["after"]["ece"] > content["calibration"]["before"]["ece"]:
            warnings.append(
                "calibration made the probabilities worse: there is too little to fit it on, so take them as they are"
            )
    pictures["reliability"] = charts.reliability(shown)
    sure = probs if calibrated is None else calibrated
    curve = risk_coverage(sure, target)
    content["selective"] = {
        "area": curve.area,
        "risk": {f"{share:.0%}": curve.at(share)[0] for share in (1.0, 0.9, 0.8, 0.6, 0.4)},
    }
    if "answered" in labelled.table:
        answered = labelled.table["answered"].to_numpy(dtype=bool)
        right = labelled.predicted == target
        content["selective"]["decided"] = {
            "answered": float(answered.mean()),
            "wrong": float(1 - right[answered].mean()) if answered.any() else None,
        }
    pictures["risk"] = charts.risk_coverage(curve)
    if len(np.unique(speakers)) >= 4:
        content["conformal"] = {"asked": COVERAGE, **coverage_over_splits(probs, target, speakers, COVERAGE)}
    else:
        warnings.append("fewer than four test speakers: sets of classes with a stated coverage cannot be judged")
    if "conformal_set" in labelled.table:
        sets = [str(names).split() for names in labelled.table["conformal_set"]]
        content["decided_sets"] = {
            "asked": COVERAGE,
            "coverage": float(
                np.mean([name in one for name, one in zip(labelled.table["emotion"], sets, strict=True)])
            ),
            "size": float(np.mean([len(one) for one in sets])),
        }
    return Section(content, pictures, warnings)


def _calibration(probs: np.ndarray, target: np.ndarray) -> dict[str, float]:
    lean = probs.max(1).mean() - (probs.argmax(1) == target).mean()  # above 0: it claims more than it is right
    return {
        "ece": reliability(probs, target).ece, "lean": float(lean),
        "brier": brier(probs, target), "log_loss": log_loss(probs, target),
    }  # fmt: skip


def subgroups_section(predictions: Predictions, columns: Sequence[str]) -> Section:
    """Groups of utterances apart: by classes, by dimensions, or by both.

    Args:
        predictions: Of the run.
        columns: Further columns to look at, beside the usual ones.
    """
    content: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    content["subgroups"] = []
    views = [("", predictions, CLASS_NAMES, "uar")] if predictions.classes else []
    if predictions.dimensions:
        names = {"ccc": "mean CCC"} | {f"ccc_{name}": f"CCC of {name}" for name in predictions.dimensions}
        views.append(("dimensions", predictions._replace(classes=[]), names, "ccc"))
    for kind, view, names, main in views:
        view = view.labelled
        scale = 100 if main == "uar" else 1
        overall = intervals(view.tallies(), num_samples=2)[main][0].value
        for column in dict.fromkeys([*usual_columns(view), *columns]):
            if len(views) > 1 and column in view.table and view.table[column].nunique() < 2:
                continue  # one value alone among the utterances with such a label
            found = subgroups(view, column)
            picture = "_".join(filter(None, ["subgroup", column, kind]))
            content["subgroups"].append(
                {
                    "column": column, "picture": picture,
                    "title": ": ".join(filter(None, [TITLES.get(column, column), kind])),
                    "main": main, "names": names, "classes": view.classes,
                    "groups": [group._asdict() for group in found.groups],
                    "gaps": found.gaps, "equalised_odds": found.equalised_odds, "warnings": found.warnings,
                }
            )  # fmt: skip
            rows = [(group.name, *group.figures[main]) for group in found.groups]
            pictures[picture] = charts.intervals(rows, names[main], overall, scale)
    return Section(content, pictures)


def modalities_section(labelled: Predictions, whole: Interval) -> Section:
    """Voice alone and words alone, where the run predicted them.

    Args:
        labelled: Predictions that have a label.
        whole: UAR of both together.
    """
    views = {"voice alone": labelled.view("audio"), "words alone": labelled.view("text")}
    found = {name: intervals(one.tallies())["uar"][0] for name, one in views.items() if one is not None}
    return Section({"modalities": {"voice and words": whole, **found}} if found else {}, {})


def dimensions_section(predictions: Predictions) -> Section:
    """Valence, arousal and dominance: agreement with the raters, and error.

    Args:
        predictions: Of the run.
    """
    content: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    names = predictions.dimensions
    if not names:
        return Section({}, {})
    view = predictions._replace(classes=[]).labelled
    found = intervals(view.tallies())
    content["dimensions"] = {name: {kind: found[f"{kind}_{name}"][0] for kind in ("ccc", "mae")} for name in names}
    for name in names:
        known = view.table[name].notna()
        true, said = (view.table.loc[known, one].to_numpy(dtype=float) for one in (name, f"predicted_{name}"))
        pictures[f"dimension_{name}"] = charts.scatter(true, said, name)
    return Section(content, pictures)


def gates_section(run: Path, predictions: Predictions) -> Section:
    """How far each modality was believed, by emotion; and the gate table, where ``predict --gates`` wrote one.

    Args:
        run: Folder or file.
        predictions: Of the run.
    """
    content: dict[str, Any] = {}
    table = predictions.table
    weights = [str(name) for name in table if str(name).startswith("weight_")]
    if weights:
        means = table.groupby(table["emotion"].fillna("(none)"))[weights].mean()
        content["weights"] = {
            str(name): {one.removeprefix("weight_"): float(row[one]) for one in weights}
            for name, row in means.iterrows()
        }
    files = [run / f"gates.{kind}" for kind in ("parquet", "csv") if (run / f"gates.{kind}").is_file()]
    if files:
        from mmemo.evaluation.gates import gate_table, read_gates

        content["gates"] = gate_table(read_gates(files[0])).to_dict("records")
    elif run.is_dir():
        found = [path for path in run.rglob(GATE_TABLE) if not {"inner", "tuning"} & set(path.relative_to(run).parts)]
        if found:
            whole = pd.concat([pd.read_csv(path, dtype={"group": str}) for path in found])
            means = whole.groupby(["modality", "group"], sort=False)[["num_features", "mean", "open"]].mean()
            content["gates"] = means.reset_index().astype({"num_features": int}).to_dict("records")
    return Section(content, {})


def robustness_section(run: Path) -> Section:
    """What ``mmemo robustness`` found of the run.

    Args:
        run: Its folder.
    """
    content: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    path = run / "robustness" / "robustness.json"
    if path.is_file():
        rows = json.loads(path.read_text())["conditions"]
        content["robustness"] = rows
        content["robustness_reads"] = any("words" in row["condition"] for row in rows)
        pictures["robustness"] = charts.robustness(rows)
    return Section(content, pictures)


def study_section(found: StudyResult) -> Section:
    """What a health study asked.

    Args:
        found: Its answer.
    """
    content: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    people = found.participants
    content["study"] = {
        "name": found.study.name, "outcome": found.study.outcome, "how": found.study.how,
        "num_participants": len(people), "num_sessions": len(found.sessions),
        "utterances_each": [int(people["num_utterances"].min()), int(people["num_utterances"].max())],
        "agreement": found.agreement, "participants": people.to_dict("records"),
        "changes": found.changes.to_dict("records"),
        "mean_change": None if math.isnan(found.mean_change.value) else found.mean_change,
        "covariates": found.covariates.to_dict("records"), "missing": found.missing, "warnings": found.warnings,
    }  # fmt: skip
    if people["true"].notna().sum() > 2:
        known = people[people["true"].notna()]
        pictures["participants"] = charts.scatter(
            known["true"].to_numpy(),
            known["predicted"].to_numpy(),
            f"{found.study.how} of {' or '.join(found.study.outcome)}",
        )
    if len(found.changes):
        rows = found.changes[["participant", "change", "low", "high"]].itertuples(index=False)
        pictures["changes"] = charts.changes([tuple(row) for row in rows])
    return Section(content, pictures)
