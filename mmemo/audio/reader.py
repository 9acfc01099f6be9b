"""Audio file -> waveform: 16 kHz, mono, float32, cut to the utterance."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import soundfile
import soxr

from mmemo.settings import SAMPLE_RATE

SILENCE_DB = -90.0  # RMS below this is digital silence, in dB of full scale
STREAMED_BYTES = 0x7FFF0000  # a wav file written to a pipe promises this much or more, as nobody knew its length
UNKNOWN_FRAMES = 1 << 62
FOREIGN_SUFFIXES = (".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp", ".mov", ".mkv")
MP3_TOLERANCE = 0.5  # seconds by which an MP3's frames may exceed its header: encoders fill the ends
MP3_KILOBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # layer III, of MPEG 1 and of 2 and 2.5


class AudioError(ValueError):
    """Audio that cannot be used; the message is the file and the reason."""


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """What one look at an utterance's audio tells.

    Args:
        content: Checksum of the decoded 16 kHz waveform: the key of transcripts and features.
        seconds: Duration.
        sample_rate: As stored in the file, in Hz.
        channels: As stored in the file.
        level_db: RMS level relative to full scale; -inf for digital zero.
        snr_db: How far the loud tenth of its 20 ms frames stands above the quiet tenth, in dB, at most 100: a rough
            estimate of speech to noise, too low where nobody pauses.
        problem: Why the audio cannot be used; empty when it can.
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
    """Reads an utterance; any rate is resampled with soxr.

    Args:
        path: wav, flac, ogg or mp3 file, or anything else that libsndfile reads.
        start: Where to start, in seconds; None is the beginning.
        end: Where to stop, in seconds; None is the end of the file.
        channel: Which of several channels, counting from 0; None averages them.

    Returns:
        Waveform ``(samples,)`` float32 at 16 kHz, about [-1, 1].

    Raises:
        AudioError: The file is missing, empty, unreadable, truncated, holds NaN, ends before ``end``, or has no such
            channel.
    """
    return _read(Path(path), start, end, channel)[0]


def _snr_db(waveform: np.ndarray) -> float:
    """Loud frames over quiet ones."""
    size = SAMPLE_RATE // 50
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    if not len(frames):
        return 0.0
    level = 10 * np.log10(np.maximum(np.square(frames, dtype=np.float64).mean(1), 1e-12))
    quiet, loud = np.percentile(level, [10, 90])
    return float(min(loud - quiet, 100.0))


def inspect_audio(
    path: str | Path, start: float | None = None, end: float | None = None, channel: int | None = None
) -> AudioFacts:
    """Looks at an utterance once; what is wrong with it stands in ``problem`` instead of being raised.

    Args:
        path: Audio file.
        start: Where the utterance starts, in seconds.
        end: Where it ends, in seconds.
        channel: Which of several channels, counting from 0; None averages them.
    """
    try:
        waveform, sample_rate, channels = _read(Path(path), start, end, channel)
    except AudioError as error:
        return AudioFacts(problem=str(error).removeprefix(f"{path}: "))
    level = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    level_db = 20 * np.log10(level) if level > 0 else float("-inf")
    return AudioFacts(
        content=sha256(waveform.tobytes()).hexdigest()[:40],
        seconds=len(waveform) / SAMPLE_RATE,
        sample_rate=sample_rate,
        channels=channels,
        level_db=float(level_db),
        snr_db=_snr_db(waveform),
        problem="silent from beginning to end" if level_db < SILENCE_DB else "",
    )


def voiced_span(waveform: np.ndarray, trim_db: float, margin_seconds: float = 0.1) -> tuple[float, float]:
    """Where the sound begins and ends, by librosa's trimming of silence.

    Args:
        waveform: ``(samples,)`` at 16 kHz.
        trim_db: What is this far below the loudest moment is silence, in dB, above 0.
        margin_seconds: Left standing on both sides.

    Returns:
        Start and end in seconds.
    """
    import librosa

    _, (first, last) = librosa.effects.trim(waveform, top_db=trim_db, frame_length=800, hop_length=200)
    seconds = len(waveform) / SAMPLE_RATE
    return max(first / SAMPLE_RATE - margin_seconds, 0.0), min(last / SAMPLE_RATE + margin_seconds, seconds)


