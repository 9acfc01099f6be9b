from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmemo.cli.app import main
from mmemo.data.manifest import Utterance
from mmemo.studies.explanations import FOLDER, Explanations, explain, explain_utterance
from mmemo.training.experiment_cli import ExperimentCLI, read_runs
from mmemo.training.loading import load_model
from tests.conftest import ROOT


def explain_run(run: Path, ids: list[str] | None = None, num_utterances: int = 8) -> Explanations:
    return explain(read_runs(run)[0], str(run / FOLDER), ids or (), num_utterances, progress=False)


@pytest.fixture
def run(tiny_config: Path) -> Path:
    ExperimentCLI(["fit", "--config", str(tiny_config)])
    return tiny_config.parent / "run"


def test_attributions_sum_to_the_change_in_the_score(run: Path, tiny_corpus: Path) -> None:
    model = load_model(run / "checkpoints" / "last.ckpt").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tiny_corpus.parent / "s4_anger_1.wav"
    explanation = explain_utterance(model, Utterance("x", path, text="go away now"), num_steps=64)
    assert explanation.log_mel is not None
    assert explanation.sound is not None
    assert explanation.words is not None
    assert explanation.sound.shape == explanation.log_mel.shape
    assert len(explanation.tokens) == len(explanation.words) == 5  # with [CLS] and [SEP]
    assert max(explanation.error.values()) < 0.1
    assert set(explanation.deletion) == {"log_mel", "token_embeddings"}
    assert explanation.predicted in model.classes
    assert 0 <= min(explanation.gates.values()) <= max(explanation.gates.values()) <= 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    audio_only = explain_utterance(model, Utterance("x", path), num_steps=4)
    assert audio_only.words is None
    text_only = explain_utterance(model, Utterance("x", text="go away now"), num_steps=4)
    assert text_only.sound is None
    with pytest.raises(ValueError, match="has no input for the model"):
        explain_utterance(model, Utterance("x"))


def test_explain_writes_one_picture_per_utterance(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run), "--number", "3"]) == 0
    assert "Deletion test" in capsys.readouterr().out
    folder = run / "explanations"
    assert len(list(folder.glob("*.png"))) == 3
    content = json.loads((folder / "explanations.json").read_text())
    assert len(content["utterances"]) == 3
    assert "words" not in content["utterances"][0]  # offline mode leaves out words, because they are personal data
    assert len({utterance["id"].split("_")[1] for utterance in content["utterances"]}) == 3  # one of each class
    explanations = explain_run(run, ["s5_anger_0"])
    assert [utterance.id for utterance in explanations.utterances] == ["s5_anger_0"]
    with pytest.raises(ValueError, match="s0_anger_0: not a test utterance"):
        explain_run(run, ["s0_anger_0"])


@pytest.mark.slow
@pytest.mark.weights
def test_removing_the_highest_attributions_lowers_the_probability_most(tmp_path: Path) -> None:
    """Explains a pretrained Whisper with a head trained on the demo clips."""
    manifest = tmp_path / "manifest.csv"
    columns = ["path=file", "emotion=label", "speaker=voice", "gender=sex", "split=set"]
    clips = str(ROOT / "demo" / "clips.csv")
    assert main(["corpus", "table", clips, "--out", str(manifest), "--columns", *columns]) == 0
    overrides = ["--data.manifest", str(manifest), "--trainer.default_root_dir", str(tmp_path / "run")]
    ExperimentCLI(["fit", "--config", str(ROOT / "configs" / "demo.yaml"), *overrides])
    explanations = explain_run(tmp_path / "run", num_utterances=5)
    highest, random = np.array([explanations.deletion["log_mel"][share] for share in (0.05, 0.1, 0.2)]).mean(0)
    assert highest > random + 0.02  # in probability; small, because the text also contributes
