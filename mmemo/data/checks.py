"""Manifest -> a list of its broken recordings, and a picture of its distributions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mmemo.audio.reader import AudioFacts
from mmemo.data.manifest import Manifest, Utterance
from mmemo.files import replacing
from mmemo.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def list_broken_audio(
    utterances: Sequence[Utterance], facts: Sequence[AudioFacts | None], private: bool = False
) -> list[str]:
    """Returns one line for each utterance whose audio cannot be used.

    Args:
        utterances: Manifest rows.
        facts: Facts of each row's audio.
        private: Whether to omit file paths.
    """
    return [
        f"{utterance.id}: {fact.problem}" if private else f"{utterance.id}: {utterance.path}: {fact.problem}"
        for utterance, fact in zip(utterances, facts, strict=True)
        if fact is not None and fact.problem
    ]


def draw_distributions(manifest: Manifest, facts: Sequence[AudioFacts | None], path: Path) -> None:
    """Draws the distributions of labels, durations, loudness and transcript lengths.

    Args:
        manifest: The table.
        facts: Facts of each row's audio.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    frame = manifest.frame
    usable = [fact for fact in facts if fact is not None and not fact.problem]
    figure = Figure(figsize=(11, 7), layout="constrained")
    (labels, durations), (levels, lengths) = figure.subplots(2, 2)
    counts = pd.crosstab(frame["emotion"].fillna("(none)"), frame["split"].fillna("all"))
    counts.plot.barh(stacked=True, ax=labels, color=["#4477aa", "#ee6677", "#228833", "#ccbb44"])
    labels.set(title="Labels", xlabel="utterances", ylabel="")
    labels.invert_yaxis()
    _draw_histogram(durations, [fact.seconds for fact in usable], "Duration", "seconds")
    _draw_histogram(
        levels, [fact.level_db for fact in usable if np.isfinite(fact.level_db)], "Loudness", "dB of full scale"
    )
    _draw_histogram(lengths, frame["text"].dropna().str.split().str.len().tolist(), "Transcript length", "words")
    figure.suptitle(
        f"{manifest.path.name}: {counted(len(frame), 'utterance')}, {counted(frame['speaker'].nunique(), 'speaker')}"
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120)


def _draw_histogram(axes: Axes, values: Sequence[float], title: str, unit: str) -> None:
    axes.set(title=title, xlabel=unit, ylabel="utterances")
    if values:
        axes.hist(values, bins=40, color="#4477aa")
    else:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
