from __future__ import annotations

from pathlib import Path

import pytest

from mmemo import progress as room
from mmemo.progress import progress, track
from mmemo.training.experiment_cli import read_experiment
from mmemo.training.progress_lines import ProgressLines


def test_lines_show_progress_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("Reading", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == "", "nothing in the first 30 seconds"
    monkeypatch.setattr(room, "LINE_SECONDS", 0.0)
    assert list(track("abc", "Reading")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == ["Reading: 1 of 3", "Reading: 2 of 3", "Reading: 3 of 3"]
    assert list(track("abc", "Reading", show=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_training_prints_lines_where_there_is_no_terminal(
    tiny_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmemo.training.experiment.ProgressLines", lambda: ProgressLines(seconds=0.0))
    experiment = read_experiment(tiny_config, {"trainer.enable_progress_bar": True})
    experiment.fit()
    errors = capsys.readouterr().err
    assert "Training: epoch 2 of 2, step 3 of 3, train/loss" in errors
    assert "it/s" not in errors.split("Training")[-1], "no bar of another library"
