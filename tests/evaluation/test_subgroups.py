from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from mmemo.audio.reader import AudioFacts
from mmemo.evaluation.predictions import Predictions
from mmemo.evaluation.subgroups import add_audio_bands, cut_into_bands, default_columns, evaluate_subgroups

CLASSES = ["anger", "neutral", "sadness"]


def predictions_by_gender(
    num_speakers: int = 20, num_each: int = 30, unfair: float = 0.0, seed: int = 0
) -> Predictions:
    """Predictions in which every second speaker is a woman, recognised less often if ``unfair`` is above 0."""
    random = np.random.default_rng(seed)
    rows = []
    for speaker in range(num_speakers):
        woman = speaker % 2
        for number in range(num_each):
            target = int(random.integers(3))
            right = random.random() < 0.8 - unfair * woman
            predicted = target if right else int((target + 1 + random.integers(2)) % 3)
            probs = np.full(3, 0.15)
            probs[predicted] = 0.7
            rows.append(
                {"id": f"{speaker}_{number}", "speaker": f"s{speaker}", "emotion": CLASSES[target],
                 "gender": "female" if woman else "male", "age": 20.0 + speaker, "ward": f"w{speaker % 4}",
                 **{f"prob_{name}": value for name, value in zip(CLASSES, probs, strict=True)}}
            )  # fmt: skip
    return Predictions(pd.DataFrame(rows), CLASSES, [])


def test_metrics_of_groups_equal_scikit_learn() -> None:
    predictions = predictions_by_gender(unfair=0.3)
    result = evaluate_subgroups(predictions, "gender")
    assert [group.name for group in result.groups] == ["female", "male"]
    for group in result.groups:
        rows = (predictions.table["gender"] == group.name).to_numpy()
        expected = balanced_accuracy_score(predictions.target[rows], predictions.predicted[rows])
        assert group.metrics["uar"].value == pytest.approx(expected)
        assert group.metrics["uar"].low < expected < group.metrics["uar"].high
        assert (group.num_utterances, group.num_speakers) == (300, 10)
        assert not group.warning


def test_an_unfair_model_has_a_gap_and_a_fair_model_has_none() -> None:
    unfair = evaluate_subgroups(predictions_by_gender(unfair=0.3), "gender")
    assert unfair.gaps["uar"].value == pytest.approx(0.3, abs=0.08)
    assert unfair.gaps["uar"].low > 0.15
    assert unfair.equalised_odds.value > 0.2
    for column, most in (("gender", 2), ("ward", 3)):  # the interval accounts for the choice of two groups out of four
        raised = [
            evaluate_subgroups(predictions_by_gender(seed=seed), column, num_samples=400).gaps["uar"].low > 0
            for seed in range(20)
        ]
        assert sum(raised) <= most


def test_equal_groups_have_a_gap_of_zero_with_an_interval() -> None:
    predictions = predictions_by_gender()
    women = predictions.table[predictions.table["gender"] == "female"]
    twins = women.assign(gender="other", speaker=women["speaker"] + "_twin", id=women["id"] + "_twin")
    result = evaluate_subgroups(predictions._replace(table=pd.concat([women, twins], ignore_index=True)), "gender")
    gap = result.gaps["uar"]
    assert gap.value == 0
    assert gap.low < 0 < gap.high


def test_equalised_odds_follow_fairlearns_definition() -> None:
    predictions = predictions_by_gender(unfair=0.2)
    result = evaluate_subgroups(predictions, "gender").equalised_odds.value
    largest = 0.0
    women = (predictions.table["gender"] == "female").to_numpy()
    for index in range(3):
        true, predicted = predictions.target == index, predictions.predicted == index
        for among in (true, ~true):
            rates = [predicted[among & group].mean() for group in (women, ~women)]
            largest = max(largest, abs(rates[0] - rates[1]))
    assert result == pytest.approx(largest)


def test_small_groups_get_a_warning_and_are_left_out_of_gaps() -> None:
    predictions = predictions_by_gender()
    predictions.table.loc[0, "ward"] = "alone"
    result = evaluate_subgroups(predictions, "ward")
    alone = next(group for group in result.groups if group.name == "alone")
    assert "only one utterance" in alone.warning
    assert result.gaps["uar"].value < 0.5
    predictions.table["clinic"] = ["north" if name == "s3" else "south" for name in predictions.table["speaker"]]
    north = evaluate_subgroups(predictions, "clinic").groups[0]
    assert "only one speaker" in north.warning
    assert np.isnan(north.metrics["uar"].low)


