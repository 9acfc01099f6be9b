from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from onnx import load as load_graph

from mmemo import EmotionModel, export_onnx
from mmemo.cli.app import main
from mmemo.export import onnx as exporter
from mmemo.export.graph import WaveformModel
from mmemo.export.runtime import ModelFolderError, Recognizer
from mmemo.models import (
    AttentionBottleneck,
    AttentiveStatisticsPooling,
    Concatenation,
    ConvNeXtEncoder,
    ConvRecurrentEncoder,
    DimensionHead,
    HardConcreteGate,
    HuggingFaceTextEncoder,
    InceptionEncoder,
    NoGate,
    ResNetEncoder,
    VGGEncoder,
    WhisperAudioEncoder,
)
from mmemo.training.experiment_cli import ExperimentCLI
from tests.conftest import CLASSES, CORPORA, ROOT

SECONDS = (0.31, 0.77, 1.234, 0.5001)


def clips(*seconds: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    waveforms = []
    for number, length in enumerate(seconds):
        time = np.arange(round(16_000 * length)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * number) * time) * (1 + np.sin(9 * time)) / 2
        waveforms.append((tone + 0.02 * random.standard_normal(len(time))).astype(np.float32))
    return waveforms


def student(dimensions: bool = False) -> EmotionModel:
    torch.manual_seed(0)
    return EmotionModel(
        CLASSES,
        audio_encoder=ConvNeXtEncoder((4, 8), 16, 2, num_mels=32),
        gate=NoGate,
        fusion=partial(Concatenation, pooling=partial(AttentiveStatisticsPooling, hidden_dim=8)),
        dimension_head=DimensionHead if dimensions else None,
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "student"
    export_onnx(student(), path, clips(*SECONDS), card={"license": "CC0", "metrics": {"test/uar": "0.7000"}})
    return path


def test_onnx_equals_pytorch_at_a_batch_size_and_lengths_not_exported(folder: Path) -> None:
    model = WaveformModel(student())
    recognizer = Recognizer(folder, int8=False)
    waveforms = clips(2.0371, 0.1009, 0.66)
    together = recognizer.predict_batch(waveforms)
    for waveform, emotion in zip(waveforms, together, strict=True):
        with torch.no_grad():
            probabilities, _, embedding = model(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
        actual = np.array(list(emotion.probabilities.values()))
        np.testing.assert_allclose(actual, probabilities[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(emotion.embedding, embedding[0].numpy(), atol=1e-3)
        alone = recognizer.predict(waveform)
        np.testing.assert_allclose(actual, list(alone.probabilities.values()), atol=1e-5, err_msg="padding leaks")
    assert list(together[0].probabilities) == CLASSES


def test_the_folder_describes_its_model(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "config.json", "example.py", "model.int8.onnx", "model.onnx", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["classes"] == CLASSES
    assert config["sample_rate"] == 16_000
    assert config["parity"]["largest_difference"] <= 1e-4
    card = (folder / "README.md").read_text()
    assert "CC0" in card
    assert "| test/uar | 0.7000 |" in card
    assert str(ROOT).encode() not in (folder / "model.onnx").read_bytes(), "no path of this machine"
    from safetensors.torch import load_file

    torch.testing.assert_close(load_file(folder / "model.safetensors"), dict(student().state_dict()))


def test_the_example_needs_three_packages(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", clips(0.8)[0], 16_000)
    code = (folder / "example.py").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    ran = subprocess.run(
        [sys.executable, str(folder / "example.py"), str(tmp_path / "clip.wav")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    printed = {line.split()[0]: float(line.split()[1]) for line in ran.stdout.splitlines()}
    expected = Recognizer(folder).predict(tmp_path / "clip.wav").probabilities
    assert printed == pytest.approx(expected, abs=6e-4)


def test_a_model_with_dimensions_predicts_them(tmp_path: Path) -> None:
    export_onnx(student(dimensions=True), tmp_path / "both", clips(*SECONDS))
    emotion = Recognizer(tmp_path / "both").predict(clips(0.6)[0])
    assert list(emotion.dimensions) == ["valence", "arousal", "dominance"]
    assert all(-1 < value < 1 for value in emotion.dimensions.values())


def test_activations_stay_in_fp32_if_quantising_them_changes_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A huge activation leaves the others no bits; then only the weights are quantised."""
    model = student()
    result = export_onnx(model, tmp_path / "plain", clips(*SECONDS))
    assert json.loads((result.folder / "config.json").read_text())["int8"] == "weights and activations"
    emotions = Recognizer(result.folder, int8=False).predict_batch(clips(*SECONDS))
    norm, linear = model.fusion.pooled.norms[0], model.head.layers[1]
    with torch.no_grad():
        # Centre the embeddings, so that clips get different classes.
        norm.running_mean += torch.from_numpy(np.mean([emotion.embedding for emotion in emotions], axis=0))
        linear.bias.zero_()
        linear.weight[:, 0] = 0  # the huge input of the head has no influence
        norm.running_mean[0] = -1e5
    handlers = list(logging.root.handlers)
    result = export_onnx(model, tmp_path / "huge", clips(*SECONDS))
    assert logging.root.handlers == handlers, "the quantiser's handlers are removed"
    assert json.loads((result.folder / "config.json").read_text())["int8"] == "weights"
    assert result.parity.int8_agreement == 1.0
    assert "MatMulNBits" in {node.op_type for node in load_graph(result.folder / "model.int8.onnx").graph.node}
    assert "weights of matrix products in 8 bits" in (result.folder / "README.md").read_text()


def test_one_disagreement_among_few_clips_passes_only_as_a_near_tie() -> None:
    expected = [np.array([[0.9, 0.1]])] * 9
    other, near_tie = np.array([[0.1, 0.9]]), np.array([[0.52, 0.48]])
    assert exporter.class_agreement(expected, expected) == (1.0, True)
    assert exporter.class_agreement([*expected, other], [*expected, near_tie]) == (0.9, True)
    assert exporter.class_agreement([*expected, other], [*expected, np.array([[0.8, 0.2]])]) == (0.9, False)
    assert exporter.class_agreement([*expected, other, other], [*expected, near_tie, near_tie])[1] is False


def test_a_failed_parity_check_leaves_the_earlier_export(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "good")
    before = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    monkeypatch.setattr(exporter, "TOLERANCE", 1e-12)
    for name in ("bad", "good"):
        with pytest.raises(ValueError, match="probabilities differ from PyTorch by"):
            export_onnx(student(), tmp_path / name, clips(*SECONDS))
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ValueError, match=r"is a file, expected a folder|cannot write there"):
            export_onnx(student(), folder, clips(*SECONDS))


def test_the_folder_may_be_a_link_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "link")
    export_onnx(student(), Path("."), clips(*SECONDS))
    assert "\n# real\n" in Path("README.md").read_text()
    assert Recognizer(tmp_path / "real").predict(clips(0.5)[0]).label
    assert not [path for path in Path(".").iterdir() if path.name.startswith(".")]


def test_an_export_whose_batch_changes_predictions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph ignores the lengths, so padding leaks."""
    original = WaveformModel.forward

    def leaking(self: WaveformModel, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        waveform, lengths = inputs
        return original(self, waveform, lengths * 0 + waveform.shape[1])

    monkeypatch.setattr(WaveformModel, "forward", leaking)
    with pytest.raises(ValueError, match="of 3 clips in a batch differ from those of each clip alone by"):
        export_onnx(student(), tmp_path / "out", clips(0.7, 1.3, 0.9))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: VGGEncoder([4, 8]),
        lambda: ResNetEncoder([4, 8]),
        lambda: InceptionEncoder([4, 8]),
        lambda: ConvRecurrentEncoder([4, 4], hidden_dim=4, num_recurrent=2, cell="lstm"),
    ],
    ids=["vgg", "resnet", "inception", "lstm"],
)
def test_spectrogram_encoders_can_be_exported(encoder: Any, tmp_path: Path) -> None:
    model = EmotionModel(["a", "b"], audio_encoder=encoder(), gate=NoGate, fusion=Concatenation)
    export_onnx(model.eval(), tmp_path / "out", clips(0.7, 1.3, 0.9))  # 1.3 s is a whole number of frames
    recognizer = Recognizer(tmp_path / "out", int8=False)
    alone = [recognizer.predict(clip).probabilities["a"] for clip in clips(0.4, 2.1)]
    together = [emotion.probabilities["a"] for emotion in recognizer.predict_batch(clips(0.4, 2.1))]
    assert together == pytest.approx(alone, abs=1e-5)


def test_an_encoder_that_onnx_lacks_leaves_the_earlier_export(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    before = Recognizer(out).predict(clips(0.5)[0]).probabilities
    encoder = ConvRecurrentEncoder([4, 4], hidden_dim=4, cell="gru")
    recurrent = EmotionModel(["a", "b"], audio_encoder=encoder, gate=NoGate, fusion=Concatenation)
    with pytest.raises(ValueError, match="cannot export ConvRecurrentEncoder to ONNX"):
        export_onnx(recurrent.eval(), out, clips(0.7, 1.3))
    assert Recognizer(out).predict(clips(0.5)[0]).probabilities == before


@pytest.mark.parametrize(("gate", "fusion"), [(NoGate, Concatenation), (HardConcreteGate, AttentionBottleneck)])
def test_any_gate_and_fusion_can_be_exported(gate: Any, fusion: Any, tiny_bert: Path, tmp_path: Path) -> None:
    text_encoder = HuggingFaceTextEncoder(str(tiny_bert))
    model = EmotionModel(
        CLASSES, ConvNeXtEncoder((4, 8), 16, 2, num_mels=32), text_encoder=text_encoder, gate=gate, fusion=fusion
    ).eval()
    export_onnx(model, tmp_path / "model", clips(*SECONDS), ["go away now", "the shop is open", "", "i miss you so"])
    recognizer = Recognizer(tmp_path / "model", int8=False)
    waveform = clips(0.9137)[0]
    alone = recognizer.predict(waveform, "go away").probabilities
    both = recognizer.predict_batch([clips(1.5)[0], waveform], ["the shop is open", "go away"])[1].probabilities
    assert both == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_a_teacher_of_audio_and_text_can_be_exported(tiny_whisper: Path, tiny_bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EmotionModel(
        CLASSES, WhisperAudioEncoder(str(tiny_whisper)), text_encoder=HuggingFaceTextEncoder(str(tiny_bert))
    ).eval()  # fmt: skip
    texts = ["go away now", "the shop is open", "", "i miss you so"]
    export_onnx(model, tmp_path / "teacher", clips(*SECONDS), texts)
    recognizer = Recognizer(tmp_path / "teacher", int8=False)
    assert recognizer.inputs == ["waveform", "lengths", "token_ids", "token_lengths"]
    token_ids = model.encoder("text").tokenize("go away so")
    waveform = clips(0.9137)[0]
    inputs = (
        torch.from_numpy(waveform)[None],
        torch.tensor([len(waveform)]),
        token_ids[None],
        torch.tensor([len(token_ids)]),
    )
    with torch.no_grad():
        expected = WaveformModel(model)(*inputs)[0].numpy()
    actual = recognizer.run(*(array.numpy() for array in inputs))["probabilities"]
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    text = "Go away, so!"
    token_ids, token_lengths = recognizer.tokenize(text)
    assert token_ids[0].tolist() == model.encoder("text").tokenize(text).tolist()
    assert token_lengths.tolist() == [token_ids.shape[1]]
    assert len(recognizer.tokenize("go " * 1000)[0][0]) == len(model.encoder("text").tokenize("go " * 1000))
    emotion = recognizer.predict(waveform, "go away so")
    np.testing.assert_allclose(list(emotion.probabilities.values()), expected[0], atol=1e-4)
    longest = model.encoder("audio").max_seconds
    assert f"up to {longest:g} s" in (tmp_path / "teacher" / "README.md").read_text()
    with pytest.raises(ValueError, match=f"too long for one call \\(at most {longest:.0f} s"):
        recognizer.predict(np.zeros(round((longest + 1) * 16000), dtype=np.float32), "go away")
    without_text = recognizer.predict_batch([waveform], [""])[0]
    assert list(without_text.probabilities.values()) != pytest.approx(list(emotion.probabilities.values()), abs=1e-4)
    with pytest.raises(ValueError, match="also takes text"):
        recognizer.predict(waveform)
    soundfile.write(tmp_path / "clip.wav", waveform, 16_000, subtype="FLOAT")
    example = [sys.executable, str(tmp_path / "teacher" / "example.py")]
    printed = subprocess.run([*example, str(tmp_path / "clip.wav"), "go", "away"], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    expected = Recognizer(tmp_path / "teacher").predict(waveform, "go away").probabilities
    shown = dict(line.split() for line in printed.stdout.splitlines())
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(expected, abs=6e-4)
    soundfile.write(tmp_path / "clip.wav", waveform, 8_000)
    clip, usage = str(tmp_path / "clip.wav"), "Predict the emotion of a clip"
    for arguments, message in (([], usage), ([clip], usage), ([clip, "go"], "resample it to 16000 Hz")):
        printed = subprocess.run([*example, *arguments], capture_output=True, text=True)
        assert printed.returncode == 1
        assert message in printed.stderr
        assert "Traceback" not in printed.stderr
    (tmp_path / "teacher" / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"lacks tokenizer\.json"):
        Recognizer(tmp_path / "teacher")


def test_the_command_exports_a_run(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = yaml.safe_load(tiny_config.read_text())
    both = tmp_path / "both.yaml"
    both.write_text(yaml.safe_dump(written))
    ExperimentCLI(["fit", "--config", str(both)])
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--audio-only"]) == 1
    assert "this model also takes text, but audio_only was requested" in capsys.readouterr().err
    model = written["model"]["init_args"]["model"]["init_args"]
    del model["text_encoder"], model["fusion"]
    model["audio_encoder"] = {
        "class_path": "mmemo.models.ConvNeXtEncoder",
        "init_args": {"hidden_dim": 16, "num_mels": 32},
    }
    written["model"]["init_args"]["by_modality"] = False
    tiny_config.write_text(yaml.safe_dump(written))
    ExperimentCLI(["fit", "--config", str(tiny_config), "--overwrite", "true", "--trainer.max_epochs", "40"])
    ExperimentCLI(["test", "--config", str(tiny_config)])
    capsys.readouterr()
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--license", "CC0"]) == 0
    assert "same class on 100.0 %" in capsys.readouterr().out
    assert "test/uar" in (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"\| test/recall of anger \(\d+ clips\) \|", (tmp_path / "out" / "README.md").read_text())
    metrics = checkpoint.parents[1] / "test_metrics.json"
    results = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**results, "checkpoint_sha256": "of another checkpoint"}))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--license", "CC0"]) == 0
    assert "The model card has no test metrics" in " ".join(capsys.readouterr().out.split())
    assert "test/uar" not in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", str(tmp_path / "none.ckpt"), "--out", str(tmp_path / "out")]) == 1
    assert "no such checkpoint" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.corpora
def test_whisper_and_minilm_export_on_real_speech(tmp_path: Path) -> None:
    """A complete teacher in one file: blocks of Whisper base, MiniLM and the fusion."""
    torch.manual_seed(0)
    model = EmotionModel(
        CLASSES, WhisperAudioEncoder(layers=[2, 3, 4]), text_encoder=HuggingFaceTextEncoder(layers=[6])
    ).eval()  # fmt: skip
    paths = sorted((CORPORA / "ravdess" / "Actor_05").glob("*.flac"))[::20]
    waveforms = [soundfile.read(path, dtype="float32")[0][: -37 * (number + 1)] for number, path in enumerate(paths)]
    result = export_onnx(model, tmp_path / "teacher", waveforms, ["kids are talking by the door"] * len(waveforms))
    assert result.parity.largest_difference <= 1e-4
