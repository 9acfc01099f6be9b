"""Recordings of any length -> emotions over time, without PyTorch unless a transcript is requested."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmemo.audio.folder import AUDIO_SUFFIXES
from mmemo.audio.reader import UNSUPPORTED_SUFFIXES, AudioError
from mmemo.audio.speech import AudioFormat, SpeechSegment, detect_speech, read_audio_format, read_blocks
from mmemo.export.analysis_folder import AnalysisFolder
from mmemo.export.runtime import ModelFolderError, Recognizer
from mmemo.export.timeline import ENVELOPE_STEP_SECONDS, UNSURE
from mmemo.files import printable
from mmemo.settings import SAMPLE_RATE

STUDENT = "mmemo-student"
STDIN = "-"
TIMELINE_STEP_SECONDS = 0.5
SMOOTHING_SECONDS = 2.0  # standard deviation of the Gaussian that weights the segments around a timeline point
MAX_GAP_SECONDS = 0.5  # a timeline point farther than this from any speech is NaN
SEGMENTS_PER_BATCH = 8


class Segment(NamedTuple):
    """One segment of speech and its prediction.

    Args:
        start: Start in seconds.
        end: End in seconds.
        emotion: The most probable class, or ``unsure``.
        confidence: Probability of the most probable class.
        probabilities: Class -> probability.
        text: Transcript; None if none was requested.
    """

    start: float
    end: float
    emotion: str
    confidence: float
    probabilities: dict[str, float]
    text: str | None = None


class Analysis(NamedTuple):
    """Emotions of one recording, or of one channel of it.

    Args:
        name: File name, as given.
        channel: Channel, counting from 0; None if the channels were averaged.
        seconds: Duration.
        speech_seconds: Total duration of the segments.
        segments: Segments of speech, in order.
        probabilities: Class -> probability, averaged over the speech.
        unsure: Share of the speech that is in ``unsure`` segments, in [0, 1].
        times: Points of the timeline in seconds, ``(point,)``.
        timeline: Smoothed probabilities ``(point, num_classes)``; NaN where there is no speech nearby.
        envelope: Largest absolute sample in each tenth of a second, ``(step,)``.
        notes: Warnings about the recording, such as averaged channels or a low sampling rate.
    """

    name: str
    channel: int | None
    seconds: float
    speech_seconds: float
    segments: list[Segment]
    probabilities: dict[str, float]
    unsure: float
    times: np.ndarray
    timeline: np.ndarray
    envelope: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def emotion(self) -> str:
        """The most probable class overall; ``unsure`` if there is no speech or most of it is unsure."""
        if self.unsure > 0.5 or not self.segments:
            return UNSURE
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def problem(self) -> str:
        """Why there is no result; empty if there is one."""
        return "" if self.segments else f"no speech in its {self.seconds:.1f} s"

    @property
    def title(self) -> str:
        """File name and channel."""
        return self.name if self.channel is None else f"{self.name}, channel {self.channel}"


Transcriber = Callable[[Sequence[np.ndarray]], list[str]]
"""Waveforms ``(samples,)`` at 16 kHz -> their transcripts."""


def student_folder() -> Path:
    """Returns the folder of the student model that ships with mmemo, in a checkout or an installed wheel.

    Raises:
        ModelFolderError: The folder is missing.
    """
    package = Path(__file__).resolve().parents[1]
    # In order: a checkout, the wheel's data files, and what `pip install --target` records as their location.
    folders = [package.parent / "checkpoints" / STUDENT, package.parent / "share" / "mmemo" / "checkpoints" / STUDENT]
    try:
        files = metadata.files("mmemo") or []
    except metadata.PackageNotFoundError:
        files = []
    folders += [Path(str(file.locate())).resolve().parent for file in files if file.parent.name == STUDENT]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ModelFolderError(
        f"cannot find the student that ships with mmemo ({STUDENT}); reinstall mmemo, or name a model"
    )


def list_audio_files(paths: Iterable[str | Path]) -> list[Path]:
    """Lists the given files and the audio files in the given folders, in order.

    Formats that mmemo cannot read, such as m4a, are listed too, so that each gets an error with a remedy.

    Args:
        paths: Files, folders, or ``-`` for standard input.

    Raises:
        AudioError: A folder holds no audio.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        suffixes = {*AUDIO_SUFFIXES, *UNSUPPORTED_SUFFIXES}
        inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes and file.is_file()]
        if not inside:
            raise AudioError(f"{path}: a folder without audio ({', '.join(AUDIO_SUFFIXES)})")
        files += inside
    return files


