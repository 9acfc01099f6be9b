"""From utterances to participants: one value each, how well it agrees with the truth, how it changes between visits."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmemo.data.clinical_study import Study
from mmemo.evaluation.predictions import Predictions
from mmemo.evaluation.statistics import Interval, ccc, speaker_bootstrap

FEW_UTTERANCES = 5
"""Utterances below which a visit's value has no interval."""
UNWEIGHTED = 1.0
"""Weight of an utterance whose length is not known."""


class StudyResult(NamedTuple):
    """What a study found.

    Args:
        study: What was asked.
        participants: One row each: ``participant``, ``num_visits``, ``num_utterances``, ``seconds``, ``predicted`` and,
            where utterances have labels, ``true``; covariates behind.
        sessions: The same for each visit of each participant.
        agreement: Figure -> interval over participants.
        changes: One row per participant with two visits or more: first and last value, change, its interval over
            utterances; empty without visits.
        mean_change: Of all of them, with an interval over participants.
        covariates: One row per covariate: its distribution and how it goes with the outcome and with the error.
        missing: Utterances left out, and why.
        warnings: What a reader must know.
    """

    study: Study
    participants: pd.DataFrame
    sessions: pd.DataFrame
    agreement: dict[str, Interval]
    changes: pd.DataFrame
    mean_change: Interval
    covariates: pd.DataFrame
    missing: dict[str, int]
    warnings: list[str]


def study_result(predictions: Predictions, study: Study, num_samples: int = 1000, seed: int = 0) -> StudyResult:
    """Figures of participants.

    Args:
        predictions: Out-of-fold, with the manifest's columns, and ``seconds`` where known.
        study: What is asked; visits come in the order of their names, numbers in them as numbers.
        num_samples: Bootstrap samples.
        seed: Of the draws.

    Raises:
        ValueError: An outcome the model does not know, a column that is missing, or fewer than two participants.
    """
    study.check(predictions.classes, [str(name) for name in predictions.table if "prob_" not in str(name)])
    table = predictions.table
    if "seed" in table:  # probabilities averaged
        names = [name for name in table if "prob_" in str(name)]
        means = table.groupby("id")[names].mean()
        table = table.drop_duplicates("id").reset_index(drop=True)
        table[names] = means.loc[table["id"]].to_numpy()
    missing = {"without a participant": int(table[study.participant].isna().sum())}
    if study.visit is not None:
        missing["without a visit"] = int(table[study.visit].isna().sum())
    kept = table[study.participant].notna()
    if study.visit is not None:
        kept &= table[study.visit].notna()
    rows = _values(predictions._replace(table=table[kept].reset_index(drop=True)), study)
    rows["participant"] = rows["participant"].astype(str)
    if rows["participant"].nunique() < 2:
        raise ValueError(
            f"the predictions have {rows['participant'].nunique()} participants in column {study.participant!r}; "
            "a study needs two or more"
        )
    warnings = []
    if "seconds" not in table:
        warnings.append("lengths of utterances are not known, so each counts the same rather than by its time")
    sessions = _aggregated(rows, ["participant", "visit"], study.how)
    participants = _aggregated(rows, ["participant"], study.how)
    participants.insert(1, "num_visits", sessions.groupby("participant").size().to_numpy())
    for name in study.covariates:
        first = table[kept].groupby(table[study.participant].astype(str))[name].first()
        participants[name] = participants["participant"].map(first)
    agreement = _agreement(participants, num_samples, seed)
    few = participants[participants["num_utterances"] < 5]
    if len(few):
        warnings.append(f"{len(few)} participants have fewer than 5 utterances; their values are mostly luck")
    if len(participants) < 20:
        warnings.append(f"{len(participants)} participants: intervals are wide, and nothing smaller can be claimed")
    changes = _changes(rows, sessions, study.how, num_samples, seed)
    mean_change = Interval(*[float("nan")] * 3)
    if len(changes) > 1:
        values = changes["change"].to_numpy(dtype=float)
        mean_change = speaker_bootstrap(
            lambda some: float(values[some].mean()),
            changes["participant"].to_numpy(),
            num_samples=num_samples,
            seed=seed,
        )
    covariates = pd.DataFrame([_covariate(participants, name) for name in study.covariates])
    return StudyResult(
        study, participants, sessions, agreement, changes, mean_change, covariates,
        {name: count for name, count in missing.items() if count}, warnings,
    )  # fmt: skip


def _values(predictions: Predictions, study: Study) -> pd.DataFrame:
    """Of each utterance: whether, or how likely, it shows the outcome, and its weight."""
    table = predictions.table
    places = [predictions.classes.index(name) for name in study.outcome]
    probs = predictions.probs if predictions.calibrated is None else predictions.calibrated
    likely = probs[:, places].sum(1)
    said = np.isin(probs.argmax(1), places).astype(float)
    known = table["emotion"].isin(predictions.classes)
    true = np.where(known, table["emotion"].isin(study.outcome), np.nan).astype(float)
    seconds = table["seconds"].fillna(UNWEIGHTED) if "seconds" in table else pd.Series(UNWEIGHTED, index=table.index)
    return pd.DataFrame(
        {
            "participant": table[study.participant],
            "visit": table[study.visit].astype(str) if study.visit else "1",
            "value": said if study.how == "share" else likely,
            "true": true,
            "seconds": seconds.to_numpy(dtype=float),
        }
    )


