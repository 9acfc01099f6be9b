"""Recordings of any length -> emotions over time; no PyTorch, unless words are asked for."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmemo.audio.effects import AUDIO_SUFFIXES
from mmemo.audio.reader import FOREIGN_SUFFIXES, AudioError
from mmemo.audio.speech import AudioFormat, Speech, audio_blocks, audio_format, speech
from mmemo.export.runtime import ModelFolderError, Recognizer
from mmemo.files import printable, replacing
from mmemo.settings import SAMPLE_RATE

STUDENT = "mmemo-student"
UNSURE = "unsure"
STDIN = "-"
TIMELINE_SECONDS = 0.5  # between two points
SMOOTHING_SECONDS = 2.0  # standard deviation of the Gaussian that weighs segments around a point
PAUSE_SECONDS = 0.5  # from the nearest speech, beyond which the timeline says nothing
ENVELOPE_SECONDS = 0.1
SEGMENTS_AT_ONCE = 8
NUM_COLUMNS = 1000  # of a picture


class Segment(NamedTuple):
    """One stretch of speech.

    Args:
        start: In seconds.
        end: In seconds.
        emotion: The likeliest class, or ``unsure``.
        confidence: Its probability.
        probabilities: Of every class.
        text: Its words; None where they were not asked for.
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
        name: The file.
        channel: Which of its channels, counting from 0, where channels are speakers; None where they are averaged.
        seconds: Its length.
        speech_seconds: How much of that is speech.
        segments: In order.
        probabilities: Class -> mean over the speech of its probability.
        unsure: Share of the speech in segments that are not labelled.
        times: Points of the timeline, in seconds ``(point,)``.
        timeline: Smoothed probabilities ``(point, num_classes)``; NaN far from any speech.
        envelope: Loudest sample in each tenth of a second.
        notes: What to bear in mind, a sentence each: channels that were averaged, a low sampling rate.
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
        """The class that is likeliest over all; ``unsure`` where most of the speech is, or where there is none."""
        if self.unsure > 0.5 or not self.segments:
            return UNSURE
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def title(self) -> str:
        """File and channel."""
        return self.name if self.channel is None else f"{self.name}, channel {self.channel}"


Words = Callable[[Sequence[np.ndarray]], list[str]]
"""Waveforms -> what is said in them."""


def student_folder() -> Path:
    """The student that ships with mmemo, from a checkout or an installed wheel.

    Raises:
        ModelFolderError: It is not there.
    """
    package = Path(__file__).resolve().parents[1]
    # A checkout; a wheel's data files; and those of `pip install --target`, which says they are elsewhere.
    places = [package.parent / "checkpoints" / STUDENT, package.parent / "share" / "mmemo" / "checkpoints" / STUDENT]
    try:
        files = metadata.files("mmemo") or []
    except metadata.PackageNotFoundError:
        files = []
    places += [Path(str(file.locate())).resolve().parent for file in files if file.parent.name == STUDENT]
    for place in places:
        if place.is_dir():
            return place
    raise ModelFolderError(
        f"the student that ships with mmemo ({STUDENT}) is not here; install it again, or give --model"
    )


def audio_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files, and what is in folders, in order; formats of phones too, which cannot be read, so that they are named.

    Args:
        paths: Files, folders, or ``-`` for standard input.

    Raises:
        AudioError: A folder holds no audio.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            known = {*AUDIO_SUFFIXES, *FOREIGN_SUFFIXES}  # those too, so that each is told how to be converted
            inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in known and file.is_file()]
            if not inside:
                raise AudioError(f"{path}: a folder without audio ({', '.join(AUDIO_SUFFIXES)})")
            found += inside
        else:
            found.append(path)
    return found


