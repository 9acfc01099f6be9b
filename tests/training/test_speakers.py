"""Calibration to speakers in training, test and prediction: labels are never read, sides never mix."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from mmemo.data import EmotionDataModule, Enrolment
from mmemo.data.table import DataTable
from mmemo.export.onnx import export_onnx
from mmemo.export.runtime import Recognizer
from mmemo.report.report import write_report
from mmemo.studies.conditions import conditions
from mmemo.studies.robustness import RobustnessSettings, robustness
from mmemo.training.experiment_cli import ExperimentCLI, read_runs
from mmemo.training.loading import load_model
from tests.conftest import CLASSES, padded, tone


@pytest.fixture
def calibrated_config(tiny_config: Path, tiny_whisper: Path) -> Path:
    """A head that is computed on statistics of the tiny Whisper, calibrated to speakers; run folder ``run``."""
    config = yaml.safe_load(tiny_config.read_text())
    whisper = {"class_path": "mmemo.models.WhisperAudioEncoder", "init_args": {"model_id": str(tiny_whisper)}}
    config["model"] = {
        "class_path": "mmemo.training.ClosedFormSystem",
        "init_args": {
            "speaker_folds": 2,
            "model": {
                "class_path": "mmemo.EmotionModel",
                "init_args": {
                    "audio_encoder": {
                        "class_path": "mmemo.models.StatisticsEncoder",
                        "init_args": {"encoder": whisper},
                    },
                    "speaker_norm": "mmemo.models.SpeakerNorm",
                    "layer_mix": "mmemo.models.LayerConcat",
                    "gate": "mmemo.models.NoGate",
                    "fusion": {
                        "class_path": "mmemo.models.Concatenation",
                        "init_args": {"pooling": "mmemo.models.MeanPooling"},
                    },
                    "head": {"class_path": "mmemo.models.DiscriminantHead", "init_args": {"num_groups": 3}},
                    "speaker_mixture": "mmemo.models.SpeakerMixture",
                },
            },
        },
    }
    config["trainer"]["max_epochs"] = 1
    tiny_config.write_text(yaml.safe_dump(config, sort_keys=False))
    return tiny_config


def predict(config: Path, name: str, *options: str) -> pd.DataFrame:
    path = config.parent / name
    ExperimentCLI(["predict", "--config", str(config), "--predictions", str(path), *options])
    return pd.read_csv(path, dtype={"speaker": str})


def fit(config: Path) -> Path:
    ExperimentCLI(["fit", "--config", str(config)])
    return config.parent / "run"


def probs(table: pd.DataFrame, prefix: str = "") -> np.ndarray:
    return table[[f"{prefix}prob_{name}" for name in CLASSES]].to_numpy()


def test_a_calibrated_model_is_trained_tested_and_reloaded(calibrated_config: Path) -> None:
    run = fit(calibrated_config)
    ExperimentCLI(["test", "--config", str(calibrated_config)])
    results = json.loads((run / "test_metrics.json").read_text())
    assert results["calibration"] == "calibrated on 6 unlabelled utterances of each speaker"
    assert {"test/uar", "test_uncalibrated/uar"} <= set(results["metrics"])
    assert results["metrics"]["test/uar"] > 0.5  # the pitch of the tones determines the class
    table = predict(calibrated_config, "predictions.csv", "--data.predict_on", "test")
    assert (table["enrolled_utterances"] == 6).all()
    assert not np.allclose(probs(table), probs(table, "uncalibrated_"))
    np.testing.assert_allclose(probs(table).sum(1), 1, atol=1e-5)


def test_labels_of_enrolled_utterances_are_never_read(calibrated_config: Path, tiny_corpus: Path) -> None:
    fit(calibrated_config)
    before = predict(calibrated_config, "before.csv", "--data.predict_on", "test")
    manifest = pd.read_csv(tiny_corpus)
    manifest["path"] = [str(tiny_corpus.parent / path) for path in manifest["path"]]
    is_test = manifest["split"] == "test"
    shuffled = manifest.loc[is_test, "emotion"].sample(frac=1, random_state=3).to_numpy()
    assert (shuffled != manifest.loc[is_test, "emotion"]).any()
    manifest.loc[is_test, "emotion"] = shuffled
    path = calibrated_config.parent / "shuffled.csv"
    manifest.to_csv(path, index=False)
    after = predict(calibrated_config, "after.csv", "--data.predict_on", "test", "--data.manifest", str(path))
    np.testing.assert_array_equal(probs(after), probs(before))


def test_other_speakers_do_not_change_a_prediction(calibrated_config: Path, tiny_corpus: Path) -> None:
    fit(calibrated_config)
    together = predict(calibrated_config, "all.csv")
    alone = predict(calibrated_config, "alone.csv", "--data.only", '{"speaker": ["s5"]}')
    expected = together[together["speaker"] == "s5"].reset_index(drop=True)
    np.testing.assert_allclose(probs(alone), probs(expected), atol=1e-5)


def test_without_enrolled_utterances_a_model_is_uncalibrated(calibrated_config: Path) -> None:
    fit(calibrated_config)
    none = '{"class_path": "mmemo.data.Enrolment", "init_args": {"num_utterances": 0}}'
    table = predict(calibrated_config, "none.csv", "--data.enrolment", none)
    np.testing.assert_allclose(probs(table), probs(table, "uncalibrated_"), atol=1e-6)


def test_a_speaker_with_fewer_utterances_than_asked_for_is_reported(
    calibrated_config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = '{"class_path": "mmemo.data.Enrolment", "init_args": {"num_utterances": 20}}'
    with caplog.at_level(logging.WARNING):
        ExperimentCLI(["fit", "--config", str(calibrated_config), "--data.enrolment", many])
    assert "have fewer than 20 utterances, such as s0; all of theirs are used" in caplog.text


def test_balancing_a_balanced_corpus_changes_nothing(calibrated_config: Path) -> None:
    results = []
    for balanced in ("false", "true"):
        options = ["--model.init_args.balanced", balanced, "--overwrite", "true"]
        ExperimentCLI(["fit", "--config", str(calibrated_config), *options])
        results.append(probs(predict(calibrated_config, f"{balanced}.csv", "--model.init_args.balanced", balanced)))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_a_report_gives_both_results_and_says_what_was_used(calibrated_config: Path) -> None:
    run = fit(calibrated_config)
    predict(calibrated_config, "run/predictions.csv", "--data.predict_on", "test")
    report = write_report(run)
    results = report.content.speaker_calibration
    assert results is not None
    assert results.num_enrolled == [6, 6]
    assert results.calibrated.value == report.content.classification.metrics["uar"].value  # type: ignore[union-attr]
    assert results.num_speakers == 2
    assert any("calibrated on 6 unlabelled utterances of each test speaker" in line for line in report.summary)
    page = report.html.read_text()
    assert "as for unknown speakers" in page
    assert "Their labels were not used" in page


def test_robustness_evaluates_the_calibrated_model(calibrated_config: Path) -> None:
    run = fit(calibrated_config)
    ExperimentCLI(["test", "--config", str(calibrated_config)])
    expected = json.loads((run / "test_metrics.json").read_text())["metrics"]["test/uar"]
    noise = [condition for condition in conditions() if condition.name == "white 0 dB"]
    table = robustness(read_runs(run), noise, run / "robustness", settings=RobustnessSettings(progress=False)).table
    assert table["uar"].iat[0] == pytest.approx(expected, abs=1e-6)
    assert table["condition"].tolist() == ["clean", "white 0 dB"]


def test_an_exported_model_is_that_of_an_unknown_speaker(
    calibrated_config: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = load_model(fit(calibrated_config) / "checkpoints/best.ckpt")
    waveform = tone(0.5).numpy()
    export_onnx(model, tmp_path / "exported", [waveform])
    assert "exported as for an unknown speaker" in caplog.text
    with torch.no_grad():
        expected = model(*padded([tone(0.5)])).logits.softmax(-1)[0].numpy()
    probabilities = Recognizer(tmp_path / "exported", int8=False).predict(waveform).probabilities
    np.testing.assert_allclose([probabilities[name] for name in CLASSES], expected, atol=1e-3)


def test_a_corpus_without_speakers_is_refused(calibrated_config: Path, tiny_corpus: Path) -> None:
    manifest = pd.read_csv(tiny_corpus)
    manifest["path"] = [str(tiny_corpus.parent / path) for path in manifest["path"]]
    path = calibrated_config.parent / "nobody.csv"
    manifest.drop(columns="speaker").to_csv(path, index=False)
    changed: list[Any] = ["--data.manifest", str(path), "--data.allow_speaker_overlap", "true"]
    with pytest.raises(ValueError, match="no training speaker has two utterances or more"):
        ExperimentCLI(["fit", "--config", str(calibrated_config), *changed])


def table_of(tiny_corpus: Path) -> DataTable:
    return EmotionDataModule(CLASSES, str(tiny_corpus)).prepare("fit")


def test_enrolment_takes_the_first_or_random_utterances_of_each_speaker(tiny_corpus: Path) -> None:
    table = table_of(tiny_corpus)
    rows = np.arange(36)
    first = Enrolment(num_utterances=2).choose(table, rows)
    assert [speaker.name for speaker in first] == [f"s{number}" for number in range(6)]
    assert all(np.array_equal(speaker.enrolled, speaker.rows[:2]) for speaker in first)
    draws = [Enrolment(2, "random", seed=seed).choose(table, rows) for seed in range(5)]
    assert len({tuple(speakers[0].enrolled) for speakers in draws}) > 1
    assert all(set(speaker.enrolled) <= set(speaker.rows) for speakers in draws for speaker in speakers)


def test_sessions_of_a_speaker_are_enrolled_apart(tiny_corpus: Path, tmp_path: Path) -> None:
    manifest = pd.read_csv(tiny_corpus)
    manifest["path"] = [str(tiny_corpus.parent / path) for path in manifest["path"]]
    manifest["session"] = ["first", "second"] * 18
    manifest.to_csv(tmp_path / "sessions.csv", index=False)
    speakers = Enrolment(by="session").choose(table_of(tmp_path / "sessions.csv"), np.arange(36))
    assert len(speakers) == 12
    assert {len(speaker.rows) for speaker in speakers} == {3}


def test_a_negative_number_of_utterances_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        Enrolment(num_utterances=-1)