def natural_order(name: str) -> tuple[list[int | str], ...]:
    """Key by which visit 10 comes after visit 2.

    Args:
        name: Of a visit, or anything else with a number in it.
    """
    return tuple([int(part), part] if part.isdigit() else [-1, part] for part in re.split(r"(\d+)", name))


def _aggregate(rows: pd.DataFrame, how: str) -> dict[str, Any]:
    weight = rows["seconds"].to_numpy()
    value = rows["value"].to_numpy()
    true = rows["true"].to_numpy()
    known = ~np.isnan(true)
    return {
        "num_utterances": len(rows),
        "seconds": float(weight.sum()),
        "predicted": float(value.max() if how == "max" else np.average(value, weights=weight)),
        "true": _true(true[known], weight[known], how),
    }


def _true(true: np.ndarray, weight: np.ndarray, how: str) -> float:
    if not len(true):
        return float("nan")
    return float(true.max() if how == "max" else np.average(true, weights=weight))


def _aggregated(rows: pd.DataFrame, by: list[str], how: str) -> pd.DataFrame:
    parts = sorted(rows.groupby(by), key=lambda part: (part[0][0], *map(natural_order, part[0][1:])))
    return pd.DataFrame([{**dict(zip(by, key, strict=True)), **_aggregate(some, how)} for key, some in parts])


def _agreement(participants: pd.DataFrame, num_samples: int, seed: int) -> dict[str, Interval]:
    """Of the predicted with the true value over participants."""
    known = participants[participants["true"].notna()]
    if len(known) < 3:
        return {}
    true, predicted = known["true"].to_numpy(), known["predicted"].to_numpy()
    names = known["participant"].to_numpy()

    def rank(some: np.ndarray) -> float:
        from scipy.stats import spearmanr

        if len(np.unique(true[some])) < 2 or len(np.unique(predicted[some])) < 2:
            return float("nan")
        return float(spearmanr(true[some], predicted[some]).statistic)

    figures = {
        "CCC": lambda some: ccc(true[some], predicted[some]),
        "Spearman's rank correlation": rank,
        "mean absolute error": lambda some: float(np.abs(true[some] - predicted[some]).mean()),
        "mean error": lambda some: float((predicted[some] - true[some]).mean()),
    }
    found = {
        name: speaker_bootstrap(figure, names, num_samples=num_samples, seed=seed) for name, figure in figures.items()
    }
    return {name: one for name, one in found.items() if not np.isnan(one.value)}


def _changes(rows: pd.DataFrame, sessions: pd.DataFrame, how: str, num_samples: int, seed: int) -> pd.DataFrame:
    """Last visit less first of each participant, with an interval over the utterances of both."""
    random = np.random.default_rng(seed)
    found = []
    for participant, visits in sessions.groupby("participant", sort=True):
        if len(visits) < 2:
            continue
        first, last = visits.iloc[0], visits.iloc[-1]
        drawn = np.zeros(num_samples)
        alike = False
        for sign, visit in ((-1, first["visit"]), (1, last["visit"])):
            some = rows[(rows["participant"] == participant) & (rows["visit"] == visit)]
            values, weight = some["value"].to_numpy(), some["seconds"].to_numpy()
            alike = alike or len(np.unique(values)) < 2
            chosen = random.integers(len(some), size=(num_samples, len(some)))
            if how == "max":
                drawn += sign * values[chosen].max(1)
            else:
                drawn += sign * (values[chosen] * weight[chosen]).sum(1) / weight[chosen].sum(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        few = min(first["num_utterances"], last["num_utterances"]) < FEW_UTTERANCES
        if how == "max" or few or alike:
            low = high = float("nan")  # resampling a few values, values all alike, or their largest, says nothing
        found.append(
            {
                "participant": participant, "first_visit": first["visit"], "last_visit": last["visit"],
                "first": first["predicted"], "last": last["predicted"],
                "change": last["predicted"] - first["predicted"],
                "low": float(low), "high": float(high), "true_change": last["true"] - first["true"],
            }
        )  # fmt: skip
    names = ["participant", "first_visit", "last_visit", "first", "last", "change", "low", "high", "true_change"]
    return pd.DataFrame(found, columns=names)


def _covariate(participants: pd.DataFrame, name: str) -> dict[str, Any]:
    """A covariate's distribution, and whether outcome and error go with it."""
    from scipy.stats import kruskal, spearmanr

    values = participants[name]
    known = participants[values.notna()]
    found: dict[str, Any] = {"covariate": name, "missing": int(values.isna().sum())}
    number = pd.to_numeric(known[name], errors="coerce")
    numeric = bool(number.notna().all()) and len(known) > 0
    if numeric:
        found["distribution"] = (
            f"mean {number.mean():.1f}, deviation {number.std():.1f}, {number.min():g} to {number.max():g}"
        )
    else:
        counts = known[name].astype(str).value_counts()
        found["distribution"] = ", ".join(f"{one} {count}" for one, count in counts.items())
    error = (known["predicted"] - known["true"]).abs()
    for what, numbers in (("outcome", known["predicted"]), ("error", error)):
        p_value = float("nan")
        some = numbers.notna()
        if some.sum() > 3 and numbers[some].nunique() > 1:
            if numeric and number[some].nunique() > 1:
                p_value = float(spearmanr(number[some], numbers[some]).pvalue)
            elif not numeric:
                parts = [part.to_numpy() for _, part in numbers[some].groupby(known.loc[some, name].astype(str))]
                if len(parts) > 1 and min(map(len, parts)) > 1:
                    p_value = float(kruskal(*parts).pvalue)
        found[f"p_{what}"] = p_value
    return found