def checked_file(path: Path) -> None:
    """Refuses what is no file, or an empty or half-copied one.

    Args:
        path: Audio file.

    Raises:
        AudioError: Saying which.
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


def checked_length(path: Path, file: soundfile.SoundFile) -> None:
    """Refuses a file whose length libsndfile does not know, and of which it would read a part.

    Args:
        path: Audio file.
        file: The same, opened.

    Raises:
        AudioError: It has no samples, its header does not say how many there are, or it holds more than was guessed.
    """
    convert = f"convert it first, for example by `ffmpeg -i {path.name} {path.stem}.wav`"
    if file.frames == 0:
        raise AudioError(f"{path}: holds no samples")
    if file.frames >= UNKNOWN_FRAMES:
        raise AudioError(f"{path}: was streamed, and its header does not say how long it is; {convert}")
    seconds, guessed = _mp3_seconds(path), file.frames / file.samplerate
    if seconds > guessed + MP3_TOLERANCE:
        raise AudioError(
            f"{path}: an MP3 of {seconds:.1f} s whose header does not say so, of which {guessed:.1f} s would be read; "
            f"{convert}"
        )


def _read(path: Path, start: float | None, end: float | None, channel: int | None) -> tuple[np.ndarray, int, int]:
    try:
        if path.is_dir():
            raise AudioError(f"{path}: a folder, expected an audio file")
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: empty, 0 bytes")
        with soundfile.SoundFile(system_name(path)) as file:
            checked_length(path, file)
            truncated = _missing_bytes(path) if file.format in ("WAV", "WAVEX", "RF64") else 0
            first = round((start or 0.0) * file.samplerate)
            last = file.frames if end is None else round(end * file.samplerate)
            seconds = file.frames / file.samplerate
            if first >= file.frames or last > file.frames + file.samplerate // 20:  # 50 ms of rounding is fine
                raise AudioError(
                    f"{path}: is {seconds:.2f} s long, yet the utterance is {start or 0:g} to {end or seconds:g} s"
                )
            last = min(last, file.frames)
            file.seek(first)
            samples = file.read(last - first, dtype="float32", always_2d=True)  # (samples, channels)
            sample_rate, channels, expected = file.samplerate, file.channels, last - first
    except PermissionError:
        raise AudioError(f"{path}: no permission to read it") from None
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:
        raise AudioError(f"{path}: not readable audio ({reason(error)}){advice(path)}") from None
    if truncated and end is None:
        raise AudioError(f"{path}: truncated, {truncated} bytes of audio are missing")
    if len(samples) < expected:
        raise AudioError(f"{path}: truncated, {len(samples)} of {expected} samples could be decoded")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples")
    if channel is not None and channel >= channels:
        raise AudioError(f"{path}: has {channels} channels, yet the utterance is on channel {channel}, counting from 0")
    waveform = samples.mean(axis=1) if channel is None else samples[:, channel]
    if sample_rate != SAMPLE_RATE:
        waveform = soxr.resample(waveform, sample_rate, SAMPLE_RATE)
    if len(waveform) == 0:
        raise AudioError(f"{path}: holds no samples between {start or 0:g} and {end or 0:g} s")
    return np.ascontiguousarray(waveform, dtype=np.float32), sample_rate, channels


def _missing_bytes(path: Path) -> int:
    """How many bytes of a wav file's data chunk its header promises beyond the file's end.

    libsndfile quietly plays what is there; a half-copied file must not pass for a short one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        file.seek(12)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                missing = max(file.tell() + length - size, 0)
                return 0 if length >= STREAMED_BYTES else missing
            file.seek(length + length % 2, 1)
    return 0


def _mp3_seconds(path: Path) -> float:
    """Sum of the durations of an MP3's frames; 0 of any other file.

    Without the header of Xing or VBRI, libsndfile guesses the length of an MP3 of varying bitrate by its first frame.
    """
    if not path.is_file():
        return 0.0
    seconds = 0.0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = 0
        if data[:3] == b"ID3" and len(data) > 10:  # seven bits of a byte count
            place = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        if not _mp3_frame(data[place : place + 4]):
            return 0.0
        while len(head := data[place : place + 4]) == 4:
            if frame := _mp3_frame(head):
                place += frame[0]
                seconds += frame[1]
            else:  # a tag, or rubbish from a broken transfer
                place = data.find(b"\xff", place + 1)
                if place < 0:
                    break
    return seconds


def _mp3_frame(head: bytes) -> tuple[int, float] | None:
    """Bytes and seconds of the frame of MPEG layer III that begins with these four bytes (ISO/IEC 11172-3, 2.4.1)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, rate, pace = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3  # 3 is MPEG 1, 2 is MPEG 2, 0 is 2.5
    if version == 1 or rate in (0, 15) or pace == 3:
        return None
    first = version == 3
    bits = MP3_KILOBITS[first][rate - 1] * 1000
    hertz = (44100, 48000, 32000)[pace] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if first else 576
    return samples // 8 * bits // hertz + (head[2] >> 1 & 1), samples / hertz


def advice(path: Path) -> str:
    """What to do with formats that telephones and meetings write, and libsndfile does not read."""
    if path.suffix.lower() not in FOREIGN_SUFFIXES:
        return ""
    return f"; convert it first, for example by `ffmpeg -i {path.name} {path.stem}.wav`"


def system_name(path: str | Path) -> str | bytes:
    """A file's name as libsndfile takes it: bytes that are no text are names too, but on Windows all are text.

    Args:
        path: As Python gives it.
    """
    return str(path) if os.name == "nt" else os.fsencode(path)


def reason(error: Exception) -> str:
    """What libsndfile has against a file, without the path it repeats."""
    text = str(error).split(": ")[-1].strip().rstrip(".")
    return text or type(error).__name__
