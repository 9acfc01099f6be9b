"""Clinical studies: one value per participant and visit, its agreement with the labels, and its change over visits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from natsort import natsort_key

from mmemo.data.clinical_study import ClinicalStudy
from mmemo.evaluation.predictions import Predictions
from mmemo.evaluation.statistics import Interval, ccc, speaker_bootstrap
from mmemo.wording import counted

MIN_UTTERANCES = 5
"""Values of participants and visits with fewer utterances are unreliable; changes from or to them have no interval."""
MIN_PARTICIPANTS = 20
"""Studies with fewer participants get a warning."""
DEFAULT_WEIGHT = 1.0
"""Weight of an utterance whose duration is unknown."""


class ClinicalResult(NamedTuple):
    """Results of a clinical study.

    Args:
        study: Definition of the study.
        participants: One row per participant: ``participant``, ``num_visits``, ``num_utterances``, ``seconds``,
            ``predicted``, ``true`` (NaN without labels), and covariates.
        sessions: One row per participant and ``visit``, with the same columns except covariates.
        agreement: Agreement of predicted and true values, with intervals over participants; empty for fewer than three
            participants with labels.
        changes: One row per participant with two or more visits: ``first``, ``last``, ``change``, its limits ``low``
            and ``high`` over utterances, and ``true_change``.
        mean_change: Mean change, with an interval over participants.
        covariates: One row per covariate: its distribution, and p-values of its association with outcome and error.
        missing: Number of utterances that were left out, for each reason.
        warnings: Warnings for the reader.
    """

    study: ClinicalStudy
    participants: pd.DataFrame
    sessions: pd.DataFrame
    agreement: dict[str, Interval]
    changes: pd.DataFrame
    mean_change: Interval
    covariates: pd.DataFrame
    missing: dict[str, int]
    warnings: list[str]


def clinical_result(
    predictions: Predictions, study: ClinicalStudy, num_samples: int = 1000, seed: int = 0
) -> ClinicalResult:
    """Evaluates a clinical study.

    Args:
        predictions: Out-of-fold predictions with the manifest's columns, and ``seconds`` if known.
        study: Definition of the study. Visits are in natural order: visit 10 follows visit 2.
        num_samples: Number of bootstrap samples.
        seed: Random seed.

    Raises:
        ValueError: An outcome is not a class, a column is missing, or there are fewer than two participants.

    Example:
        >>> people, visits, emotions = ["p1", "p1", "p2", "p2"], ["1", "2"] * 2, ["fear", "calm"] * 2
        >>> table = pd.DataFrame({"id": list("abcd"), "speaker": people, "visit": visits, "emotion": emotions})
        >>> table = table.assign(prob_fear=[0.9, 0.4, 0.8, 0.3], prob_calm=[0.1, 0.6, 0.2, 0.7])
        >>> study = ClinicalStudy(outcome=["fear"], how="mean", visit="visit")
        >>> result = clinical_result(Predictions(table, ["calm", "fear"], []), study, num_samples=100)
        >>> print(f"{result.mean_change.value:.1f}")
        -0.5
    """
    study.check(predictions.classes, [str(name) for name in predictions.table if "prob_" not in str(name)])
    table = predictions.table if "seed" not in predictions.table else _average_seeds(predictions.table)
    missing = {"without a participant": int(table[study.participant].isna().sum())}
    kept = table[study.participant].notna()
    if study.visit is not None:
        missing["without a visit"] = int(table[study.visit].isna().sum())
        kept &= table[study.visit].notna()
    rows = _utterance_values(predictions._replace(table=table[kept].reset_index(drop=True)), study)
    rows["participant"] = rows["participant"].astype(str)
    if rows["participant"].nunique() < 2:
        raise ValueError(
            f"the predictions have {rows['participant'].nunique()} participants in column {study.participant!r}; "
            "a study needs two or more"
        )
    sessions = _aggregate_by(rows, ["participant", "visit"], study.how)
    participants = _aggregate_by(rows, ["participant"], study.how)
    participants.insert(1, "num_visits", sessions.groupby("participant").size().to_numpy())
    for name in study.covariates:
        first = table[kept].groupby(table[study.participant].astype(str))[name].first()
        participants[name] = participants["participant"].map(first)
    changes = _changes(rows, sessions, study.how, num_samples, seed)
    mean_change = Interval.without_limits(float("nan"))
    if len(changes) > 1:
        values = changes["change"].to_numpy(dtype=float)
        mean_change = speaker_bootstrap(
            lambda sample: float(values[sample].mean()),
            changes["participant"].to_numpy(),
            num_samples=num_samples,
            seed=seed,
        )
    return ClinicalResult(
        study=study,
        participants=participants,
        sessions=sessions,
        agreement=_agreement(participants, num_samples, seed),
        changes=changes,
        mean_change=mean_change,
        covariates=pd.DataFrame([_describe_covariate(participants, name) for name in study.covariates]),
        missing={name: count for name, count in missing.items() if count},
        warnings=_warnings(participants, has_durations="seconds" in table),
    )


def _warnings(participants: pd.DataFrame, has_durations: bool) -> list[str]:
    warnings = []
    if not has_durations:
        warnings.append("durations of utterances are unknown, so every utterance has the same weight")
    num_few = int((participants["num_utterances"] < MIN_UTTERANCES).sum())
    if num_few:
        warnings.append(f"{num_few} participants have fewer than {MIN_UTTERANCES} utterances; their values are noisy")
    if len(participants) < MIN_PARTICIPANTS:
        warnings.append(
            f"{counted(len(participants), 'participant')}: intervals are wide, and only large effects can be shown"
        )
    return warnings


def _average_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """One row per utterance, with probabilities averaged over seeds."""
    names = [name for name in table if "prob_" in str(name)]
    means = table.groupby("id")[names].mean()
    table = table.drop_duplicates("id").reset_index(drop=True)
    table[names] = means.loc[table["id"]].to_numpy()
    return table


def _utterance_values(predictions: Predictions, study: ClinicalStudy) -> pd.DataFrame:
    """The outcome of each utterance: predicted (0 or 1 for shares, a probability otherwise), true, and its weight."""
    table = predictions.table
    outcome = [predictions.classes.index(name) for name in study.outcome]
    probs = predictions.probs if predictions.calibrated is None else predictions.calibrated
    is_outcome, probability = np.isin(probs.argmax(1), outcome).astype(float), probs[:, outcome].sum(1)
    labelled = table["emotion"].isin(predictions.classes)
    true = np.where(labelled, table["emotion"].isin(study.outcome), np.nan).astype(float)
    if "seconds" in table:
        seconds = table["seconds"].fillna(DEFAULT_WEIGHT)
    else:
        seconds = pd.Series(DEFAULT_WEIGHT, index=table.index)
    return pd.DataFrame(
        {
            "participant": table[study.participant],
            "visit": table[study.visit].astype(str) if study.visit else "1",
            "value": is_outcome if study.how == "share" else probability,
            "true": true,
            "seconds": seconds.to_numpy(dtype=float),
        }
    )


def _aggregate_by(rows: pd.DataFrame, columns: list[str], how: str) -> pd.DataFrame:
    """One row per group, participants in alphabetical order and their visits in natural order."""
    groups = sorted(rows.groupby(columns), key=lambda group: (group[0][0], *map(natsort_key, group[0][1:])))
    return pd.DataFrame([{**dict(zip(columns, key, strict=True)), **_aggregate(group, how)} for key, group in groups])


def _aggregate(rows: pd.DataFrame, how: str) -> dict[str, Any]:
    weight = rows["seconds"].to_numpy()
    true = rows["true"].to_numpy()
    labelled = ~np.isnan(true)
    return {
        "num_utterances": len(rows),
        "seconds": float(weight.sum()),
        "predicted": _combine(rows["value"].to_numpy(), weight, how),
        "true": _combine(true[labelled], weight[labelled], how),
    }


def _combine(values: np.ndarray, weight: np.ndarray, how: str) -> float:
    """The highest value or the weighted mean; NaN without values."""
    if not len(values):
        return float("nan")
    return float(values.max() if how == "max" else np.average(values, weights=weight))


def _agreement(participants: pd.DataFrame, num_samples: int, seed: int) -> dict[str, Interval]:
    """Agreement of predicted and true values over participants."""
    labelled = participants[participants["true"].notna()]
    if len(labelled) < 3:
        return {}
    true, predicted = labelled["true"].to_numpy(), labelled["predicted"].to_numpy()
    names = labelled["participant"].to_numpy()

    def rank_correlation(rows: np.ndarray) -> float:
        from scipy.stats import spearmanr

        if len(np.unique(true[rows])) < 2 or len(np.unique(predicted[rows])) < 2:
            return float("nan")
        return float(spearmanr(true[rows], predicted[rows]).statistic)

    metrics = {
        "CCC": lambda rows: ccc(true[rows], predicted[rows]),
        "Spearman's rank correlation": rank_correlation,
        "mean absolute error": lambda rows: float(np.abs(true[rows] - predicted[rows]).mean()),
        "mean error": lambda rows: float((predicted[rows] - true[rows]).mean()),
    }
    agreement = {
        name: speaker_bootstrap(metric, names, num_samples=num_samples, seed=seed) for name, metric in metrics.items()
    }
    return {name: interval for name, interval in agreement.items() if not np.isnan(interval.value)}


def _changes(rows: pd.DataFrame, sessions: pd.DataFrame, how: str, num_samples: int, seed: int) -> pd.DataFrame:
    """Last visit minus first for each participant, with a bootstrap interval over the utterances of both visits."""
    random = np.random.default_rng(seed)
    changes = []
    for participant, visits in sessions.groupby("participant", sort=True):
        if len(visits) < 2:
            continue
        first, last = visits.iloc[0], visits.iloc[-1]
        samples = np.zeros(num_samples)
        is_constant = False
        for sign, visit in ((-1, first["visit"]), (1, last["visit"])):
            utterances = rows[(rows["participant"] == participant) & (rows["visit"] == visit)]
            values, weight = utterances["value"].to_numpy(), utterances["seconds"].to_numpy()
            is_constant = is_constant or len(np.unique(values)) < 2
            chosen = random.integers(len(utterances), size=(num_samples, len(utterances)))
            if how == "max":
                samples += sign * values[chosen].max(1)
            else:
                samples += sign * (values[chosen] * weight[chosen]).sum(1) / weight[chosen].sum(1)
        low, high = np.percentile(samples, [2.5, 97.5])
        is_short = min(first["num_utterances"], last["num_utterances"]) < MIN_UTTERANCES
        if how == "max" or is_short or is_constant:
            low = high = float("nan")  # the bootstrap fails for a maximum, for few values and for equal values
        changes.append(
            {
                "participant": participant, "first_visit": first["visit"], "last_visit": last["visit"],
                "first": first["predicted"], "last": last["predicted"],
                "change": last["predicted"] - first["predicted"],
                "low": float(low), "high": float(high), "true_change": last["true"] - first["true"],
            }
        )  # fmt: skip
    names = ["participant", "first_visit", "last_visit", "first", "last", "change", "low", "high", "true_change"]
    return pd.DataFrame(changes, columns=names)


def _describe_covariate(participants: pd.DataFrame, name: str) -> dict[str, Any]:
    """Distribution of a covariate, and its association with the outcome and with the error."""
    values = participants[name]
    known = participants[values.notna()]
    numbers = pd.to_numeric(known[name], errors="coerce")
    numeric = bool(numbers.notna().all()) and len(known) > 0
    if numeric:
        distribution = (
            f"mean {numbers.mean():.1f}, deviation {numbers.std():.1f}, {numbers.min():g} to {numbers.max():g}"
        )
    else:
        counts = known[name].astype(str).value_counts()
        distribution = ", ".join(f"{value} {count}" for value, count in counts.items())
    covariate = numbers if numeric else known[name].astype(str)
    error = (known["predicted"] - known["true"]).abs()
    return {
        "covariate": name,
        "missing": int(values.isna().sum()),
        "distribution": distribution,
        "p_outcome": _association_p(covariate, known["predicted"], numeric),
        "p_error": _association_p(covariate, error, numeric),
    }


def _association_p(covariate: pd.Series, values: pd.Series, numeric: bool) -> float:
    """P-value of Spearman's correlation for a numeric covariate, of the Kruskal-Wallis test otherwise; NaN if neither
    applies."""
    from scipy.stats import kruskal, spearmanr

    known = values.notna()
    covariate, values = covariate[known], values[known]
    if len(values) <= 3 or values.nunique() < 2:
        return float("nan")
    if numeric:
        return float(spearmanr(covariate, values).pvalue) if covariate.nunique() > 1 else float("nan")
    groups = [group.to_numpy() for _, group in values.groupby(covariate)]
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return float("nan")
    return float(kruskal(*groups).pvalue)
