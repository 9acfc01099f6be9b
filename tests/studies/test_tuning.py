from __future__ import annotations

import json
import multiprocessing
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mmemo.studies import tuning
from mmemo.studies.search_space import read_space
from mmemo.studies.storage import open_study
from mmemo.studies.tuning import BEST_CONFIG, SearchSettings, TuningResult
from mmemo.training.experiment import Experiment
from mmemo.training.experiment_cli import read_experiment

SPACE = "model.init_args.optimizer.init_args.lr: {low: 1.0e-4, high: 0.1, log: true}\ntrainer.max_epochs: [1, 2]\n"


@pytest.fixture
def config(tiny_config: Path, tiny_corpus: Path) -> Path:
    content = yaml.safe_load(tiny_config.read_text())
    content["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 3, "num_val_speakers": 0},
    }
    content["checkpoint"] = "last"
    tiny_config.write_text(yaml.safe_dump(content))
    return tiny_config


def tune(
    config: Path, space: Path, run: Path, settings: SearchSettings, changes: dict[str, Any] | None = None,
    notify: Callable[[str], None] = print,
) -> TuningResult:  # fmt: skip
    return tuning.tune(read_experiment(config, changes), read_space(space), str(run), settings, notify)


def learning_rate(experiment: Experiment) -> float:
    return float(experiment.settings()["model"]["init_args"]["optimizer"]["init_args"]["lr"])


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def test_a_search_resumes_and_its_best_config_runs(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    lines: list[str] = []
    settings = SearchSettings(num_trials=3, num_folds=2, prune=False)
    first = tune(config, space, run, settings, notify=lines.append)
    assert sum(line.startswith("trial") for line in lines) == 3
    assert first.own_score == first.own_score  # not NaN: the first trial has the config's own settings
    assert first.score >= first.own_score
    repeated = tune(config, space, run, settings, notify=lines.append)  # all trials are finished
    assert repeated.settings == first.settings
    extended = tune(config, space, run, SearchSettings(num_trials=5, num_folds=2, prune=False), notify=lines.append)
    assert extended.score >= first.score
    table = pd.read_csv(run / "trials.csv")
    assert len(table) == 5
    assert extended.importance == pytest.approx(json.loads((run / "tuning.json").read_text())["importance"])
    assert sum(extended.importance.values()) == pytest.approx(1.0)
    assert (run / "tuning.png").stat().st_size > 1000
    assert {"own_uar", "best_uar", "difference", "p"} <= set(extended.test)
    evaluations = len(list((run / "outer").glob("best_*")))
    assert extended.test["num_evaluations"] == evaluations
    assert any(f"used the outer test speakers {evaluations} times" in line for line in lines) == (evaluations > 1)
    configs = [yaml.safe_load(path.read_text()) for path in (run / "outer").glob("best_*/config.yaml")]
    rates = {content["model"]["init_args"]["optimizer"]["init_args"]["lr"] for content in configs}
    assert any(rate == pytest.approx(extended.settings["model.init_args.optimizer.init_args.lr"]) for rate in rates)
    best = yaml.safe_load((run / BEST_CONFIG).read_text())
    assert best["trainer"]["max_epochs"] == extended.settings["trainer.max_epochs"]
    assert extended.experiment.data.split.num_folds == 3  # type: ignore[attr-defined]  # the outer folds
    assert learning_rate(read_experiment(run / BEST_CONFIG)) == pytest.approx(learning_rate(extended.experiment))


def test_labels_of_outer_test_speakers_are_never_read(
    config: Path, space: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Permuting the labels of the test speakers changes no trial."""
    scores = []
    for name in ("original", "permuted"):
        table = pd.read_csv(tiny_corpus, dtype=str)
        test = read_experiment(config).data.prepare("test").split.test
        if name == "permuted":
            labels = table["emotion"].to_numpy(dtype=object).copy()
            permuted = {"anger": "sadness", "sadness": "neutral", "neutral": "anger"}
            labels[test] = [permuted[label] for label in labels[test]]
            table["emotion"] = labels
        table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
        manifest = tmp_path / f"{name.replace(' ', '_')}.csv"
        table.to_csv(manifest, index=False)
        run = tmp_path / name
        settings = SearchSettings(num_trials=4, num_folds=2, evaluate=False)
        tune(config, space, run, settings, {"data.manifest": str(manifest)})
        scores.append(pd.read_csv(run / "trials.csv").drop(columns=["duration"]))
        for path in run.glob("trials/*/fold*/config.yaml"):
            for side in read_experiment(path).data.prepare("fit").split:
                assert not set(side) & set(test)
    pd.testing.assert_frame_equal(*scores)


def test_a_split_with_one_fold_is_tuned_on_its_training_side(tiny_config: Path, space: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_config.read_text())
    del content["data"]["split"]  # the manifest's split column is used instead
    tiny_config.write_text(yaml.safe_dump(content))
    result = tune(tiny_config, space, tmp_path / "run", SearchSettings(num_trials=1, num_folds=2))
    assert {"own_uar", "best_uar"} <= set(result.test)
    inner = pd.concat(pd.read_parquet(path) for path in (tmp_path / "run" / "trials").rglob("predictions.parquet"))
    assert set(inner["speaker"]) == {"s0", "s1", "s2", "s3"}  # s4 and s5 are test speakers
    with pytest.raises(ValueError, match=r"outer fold 2: data\.split has folds 1 to 1"):
        tune(tiny_config, space, tmp_path / "other", SearchSettings(num_trials=1, num_folds=2, outer_fold=2))


@pytest.mark.parametrize("sampler", ["random", "grid", "cmaes", "nsga2"])
def test_every_sampler_finds_settings_in_the_space(sampler: str, config: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "model.init_args.optimizer.init_args.lr: {low: 0.01, high: 0.02, step: 0.01}\n"
        "model.init_args.modality_dropout: {low: 0.0, high: 0.1, step: 0.1}\n"
    )
    num_trials = 20 if sampler == "grid" else 3
    result = tune(
        config, space, tmp_path / "run", SearchSettings(sampler, num_trials, num_folds=2, prune=False, evaluate=False)  # type: ignore[arg-type]
    )  # fmt: skip
    if sampler == "grid":  # each cell of the grid once
        assert len(pd.read_csv(tmp_path / "run" / "trials.csv")) == 4
    assert 0.01 <= result.settings["model.init_args.optimizer.init_args.lr"] <= 0.0301


def test_weak_trials_are_pruned(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[float, int]] = []

    def score(experiment: Experiment, folder: Path, fold: int, metric: str | None) -> float:
        rate = learning_rate(experiment)
        tried.append((rate, fold))
        return rate

    monkeypatch.setattr(tuning, "_score", score)
    space = tmp_path / "space.yaml"
    space.write_text("model.init_args.optimizer.init_args.lr: {low: 0.001, high: 0.1}\n")
    tune(config, space, tmp_path / "run", SearchSettings("random", num_trials=12, num_folds=2, evaluate=False))
    pruned = {rate for rate, _ in tried} - {rate for rate, fold in tried if fold == 2}
    assert pruned
    assert max(pruned) < max(rate for rate, _ in tried)


def test_a_diverging_trial_is_dropped_and_an_unknown_metric_is_rejected(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("model.init_args.optimizer.init_args.lr: {low: 0.001, high: 0.1}\n")

    def score(experiment: Experiment, folder: Path, fold: int, metric: str | None) -> float:
        if learning_rate(experiment) > 0.04:
            raise FloatingPointError("the training loss became nan")
        return learning_rate(experiment)

    monkeypatch.setattr(tuning, "_score", score)
    lines: list[str] = []
    result = tune(
        config,
        space,
        tmp_path / "a",
        SearchSettings("random", num_trials=8, num_folds=2, evaluate=False),
        notify=lines.append,
    )
    assert result.score <= 0.04
    assert any("became nan" in line for line in lines)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="metric f2: the model has accuracy, macro_f1, uar"):
        tune(config, space, tmp_path / "b", SearchSettings(num_trials=1, num_folds=2, metric="f2"))


class Killed(BaseException):
    """Simulates a killed process: the search does not catch this exception."""


@pytest.mark.parametrize("end", [KeyboardInterrupt, Killed])
def test_an_interrupted_trial_is_repeated_and_all_samplers_are_recorded(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    space, run = tmp_path / "space.yaml", tmp_path / "run"
    space.write_text("model.init_args.optimizer.init_args.lr: {low: 0.001, high: 0.1}\n")
    tried: list[float] = []

    def score(experiment: Experiment, folder: Path, fold: int, metric: str | None) -> float:
        tried.append(learning_rate(experiment))
        if len(tried) == 4:
            raise end
        return tried[-1]

    monkeypatch.setattr(tuning, "_score", score)
    with pytest.raises(end):
        tune(config, space, run, SearchSettings("random", num_trials=3, num_folds=2, prune=False, evaluate=False))
    with sqlite3.connect(run / "study.sqlite") as storage:  # as if the worker had stopped an hour ago
        storage.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")
    tune(config, space, run, SearchSettings("nsga2", num_trials=3, num_folds=2, prune=False, evaluate=False))
    assert tried.count(tried[3]) == 4, "two folds before the interruption, and the same two after it"
    assert json.loads((run / "tuning.json").read_text())["samplers"] == ["nsga2", "random"]


def test_a_search_is_not_resumed_after_the_manifest_changed(
    config: Path, space: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    manifest = tmp_path / "m.csv"
    table.to_csv(manifest, index=False)
    changes = {"data.manifest": str(manifest)}
    settings = SearchSettings(num_trials=1, num_folds=2, evaluate=False)
    tune(config, space, tmp_path / "run", settings, changes)
    table.iloc[:-1].to_csv(manifest, index=False)
    with pytest.raises(ValueError, match="holds a search with other settings"):
        tune(config, space, tmp_path / "run", settings, changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n", "expected YAML with settings"),
        ("a.b: [1, 2\n", r"space.yaml line 2: not valid YAML"),
        ("{}\n", "expected a table of settings"),
        ("a.b: 3\n", "expected a list of choices, or low below high"),
        ("a.b: {low: 2, high: 1}\n", "low below high"),
        ("a.b: {low: 0.0, high: 1.0, log: true}\n", "log needs low above 0"),
    ],
)
def test_an_invalid_search_space_is_rejected(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_space(path)


def test_invalid_searches_are_rejected_before_training(config: Path, space: Path, tmp_path: Path) -> None:
    split_space = tmp_path / "split.yaml"
    split_space.write_text("data.split: [mmemo.data.OfficialSplit]\n")
    with pytest.raises(ValueError, match="cannot be tuned"):
        tune(config, split_space, tmp_path / "o", SearchSettings(num_trials=1, num_folds=2))
    unknown_space = tmp_path / "unknown.yaml"
    unknown_space.write_text("model.init_args.learning_rate: [0.1, 0.2]\n")
    with pytest.raises(ValueError, match="is not accepted"):
        tune(config, unknown_space, tmp_path / "a", SearchSettings(num_trials=1, num_folds=2))
    with pytest.raises(ValueError, match="expected 2 to 4"):
        tune(config, space, tmp_path / "b", SearchSettings(num_trials=1, num_folds=9))
    with pytest.raises(ValueError, match="cannot be used"):
        tune(config, space, tmp_path / "c", SearchSettings(num_trials=1, num_folds=2, storage="nonsense://x"))


def test_a_run_folder_rejects_another_search(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tune(config, space, run, SearchSettings(num_trials=1, num_folds=2, evaluate=False))
    space.write_text(SPACE.replace("[1, 2]", "[1, 3]"))
    with pytest.raises(ValueError, match="holds a search with other settings"):
        tune(config, space, run, SearchSettings(num_trials=1, num_folds=2, evaluate=False))
    space.write_text(SPACE)
    with pytest.raises(ValueError, match="holds a search with other settings"):
        tune(
            config,
            space,
            run,
            SearchSettings(num_trials=1, num_folds=2, evaluate=False),
            {"model.init_args.mixup": 0.3},
        )


def test_workers_that_start_together_try_different_settings(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--config", str(config), "--space", str(space), "--run", str(run), "--folds", "2", "--no-evaluate"]
    command = [sys.executable, "-m", "mmemo", "tune", *options, "--trials", "4", "--no-prune"]
    workers = [subprocess.Popen(command, cwd=Path.cwd()) for _ in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    table = pd.read_csv(run / "trials.csv")
    assert 4 <= len(table) <= 5
    assert not table.filter(like="params_").duplicated().any()


def open_new_storages(folder: Path, number: int, barrier: Any) -> None:
    """Runs in one worker: opens one new storage after another, each at the same time as the other workers."""
    for round_number in range(8):
        settings = SearchSettings(storage=f"sqlite:///{folder / f'shared{round_number}.sqlite'}")
        barrier.wait(120)
        assert open_study(settings, folder / f"machine{number}", {}, "a" * 64).trials == []


def test_workers_can_open_the_same_new_storage_at_the_same_time(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    barrier = processes.Barrier(2)
    workers = [processes.Process(target=open_new_storages, args=(tmp_path, number, barrier)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_storage_that_is_not_a_database_is_rejected(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.sqlite").write_bytes(b"not a database, but as long as the header of one" * 20)
    with pytest.raises(ValueError, match="cannot be used"):
        tune(config, space, run, SearchSettings(num_trials=1, num_folds=2, evaluate=False))
