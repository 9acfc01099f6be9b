from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from sklearn.metrics import balanced_accuracy_score

from mmemo.cli.app import main
from mmemo.data.splits import SplitError
from mmemo.studies.crossval import crossval, folds_to_run, mean_and_deviation, read_folds, write_results
from mmemo.training.experiment import Experiment
from mmemo.training.experiment_cli import ExperimentCLI, read_experiment
from tests.conftest import ROOT


@pytest.fixture
def folds_config(tiny_config: Path) -> Path:
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 3, "num_val_speakers": 1},
    }
    tiny_config.write_text(yaml.safe_dump(config))
    return tiny_config


def test_every_utterance_is_tested_once_by_a_model_not_trained_on_its_speaker(folds_config: Path) -> None:
    run = folds_config.parent / "cv"
    result = crossval(read_experiment(folds_config), run)
    assert len(result.metrics["test/uar"]) == 3
    predictions = result.predictions
    assert predictions["id"].is_unique
    assert len(predictions) == 36
    assert predictions.groupby("speaker")["fold"].nunique().max() == 1
    for fold, rows in predictions.groupby("fold"):
        uar = balanced_accuracy_score(rows["emotion"], rows["predicted"])
        assert result.metrics["test/uar"][int(fold) - 1] == pytest.approx(uar)  # type: ignore[call-overload]
    assert json.loads((run / "crossval.json").read_text())["metrics"]["test/uar"] == result.metrics["test/uar"]


