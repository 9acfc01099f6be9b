from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmemo.audio.reader import read_audio
from mmemo.cli.app import main
from mmemo.data import read_manifest
from mmemo.settings import SAMPLE_RATE
from tests.conftest import tone

pytest.importorskip("noisereduce", reason="pip install mmemo[cleaning]")


def test_the_manifest_points_to_cleaned_files_and_is_otherwise_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, level in (("a", 0.05), ("b", 1.0)):
        soundfile.write(tmp_path / f"{name}.wav", tone(1.0).numpy() * level, SAMPLE_RATE)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    rows = "file,label,who\na.wav,anger,x\nb.wav,sadness,y\nbad.wav,anger,z\n"
    (tmp_path / "mine.csv").write_text(rows)
    out = tmp_path / "m.csv"
    columns = ("path=file", "emotion=label", "speaker=who")
    options = ["corpus", "table", str(tmp_path / "mine.csv"), "--columns", *columns, "--out", str(out)]
    assert main([*options, "--loudness-lufs=-23", "--denoise", "--trim-db", "40"]) == 0
    utterances = list(read_manifest(out))
    files = [Path(str(utterance.path)) for utterance in utterances]
    assert [file.parent.name for file in files] == ["m_audio", "m_audio", tmp_path.name]
    assert [utterance.emotion for utterance in utterances] == ["anger", "sadness", "anger"]
    powers = [np.mean(read_audio(file) ** 2) for file in files[:2]]
    assert powers[0] == pytest.approx(powers[1], rel=0.2)
    for folder in ("new", "there"):  # beside the manifest, independent of the working directory
        (tmp_path / "there").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path)
        other = Path(folder) / "m.csv"
        assert main([*options[:-1], str(other), "--loudness-lufs=-23", "--trim-db", "40"]) == 0
        moved = [Path(str(utterance.path)) for utterance in read_manifest(tmp_path / other)][:2]
        assert all(file.exists() and file.parent.name == "m_audio" for file in moved)
    stamps = [file.stat().st_mtime_ns for file in files[:2]]
    assert main([*options, "--loudness-lufs=-23", "--denoise", "--trim-db", "40"]) == 0
    assert [file.stat().st_mtime_ns for file in files[:2]] == stamps, "existing files are reused"


def test_the_original_recordings_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0).numpy(), SAMPLE_RATE)
    (tmp_path / "mine.csv").write_text("file\na.wav\n")
    options = ["corpus", "table", str(tmp_path / "mine.csv"), "--columns", "path=file", "--denoise"]
    assert main([*options, "--out", str(tmp_path / "m.csv"), "--cleaned", str(tmp_path)]) == 1
    assert "contains the original recordings" in capsys.readouterr().err


def test_invalid_settings_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0).numpy(), SAMPLE_RATE)
    (tmp_path / "mine.csv").write_text("file\na.wav\n")
    options = [
        "corpus",
        "table",
        str(tmp_path / "mine.csv"),
        "--columns",
        "path=file",
        "--out",
        str(tmp_path / "m.csv"),
    ]
    assert main([*options, "--loudness-lufs", "23"]) == 1
    assert "between -70 and 0" in capsys.readouterr().err
    assert main([*options, "--cleaned", str(tmp_path / "x")]) == 1
    assert "--denoise or --loudness-lufs" in capsys.readouterr().err
