"""A run as one page: what it is worth, how sure that is, for whom, and how to do it again."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from mmemo.data.audio_facts import audio_facts
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.data.study import Study
from mmemo.evaluation import charts
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
from mmemo.evaluation.crossval import COMMAND_FILE, GATE_TABLE
from mmemo.evaluation.participants import StudyResult, natural_order, study_result
from mmemo.evaluation.predictions import Predictions, read_predictions, with_manifest
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
from mmemo.evaluation.subgroups import subgroups, usual_columns, with_audio_bands
from mmemo.files import checksum
from mmemo.pretrained import is_offline
from mmemo.training.experiment import ENVIRONMENT_FILE, environment, experiment_of, write_table, write_text

FOLDER = "report"
NAMES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}
CLASS_NAMES = {
    "uar": "UAR, %", "accuracy": "accuracy, %", "macro_f1": "macro F1, %", "roc": "ROC area, %",
    "ece": "calibration error, %",
}  # fmt: skip
TITLES = {"noise": "speech above background", "length": "length"}
FEW_SAMPLES = 1000  # of speakers, for figures that are slow to compute
PATH_KEYS = (
    "manifest",
    "path",
    "default_root_dir",
    "teacher",
    "folder",
    "weights",
    "run",
    "config",
    "space",
    "ckpt_path",
)
FILE_ENDINGS = (
    ".csv", ".tsv", ".parquet", ".ckpt", ".wav", ".flac", ".mp3", ".m4a", ".ogg", ".txt", ".json", ".yaml", ".yml",
)  # fmt: skip
"""By either a study's page knows a file name."""


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
    content: dict[str, Any] = {"run": name, "date": date.today().isoformat(), "warnings": warnings}
    pictures: dict[str, Any] = {}
    labelled = predictions.labelled
    if predictions.classes and not len(labelled.table):
        raise ValueError(f"{run}: no test utterance has a label, so there is nothing to judge predictions by")
    content["data"] = _data(predictions, table, seconds, pictures)
    if predictions.classes:
        _check_classes(labelled, warnings)
        _classes(labelled, content, pictures)
        _confidence(labelled, _validation(run, labelled.classes), content, pictures, warnings)
        _modalities(labelled, content)
    _dimensions(predictions, content, pictures)
    _subgroups(predictions, columns, content, pictures)
    _gates(run, predictions, content)
    _robustness(run, content, pictures)
    found = study_result(predictions, study) if study is not None else None
    if found is not None:
        _study(found, content, pictures)
    shown = config | ({"study": asdict(study)} if study is not None and config else {})
    content["reproduce"] = _reproduce(run, member, shown, private, manifest, study is not None)
    asked = ["--study experiment.yaml"] if study is not None and asdict(study) != config.get("study") else []
    asked += [f"--columns '{json.dumps(list(columns))}'"] if columns else []
    asked += ["--manifest MANIFEST"] if manifest is not None else []
    content["reproduce"]["commands"][-1] = " ".join([content["reproduce"]["commands"][-1], *asked])
    content["summary"] = _summary(content)
    folder = out or (run / FOLDER if run.is_dir() else run.with_name(f"{run.stem}_{FOLDER}"))
    page = _page(content, pictures)
    write_text(folder / "report.html", page)
    write_text(folder / "report.json", json.dumps(plain(content), indent=1))
    write_text(folder / "report.tex", _latex(content))
    if found is not None:
        write_table(folder / "participants.csv", found.participants)
        write_table(folder / "sessions.csv", found.sessions)
        write_table(folder / "changes.csv", found.changes)
        write_text(folder / "model_card.md", _template("model_card.md.jinja").render(**content))
        write_text(folder / "tripod_ai.md", _template("tripod_ai.md.jinja").render(**content))
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


