"""The picture of a recording: its waveform, and the probability of each emotion over time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmemo.files import printable, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mmemo.export.analysis import Analysis

UNSURE = "unsure"
ENVELOPE_STEP_SECONDS = 0.1
MAX_PLOT_POINTS = 1000


def draw_timeline(analysis: Analysis, path: Path) -> None:
    """Plots the waveform and, below it, the probabilities over time. Long recordings are downsampled.

    Args:
        analysis: Analysis to plot.
        path: PNG file to write.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    waveform_axes, timeline_axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    _draw_waveform(waveform_axes, analysis)
    classes = list(analysis.probabilities)
    colours = colormaps["tab20"].colors if len(classes) > 10 else colormaps["tab10"].colors  # type: ignore[attr-defined]
    timeline, times = _downsample(analysis.timeline, analysis.times, _mean_over_speech)
    is_speech = ~np.isnan(timeline[:, 0])  # pauses stay blank
    step: Literal["mid"] | None = "mid" if len(analysis.times) > MAX_PLOT_POINTS else None
    lower = np.zeros(len(times))
    for colour, probs in zip(colours, np.nan_to_num(timeline.T), strict=False):
        timeline_axes.fill_between(
            times, lower, lower + probs, where=is_speech, step=step, color=colour, alpha=0.85, linewidth=0
        )
        lower += probs
    handles = [Patch(color=colour, alpha=0.85, label=name) for name, colour in zip(classes, colours, strict=False)]
    timeline_axes.set_ylim(0, 1)
    timeline_axes.set_xlim(0, analysis.seconds)
    timeline_axes.set_ylabel("probability")
    timeline_axes.set_xlabel("time" if analysis.seconds >= 120 else "seconds")
    if analysis.seconds >= 120:
        timeline_axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 3, 6, 10], integer=True))
        timeline_axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_time(value, digits=0)))
    timeline_axes.legend(handles=handles[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _draw_waveform(axes: Axes, analysis: Analysis) -> None:
    for unsure, shade in ((False, "#dcebff"), (True, "#fff0c0")):
        spans = [
            (segment.start, segment.end - segment.start)
            for segment in analysis.segments
            if (segment.emotion == UNSURE) == unsure
        ]
        axes.broken_barh(spans, (-1, 2), color=shade, zorder=0, transform=axes.get_xaxis_transform())
    times = np.arange(len(analysis.envelope)) * ENVELOPE_STEP_SECONDS
    envelope, times = _downsample(analysis.envelope, times, np.max)
    axes.fill_between(times, -envelope, envelope, color="0.3", linewidth=0)
    axes.set_yticks([])
    title = analysis.title.replace(analysis.name, Path(analysis.name).name, 1)
    axes.set_title(f"{printable(title)}: speech is shaded, yellow where the model is unsure", parse_math=False)


def _downsample(
    values: np.ndarray, times: np.ndarray, reduce: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Reduces neighbouring values, so that at most ``MAX_PLOT_POINTS`` remain, and averages their times."""
    if len(values) <= MAX_PLOT_POINTS:
        return values, times
    edges = np.linspace(0, len(values), MAX_PLOT_POINTS + 1).astype(int)
    pieces = [slice(first, last) for first, last in itertools.pairwise(edges)]
    return np.array([reduce(values[piece], axis=0) for piece in pieces]), np.array(
        [times[piece].mean() for piece in pieces]
    )


def _mean_over_speech(timeline: np.ndarray, axis: int) -> np.ndarray:
    is_speech = ~np.isnan(timeline[:, 0])
    return timeline[is_speech].mean(axis) if is_speech.any() else timeline[0]


def format_time(seconds: float, digits: int = 1) -> str:
    """Formats a time as ``m:ss`` or ``h:mm:ss``.

    Args:
        seconds: Time in seconds.
        digits: Decimals of the seconds.

    Example:
        >>> format_time(61.25), format_time(7325, digits=0)
        ('1:01.2', '2:02:05')
    """
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    last = f"{rest:0{digits + 3 if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{last}" if hours else f"{minutes}:{last}"