def test_finished_folds_are_kept_and_an_interrupted_one_is_resumed(
    folds_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folds_config.parent / "cv"
    calls: list[str] = []

    def record(verb: str) -> None:
        original = getattr(Experiment, verb)

        def call(experiment: Experiment, *args: Any, **settings: Any) -> Any:
            calls.append(verb)
            if len(calls) == 5:  # the second fold is fitted, but not tested
                raise KeyboardInterrupt
            return original(experiment, *args, **settings)

        monkeypatch.setattr(Experiment, verb, call)

    for verb in ("fit", "test", "predict"):
        record(verb)
    with pytest.raises(KeyboardInterrupt):
        crossval(read_experiment(folds_config), run)
    first = pd.read_parquet(run / "fold1" / "predictions.parquet")
    crossval(read_experiment(folds_config), run)
    assert calls == ["fit", "test", "predict", "fit", "test", "test", "predict", "fit", "test", "predict"]
    pd.testing.assert_frame_equal(pd.read_parquet(run / "fold1" / "predictions.parquet"), first)


def test_a_run_folder_rejects_another_config(folds_config: Path) -> None:
    run = folds_config.parent / "cv"
    crossval(read_experiment(folds_config), run)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        crossval(read_experiment(folds_config, {"trainer.max_epochs": 3}), run)


def test_an_invalid_study_is_rejected_before_training(folds_config: Path) -> None:
    run = folds_config.parent / "cv"
    for setting, message in (
        ({"outcome": ["grief"]}, r"study\.outcome names grief"),
        ({"outcome": ["anger"], "covariates": ["agee"]}, r"study\.covariates names agee, expected a non-empty column"),
        ({"outcome": ["anger"], "covariates": ["age"]}, r"study\.covariates names age, expected a non-empty column"),
    ):
        with pytest.raises(ValueError, match=message):
            crossval(read_experiment(folds_config, {"study": setting}), run)
        with pytest.raises(ValueError, match=message):
            ExperimentCLI(["fit", "--config", str(folds_config), "--study", json.dumps(setting)])
    assert not run.exists()


def test_all_speakers_of_a_participant_must_be_on_one_side(
    folds_config: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    table["patient"] = "p" + (table.groupby("speaker").ngroup() // 2).astype(str)  # two speakers per patient
    manifest = folds_config.parent / "patients.csv"
    table.to_csv(manifest, index=False)
    study = {"outcome": ["anger"], "participant": "patient"}
    with pytest.raises(SplitError, match=r"patients are both in train and in .*; split by patient"):
        crossval(read_experiment(folds_config, {"data.manifest": str(manifest), "study": study}), tmp_path / "cv")
    options = ["--data.manifest", str(manifest), "--study", json.dumps(study)]
    with pytest.raises(SplitError, match="patients are both in train and in"):
        ExperimentCLI(["fit", "--config", str(folds_config), *options])


def test_a_metric_that_is_missing_in_a_fold_is_nan_for_that_fold(tmp_path: Path) -> None:
    for fold, metrics in enumerate([{"test/uar": 0.5}, {"test/uar": 0.7, "test/ccc": 0.2}], 1):
        folder = tmp_path / f"fold{fold}"
        folder.mkdir()
        (folder / "test_metrics.json").write_text(json.dumps({"metrics": metrics, "warnings": []}))
        pd.DataFrame({"id": [f"u{fold}"]}).to_parquet(folder / "predictions.parquet")
    result = read_folds(tmp_path, 2)
    assert result.num_values == 2
    assert np.isnan(result.metrics["test/ccc"][0])
    assert result.metrics["test/ccc"][1] == 0.2
    assert mean_and_deviation(result.metrics["test/ccc"]) == (0.2, 0.0)
    write_results(result)
    assert json.loads((tmp_path / "crossval.json").read_text())["metrics"]["test/ccc"] == [None, 0.2]


def test_several_devices_allow_one_command_per_folder(tmp_path: Path) -> None:
    (tmp_path / "fold1").mkdir()
    with FileLock(tmp_path / "fold1" / ".lock"):
        assert next(folds_to_run(tmp_path, 2))[1] == 2  # a worker takes the next unlocked fold
        with pytest.raises(ValueError, match="with several devices, only one command may work"):
            next(folds_to_run(tmp_path, 2, exclusive=True))


def test_every_fold_is_checked_before_training(folds_config: Path, tiny_corpus: Path) -> None:
    run = folds_config.parent / "cv"
    with pytest.raises(ValueError, match=r"fold 1 has no validation rows to choose the best checkpoint by; set checkp"):
        crossval(read_experiment(folds_config, {"checkpoint": "best", "data.split.init_args.num_val_speakers": 0}), run)
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    last = table["speaker"].max()
    table.loc[(table["emotion"] == "sadness") & (table["speaker"] != last), "emotion"] = "anger"  # only `last` keeps it
    manifest = folds_config.parent / "rare.csv"
    table.to_csv(manifest, index=False)
    split = {"class_path": "mmemo.data.LeaveOneGroupOut", "init_args": {"num_val_speakers": 0}}
    changes = {"data.manifest": str(manifest), "data.split": split, "checkpoint": "last"}
    with pytest.raises(ValueError, match=r"fold 6: no training row is sadness; remove the class"):
        crossval(read_experiment(folds_config, changes), run)
    assert not run.exists()


def test_each_seed_has_its_own_run_folder(folds_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "seeds"
    assert main(["crossval", "--config", str(folds_config), "--seeds", "0", "3", "--run", str(run)]) == 0
    for seed in (0, 3):
        assert yaml.safe_load((run / f"seed{seed}" / "fold1" / "config.yaml").read_text())["seed_everything"] == seed
    assert len(json.loads((run / "crossval.json").read_text())["metrics"]["test/uar"]) == 6
    assert set(pd.read_parquet(run / "predictions.parquet")["seed"]) == {0, 3}


def test_a_split_with_a_single_fold_is_rejected(tiny_config: Path) -> None:
    with pytest.raises(ValueError, match="has a single fold"):
        crossval(read_experiment(tiny_config), tiny_config.parent / "cv")


def test_results_are_summarised_as_mean_and_sample_deviation() -> None:
    assert mean_and_deviation([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert mean_and_deviation([1.0]) == (1.0, 0.0)


def test_the_last_checkpoint_is_of_the_last_epoch(folds_config: Path) -> None:
    import torch

    run = folds_config.parent / "cv"
    crossval(read_experiment(folds_config, {"checkpoint": "last", "trainer.max_epochs": 4}), run)
    checkpoint = torch.load(run / "fold1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 3


@pytest.mark.slow
def test_two_processes_cross_validate_and_report_once(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 2, "num_val_speakers": 1},
    }
    config["trainer"] |= {"max_epochs": 1, "devices": 2, "strategy": "ddp"}
    tiny_config.write_text(yaml.safe_dump(config))
    run = tiny_config.parent / "folds"
    command = [sys.executable, "-m", "mmemo", "crossval", "--config", str(tiny_config), "--run", str(run)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Out-of-fold predictions") == 1
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert predictions["id"].nunique() == len(predictions) == 36
