from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmemo.cli.app import main
from mmemo.evaluation.probe import linear_probe
from mmemo.training.experiment_cli import ExperimentCLI


def embeddings(leak: float) -> pd.DataFrame:
    random = np.random.default_rng(0)
    speaker = np.repeat(np.arange(5), 40)
    numbers = random.standard_normal((200, 8))
    numbers[:, :5] += leak * np.eye(5)[speaker]
    table = pd.DataFrame(numbers, columns=[f"embedding_{number}" for number in range(8)])
    return table.assign(speaker=speaker.astype(str), side="test", gender="f")


def test_a_probe_finds_speaker_information_only_if_the_embeddings_contain_it() -> None:
    leaky, clean = linear_probe(embeddings(6.0), "speaker"), linear_probe(embeddings(0.0), "speaker")
    assert leaky.accuracy > 0.97
    assert clean.accuracy < 0.32
    assert clean.majority == pytest.approx(0.2)
    assert (leaky.num_values, leaky.num_utterances) == (5, 200)


def test_probes_reject_invalid_tables() -> None:
    table = embeddings(1.0)
    for column, message in (("age", "no column 'age', found only speaker"), ("gender", "fewer than two values")):
        with pytest.raises(ValueError, match=message):
            linear_probe(table, column)
    with pytest.raises(ValueError, match="embeddings"):
        linear_probe(table[["speaker"]], "speaker")
    table.loc[:2, "speaker"] = "rare"
    with pytest.raises(ValueError, match="'rare' of column 'speaker' has 3 utterances"):
        linear_probe(table, "speaker")


def test_a_run_is_probed_from_the_command_line(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ExperimentCLI(["fit", "--config", str(tiny_config)])
    out = tmp_path / "embeddings.csv"
    ExperimentCLI(["predict", "--config", str(tiny_config), "--embeddings", str(out)])
    table = pd.read_csv(out)
    assert len(table) == 36
    assert "text" not in table
    assert "path" not in table
    assert set(table["side"]) == {"train", "val", "test"}
    assert main(["probe", str(out), "--column", "emotion", "--num-folds", "3"]) == 0
    assert (
        "of 36 utterances correct among 3 values; always choosing the most frequent gives 33.3 %"
        in capsys.readouterr().out
    )
    assert main(["probe", str(tmp_path / "none.csv")]) == 1
    assert "mmemo predict --embeddings" in capsys.readouterr().err
