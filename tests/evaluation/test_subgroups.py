from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from mmemo.audio.reader import AudioFacts
from mmemo.evaluation.predictions import Predictions
from mmemo.evaluation.subgroups import banded, subgroups, usual_columns, with_audio_bands

CLASSES = ["anger", "neutral", "sadness"]


def judged(num_speakers: int = 20, num_each: int = 30, unfair: float = 0.0, seed: int = 0) -> Predictions:
    """Predictions in which every second speaker is a woman, recognised less often."""
    random = np.random.default_rng(seed)
    rows = []
    for speaker in range(num_speakers):
        woman = speaker % 2
        for number in range(num_each):
            target = int(random.integers(3))
            right = random.random() < 0.8 - unfair * woman
            said = target if right else int((target + 1 + random.integers(2)) % 3)
            probs = np.full(3, 0.15)
            probs[said] = 0.7
            rows.append(
                {"id": f"{speaker}_{number}", "speaker": f"s{speaker}", "emotion": CLASSES[target],
                 "gender": "female" if woman else "male", "age": 20.0 + speaker, "ward": f"w{speaker % 4}",
                 **{f"prob_{name}": value for name, value in zip(CLASSES, probs, strict=True)}}
            )  # fmt: skip
    return Predictions(pd.DataFrame(rows), CLASSES, [])


def test_each_group_has_scikit_learns_figure() -> None:
    predictions = judged(unfair=0.3)
    found = subgroups(predictions, "gender")
    assert [group.name for group in found.groups] == ["female", "male"]
    for group in found.groups:
        rows = (predictions.table["gender"] == group.name).to_numpy()
        theirs = balanced_accuracy_score(predictions.target[rows], predictions.predicted[rows])
        assert group.figures["uar"].value == pytest.approx(theirs)
        assert group.figures["uar"].low < theirs < group.figures["uar"].high
        assert (group.num_utterances, group.num_speakers) == (300, 10)
        assert not group.warning


def test_an_unfair_model_has_a_gap_and_a_fair_one_has_none_to_speak_of() -> None:
    unfair = subgroups(judged(unfair=0.3), "gender")
    assert unfair.gaps["uar"].value == pytest.approx(0.3, abs=0.08)
    assert unfair.gaps["uar"].low > 0.15
    assert unfair.equalised_odds.value > 0.2
    for column, most in (("gender", 2), ("ward", 3)):  # best and worst of four were picked: that is allowed for
        raised = [subgroups(judged(seed=seed), column, num_samples=400).gaps["uar"].low > 0 for seed in range(20)]
        assert sum(raised) <= most


def test_groups_that_tie_have_a_gap_of_nothing_with_an_interval() -> None:
    predictions = judged()
    women = predictions.table[predictions.table["gender"] == "female"]
    twins = women.assign(gender="other", speaker=women["speaker"] + "_twin", id=women["id"] + "_twin")
    found = subgroups(predictions._replace(table=pd.concat([women, twins], ignore_index=True)), "gender")
    gap = found.gaps["uar"]
    assert gap.value == 0
    assert gap.low < 0 < gap.high


def test_equalised_odds_is_fairlearns_definition() -> None:
    predictions = judged(unfair=0.2)
    found = subgroups(predictions, "gender").equalised_odds.value
    largest = 0.0
    women = (predictions.table["gender"] == "female").to_numpy()
    for place in range(3):
        true, said = predictions.target == place, predictions.predicted == place
        for among in (true, ~true):
            rates = [said[among & group].mean() for group in (women, ~women)]
            largest = max(largest, abs(rates[0] - rates[1]))
    assert found == pytest.approx(largest)


def test_small_groups_are_warned_about_and_do_not_make_the_gap() -> None:
    predictions = judged()
    predictions.table.loc[0, "ward"] = "alone"
    found = subgroups(predictions, "ward")
    alone = next(group for group in found.groups if group.name == "alone")
    assert "one utterance alone" in alone.warning
    assert found.gaps["uar"].value < 0.5
    predictions.table["clinic"] = ["north" if name == "s3" else "south" for name in predictions.table["speaker"]]
    north = subgroups(predictions, "clinic").groups[0]
    assert "one speaker alone" in north.warning
    assert np.isnan(north.figures["uar"].low)


