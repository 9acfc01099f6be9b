"""Audio file -> waveform: 16 kHz, mono, float32, cut to the utterance."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from mmemo.settings import SAMPLE_RATE

SILENCE_DB = -90.0  # RMS below this is digital silence, in dB of full scale
STREAMED_BYTES = 0x7FFF0000  # a wav header written to a pipe claims at least this: its length was unknown
UNKNOWN_FRAMES = 1 << 62  # libsndfile reports at least this many frames for a streamed file
UNSUPPORTED_SUFFIXES = (".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp", ".mov", ".mkv")
MP3_TOLERANCE_SECONDS = 0.5  # the frames may exceed the header by this much: encoders pad both ends
MP3_KILOBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III in kbit/s; True: MPEG-1, False: MPEG-2 and 2.5."""


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """Properties of an utterance's audio, measured once by :func:`inspect_audio`.

    Args:
        content: Checksum of the decoded 16 kHz waveform; transcripts and features are cached under it.
        seconds: Duration.
        sample_rate: Sampling rate of the file, in Hz.
        channels: Number of channels of the file.
        level_db: RMS level in dB relative to full scale; -inf for digital silence.
        snr_db: 90th minus 10th percentile of the level of 20 ms frames, in dB, at most 100: a rough estimate of the
            signal-to-noise ratio, too low for speech without pauses.
        problem: Why the audio cannot be used; empty if it can.
    """

    content: str = ""
    seconds: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    level_db: float = float("-inf")
    snr_db: float = 0.0
    problem: str = ""


def read_audio(
    path: str | Path, start: float | None = None, end: float | None = None, channel: int | None = None
) -> np.ndarray:
    """Reads an utterance and resamples it to 16 kHz with soxr.

    Args:
        path: wav, flac, ogg or mp3 file, or any other format of libsndfile.
        start: Start of the utterance, in seconds. Defaults to the start of the file.
        end: End of the utterance, in seconds. Defaults to the end of the file.
        channel: Channel to read, from 0. Defaults to the average of all channels.

    Returns:
        Waveform ``(samples,)`` float32 at 16 kHz, about [-1, 1].

    Raises:
        AudioError: The file is missing, empty, unreadable or truncated, contains NaN, ends before ``end``, or lacks
            the channel.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     soundfile.write(f"{folder}/stereo.wav", np.zeros((8_000, 2)), 8_000)  # one second
        ...     read_audio(f"{folder}/stereo.wav").shape, read_audio(f"{folder}/stereo.wav", start=0.25, end=0.5).shape
        ((16000,), (4000,))
    """
    return _read(Path(path), start, end, channel)[0]


