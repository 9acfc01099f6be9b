from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmemo.audio.reader import read_audio
from mmemo.cli.main import main
from mmemo.data import read_manifest
from mmemo.data.cleaning import as_loud_as, denoised
from mmemo.settings import SAMPLE_RATE
from tests.conftest import tone

pytest.importorskip("noisereduce", reason="pip install mmemo[cleaning]")


def test_noise_is_reduced_and_the_voice_stays() -> None:
    voice = np.zeros(3 * SAMPLE_RATE, dtype=np.float32)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    voice[SAMPLE_RATE : 2 * SAMPLE_RATE] = 0.3 * np.sin(
        2 * np.pi * (300 + 1000 * time) * time
    )  # a steady tone is noise
    noise = (0.02 * np.random.default_rng(0).standard_normal(len(voice))).astype(np.float32)
    cleaner = denoised(voice + noise)
    quiet, loud = slice(0, SAMPLE_RATE // 2), slice(SAMPLE_RATE + 4000, 2 * SAMPLE_RATE - 4000)
    noise_left = np.mean(cleaner[quiet] ** 2) / np.mean(noise[quiet] ** 2)
    voice_left = np.mean(cleaner[loud] ** 2) / np.mean(voice[loud] ** 2)
    assert noise_left < 0.1
    assert voice_left > 5 * noise_left


@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_loudness_is_the_one_asked_for(seconds: float) -> None:
    from pyloudnorm import Meter

    changed = as_loud_as(tone(seconds).numpy() * 0.01, -30.0)
    meter = Meter(SAMPLE_RATE, block_size=min(0.4, seconds * 0.999))
    assert meter.integrated_loudness(changed.astype(float)) == pytest.approx(-30, abs=0.3)
    assert np.abs(as_loud_as(tone(seconds).numpy(), -1.0)).max() < 1.0
    silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
    np.testing.assert_array_equal(as_loud_as(silence, -23.0), silence)


def test_the_manifest_points_to_cleaned_files_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, level in (("a", 0.05), ("b", 1.0)):
        soundfile.write(tmp_path / f"{name}.wav", tone(1.0).numpy() * level, SAMPLE_RATE)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    listed = "file,label,who\na.wav,anger,x\nb.wav,sadness,y\nbad.wav,anger,z\n"
    (tmp_path / "mine.csv").write_text(listed)
    out = tmp_path / "m.csv"
    columns = "{path: file, emotion: label, speaker: who}"
    options = ["corpus", "table", str(tmp_path / "mine.csv"), "--columns", columns, "--out", str(out)]
    assert main([*options, "--loudness_lufs", "-23", "--denoise", "true", "--trim_db", "40"]) == 0
    utterances = list(read_manifest(out))
    files = [Path(str(utterance.path)) for utterance in utterances]
    assert [file.parent.name for file in files] == ["m_audio", "m_audio", tmp_path.name]
    assert [utterance.emotion for utterance in utterances] == ["anger", "sadness", "anger"]
    powers = [np.mean(read_audio(file) ** 2) for file in files[:2]]
    assert powers[0] == pytest.approx(powers[1], rel=0.2)
    for folder in ("new", "there"):  # beside the manifest, wherever that is and whatever the working directory
        (tmp_path / "there").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path)
        other = Path(folder) / "m.csv"
        assert main([*options[:-1], str(other), "--loudness_lufs", "-23", "--trim_db", "40"]) == 0
        moved = [Path(str(utterance.path)) for utterance in read_manifest(tmp_path / other)][:2]
        assert all(file.exists() and file.parent.name == "m_audio" for file in moved)
    stamps = [file.stat().st_mtime_ns for file in files[:2]]
    assert main([*options, "--loudness_lufs", "-23", "--denoise", "true", "--trim_db", "40"]) == 0
    assert [file.stat().st_mtime_ns for file in files[:2]] == stamps, "what is there already is kept"


@pytest.mark.parametrize("samples", [1, 10, 200, 1100])
def test_the_shortest_utterance_keeps_its_length(samples: int) -> None:
    assert denoised(tone(1.0).numpy()[:samples]).shape == (samples,)


def test_the_recordings_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0).numpy(), SAMPLE_RATE)
    (tmp_path / "mine.csv").write_text("file\na.wav\n")
    options = ["corpus", "table", str(tmp_path / "mine.csv"), "--columns", "{path: file}", "--denoise", "true"]
    assert main([*options, "--out", str(tmp_path / "m.csv"), "--cleaned", str(tmp_path)]) == 1
    assert "the recordings themselves are there" in capsys.readouterr().err


def test_bad_settings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0).numpy(), SAMPLE_RATE)
    (tmp_path / "mine.csv").write_text("file\na.wav\n")
    options = [
        "corpus",
        "table",
        str(tmp_path / "mine.csv"),
        "--columns",
        "{path: file}",
        "--out",
        str(tmp_path / "m.csv"),
    ]
    assert main([*options, "--loudness_lufs", "23"]) == 1
    assert "between -70 and 0" in capsys.readouterr().err
    assert main([*options, "--cleaned", str(tmp_path / "x")]) == 1
    assert "--denoise or --loudness_lufs" in capsys.readouterr().err
