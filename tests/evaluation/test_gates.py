from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mmemo.evaluation.gates import draw_gates, gate_table, read_gates
from mmemo.training.experiment_cli import ExperimentCLI


def test_gates_from_predict_become_a_table_and_a_heat_map(tiny_config: Path, tmp_path: Path) -> None:
    ExperimentCLI(["fit", "--config", str(tiny_config)])
    path = tmp_path / "gates.parquet"
    ExperimentCLI(["predict", "--config", str(tiny_config), "--gates", str(path)])
    gates = read_gates(path)
    assert len(gates) == 36
    table = gate_table(gates)
    groups = (table["modality"] + "/" + table["group"]).tolist()
    assert groups[:2] == ["audio/layers 0, 1, 2", "text/layers 0, 1, 2"]
    assert table["num_features"].tolist()[:2] == [16, 16]
    shares = table[table["group"].str.startswith("layer mix")].groupby("modality")["mean"].sum()
    assert shares.to_dict() == pytest.approx({"audio": 1.0, "text": 1.0})
    assert ((table["mean"] > 0) & (table["mean"] < 1)).all()
    assert {"anger", "neutral", "sadness"} <= set(table)
    image = draw_gates(table, tmp_path / "gates.png")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_gate_table_is_the_mean_by_group_and_emotion() -> None:
    gates = pd.DataFrame(
        {
            "id": ["a", "b"],
            "emotion": ["anger", "sadness"],
            "audio/layer 2/0": [1.0, 0.0],
            "audio/layer 2/1": [0.5, 0.0],
            "descriptors/mfcc/0": [0.2, 0.4],
        }
    )
    table = gate_table(gates).set_index("group")
    assert table.loc["layer 2", "anger"] == pytest.approx(0.75)
    assert table.loc["layer 2", "sadness"] == 0.0
    assert table.loc["layer 2", "open"] == pytest.approx(0.5)
    assert table.loc["mfcc", "mean"] == pytest.approx(0.3)


def test_files_without_gate_values_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_gates(tmp_path / "nothing.csv")
    pd.DataFrame({"id": ["a"], "emotion": ["anger"], "prob_anger": [1.0]}).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ValueError, match="not a file of gate values"):
        read_gates(tmp_path / "p.csv")
