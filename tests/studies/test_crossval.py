from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from sklearn.metrics import balanced_accuracy_score

from mmemo.cli.crossval import _given_root
from mmemo.data.splits import SplitError
from mmemo.studies import crossval as room
from mmemo.studies.crossval import collect, crossval, folds_to_do, spread, write
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


def test_a_participant_stands_on_one_side_whatever_a_speaker_is(folds_config: Path, tiny_corpus: Path) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    table["patient"] = "p" + (table.groupby("speaker").ngroup() // 2).astype(str)  # two voices in each
    manifest = folds_config.parent / "patients.csv"
    table.to_csv(manifest, index=False)
    given = ["--data.manifest", str(manifest), "--study", '{"outcome": ["anger"], "participant": "patient"}']
    with pytest.raises(SplitError, match=r"patients are both in train and in .*; split by patient"):
        crossval(folds_config, folds_config.parent / "cv", given)
    with pytest.raises(SplitError, match="patients are both in train and in"):
        Experiment(["fit", "--config", str(folds_config), *given])


def test_a_figure_that_a_fold_lacks_stays_with_its_fold(tmp_path: Path) -> None:
    for fold, metrics in enumerate([{"test/uar": 0.5}, {"test/uar": 0.7, "test/ccc": 0.2}], 1):
        folder = tmp_path / f"fold{fold}"
        folder.mkdir()
        (folder / "test_metrics.json").write_text(json.dumps({"metrics": metrics, "warnings": []}))
        pd.DataFrame({"id": [f"u{fold}"]}).to_parquet(folder / "predictions.parquet")
    found = collect(tmp_path, 2)
    assert found.num_folds == 2
    assert np.isnan(found.metrics["test/ccc"][0])
    assert found.metrics["test/ccc"][1] == 0.2
    assert spread(found.metrics["test/ccc"]) == (0.2, 0.0)
    write(found)
    assert json.loads((tmp_path / "crossval.json").read_text())["metrics"]["test/ccc"] == [None, 0.2]


def test_on_several_devices_one_command_works_on_a_run(tmp_path: Path) -> None:
    (tmp_path / "fold1").mkdir()
    with FileLock(tmp_path / "fold1" / ".lock"):
        assert next(folds_to_do(tmp_path, 2))[1] == 2  # a worker takes what is free
        with pytest.raises(ValueError, match="on several devices one command alone"):
            next(folds_to_do(tmp_path, 2, together=True))


def test_every_fold_is_looked_at_before_one_is_trained(folds_config: Path, tiny_corpus: Path) -> None:
    run = folds_config.parent / "cv"
    with pytest.raises(ValueError, match=r"fold 1 has no validation rows to choose the best checkpoint by; set checkp"):
        crossval(folds_config, run, ["--checkpoint", "best", "--data.split.init_args.num_val_speakers", "0"])
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    last = table["speaker"].max()
    table.loc[(table["emotion"] == "sadness") & (table["speaker"] != last), "emotion"] = "anger"  # one speaker's alone
    manifest = folds_config.parent / "rare.csv"
    table.to_csv(manifest, index=False)
    given = ["--data.manifest", str(manifest), "--data.split", "mmemo.data.LeaveOneGroupOut"]
    given += ["--data.split.init_args.num_val_speakers", "0", "--checkpoint", "last"]
    with pytest.raises(ValueError, match=r"fold 6: no training row is sadness, which the other folds would find out"):
        crossval(folds_config, run, given)
    assert not run.exists()


def test_seeds_go_where_an_option_says() -> None:
    assert _given_root(["--trainer.max_epochs", "2"]) is None
    assert _given_root(["--trainer.default_root_dir", "runs/mine"]) == Path("runs/mine")
    assert _given_root(["--trainer.default_root_dir=runs/mine"]) == Path("runs/mine")


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
