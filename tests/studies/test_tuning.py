from __future__ import annotations

import json
import multiprocessing
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mmemo.studies.tuning import BEST_CONFIG, Tuning, _study, read_space, tune
from mmemo.training.experiment import Experiment

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


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def test_a_search_goes_on_and_its_best_config_runs(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    lines: list[str] = []
    settings = Tuning(num_trials=3, num_folds=2, prune=False)
    first = tune(config, space, run, settings, tell=lines.append)
    assert sum(line.startswith("trial") for line in lines) == 3
    assert first.own_score == first.own_score  # the config's own settings were the first trial
    assert first.score >= first.own_score
    again = tune(config, space, run, settings, tell=lines.append)  # nothing is left to do
    assert again.settings == first.settings
    more = tune(config, space, run, Tuning(num_trials=5, num_folds=2, prune=False), tell=lines.append)
    assert more.score >= first.score
    table = pd.read_csv(run / "trials.csv")
    assert len(table) == 5
    assert more.importance == pytest.approx(json.loads((run / "tuning.json").read_text())["importance"])
    assert sum(more.importance.values()) == pytest.approx(1.0)
    assert (run / "tuning.png").stat().st_size > 1000
    assert {"own_uar", "best_uar", "difference", "p"} <= set(more.judged)
    looks = len(list((run / "outer").glob("best_*")))
    assert more.judged["looks"] == looks
    assert any(f"looked at the outer test speakers {looks} times" in line for line in lines) == (looks > 1)
    chosen = [yaml.safe_load(path.read_text()) for path in (run / "outer").glob("best_*/config.yaml")]
    rates = {one["model"]["init_args"]["optimizer"]["init_args"]["lr"] for one in chosen}
    assert any(rate == pytest.approx(more.settings["model.init_args.optimizer.init_args.lr"]) for rate in rates)
    best = yaml.safe_load((run / BEST_CONFIG).read_text())
    assert best["trainer"]["max_epochs"] == more.settings["trainer.max_epochs"]
    experiment = Experiment(["--config", str(run / BEST_CONFIG)], run=False)
    assert experiment.datamodule.splitter.count(None) == 3  # the outer folds


def test_labels_of_outer_test_speakers_are_never_read(
    config: Path, space: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Permuting them changes no trial."""
    scores = []
    for name in ("as they are", "permuted"):
        table = pd.read_csv(tiny_corpus, dtype=str)
        experiment = Experiment(["--config", str(config)], run=False)
        experiment.datamodule.setup("test")
        test = experiment.datamodule.split.test
        if name == "permuted":
            labels = table["emotion"].to_numpy(dtype=object).copy()
            other = {"anger": "sadness", "sadness": "neutral", "neutral": "anger"}
            labels[test] = [other[one] for one in labels[test]]
            table["emotion"] = labels
        table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
        manifest = tmp_path / f"{name.replace(' ', '_')}.csv"
        table.to_csv(manifest, index=False)
        run = tmp_path / name
        tune(
            config, space, run, Tuning(num_trials=4, num_folds=2, judge=False), ["--data.manifest", str(manifest)]
        )  # fmt: skip
        scores.append(pd.read_csv(run / "trials.csv").drop(columns=["duration"]))
        inner = Experiment(["--config", str(run / "inner.yaml")], run=False)
        inner.datamodule.setup("fit")
        for side in inner.datamodule.split:
            assert not set(side) & set(test)
    pd.testing.assert_frame_equal(*scores)


def test_a_split_with_one_fold_is_tuned_on_its_training_side(tiny_config: Path, space: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_config.read_text())
    del content["data"]["split"]  # the manifest's own
    tiny_config.write_text(yaml.safe_dump(content))
    found = tune(tiny_config, space, tmp_path / "run", Tuning(num_trials=1, num_folds=2))
    assert {"own_uar", "best_uar"} <= set(found.judged)
    inner = pd.concat(pd.read_parquet(path) for path in (tmp_path / "run" / "trials").rglob("predictions.parquet"))
    assert set(inner["speaker"]) == {"s0", "s1", "s2", "s3"}  # s4 and s5 test
    with pytest.raises(ValueError, match=r"outer fold 2: data\.split of .* has folds 1 to 1"):
        tune(tiny_config, space, tmp_path / "other", Tuning(num_trials=1, num_folds=2, outer_fold=2))


@pytest.mark.parametrize("sampler", ["random", "grid", "cmaes", "nsga2"])
def test_every_sampler_searches(sampler: str, config: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "model.init_args.optimizer.init_args.lr: {low: 0.01, high: 0.02, step: 0.01}\n"
        "model.init_args.modality_dropout: {low: 0.0, high: 0.1, step: 0.1}\n"
    )
    number = 20 if sampler == "grid" else 3
    found = tune(
        config, space, tmp_path / "run", Tuning(sampler, number, num_folds=2, prune=False, judge=False)  # type: ignore[arg-type]
    )  # fmt: skip
    if sampler == "grid":  # every cell once
        assert len(pd.read_csv(tmp_path / "run" / "trials.csv")) == 4
    assert 0.01 <= found.settings["model.init_args.optimizer.init_args.lr"] <= 0.0301


def test_weak_trials_are_given_up(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmemo.studies import tuning as room

    tried: list[tuple[float, int]] = []

    def scored(inside: Path, folder: Path, fold: int, options: list[str], metric: str | None) -> float:
        rate = float(options[1])
        tried.append((rate, fold))
        return rate

    monkeypatch.setattr(room, "_score", scored)
    space = tmp_path / "space.yaml"
    space.write_text("model.init_args.optimizer.init_args.lr: {low: 0.001, high: 0.1}\n")
    room.tune(config, space, tmp_path / "run", Tuning("random", num_trials=12, num_folds=2, judge=False))
    given_up = {rate for rate, _ in tried} - {rate for rate, fold in tried if fold == 2}
    assert given_up
    assert max(given_up) < max(rate for rate, _ in tried)


def test_a_trial_that_diverges_is_given_up_and_a_score_that_is_none_is_told(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmemo.studies import tuning as room

    space = tmp_path / "space.yaml"
    space.write_text("model.init_args.optimizer.init_args.lr: {low: 0.001, high: 0.1}\n")

    def diverges(inside: Path, folder: Path, fold: int, options: list[str], metric: str | None) -> float:
        if float(options[1]) > 0.04:
            raise FloatingPointError("the training loss became nan")
        return float(options[1])

    monkeypatch.setattr(room, "_score", diverges)
    lines: list[str] = []
    found = room.tune(
        config, space, tmp_path / "a", Tuning("random", num_trials=8, num_folds=2, judge=False), tell=lines.append
    )
    assert found.score <= 0.04
    assert any("became nan" in line for line in lines)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="the model is judged by"):
        room.tune(config, space, tmp_path / "b", Tuning(num_trials=1, num_folds=2, metric="f2"))


class Killed(BaseException):
    """What no part of the search catches, as it cannot catch being killed."""


@pytest.mark.parametrize("end", [KeyboardInterrupt, Killed])
def test_what_an_interrupted_worker_tried_is_tried_again_and_samplers_are_told(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    from mmemo.studies import tuning as room

    space, run = tmp_path / "space.yaml", tmp_path / "run"
    space.write_text("model.init_args.optimizer.init_args.lr: {low: 0.001, high: 0.1}\n")
    tried: list[float] = []

    def killed(inside: Path, folder: Path, fold: int, options: list[str], metric: str | None) -> float:
        tried.append(float(options[1]))
        if len(tried) == 4:
            raise end
        return tried[-1]

    monkeypatch.setattr(room, "_score", killed)
    with pytest.raises(end):
        room.tune(config, space, run, Tuning("random", num_trials=3, num_folds=2, prune=False, judge=False))
    with sqlite3.connect(run / "study.sqlite") as storage:  # its last sign of life was long ago
        storage.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")
    room.tune(config, space, run, Tuning("nsga2", num_trials=3, num_folds=2, prune=False, judge=False))
    assert tried.count(tried[3]) == 4, "both folds before, the second of them interrupted, and both again"
    assert json.loads((run / "tuning.json").read_text())["samplers"] == ["nsga2", "random"]


def test_a_manifest_that_was_changed_is_another_search(
    config: Path, space: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    manifest = tmp_path / "m.csv"
    table.to_csv(manifest, index=False)
    options = ["--data.manifest", str(manifest)]
    settings = Tuning(num_trials=1, num_folds=2, judge=False)
    tune(config, space, tmp_path / "run", settings, options)
    table.iloc[:-1].to_csv(manifest, index=False)
    with pytest.raises(ValueError, match="another config, manifest"):
        tune(config, space, tmp_path / "run", settings, options)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("- 1\n", "expected a table of config keys"),
        ("a.b: 3\n", "expected a list of choices, or low below high"),
        ("a.b: {low: 2, high: 1}\n", "low below high"),
        ("a.b: {low: 0.0, high: 1.0, log: true}\n", "log needs low above 0"),
    ],
)
def test_a_space_that_is_none_says_so(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_space(path)


def test_what_cannot_be_tuned_is_said_before_anything_is_trained(config: Path, space: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened.yaml"
    opened.write_text("data.split: [mmemo.data.OfficialSplit]\n")
    with pytest.raises(ValueError, match="cannot be tuned"):
        tune(config, opened, tmp_path / "o", Tuning(num_trials=1, num_folds=2))
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("model.init_args.learning_rate: [0.1, 0.2]\n")
    with pytest.raises(ValueError, match="is refused by the config"):
        tune(config, unknown, tmp_path / "a", Tuning(num_trials=1, num_folds=2))
    with pytest.raises(ValueError, match="expected 2 to 4"):
        tune(config, space, tmp_path / "b", Tuning(num_trials=1, num_folds=9))
    with pytest.raises(ValueError, match="cannot be used"):
        tune(config, space, tmp_path / "c", Tuning(num_trials=1, num_folds=2, storage="nonsense://x"))


def test_another_search_is_not_mixed_in(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tune(config, space, run, Tuning(num_trials=1, num_folds=2, judge=False))
    space.write_text(SPACE.replace("[1, 2]", "[1, 3]"))
    with pytest.raises(ValueError, match="another config, manifest, space or metric"):
        tune(config, space, run, Tuning(num_trials=1, num_folds=2, judge=False))
    inside = (run / "inner.yaml").read_text()
    space.write_text(SPACE)
    with pytest.raises(ValueError, match="another config, manifest, space or metric"):
        tune(config, space, run, Tuning(num_trials=1, num_folds=2, judge=False), ["--model.init_args.mixup", "0.3"])
    assert (run / "inner.yaml").read_text() == inside  # what a search that is running reads


def test_workers_that_start_together_try_different_settings(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--config", str(config), "--space", str(space), "--run", str(run), "--folds", "2", "--judge", "false"]
    program = [sys.executable, "-m", "mmemo.cli.main", "tune", *options, "--trials", "4", "--prune", "false"]
    workers = [subprocess.Popen(program, cwd=Path.cwd()) for _ in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    table = pd.read_csv(run / "trials.csv")
    assert 4 <= len(table) <= 5
    assert not table.filter(like="params_").duplicated().any()


def open_new_storages(folder: Path, number: int, together: Any) -> None:
    """What one worker of several does: opens one new storage after another, each at the moment when the others do."""
    for round_number in range(8):
        settings = Tuning(storage=f"sqlite:///{folder / f'shared{round_number}.sqlite'}")
        together.wait(120)
        assert _study(settings, folder / f"machine{number}", {}, "a" * 64).trials == []


def test_workers_that_open_a_new_storage_at_one_moment_share_it(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    together = processes.Barrier(2)
    workers = [processes.Process(target=open_new_storages, args=(tmp_path, number, together)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_storage_of_another_kind_is_refused(config: Path, space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.sqlite").write_bytes(b"this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(ValueError, match="cannot be used"):
        tune(config, space, run, Tuning(num_trials=1, num_folds=2, judge=False))
