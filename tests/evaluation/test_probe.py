from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmemo.cli.main import main
from mmemo.evaluation.probe import linear_probe
from mmemo.training.experiment import Experiment


def vectors(leak: float) -> pd.DataFrame:
    random = np.random.default_rng(0)
    speaker = np.repeat(np.arange(5), 40)
    numbers = random.standard_normal((200, 8))
    numbers[:, :5] += leak * np.eye(5)[speaker]
    table = pd.DataFrame(numbers, columns=[f"embedding_{number}" for number in range(8)])
    return table.assign(speaker=speaker.astype(str), side="test", gender="f")


def test_a_probe_finds_what_is_there_and_nothing_where_nothing_is() -> None:
    there, none = linear_probe(vectors(6.0), "speaker"), linear_probe(vectors(0.0), "speaker")
    assert there.accuracy > 0.97
    assert none.accuracy < 0.32
    assert none.majority == pytest.approx(0.2)
    assert (there.num_values, there.num_utterances) == (5, 200)


def test_what_cannot_be_probed_is_told() -> None:
    table = vectors(1.0)
    for column, message in (("age", "no column 'age', found only speaker"), ("gender", "one value alone")):
        with pytest.raises(ValueError, match=message):
            linear_probe(table, column)
    with pytest.raises(ValueError, match="embeddings"):
        linear_probe(table[["speaker"]], "speaker")
    table.loc[:2, "speaker"] = "rare"
    with pytest.raises(ValueError, match="'rare' of column 'speaker' has 3 utterances"):
        linear_probe(table, "speaker")


def test_from_a_run_to_a_sentence(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Experiment(["fit", "--config", str(tiny_config)])
    out = tmp_path / "vectors.csv"
    Experiment(["predict", "--config", str(tiny_config), "--embeddings", str(out)])
    table = pd.read_csv(out)
    assert len(table) == 36
    assert "text" not in table
    assert "path" not in table
    assert set(table["side"]) == {"train", "val", "test"}
    assert main(["probe", str(out), "--column", "emotion", "--num_folds", "3"]) == 0
    assert "of 36 utterances right among 3 values; the most frequent alone is 33.3 %" in capsys.readouterr().out
    assert main(["probe", str(tmp_path / "none.csv")]) == 1
    assert "mmemo predict --embeddings" in capsys.readouterr().err
