from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mmemo.cli.main import main
from mmemo.evaluation.predictions import read_predictions
from mmemo.report.report import report
from mmemo.studies.crossval import repeated
from mmemo.studies.nested import Decisions, nested


@pytest.fixture
def config(tiny_config: Path) -> Path:
    content = yaml.safe_load(tiny_config.read_text())
    content["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 3, "num_val_speakers": 0},
    }
    content["checkpoint"] = "last"
    content["trainer"]["max_epochs"] = 1
    tiny_config.write_text(yaml.safe_dump(content))
    return tiny_config


def test_what_is_chosen_is_chosen_on_speakers_of_the_training_side(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "nested"
    space = tmp_path / "space.yaml"
    space.write_text("model.init_args.optimizer.init_args.lr: [0.001, 0.01]\n")
    found = nested(config, run, 2, space=space, num_trials=2)
    predictions = read_predictions(run)
    assert len(predictions.table) == 36
    gates = report(run).content["gates"]
    assert {row["modality"] for row in gates} == {"audio", "text"}
    assert all(0 <= row["mean"] <= 1 for row in gates)
    assert not list(run.rglob("gates.parquet"))
    assert predictions.calibrated is not None
    assert predictions.calibrated.sum(1) == pytest.approx(1.0)
    for fold in (1, 2, 3):
        outer = set(found.predictions.loc[found.predictions["fold"] == fold, "speaker"])
        inner = pd.read_parquet(run / f"fold{fold}" / "inner" / "predictions.parquet")
        assert not outer & set(inner["speaker"])
        assert len(set(inner["speaker"]) | outer) == 6
        decided = json.loads((run / f"fold{fold}" / "decisions.json").read_text())
        assert decided == pytest.approx(Decisions.fitted(inner, 0.8).as_json())
        rows = found.predictions[found.predictions["fold"] == fold]
        sure = rows.filter(like="calibrated_prob_").max(axis="columns") >= decided["threshold"]
        assert (sure == rows["answered"]).all()
        calibrated = rows.filter(like="calibrated_prob_")
        for (_, probs), names in zip(calibrated.iterrows(), rows["conformal_set"], strict=True):
            kept = {
                name.removeprefix("calibrated_prob_")
                for name in probs.index[1 - probs <= decided["conformal_threshold"]]
            }
            assert kept | {probs.idxmax().removeprefix("calibrated_prob_")} == set(names.split())


def test_more_inner_folds_than_speakers_are_told_before_there_is_a_folder(config: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--nested 9: the training side of fold 1 of .*expected 2 to 4, the number of"
    ):
        nested(config, tmp_path / "nested", 9)
    assert not (tmp_path / "nested").exists()


def test_seeds_share_folds_and_differ_in_what_they_train(config: Path, tmp_path: Path) -> None:
    found = repeated(config, tmp_path / "seeds", [0, 1])
    assert len(found.metrics["test/uar"]) == 6
    first, second = (rows.sort_values("id") for _, rows in found.predictions.groupby("seed"))
    assert (first["fold"].to_numpy() == second["fold"].to_numpy()).all()
    assert not np.allclose(first["prob_anger"], second["prob_anger"])
    with pytest.raises(ValueError, match="expected different numbers"):
        repeated(config, tmp_path / "seeds", [1, 1])


def test_the_command_line_nests_and_repeats(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crossval", "--config", str(config), "--run", str(tmp_path / "a"), "--seeds", "[0, 1]"]) == 0
    assert "95 % over speakers" in capsys.readouterr().out
    assert main(["crossval", "--config", str(config), "--run", str(tmp_path / "b"), "--nested", "2"]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c.json")]) == 0
    said = capsys.readouterr().out
    assert "four times in five" in said
    content = json.loads((tmp_path / "c.json").read_text())[0]
    difference = content["difference"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert main(["crossval", "--config", str(config), "--space", "x.yaml"]) == 1
    assert "--nested" in capsys.readouterr().err
