from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmemo.data.manifest import Manifest
from mmemo.evaluation.comparison import compare_runs
from mmemo.evaluation.predictions import Predictions, read_predictions, with_manifest

CLASSES = ["anger", "sadness"]


def table(num_speakers: int = 4, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = [
        {
            "id": f"{speaker}_{emotion}_{take}", "speaker": f"s{speaker}", "side": "test", "emotion": emotion,
            "prob_anger": probability, "prob_sadness": 1 - probability, "fold": speaker % 2 + 1,
        }
        for speaker in range(num_speakers) for emotion in CLASSES for take in range(5)
        for probability in [float(np.clip(0.5 + (0.2 if emotion == "anger" else -0.2)
                                          + 0.2 * random.standard_normal(), 0.01, 0.99))]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_predictions_are_read_from_a_run_or_a_file(tmp_path: Path) -> None:
    rows = table()
    rows.loc[0, "side"] = "train"
    rows.to_csv(tmp_path / "predictions.csv", index=False)
    for source in (tmp_path, tmp_path / "predictions.csv"):
        result = read_predictions(source)
        assert result.classes == CLASSES
        assert len(result.table) == len(rows) - 1  # training rows are left out
    rows.to_parquet(tmp_path / "predictions.parquet")
    assert read_predictions(tmp_path).probs.shape == (len(rows) - 1, 2)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such run or file"),
        ("a,b\n1,2\n", "not a file of predictions"),
        ("id,side,emotion,speaker,prob_a,prob_b\nx,train,a,s,0.5,0.5\n", "no predictions of the test side"),
        ("id,emotion,speaker,prob_a,prob_b\nx,a,s,0.5,0.5\nx,a,s,0.5,0.5\n", "'x' appears twice"),
    ],
)
def test_malformed_files_are_rejected(content: str | None, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    if content:
        path.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_predictions(path)


def test_a_run_without_predictions_is_rejected_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `mmemo predict"):
        read_predictions(tmp_path)
    (tmp_path / "fold1").mkdir()
    (tmp_path / "fold1" / "config.yaml").touch()
    with pytest.raises(ValueError, match="let `mmemo crossval` finish"):
        read_predictions(tmp_path)


def test_the_manifest_adds_columns_except_transcripts_and_paths() -> None:
    rows = table()
    frame = rows[["id", "speaker", "emotion"]].assign(
        path=[f"{name}.wav" for name in rows["id"]], text="secret words", gender="f", ward="north",
        text_reference="other secret words",
        note=[f"slept badly, {name}" for name in rows["id"]],
        file=[f"{name}.flac" for name in rows["id"]],
    )  # fmt: skip
    result = with_manifest(Predictions(rows, CLASSES, []), Manifest(frame))
    assert {"gender", "ward"} <= set(result.table)
    assert not {"text", "path", "text_reference", "note", "file"} & set(result.table)
    assert any("note, file" in line for line in result.warnings), "hidden columns are reported"
    asked = with_manifest(Predictions(rows, CLASSES, []), Manifest(frame), ["note", "text"])
    assert "note" in asked.table
    assert "text" not in asked.table


def test_a_manifest_of_other_data_is_rejected() -> None:
    rows = table()
    frame = rows[["id", "speaker", "emotion"]].assign(path="x.wav")
    with pytest.raises(ValueError, match="do not match this manifest: 1 of 40 utterances are not in it"):
        with_manifest(Predictions(rows, CLASSES, []), Manifest(frame.iloc[1:]))
    frame.loc[3, "emotion"] = "sadness"
    with pytest.raises(ValueError, match="1 utterances have another emotion there, such as '0_anger_3'"):
        with_manifest(Predictions(rows, CLASSES, []), Manifest(frame))


def test_missing_speakers_and_emotions_come_from_the_manifest(tmp_path: Path) -> None:
    rows = table()
    frame = rows[["id", "speaker", "emotion"]].assign(path="x.wav")
    rows.drop(columns=["speaker", "emotion"]).to_parquet(tmp_path / "p.parquet", index=False)
    result = with_manifest(read_predictions(tmp_path / "p.parquet"), Manifest(frame))
    assert result.table["speaker"].tolist() == frame["speaker"].tolist()
    assert result.table["emotion"].tolist() == frame["emotion"].tolist()
    rows.loc[0, ["speaker", "emotion"]] = None  # as a crossval with an unlabelled row writes it
    rows.to_parquet(tmp_path / "q.parquet", index=False)
    read = read_predictions(tmp_path / "q.parquet")
    assert len(read.labelled.table) == len(rows) - 1
    assert len(np.unique(read.speakers)) == 5
    assert with_manifest(read, Manifest(frame)).table["speaker"].notna().all()


def test_columns_with_reserved_names_are_ignored() -> None:
    rows = table()
    frame = rows[["id", "speaker", "emotion"]].assign(path="x.wav", fold="7", seed="1", noise="loud")
    result = with_manifest(Predictions(rows, CLASSES, []), Manifest(frame))
    assert set(result.table["fold"]) == {1, 2}
    assert "seed" not in result.table
    assert "fold, seed, noise" in result.warnings[0]


def test_runs_are_compared_on_the_same_utterances_whatever_their_order() -> None:
    rows = table(6)
    first = Predictions(rows, CLASSES, [])
    second = Predictions(rows.sample(frac=1.0, random_state=1).reset_index(drop=True), CLASSES, [])
    same = compare_runs(first, second)
    assert same.difference.value == 0.0
    assert same.p_mcnemar == 1.0
    assert same.p_folds == 1.0
    other = compare_runs(first, Predictions(table(6, seed=5), CLASSES, []))
    assert 0 < other.p_permutation <= 1
    assert 0 < other.p_folds <= 1
    with pytest.raises(ValueError, match="different test utterances"):
        compare_runs(first, Predictions(rows.iloc[1:].reset_index(drop=True), CLASSES, []))
    swapped = {"anger": "sadness", "sadness": "anger"}
    relabelled = rows.assign(emotion=[swapped[name] if not row else name for row, name in enumerate(rows["emotion"])])
    with pytest.raises(ValueError, match=r"different emotion for 1 utterances.*the same manifest"):
        compare_runs(first, Predictions(relabelled, CLASSES, []))
    with pytest.raises(ValueError, match="different classes"):
        compare_runs(first, Predictions(rows, CLASSES[::-1], []))


def test_seeds_are_averaged() -> None:
    rows = [table(6, seed).assign(seed=seed) for seed in (0, 1)]
    both = Predictions(pd.concat(rows, ignore_index=True), CLASSES, [])
    alone = [Predictions(seed, CLASSES, []) for seed in rows]
    base = Predictions(table(6, 7), CLASSES, [])
    means = [compare_runs(base, run).second.value for run in alone]
    result = compare_runs(base, both)
    assert result.second.value == pytest.approx(np.mean(means))
    assert np.isnan(result.p_mcnemar)
    assert np.isnan(result.p_folds)  # one run has a seed for each fold, the other has none
    named = compare_runs(*alone)
    bare = compare_runs(*(run._replace(table=run.table.drop(columns="seed")) for run in alone))
    assert (named.p_mcnemar, named.p_folds) == (bare.p_mcnemar, bare.p_folds)  # one model each, whatever its seed
    assert not np.isnan([named.p_mcnemar, named.p_folds]).any()