def analyze(
    audio: str | Path,
    model: str | Path | Recognizer | None = None,
    min_confidence: float = 0.4,
    separate_channels: bool = False,
    words: Words | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Analysis]:
    """Emotions of a recording of any length, in memory that grows by its segments and timeline alone.

    Args:
        audio: Audio file, or ``-`` for standard input.
        model: Folder of ``mmemo export``; the student that ships with mmemo when not given.
        min_confidence: A segment whose likeliest class is less likely is marked ``unsure``, in [0, 1].
        separate_channels: Whether each channel is a speaker of its own; else they are averaged.
        words: Hears what is said in each segment; nothing is transcribed when not given.
        progress: Told how many seconds have been heard.

    Returns:
        One analysis, or one for each channel; without segments where nobody speaks in a channel.

    Raises:
        AudioError: The file cannot be read, or nobody speaks in it.
        ModelFolderError: The model cannot be used.
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence={min_confidence}: expected a probability, 0 to 1")
    recognizer = model if isinstance(model, Recognizer) else Recognizer(model or student_folder())
    if not recognizer.classes or not recognizer.audio_only:
        raise ModelFolderError(
            f"{recognizer.folder}: analysis needs a model of classes that hears audio alone; distil one "
            "for the voice from it, or leave --model out for the one that comes with mmemo"
        )
    with _file(audio) as path:
        stored = audio_format(path)
        separate_channels = separate_channels and stored.channels > 1
        channels: list[int | None] = [*range(stored.channels)] if separate_channels else [None]
        found = [
            _analysis(printable(audio), path, channel, recognizer, min_confidence, words, progress)
            for channel in channels
        ]
    notes = _notes(stored, separate_channels)
    if not any(one.segments for one in found):
        name = "standard input" if str(audio) == STDIN else printable(audio)
        raise AudioError("; ".join([f"{name}: nobody speaks in its {found[0].seconds:.1f} s", *notes]))
    return [one._replace(notes=notes) for one in found]


def _notes(stored: AudioFormat, separate_channels: bool) -> tuple[str, ...]:
    notes = []
    if stored.channels > 1 and not separate_channels:
        notes.append(f"its {stored.channels} channels are averaged; --separate_channels true takes each for a speaker")
    if stored.sample_rate < SAMPLE_RATE:
        notes.append(
            f"recorded at {stored.sample_rate} Hz, so nothing above {stored.sample_rate / 2000:g} kHz is heard: "
            f"answers are less sure than at {SAMPLE_RATE} Hz, which models learn from"
        )
    return tuple(notes)


@contextmanager
def _file(audio: str | Path) -> Iterator[Path]:
    """A path that can be read twice; standard input goes through a file."""
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


def _analysis(
    name: str,
    path: Path,
    channel: int | None,
    recognizer: Recognizer,
    min_confidence: float,
    words: Words | None,
    progress: Callable[[float], None] | None,
) -> Analysis:
    envelope: list[float] = []
    num_samples = 0

    def heard() -> Iterator[np.ndarray]:
        nonlocal num_samples
        rest, step = np.zeros(0, dtype=np.float32), round(ENVELOPE_SECONDS * SAMPLE_RATE)
        for block in audio_blocks(path, channel):
            num_samples += len(block)
            loudness = np.concatenate([rest, np.abs(block)])
            whole = len(loudness) // step * step
            envelope.extend(loudness[:whole].reshape(-1, step).max(1).tolist())
            rest = loudness[whole:]
            if progress is not None:
                progress(num_samples / SAMPLE_RATE)
            yield block

    segments: list[Segment] = []
    waiting: list[Speech] = []
    for stretch in itertools.chain(speech(heard()), [None]):
        if stretch is not None:
            waiting.append(stretch)
        if waiting and (stretch is None or len(waiting) == SEGMENTS_AT_ONCE):
            segments += _segments(waiting, recognizer, min_confidence, words)
            waiting = []
    seconds = num_samples / SAMPLE_RATE
    return summary(name, channel, seconds, segments, recognizer.classes, np.array(envelope, dtype=np.float32))


def _segments(
    stretches: Sequence[Speech], recognizer: Recognizer, min_confidence: float, words: Words | None
) -> list[Segment]:
    emotions = recognizer.predict_batch([one.waveform for one in stretches])
    texts: Sequence[str | None] = [None] * len(stretches)
    if words is not None:
        texts = words([one.waveform for one in stretches])
    segments = []
    for stretch, emotion, text in zip(stretches, emotions, texts, strict=True):
        label = emotion.label if emotion.confidence >= min_confidence else UNSURE
        start, end = round(stretch.start, 3), round(stretch.end, 3)
        segments.append(Segment(start, end, label, emotion.confidence, emotion.probabilities, text))
    return segments


def summary(
    name: str,
    channel: int | None,
    seconds: float,
    segments: list[Segment],
    classes: Sequence[str],
    envelope: np.ndarray,
) -> Analysis:
    """Puts segments together: means over the whole, and a smoothed timeline that stops in pauses.

    Args:
        name: Of the recording.
        channel: Of it, or None.
        seconds: Its length.
        segments: In order.
        classes: In order.
        envelope: Loudest sample in each tenth of a second.
    """
    lengths = np.array([one.end - one.start for one in segments])
    total = float(lengths.sum())
    probabilities = np.array([[one.probabilities[name] for name in classes] for one in segments])
    times = np.append(np.arange(0.0, seconds, TIMELINE_SECONDS), seconds)
    timeline = np.full((len(times), len(classes)), np.nan)
    means = dict.fromkeys(classes, 0.0)
    unsure = 0.0
    if segments:
        means = dict(zip(classes, map(float, lengths @ probabilities / total), strict=True))
        unsure = float(lengths[[one.emotion == UNSURE for one in segments]].sum() / total)
        starts, ends = np.array([one.start for one in segments]), np.array([one.end for one in segments])
        for number, time in enumerate(times):
            near = slice(
                int(np.searchsorted(ends, time - 3 * SMOOTHING_SECONDS)),
                int(np.searchsorted(starts, time + 3 * SMOOTHING_SECONDS)),
            )
            away = np.maximum(np.maximum(starts[near] - time, time - ends[near]), 0.0)  # 0 inside a segment
            weights = lengths[near] * np.exp(-0.5 * (away / SMOOTHING_SECONDS) ** 2)
            if len(away) and away.min() <= PAUSE_SECONDS:
                timeline[number] = weights @ probabilities[near] / weights.sum()
    return Analysis(name, channel, seconds, total, segments, means, unsure, times, timeline, envelope)


def draw(analysis: Analysis, path: Path) -> None:
    """Probabilities over time under the waveform; hours are drawn as means over columns.

    Args:
        analysis: Of a recording.
        path: PNG to write.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    for unsure, shade in ((False, "#dcebff"), (True, "#fff0c0")):
        spans = [(one.start, one.end - one.start) for one in analysis.segments if (one.emotion == UNSURE) == unsure]
        above.broken_barh(spans, (-1, 2), color=shade, zorder=0, transform=above.get_xaxis_transform())
    envelope, times = _columns(analysis.envelope, np.arange(len(analysis.envelope)) * ENVELOPE_SECONDS, np.max)
    above.fill_between(times, -envelope, envelope, color="0.3", linewidth=0)
    above.set_yticks([])
    title = analysis.title.replace(analysis.name, Path(analysis.name).name, 1)
    above.set_title(f"{printable(title)}: speech is shaded, yellow where the model is unsure", parse_math=False)
    classes = list(analysis.probabilities)
    colours = colormaps["tab20"].colors if len(classes) > 10 else colormaps["tab10"].colors  # type: ignore[attr-defined]
    timeline, times = _columns(analysis.timeline, analysis.times, _mean_of_heard)
    heard = ~np.isnan(timeline[:, 0])  # pauses stay blank
    step: Any = "mid" if len(analysis.times) > NUM_COLUMNS else None
    lower = np.zeros(len(times))
    for colour, probs in zip(colours, np.nan_to_num(timeline.T), strict=False):
        below.fill_between(times, lower, lower + probs, where=heard, step=step, color=colour, alpha=0.85, linewidth=0)
        lower += probs
    handles = [Patch(color=colour, alpha=0.85, label=name) for name, colour in zip(classes, colours, strict=False)]
    below.set_ylim(0, 1)
    below.set_xlim(0, analysis.seconds)
    below.set_ylabel("probability")
    below.set_xlabel("time" if analysis.seconds >= 120 else "seconds")
    if analysis.seconds >= 120:
        below.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 3, 6, 10], integer=True))
        below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value, digits=0)))
    below.legend(handles=handles[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _columns(values: np.ndarray, times: np.ndarray, join: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """No more values than a picture has columns, and where each stands: neighbours are joined."""
    if len(values) <= NUM_COLUMNS:
        return values, times
    edges = np.linspace(0, len(values), NUM_COLUMNS + 1).astype(int)
    pieces = [slice(first, last) for first, last in itertools.pairwise(edges)]
    return np.array([join(values[piece], axis=0) for piece in pieces]), np.array(
        [times[piece].mean() for piece in pieces]
    )


def _mean_of_heard(timeline: np.ndarray, axis: int) -> np.ndarray:
    heard = ~np.isnan(timeline[:, 0])
    return timeline[heard].mean(axis) if heard.any() else timeline[0]


def clock(seconds: float, digits: int = 1) -> str:
    """A time as ``m:ss`` or ``h:mm:ss``.

    Args:
        seconds: Since the beginning.
        digits: After the seconds' decimal point.
    """
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    last = f"{rest:0{digits + 3 if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{last}" if hours else f"{minutes}:{last}"