def _snr_db(waveform: np.ndarray) -> float:
    """Estimates the signal-to-noise ratio as the level of loud frames over that of quiet frames, in dB."""
    frame_samples = SAMPLE_RATE // 50  # 20 ms
    frames = waveform[: len(waveform) // frame_samples * frame_samples].reshape(-1, frame_samples)
    if not len(frames):
        return 0.0
    frame_db = 10 * np.log10(np.maximum(np.square(frames, dtype=np.float64).mean(1), 1e-12))
    quiet, loud = np.percentile(frame_db, [10, 90])
    return float(min(loud - quiet, 100.0))


def inspect_audio(
    path: str | Path, start: float | None = None, end: float | None = None, channel: int | None = None
) -> AudioFacts:
    """Measures an utterance's audio; an error becomes ``problem`` instead of being raised.

    Args:
        path: Audio file.
        start: Start of the utterance, in seconds. Defaults to the start of the file.
        end: End of the utterance, in seconds. Defaults to the end of the file.
        channel: Channel to read, from 0. Defaults to the average of all channels.
    """
    try:
        waveform, sample_rate, channels = _read(Path(path), start, end, channel)
    except AudioError as error:
        return AudioFacts(problem=str(error).removeprefix(f"{path}: "))
    rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    level_db = 20 * np.log10(rms) if rms > 0 else float("-inf")
    return AudioFacts(
        content=sha256(waveform.tobytes()).hexdigest()[:40],
        seconds=len(waveform) / SAMPLE_RATE,
        sample_rate=sample_rate,
        channels=channels,
        level_db=float(level_db),
        snr_db=_snr_db(waveform),
        problem="silent from beginning to end" if level_db < SILENCE_DB else "",
    )


def nonsilent_span(waveform: np.ndarray, trim_db: float, margin_seconds: float = 0.1) -> tuple[float, float]:
    """Finds leading and trailing silence with librosa.

    Args:
        waveform: ``(samples,)`` at 16 kHz.
        trim_db: Frames this far below the loudest frame count as silence, in dB, > 0.
        margin_seconds: Silence to keep on both sides.

    Returns:
        Start and end of the remaining sound, in seconds.
    """
    import librosa

    _, (first, last) = librosa.effects.trim(waveform, top_db=trim_db, frame_length=800, hop_length=200)
    seconds = len(waveform) / SAMPLE_RATE
    return max(first / SAMPLE_RATE - margin_seconds, 0.0), min(last / SAMPLE_RATE + margin_seconds, seconds)


def check_file(path: Path) -> None:
    """Checks that an audio file exists and is readable and complete.

    Args:
        path: Audio file.

    Raises:
        AudioError: The file is missing, a folder, empty, unreadable or truncated.
    """
    if path.is_dir():
        raise AudioError(f"{path}: a folder, expected an audio file")
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise AudioError(f"{path}: empty, 0 bytes")
    try:
        missing = _missing_bytes(path) if path.is_file() else 0
    except PermissionError:
        raise AudioError(f"{path}: no permission to read it") from None
    if missing:
        raise AudioError(f"{path}: truncated, {missing} bytes of audio are missing")


def check_length(path: Path, file: soundfile.SoundFile) -> None:
    """Checks that libsndfile can determine the length of a file; otherwise it would read only a part.

    Args:
        path: Audio file.
        file: The same file, opened.

    Raises:
        AudioError: The file has no samples, or its header does not give their number or gives too few.
    """
    convert = f"convert it first, for example with `ffmpeg -i {path.name} {path.stem}.wav`"
    if file.frames == 0:
        raise AudioError(f"{path}: contains no samples")
    if file.frames >= UNKNOWN_FRAMES:
        raise AudioError(f"{path}: was streamed, and its header does not give its length; {convert}")
    seconds, header_seconds = _mp3_seconds(path), file.frames / file.samplerate
    if seconds > header_seconds + MP3_TOLERANCE_SECONDS:
        raise AudioError(
            f"{path}: an MP3 of {seconds:.1f} s, of which only {header_seconds:.1f} s would be read, because its "
            f"header does not give its length; {convert}"
        )


class _Decoded(NamedTuple):
    samples: np.ndarray  # (samples, channels) float32
    sample_rate: int
    num_expected: int  # samples between start and end
    missing_bytes: int  # audio that the header claims beyond the end of the file


def _decode(path: Path, start: float | None, end: float | None) -> _Decoded:
    try:
        if path.is_dir():
            raise AudioError(f"{path}: a folder, expected an audio file")
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: empty, 0 bytes")
        with soundfile.SoundFile(libsndfile_path(path)) as file:
            check_length(path, file)
            missing = _missing_bytes(path) if file.format in ("WAV", "WAVEX", "RF64") else 0
            first = round((start or 0.0) * file.samplerate)
            last = file.frames if end is None else round(end * file.samplerate)
            seconds = file.frames / file.samplerate
            if first >= file.frames or last > file.frames + file.samplerate // 20:  # 50 ms of rounding is fine
                raise AudioError(
                    f"{path}: is {seconds:.2f} s long, yet the utterance is {start or 0:g} to {end or seconds:g} s"
                )
            last = min(last, file.frames)
            file.seek(first)
            samples = file.read(last - first, dtype="float32", always_2d=True)
            return _Decoded(samples, file.samplerate, last - first, missing)
    except PermissionError:
        raise AudioError(f"{path}: no permission to read it") from None
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:
        raise AudioError(f"{path}: not readable audio ({short_reason(error)}){conversion_advice(path)}") from None


def _read(path: Path, start: float | None, end: float | None, channel: int | None) -> tuple[np.ndarray, int, int]:
    """Returns the 16 kHz waveform ``(samples,)``, and the file's sampling rate and number of channels."""
    samples, sample_rate, num_expected, missing = _decode(path, start, end)
    channels = samples.shape[1]
    if missing and end is None:
        raise AudioError(f"{path}: truncated, {missing} bytes of audio are missing")
    if len(samples) < num_expected:
        raise AudioError(f"{path}: truncated, {len(samples)} of {num_expected} samples could be decoded")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: contains NaN or infinite samples")
    if channel is not None and channel >= channels:
        raise AudioError(f"{path}: has {channels} channels, yet the utterance is on channel {channel}, counting from 0")
    waveform = samples.mean(axis=1) if channel is None else samples[:, channel]
    if sample_rate != SAMPLE_RATE:
        waveform = soxr.resample(waveform, sample_rate, SAMPLE_RATE)
    if len(waveform) == 0:
        raise AudioError(f"{path}: contains no samples between {start or 0:g} and {end or 0:g} s")
    return np.ascontiguousarray(waveform, dtype=np.float32), sample_rate, channels


def _missing_bytes(path: Path) -> int:
    """Counts the bytes that a wav file's header claims beyond the end of the file.

    libsndfile silently reads what is left, so a half-copied file would pass for a short one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        file.seek(12)
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                missing = max(file.tell() + length - size, 0)
                return 0 if length >= STREAMED_BYTES else missing
            file.seek(length + length % 2, 1)
    return 0


def _mp3_seconds(path: Path) -> float:
    """Sums the durations of an MP3's frames; returns 0 for any other file.

    Without a Xing or VBRI header, libsndfile guesses the length of a variable-bit-rate MP3 from its first frame.
    """
    if not path.is_file():
        return 0.0
    seconds = 0.0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = 0
        if data[:3] == b"ID3" and len(data) > 10:  # the tag's size has seven bits per byte
            position = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        if not _mp3_frame(data[position : position + 4]):
            return 0.0
        while len(header := data[position : position + 4]) == 4:
            if frame := _mp3_frame(header):
                position += frame[0]
                seconds += frame[1]
            else:  # a tag, or garbage from a broken transfer
                position = data.find(b"\xff", position + 1)
                if position < 0:
                    break
    return seconds


def _mp3_frame(header: bytes) -> tuple[int, float] | None:
    """Parses an MPEG layer III frame header of four bytes into the frame's bytes and seconds (ISO/IEC 11172-3, 2.4.1).

    Returns None if the bytes are no such header.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    # version: 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5
    version, bit_rate_index, sample_rate_index = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bit_rate_index in (0, 15) or sample_rate_index == 3:
        return None
    is_mpeg1 = version == 3
    bit_rate = MP3_KILOBITS[is_mpeg1][bit_rate_index - 1] * 1000
    sample_rate = (44100, 48000, 32000)[sample_rate_index] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if is_mpeg1 else 576
    padding = header[2] >> 1 & 1
    return samples // 8 * bit_rate // sample_rate + padding, samples / sample_rate


def conversion_advice(path: Path) -> str:
    """Returns how to convert a format of phones and meeting software that libsndfile does not read, or nothing."""
    if path.suffix.lower() not in UNSUPPORTED_SUFFIXES:
        return ""
    return f"; convert it first, for example with `ffmpeg -i {path.name} {path.stem}.wav`"


def libsndfile_path(path: str | Path) -> str | bytes:
    """Returns a path as libsndfile expects it: bytes, since a name may not be valid UTF-8; on Windows text.

    Args:
        path: Audio file.
    """
    return str(path) if os.name == "nt" else os.fsencode(path)


def short_reason(error: Exception) -> str:
    """Returns libsndfile's error message without the path that it repeats."""
    text = str(error).split(": ")[-1].strip().rstrip(".")
    return text or type(error).__name__