def test_few_speakers_do_not_make_a_model_unfair() -> None:
    """Speakers differ, groups do not: a gap is claimed no more often than one time in twenty or so."""
    random = np.random.default_rng(0)
    claimed = 0
    for _ in range(40):
        rows = []
        for speaker in range(24):
            share = random.beta(7, 3)  # how well this one is heard
            for number in range(30):
                target = int(random.integers(3))
                said = target if random.random() < share else int((target + 1 + random.integers(2)) % 3)
                probs = {f"prob_{name}": float(place == said) for place, name in enumerate(CLASSES)}
                rows.append(
                    {"id": f"{speaker}_{number}", "speaker": f"s{speaker}", "emotion": CLASSES[target],
                     "clinic": "small" if speaker < 5 else "large", **probs}
                )  # fmt: skip
        found = subgroups(Predictions(pd.DataFrame(rows), CLASSES, []), "clinic", num_samples=300)
        claimed += found.gaps["uar"].low > 0
    assert claimed <= 4
    two = judged()
    two.table["clinic"] = ["small" if name in ("s1", "s2") else "large" for name in two.table["speaker"]]
    found = subgroups(two, "clinic")
    assert found.gaps == {}
    assert "no gap is given: it takes two groups of 5 speakers" in " ".join(found.warnings)


def test_a_rate_of_a_few_utterances_makes_no_gap_of_odds() -> None:
    fair = judged(num_speakers=20, num_each=40)
    women = fair.table["gender"] == "female"
    rare = fair.table.index[women & (fair.table["emotion"] == "anger")]
    wrong = fair.table.loc[rare[:3]].assign(prob_anger=0.1, prob_neutral=0.8, prob_sadness=0.1)
    table = pd.concat([fair.table.drop(rare), wrong], ignore_index=True)  # three, all of them wrong
    found = subgroups(fair._replace(table=table), "gender")
    assert found.equalised_odds.value < 0.2
    assert "equalised odds leave out anger: under 10 utterances" in " ".join(found.warnings)


def test_groups_have_areas_calibration_and_recalls() -> None:
    from sklearn.metrics import recall_score, roc_auc_score

    predictions = judged(unfair=0.3)
    group = subgroups(predictions, "gender").groups[0]
    rows = (predictions.table["gender"] == group.name).to_numpy()
    target, probs = predictions.target[rows], predictions.probs[rows]
    areas = [roc_auc_score(target == place, probs[:, place]) for place in range(3)]
    assert group.figures["roc"].value == pytest.approx(np.mean(areas))
    assert group.figures["ece"].value == pytest.approx(abs(0.7 - (probs.argmax(1) == target).mean()), abs=0.02)
    recalls = recall_score(target, probs.argmax(1), average=None)
    assert [group.figures[f"recall_{name}"].value for name in CLASSES] == pytest.approx(recalls.tolist())


def test_numbers_are_divided_into_bands() -> None:
    names = [group.name for group in subgroups(judged(), "age").groups]
    assert names == ["18-30", "30-45"]
    assert banded(pd.Series([0.5, 1.0, 99.0, np.nan]), (0, 1, 2, 100), "s").tolist() == [
        "under 1 s", "1-2 s", "2 s and more", None
    ]  # fmt: skip
    predictions = judged()
    for values in (np.linspace(0, 1, 600), np.linspace(1000, 1001, 600).astype(str)):  # a CSV's numbers are text
        predictions.table["score"] = values
        found = subgroups(predictions, "score")
        assert [group.num_utterances for group in found.groups] == [150] * 4
    predictions.table["age"] = 25.0
    assert "age" not in usual_columns(predictions)  # one band alone


def test_length_and_noise_come_from_the_recordings() -> None:
    predictions = judged(2, 2)
    facts = {name: AudioFacts("x", seconds, 16_000, 1, -20, 25.0) for name, seconds in
             zip(predictions.table["id"], (0.5, 3.0, 3.0, 20.0), strict=True)}  # fmt: skip
    found = with_audio_bands(predictions, facts)
    assert found.table["length"].tolist() == ["under 1 s", "2-4 s", "2-4 s", "15 s and more"]
    assert set(found.table["noise"]) == {"20-30 dB"}
    assert usual_columns(found) == ["gender", "length"]  # both are of one age band


def test_what_cannot_be_divided_says_so() -> None:
    predictions = judged()
    with pytest.raises(ValueError, match="no column 'postcode'"):
        subgroups(predictions, "postcode")
    predictions.table["all"] = "the same"
    with pytest.raises(ValueError, match="one value alone"):
        subgroups(predictions, "all")


def test_utterances_without_a_speaker_count_where_they_belong() -> None:
    predictions = judged()
    whole = subgroups(predictions, "gender").groups
    predictions.table.loc[::2, "speaker"] = None
    for before, after in zip(whole, subgroups(predictions, "gender").groups, strict=True):
        assert after.figures["uar"].value == pytest.approx(before.figures["uar"].value)
        assert after.num_utterances == before.num_utterances


def test_seeds_do_not_make_a_group_larger() -> None:
    one = judged()
    two = one._replace(table=pd.concat([one.table.assign(seed=0), one.table.assign(seed=1)], ignore_index=True))
    first, second = subgroups(one, "gender").groups[0], subgroups(two, "gender").groups[0]
    assert first.num_utterances == second.num_utterances
    assert first.figures["uar"] == pytest.approx(second.figures["uar"])
