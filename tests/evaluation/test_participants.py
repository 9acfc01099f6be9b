from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmemo.data.clinical_study import ClinicalStudy
from mmemo.evaluation.participants import clinical_result
from mmemo.evaluation.predictions import Predictions

CLASSES = ["anger", "fear", "neutral", "sadness"]
STUDY = ClinicalStudy(outcome=["fear", "sadness"], visit="session", covariates=["gender", "age"])


def study_predictions(num_participants: int = 24, skill: float = 0.9, seed: int = 0) -> Predictions:
    """Participants whose share of fear and sadness grows by 0.2 between two visits."""
    random = np.random.default_rng(seed)
    rows = []
    for participant in range(num_participants):
        share = random.uniform(0.1, 0.7)
        for visit in (1, 2):
            for number in range(30):
                shows = random.random() < share + 0.2 * (visit - 1)
                target = random.choice(["fear", "sadness"] if shows else ["anger", "neutral"])
                predicted = target if random.random() < skill else random.choice(CLASSES)
                probs = {f"prob_{name}": 0.7 if name == predicted else 0.1 for name in CLASSES}
                rows.append(
                    {"id": f"{participant}_{visit}_{number}", "speaker": f"p{participant:02}", "session": f"v{visit}",
                     "emotion": target, "seconds": random.uniform(1, 5), "gender": "f" if participant % 2 else "m",
                     "age": 20 + participant, **probs}
                )  # fmt: skip
    return Predictions(pd.DataFrame(rows), CLASSES, [])


def test_a_share_is_weighted_by_duration() -> None:
    predictions = study_predictions()
    result = clinical_result(predictions, STUDY)
    rows = predictions.table[predictions.table["speaker"] == "p03"]
    predicted = rows[[f"prob_{name}" for name in CLASSES]].to_numpy().argmax(1)
    is_outcome = np.isin(predicted, [1, 3])
    row = result.participants.set_index("participant").loc["p03"]
    assert row["predicted"] == pytest.approx(np.average(is_outcome, weights=rows["seconds"]))
    assert row["true"] == pytest.approx(np.average(rows["emotion"].isin(STUDY.outcome), weights=rows["seconds"]))
    assert row["num_visits"] == 2
    assert row["num_utterances"] == 60
    mean = clinical_result(predictions, ClinicalStudy(["fear"], "mean")).participants
    highest = clinical_result(predictions, ClinicalStudy(["fear"], "max")).participants
    assert (highest["predicted"] >= mean["predicted"]).all()
    assert highest["predicted"].max() == pytest.approx(0.7)
    assert set(highest["true"]) <= {0.0, 1.0}


def test_agreement_is_high_for_a_good_model_and_low_for_a_bad_one() -> None:
    good = clinical_result(study_predictions(), STUDY).agreement
    bad = clinical_result(study_predictions(skill=0.0), STUDY).agreement
    assert good["CCC"].low > 0.7
    assert good["Spearman's rank correlation"].value > 0.8
    assert bad["CCC"].value < 0.4
    assert good["mean absolute error"].value < bad["mean absolute error"].value


def test_changes_between_visits_have_intervals_that_cover_the_truth() -> None:
    result = clinical_result(study_predictions(), STUDY)
    changes = result.changes
    assert len(changes) == 24
    assert result.mean_change.low > 0.05
    assert result.mean_change.value == pytest.approx(0.2 * 0.9, abs=0.08)
    assert (changes["low"] <= changes["change"]).all()
    covered = (changes["low"] <= changes["true_change"]) & (changes["true_change"] <= changes["high"])
    assert covered.mean() > 0.8
    assert len(clinical_result(study_predictions(), ClinicalStudy(["fear"])).changes) == 0


def test_a_visit_of_one_utterance_has_no_interval() -> None:
    predictions = study_predictions(4)
    first = predictions.table[(predictions.table["speaker"] != "p00") | (predictions.table["session"] == "v1")]
    alone = predictions.table[(predictions.table["speaker"] == "p00") & (predictions.table["session"] == "v2")].iloc[:1]
    changes = clinical_result(predictions._replace(table=pd.concat([first, alone], ignore_index=True)), STUDY).changes
    assert np.isnan(changes.loc[changes["participant"] == "p00", ["low", "high"]].to_numpy(dtype=float)).all()
    assert changes.loc[changes["participant"] != "p00", "low"].notna().all()


def test_visit_10_follows_visit_2() -> None:
    predictions = study_predictions(3)
    predictions.table["session"] = predictions.table["session"].map({"v1": "visit 2", "v2": "visit 10"})
    result = clinical_result(predictions, STUDY)
    assert result.changes["first_visit"].tolist() == ["visit 2"] * 3
    assert result.mean_change.value > 0


def test_covariates_are_reported() -> None:
    predictions = study_predictions()
    predictions.table.loc[predictions.table["speaker"] == "p00", "age"] = np.nan
    covariates = clinical_result(predictions, STUDY).covariates.set_index("covariate")
    assert covariates.loc["gender", "distribution"] == "m 12, f 12"
    assert covariates.loc["age", "missing"] == 1
    assert covariates.loc["age", "distribution"].startswith("mean 32")
    assert covariates[["p_outcome", "p_error"]].notna().all(axis=None)


def test_missing_values_are_counted_and_small_studies_get_a_warning() -> None:
    predictions = study_predictions(3)
    predictions.table.loc[:4, "session"] = None
    result = clinical_result(predictions, STUDY)
    assert result.missing == {"without a visit": 5}
    assert any("3 participants" in line for line in result.warnings)
    without = predictions._replace(table=predictions.table.drop(columns="seconds"))
    assert any("durations" in line for line in clinical_result(without, STUDY).warnings)


def test_invalid_studies_are_rejected() -> None:
    predictions = study_predictions(4)
    with pytest.raises(ValueError, match=r"study\.outcome names joy; expected some of anger, fear"):
        clinical_result(predictions, ClinicalStudy(["joy"]))
    with pytest.raises(ValueError, match=r"study\.visit names ward, expected a non-empty column"):
        clinical_result(predictions, ClinicalStudy(["fear"], visit="ward"))
    alone = predictions._replace(table=predictions.table[predictions.table["speaker"] == "p00"])
    with pytest.raises(ValueError, match="1 participants in column 'speaker'"):
        clinical_result(alone, ClinicalStudy(["fear"]))
