from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score

from mmemo.evaluation import crossval as room
from mmemo.evaluation.crossval import crossval, spread
from mmemo.training.experiment import Experiment


@pytest.fixture
def folds_config(tiny_config: Path) -> Path:
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 3, "num_val_speakers": 1},
    }
    tiny_config.write_text(yaml.safe_dump(config))
    return tiny_config


def test_every_utterance_is_judged_once_by_a_model_that_never_heard_its_speaker(folds_config: Path) -> None:
    run = folds_config.parent / "cv"
    result = crossval(folds_config, run)
    assert len(result.metrics["test/uar"]) == 3
    predictions = result.predictions
    assert predictions["id"].is_unique
    assert len(predictions) == 36
    assert predictions.groupby("speaker")["fold"].nunique().max() == 1
    for fold, rows in predictions.groupby("fold"):
        uar = balanced_accuracy_score(rows["emotion"], rows["predicted"])
        assert result.metrics["test/uar"][int(fold) - 1] == pytest.approx(uar)  # type: ignore[call-overload]
    assert json.loads((run / "crossval.json").read_text())["metrics"]["test/uar"] == result.metrics["test/uar"]


def test_finished_folds_are_kept_and_an_interrupted_one_goes_on(
    folds_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folds_config.parent / "cv"
    calls: list[str] = []

    class Interrupted(Experiment):
        def __init__(self, args: list[str], run: bool = True) -> None:
            if run:
                calls.append(args[0])
                if len(calls) == 5:  # in the middle of the second fold, fitted but not judged
                    raise KeyboardInterrupt
            super().__init__(args, run)

    monkeypatch.setattr(room, "Experiment", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        crossval(folds_config, run)
    first = pd.read_parquet(run / "fold1" / "predictions.parquet")
    monkeypatch.setattr(room, "Experiment", Interrupted)
    crossval(folds_config, run)
    assert calls == ["fit", "test", "predict", "fit", "test", "test", "predict", "fit", "test", "predict"]
    pd.testing.assert_frame_equal(pd.read_parquet(run / "fold1" / "predictions.parquet"), first)


def test_a_run_of_another_config_is_not_mixed_in(folds_config: Path) -> None:
    run = folds_config.parent / "cv"
    crossval(folds_config, run)
    with pytest.raises(ValueError, match="was started with other options none"):
        crossval(folds_config, run, ["--trainer.max_epochs", "3"])


def test_a_study_that_cannot_be_answered_is_told_before_anything_is_trained(folds_config: Path) -> None:
    run = folds_config.parent / "cv"
    for setting, complaint in (
        ('{"outcome": ["grief"]}', r"study\.outcome names grief; expected some of anger"),
        ('{"outcome": ["anger"], "covariates": ["agee"]}', r"study\.covariates names agee, which is no column"),
        ('{"outcome": ["anger"], "covariates": ["age"]}', r"study\.covariates names age, which is no column with valu"),
    ):
        with pytest.raises(ValueError, match=complaint):
            crossval(folds_config, run, ["--study", setting])
        with pytest.raises(ValueError, match=complaint):
            Experiment(["fit", "--config", str(folds_config), "--study", setting])
    assert not run.exists()


def test_a_split_without_folds_says_so(tiny_config: Path) -> None:
    with pytest.raises(ValueError, match="has one fold alone"):
        crossval(tiny_config, tiny_config.parent / "cv")


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert spread([1.0]) == (1.0, 0.0)


def test_the_last_checkpoint_is_the_last(folds_config: Path) -> None:
    import torch

    run = folds_config.parent / "cv"
    crossval(folds_config, run, ["--checkpoint", "last", "--trainer.max_epochs", "4"])
    last = torch.load(run / "fold1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 3