def test_random_differences_between_few_speakers_are_not_reported_as_a_gap() -> None:
    """Speakers differ but groups do not: about one interval in twenty excludes a gap of zero."""
    random = np.random.default_rng(0)
    claimed = 0
    for _ in range(40):
        rows = []
        for speaker in range(24):
            share = random.beta(7, 3)  # accuracy for this speaker
            for number in range(30):
                target = int(random.integers(3))
                predicted = target if random.random() < share else int((target + 1 + random.integers(2)) % 3)
                probs = {f"prob_{name}": float(index == predicted) for index, name in enumerate(CLASSES)}
                rows.append(
                    {"id": f"{speaker}_{number}", "speaker": f"s{speaker}", "emotion": CLASSES[target],
                     "clinic": "small" if speaker < 5 else "large", **probs}
                )  # fmt: skip
        result = evaluate_subgroups(Predictions(pd.DataFrame(rows), CLASSES, []), "clinic", num_samples=300)
        claimed += result.gaps["uar"].low > 0
    assert claimed <= 4
    two = predictions_by_gender()
    two.table["clinic"] = ["small" if name in ("s1", "s2") else "large" for name in two.table["speaker"]]
    result = evaluate_subgroups(two, "clinic")
    assert result.gaps == {}
    assert "no gap is computed: it needs two groups with 5 speakers" in " ".join(result.warnings)


def test_equalised_odds_leave_out_rates_over_few_utterances() -> None:
    fair = predictions_by_gender(num_speakers=20, num_each=40)
    women = fair.table["gender"] == "female"
    rare = fair.table.index[women & (fair.table["emotion"] == "anger")]
    wrong = fair.table.loc[rare[:3]].assign(prob_anger=0.1, prob_neutral=0.8, prob_sadness=0.1)
    table = pd.concat([fair.table.drop(rare), wrong], ignore_index=True)  # three utterances, all wrong
    result = evaluate_subgroups(fair._replace(table=table), "gender")
    assert result.equalised_odds.value < 0.2
    assert "equalised odds leave out anger: under 10 utterances" in " ".join(result.warnings)


def test_groups_have_areas_calibration_and_recalls() -> None:
    from sklearn.metrics import recall_score, roc_auc_score

    predictions = predictions_by_gender(unfair=0.3)
    group = evaluate_subgroups(predictions, "gender").groups[0]
    rows = (predictions.table["gender"] == group.name).to_numpy()
    target, probs = predictions.target[rows], predictions.probs[rows]
    areas = [roc_auc_score(target == index, probs[:, index]) for index in range(3)]
    assert group.metrics["roc"].value == pytest.approx(np.mean(areas))
    assert group.metrics["ece"].value == pytest.approx(abs(0.7 - (probs.argmax(1) == target).mean()), abs=0.02)
    recalls = recall_score(target, probs.argmax(1), average=None)
    assert [group.metrics[f"recall_{name}"].value for name in CLASSES] == pytest.approx(recalls.tolist())


def test_numbers_are_cut_into_bands() -> None:
    names = [group.name for group in evaluate_subgroups(predictions_by_gender(), "age").groups]
    assert names == ["18-30", "30-45"]
    assert cut_into_bands(pd.Series([0.5, 1.0, 99.0, np.nan]), (0, 1, 2, 100), "s").tolist() == [
        "under 1 s", "1-2 s", "2 s and more", None
    ]  # fmt: skip
    predictions = predictions_by_gender()
    for values in (np.linspace(0, 1, 600), np.linspace(1000, 1001, 600).astype(str)):  # numbers from a CSV may be text
        predictions.table["score"] = values
        result = evaluate_subgroups(predictions, "score")
        assert [group.num_utterances for group in result.groups] == [150] * 4
    predictions.table["age"] = 25.0
    assert "age" not in default_columns(predictions)  # only one band


def test_length_and_noise_come_from_the_recordings() -> None:
    predictions = predictions_by_gender(2, 2)
    facts = {name: AudioFacts("x", seconds, 16_000, 1, -20, 25.0) for name, seconds in
             zip(predictions.table["id"], (0.5, 3.0, 3.0, 20.0), strict=True)}  # fmt: skip
    result = add_audio_bands(predictions, facts)
    assert result.table["length"].tolist() == ["under 1 s", "2-4 s", "2-4 s", "15 s and more"]
    assert set(result.table["noise"]) == {"20-30 dB"}
    assert default_columns(result) == ["gender", "length"]  # both speakers are in one age band


def test_columns_without_groups_are_rejected() -> None:
    predictions = predictions_by_gender()
    with pytest.raises(ValueError, match="no column 'postcode'"):
        evaluate_subgroups(predictions, "postcode")
    predictions.table["all"] = "the same"
    with pytest.raises(ValueError, match="fewer than two values"):
        evaluate_subgroups(predictions, "all")


def test_utterances_without_a_speaker_count_in_their_group() -> None:
    predictions = predictions_by_gender()
    whole = evaluate_subgroups(predictions, "gender").groups
    predictions.table.loc[::2, "speaker"] = None
    for before, after in zip(whole, evaluate_subgroups(predictions, "gender").groups, strict=True):
        assert after.metrics["uar"].value == pytest.approx(before.metrics["uar"].value)
        assert after.num_utterances == before.num_utterances


def test_seeds_do_not_enlarge_a_group() -> None:
    single = predictions_by_gender()
    double = single._replace(
        table=pd.concat([single.table.assign(seed=0), single.table.assign(seed=1)], ignore_index=True)
    )
    first, second = evaluate_subgroups(single, "gender").groups[0], evaluate_subgroups(double, "gender").groups[0]
    assert first.num_utterances == second.num_utterances
    assert first.metrics["uar"] == pytest.approx(second.metrics["uar"])
