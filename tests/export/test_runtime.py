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
    found = tmp_path_factory.mktemp("exported") / "student"
    export_onnx(student(), found, clips(*SECONDS))
    return found


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_a_fresh_process_answers_soon_and_without_pytorch(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", clips(3.0)[0], 16_000)
    code = (
        "import sys; from mmemo.export.runtime import Recognizer; "
        f"print(Recognizer({str(folder)!r}).predict({str(tmp_path / 'clip.wav')!r}).label); "
        "print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        seconds.append(time.perf_counter() - started)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[1] == "[]"
    assert min(seconds) < 2.0  # 1 s on an idle machine, which a test run is not


def test_files_of_any_rate_and_number_of_channels_sound_the_same(folder: Path, tmp_path: Path) -> None:
    import soxr

    waveform = clips(1.5)[0]
    recognizer = Recognizer(folder, threads=1)
    wanted = recognizer.predict(waveform)
    for rate in (16_000, 48_000):
        samples = waveform if rate == 16_000 else soxr.resample(waveform, 16_000, rate)
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, np.stack([samples, samples], axis=1), rate)
        found = recognizer.predict(path)
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=0.02)
    paths = [tmp_path / "16000.wav", tmp_path / "48000.wav", tmp_path / "16000.wav"]
    assert [path for path, _ in recognizer.predict_files(paths, batch_size=2)] == paths
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    told: list[AudioError] = []
    found = recognizer.predict_files([paths[0], bad, paths[1]], on_error=told.append)
    assert [path for path, _ in found] == paths[:2]
    assert "bad.wav: not readable audio" in str(told[0])
    found = recognizer.predict_files([paths[0], bad, paths[1]])
    assert next(found)[0] == paths[0], "what was said before is not lost"
    with pytest.raises(AudioError, match=r"bad\.wav: not readable audio"):
        next(found)


def test_in_int8_too_neighbours_change_nothing(folder: Path) -> None:
    recognizer = Recognizer(folder)
    waveforms = clips(0.4, 3.0, 1.1)
    for waveform, emotion in zip(waveforms, recognizer.predict_batch(waveforms), strict=True):
        assert emotion.probabilities == recognizer.predict(waveform).probabilities


def test_a_stream_says_the_same_in_pieces_of_any_size_and_forgets(folder: Path) -> None:
    recognizer = Recognizer(folder, threads=1)
    waveform = clips(4.3)[0]
    whole = recognizer.stream(1.0, 0.5)
    moments = whole.push(waveform)
    assert [moment.seconds for moment in moments] == [0.5 * number for number in range(1, 9)]
    assert moments[5].emotion.probabilities == recognizer.predict(waveform[32_000:48_000]).probabilities
    pieces = recognizer.stream(1.0, 0.5)
    again = []
    for first in range(0, len(waveform), 777):
        again += pieces.push(waveform[first : first + 777])
    assert [one.emotion.probabilities for one in again] == [one.emotion.probabilities for one in moments]
    assert len(pieces._latest) <= 16_000
    assert pieces.push(np.zeros(0, dtype=np.float32)) == []


def test_a_folder_that_cannot_be_trusted_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no such folder"):
        Recognizer(tmp_path / "none")
    content = (copied / "model.int8.onnx").read_bytes()
    (copied / "model.int8.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFolderError, match="was changed since it was exported"):
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
        ({"classes": ["anger", "joy"]}, "classes or dimensions were changed since it was exported"),
        ({"sample_rate": 8000}, "says 8000 Hz, expected 16000 Hz"),
        ({"inputs": 5}, r"not the config\.json"),
        ({"outputs": ["logits"]}, "the model beside it has"),
    ):
        (copied / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ModelFolderError, match=message):
            Recognizer(copied)
    (copied / "config.json").write_text(json.dumps({**config, "classes": config["classes"][::-1]}))
    with pytest.raises(ModelFolderError, match="classes or dimensions were changed since it was exported"):
        Recognizer(copied)
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "model.onnx").unlink()
    Recognizer(copied)  # the small file is enough to run
    with pytest.raises(ModelFolderError, match=r"lacks model\.onnx"):
        Recognizer(copied, int8=False)
    (copied / "config.json").write_text('{"format_version": 1}')
    with pytest.raises(ModelFolderError, match=r"not the config\.json"):
        Recognizer(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"not the config\.json"):
        Recognizer(copied)


def test_what_is_no_waveform_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Recognizer(folder)
    for bad in (np.zeros((2, 100), dtype=np.float32), np.zeros(100, dtype=np.int16), [0.0, 1.0]):
        with pytest.raises(ValueError, match="expected a waveform: a float array"):
            recognizer.predict(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty or holds NaN"):
        recognizer.predict(np.zeros(0, dtype=np.float32))
    with pytest.raises(ValueError, match="too long to be heard at once"):
        recognizer.predict(np.zeros(301 * 16_000, dtype=np.float32))
    soundfile.write(tmp_path / "long.wav", np.zeros(301 * 16_000), 16_000)
    told: list[AudioError] = []
    assert list(recognizer.predict_files([tmp_path / "long.wav"], on_error=told.append)) == []
    assert "long.wav: a recording of 301 s is too long" in str(told[0])
    with pytest.raises(AudioError, match=r"long\.wav: a recording of 301 s is too long"):
        recognizer.predict_batch([tmp_path / "long.wav"])
    with monkeypatch.context() as patch:  # nor is it read before
        patch.setattr("mmemo.export.runtime.read_audio", lambda path: pytest.fail(f"{path} was read"))
        with pytest.raises(AudioError, match="is too long"):
            recognizer.predict(tmp_path / "long.wav")
    assert recognizer.predict_batch([]) == []
    with pytest.raises(AudioError, match="no such file"):
        recognizer.predict(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="expected seconds above 0"):
        recognizer.stream(0)
