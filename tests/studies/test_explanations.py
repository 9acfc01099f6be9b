from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmemo.cli.main import main
from mmemo.data.manifest import Utterance
from mmemo.studies.explanations import explain, explain_run
from mmemo.training.experiment import Experiment
from mmemo.training.system import load_model
from tests.conftest import ROOT


@pytest.fixture
def run(tiny_config: Path) -> Path:
    Experiment(["fit", "--config", str(tiny_config)])
    return tiny_config.parent / "run"


def test_attributions_add_up_to_the_change_of_the_score(run: Path, tiny_corpus: Path) -> None:
    model = load_model(run / "checkpoints" / "last.ckpt").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tiny_corpus.parent / "s4_anger_1.wav"
    found = explain(model, Utterance("x", path, text="go away now"), num_steps=64)
    assert found.log_mel is not None
    assert found.heard is not None
    assert found.read is not None
    assert found.heard.shape == found.log_mel.shape
    assert len(found.words) == len(found.read) == 5  # with [CLS] and [SEP]
    assert max(found.error.values()) < 0.1
    assert set(found.deletion) == {"log_mel", "token_embeddings"}
    assert found.predicted in model.classes
    assert 0 <= min(found.gates.values()) <= max(found.gates.values()) <= 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    silent = explain(model, Utterance("x", path), num_steps=4)
    assert silent.read is None
    mute = explain(model, Utterance("x", text="go away now"), num_steps=4)
    assert mute.heard is None
    with pytest.raises(ValueError, match="has nothing of what the model takes"):
        explain(model, Utterance("x"))


def test_a_run_is_explained_in_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run), "--number", "3"]) == 0
    assert "Deletion test" in capsys.readouterr().out
    folder = run / "explanations"
    assert len(list(folder.glob("*.png"))) == 3
    content = json.loads((folder / "explanations.json").read_text())
    assert len(content["utterances"]) == 3
    assert "words" not in content["utterances"][0]  # the tests are offline: words are personal
    assert len({one["id"].split("_")[1] for one in content["utterances"]}) == 3  # one of each class
    chosen = explain_run(run, ["s5_anger_0"], progress=False)
    assert [one.id for one in chosen.found] == ["s5_anger_0"]
    with pytest.raises(ValueError, match="s0_anger_0: no test utterance"):
        explain_run(run, ["s0_anger_0"], progress=False)


@pytest.mark.slow
@pytest.mark.weights
def test_what_is_marked_matters_more_than_what_is_not(tmp_path: Path) -> None:
    """A real Whisper with a head trained on the demo's clips."""
    manifest = tmp_path / "manifest.csv"
    columns = "{path: file, emotion: label, speaker: voice, gender: sex, split: set}"
    clips = str(ROOT / "demo" / "clips.csv")
    assert main(["corpus", "table", clips, "--out", str(manifest), "--columns", columns]) == 0
    overrides = ["--data.manifest", str(manifest), "--trainer.default_root_dir", str(tmp_path / "run")]
    Experiment(["fit", "--config", str(ROOT / "configs" / "demo.yaml"), *overrides])
    found = explain_run(tmp_path / "run", num_utterances=8, progress=False)
    marked, others = np.array([found.deletion["log_mel"][share] for share in (0.05, 0.1, 0.2)]).mean(0)
    assert marked > others + 0.02  # of a probability; the words speak too