def analyze(
    audio: str | Path,
    model: str | Path | Recognizer | None = None,
    min_confidence: float = 0.4,
    separate_channels: bool = False,
    transcriber: Transcriber | None = None,
    progress: Callable[[float], None] | None = None,
    out: str | Path | None = None,
) -> list[Analysis]:
    """Predicts emotion over time in a recording of any length.

    The recording is processed in blocks, so memory holds only its segments, timeline and envelope.

    Args:
        audio: Audio file, or ``-`` for standard input.
        model: Folder written by ``mmemo export``. Defaults to the student that ships with mmemo.
        min_confidence: A segment is ``unsure`` if no class has at least this probability, in [0, 1].
        separate_channels: Analyse each channel as a speaker of its own. Otherwise the channels are averaged.
        transcriber: Transcribes each segment. Defaults to no transcript.
        progress: Called with the number of seconds processed so far. Defaults to no reports.
        out: Folder for the tables, JSON files and pictures of ``mmemo analyze --out``; results of other recordings in
            it are kept. Defaults to none.

    Returns:
        One analysis, or one per channel. A channel without speech has no segments.

    Raises:
        AudioError: The file cannot be read or contains no speech.
        ModelFolderError: The model cannot be used, predicts no classes, or also takes text.
        ValueError: ``min_confidence`` is out of range, or ``out`` cannot be used.

    Example:
        >>> import soundfile, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     soundfile.write(f"{folder}/silence.wav", np.zeros(16_000), 16_000)
        ...     try:
        ...         analyze(f"{folder}/silence.wav")
        ...     except AudioError as error:
        ...         print(str(error).rpartition(": ")[2])
        no speech in its 1.0 s
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence={min_confidence}: expected a probability, 0 to 1")
    recognizer = model if isinstance(model, Recognizer) else Recognizer(model or student_folder())
    if not recognizer.classes or not recognizer.audio_only:
        raise ModelFolderError(
            f"{recognizer.folder}: analysis needs an audio-only model that predicts classes; train one without a "
            "text_encoder, or distil an audio-only student, or use the model that ships with mmemo"
        )
    folder = None if out is None else AnalysisFolder.open(out, recognizer.classes)
    with _file(audio) as path:
        stored = read_audio_format(path)
        separate_channels = separate_channels and stored.channels > 1
        channels: list[int | None] = [*range(stored.channels)] if separate_channels else [None]
        analyses = [
            _analyze_channel(printable(audio), path, channel, recognizer, min_confidence, transcriber, progress)
            for channel in channels
        ]
    notes = _notes(stored, separate_channels)
    if not any(analysis.segments for analysis in analyses):
        name = "standard input" if str(audio) == STDIN else printable(audio)
        raise AudioError("; ".join([f"{name}: no speech in its {analyses[0].seconds:.1f} s", *notes]))
    analyses = [analysis._replace(notes=notes) for analysis in analyses]
    if folder is not None:
        folder.add_all(analyses)
    return analyses


def _notes(stored: AudioFormat, separate_channels: bool) -> tuple[str, ...]:
    notes = []
    if stored.channels > 1 and not separate_channels:
        notes.append(
            f"its {stored.channels} channels were averaged; if each is one speaker, "
            "use separate_channels (`--separate-channels`)"
        )
    if stored.sample_rate < SAMPLE_RATE:
        notes.append(
            f"recorded at {stored.sample_rate} Hz, so it has nothing above {stored.sample_rate / 2000:g} kHz; "
            f"predictions are less reliable than at {SAMPLE_RATE} Hz, the rate that models are trained on"
        )
    return tuple(notes)


@contextmanager
def _file(audio: str | Path) -> Iterator[Path]:
    """Yields a path that can be read more than once. Standard input is copied to a temporary file."""
    if str(audio) != STDIN:
        yield Path(audio)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield path
        except AudioError as error:
            raise AudioError(str(error).replace(str(path), "standard input")) from None


def _analyze_channel(
    name: str,
    path: Path,
    channel: int | None,
    recognizer: Recognizer,
    min_confidence: float,
    transcriber: Transcriber | None,
    progress: Callable[[float], None] | None,
) -> Analysis:
    envelope: list[float] = []
    num_samples = 0

    def blocks() -> Iterator[np.ndarray]:
        """Passes the audio on and measures its length and envelope on the way."""
        nonlocal num_samples
        rest, step = np.zeros(0, dtype=np.float32), round(ENVELOPE_STEP_SECONDS * SAMPLE_RATE)
        for block in read_blocks(path, channel):
            num_samples += len(block)
            loudness = np.concatenate([rest, np.abs(block)])
            whole = len(loudness) // step * step
            envelope.extend(loudness[:whole].reshape(-1, step).max(1).tolist())
            rest = loudness[whole:]
            if progress is not None:
                progress(num_samples / SAMPLE_RATE)
            yield block

    segments: list[Segment] = []
    batch: list[SpeechSegment] = []
    for segment in itertools.chain(detect_speech(blocks()), [None]):
        if segment is not None:
            batch.append(segment)
        if batch and (segment is None or len(batch) == SEGMENTS_PER_BATCH):
            segments += _predict_segments(batch, recognizer, min_confidence, transcriber)
            batch = []
    seconds = num_samples / SAMPLE_RATE
    return summarize(name, channel, seconds, segments, recognizer.classes, np.array(envelope, dtype=np.float32))


def _predict_segments(
    batch: Sequence[SpeechSegment], recognizer: Recognizer, min_confidence: float, transcriber: Transcriber | None
) -> list[Segment]:
    waveforms = [speech_segment.waveform for speech_segment in batch]
    emotions = recognizer.predict_batch(waveforms)
    texts: Sequence[str | None] = [None] * len(batch) if transcriber is None else transcriber(waveforms)
    segments = []
    for speech_segment, emotion, text in zip(batch, emotions, texts, strict=True):
        label = emotion.label if emotion.confidence >= min_confidence else UNSURE
        start, end = round(speech_segment.start, 3), round(speech_segment.end, 3)
        segments.append(Segment(start, end, label, emotion.confidence, emotion.probabilities, text))
    return segments


def summarize(
    name: str,
    channel: int | None,
    seconds: float,
    segments: list[Segment],
    classes: Sequence[str],
    envelope: np.ndarray,
) -> Analysis:
    """Combines segments into an analysis: mean probabilities, and a smoothed timeline with gaps at pauses.

    Args:
        name: File name.
        channel: Channel, counting from 0; None if the channels were averaged.
        seconds: Duration of the recording.
        segments: Segments of speech, in order.
        classes: Classes of the model, in order.
        envelope: Largest absolute sample in each tenth of a second, ``(step,)``.

    Example:
        >>> segment = Segment(0.0, 3.0, "anger", 0.75, {"anger": 0.75, "neutral": 0.25})
        >>> analysis = summarize("talk.wav", None, 4.0, [segment], ["anger", "neutral"], np.zeros(40))
        >>> analysis.emotion, analysis.probabilities["anger"], analysis.timeline.shape
        ('anger', 0.75, (9, 2))
    """
    lengths = np.array([segment.end - segment.start for segment in segments])
    total = float(lengths.sum())
    probabilities = np.array([[segment.probabilities[name] for name in classes] for segment in segments])
    times = np.append(np.arange(0.0, seconds, TIMELINE_STEP_SECONDS), seconds)
    timeline = np.full((len(times), len(classes)), np.nan)
    means = dict.fromkeys(classes, 0.0)
    unsure = 0.0
    if segments:
        means = dict(zip(classes, map(float, lengths @ probabilities / total), strict=True))
        unsure = float(lengths[[segment.emotion == UNSURE for segment in segments]].sum() / total)
        starts, ends = (
            np.array([segment.start for segment in segments]),
            np.array([segment.end for segment in segments]),
        )
        for index, time in enumerate(times):
            near = slice(
                int(np.searchsorted(ends, time - 3 * SMOOTHING_SECONDS)),
                int(np.searchsorted(starts, time + 3 * SMOOTHING_SECONDS)),
            )
            distance = np.maximum(np.maximum(starts[near] - time, time - ends[near]), 0.0)  # 0 inside a segment
            weights = lengths[near] * np.exp(-0.5 * (distance / SMOOTHING_SECONDS) ** 2)
            if len(distance) and distance.min() <= MAX_GAP_SECONDS:
                timeline[index] = weights @ probabilities[near] / weights.sum()
    return Analysis(name, channel, seconds, total, segments, means, unsure, times, timeline, envelope)
