"""What is wrong with a manifest's recordings and splits, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmemo.audio.reader import AudioFacts
from mmemo.data.manifest import Manifest, Utterance
from mmemo.files import replacing


def broken_audio(
    utterances: Sequence[Utterance], facts: Sequence[AudioFacts | None], private: bool = False
) -> list[str]:
    """One line for each utterance whose audio cannot be used.

    Args:
        utterances: Manifest rows.
        facts: Of each row's audio.
        private: Whether to leave out where the files are.
    """
    return [
        f"{utterance.id}: {fact.problem}" if private else f"{utterance.id}: {utterance.path}: {fact.problem}"
        for utterance, fact in zip(utterances, facts, strict=True)
        if fact is not None and fact.problem
    ]


def draw_distributions(manifest: Manifest, facts: Sequence[AudioFacts | None], path: Path) -> None:
    """Draws how labels, durations, loudness and transcript lengths are distributed.

    Args:
        manifest: The table.
        facts: Of each row's audio.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    frame = manifest.frame
    heard = [fact for fact in facts if fact is not None and not fact.problem]
    figure = Figure(figsize=(11, 7), layout="constrained")
    (labels, durations), (levels, words) = figure.subplots(2, 2)
    counts = pd.crosstab(frame["emotion"].fillna("(none)"), frame["split"].fillna("all"))
    counts.plot.barh(stacked=True, ax=labels, color=["#4477aa", "#ee6677", "#228833", "#ccbb44"])
    labels.set(title="Labels", xlabel="utterances", ylabel="")
    labels.invert_yaxis()
    _histogram(durations, [fact.seconds for fact in heard], "Duration", "seconds")
    _histogram(levels, [fact.level_db for fact in heard if np.isfinite(fact.level_db)], "Loudness", "dB of full scale")
    _histogram(words, frame["text"].dropna().str.split().str.len().tolist(), "Transcript length", "words")
    figure.suptitle(f"{manifest.path.name}: {len(frame)} utterances, {frame['speaker'].nunique()} speakers")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120)


def _histogram(axes, values: Sequence[float], title: str, unit: str) -> None:  # type: ignore[no-untyped-def]
    axes.set(title=title, xlabel=unit, ylabel="utterances")
    if values:
        axes.hist(values, bins=40, color="#4477aa")
    else:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