def _data(
    predictions: Predictions, manifest: Manifest | None, seconds: float, pictures: dict[str, Any]
) -> dict[str, Any]:
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
    return {
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


def _classes(labelled: Predictions, content: dict[str, Any], pictures: dict[str, Any]) -> None:
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
    _areas(labelled, content, pictures)


def _areas(labelled: Predictions, content: dict[str, Any], pictures: dict[str, Any]) -> None:
    """ROC and precision-recall curves, one class against the others, with areas over samples of speakers."""
    from sklearn.metrics import precision_recall_curve, roc_curve

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
        for kind, drawn in zip(("roc", "pr"), _area_draws(truth, score, weights), strict=True):
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


def _drawn_interval(drawn: np.ndarray, num_speakers: int) -> Interval:
    """The first is the figure itself, the others are of samples of speakers."""
    if len(drawn) == 1:
        return Interval(float(drawn[0]), float("nan"), float("nan"))
    return Interval(float(drawn[0]), *ends(drawn[1:], num_speakers, 0.95))


def _area_draws(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _validation(run: Path, classes: Sequence[str]) -> Predictions | None:
    """Validation rows, where the run predicted them too (``--data.predict_on all``)."""
    try:
        found = read_predictions(run, "val").labelled
    except ValueError:
        return None
    return found if found.classes == list(classes) and len(found.table) else None


def _confidence(
    labelled: Predictions,
    validation: Predictions | None,
    content: dict[str, Any],
    pictures: dict[str, Any],
    warnings: list[str],
) -> None:
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


def _calibration(probs: np.ndarray, target: np.ndarray) -> dict[str, float]:
    lean = probs.max(1).mean() - (probs.argmax(1) == target).mean()  # above 0: it claims more than it is right
    return {
        "ece": reliability(probs, target).ece, "lean": float(lean),
        "brier": brier(probs, target), "log_loss": log_loss(probs, target),
    }  # fmt: skip


def _subgroups(
    predictions: Predictions,
    columns: Sequence[str],
    content: dict[str, Any],
    pictures: dict[str, Any],
) -> None:
    """Of classes, of dimensions, or of both."""
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


def _modalities(labelled: Predictions, content: dict[str, Any]) -> None:
    views = {"voice alone": labelled.view("audio"), "words alone": labelled.view("text")}
    found = {name: intervals(one.tallies())["uar"][0] for name, one in views.items() if one is not None}
    if found:
        content["modalities"] = {"voice and words": content["metrics"]["uar"], **found}


def _dimensions(predictions: Predictions, content: dict[str, Any], pictures: dict[str, Any]) -> None:
    names = predictions.dimensions
    if not names:
        return
    view = predictions._replace(classes=[]).labelled
    found = intervals(view.tallies())
    content["dimensions"] = {name: {kind: found[f"{kind}_{name}"][0] for kind in ("ccc", "mae")} for name in names}
    for name in names:
        known = view.table[name].notna()
        true, said = (view.table.loc[known, one].to_numpy(dtype=float) for one in (name, f"predicted_{name}"))
        pictures[f"dimension_{name}"] = charts.scatter(true, said, name)


def _gates(run: Path, predictions: Predictions, content: dict[str, Any]) -> None:
    """How far each modality was believed, by emotion; and the gate table, where ``predict --gates`` wrote one."""
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


def _robustness(run: Path, content: dict[str, Any], pictures: dict[str, Any]) -> None:
    path = run / "robustness" / "robustness.json"
    if path.is_file():
        rows = json.loads(path.read_text())["conditions"]
        content["robustness"] = rows
        content["robustness_reads"] = any("words" in row["condition"] for row in rows)
        pictures["robustness"] = charts.robustness(rows)


def _study(found: StudyResult, content: dict[str, Any], pictures: dict[str, Any]) -> None:
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


def _reproduce(
    run: Path, member: Path | None, config: dict[str, Any], private: bool, manifest: Path | None, of_study: bool
) -> dict[str, Any]:
    shown = _without_paths(config) if private else config
    told = member / ENVIRONMENT_FILE if member is not None and (member / ENVIRONMENT_FILE).is_file() else None
    found: dict[str, Any] = {
        "config": yaml.safe_dump(shown, sort_keys=False) if shown else "",
        **(json.loads(told.read_text()) if told is not None else environment()),
        "environment_of_run": told is not None,
        "seed": config.get("seed_everything"),
        "sha256": {},
        "private": private,
    }
    shown_run = _marked(run.name) if of_study else run.name if private else run
    places = [run / f"predictions.{kind}" for kind in ("parquet", "csv")] if run.is_dir() else [run]
    files = {"predictions": next((place for place in places if place.is_file()), None)}
    if member is not None:
        files["config"] = member / "config.yaml"
        data = config.get("data", {})
        for number, path in enumerate([data.get("manifest"), *(one["manifest"] for one in data.get("corpora") or [])]):
            if path and Path(path).is_file():
                files[f"manifest {number}" if number else "manifest"] = Path(path)
        judged = f"{config.get('checkpoint', 'best')}.ckpt"
        for path in sorted(run.rglob(f"checkpoints/{judged}"), key=lambda one: natural_order(str(one))):
            place = path.parent.parent.relative_to(run)
            if not {"inner", "tuning"} & set(place.parts):
                files[f"checkpoint {place}" if place.parts else "checkpoint"] = path
    if manifest is not None:
        files["manifest"] = manifest
    for name, file in files.items():
        if file is not None:
            found["sha256"][name] = checksum(file)
    began = run / COMMAND_FILE
    command = (
        began.read_text().strip()
        if began.is_file()
        else f"mmemo {'fit' if member == run else 'crossval'} --config experiment.yaml"
    )
    if private:
        words = shlex.split(command)
        command = " ".join(
            str(_without_paths(word, before if before.startswith("--") else ""))
            for before, word in zip(["", *words], words, strict=False)
        )
    made = [command] if run.is_dir() else []
    found["commands"] = [*made, f"mmemo report {shown_run}"]
    found["tuned"] = (member / "tuning").is_dir() if member is not None else False
    decided = [run / f"fold{number}" / "decisions.json" for number in range(1, 1 + len(list(run.glob("fold*"))))]
    found["decisions"] = [
        {"fold": path.parent.name, **json.loads(path.read_text())} for path in decided if path.is_file()
    ]
    found["nested"] = bool(found["decisions"])
    return found


def _without_paths(value: Any, key: str = "") -> Any:
    """The same settings with a mark in the place of every file name.

    Args:
        value: One setting, or tables and lists of them.
        key: What it is a setting of.
    """
    if isinstance(value, dict):
        return {name: _without_paths(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one, key) for one in value]
    if not isinstance(value, str) or not value:
        return value
    name = key.rpartition(".")[2].lstrip("-")
    if name in PATH_KEYS or "/" in value or "\\" in value or Path(value).suffix.lower() in FILE_ENDINGS:
        known = value.startswith(("openai/", "sentence-transformers/", "facebook/", "microsoft/"))
        return value if known else _marked(value)
    return value


def _marked(name: str) -> str:
    """What stands in the place of a name that may be a person's."""
    return f"file-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _summary(content: dict[str, Any]) -> list[str]:
    """In plain words, for somebody who reads nothing else."""
    data, found = content["data"], []
    hours = data["hours"] or 0
    heard = f", {hours:.1f} hours" if hours >= 1 else f", {60 * hours:.0f} minutes" if hours else ""
    tested = f"Judged on {data['num_utterances']:,} utterances of {data['num_speakers']} speakers{heard}"
    leaky = any("not separated" in one or "on two sides" in one for one in content["warnings"])
    known = bool(content["reproduce"]["config"])
    found.append(
        f"{tested}; SOME OF THEM ALSO TRAINED THE MODEL."
        if leaky
        else f"{tested}; none of them had a part in training the model that judged them."
        if known
        else f"{tested}; whether the model was trained on them is not known."
    )
    if "metrics" in content:
        uar: Interval = content["metrics"]["uar"]
        chance = 1 / max(len([one for one in content["classes"] if one["num_utterances"]]), 1)
        line = (
            f"It recognises {100 * uar.value:.0f} % of each emotion on average; guessing: {round(100 * chance, 1):g} %."
        )
        if not math.isnan(uar.low):
            line += (
                f" For other speakers like these it likely lies between {100 * uar.low:.0f} and {100 * uar.high:.0f} %."
            )
        found.append(line)
        ranked = sorted(
            (one for one in content["classes"] if one["num_utterances"]), key=lambda one: one["recall"].value
        )
        if len(ranked) > 2:
            found.append(
                f"It is best at {ranked[-1]['name']} ({100 * ranked[-1]['recall'].value:.0f} %) and worst at "
                f"{ranked[0]['name']} ({100 * ranked[0]['recall'].value:.0f} %)."
            )
        before, after = content["calibration"]["before"], content["calibration"]["after"]
        lean = before["lean"]
        how = "too sure of itself" if lean > 0.02 else "too little sure" if lean < -0.02 else "about as sure as right"
        found.append(
            f"It is {how}: its confidence is off by {100 * before['ece']:.0f} points on average"
            + (f"; calibrated, by {100 * after['ece']:.0f}." if after else ".")
        )
    for part in content["subgroups"]:
        gap = part["gaps"].get(part["main"])
        if gap is not None and gap.low > 0 and part["column"] not in ("length", "noise"):
            apart = f"{100 * gap.value:.0f} points" if part["main"] == "uar" else f"{gap.value:.2f} of mean CCC"
            low = f"{100 * gap.low:.0f} points" if part["main"] == "uar" else f"{gap.low:.2f}"
            found.append(
                f"It may not serve all alike: the best and the worst group of {part['column']} are {apart} apart here, "
                f"and likely at least {low} apart among other speakers like these."
            )
    for name, one in content.get("dimensions", {}).items():
        found.append(
            f"Its {name} agrees with the raters' by a CCC of {one['ccc'].value:.2f} (1 is perfect, 0 is none)."
        )
    if "study" in content:
        study = content["study"]
        agreement = study["agreement"].get("CCC")
        outcome = " or ".join(study["outcome"])
        found.append(
            f"{study['num_participants']} participants: the {study['how']} of {outcome} "
            + (
                f"agrees with the labels by a CCC of {agreement.value:.2f}."
                if agreement
                else "was estimated; there are no labels to compare with."
            )
        )
    return found


def plain(value: Any) -> Any:
    """For JSON: no NaN, no numpy, intervals as tables.

    Args:
        value: Figures, in tables and lists.
    """
    if isinstance(value, Interval):
        return {name: plain(one) for name, one in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=name.endswith(".html.jinja"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    return environment.from_string((resources.files("mmemo.evaluation") / "templates" / name).read_text())


def _percent(value: Any) -> str:
    if isinstance(value, Interval):
        return value.percent()
    return "n/a" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: Any, digits: int = 3) -> str:
    if isinstance(value, Interval):
        return value.number(digits)
    return "n/a" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.{digits}f}"


def _page(content: dict[str, Any], pictures: dict[str, Any]) -> str:
    from markupsafe import Markup

    page: str = _template("report.html.jinja").render(
        **content, names=NAMES, pictures={name: Markup(one) for name, one in pictures.items()}
    )
    return page


def _latex(content: dict[str, Any]) -> str:
    """Metrics and classes as one table."""

    def cell(value: Interval) -> str:
        ends = "" if math.isnan(value.low) else f" [{100 * value.low:.1f}, {100 * value.high:.1f}]"
        return "--" if math.isnan(value.value) else f"{100 * value.value:.1f}{ends}"

    def plain(text: str) -> str:
        return "".join({"_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#"}.get(one, one) for one in text)

    lines = [
        "% needs booktabs; intervals: 95 %, resampled by speaker",
        r"\begin{tabular}{lrrr}", r"\toprule",
    ]  # fmt: skip
    if "metrics" in content:
        lines += [r"class & recall & precision & F1 \\", r"\midrule"]
        for one in content["classes"]:
            cells = " & ".join(cell(one[name]) for name in ("recall", "precision", "f1"))
            lines.append(rf"{plain(one['name'])} & {cells} \\")
        lines.append(r"\midrule")
        for name, value in content["metrics"].items():
            lines.append(rf"\multicolumn{{3}}{{l}}{{{NAMES[name]}}} & {cell(value)} \\")
    for name, one in content.get("dimensions", {}).items():
        value = one["ccc"]
        ends = "" if math.isnan(value.low) else f" [{value.low:.3f}, {value.high:.3f}]"
        lines.append(rf"\multicolumn{{3}}{{l}}{{CCC of {name}}} & {value.value:.3f}{ends} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
