from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmemo.audio.reader import AudioError
from mmemo.export.onnx import export_onnx
from mmemo.export.runtime import ModelFolderError, Recognizer
from tests.conftest import ROOT
from tests.export.test_onnx import SECONDS, clips, student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "student"
    export_onnx(student(), path, clips(*SECONDS))
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def run_in_new_process(code: str) -> tuple[str, float]:
    """Runs Python code in a new process and returns its output and the seconds it took."""
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    seconds = time.perf_counter() - started
    assert result.returncode == 0, result.stderr
    return result.stdout, seconds


def test_a_new_process_predicts_in_less_time_than_pytorch_takes_to_import(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", clips(3.0)[0], 16_000)
    code = (
        "import sys; from mmemo.export.runtime import Recognizer; "
        f"print(Recognizer({str(folder)!r}).predict({str(tmp_path / 'clip.wav')!r}).label); "
        "print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    predict_seconds, import_seconds = [], []
    for _ in range(3):  # in turn, so that other work on the machine slows both alike
        output, seconds = run_in_new_process(code)
        assert output.splitlines()[1] == "[]"
        predict_seconds.append(seconds)
        import_seconds.append(run_in_new_process("import torch")[1])
    assert min(predict_seconds) < min(import_seconds)  # a fifth of it on an idle machine


def test_files_of_any_sampling_rate_and_number_of_channels_give_the_same_prediction(
    folder: Path, tmp_path: Path
) -> None:
    import soxr

    waveform = clips(1.5)[0]
    recognizer = Recognizer(folder, threads=1)
    expected = recognizer.predict(waveform)
    for rate in (16_000, 48_000):
        samples = waveform if rate == 16_000 else soxr.resample(waveform, 16_000, rate)
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, np.stack([samples, samples], axis=1), rate)
        assert recognizer.predict(path).probabilities == pytest.approx(expected.probabilities, abs=0.02)
    paths = [tmp_path / "16000.wav", tmp_path / "48000.wav", tmp_path / "16000.wav"]
    assert [path for path, _ in recognizer.predict_files(paths, batch_size=2)] == paths
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    errors: list[AudioError] = []
    predictions = recognizer.predict_files([paths[0], bad, paths[1]], on_error=errors.append)
    assert [path for path, _ in predictions] == paths[:2]
    assert "bad.wav: not readable audio" in str(errors[0])
    predictions = recognizer.predict_files([paths[0], bad, paths[1]])
    assert next(predictions)[0] == paths[0], "files before the bad one are yielded"
    with pytest.raises(AudioError, match=r"bad\.wav: not readable audio"):
        next(predictions)


def test_batch_mates_change_no_int8_prediction(folder: Path) -> None:
    recognizer = Recognizer(folder)
    waveforms = clips(0.4, 3.0, 1.1)
    for waveform, emotion in zip(waveforms, recognizer.predict_batch(waveforms), strict=True):
        assert emotion.probabilities == recognizer.predict(waveform).probabilities


def test_a_stream_predicts_the_same_for_pieces_of_any_size_in_bounded_memory(folder: Path) -> None:
    recognizer = Recognizer(folder, threads=1)
    waveform = clips(4.3)[0]
    expected = recognizer.stream(1.0, 0.5).push(waveform)
    assert [prediction.seconds for prediction in expected] == [0.5 * number for number in range(1, 9)]
    assert expected[5].emotion.probabilities == recognizer.predict(waveform[32_000:48_000]).probabilities
    stream = recognizer.stream(1.0, 0.5)
    actual = []
    for first in range(0, len(waveform), 777):
        actual += stream.push(waveform[first : first + 777])
    assert [prediction.emotion.probabilities for prediction in actual] == [
        prediction.emotion.probabilities for prediction in expected
    ]
    assert len(stream._window) <= 16_000
    assert stream.push(np.zeros(0, dtype=np.float32)) == []


def test_an_incomplete_or_changed_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no such folder"):
        Recognizer(tmp_path / "none")
    content = (copied / "model.int8.onnx").read_bytes()
    (copied / "model.int8.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFolderError, match="changed after the export"):
        Recognizer(copied)
    Recognizer(copied, int8=False)
    (copied / "model.int8.onnx").unlink()
    with pytest.raises(ModelFolderError, match=r"lacks model\.int8\.onnx"):
        Recognizer(copied)
    (copied / "model.int8.onnx").write_bytes(content)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(ModelFolderError, match="format version 99, this mmemo reads 1"):
        Recognizer(copied)
    for changes, message in (
        ({"classes": ["anger", "joy"]}, "classes or dimensions changed after the export"),
        ({"sample_rate": 8000}, "sample_rate is 8000 Hz, expected 16000 Hz"),
        ({"inputs": 5}, r"not a config\.json"),
        ({"outputs": ["logits"]}, "but the model has"),
    ):
        (copied / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ModelFolderError, match=message):
            Recognizer(copied)
    (copied / "config.json").write_text(json.dumps({**config, "classes": config["classes"][::-1]}))
    with pytest.raises(ModelFolderError, match="classes or dimensions changed after the export"):
        Recognizer(copied)
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "model.onnx").unlink()
    Recognizer(copied)  # the int8 file is enough
    with pytest.raises(ModelFolderError, match=r"lacks model\.onnx"):
        Recognizer(copied, int8=False)
    (copied / "config.json").write_text('{"format_version": 1}')
    with pytest.raises(ModelFolderError, match=r"not a config\.json"):
        Recognizer(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"not a config\.json"):
        Recognizer(copied)


def test_an_array_that_is_no_waveform_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Recognizer(folder)
    for bad in (np.zeros((2, 100), dtype=np.float32), np.zeros(100, dtype=np.int16), [0.0, 1.0]):
        with pytest.raises(ValueError, match="expected a waveform: a float array"):
            recognizer.predict(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty or holds NaN"):
        recognizer.predict(np.zeros(0, dtype=np.float32))
    with pytest.raises(ValueError, match="too long for one call"):
        recognizer.predict(np.zeros(301 * 16_000, dtype=np.float32))
    soundfile.write(tmp_path / "long.wav", np.zeros(301 * 16_000), 16_000)
    errors: list[AudioError] = []
    assert list(recognizer.predict_files([tmp_path / "long.wav"], on_error=errors.append)) == []
    assert "long.wav: a recording of 301 s is too long" in str(errors[0])
    with pytest.raises(AudioError, match=r"long\.wav: a recording of 301 s is too long"):
        recognizer.predict_batch([tmp_path / "long.wav"])
    with monkeypatch.context() as patch:  # refused by its header, before it is decoded
        patch.setattr("mmemo.export.runtime.read_audio", lambda path: pytest.fail(f"{path} was read"))
        with pytest.raises(AudioError, match="is too long"):
            recognizer.predict(tmp_path / "long.wav")
    assert recognizer.predict_batch([]) == []
    with pytest.raises(AudioError, match="no such file"):
        recognizer.predict(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="expected seconds above 0"):
        recognizer.stream(0)
