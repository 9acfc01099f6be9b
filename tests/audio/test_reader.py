from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmemo.audio.reader import AudioError, _mp3_frame, inspect_audio, read_audio
from mmemo.audio.speech import read_blocks
from mmemo.data.audio_facts import audio_facts
from mmemo.data.manifest import Utterance
from mmemo.settings import SAMPLE_RATE


def sine(seconds: float, sample_rate: int = SAMPLE_RATE, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sample_rate)) / sample_rate)


def peak_frequency(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * SAMPLE_RATE / len(waveform))


@pytest.mark.parametrize(
    ("name", "sample_rate", "channels", "subtype"),
    [
        ("telephone.wav", 8_000, 1, "PCM_16"),
        ("studio.flac", 96_000, 2, "PCM_24"),
        ("surround.wav", 48_000, 6, "FLOAT"),
        ("old.wav", 11_025, 1, "PCM_U8"),
        ("double.wav", 44_100, 1, "DOUBLE"),
        ("lossy.ogg", 44_100, 2, "VORBIS"),
        ("lossy.mp3", 44_100, 1, "MPEG_LAYER_III"),
    ],
)
def test_unusual_valid_formats_are_read_correctly(
    tmp_path: Path, name: str, sample_rate: int, channels: int, subtype: str
) -> None:
    samples = np.repeat(sine(1.0, sample_rate)[:, None], channels, axis=1)
    soundfile.write(tmp_path / name, samples, sample_rate, subtype=subtype)
    waveform = read_audio(tmp_path / name)
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(SAMPLE_RATE, rel=0.06)  # lossy codecs pad a little
    assert peak_frequency(waveform) == pytest.approx(440, abs=2)
    assert np.abs(waveform[2000:-2000]).max() == pytest.approx(0.5, abs=0.05)
    facts = inspect_audio(tmp_path / name)
    assert (facts.sample_rate, facts.channels, facts.problem) == (sample_rate, channels, "")


def test_an_utterance_is_cut_exactly(tmp_path: Path) -> None:
    samples = np.linspace(-0.9, 0.9, 3 * SAMPLE_RATE)
    soundfile.write(tmp_path / "long.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    part = read_audio(tmp_path / "long.wav", 0.5, 1.25)
    np.testing.assert_allclose(part, samples[8000:20000], atol=1e-6)


def make_bad(folder: Path, kind: str) -> Path:
    """Writes a broken recording."""
    path = folder / f"{kind}.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    if kind == "empty":
        path.touch()
    elif kind == "no samples":
        soundfile.write(path, noise[:0], SAMPLE_RATE)
    elif kind == "silent":
        soundfile.write(path, 0 * noise, SAMPLE_RATE)
    elif kind == "NaN":
        noise[17] = np.nan
        soundfile.write(path, noise, SAMPLE_RATE, subtype="FLOAT")
    elif kind == "text":
        path.write_text("these are words, not sound\n" * 20)
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("truncated"):
        path = folder / f"truncated.{kind.split()[1]}"
        soundfile.write(path, noise, SAMPLE_RATE)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "beyond":
        soundfile.write(path, noise, SAMPLE_RATE)
    return path


BAD = {
    "empty": "empty, 0 bytes",
    "no samples": "contains no samples",
    "silent": "silent from beginning to end",
    "NaN": "contains NaN or infinite samples",
    "text": "not readable audio",
    "folder": "a folder, expected an audio file",
    "missing": "no such file",
    "truncated wav": "truncated, 16022 bytes of audio are missing",
    "truncated flac": "flac decoder lost sync",
    "truncated ogg": "contains no samples",
    "truncated mp3": "truncated",
}


@pytest.mark.parametrize("kind", BAD)
def test_broken_audio_is_reported_with_its_reason(tmp_path: Path, kind: str) -> None:
    path = make_bad(tmp_path, kind)
    assert BAD[kind] in inspect_audio(path).problem
    if kind != "silent":  # silence is readable; the manifest check rejects it
        with pytest.raises(AudioError, match=path.name):
            read_audio(path)


@pytest.mark.parametrize("length", [0x7FFFF000, 0x7FFFFF00, 0x80000000, 0xFFFFFFFF])
def test_a_wav_file_from_a_pipe_is_read_to_its_end(tmp_path: Path, length: int) -> None:
    """sox, arecord and ffmpeg cannot go back in a pipe and fill in the length."""
    path = tmp_path / "streamed.wav"
    soundfile.write(path, sine(2.0), SAMPLE_RATE)
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = length.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read_audio(path)) == sum(map(len, read_blocks(path))) == 2 * SAMPLE_RATE


def test_a_flac_file_from_a_pipe_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "streamed.flac"
    soundfile.write(path, sine(2.0), SAMPLE_RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36-bit number of samples in the first metadata block
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert "does not give its length" in inspect_audio(path).problem
    with pytest.raises(AudioError, match=r"ffmpeg -i streamed\.flac streamed\.wav"):
        list(read_blocks(path))


def test_a_variable_bit_rate_mp3_without_its_header_is_rejected_not_truncated(tmp_path: Path) -> None:
    """libsndfile extrapolates from the first frame: too long for quiet starts, too short for loud ones."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(20 * 44_100)
    noise[len(noise) // 2 :] = 0.2 * np.sin(np.arange(len(noise) // 2) / 50)
    path = tmp_path / "variable.mp3"
    soundfile.write(path, noise, 44_100, bitrate_mode="VARIABLE", compression_level=0.2)
    whole = len(read_audio(path))
    assert whole == pytest.approx(20 * SAMPLE_RATE, rel=0.01)
    content = path.read_bytes()
    frame = _mp3_frame(content[:4])
    assert frame is not None
    assert b"Xing" in content[: frame[0]]
    path.write_bytes(content[frame[0] :])
    with pytest.raises(AudioError, match=r"an MP3 of 20\.\d s, of which only .* would be read"):
        read_audio(path)
    with pytest.raises(AudioError, match="its header does not give its length"):
        list(read_blocks(path))


def test_an_utterance_beyond_the_end_is_reported(tmp_path: Path) -> None:
    path = make_bad(tmp_path, "beyond")
    assert "is 1.00 s long, yet the utterance is 0.5 to 2 s" in inspect_audio(path, 0.5, 2.0).problem
    assert "is 1.00 s long" in inspect_audio(path, 1.5).problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    path = make_bad(tmp_path, "beyond")
    path.chmod(0)
    assert "no permission" in inspect_audio(path).problem


def test_facts_are_cached_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1.0), SAMPLE_RATE)
    utterances = [Utterance("a", path), Utterance("half", path, 0.0, 0.5), Utterance("words", text="hi")]
    first = audio_facts(utterances, tmp_path / "cache")
    assert [fact and fact.seconds for fact in first] == [1.0, 0.5, None]

    inspected = []
    monkeypatch.setattr(
        "mmemo.data.audio_facts.inspect_audio", lambda *args: inspected.append(args) or inspect_audio(*args)
    )
    assert audio_facts(utterances, tmp_path / "cache") == first
    assert inspected == []
    soundfile.write(path, sine(2.0), SAMPLE_RATE)
    again = audio_facts(utterances, tmp_path / "cache")
    assert again[0] is not None
    assert again[0].seconds == 2.0
    assert len(inspected) == 2


def test_the_same_samples_have_the_same_checksum_in_any_format(tmp_path: Path) -> None:
    samples = (sine(1.0) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)
    soundfile.write(tmp_path / "b.flac", samples, SAMPLE_RATE)
    assert inspect_audio(tmp_path / "a.wav").content == inspect_audio(tmp_path / "b.flac").content
