from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mmemo.cli.app import main
from mmemo.evaluation.predictions import read_predictions
from mmemo.report.report import write_report
from mmemo.studies.crossval import crossval
from mmemo.studies.nested import Decisions, nested
from mmemo.training.experiment_cli import read_experiment


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


def test_decisions_are_made_on_training_speakers_only(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "nested"
    space = {"model.init_args.optimizer.init_args.lr": [0.001, 0.01]}
    result = nested(read_experiment(config), run, 2, space=space, num_trials=2)
    predictions = read_predictions(run)
    assert len(predictions.table) == 36
    gates = write_report(run).content.fusion.gates
    assert gates is not None
    assert {row["modality"] for row in gates} == {"audio", "text"}
    assert all(0 <= row["mean"] <= 1 for row in gates)
    assert not list(run.rglob("gates.parquet"))
    assert predictions.calibrated is not None
    assert predictions.calibrated.sum(1) == pytest.approx(1.0)
    for fold in (1, 2, 3):
        outer = set(result.predictions.loc[result.predictions["fold"] == fold, "speaker"])
        inner = pd.read_parquet(run / f"fold{fold}" / "inner" / "predictions.parquet")
        assert not outer & set(inner["speaker"])
        assert len(set(inner["speaker"]) | outer) == 6
        decisions = json.loads((run / f"fold{fold}" / "decisions.json").read_text())
        assert decisions == pytest.approx(Decisions.fitted(inner, 0.8).as_json())
        rows = result.predictions[result.predictions["fold"] == fold]
        confident = rows.filter(like="calibrated_prob_").max(axis="columns") >= decisions["threshold"]
        assert (confident == rows["answered"]).all()
        calibrated = rows.filter(like="calibrated_prob_")
        for (_, probs), names in zip(calibrated.iterrows(), rows["conformal_set"], strict=True):
            expected = {
                name.removeprefix("calibrated_prob_")
                for name in probs.index[1 - probs <= decisions["conformal_threshold"]]
            }
            assert expected | {probs.idxmax().removeprefix("calibrated_prob_")} == set(names.split())


def test_too_many_inner_folds_are_rejected_before_the_run_folder_is_created(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nested 9: the training side of fold 1: .*expected 2 to 4, the number of"):
        nested(read_experiment(config), tmp_path / "nested", 9)
    assert not (tmp_path / "nested").exists()


def test_seeds_share_folds_but_train_different_models(config: Path, tmp_path: Path) -> None:
    result = crossval(read_experiment(config), tmp_path / "seeds", [0, 1])
    assert len(result.metrics["test/uar"]) == 6
    first, second = (rows.sort_values("id") for _, rows in result.predictions.groupby("seed"))
    assert (first["fold"].to_numpy() == second["fold"].to_numpy()).all()
    assert not np.allclose(first["prob_anger"], second["prob_anger"])
    with pytest.raises(ValueError, match="expected different numbers"):
        crossval(read_experiment(config), tmp_path / "seeds", [1, 1])


def test_crossval_takes_nested_and_seeds(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crossval", "--config", str(config), "--run", str(tmp_path / "a"), "--seeds", "0", "1"]) == 0
    assert "95 % interval over speakers" in capsys.readouterr().out
    assert main(["crossval", "--config", str(config), "--run", str(tmp_path / "b"), "--nested", "2"]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c.json")]) == 0
    output = capsys.readouterr().out
    assert "four times in five" in output
    content = json.loads((tmp_path / "c.json").read_text())[0]
    difference = content["difference"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert main(["crossval", "--config", str(config), "--space", "x.yaml"]) == 1
    assert "--nested" in capsys.readouterr().err
